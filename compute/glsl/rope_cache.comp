// rope_cache.comp - rotates q into out and k into the cache, and stores v into the cache, for every row. Without key/value heads
// (n_kv_heads 0) it rotates q alone and touches no cache; without values (v_dim 0) keys are all that is stored; n_rot may be 0.
//
// q, out [R][n_heads * k_dim], k [R][n_kv_heads * k_dim], v [R][n_kv_heads * v_dim]; table [n_context][n_rot / 2][cos, sin].
// A page holds for this layer K [32][n_kv_heads][kp] at k_offset and V [32][n_kv_heads][vp] at v_offset; kp, vp = dims rounded up
// to 8, filled with zeros; elements f32, or with -DCACHE_F16 IEEE halves, rounded to nearest even here in integers, so that every
// driver stores the same. One thread moves one pair of elements: heads of q, then of k, then of v. out may be q.
// Pairs of a head: first the n_rot / 2 that are rotated, (first + 2 i, first + 2 i + 1) or (first + i, first + i + n_rot / 2), then
// the other elements in order, two by two.
// Grid: x over (n_heads + 2 n_kv_heads) * max(kp, vp) / 2 threads of 64 (strided), y over rows.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 64) in;
layout(push_constant) uniform Push { sh_pc_rope p; };

uint half_bits(float f) {
    const uint u = floatBitsToUint(f), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return sign | 0x7e00u;  // NaN
    if (a >= 0x477ff000u) return sign | 0x7c00u; // rounds to infinity
    if (a < 0x33000001u) return sign;            // up to half of the smallest subnormal
    if (a < 0x38800000u) {                       // subnormal: the value in units of 2^-24
        const uint shift = 126u - (a >> 23), m = (a & 0x7fffffu) | 0x800000u;
        const uint q = m >> shift, rest = m & ((1u << shift) - 1u), mid = 1u << (shift - 1u);
        return sign | (q + uint(rest > mid || (rest == mid && (q & 1u) != 0u)));
    }
    const uint odd = (a >> 13) & 1u;
    return sign | ((a - 0x38000000u + 0xfffu + odd) >> 13);
}

void store(uvec2 base, uint index, float value) {
#ifdef CACHE_F16
    U16Out(base).v[index] = uint16_t(half_bits(value));
#else
    F32Out(base).v[index] = value;
#endif
}

void main() {
    const uint r = gl_WorkGroupID.y;
    if (r >= Step(p.step).v.n_rows) return;
    const sh_p_row row = Rows(p.rows).v[r];
    const uint n_heads = p.heads & 0xffffu, n_kv = p.heads >> 16, k_dim = p.dims & 0xffffu, v_dim = p.dims >> 16;
    const uint n_rot = p.rope & 0xffffu, halves = p.rope >> 16;
    const uint kp = (k_dim + 7u) & ~7u, vp = (v_dim + 7u) & ~7u, pairs = max(kp, vp) >> 1;
    uvec2 page = uvec2(0u);
    if (n_kv != 0u) page = Pages(p.pages).v[row.first_page + min(row.position / SH_P_PAGE_TOKENS, row.n_pages - 1u)];
    const uint in_page = row.position % SH_P_PAGE_TOKENS;
    const uint angle = min(row.position, p.n_context - 1u) * (n_rot >> 1);

    for (uint i = gl_GlobalInvocationID.x; i < (n_heads + 2u * n_kv) * pairs; i += gl_NumWorkGroups.x * 64u) {
        const uint head = i / pairs, pair = i % pairs;
        if (head >= n_heads + n_kv) { // a value, as it is
            const uint h = head - n_heads - n_kv;
            [[unroll]] for (uint e = 2u * pair; e < 2u * pair + 2u; e++)
                if (e < vp) {
                    const float value = e < v_dim ? F32(p.v).v[r * p.v_stride + h * v_dim + e] : 0.0;
                    store(at(page, p.v_offset), (in_page * n_kv + h) * vp + e, value);
                }
            continue;
        }
        const bool key = head >= n_heads;
        const uint h = key ? head - n_heads : head;
        if (2u * pair >= kp) continue;
        const bool rotated = 2u * pair < n_rot;
        uint a, b;
        if (rotated) {
            a = p.rope_first + (halves != 0u ? pair : 2u * pair);
            b = a + (halves != 0u ? n_rot >> 1 : 1u);
        } else {
            a = 2u * pair - n_rot; // counted without those that are rotated
            b = a + 1u;
            if (a >= p.rope_first) a += n_rot;
            if (b >= p.rope_first) b += n_rot;
        }
        const uint base = key ? r * p.k_stride + h * k_dim : r * p.q_stride + h * k_dim;
        float x = a < k_dim ? (key ? F32(p.k).v[base + a] : F32(p.q).v[base + a]) : 0.0;
        float y = b < k_dim ? (key ? F32(p.k).v[base + b] : F32(p.q).v[base + b]) : 0.0;
        if (rotated) {
            const vec2 cs = F64(p.table).v[angle + pair];
            precise float xc = x * cs.x, ys = y * cs.y, xs = x * cs.y, yc = y * cs.x;
            precise float u = xc - ys, v = xs + yc;
            x = u;
            y = v;
        }
        if (key) {
            const uint to = (in_page * n_kv + h) * kp;
            store(at(page, p.k_offset), to + a, x);
            store(at(page, p.k_offset), to + b, y);
        } else {
            const uint to = r * p.dst_stride + h * k_dim;
            if (a < k_dim) F32Out(p.dst).v[to + a] = x;
            if (b < k_dim) F32Out(p.dst).v[to + b] = y;
        }
    }
}

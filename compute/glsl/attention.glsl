// attention.glsl - one split: softmax numerator, denominator and maximum over at most 256 cache positions, for one row and head.
//
// Keys and values are read as stored (f32, or halves with -DCACHE_F16). Thread t makes the scores of positions t, t + 64, t +
// 128, t + 192 of the split, each an ascending chain of fma over the head's dimensions, then times the scale, capped, and minus
// slope * distance; the denominator is 64 ascending chains added in order; values are added position by position. Thread t owns the
// value pairs t, t + 64, ... Everything that both attention kernels compute is here.
layout(push_constant) uniform Push { sh_pc_attention p; };
#include "attention_merge.glsl"
#include "math.glsl"

#ifdef LARGE
#define K_DIM SH_MAX_K_DIM
#define BLOCKS (SH_MAX_V_DIM / 128)
#else
#define K_DIM SH_SMALL_DIM
#define BLOCKS (SH_SMALL_DIM / 128)
#endif
shared vec4 q_shared[K_DIM / 4];
shared float scores[SH_SPLIT_TOKENS];
shared float lanes[64];

struct Part {
    float m, l;
    vec2 acc[BLOCKS];
};

uvec2 page_of(sh_p_row row, uint position) {
    return Pages(p.pages).v[row.first_page + min(position / SH_P_PAGE_TOKENS, row.n_pages - 1u)];
}

void load_query(uint r, uint head) {
    const uint k_dim = p.dims & 0xffffu, kp = (k_dim + 7u) & ~7u;
    for (uint i = gl_LocalInvocationID.x; i < kp; i += 64u)
        q_shared[i >> 2][i & 3u] = i < k_dim ? F32(p.q).v[r * p.q_stride + head * k_dim + i] : 0.0;
    barrier();
}

float masked(float dot, uint head, uint query, uint key) {
    precise float s = dot * p.scale;
    if (p.softcap != 0.0) s = p.softcap * tanh_of(s / p.softcap);
    if ((p.flags & SH_ATTENTION_SLOPES) != 0u) {
        precise float bias = F32(p.slopes).v[head] * float(query > key ? query - key : key - query);
        s = s - bias;
    }
    return s;
}

// Of the positions first_seen .. end_seen - 1 those in the split, at least one.
Part split_part(sh_p_row row, uint head, uint split, uint first_seen, uint end_seen) {
    const uint tid = gl_LocalInvocationID.x;
    const uint n_kv = p.heads >> 16, kv = head / ((p.heads & 0xffffu) / n_kv);
    const uint kp = ((p.dims & 0xffffu) + 7u) & ~7u, vp = ((p.dims >> 16) + 7u) & ~7u;
    const uint pitch = (p.flags & SH_ATTENTION_V_IN_K) != 0u ? kp : vp; // of a value in the cache
    const uint first = split * SH_SPLIT_TOKENS, start = max(first_seen, first) - first,
               count = min(SH_SPLIT_TOKENS, end_seen - first); // positions start .. count - 1 of the split
    float most = NO_SCORE;
    for (uint t = tid; t < count; t += 64u) {
        if (t < start) continue;
        const uvec2 keys = at(page_of(row, first + t), p.k_offset);
        const uint base = (((first + t) % SH_P_PAGE_TOKENS) * n_kv + kv) * kp;
        precise float s = 0.0;
#ifdef CACHE_F16
        for (uint d = 0u; d < kp; d += 8u) {
            const uvec4 w = U128(keys).v[(base + d) >> 3];
            const vec4 qa = q_shared[d >> 2], qb = q_shared[(d >> 2) + 1u];
            const vec2 k0 = unpackHalf2x16(w.x), k1 = unpackHalf2x16(w.y), k2 = unpackHalf2x16(w.z), k3 = unpackHalf2x16(w.w);
            s = fma(qa.x, k0.x, s);
            s = fma(qa.y, k0.y, s);
            s = fma(qa.z, k1.x, s);
            s = fma(qa.w, k1.y, s);
            s = fma(qb.x, k2.x, s);
            s = fma(qb.y, k2.y, s);
            s = fma(qb.z, k3.x, s);
            s = fma(qb.w, k3.y, s);
        }
#else
        for (uint d = 0u; d < kp; d += 4u) {
            const vec4 k = F128(keys).v[(base + d) >> 2], q = q_shared[d >> 2];
            s = fma(q.x, k.x, s);
            s = fma(q.y, k.y, s);
            s = fma(q.z, k.z, s);
            s = fma(q.w, k.w, s);
        }
#endif
        s = masked(s, head, row.position, first + t);
        scores[t] = s;
        most = max(most, s);
    }
    lanes[tid] = most;
    barrier();
    for (uint i = 0u; i < 64u; i++) most = max(most, lanes[i]);
    barrier();
    precise float sum = 0.0;
    for (uint t = tid; t < count; t += 64u) {
        if (t < start) continue;
        const float e = exp(scores[t] - most);
        scores[t] = e;
        sum = sum + e;
    }
    lanes[tid] = sum;
    barrier();
    Part part;
    part.m = most;
    precise float all = 0.0;
    for (uint i = 0u; i < 64u; i++) all = all + lanes[i];
    part.l = all;
    [[unroll]] for (uint b = 0u; b < BLOCKS; b++) {
        precise vec2 acc = vec2(0.0);
        const uint pair = tid + 64u * b;
        if (2u * pair < vp) {
            for (uint t0 = start & ~(SH_P_PAGE_TOKENS - 1u); t0 < count; t0 += SH_P_PAGE_TOKENS) {
                const uvec2 values = at(page_of(row, first + t0), p.v_offset);
                for (uint t = max(t0, start); t < min(count, t0 + SH_P_PAGE_TOKENS); t++) {
                    const uint i = (((t - t0) * n_kv + kv) * pitch >> 1) + pair;
#ifdef CACHE_F16
                    const vec2 v = unpackHalf2x16(U32(values).v[i]);
#else
                    const vec2 v = F64(values).v[i];
#endif
                    acc = fma(vec2(scores[t]), v, acc);
                }
            }
        }
        part.acc[b] = acc;
    }
    barrier(); // the next split writes scores and lanes
    return part;
}

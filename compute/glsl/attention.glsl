// attention.glsl - one split: softmax numerator, denominator and maximum over at most 256 cache positions, for one row and head.
//
// Keys and values are read as stored (f32, or halves with -DCACHE_F16). Thread t makes the scores of positions t, t + 64, t +
// 128, t + 192 of the split, each an ascending chain of fma over the head's dimensions; the denominator is 64 ascending chains
// added in order; values are added position by position. Thread t owns the value pairs t and t + 64. Everything that both
// attention kernels compute is here.
layout(push_constant) uniform Push { sh_pc_attention p; };

shared vec4 q_shared[SH_MAX_K_DIM / 4];
shared float scores[SH_SPLIT_TOKENS];
shared float lanes[64];

#define NO_SCORE (-3.0e38)

struct Part {
    float m, l;
    vec2 acc[2];
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

Part split_part(sh_p_row row, uint head, uint split) {
    const uint tid = gl_LocalInvocationID.x;
    const uint n_kv = p.heads >> 16, kv = head / ((p.heads & 0xffffu) / n_kv);
    const uint kp = ((p.dims & 0xffffu) + 7u) & ~7u, vp = ((p.dims >> 16) + 7u) & ~7u;
    const uint first = split * SH_SPLIT_TOKENS, count = min(SH_SPLIT_TOKENS, row.position + 1u - first);
    float most = NO_SCORE;
    for (uint t = tid; t < count; t += 64u) {
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
        s = s * p.scale;
        scores[t] = s;
        most = max(most, s);
    }
    lanes[tid] = most;
    barrier();
    for (uint i = 0u; i < 64u; i++) most = max(most, lanes[i]);
    barrier();
    precise float sum = 0.0;
    for (uint t = tid; t < count; t += 64u) {
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
    [[unroll]] for (uint b = 0u; b < 2u; b++) {
        precise vec2 acc = vec2(0.0);
        const uint pair = tid + 64u * b;
        if (2u * pair < vp) {
            for (uint t0 = 0u; t0 < count; t0 += SH_P_PAGE_TOKENS) {
                const uvec2 values = at(page_of(row, first + t0), p.v_offset);
                for (uint t = t0; t < min(count, t0 + SH_P_PAGE_TOKENS); t++) {
                    const uint i = (((t - t0) * n_kv + kv) * vp >> 1) + pair;
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

// attention.comp - out[r][head] = softmax(q k^T * scale) v over the positions 0 .. position(r): one workgroup of 64 makes all
// splits of a row and head, merging in ascending order. q [R][n_heads * k_dim], out [R][n_heads * v_dim]; n_heads a multiple of
// n_kv_heads. For steps of many rows; gives the same bits as attention_split and attention_merge.
// Grid: x over heads, y over rows. Shared: 2.3 KiB. k_dim, v_dim <= 256.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 64) in;
#include "attention.glsl"
#include "attention_merge.glsl"

void main() {
    const uint r = gl_WorkGroupID.y, head = gl_WorkGroupID.x;
    if (r >= Step(p.step).v.n_rows || head >= (p.heads & 0xffffu)) return;
    const sh_p_row row = Rows(p.rows).v[r];
    load_query(r, head);
    float m = NO_SCORE, l = 0.0;
    vec2 acc[2] = {vec2(0.0), vec2(0.0)};
    for (uint split = 0u; split <= row.position / SH_SPLIT_TOKENS; split++) {
        const Part part = split_part(row, head, split);
        float keep, take;
        merge_scales(m, part.m, m, keep, take);
        l = merge(l, part.l, keep, take);
        [[unroll]] for (uint b = 0u; b < 2u; b++)
            acc[b] = vec2(merge(acc[b].x, part.acc[b].x, keep, take), merge(acc[b].y, part.acc[b].y, keep, take));
    }
    const uint v_dim = p.dims >> 16;
    [[unroll]] for (uint b = 0u; b < 2u; b++)
        [[unroll]] for (uint i = 0u; i < 2u; i++) {
            const uint e = 2u * (gl_LocalInvocationID.x + 64u * b) + i;
            precise float y = acc[b][i] / l;
            if (e < v_dim) F32Out(p.dst).v[r * p.dst_stride + head * v_dim + e] = y;
        }
}

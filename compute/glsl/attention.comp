// attention.comp - out[r][head] = softmax(scores) v over the positions that row r sees: one workgroup of 64 makes all splits of a row
// and head, merging in ascending order, then the sink: one more score in the maximum and the denominator that carries no value.
// q [R][n_heads * k_dim], out [R][n_heads * v_dim]; n_heads a multiple of n_kv_heads; slopes, sinks [n_heads]. For steps of many
// rows; gives the same bits as attention_split and attention_merge.
// Grid: x over heads, y over rows. Shared: 2.3 KiB, with -DLARGE 3.6 KiB. k_dim, v_dim <= 256; with -DLARGE k_dim <= 576, v_dim <= 512.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 64) in;
#include "attention.glsl"

void main() {
    const uint r = gl_WorkGroupID.y, head = gl_WorkGroupID.x;
    if (r >= Step(p.step).v.n_rows || head >= (p.heads & 0xffffu)) return;
    const sh_p_row row = Rows(p.rows).v[r];
    load_query(r, head);
    float m = NO_SCORE, l = 0.0, keep, take;
    vec2 acc[BLOCKS];
    [[unroll]] for (uint b = 0u; b < BLOCKS; b++) acc[b] = vec2(0.0);
    uint first, end;
    visible(row, first, end);
    for (uint split = first / SH_SPLIT_TOKENS; split <= (end - 1u) / SH_SPLIT_TOKENS; split++) {
        const Part part = split_part(row, head, split, first, end);
        merge_scales(m, part.m, m, keep, take);
        l = merge(l, part.l, keep, take);
        [[unroll]] for (uint b = 0u; b < BLOCKS; b++)
            acc[b] = vec2(merge(acc[b].x, part.acc[b].x, keep, take), merge(acc[b].y, part.acc[b].y, keep, take));
    }
    if ((p.flags & SH_ATTENTION_SINKS) != 0u) {
        merge_scales(m, F32(p.sinks).v[head], m, keep, take);
        l = merge(l, 1.0, keep, take);
        [[unroll]] for (uint b = 0u; b < BLOCKS; b++)
            acc[b] = vec2(merge(acc[b].x, 0.0, keep, take), merge(acc[b].y, 0.0, keep, take));
    }
    const uint v_dim = p.dims >> 16;
    [[unroll]] for (uint b = 0u; b < BLOCKS; b++)
        [[unroll]] for (uint i = 0u; i < 2u; i++) {
            const uint e = 2u * (gl_LocalInvocationID.x + 64u * b) + i;
            precise float y = acc[b][i] / l;
            if (e < v_dim) F32Out(p.dst).v[r * p.dst_stride + head * v_dim + e] = y;
        }
}

// attention_split.comp - the splits of few rows over long caches side by side: one workgroup of 64 makes one split of one row and
// head and writes {maximum, denominator, numerator [vp]} to scratch [items][n_heads][vp + 2]; a split that the row does not see it
// leaves alone. -DLARGE: as in attention.comp.
// Grid: x over heads, y over the step's items. Shared: 2.3 KiB, with -DLARGE 3.6 KiB.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 64) in;
#include "attention.glsl"

void main() {
    const uint item = gl_WorkGroupID.y, head = gl_WorkGroupID.x, n_heads = p.heads & 0xffffu;
    const sh_p_item it = Items(p.items).v[item];
    if (it.row >= Step(p.step).v.n_rows || head >= n_heads) return;
    const sh_p_row row = Rows(p.rows).v[it.row];
    uint first, end;
    visible(row, first, end);
    if (it.split < first / SH_SPLIT_TOKENS || it.split > (end - 1u) / SH_SPLIT_TOKENS) return;
    load_query(it.row, head);
    const Part part = split_part(row, head, it.split, first, end);
    const uint vp = ((p.dims >> 16) + 7u) & ~7u, base = (item * n_heads + head) * (vp + 2u);
    if (gl_LocalInvocationID.x == 0u) {
        F32Out(p.scratch).v[base] = part.m;
        F32Out(p.scratch).v[base + 1u] = part.l;
    }
    [[unroll]] for (uint b = 0u; b < BLOCKS; b++)
        [[unroll]] for (uint i = 0u; i < 2u; i++) {
            const uint e = 2u * (gl_LocalInvocationID.x + 64u * b) + i;
            if (e < vp) F32Out(p.scratch).v[base + 2u + e] = part.acc[b][i];
        }
}

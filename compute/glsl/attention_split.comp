// attention_split.comp - the splits of few rows over long caches side by side: one workgroup of 64 makes one split of one row for the
// heads that share keys and values (LINES at most: attention.glsl) and writes {maximum, denominator, numerator [vp]} of each to scratch
// [items][n_heads][vp + 2]. `items` lists row and split; a split that the row does not see is left alone. -DLARGE: as in attention.comp.
// Grid: x over n_kv_heads * ceil(heads of one / LINES), y over the list's items. Shared: 14.2 KiB.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 64) in;
#include "attention.glsl"

void main() {
    const sh_p_item it = Items(p.items).v[gl_WorkGroupID.y];
    if (it.row >= Step(p.step).v.n_rows) return;
    const uint tid = gl_LocalInvocationID.x, n_heads = p.heads & 0xffffu, vp = ((p.dims >> 16) + 7u) & ~7u;
    const Lines l = lines_of(gl_WorkGroupID.x, it.row, 1u);
    if (it.split < l.any_first / SH_SPLIT_TOKENS || it.split > (l.any_end - 1u) / SH_SPLIT_TOKENS) return;
    load_queries(l);
    float most, sum;
    Sums part;
    split_part(l, it.split, most, sum, part);
    const uint base = ((Rows(p.rows).v[it.row].first_item + it.split) * n_heads + l.head) * (vp + 2u);
    if (tid < l.n) {
        F32Out(p.scratch).v[base + tid * (vp + 2u)] = most;
        F32Out(p.scratch).v[base + tid * (vp + 2u) + 1u] = sum;
    }
    [[unroll]] for (uint line = 0u; line < LINES; line++) {
        if (line >= l.n) continue;
        [[unroll]] for (uint b = 0u; b < BLOCKS; b++)
            [[unroll]] for (uint i = 0u; i < 2u; i++) {
                const uint e = 2u * (tid + 64u * b) + i;
                if (e < vp) F32Out(p.scratch).v[base + line * (vp + 2u) + 2u + e] = part.acc[line >> 2][b][i][line & 3u];
            }
    }
}

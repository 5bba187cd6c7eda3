// attention_merge.comp - adds the splits that attention_split left in scratch, in ascending order, then the sink, and divides.
// One thread per value dimension. Grid: x over heads, y over rows.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 64) in;
layout(push_constant) uniform Push { sh_pc_attention p; };
#include "attention_merge.glsl"

void main() {
    const uint r = gl_WorkGroupID.y, head = gl_WorkGroupID.x, n_heads = p.heads & 0xffffu, v_dim = p.dims >> 16;
    if (r >= Step(p.step).v.n_rows || head >= n_heads) return;
    const sh_p_row row = Rows(p.rows).v[r];
    const uint vp = (v_dim + 7u) & ~7u;
    uint first, end;
    visible(row.position, row.end, first, end);
    for (uint e = gl_LocalInvocationID.x; e < v_dim; e += 64u) {
        float m = NO_SCORE, l = 0.0, acc = 0.0, keep, take;
        for (uint split = first / SH_SPLIT_TOKENS; split <= (end - 1u) / SH_SPLIT_TOKENS; split++) {
            const uint base = ((row.first_item + split) * n_heads + head) * (vp + 2u);
            merge_scales(m, F32(p.scratch).v[base], m, keep, take);
            l = merge(l, F32(p.scratch).v[base + 1u], keep, take);
            acc = merge(acc, F32(p.scratch).v[base + 2u + e], keep, take);
        }
        if ((p.flags & SH_ATTENTION_SINKS) != 0u) {
            merge_scales(m, F32(p.sinks).v[head], m, keep, take);
            l = merge(l, 1.0, keep, take);
            acc = merge(acc, 0.0, keep, take);
        }
        precise float y = acc / l;
        F32Out(p.dst).v[r * p.dst_stride + head * v_dim + e] = y;
    }
}

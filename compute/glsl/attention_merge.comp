// attention_merge.comp - adds the splits that attention_split left in scratch, in ascending order, then the sink, and divides.
// One thread per value dimension. -DQUANTS: four of them, which also become int8 (quantise.glsl) in `quants`; heads of a multiple of 32.
// Grid: x over heads, y over rows.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 64) in;
layout(push_constant) uniform Push { sh_pc_attention p; };
#include "attention_merge.glsl"

#ifdef QUANTS
#define THREADS 64
#include "quantise.glsl"
#define VALUES vec4
#define EACH 4u
vec4 load(uint at) { return vec4(F32(p.scratch).v[at], F32(p.scratch).v[at + 1u], F32(p.scratch).v[at + 2u], F32(p.scratch).v[at + 3u]); }
vec4 merge(vec4 all, vec4 part, float keep, float take) {
    return vec4(merge(all.x, part.x, keep, take), merge(all.y, part.y, keep, take), merge(all.z, part.z, keep, take), merge(all.w, part.w, keep, take));
}
#else
#define VALUES float
#define EACH 1u
float load(uint at) { return F32(p.scratch).v[at]; }
#endif

void main() {
    const uint r = gl_WorkGroupID.y, head = gl_WorkGroupID.x, n_heads = p.heads & 0xffffu, v_dim = p.dims >> 16;
    if (r >= Step(p.step).v.n_rows || head >= n_heads) return;
    const sh_p_row row = Rows(p.rows).v[r];
    const uint vp = (v_dim + 7u) & ~7u;
    uint first, end;
    visible(row.position, row.end, first, end);
    for (uint e0 = 0u; e0 < v_dim; e0 += 64u * EACH) {
        const uint e = e0 + gl_LocalInvocationID.x * EACH, from = min(e, v_dim - EACH);
        float m = NO_SCORE, l = 0.0, keep, take;
        VALUES acc = VALUES(0.0);
        for (uint split = first / SH_SPLIT_TOKENS; split <= (end - 1u) / SH_SPLIT_TOKENS; split++) {
            const uint base = ((row.first_item + split) * n_heads + head) * (vp + 2u);
            merge_scales(m, F32(p.scratch).v[base], m, keep, take);
            l = merge(l, F32(p.scratch).v[base + 1u], keep, take);
            acc = merge(acc, load(base + 2u + from), keep, take);
        }
        if ((p.flags & SH_ATTENTION_SINKS) != 0u) {
            merge_scales(m, F32(p.sinks).v[head], m, keep, take);
            l = merge(l, 1.0, keep, take);
            acc = merge(acc, VALUES(0.0), keep, take);
        }
        precise VALUES y = acc / l;
        const uint to = head * v_dim + e;
#ifdef QUANTS
        if (e < v_dim) F128Out(p.dst).v[(r * p.dst_stride + to) >> 2] = y;
        quantise(y, p.quants, (r * n_heads * v_dim + to) / SH_UNIT, e < v_dim, (p.flags & SH_ATTENTION_PAIRS) != 0u);
#else
        if (e < v_dim) F32Out(p.dst).v[r * p.dst_stride + to] = y;
#endif
    }
}

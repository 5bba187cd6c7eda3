// norm.comp - every part of every row by itself: x [R][x_stride], out [R][stride], rows of n_groups parts of `width` elements.
//   RMS    x * (1 / sqrt(sum(x^2) / width + eps))
//   LAYER  (x - mean) * (1 / sqrt(sum((x - mean)^2) / width + eps)), mean = sum(x) / width
//   L2     x * (1 / max(sqrt(sum(x^2)), eps))
// then * w, then + bias, each where there is one; part g takes them from element g * w_step (0: every part takes the same) on.
//
// One workgroup of 256 per part. A sum: thread t adds the elements t, t + 256, ... in order (squares with fma); then eight runs, run
// i adding the threads' sums i, i + 8, i + 16, ... in order, then the eight in order: a fixed tree that depends on the width alone.
// -DQUANTS: rows of one part of a multiple of 32 elements, which also become int8 (quantise.glsl) in `quants`; out is not written with
// SH_NORM_QUANTS_ONLY. Shared: 3 KiB more.
// Grid: x over parts (strided), y over rows. Shared: 1 KiB.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 256) in;
layout(push_constant) uniform Push { sh_pc_norm p; };
#ifdef QUANTS
#define THREADS 256
#include "quantise.glsl"
#endif

shared float sums[256];

// The same for all threads, which all come here.
float add_up(float mine) {
    const uint tid = gl_LocalInvocationID.x;
    barrier(); // the sums before have been read
    sums[tid] = mine;
    barrier();
    if (tid < 8u) {
        precise float run = 0.0;
        for (uint i = 0u; i < 32u; i++) run = run + sums[i * 8u + tid];
        sums[tid] = run;
    }
    barrier();
    precise float all = 0.0;
    [[unroll]] for (uint i = 0u; i < 8u; i++) all = all + sums[i];
    return all;
}

void main() {
    const uint tid = gl_LocalInvocationID.x, r = gl_WorkGroupID.y;
    if (r >= (p.by_output != 0u ? Step(p.step).v.n_outputs : Step(p.step).v.n_rows)) return;
    for (uint g = gl_WorkGroupID.x; g < p.n_groups; g += gl_NumWorkGroups.x) {
        const uint from = r * p.x_stride + g * p.width, to = r * p.stride + g * p.width;
        precise float mean = 0.0;
        if (p.kind == SH_NORM_KIND_LAYER) {
            precise float sum = 0.0;
            for (uint i = tid; i < p.width; i += 256u) sum = sum + F32(p.x).v[from + i];
            mean = add_up(sum) / float(p.width);
        }
        precise float squares = 0.0;
        for (uint i = tid; i < p.width; i += 256u) {
            precise float v = F32(p.x).v[from + i] - mean;
            squares = fma(v, v, squares);
        }
        const float all = add_up(squares);
        precise float scale = p.kind == SH_NORM_KIND_L2 ? 1.0 / max(sqrt(all), p.eps) : 1.0 / sqrt(all / float(p.width) + p.eps);
#ifdef QUANTS
        for (uint i0 = 0u; i0 < p.width; i0 += 1024u) {
            const uint i = i0 + 4u * tid, at4 = min(i, p.width - 4u) >> 2;
            precise vec4 y = (F128(p.x).v[(from >> 2) + at4] - mean) * scale;
            if ((p.flags & SH_NORM_WEIGHT) != 0u) y = y * F128(p.w).v[at4];
            if ((p.flags & SH_NORM_BIAS) != 0u) y = y + F128(p.bias).v[at4];
            const bool wanted = i < p.width;
            if (wanted && (p.flags & SH_NORM_QUANTS_ONLY) == 0u) F128Out(p.dst).v[(to >> 2) + at4] = y;
            quantise(y, p.quants, (r * p.width + i) / SH_UNIT, wanted, (p.flags & SH_NORM_PAIRS) != 0u);
        }
#else
        for (uint i = tid; i < p.width; i += 256u) {
            precise float y = (F32(p.x).v[from + i] - mean) * scale;
            if ((p.flags & SH_NORM_WEIGHT) != 0u) y = y * F32(p.w).v[g * p.w_step + i];
            if ((p.flags & SH_NORM_BIAS) != 0u) y = y + F32(p.bias).v[g * p.bias_step + i];
            F32Out(p.dst).v[to + i] = y;
        }
#endif
    }
}

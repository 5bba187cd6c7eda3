// rms_norm.comp - out[r][i] = x[r][i] / sqrt(mean(x[r]^2) + eps) * w[i]; x, out [R][stride], w [width].
//
// One workgroup of 256 per row. Thread t adds the squares of t, t + 256, ...; the 256 sums are added as a fixed tree.
// Grid: x over rows (strided). Shared: 1 KiB.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 256) in;
layout(push_constant) uniform Push { sh_pc_norm p; };

shared float sums[256];

void main() {
    const uint tid = gl_LocalInvocationID.x;
    const uint n_rows = p.by_output != 0u ? Step(p.step).v.n_outputs : Step(p.step).v.n_rows;
    for (uint r = gl_WorkGroupID.x; r < n_rows; r += gl_NumWorkGroups.x) {
        precise float sum = 0.0;
        for (uint i = tid; i < p.width; i += 256u) {
            const float v = F32(p.x).v[r * p.stride + i];
            sum = fma(v, v, sum);
        }
        sums[tid] = sum;
        barrier();
        // Eight strided runs of 32, then the eight: two steps instead of eight barriers.
        if (tid < 8u) {
            precise float run = 0.0;
            for (uint i = 0u; i < 32u; i++) run = run + sums[i * 8u + tid];
            sums[tid] = run;
        }
        barrier();
        precise float all = 0.0;
        [[unroll]] for (uint i = 0u; i < 8u; i++) all = all + sums[i];
        precise float scale = 1.0 / sqrt(all / float(p.width) + p.eps);
        for (uint i = tid; i < p.width; i += 256u) {
            precise float scaled = F32(p.x).v[r * p.stride + i] * scale;
            F32Out(p.dst).v[r * p.stride + i] = scaled * F32(p.w).v[i];
        }
        barrier();
    }
}

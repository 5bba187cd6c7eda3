// quantise.comp - activations of the tier intdot by themselves: x [R][x_stride] float32, of which `units` * 32 count; out [R][units] of
// quantise.glsl. Grid: x over blocks of 8 units (strided), y over rows.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 64) in;
layout(push_constant) uniform Push { sh_pc_quantise p; };
#define THREADS 64
#include "quantise.glsl"

void main() {
    const uint tid = gl_LocalInvocationID.x, r = gl_WorkGroupID.y;
    const uint n_rows = p.by_output != 0u ? Step(p.step).v.n_outputs : Step(p.step).v.n_rows;
    if (r >= n_rows) return;
    for (uint block = gl_WorkGroupID.x; block * 8u < p.units; block += gl_NumWorkGroups.x) {
        const uint unit = block * 8u + (tid >> 3);
        const vec4 v = F128(p.x).v[(r * p.x_stride + min(unit, p.units - 1u) * SH_UNIT + 4u * (tid & 7u)) >> 2];
        quantise(v, p.dst, r * p.units + unit, unit < p.units, p.pairs != 0u);
    }
}

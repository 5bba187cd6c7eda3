// expert_sum.comp - out[r][i] = sum over slots j, ascending from 0, of weight(r, j) * x[r][j][i]; a product and a sum are two roundings.
//
// x [R][x_stride]: n_used times `width`; route [R][route_stride]: n_used experts, then their weights. Grid: x over width (strided), y over
// rows.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 64) in;
layout(push_constant) uniform Push { sh_pc_expert_sum p; };

void main() {
    const uint r = gl_WorkGroupID.y;
    if (r >= (p.by_output != 0u ? Step(p.step).v.n_outputs : Step(p.step).v.n_rows)) return;
    for (uint i = gl_GlobalInvocationID.x; i < p.width; i += gl_NumWorkGroups.x * 64u) {
        precise float sum = 0.0;
        for (uint j = 0u; j < p.n_used; j++) {
            precise float term = F32(p.route).v[r * p.route_stride + p.n_used + j] * F32(p.x).v[r * p.x_stride + j * p.width + i];
            sum = sum + term;
        }
        F32Out(p.dst).v[r * p.dst_stride + i] = sum;
    }
}

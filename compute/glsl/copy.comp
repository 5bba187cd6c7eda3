// copy.comp - rows between the device's activations and the step's host-visible buffers; which rows, `mask` says (params.h).
// Grid: x over width / 64 (strided), y over rows.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 64) in;
layout(push_constant) uniform Push { sh_pc_copy p; };

void main() {
    const uint r = gl_WorkGroupID.y;
    if (r >= (p.mask == 0u ? Step(p.step).v.n_rows : Step(p.step).v.n_outputs)) return;
    if (p.mask != 0u && p.mask != SH_P_NONE && (Outputs(p.outputs).v[r].flags & p.mask) == 0u) return;
    for (uint i = gl_GlobalInvocationID.x; i < p.width; i += gl_NumWorkGroups.x * 64u)
        F32Out(p.dst).v[r * p.dst_stride + i] = F32(p.src).v[r * p.src_stride + i];
}

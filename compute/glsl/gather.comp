// gather.comp - out[o] = x[row of output o]; x [R][stride], out [O][stride]. Grid: x over width / 256 (strided), y over outputs.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 64) in;
layout(push_constant) uniform Push { sh_pc_gather p; };

void main() {
    const uint o = gl_WorkGroupID.y;
    if (o >= Step(p.step).v.n_outputs) return;
    const uint r = min(Outputs(p.outputs).v[o].row, Step(p.step).v.n_rows - 1u);
    for (uint i = gl_GlobalInvocationID.x; i * 4u < p.width; i += gl_NumWorkGroups.x * 64u)
        F128Out(p.dst).v[o * (p.stride >> 2) + i] = F128(p.x).v[r * (p.stride >> 2) + i];
}

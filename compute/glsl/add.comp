// add.comp - out = x + y: x [R][x_stride], y [R][y_stride], out [R][stride]. One thread makes four elements. Grid: x over width / 256 (strided), y over rows.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 64) in;
layout(push_constant) uniform Push { sh_pc_pair p; };

void main() {
    const uint r = gl_WorkGroupID.y;
    if (r >= (p.by_output != 0u ? Step(p.step).v.n_outputs : Step(p.step).v.n_rows)) return;
    for (uint i = gl_GlobalInvocationID.x; i * 4u < p.width; i += gl_NumWorkGroups.x * 64u) {
        precise vec4 v = F128(p.x).v[r * (p.x_stride >> 2) + i] + F128(p.y).v[r * (p.y_stride >> 2) + i];
        F128Out(p.dst).v[r * (p.stride >> 2) + i] = v;
    }
}

// concat.comp - for each of n_heads heads x's part [x_part], then y's [y_part]: x [R][x_stride], y [R][y_stride], out [R][dst_stride].
// One thread moves one element. Grid: x over the row's elements / 64 (strided), y over rows.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 64) in;
layout(push_constant) uniform Push { sh_pc_concat p; };

void main() {
    const uint r = gl_WorkGroupID.y, part = p.x_part + p.y_part;
    if (r >= (p.by_output != 0u ? Step(p.step).v.n_outputs : Step(p.step).v.n_rows)) return;
    for (uint i = gl_GlobalInvocationID.x; i < p.n_heads * part; i += gl_NumWorkGroups.x * 64u) {
        const uint head = i / part, e = i % part;
        float v;
        if (e < p.x_part) v = F32(p.x).v[r * p.x_stride + head * p.x_part + e];
        else v = F32(p.y).v[r * p.y_stride + head * p.y_part + e - p.x_part];
        F32Out(p.dst).v[r * p.dst_stride + i] = v;
    }
}

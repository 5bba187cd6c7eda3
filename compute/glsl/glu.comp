// glu.comp - out = glu_of(KIND, x, y) (glu.glsl): y [R][y_stride], out [R][stride], x [R][x_stride], of the same width or, with x_single,
// one number per row.
// One thread makes four elements. Grid: x over width / 256 (strided), y over rows.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
#include "glu.glsl"
layout(local_size_x = 64) in;
layout(push_constant) uniform Push { sh_pc_pair p; };

void main() {
    const uint r = gl_WorkGroupID.y;
    if (r >= (p.by_output != 0u ? Step(p.step).v.n_outputs : Step(p.step).v.n_rows)) return;
    for (uint i = gl_GlobalInvocationID.x; i * 4u < p.width; i += gl_NumWorkGroups.x * 64u) {
        vec4 x;
        if (p.x_single != 0u) x = vec4(F32(p.x).v[r * p.x_stride]);
        else x = F128(p.x).v[r * (p.x_stride >> 2) + i];
        const vec4 y = F128(p.y).v[r * (p.y_stride >> 2) + i];
        F128Out(p.dst).v[r * (p.stride >> 2) + i] =
            vec4(glu_of(KIND, x.x, y.x), glu_of(KIND, x.y, y.y), glu_of(KIND, x.z, y.z), glu_of(KIND, x.w, y.w));
    }
}

// glu.comp - out = act(x) * y with act by ACT, a function of math.glsl, or -DOP_*: y, out [R][stride], x [R][x_stride], of the same
// width or, with x_single, one number per row. SH_GLU_OAI: g = min(x, 7), p = clamp(y, -7, 7): g / (1 + exp(-1.702 g)) * (p + 1).
// One thread makes four elements. Grid: x over width / 256 (strided), y over rows.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
#include "math.glsl"
layout(local_size_x = 64) in;
layout(push_constant) uniform Push { sh_pc_pair p; };

float glu(float x, float y) {
#ifdef OP_OAI
    const float g = min(x, 7.0);
    precise float v = g / (1.0 + exp(-1.702 * g)) * (clamp(y, -7.0, 7.0) + 1.0);
#elif defined OP_MUL
    precise float v = x * y;
#elif defined OP_RELU
    precise float v = max(x, 0.0) * y;
#else
    precise float v = ACT(x) * y;
#endif
    return v;
}

void main() {
    const uint r = gl_WorkGroupID.y;
    if (r >= (p.by_output != 0u ? Step(p.step).v.n_outputs : Step(p.step).v.n_rows)) return;
    for (uint i = gl_GlobalInvocationID.x; i * 4u < p.width; i += gl_NumWorkGroups.x * 64u) {
        const uint at4 = r * (p.stride >> 2) + i;
        vec4 x;
        if (p.x_single != 0u) x = vec4(F32(p.x).v[r * p.x_stride]);
        else x = F128(p.x).v[r * (p.x_stride >> 2) + i];
        const vec4 y = F128(p.y).v[at4];
        F128Out(p.dst).v[at4] = vec4(glu(x.x, y.x), glu(x.y, y.y), glu(x.z, y.z), glu(x.w, y.w));
    }
}

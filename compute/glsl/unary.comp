// unary.comp - out = f(x) with f by ACT, a function of math.glsl, or -DOP_*; x, out [R][stride].
//   OP_SCALE a x   OP_SCALE_POSITION table[position of the row] x, table [n_table]   OP_CLAMP min(max(x, -a), a)
//   OP_SOFTCAP a tanh(x / a)   OP_RELU   OP_RELU_SQUARED
// One thread makes four elements. Grid: x over width / 256 (strided), y over rows.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
#include "math.glsl"
layout(local_size_x = 64) in;
layout(push_constant) uniform Push { sh_pc_unary p; };

float f(float x, float a) {
#if defined OP_SCALE || defined OP_SCALE_POSITION
    precise float v = a * x;
#elif defined OP_CLAMP
    precise float v = min(max(x, -a), a);
#elif defined OP_SOFTCAP
    precise float v = a * tanh_of(x / a);
#elif defined OP_RELU
    precise float v = max(x, 0.0);
#elif defined OP_RELU_SQUARED
    precise float v = max(x, 0.0) * max(x, 0.0);
#else
    precise float v = ACT(x);
#endif
    return v;
}

void main() {
    const uint r = gl_WorkGroupID.y;
    if (r >= (p.by_output != 0u ? Step(p.step).v.n_outputs : Step(p.step).v.n_rows)) return;
#ifdef OP_SCALE_POSITION
    const float a = F32(p.table).v[min(Rows(p.rows).v[r].position, p.n_table - 1u)];
#else
    const float a = p.a;
#endif
    for (uint i = gl_GlobalInvocationID.x; i * 4u < p.width; i += gl_NumWorkGroups.x * 64u) {
        const uint at4 = r * (p.stride >> 2) + i;
        const vec4 x = F128(p.x).v[at4];
        F128Out(p.dst).v[at4] = vec4(f(x.x, a), f(x.y, a), f(x.z, a), f(x.w, a));
    }
}

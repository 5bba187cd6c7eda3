// glu.glsl - act(x) * y by kind, SH_P_GLU_*. OAI: g = min(x, 7), p = clamp(y, -7, 7): g / (1 + exp(-1.702 g)) * (p + 1).
#include "math.glsl"

float glu_of(uint kind, float x, float y) {
    precise float v;
    switch (kind) {
    case SH_P_GLU_SILU: v = silu_of(x) * y; break;
    case SH_P_GLU_GELU: v = gelu_of(x) * y; break;
    case SH_P_GLU_GELU_ERF: v = gelu_erf_of(x) * y; break;
    case SH_P_GLU_RELU: v = max(x, 0.0) * y; break;
    case SH_P_GLU_SIGMOID: v = sigmoid_of(x) * y; break;
    case SH_P_GLU_OAI: {
        const float g = min(x, 7.0);
        v = g / (1.0 + exp(-1.702 * g)) * (clamp(y, -7.0, 7.0) + 1.0);
        break;
    }
    default: v = x * y; break;
    }
    return v;
}

// sample_merge.comp - the best of the chunks' bests: tokens[o] = its id, or NONE where every logit was NaN or nothing is to be
// sampled; outputs with a short list are draw.comp's. One thread per output (a hundred chunks at most). Grid: x over outputs / 64.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 64) in;
layout(push_constant) uniform Push { sh_pc_sample p; };

void main() {
    const uint o = gl_GlobalInvocationID.x;
    if (o >= Step(p.step).v.n_outputs) return;
    if ((Outputs(p.outputs).v[o].flags & SH_OUTPUT_SHORT) != 0u) return;
    float best = 0.0;
    uint best_id = SH_P_NONE;
    if ((Outputs(p.outputs).v[o].flags & SH_OUTPUT_SAMPLE) != 0u) {
        for (uint c = 0u; c < p.chunks; c++) { // ids ascend with the chunks: only a larger key replaces
            const float key = uintBitsToFloat(U32(p.scratch).v[2u * (o * p.chunks + c)]);
            const uint id = U32(p.scratch).v[2u * (o * p.chunks + c) + 1u];
            if (id != SH_P_NONE && (best_id == SH_P_NONE || key > best)) {
                best = key;
                best_id = id;
            }
        }
    }
    U32Out(p.tokens).v[o] = best_id;
}

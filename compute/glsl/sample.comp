// sample.comp - the best token of 4096 logits of an output: the largest logit where temperature is 0, else the largest of
// logit / T + Gumbel(u), in the bits of compute/sample/sample.h. Ties: the lowest id. NaN never wins.
// An output with a mask looks at the mask's tokens alone (eight threads share a word); its logits and random numbers are the same.
// logits [O][stride] -> scratch [O][chunks][2] = {key as bits, id or NONE}. The order of candidates is total, so no order of
// comparison shows. Workgroup 256. Grid: x over chunks (strided), y over outputs. Shared: 2 KiB.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
#include "draw.h"
#include "philox.glsl"
layout(local_size_x = 256) in;
layout(push_constant) uniform Push { sh_pc_sample p; };

shared float keys[256];
shared uint ids[256];

bool is_nan(float v) { return (floatBitsToUint(v) & 0x7fffffffu) > 0x7f800000u; }
bool better(float key, uint id, float best, uint best_id) {
    return id != SH_P_NONE && (best_id == SH_P_NONE || key > best || (key == best && id < best_id));
}

void main() {
    const uint tid = gl_LocalInvocationID.x, o = gl_WorkGroupID.y;
    if (o >= Step(p.step).v.n_outputs) return;
    const sh_p_output out_ = Outputs(p.outputs).v[o];
    if ((out_.flags & SH_OUTPUT_SAMPLE) == 0u) return;
    const bool greedy = out_.inverse_temperature == 0.0, masked = (out_.mask.x | out_.mask.y) != 0u;
    for (uint chunk = gl_WorkGroupID.x; chunk < p.chunks; chunk += gl_NumWorkGroups.x) {
        float best = 0.0;
        uint best_id = SH_P_NONE;
        for (uint i = tid * 4u; i < SH_SAMPLE_CHUNK; i += 1024u) {
            const uint token = chunk * SH_SAMPLE_CHUNK + i;
            if (token >= p.n_vocab) break;
            uint allowed = 15u;
            if (masked) {
                allowed = U32(out_.mask).v[token >> 5] >> (token & 31u) & 15u;
                if (allowed == 0u) continue;
            }
            const vec4 logits = F128(p.logits).v[(o * p.stride + token) >> 2];
            uvec4 words = uvec4(0u);
            if (!greedy) words = philox(uvec4(out_.choice, out_.position, token >> 2, 0u), uvec2(out_.seed_low, out_.seed_high));
            [[unroll]] for (uint e = 0u; e < 4u; e++) {
                precise float key = logits[e];
                if (!greedy) key = key * out_.inverse_temperature + sh_gumbel_of(words[e]);
                if (token + e < p.n_vocab && (allowed >> e & 1u) != 0u && !is_nan(key) && better(key, token + e, best, best_id)) {
                    best = key;
                    best_id = token + e;
                }
            }
        }
        keys[tid] = best;
        ids[tid] = best_id;
        barrier();
        for (uint half_ = 128u; half_ > 0u; half_ >>= 1) {
            if (tid < half_ && better(keys[tid + half_], ids[tid + half_], keys[tid], ids[tid])) {
                keys[tid] = keys[tid + half_];
                ids[tid] = ids[tid + half_];
            }
            barrier();
        }
        if (tid == 0u) {
            U32Out(p.scratch).v[2u * (o * p.chunks + chunk)] = floatBitsToUint(keys[0]);
            U32Out(p.scratch).v[2u * (o * p.chunks + chunk) + 1u] = ids[0];
        }
        barrier();
    }
}

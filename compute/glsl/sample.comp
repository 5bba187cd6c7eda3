// sample.comp - the best token of 4096 logits of an output: the largest logit where temperature is 0, else the largest of
// logit / T + Gumbel(u), u from Philox4x32-10 as compute/sample/sample.h defines it. Ties: the lowest id. NaN never wins.
// An output with a mask looks at the mask's tokens alone (eight threads share a word); its logits and random numbers are the same.
// logits [O][stride] -> scratch [O][chunks][2] = {key as bits, id or NONE}. The order of candidates is total, so no order of
// comparison shows. Workgroup 256. Grid: x over chunks (strided), y over outputs. Shared: 2 KiB.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 256) in;
layout(push_constant) uniform Push { sh_pc_sample p; };

shared float keys[256];
shared uint ids[256];

uvec4 philox(uvec4 c, uvec2 k) {
    for (uint round = 0u; round < 10u; round++) {
        uint h0, l0, h1, l1;
        umulExtended(0xD2511F53u, c.x, h0, l0);
        umulExtended(0xCD9E8D57u, c.z, h1, l1);
        c = uvec4(h1 ^ c.y ^ k.x, l1, h0 ^ c.w ^ k.y, l0);
        k += uvec2(0x9E3779B9u, 0xBB67AE85u);
    }
    return c;
}

// Natural logarithm of a positive normal number to about one unit in the last place. The built-in log is only absolutely precise
// near 1, which is where the largest Gumbel numbers, the ones that win, come from.
float ln(float x) {
    const uint u = floatBitsToUint(x) + (0x3f800000u - 0x3f3504f3u);
    const float exponent = float(int(u >> 23) - 127);
    const float f = uintBitsToFloat((u & 0x007fffffu) + 0x3f3504f3u) - 1.0;
    precise float s = f / (2.0 + f);
    precise float z = s * s, w = z * z;
    precise float r = w * (0.40000972152 + w * 0.24279078841) + z * (0.66666662693 + w * 0.28498786688);
    precise float half_square = 0.5 * f * f;
    precise float y = s * (half_square + r) + exponent * 9.0580006145e-06 - half_square + f + exponent * 6.9313812256e-01;
    return y;
}

bool is_nan(float v) { return (floatBitsToUint(v) & 0x7fffffffu) > 0x7f800000u; }
bool better(float key, uint id, float best, uint best_id) {
    return id != SH_P_NONE && (best_id == SH_P_NONE || key > best || (key == best && id < best_id));
}

void main() {
    const uint tid = gl_LocalInvocationID.x, o = gl_WorkGroupID.y;
    if (o >= Step(p.step).v.n_outputs) return;
    const sh_p_output out_ = Outputs(p.outputs).v[o];
    if ((out_.flags & SH_OUTPUT_SAMPLE) == 0u) return;
    const bool greedy = out_.temperature == 0.0, masked = (out_.mask.x | out_.mask.y) != 0u;
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
                if (!greedy) {
                    precise float u = (float(words[e] >> 9) + 0.5) * 1.1920928955078125e-07;
                    precise float scaled = key / out_.temperature;
                    key = scaled - ln(-ln(u));
                }
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

// route.comp - which experts a row goes to: out[r] = n_used numbers in descending order of their scores (ties: the lower), their weights.
//
// x [R][x_stride] logits, bias [n_expert]. The gate is exp(l - max) / sum over all experts, 1 / (1 + exp(-l)), or the logit; the score is
// gate + bias. Scores that are no numbers come last, so that the numbers are always different ones. With groups only experts of the groups
// whose two best scores sum highest are taken (ties: the lower group). Weights are the chosen gates: their softmax, divided by their sum
// (at least 2^-14), times scale, as asked. All sums ascend: over experts or over slots.
// An expert's place is the number of better ones: no order of threads matters. A workgroup per row. n_expert <= 512, n_used <= 32.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 64) in;
layout(push_constant) uniform Push { sh_pc_route p; };

shared float gate[SH_MAX_EXPERTS];
shared uint key[SH_MAX_EXPERTS], group_key[SH_MAX_EXPERTS]; // of a score: greater is better; 0: may not be taken
shared uint chosen[SH_MAX_EXPERTS_USED];
shared float weight[SH_MAX_EXPERTS_USED];

// Unsigned integers in the order of floats; 1 for what is no number.
uint key_of(float score) {
    const uint bits = floatBitsToUint(score);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 1u;
    if ((bits & 0x7fffffffu) == 0u) return 0x80000000u;
    return (bits >> 31) != 0u ? ~bits : bits | 0x80000000u;
}
float score_of(uint k) { return uintBitsToFloat((k >> 31) != 0u ? k & 0x7fffffffu : ~k); }

void main() {
    const uint tid = gl_LocalInvocationID.x, r = gl_WorkGroupID.x;
    const uint n_used = p.experts & 0xffffu, n_expert = p.experts >> 16;
    const uint n_groups = p.groups >> 16, n_groups_used = p.groups & 0xffffu;
    if (r >= ((p.flags & SH_ROUTE_BY_OUTPUT) != 0u ? Step(p.step).v.n_outputs : Step(p.step).v.n_rows)) return;

    for (uint e = tid; e < n_expert; e += 64u) {
        precise float g = F32(p.x).v[r * p.x_stride + e];
        if ((p.flags & SH_ROUTE_SIGMOID) != 0u) g = 1.0 / (1.0 + exp(-g));
        gate[e] = g;
    }
    barrier();
    if ((p.flags & SH_ROUTE_SOFTMAX) != 0u) {
        float most = gate[0];
        for (uint e = 1u; e < n_expert; e++) most = gate[e] > most ? gate[e] : most;
        barrier();
        for (uint e = tid; e < n_expert; e += 64u) gate[e] = exp(gate[e] - most);
        barrier();
        precise float sum = 0.0;
        for (uint e = 0u; e < n_expert; e++) sum = sum + gate[e];
        barrier();
        for (uint e = tid; e < n_expert; e += 64u) gate[e] = gate[e] / sum;
    }
    for (uint e = tid; e < n_expert; e += 64u) {
        precise float score = gate[e];
        if ((p.flags & SH_ROUTE_BIAS) != 0u) score = score + F32(p.bias).v[e];
        key[e] = key_of(score);
    }
    barrier();

    if (n_groups > 0u) {
        const uint size = n_expert / n_groups;
        for (uint g = tid; g < n_groups; g += 64u) {
            uint best = 0u, second = 0u;
            for (uint e = g * size; e < (g + 1u) * size; e++) {
                second = max(second, min(best, key[e]));
                best = max(best, key[e]);
            }
            precise float sum = score_of(best) + (size > 1u ? score_of(second) : 0.0);
            group_key[g] = key_of(sum);
        }
        barrier();
        for (uint g = tid; g < n_groups; g += 64u) {
            uint place = 0u;
            for (uint o = 0u; o < n_groups; o++)
                place += group_key[o] > group_key[g] || (group_key[o] == group_key[g] && o < g) ? 1u : 0u;
            for (uint e = g * size; e < (g + 1u) * size && place >= n_groups_used; e++) key[e] = 0u;
        }
        barrier();
    }
    for (uint e = tid; e < n_expert; e += 64u) {
        uint place = 0u;
        for (uint o = 0u; o < n_expert; o++) place += key[o] > key[e] || (key[o] == key[e] && o < e) ? 1u : 0u;
        if (place < n_used) chosen[place] = e;
    }
    barrier();

    if (tid < n_used) weight[tid] = gate[chosen[tid]];
    barrier();
    if ((p.flags & SH_ROUTE_SOFTMAX_CHOSEN) != 0u) {
        float most = weight[0];
        for (uint j = 1u; j < n_used; j++) most = weight[j] > most ? weight[j] : most;
        barrier();
        if (tid < n_used) weight[tid] = exp(weight[tid] - most);
        barrier();
        precise float sum = 0.0;
        for (uint j = 0u; j < n_used; j++) sum = sum + weight[j];
        barrier();
        if (tid < n_used) weight[tid] = weight[tid] / sum;
        barrier();
    }
    if (tid >= n_used) return;
    precise float w = weight[tid];
    if ((p.flags & SH_ROUTE_NORMALISE) != 0u) {
        precise float sum = 0.0;
        for (uint j = 0u; j < n_used; j++) sum = sum + weight[j];
        w = w / (sum < 6.103515625e-5 ? 6.103515625e-5 : sum);
    }
    w = w * p.scale;
    F32Out(p.dst).v[r * p.dst_stride + tid] = float(chosen[tid]);
    F32Out(p.dst).v[r * p.dst_stride + n_used + tid] = w;
}

// top.comp - the top_k largest of 4096 logits of an output whose candidates are a short list, in no order; ties: the lowest ids. NaN is never
// one of them, -infinity is. Of an output with a mask the mask's tokens alone.
// logits [O][stride] -> the output's list [chunks][top_k] of {key, ~id} (select.glsl); what is not filled has key 0.
// Workgroup 256. Grid: x over chunks (strided), y over outputs. Shared: 1.1 KiB.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
#include "select.glsl"
layout(local_size_x = 256) in;
layout(push_constant) uniform Push { sh_pc_sample p; };

shared uint taken;

uint row_begin, chunk_begin; // of the logits
uvec2 mask;
uvec2 item(uint i) {
    const uint token = chunk_begin + i;
    const bool masked = (mask.x | mask.y) != 0u;
    if (masked && (U32(mask).v[token >> 5] >> (token & 31u) & 1u) == 0u) return uvec2(0u);
    return uvec2(key_of(F32(p.logits).v[row_begin + token]), ~token);
}

void main() {
    const uint tid = gl_LocalInvocationID.x, o = gl_WorkGroupID.y;
    if (o >= Step(p.step).v.n_outputs) return;
    const sh_p_output out_ = Outputs(p.outputs).v[o];
    if ((out_.flags & SH_OUTPUT_SHORT) == 0u) return;
    row_begin = o * p.stride;
    mask = out_.mask;
    for (uint chunk = gl_WorkGroupID.x; chunk < p.chunks; chunk += gl_NumWorkGroups.x) {
        chunk_begin = chunk * SH_SAMPLE_CHUNK;
        const uint n = min(SH_SAMPLE_CHUNK, p.n_vocab - chunk_begin);
        if (tid == 0u) taken = 0u;
        const uvec2 least = least_of_best(n, out_.top_k);
        for (uint i = tid; i < n; i += 256u) {
            const uvec2 v = item(i);
            if (v.x != 0u && at_least(v, least)) U64Out(out_.list).v[chunk * out_.top_k + atomicAdd(taken, 1u)] = v;
        }
        barrier();
        for (uint i = taken + tid; i < out_.top_k; i += 256u) U64Out(out_.list).v[chunk * out_.top_k + i] = uvec2(0u);
        barrier();
    }
}

// conv.comp - depthwise causal convolution over time: out[r][c] = sum_j w[c][j] * x[r - d_conv + 1 + j][c] (+ bias[c]), j ascending with
// fma; x [R][x_stride], out [R][dst_stride], w [channels][d_conv], bias [channels].
//
// Inputs before a sequence's first row come from its state [channels][d_conv - 1], oldest first, in the page of the state before
// (address 0: zeros); the thread of a sequence's last row leaves the last d_conv - 1 inputs in the page of the state after.
// states: two addresses per sequence. One thread per row and channel. Grid: x over channels / 64 (strided), y over rows.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 64) in;
layout(push_constant) uniform Push { sh_pc_conv p; };

void main() {
    const uint r = gl_WorkGroupID.y, keep = p.d_conv - 1u;
    if (r >= Step(p.step).v.n_rows) return;
    const uint sequence = Rows(p.rows).v[r].sequence;
    const sh_p_sequence s = Sequences(p.sequences).v[sequence];
    const uvec2 from = Pages(p.states).v[2u * sequence], to = at(Pages(p.states).v[2u * sequence + 1u], p.state_offset);
    const bool fresh = from == uvec2(0u);
    const uvec2 before = at(from, p.state_offset);
    const uint now = r - s.first_row; // input i of the sequence, the state's first: the row i - keep, if that is one of the step's
    for (uint c = gl_GlobalInvocationID.x; c < p.channels; c += gl_NumWorkGroups.x * 64u) {
        precise float sum = 0.0;
        for (uint j = 0u; j < p.d_conv; j++) {
            const uint i = now + j;
            float v = 0.0;
            if (i >= keep) v = F32(p.x).v[(s.first_row + i - keep) * p.x_stride + c];
            else if (!fresh) v = F32(before).v[c * keep + i];
            sum = fma(F32(p.w).v[c * p.d_conv + j], v, sum);
        }
        if (p.has_bias != 0u) sum = sum + F32(p.bias).v[c];
        F32Out(p.dst).v[r * p.dst_stride + c] = sum;
        if (now + 1u < s.n_rows) continue;
        for (uint j = 0u; j < keep; j++) {
            const uint i = now + 1u + j;
            float v = 0.0;
            if (i >= keep) v = F32(p.x).v[(s.first_row + i - keep) * p.x_stride + c];
            else if (!fresh) v = F32(before).v[c * keep + i];
            F32Out(to).v[c * keep + j] = v;
        }
    }
}

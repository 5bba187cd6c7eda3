// scan.comp - the selective scan, over the rows of a sequence in order: with d = softplus(dt[r][c]), for every state s
//   h[c][s] = fma(exp(d * a[c][s]), h[c][s], (d * x[r][c]) * b[r][s]);  out[r][c] = fma(skip[c], x[r][c], sum_s c[r][s] * h[c][s])
// the sum ascending with fma. x, dt, out [R][channels], b, c [R][n_state], a [channels][n_state], skip [channels]; strides are given.
//
// h [channels][n_state] comes from the page of the state before (address 0: zeros) and goes into the one after. One thread makes a
// channel of a sequence; its states are a column of shared memory that no other thread touches.
// Grid: x over channels / 64 (strided), y over sequences. Shared: 16 KiB. n_state <= SH_MAX_SCAN_STATE.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
#include "math.glsl"
layout(local_size_x = 64) in;
layout(push_constant) uniform Push { sh_pc_scan p; };

shared float h[SH_MAX_SCAN_STATE * 64];

void main() {
    const uint tid = gl_LocalInvocationID.x;
    const sh_p_sequence s = Sequences(p.sequences).v[gl_WorkGroupID.y];
    const uvec2 from = Pages(p.states).v[2u * gl_WorkGroupID.y],
                to = at(Pages(p.states).v[2u * gl_WorkGroupID.y + 1u], p.state_offset), before = at(from, p.state_offset);
    const bool fresh = from == uvec2(0u);
    for (uint c = gl_GlobalInvocationID.x; c < p.channels; c += gl_NumWorkGroups.x * 64u) {
        for (uint i = 0u; i < p.n_state; i++) {
            float v = 0.0;
            if (!fresh) v = F32(before).v[c * p.n_state + i];
            h[i * 64u + tid] = v;
        }
        for (uint r = s.first_row; r < s.first_row + s.n_rows; r++) {
            const float x = F32(p.x).v[r * p.x_stride + c], d = softplus_of(F32(p.dt).v[r * p.x_stride + c]);
            precise float dx = d * x;
            precise float y = 0.0;
            for (uint i = 0u; i < p.n_state; i++) {
                precise float decay = exp(d * F32(p.a).v[c * p.n_state + i]), add = dx * F32(p.b).v[r * p.b_stride + i];
                precise float v = fma(decay, h[i * 64u + tid], add);
                h[i * 64u + tid] = v;
                y = fma(F32(p.c).v[r * p.b_stride + i], v, y);
            }
            y = fma(F32(p.skip).v[c], x, y);
            F32Out(p.dst).v[r * p.x_stride + c] = y;
        }
        for (uint i = 0u; i < p.n_state; i++) F32Out(to).v[c * p.n_state + i] = h[i * 64u + tid];
    }
}

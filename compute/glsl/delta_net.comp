// delta_net.comp - the gated delta rule, over the rows of a sequence in order, for every value head with its state S [k_dim][v_dim]:
//   g = exp(a[head] * softplus(decay[r][head] + dt_bias[head])), beta = 1 / (1 + exp(-beta[r][head]))
//   S = g S; d = beta (v - S^T k); S = S + k d^T; out[r][head] = scale * S^T q
// q, k [R][n_k_heads][k_dim], v, out [R][n_v_heads][v_dim], decay, beta [R][n_v_heads]; strides are given. Sums over k_dim ascend with
// fma. Value head h takes key head h % n_k_heads if tiled, else h / (n_v_heads / n_k_heads).
//
// S comes from the page of the state before (address 0: zeros) and goes into the one after. Columns of S do not meet: one thread
// makes one, which it keeps in a column of shared memory that no other thread touches.
// Grid: x over n_v_heads * blocks of min(32, SH_DELTA_STATE / k_dim) columns (strided), y over sequences. Shared: 16 KiB.
// k_dim <= SH_DELTA_STATE.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
#include "math.glsl"
layout(local_size_x = 32) in;
layout(push_constant) uniform Push { sh_pc_delta p; };

shared float state[SH_DELTA_STATE];

// i = 0 .. k_dim - 1, in order. Eight to an iteration: a software device (llvmpipe) ends the loops of an invocation after 65535
// iterations in all, which rows times dimensions soon are. How many rows that leaves is checked when a context is made.
#define EACH_KEY(i)                                                    \
    for (uint i8 = 0u; i8 < k_dim; i8 += 8u)                           \
        [[unroll]] for (uint u = 0u, i = i8; u < 8u; u++, i++)         \
            if (i < k_dim)

void main() {
    const uint tid = gl_LocalInvocationID.x;
    const uint n_k = p.heads & 0xffffu, n_v = p.heads >> 16, k_dim = p.dims & 0xffffu, v_dim = p.dims >> 16;
    const uint columns = min(32u, SH_DELTA_STATE / k_dim), blocks = (v_dim + columns - 1u) / columns;
    const sh_p_sequence s = Sequences(p.sequences).v[gl_WorkGroupID.y];
    const uvec2 from = Pages(p.states).v[2u * gl_WorkGroupID.y],
                to = at(Pages(p.states).v[2u * gl_WorkGroupID.y + 1u], p.state_offset), before = at(from, p.state_offset);
    const bool fresh = from == uvec2(0u);
    for (uint block = gl_WorkGroupID.x; block < n_v * blocks; block += gl_NumWorkGroups.x) {
        const uint head = block / blocks, column = block % blocks * columns + tid;
        if (tid >= columns || column >= v_dim) continue;
        const uint key_head = p.tiled != 0u ? head % n_k : head / (n_v / n_k);
        const uint base = head * k_dim * v_dim + column;
        EACH_KEY(i) {
            float v = 0.0;
            if (!fresh) v = F32(before).v[base + i * v_dim];
            state[i * columns + tid] = v;
        }
        for (uint r = s.first_row; r < s.first_row + s.n_rows; r++) {
            const uint gates = r * p.gate_stride + head, keys = r * p.qk_stride + key_head * k_dim,
                       at_value = r * p.v_stride + head * v_dim + column;
            precise float rate = F32(p.decay).v[gates] + F32(p.dt_bias).v[head];
            const float g = exp(F32(p.a).v[head] * softplus_of(rate)), beta = sigmoid_of(F32(p.beta).v[gates]);
            precise float seen = 0.0;
            EACH_KEY(i) {
                precise float v = g * state[i * columns + tid];
                state[i * columns + tid] = v;
                seen = fma(v, F32(p.k).v[keys + i], seen);
            }
            precise float d = beta * (F32(p.v).v[at_value] - seen);
            precise float y = 0.0;
            EACH_KEY(i) {
                precise float v = fma(F32(p.k).v[keys + i], d, state[i * columns + tid]);
                state[i * columns + tid] = v;
                y = fma(v, F32(p.q).v[keys + i], y);
            }
            y = p.scale * y;
            F32Out(p.dst).v[at_value] = y;
        }
        EACH_KEY(i) F32Out(to).v[base + i * v_dim] = state[i * columns + tid];
    }
}

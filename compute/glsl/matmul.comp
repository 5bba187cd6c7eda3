// matmul.comp - y[r][n] = sum_k x[r][k] w[n][k] (+ bias[n]) (+ residual[r][n]) for a few rows: weights straight from memory.
//
// x [R][x_stride], w [n][cols] in LAYOUT, out [R][out_stride], bias [n]. Arithmetic: README.md in this folder.
// A workgroup of 64 holds two groups of 32 lanes; each group makes OUTPUTS outputs for ROWS rows at once, so that a weight is read once per
// ROWS rows and an activation once per OUTPUTS outputs. Grid: x over blocks of 2 * OUTPUTS outputs (strided), y over blocks of ROWS rows.
// Shared: 64 * OUTPUTS * ROWS floats (at most 16 KiB). Any R, n, cols.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 64) in;
layout(constant_id = 0) const uint ROWS = 1;
layout(constant_id = 1) const uint OUTPUTS = 2;
layout(push_constant) uniform Push { sh_pc_matmul p; };
#include "weights.glsl"

shared float partial[OUTPUTS * ROWS * 64];

void main() {
    const uint lane = gl_LocalInvocationID.x & 31u, group = gl_LocalInvocationID.x >> 5;
    const uint n_rows = (p.flags & SH_MATMUL_BY_OUTPUT) != 0u ? Step(p.step).v.n_outputs : Step(p.step).v.n_rows;
    const uint row0 = gl_WorkGroupID.y * ROWS;
    if (row0 >= n_rows) return;
    const uint x_stride4 = p.x_stride >> 2;
    uint x_base[ROWS]; // in vec4; rows beyond the last repeat it and are not stored
    [[unroll]] for (uint r = 0u; r < ROWS; r++) x_base[r] = min(row0 + r, n_rows - 1u) * x_stride4;

    for (uint block = gl_WorkGroupID.x; block * 2u * OUTPUTS < p.n; block += gl_NumWorkGroups.x) {
        const uint n0 = (block * 2u + group) * OUTPUTS;
        precise float acc[OUTPUTS * ROWS];
        [[unroll]] for (uint i = 0u; i < OUTPUTS * ROWS; i++) acc[i] = 0.0;

        for (uint u = lane; u < p.units; u += SH_LANES) {
            Unit t[OUTPUTS];
            [[unroll]] for (uint o = 0u; o < OUTPUTS; o++) t[o] = load_unit(p.w, min(n0 + o, p.n - 1u), u, p.units);
            const bool whole = u * SH_UNIT + SH_UNIT <= p.cols;
            [[unroll]] for (uint j = 0u; j < 4u; j++) {
                vec4 xv[ROWS * 2];
                const uint k = u * SH_UNIT + 8u * j;
                if (whole) {
                    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
                        xv[2u * r] = F128(p.x).v[x_base[r] + (k >> 2)];
                        xv[2u * r + 1u] = F128(p.x).v[x_base[r] + (k >> 2) + 1u];
                    }
                } else {
                    [[unroll]] for (uint r = 0u; r < ROWS; r++)
                        [[unroll]] for (uint i = 0u; i < 8u; i++)
                            xv[2u * r + (i >> 2)][i & 3u] = k + i < p.cols ? F32(p.x).v[4u * x_base[r] + k + i] : 0.0;
                }
                [[unroll]] for (uint o = 0u; o < OUTPUTS; o++) {
                    float e[8];
                    octet(p.w, t[o], j, e);
                    [[unroll]] for (uint r = 0u; r < ROWS; r++)
                        [[unroll]] for (uint i = 0u; i < 8u; i++)
                            acc[o * ROWS + r] = fma(e[i], xv[2u * r + (i >> 2)][i & 3u], acc[o * ROWS + r]);
                }
            }
        }
        [[unroll]] for (uint i = 0u; i < OUTPUTS * ROWS; i++) partial[(group * OUTPUTS * ROWS + i) * 32u + lane] = acc[i];
        barrier();
        for (uint i = gl_LocalInvocationID.x; i < 2u * OUTPUTS * ROWS; i += 64u) {
            precise float total = 0.0;
            for (uint l = 0u; l < SH_LANES; l++) total = total + partial[i * 32u + l];
            const uint n = block * 2u * OUTPUTS + i / ROWS, row = row0 + i % ROWS;
            if (n < p.n && row < n_rows) {
                if ((p.flags & SH_MATMUL_BIAS) != 0u) total = total + F32(p.bias).v[p.first_n + n];
                if ((p.flags & SH_MATMUL_RESIDUAL) != 0u) total = total + F32(p.residual).v[row * p.residual_stride + p.first_n + n];
                F32Out(p.dst).v[row * p.dst_stride + p.first_n + n] = total;
            }
        }
        barrier();
    }
}

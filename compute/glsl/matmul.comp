// matmul.comp - y[r][n] = sum_k x[r][k] w[n][k] (+ bias[n]) (+ residual[r][n]) for a few rows: weights straight from memory.
//
// x [R][x_stride], w [n][cols] in LAYOUT, out [R][dst_stride], bias [n]; blocks and experts: rows.glsl. Arithmetic: README.md here.
// A workgroup holds 1, 2, 4 or 8 groups of 32 lanes (shapes.h); each group makes OUTPUTS outputs for ROWS rows at once, so that a weight
// is read once per ROWS rows. The workgroup steps through k by 32 units: each lane loads its unit of OUTPUTS weight rows, all
// together bring 1024 elements of each activation row into shared memory, where a unit takes 36 floats so that eight lanes
// reading 16 bytes each meet no bank twice. Grid: x over blocks of GROUPS * OUTPUTS outputs (strided), y over blocks of ROWS rows (rows.glsl).
// Shared: ROWS * 4.6 KiB. Any R, n, cols. ROWS and OUTPUTS are defines, not specialisation constants, so that spirv-opt can
// unroll: llvmpipe does not, and keeps an array that a loop indexes in memory.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 128, local_size_x_id = SH_SPEC_THREADS) in;
layout(push_constant) uniform Push { sh_pc_matmul p; };
#include "weights.glsl"
#include "rows.glsl"

#define THREADS gl_WorkGroupSize.x
#define GROUPS (THREADS / SH_LANES)
#define UNIT_STRIDE 36u
#define CHUNK (SH_LANES * SH_UNIT)
shared float xs[ROWS * SH_LANES * UNIT_STRIDE]; // and, at the end, the lanes' sums: ROWS * OUTPUTS * THREADS of them, at most as many

void main() {
    const uint tid = gl_LocalInvocationID.x, lane = tid & 31u, group = tid >> 5;
    if (!find_rows(ROWS)) return;
#ifdef HAS_TABLE
    load_table(tid);
#endif
    uint x_at[ROWS], dst_at, residual_at;
    [[unroll]] for (uint r = 0u; r < ROWS; r++) row_at(r, ROWS, x_at[r], dst_at, residual_at);

    const uint each = outputs_each();
    for (uint block = gl_WorkGroupID.x; block * GROUPS * each < p.n; block += gl_NumWorkGroups.x) {
        const uint n0 = (block * GROUPS + group) * each;
        precise float acc[OUTPUTS * ROWS];
        [[unroll]] for (uint i = 0u; i < OUTPUTS * ROWS; i++) acc[i] = 0.0;

        for (uint u0 = 0u; u0 < p.units; u0 += SH_LANES) {
            const uint u = u0 + lane;
            Unit t[OUTPUTS];
            [[unroll]] for (uint o = 0u; o < OUTPUTS; o++)
                t[o] = load_unit(p.w, product_row(n0, o, 1u), min(u, p.units - 1u), p.units);
            barrier(); // the chunk before has been used
            [[unroll]] for (uint r = 0u; r < ROWS; r++) {
                [[unroll]] for (uint part = 0u; part < CHUNK / (4u * THREADS); part++) { // by the driver, who knows how many
                    const uint i = 4u * (part * THREADS + tid);
                    const vec4 v = load_x(x_at[r], u0 * SH_UNIT + i);
                    const uint to = (r * SH_LANES + (i >> 5)) * UNIT_STRIDE + (i & 31u);
                    xs[to] = v.x;
                    xs[to + 1u] = v.y;
                    xs[to + 2u] = v.z;
                    xs[to + 3u] = v.w;
                }
            }
            barrier();
            if (u < p.units) {
                [[unroll]] for (uint j = 0u; j < 4u; j++) {
                    float xv[ROWS * 8];
                    [[unroll]] for (uint r = 0u; r < ROWS; r++)
                        [[unroll]] for (uint i = 0u; i < 8u; i++)
                            xv[8u * r + i] = xs[(r * SH_LANES + lane) * UNIT_STRIDE + 8u * j + i];
                    [[unroll]] for (uint o = 0u; o < OUTPUTS; o++) {
                        float e[8];
                        octet(p.w, t[o], j, e);
                        [[unroll]] for (uint r = 0u; r < ROWS; r++)
                            [[unroll]] for (uint i = 0u; i < 8u; i++)
                                acc[o * ROWS + r] = fma(e[i], xv[8u * r + i], acc[o * ROWS + r]);
                    }
                }
            }
        }
        barrier();
        [[unroll]] for (uint i = 0u; i < OUTPUTS * ROWS; i++) xs[(group * OUTPUTS * ROWS + i) * 32u + lane] = acc[i];
        barrier();
        if (is_glu()) {
            for (uint i = tid; i < GROUPS * HALF * ROWS; i += THREADS) {
                const uint n = block * GROUPS * HALF + i / ROWS, r = i % ROWS;
                const uint at = (i / (HALF * ROWS) * OUTPUTS * ROWS + i % (HALF * ROWS)) * SH_LANES;
                precise float first = 0.0, second = 0.0;
                for (uint l = 0u; l < SH_LANES; l++) {
                    first = first + xs[at + l];
                    second = second + xs[at + HALF * ROWS * SH_LANES + l];
                }
                if (n >= p.n || r >= n_here) continue;
                uint unused;
                row_at(r, ROWS, unused, dst_at, residual_at);
                store_glu(n, dst_at, first, second);
            }
            barrier();
            continue;
        }
        for (uint i = tid; i < GROUPS * OUTPUTS * ROWS; i += THREADS) {
            precise float total = 0.0;
            for (uint l = 0u; l < SH_LANES; l++) total = total + xs[i * 32u + l];
            const uint n = block * GROUPS * OUTPUTS + i / ROWS, r = i % ROWS;
            if (n >= p.n || r >= n_here) continue;
            uint unused;
            row_at(r, ROWS, unused, dst_at, residual_at);
            store(n, dst_at, residual_at, total);
        }
        barrier();
    }
}

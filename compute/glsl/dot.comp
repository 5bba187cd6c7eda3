// dot.comp - the product of matmul.comp in the tier intdot, for a few rows: weights straight from memory, activations of quantise.glsl.
//
// p.x [R][p.x_stride / 32] units of 48 bytes, in the order that dots.glsl says; all else as in matmul.comp, also blocks and experts (rows.glsl).
// A workgroup holds 1, 2, 4 or 8 groups of 32 lanes (shapes.h), each group makes OUTPUTS outputs for ROWS rows; a lane takes the units l, l + 32, ...
// Nothing is shared before the lanes' sums are added. Shared: OUTPUTS * ROWS * 128 bytes for each group, tables 1 KiB. Grid: as matmul.comp.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 128, local_size_x_id = SH_SPEC_THREADS) in;
layout(push_constant) uniform Push { sh_pc_matmul p; };
#include "weights.glsl"
#include "rows.glsl"
#include "dots.glsl"

#define THREADS gl_WorkGroupSize.x
#define GROUPS (THREADS / SH_LANES)
shared float sums_of[GROUPS * OUTPUTS * ROWS * SH_LANES];

void main() {
    const uint tid = gl_LocalInvocationID.x, lane = tid & 31u, group = tid >> 5;
    if (!find_rows(ROWS)) return;
#ifdef HAS_TABLE
    load_pairs(tid, THREADS);
    barrier();
#endif
    uint x_unit[ROWS], dst_at, residual_at;
    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
        row_at(r, ROWS, x_unit[r], dst_at, residual_at);
        x_unit[r] >>= 5;
    }

    const uint each = outputs_each();
    for (uint block = gl_WorkGroupID.x; block * GROUPS * each < p.n; block += gl_NumWorkGroups.x) {
        const uint n0 = (block * GROUPS + group) * each;
        float acc[OUTPUTS * ROWS];
        [[unroll]] for (uint i = 0u; i < OUTPUTS * ROWS; i++) acc[i] = 0.0;
        for (uint u = lane; u < p.units; u += SH_LANES) {
            Unit t[OUTPUTS];
            [[unroll]] for (uint o = 0u; o < OUTPUTS; o++) t[o] = load_unit(p.w, product_row(n0, o, 1u), u, p.units);
            uvec4 x[3 * ROWS];
            [[unroll]] for (uint r = 0u; r < ROWS; r++)
                [[unroll]] for (uint i = 0u; i < 3u; i++) x[3u * r + i] = U128(p.x).v[(x_unit[r] + u) * 3u + i];
            [[unroll]] for (uint o = 0u; o < OUTPUTS; o++) {
                ivec2 dots[ROWS];
                [[unroll]] for (uint r = 0u; r < ROWS; r++) dots[r] = ivec2(0);
                [[unroll]] for (uint j = 0u; j < 4u; j++) {
                    const uvec2 w = octet_words(p.w, t[o], j);
                    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
                        const uvec4 four = x[3u * r + (j >> 1)];
                        const uvec2 v = (j & 1u) != 0u ? four.zw : four.xy;
                        const int d = packed_dot(w.x, v.x, 0) + packed_dot(w.y, v.y, 0);
#ifdef TWO_SCALES
                        dots[r][j >> 1] += d;
#else
                        dots[r].x += d;
#endif
                    }
                }
                [[unroll]] for (uint r = 0u; r < ROWS; r++)
                    acc[o * ROWS + r] = add_unit(acc[o * ROWS + r], t[o].a, scale_b(t[o]), scale_m(t[o]), dots[r],
                                                 uintBitsToFloat(x[3u * r + 2u].x), halves(x[3u * r + 2u].y));
            }
        }
        [[unroll]] for (uint i = 0u; i < OUTPUTS * ROWS; i++) sums_of[(group * OUTPUTS * ROWS + i) * SH_LANES + lane] = acc[i];
        barrier();
        if (is_glu()) {
            for (uint i = tid; i < GROUPS * HALF * ROWS; i += THREADS) {
                const uint n = block * GROUPS * HALF + i / ROWS, r = i % ROWS;
                const uint at = (i / (HALF * ROWS) * OUTPUTS * ROWS + i % (HALF * ROWS)) * SH_LANES;
                precise float first = 0.0, second = 0.0;
                for (uint l = 0u; l < SH_LANES; l++) {
                    first = first + sums_of[at + l];
                    second = second + sums_of[at + HALF * ROWS * SH_LANES + l];
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
            for (uint l = 0u; l < SH_LANES; l++) total = total + sums_of[i * SH_LANES + l];
            const uint n = block * GROUPS * OUTPUTS + i / ROWS, r = i % ROWS;
            if (n >= p.n || r >= n_here) continue;
            uint unused;
            row_at(r, ROWS, unused, dst_at, residual_at);
            store(n, dst_at, residual_at, total);
        }
        barrier();
    }
}

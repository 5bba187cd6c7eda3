// wide.comp - the same product as matmul.comp, bit for bit, for drivers that run a subgroup as one vector of a CPU (llvmpipe).
//
// A thread makes one output for ROWS rows, so a weight is unpacked once for all of them and stays in a register. Activations are turned
// (turn.comp): the rows' values of a column lie side by side, at an address that all threads share, and are broadcast by the multiply-add that
// takes them. There is no barrier, at which such a driver would leave and enter every subgroup's frame. Units are visited lane by lane, as in
// tile.comp; the next one is loaded before this one is multiplied, since rows of weights lie so far apart that the processor does not foresee them.
// Workgroup 32, 64 or 128 (shapes.h), an output each. Grid: x over blocks of outputs (strided), y over blocks of ROWS rows (rows.glsl).
// Any R and n; cols must be a multiple of 32. ROWS is a define: see matmul.comp.
//
// `fence`: LLVM orders the multiply-adds of a block of code by row, each waiting for the one before, 32 of them, and a processor looks ahead
// over three such chains at most. A store that might change what is loaded behind it keeps their loads, and so them, in the order written here,
// in which neighbours belong to different rows.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 64, local_size_x_id = SH_SPEC_THREADS) in;
layout(push_constant) uniform Push { sh_pc_matmul p; };
#include "weights.glsl"
#include "rows.glsl"

#define THREADS gl_WorkGroupSize.x

shared uint fence[5];

// The address of float `index` of an array.
uvec2 at_float(uvec2 address, uint index) { return at(uvec2(address.x, address.y + (index >> 30)), index << 2); }

void main() {
    const uint tid = gl_LocalInvocationID.x;
    if (!find_rows(ROWS)) return;
#ifdef HAS_TABLE
    load_table(tid);
    barrier();
#endif
    const uvec2 rows_at = at_float(p.x, (block_number * p.x_stride + x_column) * ROWS);

    for (uint block = gl_WorkGroupID.x; block * THREADS < p.n; block += gl_NumWorkGroups.x) {
        const uint n = block * THREADS + tid, row = w_row + min(n, p.n - 1u);
        precise float total[ROWS], acc[ROWS];
        [[unroll]] for (uint r = 0u; r < ROWS; r++) total[r] = acc[r] = 0.0;
        Unit t = load_unit(p.w, row, 0u, p.units);
        uint lane = 0u, u = 0u;
        do {
            uint next = u + SH_LANES;
            const bool done = next >= p.units;
            if (done) next = ++lane;
            const Unit ahead = load_unit(p.w, row, min(next, p.units - 1u), p.units);
            F128 x = F128(at(rows_at, u * (SH_UNIT * ROWS * 4u)));
            [[unroll]] for (uint j = 0u; j < 4u; j++) {
                fence[j] = u;
                float e[8];
                octet(p.w, t, j, e);
                [[unroll]] for (uint i = 0u; i < 8u; i++)
                    [[unroll]] for (uint g = 0u; g < ROWS / 4u; g++) {
                        const vec4 v = x.v[(8u * j + i) * (ROWS / 4u) + g];
                        [[unroll]] for (uint r = 0u; r < 4u; r++) acc[4u * g + r] = fma(e[i], v[r], acc[4u * g + r]);
                    }
            }
            fence[4] = u;
            if (done)
                [[unroll]] for (uint r = 0u; r < ROWS; r++) {
                    total[r] = total[r] + acc[r];
                    acc[r] = 0.0;
                }
            u = next;
            t = ahead;
        } while (lane < min(SH_LANES, p.units));
        if (p.units == 0u) total[0] = float(fence[tid & 3u]); // never: a matrix has columns. So the stores are not for nothing.
        [[unroll]] for (uint r = 0u; r < ROWS; r++) {
            uint unused, dst_at, residual_at;
            row_at(r, ROWS, unused, dst_at, residual_at);
            if (n < p.n && r < n_here) store(n, dst_at, residual_at, total[r]);
        }
    }
}

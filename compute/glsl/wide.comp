// wide.comp - the same product as matmul.comp, bit for bit, for drivers that run a subgroup as one vector of a CPU (llvmpipe).
//
// A thread makes one output for ROWS rows, so a weight is unpacked once for all of them and stays in a register. Activations are read at
// addresses that all threads share: one scalar load, which the multiply-add broadcasts. There is no shared memory and there are no
// barriers, at which such a driver would leave and enter every subgroup's frame. Units are visited lane by lane, as in tile.comp.
// Workgroup 32, 64 or 128 (shapes.h), an output each. Grid: x over blocks of outputs (strided), y over blocks of ROWS rows (rows.glsl).
// Any R and n; cols must be a multiple of 32. ROWS is a define: see matmul.comp.
// The loop over the octets of a unit stays a loop. Unrolled, LLVM puts the 32 products of a row one behind the other, each of which waits for the
// one before, and a processor looks ahead over three such chains; over chains of eight it sees all rows.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 64, local_size_x_id = SH_SPEC_THREADS) in;
layout(push_constant) uniform Push { sh_pc_matmul p; };
#include "weights.glsl"
#include "rows.glsl"

#define THREADS gl_WorkGroupSize.x

// The address of float `index` of an array.
uvec2 at_float(uvec2 address, uint index) { return at(uvec2(address.x, address.y + (index >> 30)), index << 2); }

void main() {
    const uint tid = gl_LocalInvocationID.x;
    if (!find_rows(ROWS)) return;
#ifdef HAS_TABLE
    load_table(tid);
    barrier();
#endif
    uvec2 x[ROWS];
    uint dst_at, residual_at;
    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
        uint x_at;
        row_at(r, ROWS, x_at, dst_at, residual_at);
        x[r] = at_float(p.x, x_at);
    }

    for (uint block = gl_WorkGroupID.x; block * THREADS < p.n; block += gl_NumWorkGroups.x) {
        const uint n = block * THREADS + tid, row = w_row + min(n, p.n - 1u);
        precise float total[ROWS], acc[ROWS];
        [[unroll]] for (uint r = 0u; r < ROWS; r++) total[r] = 0.0;

        for (uint lane = 0u; lane < min(SH_LANES, p.units); lane++) {
            [[unroll]] for (uint r = 0u; r < ROWS; r++) acc[r] = 0.0;
            for (uint u = lane; u < p.units; u += SH_LANES) {
                const Unit t = load_unit(p.w, row, u, p.units);
                [[dont_unroll]] for (uint j = 0u; j < 4u; j++) {
                    float e[8];
                    octet(p.w, t, j, e);
                    [[unroll]] for (uint half_ = 0u; half_ < 2u; half_++) {
                        vec4 v[ROWS];
                        [[unroll]] for (uint r = 0u; r < ROWS; r++) v[r] = F128(x[r]).v[u * 8u + 2u * j + half_];
                        [[unroll]] for (uint i = 0u; i < 4u; i++)
                            [[unroll]] for (uint r = 0u; r < ROWS; r++) acc[r] = fma(e[4u * half_ + i], v[r][i], acc[r]);
                    }
                }
            }
            [[unroll]] for (uint r = 0u; r < ROWS; r++) total[r] = total[r] + acc[r];
        }
        [[unroll]] for (uint r = 0u; r < ROWS; r++) {
            uint unused;
            row_at(r, ROWS, unused, dst_at, residual_at);
            if (n < p.n && r < n_here) store(n, dst_at, residual_at, total[r]);
        }
    }
}

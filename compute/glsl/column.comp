// column.comp - the same product as matmul.comp, bit for bit, for one row, on drivers that run a subgroup as one vector of a CPU.
//
// Neighbouring threads make neighbouring outputs, so x and the loop are the same for all threads: scalars, which the multiply-add
// broadcasts, where matmul.comp fetches x for each lane. No shared memory but for tables, and no barrier, at which such a driver keeps
// every value in memory. A thread makes OUTPUTS outputs, a workgroup's threads apart, and visits two lanes at a time: units u and u + 1, then u + 32 and
// u + 33, ..., each to its own sum; when these two lanes are done they are added to the outputs, in ascending order. The next two
// units are loaded before these two are multiplied: rows lie so far apart that the processor does not foresee them.
// Workgroup 32, 64 or 128 (shapes.h). Grid: x over blocks of OUTPUTS outputs a thread (strided), y over rows (rows.glsl). Any R, n; cols a multiple of 32.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 64, local_size_x_id = SH_SPEC_THREADS) in;
layout(push_constant) uniform Push { sh_pc_matmul p; };
#include "weights.glsl"
#include "rows.glsl"

#define THREADS gl_WorkGroupSize.x
#define SUMS (LANES * OUTPUTS)

void load_units(uint n[OUTPUTS], uint u, out Unit t[SUMS]) {
    [[unroll]] for (uint l = 0u; l < LANES; l++)
        [[unroll]] for (uint o = 0u; o < OUTPUTS; o++) t[l * OUTPUTS + o] = load_unit(p.w, n[o], min(u + l, p.units - 1u), p.units);
}

void main() {
    const uint tid = gl_LocalInvocationID.x;
    if (!find_rows(1u)) return;
#ifdef HAS_TABLE
    load_table(tid);
    barrier();
#endif
    uint x_at, dst_at, residual_at;
    row_at(0u, 1u, x_at, dst_at, residual_at);
    x_at >>= 2;

    const uint each = outputs_each();
    for (uint block = gl_WorkGroupID.x; block * THREADS * each < p.n; block += gl_NumWorkGroups.x) {
        uint n[OUTPUTS];
        [[unroll]] for (uint o = 0u; o < OUTPUTS; o++) n[o] = product_row(block * each * THREADS + tid, o, THREADS);
        float total[OUTPUTS], acc[SUMS];
        [[unroll]] for (uint o = 0u; o < OUTPUTS; o++) total[o] = 0.0;
        [[unroll]] for (uint s = 0u; s < SUMS; s++) acc[s] = 0.0;
        Unit t[SUMS], next[SUMS];
        load_units(n, 0u, t);
        uint lane = 0u, u = 0u;
        do {
            uint u_next = u + SH_LANES;
            const bool done = u_next >= p.units;
            if (done) u_next = lane += LANES;
            load_units(n, u_next, next);
            float sums[SUMS];
            [[unroll]] for (uint s = 0u; s < SUMS; s++) sums[s] = acc[s];
            [[unroll]] for (uint j = 0u; j < 4u; j++) {
                float x[LANES * 8u];
                [[unroll]] for (uint l = 0u; l < LANES; l++)
                    [[unroll]] for (uint h = 0u; h < 2u; h++) {
                        const vec4 v = F128(p.x).v[x_at + min(u + l, p.units - 1u) * 8u + 2u * j + h];
                        [[unroll]] for (uint i = 0u; i < 4u; i++) x[8u * l + 4u * h + i] = v[i];
                    }
                float e[SUMS][8];
                [[unroll]] for (uint s = 0u; s < SUMS; s++) octet(p.w, t[s], j, e[s]);
                [[unroll]] for (uint i = 0u; i < 8u; i++)
                    [[unroll]] for (uint s = 0u; s < SUMS; s++) {
                        precise float sum = fma(e[s][i], x[8u * (s / OUTPUTS) + i], sums[s]);
                        sums[s] = sum;
                    }
            }
            [[unroll]] for (uint s = 0u; s < SUMS; s++) acc[s] = u + s / OUTPUTS < p.units ? sums[s] : acc[s];
            if (done)
                [[unroll]] for (uint s = 0u; s < SUMS; s++) {
                    precise float sum = total[s % OUTPUTS] + acc[s];
                    total[s % OUTPUTS] = sum;
                    acc[s] = 0.0;
                }
            u = u_next;
            [[unroll]] for (uint s = 0u; s < SUMS; s++) t[s] = next[s];
        } while (lane < min(SH_LANES, p.units));
        if (is_glu()) {
            [[unroll]] for (uint o = 0u; o < HALF; o++) {
                const uint y = (block * HALF + o) * THREADS + tid;
                if (y < p.n) store_glu(y, dst_at, total[o], total[HALF + o]);
            }
            continue;
        }
        [[unroll]] for (uint o = 0u; o < OUTPUTS; o++) {
            const uint y = (block * OUTPUTS + o) * THREADS + tid;
            if (y < p.n) store(y, dst_at, residual_at, total[o]);
        }
    }
}

// tile.comp - the same product as matmul.comp, bit for bit, for many rows: tiles of rows by outputs through shared memory.
//
// Units are visited lane by lane (l, l + 32, ...), so that one accumulator holds a lane's sum and a second one the lanes added so
// far. A unit is two slices of 16 elements, each with a half of the shared memory of its own: while one slice is multiplied, the next is on
// its way from memory to registers, and is written to the other half after the multiplication, so that a slice costs one barrier and its
// loads may take as long as the products.
// Workgroup: ACROSS by DOWN threads of 4 outputs by 4 rows each, a tile of 4 * DOWN rows by 4 * ACROSS outputs; ACROSS and DOWN are 8 or 16
// (compute/vulkan/shapes.h). Grid: x over blocks of outputs (strided), y over blocks of rows (rows.glsl).
// Shared: 512 * (ACROSS + DOWN) bytes, at most 16 KiB. Any R, n, cols.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 256, local_size_x_id = SH_SPEC_THREADS) in;
layout(constant_id = SH_SPEC_ACROSS) const uint ACROSS = 16u;
layout(push_constant) uniform Push { sh_pc_matmul p; };
#include "weights.glsl"
#include "rows.glsl"

#define THREADS gl_WorkGroupSize.x
#define DOWN (THREADS / ACROSS)
#define SLICE 16u
#define LINES (4u * (ACROSS + DOWN))
#define OUTPUT_JOBS (8u * ACROSS) // octets of a slice to be brought: two of each output,
#define JOBS (2u * LINES)         // then two of each row
#define MOST_JOBS 2u              // of a thread
#define EACH_JOB [[unroll]] for (uint i = 0u; i < MOST_JOBS; i++) if (i * THREADS < JOBS)

shared float lines[2u * SLICE * LINES]; // [half][k][4 * ACROSS outputs, then 4 * DOWN rows]

// What this thread brings of a slice. Small units are kept as they are until the next one, and taken apart when they are written.
Unit unit_in[MOST_JOBS];
float octet_in[MOST_JOBS * 8u];

void put_octet(uint i, float e[8]) {
    [[unroll]] for (uint k = 0u; k < 8u; k++) octet_in[8u * i + k] = e[k];
}

void main() {
    const uint tid = gl_LocalInvocationID.x;
    const uint tx = tid % ACROSS, ty = tid / ACROSS;
    if (!find_rows(4u * DOWN)) return;
#ifdef HAS_TABLE
    load_table(tid);
    barrier();
#endif
    uint source[MOST_JOBS]; // where a job's row begins in x, or which row of the weight it takes
    uint unused_x, dst_at, residual_at;
    EACH_JOB {
        const uint job = tid + i * THREADS;
        if (job >= OUTPUT_JOBS) row_at((job - OUTPUT_JOBS) >> 1, 4u * DOWN, source[i], dst_at, residual_at);
    }

    for (uint block = gl_WorkGroupID.x; block * 4u * ACROSS < p.n; block += gl_NumWorkGroups.x) {
        EACH_JOB {
            const uint job = tid + i * THREADS;
            if (job < OUTPUT_JOBS) source[i] = w_row + min(block * 4u * ACROSS + (job >> 1), p.n - 1u);
        }
        precise vec4 total[4], acc[4];
        [[unroll]] for (uint r = 0u; r < 4u; r++) total[r] = acc[r] = vec4(0.0);

        // Slice s - 1 is multiplied, slice s brought; the first round has nothing to multiply. What the last one brings nobody reads.
        uint u = 0u, next = 0u, lane = 0u; // the unit that is multiplied, the one that is brought, and its lane
        for (uint s = 0u; s <= 2u * p.units; s++) {
            const uint to = s & 1u, from = 1u - to;
            EACH_JOB {
                const uint job = tid + i * THREADS, j = 2u * to + (job & 1u);
                float e[8];
                if (job < OUTPUT_JOBS) {
                    if (to == 0u) unit_in[i] = load_unit(p.w, source[i], next, p.units);
#if CHUNKS > 1
                    octet(p.w, unit_in[i], j, e);
                    put_octet(i, e);
#endif
                } else if (job < JOBS) {
                    const uint k = next * SH_UNIT + 8u * j;
                    const vec4 first = load_x(source[i], k), second = load_x(source[i], k + 4u);
                    [[unroll]] for (uint c = 0u; c < 4u; c++) {
                        e[c] = first[c];
                        e[4u + c] = second[c];
                    }
                    put_octet(i, e);
                }
            }
            if (s > 0u) {
                for (uint k = 0u; k < SLICE; k++) {
                    const uint a = (from * SLICE + k) * LINES + 4u * tx, b = (from * SLICE + k) * LINES + 4u * (ACROSS + ty);
                    const vec4 wv = vec4(lines[a], lines[a + 1u], lines[a + 2u], lines[a + 3u]);
                    const vec4 xr = vec4(lines[b], lines[b + 1u], lines[b + 2u], lines[b + 3u]);
                    [[unroll]] for (uint r = 0u; r < 4u; r++) acc[r] = fma(wv, vec4(xr[r]), acc[r]);
                }
            }
            if (to == 0u) {
                if (s > 0u && u + SH_LANES >= p.units) { // the lane's last unit
                    [[unroll]] for (uint r = 0u; r < 4u; r++) {
                        total[r] = total[r] + acc[r];
                        acc[r] = vec4(0.0);
                    }
                }
                u = next;
            } else {
                next += SH_LANES;
                if (next >= p.units) next = min(++lane, p.units - 1u);
            }
            EACH_JOB {
                const uint job = tid + i * THREADS;
                if (job < JOBS) {
                    float e[8];
                    [[unroll]] for (uint k = 0u; k < 8u; k++) e[k] = octet_in[8u * i + k];
#if CHUNKS == 1
                    if (job < OUTPUT_JOBS) octet(p.w, unit_in[i], 2u * to + (job & 1u), e);
#endif
                    [[unroll]] for (uint k = 0u; k < 8u; k++)
                        lines[(to * SLICE + 8u * (job & 1u) + k) * LINES + (job >> 1)] = e[k];
                }
            }
            barrier();
        }
        [[unroll]] for (uint r = 0u; r < 4u; r++) {
            if (ty * 4u + r >= n_here) continue;
            row_at(ty * 4u + r, 4u * DOWN, unused_x, dst_at, residual_at);
            [[unroll]] for (uint i = 0u; i < 4u; i++) {
                const uint n = (block * ACROSS + tx) * 4u + i;
                if (n < p.n) store(n, dst_at, residual_at, total[r][i]);
            }
        }
    }
}

// dot_tile.comp - the same product as dot.comp, bit for bit, for many rows: tiles of rows by outputs through shared memory.
//
// Units are visited lane by lane, as in tile.comp. While one unit is multiplied the next one is loaded, into the other half of the shared
// memory, so that a unit costs one barrier. Workgroup: ACROSS by DOWN threads of 4 outputs by 4 rows each, 8 or 16 of both (shapes.h), a tile of
// 4 * DOWN rows by 4 * ACROSS outputs. Grid: x over blocks of outputs (strided), y over blocks of rows (rows.glsl).
// Shared: 384 * ACROSS + 320 * DOWN bytes, at most 11 KiB, tables 1 KiB. Any R and n.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 256, local_size_x_id = SH_SPEC_THREADS) in;
layout(constant_id = SH_SPEC_ACROSS) const uint ACROSS = 16u;
layout(push_constant) uniform Push { sh_pc_matmul p; };
#include "weights.glsl"
#include "rows.glsl"
#include "dots.glsl"

#define THREADS gl_WorkGroupSize.x
#define DOWN (THREADS / ACROSS)
#define EACH_OUTPUT [[unroll]] for (uint i = 0u; i < 2u; i++) if (i < 16u / DOWN)
#define EACH_ROW [[unroll]] for (uint i = 0u; i < 2u; i++) if (i < 16u / ACROSS)

shared uvec4 ws[2u * 8u * ACROSS];         // [half][word][ACROSS times 4 outputs]
shared uvec4 xs[2u * 8u * DOWN];           // the same of rows
shared vec4 w_scale[2u * 4u * ACROSS];     // [half][output]: a, b, m
shared uvec2 x_scale[2u * 4u * DOWN];      // [half][row]: dx and sums

// What this thread brings of a unit: octet j of one or two outputs' weights, and of one or two rows' quants; for j = 0 also their scales.
Unit unit_in[2];
uvec2 words_in[2], quants_in[2], head_in[2];
uint output_in[2], x_unit[2]; // rows of the weight, and where rows of x begin
void take(uint u, uint j) {
    EACH_OUTPUT {
        unit_in[i] = load_unit(p.w, output_in[i], u, p.units);
        words_in[i] = octet_words(p.w, unit_in[i], j);
    }
    EACH_ROW {
        const uint x = (x_unit[i] + u) * 12u;
        quants_in[i] = uvec2(U32(p.x).v[x + 2u * j], U32(p.x).v[x + 2u * j + 1u]);
        head_in[i] = uvec2(U32(p.x).v[x + 8u], U32(p.x).v[x + 9u]);
    }
}
void put(uint half_, uint tid, uint j) {
    EACH_OUTPUT {
        const uint line = (tid + i * THREADS) >> 2, to = (8u * half_ + 2u * j) * ACROSS + (line >> 2);
        ws[to][line & 3u] = words_in[i].x;
        ws[to + ACROSS][line & 3u] = words_in[i].y;
        if (j == 0u) w_scale[half_ * 4u * ACROSS + line] = vec4(unit_in[i].a, scale_b(unit_in[i]), scale_m(unit_in[i]));
    }
    EACH_ROW {
        const uint line = (tid + i * THREADS) >> 2, to = (8u * half_ + 2u * j) * DOWN + (line >> 2);
        xs[to][line & 3u] = quants_in[i].x;
        xs[to + DOWN][line & 3u] = quants_in[i].y;
        if (j == 0u) x_scale[half_ * 4u * DOWN + line] = head_in[i];
    }
}

void main() {
    const uint tid = gl_LocalInvocationID.x, tx = tid % ACROSS, ty = tid / ACROSS, j = tid & 3u;
    if (!find_rows(4u * DOWN)) return;
#ifdef HAS_TABLE
    load_pairs(tid, THREADS);
    barrier();
#endif
    uint unused_x, dst_at, residual_at;
    EACH_ROW {
        row_at((tid + i * THREADS) >> 2, 4u * DOWN, x_unit[i], dst_at, residual_at);
        x_unit[i] >>= 5;
    }

    for (uint block = gl_WorkGroupID.x; block * 4u * ACROSS < p.n; block += gl_NumWorkGroups.x) {
        EACH_OUTPUT output_in[i] = w_row + min(block * 4u * ACROSS + ((tid + i * THREADS) >> 2), p.n - 1u);
        precise float total[16];
        float acc[16];
        [[unroll]] for (uint i = 0u; i < 16u; i++) total[i] = acc[i] = 0.0;

        // The unit that is loaded and the one that is multiplied, one behind. What was loaded is written to the other half after the
        // multiplication, so that the loads may take as long. The last round loads a unit again that nobody reads.
        uint next = 0u, u = 0u, at = 0u;
        barrier();
        take(0u, j);
        put(0u, tid, j);
        barrier();
        for (uint round = 0u; round < p.units; round++) {
            const uint from = round & 1u;
            u = next;
            next += SH_LANES;
            if (next >= p.units) next = ++at;
            take(min(next, p.units - 1u), j);
            ivec2 dots[16];
            [[unroll]] for (uint i = 0u; i < 16u; i++) dots[i] = ivec2(0);
            [[unroll]] for (uint i = 0u; i < 8u; i++) {
                const uvec4 wv = ws[(8u * from + i) * ACROSS + tx], xv = xs[(8u * from + i) * DOWN + ty];
                [[unroll]] for (uint r = 0u; r < 4u; r++)
                    [[unroll]] for (uint o = 0u; o < 4u; o++)
#ifdef TWO_SCALES
                        dots[4u * r + o][i >> 2] += packed_dot(wv[o], xv[r], 0);
#else
                        dots[4u * r + o].x += packed_dot(wv[o], xv[r], 0);
#endif
            }
            [[unroll]] for (uint r = 0u; r < 4u; r++) {
                const uvec2 x = x_scale[4u * (from * DOWN + ty) + r];
                [[unroll]] for (uint o = 0u; o < 4u; o++) {
                    const vec4 w = w_scale[4u * (from * ACROSS + tx) + o];
                    acc[4u * r + o] =
                        add_unit(acc[4u * r + o], w.x, w.y, w.zw, dots[4u * r + o], uintBitsToFloat(x.x), halves(x.y));
                }
            }
            if (u + SH_LANES >= p.units) { // the lane's last unit
                [[unroll]] for (uint i = 0u; i < 16u; i++) {
                    total[i] = total[i] + acc[i];
                    acc[i] = 0.0;
                }
            }
            put(1u - from, tid, j);
            barrier();
        }
        [[unroll]] for (uint r = 0u; r < 4u; r++) {
            if (ty * 4u + r >= n_here) continue;
            row_at(ty * 4u + r, 4u * DOWN, unused_x, dst_at, residual_at);
            [[unroll]] for (uint i = 0u; i < 4u; i++) {
                const uint n = (block * ACROSS + tx) * 4u + i;
                if (n < p.n) store(n, dst_at, residual_at, total[4u * r + i]);
            }
        }
    }
}

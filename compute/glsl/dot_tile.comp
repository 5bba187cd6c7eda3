// dot_tile.comp - the same product as dot.comp, bit for bit, for many rows: tiles of 64 rows by 64 outputs through shared memory.
//
// Units are visited lane by lane, as in tile.comp. While one unit is multiplied the next one is loaded, into the other half of the shared
// memory, so that a unit costs one barrier. Workgroup 256 = 16 x 16 threads of 4 x 4 results. Grid: x over blocks of 64 outputs (strided),
// y over blocks of 64 rows (rows.glsl). Shared: 11 KiB, tables 1 KiB. Any R and n.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 256) in;
layout(push_constant) uniform Push { sh_pc_matmul p; };
#include "weights.glsl"
#include "rows.glsl"
#include "dots.glsl"

#define HALF 128u
shared uvec4 ws[2u * HALF];  // [half][word][16 times 4 outputs]
shared uvec4 xs[2u * HALF];  // the same of rows
shared vec4 w_scale[2u * 64u]; // a, b, m of each output
shared uvec2 x_scale[2u * 64u]; // dx and sums of each row

// What this thread brings of a unit: octet j of an output's weights and of a row's quants, for j = 0 also their scales.
Unit unit_in;
uvec2 words_in, quants_in, head_in;
void take(uint n, uint x_unit, uint u, uint j) {
    unit_in = load_unit(p.w, n, u, p.units);
    words_in = octet_words(p.w, unit_in, j);
    const uint x = (x_unit + u) * 12u;
    quants_in = uvec2(U32(p.x).v[x + 2u * j], U32(p.x).v[x + 2u * j + 1u]);
    head_in = uvec2(U32(p.x).v[x + 8u], U32(p.x).v[x + 9u]);
}
void put(uint half_, uint line, uint j) {
    const uint to = half_ + 32u * j + (line >> 2);
    ws[to][line & 3u] = words_in.x;
    ws[to + 16u][line & 3u] = words_in.y;
    xs[to][line & 3u] = quants_in.x;
    xs[to + 16u][line & 3u] = quants_in.y;
    if (j > 0u) return;
    w_scale[(half_ >> 1) + line] = vec4(unit_in.a, scale_b(unit_in), scale_m(unit_in));
    x_scale[(half_ >> 1) + line] = head_in;
}

void main() {
    const uint tid = gl_LocalInvocationID.x, tx = tid & 15u, ty = tid >> 4;
    if (!find_rows(64u)) return;
#ifdef HAS_TABLE
    load_pairs(tid, 256u);
    barrier();
#endif
    const uint j = tid & 3u, line = tid >> 2; // what this thread loads: octet j of a unit of output and of row `line`
    uint x_unit, unused_x, dst_at, residual_at;
    row_at(line, 64u, x_unit, dst_at, residual_at);
    x_unit >>= 5;

    for (uint block = gl_WorkGroupID.x; block * 64u < p.n; block += gl_NumWorkGroups.x) {
        const uint n_load = w_row + min(block * 64u + line, p.n - 1u);
        precise float total[16];
        float acc[16];
        [[unroll]] for (uint i = 0u; i < 16u; i++) total[i] = acc[i] = 0.0;

        // The unit that is loaded and the one that is multiplied, one behind. What was loaded is written to the other half after the
        // multiplication, so that the loads may take as long. The last round loads a unit again that nobody reads.
        uint next = 0u, u = 0u, at = 0u;
        barrier();
        take(n_load, x_unit, 0u, j);
        put(0u, line, j);
        barrier();
        for (uint round = 0u; round < p.units; round++) {
            const uint from = (round & 1u) * HALF;
            u = next;
            next += SH_LANES;
            if (next >= p.units) next = ++at;
            take(n_load, x_unit, min(next, p.units - 1u), j);
            ivec2 dots[16];
            [[unroll]] for (uint i = 0u; i < 16u; i++) dots[i] = ivec2(0);
            [[unroll]] for (uint i = 0u; i < 8u; i++) {
                const uvec4 wv = ws[from + 16u * i + tx], xv = xs[from + 16u * i + ty];
                [[unroll]] for (uint r = 0u; r < 4u; r++)
                    [[unroll]] for (uint o = 0u; o < 4u; o++)
#ifdef TWO_SCALES
                        dots[4u * r + o][i >> 2] += packed_dot(wv[o], xv[r], 0);
#else
                        dots[4u * r + o].x += packed_dot(wv[o], xv[r], 0);
#endif
            }
            [[unroll]] for (uint r = 0u; r < 4u; r++) {
                const uvec2 x = x_scale[(from >> 1) + 4u * ty + r];
                [[unroll]] for (uint o = 0u; o < 4u; o++) {
                    const vec4 w = w_scale[(from >> 1) + 4u * tx + o];
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
            put(HALF - from, line, j);
            barrier();
        }
        [[unroll]] for (uint r = 0u; r < 4u; r++) {
            if (ty * 4u + r >= n_here) continue;
            row_at(ty * 4u + r, 64u, unused_x, dst_at, residual_at);
            [[unroll]] for (uint i = 0u; i < 4u; i++) {
                const uint n = block * 64u + tx * 4u + i;
                if (n < p.n) store(n, dst_at, residual_at, total[4u * r + i]);
            }
        }
    }
}

// coop.comp - the same product as dot.comp, bit for bit, for many rows, by cooperative matrices of int8: tiles of 64 rows by 64 outputs.
//
// A subgroup makes blocks of CM rows by CN outputs, the dot products of one unit (or of its halves) at a time, which are exact. Scales are
// applied in registers. Which row and output an element belongs to is the driver's affair: a matrix that holds each element's place, loaded
// like any other, tells it. Units are visited lane by lane and loaded one ahead, as in dot_tile.comp.
// Workgroup 256; grid as in dot_tile.comp. CM, CN, CK: a size that the device has for signed int8 with int32 sums. CM and CN divide 64, CM * CN
// is at most 256, CK divides 32, where a layout has two scales 16, and four blocks for each subgroup make the tile.
#version 450
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_EXT_shader_explicit_arithmetic_types_int8 : require
#extension GL_EXT_shader_explicit_arithmetic_types_int32 : require
#include "head.glsl"
layout(local_size_x = 256) in;
layout(constant_id = 0) const uint CM = 8u;
layout(constant_id = 1) const uint CN = 8u;
layout(constant_id = 2) const uint CK = 8u;
layout(push_constant) uniform Push { sh_pc_matmul p; };
#include "weights.glsl"
#include "rows.glsl"
#include "dots.glsl"

#define BLOCKS 4u // of a subgroup, at most
#define LINE 8u   // words of a unit
shared uint ws[2u * 64u * LINE];  // [half][output][word]
shared uint xs[2u * 64u * LINE];  // [half][row][word]
shared vec4 w_scale[2u * 64u];    // a, b, m of each output
shared uvec2 x_scale[2u * 64u];   // dx and sums of each row
shared float places[256];

#define Sums coopmat<float, gl_ScopeSubgroup, CM, CN, gl_MatrixUseAccumulator>
#define Dots coopmat<int32_t, gl_ScopeSubgroup, CM, CN, gl_MatrixUseAccumulator>

// The dot products of the elements [from, to) of the unit in this half of the shared memory.
Dots multiply(uint half_, uint r0, uint o0, uint from, uint to) {
    Dots d = Dots(0);
    for (uint k = from; k < to; k += CK) {
        coopmat<int8_t, gl_ScopeSubgroup, CM, CK, gl_MatrixUseA> a;
        coopmat<int8_t, gl_ScopeSubgroup, CK, CN, gl_MatrixUseB> b;
        coopMatLoad(a, xs, (half_ * 64u + r0) * LINE + k / 4u, LINE, gl_CooperativeMatrixLayoutRowMajor);
        coopMatLoad(b, ws, (half_ * 64u + o0) * LINE + k / 4u, LINE, gl_CooperativeMatrixLayoutColumnMajor);
        d = coopMatMulAdd(a, b, d);
    }
    return d;
}

void main() {
    const uint tid = gl_LocalInvocationID.x, across = 64u / CN, blocks = 64u / CM * across;
    if (!find_rows(64u)) return;
#ifdef HAS_TABLE
    load_pairs(tid, 256u);
#endif
    places[tid] = float(tid);
    barrier();
    Sums place;
    coopMatLoad(place, places, 0u, CN, gl_CooperativeMatrixLayoutRowMajor);

    const uint j = tid & 3u, line = tid >> 2; // what this thread loads: octet j of a unit of output and of row `line`
    uint x_unit, unused_x, dst_at, residual_at;
    row_at(line, 64u, x_unit, dst_at, residual_at);
    x_unit >>= 5;

    for (uint block = gl_WorkGroupID.x; block * 64u < p.n; block += gl_NumWorkGroups.x) {
        const uint n_load = w_row + min(block * 64u + line, p.n - 1u);
        Sums total[BLOCKS], acc[BLOCKS];
        [[unroll]] for (uint b = 0u; b < BLOCKS; b++) {
            total[b] = Sums(0.0);
            acc[b] = Sums(0.0);
        }
        uint next = 0u, u = 0u, lane = 0u; // the unit to be loaded and the one to be multiplied
        barrier();
        for (uint round = 0u; round < p.units + 1u; round++) {
            const uint to = round & 1u, from = 1u - to;
            if (round < p.units) {
                const Unit t = load_unit(p.w, n_load, next, p.units);
                const uvec2 w = octet_words(p.w, t, j);
                const uint x = (x_unit + next) * 12u, at = (to * 64u + line) * LINE + 2u * j;
                ws[at] = w.x;
                ws[at + 1u] = w.y;
                xs[at] = U32(p.x).v[x + 2u * j];
                xs[at + 1u] = U32(p.x).v[x + 2u * j + 1u];
                if (j == 0u) {
                    w_scale[to * 64u + line] = vec4(t.a, scale_b(t), scale_m(t));
                    x_scale[to * 64u + line] = uvec2(U32(p.x).v[x + 8u], U32(p.x).v[x + 9u]);
                }
            }
            if (round > 0u) {
                [[unroll]] for (uint b = 0u; b < BLOCKS; b++) {
                    const uint id = gl_SubgroupID + b * gl_NumSubgroups;
                    if (id >= blocks) continue;
                    const uint r0 = id / across * CM, o0 = id % across * CN;
#ifdef TWO_SCALES
                    const Sums first = Sums(multiply(from, r0, o0, 0u, 16u)), second = Sums(multiply(from, r0, o0, 16u, 32u));
#else
                    const Sums first = Sums(multiply(from, r0, o0, 0u, 32u));
#endif
                    for (uint e = 0u; e < acc[b].length(); e++) {
                        const uint at = uint(place[e]);
                        const vec4 w = w_scale[from * 64u + o0 + at % CN];
                        const uvec2 x = x_scale[from * 64u + r0 + at / CN];
                        ivec2 dots = ivec2(int(first[e]), 0); // below 2^24: nothing was rounded
#ifdef TWO_SCALES
                        dots.y = int(second[e]);
#endif
                        acc[b][e] = add_unit(acc[b][e], w.x, w.y, w.zw, dots, uintBitsToFloat(x.x), halves(x.y));
                    }
                    if (u + SH_LANES >= p.units) { // the lane's last unit
                        for (uint e = 0u; e < acc[b].length(); e++) {
                            precise float sum = total[b][e] + acc[b][e];
                            total[b][e] = sum;
                        }
                        acc[b] = Sums(0.0);
                    }
                }
            }
            u = next;
            next += SH_LANES;
            if (next >= p.units) next = ++lane;
            barrier();
        }
        [[unroll]] for (uint b = 0u; b < BLOCKS; b++) {
            const uint id = gl_SubgroupID + b * gl_NumSubgroups;
            if (id >= blocks) continue;
            const uint r0 = id / across * CM, o0 = id % across * CN;
            for (uint e = 0u; e < total[b].length(); e++) {
                const uint at = uint(place[e]), r = r0 + at / CN, n = block * 64u + o0 + at % CN;
                if (r >= n_here || n >= p.n) continue;
                row_at(r, 64u, unused_x, dst_at, residual_at);
                store(n, dst_at, residual_at, total[b][e]);
            }
        }
    }
}

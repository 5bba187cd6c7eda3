// tile.comp - the same product as matmul.comp, bit for bit, for many rows: tiles of 64 rows by 64 outputs through shared memory.
//
// Units are visited lane by lane (l, l + 32, ...), so that one accumulator holds a lane's sum and a second one the lanes added so
// far. Workgroup 256 = 16 x 16 threads of 4 x 4 results. Grid: x over blocks of 64 outputs (strided), y over blocks of 64 rows (rows.glsl).
// Shared: 2 * 32 * 64 floats = 16 KiB. Any R, n, cols.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 256) in;
layout(push_constant) uniform Push { sh_pc_matmul p; };
#include "weights.glsl"
#include "rows.glsl"

shared float ws[SH_UNIT * 64]; // [k][64 outputs]
shared float xs[SH_UNIT * 64]; // [k][64 rows]

void main() {
    const uint tid = gl_LocalInvocationID.x;
    const uint tx = tid & 15u, ty = tid >> 4;
    if (!find_rows(64u)) return;
#ifdef HAS_TABLE
    load_table(tid);
    barrier();
#endif
    const uint j = tid & 3u, line = tid >> 2; // what this thread loads: octet j of unit u of output and of row `line`
    uint x_at, unused_x, unused_dst, unused_residual;
    row_at(line, 64u, x_at, unused_dst, unused_residual);

    for (uint block = gl_WorkGroupID.x; block * 64u < p.n; block += gl_NumWorkGroups.x) {
        const uint n_load = w_row + min(block * 64u + line, p.n - 1u);
        precise vec4 total[4], acc[4];
        [[unroll]] for (uint r = 0u; r < 4u; r++) total[r] = vec4(0.0);

        for (uint lane = 0u; lane < min(SH_LANES, p.units); lane++) {
            [[unroll]] for (uint r = 0u; r < 4u; r++) acc[r] = vec4(0.0);
            for (uint u = lane; u < p.units; u += SH_LANES) {
                Unit t = load_unit(p.w, n_load, u, p.units);
                float e[8];
                octet(p.w, t, j, e);
                const uint k = u * SH_UNIT + 8u * j;
                const vec4 xv[2] = {load_x(x_at, k), load_x(x_at, k + 4u)};
                barrier();
                [[unroll]] for (uint i = 0u; i < 8u; i++) {
                    ws[(8u * j + i) * 64u + line] = e[i];
                    xs[(8u * j + i) * 64u + line] = xv[i >> 2][i & 3u];
                }
                barrier();
                for (uint i = 0u; i < SH_UNIT; i++) {
                    const uint a = i * 64u + 4u * tx, b = i * 64u + 4u * ty;
                    const vec4 wv = vec4(ws[a], ws[a + 1u], ws[a + 2u], ws[a + 3u]);
                    const vec4 xr = vec4(xs[b], xs[b + 1u], xs[b + 2u], xs[b + 3u]);
                    [[unroll]] for (uint r = 0u; r < 4u; r++) acc[r] = fma(wv, vec4(xr[r]), acc[r]);
                }
            }
            [[unroll]] for (uint r = 0u; r < 4u; r++) total[r] = total[r] + acc[r];
        }
        barrier();
        [[unroll]] for (uint r = 0u; r < 4u; r++) {
            if (ty * 4u + r >= n_here) continue;
            uint dst_at, residual_at;
            row_at(ty * 4u + r, 64u, unused_x, dst_at, residual_at);
            [[unroll]] for (uint i = 0u; i < 4u; i++) {
                const uint n = block * 64u + tx * 4u + i;
                if (n < p.n) store(n, dst_at, residual_at, total[r][i]);
            }
        }
    }
}

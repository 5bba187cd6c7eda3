// tile.comp - the same product as matmul.comp, bit for bit, for many rows: tiles of 64 rows by 64 outputs through shared memory.
//
// Units are visited lane by lane (l, l + 32, ...), so that one accumulator holds a lane's sum and a second one the lanes added so
// far. Workgroup 256 = 16 x 16 threads of 4 x 4 results. Grid: x over blocks of 64 outputs (strided), y over blocks of 64 rows.
// Shared: 2 * 32 * 64 floats = 16 KiB. Any R, n, cols.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 256) in;
layout(push_constant) uniform Push { sh_pc_matmul p; };
#include "weights.glsl"

shared float ws[SH_UNIT * 64]; // [k][64 outputs]
shared float xs[SH_UNIT * 64]; // [k][64 rows]

void main() {
    const uint tid = gl_LocalInvocationID.x;
    const uint tx = tid & 15u, ty = tid >> 4;
    const uint n_rows = (p.flags & SH_MATMUL_BY_OUTPUT) != 0u ? Step(p.step).v.n_outputs : Step(p.step).v.n_rows;
    const uint row0 = gl_WorkGroupID.y * 64u;
    if (row0 >= n_rows) return;
    const uint j = tid & 3u, line = tid >> 2; // what this thread loads: octet j of unit u of output and of row `line`
    const uint x_base = min(row0 + line, n_rows - 1u) * p.x_stride;

    for (uint block = gl_WorkGroupID.x; block * 64u < p.n; block += gl_NumWorkGroups.x) {
        const uint n_load = min(block * 64u + line, p.n - 1u);
        precise vec4 total[4], acc[4];
        [[unroll]] for (uint r = 0u; r < 4u; r++) total[r] = vec4(0.0);

        for (uint lane = 0u; lane < min(SH_LANES, p.units); lane++) {
            [[unroll]] for (uint r = 0u; r < 4u; r++) acc[r] = vec4(0.0);
            for (uint u = lane; u < p.units; u += SH_LANES) {
                Unit t = load_unit(p.w, n_load, u, p.units);
                float e[8];
                octet(p.w, t, j, e);
                const uint k = u * SH_UNIT + 8u * j;
                vec4 xv[2];
                if (k + 8u <= p.cols) {
                    xv[0] = F128(p.x).v[(x_base + k) >> 2];
                    xv[1] = F128(p.x).v[((x_base + k) >> 2) + 1u];
                } else {
                    [[unroll]] for (uint i = 0u; i < 8u; i++)
                        xv[i >> 2][i & 3u] = k + i < p.cols ? F32(p.x).v[x_base + k + i] : 0.0;
                }
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
            const uint row = row0 + ty * 4u + r;
            [[unroll]] for (uint i = 0u; i < 4u; i++) {
                const uint n = block * 64u + tx * 4u + i;
                if (row >= n_rows || n >= p.n) continue;
                precise float y = total[r][i];
                if ((p.flags & SH_MATMUL_BIAS) != 0u) y = y + F32(p.bias).v[p.first_n + n];
                if ((p.flags & SH_MATMUL_RESIDUAL) != 0u) y = y + F32(p.residual).v[row * p.residual_stride + p.first_n + n];
                F32Out(p.dst).v[row * p.dst_stride + p.first_n + n] = y;
            }
        }
    }
}

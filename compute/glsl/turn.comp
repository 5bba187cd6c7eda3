// turn.comp - activations as wide.comp reads them: blocks of ROWS rows, in which the rows' values of one column lie side by side.
//
// x and the rows, or pairs of experts, of a product: rows.glsl, with p.cols all inputs of a row. out [block_number][cols][ROWS]; where a block has
// fewer rows its last one is repeated. Grid: x over blocks of 64 columns (strided), y over blocks of rows, y and z over items of all experts.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 64) in;
layout(push_constant) uniform Push { sh_pc_matmul p; };
#include "rows.glsl"

void main() {
    if (!find_rows(ROWS)) return;
    uint x_at[ROWS], unused_dst, unused_residual;
    [[unroll]] for (uint r = 0u; r < ROWS; r++) row_at(r, ROWS, x_at[r], unused_dst, unused_residual);
    const uint to = block_number * p.cols * (ROWS / 4u);
    for (uint c = gl_WorkGroupID.x * 64u + gl_LocalInvocationID.x; c < p.cols; c += gl_NumWorkGroups.x * 64u)
        [[unroll]] for (uint g = 0u; g < ROWS / 4u; g++) {
            vec4 v;
            [[unroll]] for (uint r = 0u; r < 4u; r++) v[r] = F32(p.x).v[x_at[4u * g + r] + c];
            F128Out(p.dst).v[to + c * (ROWS / 4u) + g] = v;
        }
}

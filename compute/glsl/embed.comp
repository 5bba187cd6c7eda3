// embed.comp - out[r] = row i of the table [n_vocab][width] in LAYOUT: i is the row's token, its position, or 0; by token, a row's own
// embedding input [R][width] takes its place.
//
// Dispatched once per row part of the table; a part serves the i in [first_row, first_row + part_rows), the first one also the
// embedding inputs. A token that the previous step sampled is read from its token buffer. i is clamped to n_vocab.
// One thread makes eight elements. Grid: x over width / 512 (strided), y over rows.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 64) in;
layout(push_constant) uniform Push { sh_pc_embed p; };
#include "weights.glsl"

void main() {
    const uint r = gl_WorkGroupID.y;
    if (r >= Step(p.step).v.n_rows) return;
    const sh_p_row row = Rows(p.rows).v[r];
    const bool by_token = p.index == SH_P_EMBED_TOKEN, given = by_token && row.embedding != 0u;
    uint token = p.index == SH_P_EMBED_POSITION ? row.position : 0u;
    if (by_token) token = row.sampled != SH_P_NONE ? U32(p.tokens).v[row.sampled] : row.token;
    token = min(token, p.n_vocab - 1u); // an id of -1 (nothing was sampled) is clamped too
    if (given ? p.first_row != 0u : token < p.first_row || token - p.first_row >= p.part_rows) return;
#ifdef HAS_TABLE
    load_table(gl_LocalInvocationID.x);
    barrier();
#endif
    for (uint o = gl_GlobalInvocationID.x; o * 8u < p.width; o += gl_NumWorkGroups.x * 64u) {
        float e[8];
        if (given) {
            [[unroll]] for (uint i = 0u; i < 8u; i++)
                e[i] = o * 8u + i < p.width ? F32(p.embeddings).v[r * p.stride + o * 8u + i] : 0.0;
        } else {
            octet(p.w, load_unit(p.w, token - p.first_row, o >> 2, p.units), o & 3u, e);
        }
        const uint at4 = (r * p.stride + o * 8u) >> 2; // strides are multiples of 32: the row's end is padding of its own
        F128Out(p.dst).v[at4] = vec4(e[0], e[1], e[2], e[3]);
        F128Out(p.dst).v[at4 + 1u] = vec4(e[4], e[5], e[6], e[7]);
    }
}

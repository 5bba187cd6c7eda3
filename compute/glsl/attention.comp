// attention.comp - out[r][head] = softmax(scores) v over the positions that row r sees: one workgroup of 64 makes all splits of some
// consecutive rows of a sequence for the heads that share keys and values (attention.glsl: LINES rows times heads at most), merging in
// ascending order, then the sink: one more score in the maximum and the denominator that carries no value.
// q [R][n_heads * k_dim], out [R][n_heads * v_dim]; n_heads a multiple of n_kv_heads; slopes, sinks [n_heads]. `items` lists the
// step's rows in blocks: first row and number of each. For steps of many rows; gives the same bits as attention_split and
// attention_merge.
// Grid: x over n_kv_heads * ceil(heads of one / LINES), y over blocks. Shared: 14.2 KiB, also with -DLARGE. k_dim, v_dim <= 128;
// with -DLARGE k_dim <= 576, v_dim <= 512.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 64) in;
#include "attention.glsl"

shared float line_keep[LINES], line_take[LINES];

// Line tid's factors, by its thread, to all.
void share(float keep, float take) {
    if (gl_LocalInvocationID.x < LINES) {
        line_keep[gl_LocalInvocationID.x] = keep;
        line_take[gl_LocalInvocationID.x] = take;
    }
    barrier();
}
vec4 four(uint f, bool keep) {
    return keep ? vec4(line_keep[4u * f], line_keep[4u * f + 1u], line_keep[4u * f + 2u], line_keep[4u * f + 3u])
                : vec4(line_take[4u * f], line_take[4u * f + 1u], line_take[4u * f + 2u], line_take[4u * f + 3u]);
}
vec4 merged(vec4 all, vec4 part, vec4 keep, vec4 take) { // merge(), of four lines
    precise vec4 kept = all * keep;
    precise vec4 v = fma(part, take, kept);
    return v;
}

void main() {
    const sh_p_sequence block = Sequences(p.items).v[gl_WorkGroupID.y];
    if (block.first_row >= Step(p.step).v.n_rows) return;
    const uint tid = gl_LocalInvocationID.x, v_dim = p.dims >> 16;
    const Lines l = lines_of(gl_WorkGroupID.x, block.first_row, block.n_rows);
    load_queries(l);
    const uint mine = min(tid, l.n - 1u); // the line whose maximum and denominator this thread holds, if it is one's
    uint first, end;
    visible(Rows(p.rows).v[l.row].position + mine / l.n_heads, Rows(p.rows).v[l.row].end, first, end);
    float m = NO_SCORE, sum = 0.0, keep, take;
    Sums all, part;
    [[unroll]] for (uint f = 0u; f < FOURS; f++)
        [[unroll]] for (uint b = 0u; b < BLOCKS; b++) all.acc[f][b][0] = all.acc[f][b][1] = vec4(0.0);

    for (uint split = l.any_first / SH_SPLIT_TOKENS; split <= (l.any_end - 1u) / SH_SPLIT_TOKENS; split++) {
        float most, part_sum;
        split_part(l, split, most, part_sum, part);
        if (first < (split + 1u) * SH_SPLIT_TOKENS && split * SH_SPLIT_TOKENS < end) {
            merge_scales(m, most, m, keep, take);
            sum = merge(sum, part_sum, keep, take);
        }
        share(keep, take);
        [[unroll]] for (uint f = 0u; f < FOURS; f++) {
            const bvec4 seen = sees_split(f, split);
            const vec4 keeps = four(f, true), takes = four(f, false);
            [[unroll]] for (uint b = 0u; b < BLOCKS; b++)
                [[unroll]] for (uint i = 0u; i < 2u; i++)
                    all.acc[f][b][i] = mix(all.acc[f][b][i], merged(all.acc[f][b][i], part.acc[f][b][i], keeps, takes), seen);
        }
    }
    if ((p.flags & SH_ATTENTION_SINKS) != 0u) {
        merge_scales(m, F32(p.sinks).v[l.head + mine % l.n_heads], m, keep, take);
        sum = merge(sum, 1.0, keep, take);
        barrier(); // before the factors are written anew
        share(keep, take);
        [[unroll]] for (uint f = 0u; f < FOURS; f++)
            [[unroll]] for (uint b = 0u; b < BLOCKS; b++)
                [[unroll]] for (uint i = 0u; i < 2u; i++)
                    all.acc[f][b][i] = merged(all.acc[f][b][i], vec4(0.0), four(f, true), four(f, false));
    }
    barrier();
    share(sum, 0.0);
    [[unroll]] for (uint f = 0u; f < FOURS; f++)
        [[unroll]] for (uint b = 0u; b < BLOCKS; b++)
            [[unroll]] for (uint i = 0u; i < 2u; i++) {
                precise vec4 y = all.acc[f][b][i] / four(f, true);
                all.acc[f][b][i] = y;
            }
    [[unroll]] for (uint line = 0u; line < LINES; line++) {
        if (line >= l.n) continue;
        const uint to = (l.row + line / l.n_heads) * p.dst_stride + (l.head + line % l.n_heads) * v_dim;
        [[unroll]] for (uint b = 0u; b < BLOCKS; b++)
            [[unroll]] for (uint i = 0u; i < 2u; i++) {
                const uint e = 2u * (tid + 64u * b) + i;
                if (e < v_dim) F32Out(p.dst).v[to + e] = all.acc[line >> 2][b][i][line & 3u];
            }
    }
}

// attention.glsl - one split: softmax numerator, denominator and maximum over at most 256 cache positions, for LINES lines at once.
//
// A line is a row and a head. Those of a workgroup share a key/value head and stand in consecutive rows of one sequence, so that a key or
// a value is loaded once for all of them: 16 bytes of a key, or a pair of a value's elements, per thread and load, as stored (f32, or
// halves with -DCACHE_F16). What a line gets does not depend on the lines beside it.
//
// The arithmetic of a line: thread t makes the scores of positions t, t + 64, t + 128, t + 192 of the split, each an ascending chain of
// fma over the head's dimensions, then times the scale, capped, and minus slope * distance; the denominator is 64 ascending chains added
// in order; values are added position by position. Thread t owns the value pairs t, t + 64, ...; thread i < LINES the maximum and the
// denominator of line i. Positions that some line of the workgroup sees and another does not take part in no sum of the latter.
layout(push_constant) uniform Push { sh_pc_attention p; };
#include "attention_merge.glsl"
#include "math.glsl"

#ifdef LARGE
#define K_DIM SH_MAX_K_DIM
#define BLOCKS (SH_MAX_V_DIM / 128)
#define LINES SH_ATTENTION_LARGE_LINES
#else
#define K_DIM SH_SMALL_DIM
#define BLOCKS (SH_SMALL_DIM / 128)
#define LINES SH_ATTENTION_LINES
#endif
#define FOURS (LINES / 4)
#define KEYS (SH_SPLIT_TOKENS / 64)
#define LANES 65u // 64 sums of a line; odd, so that lines lie in different banks
shared vec4 q_shared[K_DIM * FOURS]; // [k_dim][LINES]
shared vec4 scores[SH_SPLIT_TOKENS * FOURS];
shared float lanes[LINES * LANES];
shared float line_most[LINES];
shared uvec4 line_first[FOURS], line_end[FOURS]; // each line sees the positions first .. end - 1; lines from n on none. Here, as scalar registers are short

struct Lines {
    uint row, head, n_heads, kv; // of the first line; heads stand beside each other, then come those of the next row
    uint n;
    uint first_page, n_pages;
    uint at, end;                    // the first row's position, and the end of what a row may see at all
    uint any_first, any_end, all_first, all_end;     // what one of them sees, and what each does
};
struct Sums { // of the lines, the elements of the value pairs
    vec4 acc[FOURS][BLOCKS][2];
};

// The heads of workgroup `x` of a row's n_kv * ceil(n_heads / n_kv / LINES), and `n_rows` rows from `row` on.
Lines lines_of(uint x, uint row, uint n_rows) {
    Lines l;
    const uint n_kv = p.heads >> 16, group = (p.heads & 0xffffu) / n_kv, chunks = (group + LINES - 1u) / LINES;
    l.kv = min(x / chunks, n_kv - 1u);
    const uint skip = (x % chunks) * LINES;
    l.row = row;
    l.head = l.kv * group + skip;
    l.n_heads = min(LINES, group - skip);
    l.n = min(LINES, n_rows * l.n_heads);
    const sh_p_row r = Rows(p.rows).v[row];
    l.first_page = r.first_page;
    l.n_pages = r.n_pages;
    l.at = r.position;
    l.end = r.end;
    visible(r.position, r.end, l.any_first, l.all_end);
    visible(r.position + (l.n - 1u) / l.n_heads, r.end, l.all_first, l.any_end);
    return l;
}

uvec2 page_of(Lines l, uint position) {
    return Pages(p.pages).v[l.first_page + min(position / SH_P_PAGE_TOKENS, l.n_pages - 1u)];
}

void load_queries(Lines l) { // and what the lines see
    const uint k_dim = p.dims & 0xffffu, kp = (k_dim + 7u) & ~7u;
    [[unroll]] for (uint i = 0u; i < LINES; i++) {
        const uint base = (l.row + i / l.n_heads) * p.q_stride + (l.head + i % l.n_heads) * k_dim;
        for (uint d = gl_LocalInvocationID.x; d < kp; d += 64u)
            q_shared[d * FOURS + (i >> 2)][i & 3u] = i < l.n && d < k_dim ? F32(p.q).v[base + d] : 0.0;
    }
    if (gl_LocalInvocationID.x < FOURS) {
        const uint f = gl_LocalInvocationID.x;
        const uvec4 line = 4u * f + uvec4(0u, 1u, 2u, 3u);
        uvec4 first, end;
        visible(l.at + line / l.n_heads, uvec4(l.end), first, end);
        line_first[f] = first;
        line_end[f] = mix(uvec4(0u), end, lessThan(line, uvec4(l.n)));
    }
    barrier();
}

bvec4 both(bvec4 a, bvec4 b) { return bvec4(a.x && b.x, a.y && b.y, a.z && b.z, a.w && b.w); }
bvec4 sees(uint f, uint position) {
    return both(lessThanEqual(line_first[f], uvec4(position)), lessThan(uvec4(position), line_end[f]));
}
// Which lines see any of a split.
bvec4 sees_split(uint f, uint split) {
    return both(lessThan(line_first[f], uvec4((split + 1u) * SH_SPLIT_TOKENS)), lessThan(uvec4(split * SH_SPLIT_TOKENS), line_end[f]));
}

// A score made of its product, where there is more to it than the scale.
float bend(float s, Lines l, uint line, uint key) {
    if (p.softcap != 0.0) s = p.softcap * tanh_of(s / p.softcap);
    if ((p.flags & SH_ATTENTION_SLOPES) == 0u) return s;
    const uint i = min(line, l.n - 1u), query = l.at + i / l.n_heads;
    precise float bias = F32(p.slopes).v[l.head + i % l.n_heads] * float(query > key ? query - key : key - query);
    precise float bent = s - bias;
    return bent;
}

void load_key(uvec2 keys, uint i, out vec4 a, out vec4 b) { // eight elements from the i-th on
#ifdef CACHE_F16
    const uvec4 w = U128(keys).v[i >> 3];
    a = vec4(unpackHalf2x16(w.x), unpackHalf2x16(w.y));
    b = vec4(unpackHalf2x16(w.z), unpackHalf2x16(w.w));
#else
    a = F128(keys).v[i >> 2];
    b = F128(keys).v[(i >> 2) + 1u];
#endif
}
vec2 load_pair(uvec2 values, uint pair) {
#ifdef CACHE_F16
    return unpackHalf2x16(U32(values).v[pair]);
#else
    return F64(values).v[pair];
#endif
}

// A split that some line sees. most and sum are of line gl_LocalInvocationID.x, where that is one; sums of all lines.
void split_part(Lines l, uint split, out float most, out float sum, out Sums part) {
    const uint tid = gl_LocalInvocationID.x, n_kv = p.heads >> 16;
    const uint kp = ((p.dims & 0xffffu) + 7u) & ~7u, vp = ((p.dims >> 16) + 7u) & ~7u;
    const uint pitch = (p.flags & SH_ATTENTION_V_IN_K) != 0u ? kp : vp; // of a value in the cache
    const uint first = split * SH_SPLIT_TOKENS, start = max(l.any_first, first) - first,
               count = min(SH_SPLIT_TOKENS, l.any_end - first); // positions start .. count - 1 of the split

    uvec2 keys[KEYS];
    uint base[KEYS];
    precise vec4 s[KEYS][FOURS];
    [[unroll]] for (uint j = 0u; j < KEYS; j++) {
        const uint position = first + clamp(tid + 64u * j, start, count - 1u); // what nobody sees may not be there
        keys[j] = at(page_of(l, position), p.k_offset);
        base[j] = ((position % SH_P_PAGE_TOKENS) * n_kv + l.kv) * kp;
        [[unroll]] for (uint f = 0u; f < FOURS; f++) s[j][f] = vec4(0.0);
    }
    for (uint d = 0u; d < kp; d += 8u) {
        vec4 q[8][FOURS];
        [[unroll]] for (uint i = 0u; i < 8u; i++)
            [[unroll]] for (uint f = 0u; f < FOURS; f++) q[i][f] = q_shared[(d + i) * FOURS + f];
        [[unroll]] for (uint j = 0u; j < KEYS; j++) {
            if (64u * j >= count || 64u * j + 64u <= start) continue;
            vec4 k[2];
            load_key(keys[j], base[j] + d, k[0], k[1]);
            [[unroll]] for (uint i = 0u; i < 8u; i++)
                [[unroll]] for (uint f = 0u; f < FOURS; f++) s[j][f] = fma(q[i][f], vec4(k[i >> 2][i & 3u]), s[j][f]);
        }
    }
    [[unroll]] for (uint j = 0u; j < KEYS; j++)
        [[unroll]] for (uint f = 0u; f < FOURS; f++) s[j][f] = s[j][f] * p.scale;
    if (p.softcap != 0.0 || (p.flags & SH_ATTENTION_SLOPES) != 0u) { // seldom: through shared memory, each thread its own, so as not to be unrolled
        [[unroll]] for (uint j = 0u; j < KEYS; j++)
            [[unroll]] for (uint f = 0u; f < FOURS; f++) scores[(tid + 64u * j) * FOURS + f] = s[j][f];
        for (uint i = 0u; i < KEYS * LINES; i++) {
            const uint t = tid + 64u * (i / LINES), line = i % LINES;
            scores[t * FOURS + line / 4u][line % 4u] = bend(scores[t * FOURS + line / 4u][line % 4u], l, line, first + t);
        }
        [[unroll]] for (uint j = 0u; j < KEYS; j++)
            [[unroll]] for (uint f = 0u; f < FOURS; f++) s[j][f] = scores[(tid + 64u * j) * FOURS + f];
    }
    vec4 greatest[FOURS];
    [[unroll]] for (uint f = 0u; f < FOURS; f++) {
        greatest[f] = vec4(NO_SCORE);
        [[unroll]] for (uint j = 0u; j < KEYS; j++) {
            const uint position = first + tid + 64u * j;
            greatest[f] = max(greatest[f], mix(vec4(NO_SCORE), s[j][f], sees(f, position)));
        }
        [[unroll]] for (uint c = 0u; c < 4u; c++) lanes[(4u * f + c) * LANES + tid] = greatest[f][c];
    }
    barrier();
    most = NO_SCORE;
    if (tid < LINES) {
        for (uint i = 0u; i < 64u; i += 16u)
            [[unroll]] for (uint c = 0u; c < 16u; c++) most = max(most, lanes[tid * LANES + i + c]);
        line_most[tid] = most;
    }
    barrier();
    [[unroll]] for (uint f = 0u; f < FOURS; f++) {
        const vec4 top = vec4(line_most[4u * f], line_most[4u * f + 1u], line_most[4u * f + 2u], line_most[4u * f + 3u]);
        precise vec4 all = vec4(0.0);
        [[unroll]] for (uint j = 0u; j < KEYS; j++) {
            const vec4 e = mix(vec4(0.0), exp(s[j][f] - top), sees(f, first + tid + 64u * j));
            scores[(tid + 64u * j) * FOURS + f] = e;
            all = all + e;
        }
        [[unroll]] for (uint c = 0u; c < 4u; c++) lanes[(4u * f + c) * LANES + tid] = all[c];
    }
    barrier();
    precise float chain = 0.0;
    if (tid < LINES)
        for (uint i = 0u; i < 64u; i += 16u)
            [[unroll]] for (uint c = 0u; c < 16u; c++) chain = chain + lanes[tid * LANES + i + c];
    sum = chain;

    [[unroll]] for (uint b = 0u; b < BLOCKS; b++) {
        precise vec4 acc[FOURS][2];
        [[unroll]] for (uint f = 0u; f < FOURS; f++) acc[f][0] = acc[f][1] = vec4(0.0);
        const uint pair = tid + 64u * b;
        if (2u * pair < vp) {
            for (uint t0 = start & ~7u; t0 < count; t0 += 8u) {
                const uvec2 values = at(page_of(l, first + t0), p.v_offset);
                const uint step = n_kv * pitch >> 1, i0 = (((first + t0) % SH_P_PAGE_TOKENS) * n_kv + l.kv) * pitch / 2u + pair;
                if (first + t0 >= l.all_first && first + t0 + 8u <= l.all_end) {
                    vec2 v[8];
                    [[unroll]] for (uint i = 0u; i < 8u; i++) v[i] = load_pair(values, i0 + i * step);
                    [[unroll]] for (uint i = 0u; i < 8u; i++)
                        [[unroll]] for (uint f = 0u; f < FOURS; f++) {
                            const vec4 e = scores[(t0 + i) * FOURS + f];
                            acc[f][0] = fma(e, vec4(v[i].x), acc[f][0]);
                            acc[f][1] = fma(e, vec4(v[i].y), acc[f][1]);
                        }
                } else {
                    for (uint t = max(t0, start); t < min(t0 + 8u, count); t++) {
                        const vec2 v = load_pair(values, i0 + (t - t0) * step);
                        [[unroll]] for (uint f = 0u; f < FOURS; f++) {
                            const vec4 e = scores[t * FOURS + f];
                            const bvec4 seen = sees(f, first + t);
                            precise vec4 x = fma(e, vec4(v.x), acc[f][0]), y = fma(e, vec4(v.y), acc[f][1]);
                            acc[f][0] = mix(acc[f][0], x, seen);
                            acc[f][1] = mix(acc[f][1], y, seen);
                        }
                    }
                }
            }
        }
        [[unroll]] for (uint f = 0u; f < FOURS; f++)
            [[unroll]] for (uint i = 0u; i < 2u; i++) part.acc[f][b][i] = acc[f][i];
    }
}

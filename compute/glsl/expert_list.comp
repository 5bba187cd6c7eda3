// expert_list.comp - the pairs (row, slot) of a ROUTE's result in order of their experts, and the items of work that they make.
//
// route [R][route_stride]: of row r the experts of slots 0 .. n_used - 1. list: `items` items of sixteen bytes {expert, first, pairs, 0},
// then the pairs as row * n_used + slot, those of expert 0 first, ascending. An item holds up to per_item pairs of one expert; expert e's
// items begin at first(e) / per_item + e, where first(e) is its first pair, which leaves room for all experts before it; items without
// pairs stand between them and at the end. items >= R * n_used / per_item + n_expert.
// A workgroup per expert; a thread takes a run of pairs, so that the order follows from the input alone. Any R.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
layout(local_size_x = 64) in;
layout(push_constant) uniform Push { sh_pc_expert_list p; };

shared uint lower[64], equal[64]; // pairs of each thread's run whose expert is a lower one, is this one

// Whatever stands there, it is one of n_expert.
uint expert_of(uint pair, uint n_used, uint n_expert) {
    const uint row = pair / n_used;
    const float e = F32(p.route).v[row * p.route_stride + pair - row * n_used];
    return e < float(n_expert) ? uint(max(e, 0.0)) : n_expert - 1u;
}

void main() {
    const uint tid = gl_LocalInvocationID.x, expert = gl_WorkGroupID.x;
    const uint n_used = p.experts & 0xffffu, n_expert = p.experts >> 16;
    const uint n_rows = p.by_output != 0u ? Step(p.step).v.n_outputs : Step(p.step).v.n_rows;
    const uint n_pairs = n_rows * n_used, run = (n_pairs + 63u) / 64u;
    const uint begin = min(tid * run, n_pairs), end = min(begin + run, n_pairs);
    uint n_lower = 0u, n_equal = 0u;
    for (uint i = begin; i < end; i++) {
        const uint e = expert_of(i, n_used, n_expert);
        n_lower += e < expert ? 1u : 0u;
        n_equal += e == expert ? 1u : 0u;
    }
    lower[tid] = n_lower;
    equal[tid] = n_equal;
    barrier();
    uint first = 0u, count = 0u, at = 0u;
    for (uint t = 0u; t < 64u; t++) {
        first += lower[t];
        at += t < tid ? equal[t] : 0u;
        count += equal[t];
    }
    at = 4u * p.items + first + at;
    for (uint i = begin; i < end && n_equal > 0u; i++)
        if (expert_of(i, n_used, n_expert) == expert) U32Out(p.list).v[at++] = i;
    const uint item = first / p.per_item + expert;
    const uint next = expert + 1u < n_expert ? (first + count) / p.per_item + expert + 1u : p.items;
    for (uint i = item + tid; i < next; i += 64u) {
        const uint done = min((i - item) * p.per_item, count);
        U128Out(p.list).v[i] = uvec4(expert, first + done, min(p.per_item, count - done), 0u);
    }
}

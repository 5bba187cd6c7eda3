// draw.comp - a token from a short list: of the chunks' largest logits (top.comp) the top_k largest, ranked; top_p and min_p cut
// the list as compute/sample/sample.h says; of what is left the largest logit / T + Gumbel(u), on ties the lowest id. The same bits as the
// host's: all numbers are of draw.h, and what is added up is added in the list's order, by each thread for itself.
//   tokens[o] = the id; NONE where no logit was a number. Where the largest logit is infinite it is that token.
// Workgroup 256, a thread for each token of the list. Grid: x over outputs. Shared: 7.1 KiB.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "head.glsl"
#include "draw.h"
#include "philox.glsl"
#include "select.glsl"
layout(local_size_x = 256) in;
layout(push_constant) uniform Push { sh_pc_sample p; };

shared uvec2 found[SH_SHORT_LIST], ranked[SH_SHORT_LIST];
shared float likely[SH_SHORT_LIST], keys[SH_SHORT_LIST];
shared uint n_found, n_kept;

uvec2 list;
uvec2 item(uint i) { return U64(list).v[i]; }

void main() {
    const uint tid = gl_LocalInvocationID.x, o = gl_WorkGroupID.x;
    if (o >= Step(p.step).v.n_outputs) return;
    const sh_p_output out_ = Outputs(p.outputs).v[o];
    if ((out_.flags & SH_OUTPUT_SHORT) == 0u) return;
    list = out_.list;
    const uint n_items = p.chunks * out_.top_k;
    if (tid == 0u) n_found = 0u;
    const uvec2 least = least_of_best(n_items, out_.top_k);
    for (uint i = tid; i < n_items; i += 256u) {
        const uvec2 v = item(i);
        if (v.x != 0u && at_least(v, least)) found[atomicAdd(n_found, 1u)] = v;
    }
    barrier();
    const uint n = n_found; // at most top_k
    if (n == 0u) {
        if (tid == 0u) U32Out(p.tokens).v[o] = SH_P_NONE;
        return;
    }
    if (tid < n) {
        uint rank = 0u;
        for (uint i = 0u; i < n; i++) rank += i != tid && at_least(found[i], found[tid]) ? 1u : 0u;
        ranked[rank] = found[tid];
    }
    if (tid == 0u) n_kept = n;
    barrier();
    const uvec2 mine = ranked[min(tid, n - 1u)];
    if (ranked[0].x == KEY_INFINITY || ranked[0].x == KEY_MINUS_INFINITY) {
        if (tid == 0u) U32Out(p.tokens).v[o] = ~ranked[0].y;
        return;
    }
    const float logit = logit_of(mine.x);
    const uint token = ~mine.y;
    const bool possible = tid < n && mine.x > KEY_MINUS_INFINITY;
    precise float below = logit - logit_of(ranked[0].x);
    likely[tid] = possible ? sh_exp_down(below) : 0.0;
    barrier();
    precise float before = 0.0, total = 0.0; // what stands before this token
    for (uint i = 0u; i < n; i++) {
        if (i == tid) before = total;
        total += likely[i];
    }
    precise float cut = out_.top_p * total;
    if (tid > 0u && tid < n && (!possible || before >= cut || likely[tid] < out_.min_p)) atomicMin(n_kept, tid);
    if (tid < n) {
        const uvec4 words = philox(uvec4(out_.choice, out_.position, token >> 2, 0u), uvec2(out_.seed_low, out_.seed_high));
        precise float key = logit * out_.inverse_temperature + sh_gumbel_of(words[token & 3u]);
        keys[tid] = key;
    }
    barrier();
    if (tid > 0u) return;
    uint best_at = 0u;
    for (uint i = 1u; i < n_kept; i++)
        if (keys[i] > keys[best_at] || (keys[i] == keys[best_at] && ranked[i].y > ranked[best_at].y)) best_at = i;
    U32Out(p.tokens).v[o] = ~ranked[best_at].y;
}

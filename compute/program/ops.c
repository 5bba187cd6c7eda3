/* The ops that a builder appends: shapes of inputs and weights are held against each other here. */
#include "compute/program/build.h"

#include <stdio.h>

static uint32_t result(struct sh_builder *b, uint32_t width, enum sh_rows rows, const char *stem) {
    char name[48];
    if (b->layer == SH_NONE) snprintf(name, sizeof name, "%s", stem);
    else snprintf(name, sizeof name, "blk.%u.%s", b->layer, stem);
    return sh_build_activation(b, width, rows, name);
}

static uint32_t append_op(struct sh_builder *b, struct sh_op op) {
    struct sh_program *p = b->program;
    if (b->code != SH_OK) return SH_NONE;
    if (!sh_grow((void **)&p->ops, &p->cap_ops, p->n_ops + 1, sizeof *p->ops))
        return sh_build_fail(b, SH_ERR_NO_MEMORY, "no memory for the program");
    op.layer = b->layer;
    op.on_host = b->on_host;
    p->ops[p->n_ops++] = op;
    return op.out;
}

static struct sh_op blank(enum sh_op_kind kind) {
    return (struct sh_op){.kind = kind,
                          .x = SH_NONE,
                          .y = SH_NONE,
                          .z = SH_NONE,
                          .u = SH_NONE,
                          .t = SH_NONE,
                          .out = SH_NONE,
                          .residual = SH_NONE,
                          .w = SH_NONE,
                          .bias = SH_NONE};
}

static struct sh_activation activation(const struct sh_builder *b, uint32_t a) { /* by value: the list may move */
    SH_ASSERT(a < b->program->n_activations);
    return b->program->activations[a];
}

static const struct sh_weight *weight(const struct sh_builder *b, uint32_t w) {
    SH_ASSERT(w < b->program->n_weights);
    return &b->program->weights[w];
}

uint32_t sh_build_embed(struct sh_builder *b, uint32_t w, enum sh_embed_index index, const char *stem) {
    if (b->code != SH_OK) return SH_NONE;
    struct sh_op op = blank(SH_OP_EMBED);
    op.w = w;
    op.embed = index;
    op.out = result(b, (uint32_t)weight(b, w)->cols, SH_ROWS_ALL, stem);
    return append_op(b, op);
}

uint32_t sh_build_norm(struct sh_builder *b, enum sh_norm_kind kind, uint32_t x, uint32_t n_groups, uint32_t w, uint32_t bias,
                       float eps, const char *stem) {
    if (b->code != SH_OK) return SH_NONE;
    const struct sh_activation in = activation(b, x);
    SH_ASSERT(n_groups > 0 && in.width % n_groups == 0);
    const uint64_t part = in.width / n_groups;
    SH_ASSERT(w == SH_NONE || weight(b, w)->cols == part || weight(b, w)->cols == in.width);
    SH_ASSERT(bias == SH_NONE || weight(b, bias)->cols == part || weight(b, bias)->cols == in.width);
    struct sh_op op = blank(SH_OP_NORM);
    op.x = x;
    op.w = w;
    op.bias = bias;
    op.eps = eps;
    op.norm.kind = kind;
    op.norm.n_groups = n_groups;
    op.out = result(b, in.width, in.rows, stem);
    return append_op(b, op);
}

static uint32_t matmul(struct sh_builder *b, uint32_t x, uint32_t w, uint32_t bias, uint32_t blocks, const char *stem) {
    if (b->code != SH_OK) return SH_NONE;
    const struct sh_activation in = activation(b, x);
    SH_ASSERT(blocks > 0 && weight(b, w)->cols * blocks == in.width && weight(b, w)->rows % blocks == 0);
    SH_ASSERT(bias == SH_NONE || weight(b, bias)->cols == weight(b, w)->rows);
    struct sh_op op = blank(SH_OP_MATMUL);
    op.x = x;
    op.w = w;
    op.bias = bias;
    op.blocks = blocks;
    op.out = result(b, (uint32_t)weight(b, w)->rows, in.rows, stem);
    const uint32_t out = append_op(b, op);
    return blocks == 1 ? sh_build_adapted(b, x, w, out, NULL, false, SH_NONE, stem) : out;
}

uint32_t sh_build_matmul(struct sh_builder *b, uint32_t x, uint32_t w, uint32_t bias, const char *stem) {
    return matmul(b, x, w, bias, 1, stem);
}

uint32_t sh_build_matmul_blocks(struct sh_builder *b, uint32_t x, uint32_t w, uint32_t blocks, const char *stem) {
    return matmul(b, x, w, SH_NONE, blocks, stem);
}

uint32_t sh_build_add(struct sh_builder *b, uint32_t x, uint32_t y, const char *stem) {
    if (b->code != SH_OK) return SH_NONE;
    const struct sh_activation in = activation(b, x), other = activation(b, y);
    SH_ASSERT(other.width == in.width && other.rows == in.rows);
    struct sh_op op = blank(SH_OP_ADD);
    op.x = x;
    op.y = y;
    op.out = result(b, in.width, in.rows, stem);
    return append_op(b, op);
}

static uint32_t unary(struct sh_builder *b, enum sh_unary kind, uint32_t x, float a, uint32_t w, const char *stem) {
    if (b->code != SH_OK) return SH_NONE;
    const struct sh_activation in = activation(b, x);
    struct sh_op op = blank(SH_OP_UNARY);
    op.x = x;
    op.w = w;
    op.unary.kind = kind;
    op.unary.a = a;
    op.out = result(b, in.width, in.rows, stem);
    return append_op(b, op);
}

uint32_t sh_build_unary(struct sh_builder *b, enum sh_unary kind, uint32_t x, float a, const char *stem) {
    SH_ASSERT(kind != SH_UNARY_SCALE_POSITION);
    return unary(b, kind, x, a, SH_NONE, stem);
}

uint32_t sh_build_scale_position(struct sh_builder *b, uint32_t x, uint32_t table, const char *stem) {
    if (b->code == SH_OK) SH_ASSERT(weight(b, table)->cols == 1 && activation(b, x).rows == SH_ROWS_ALL);
    return unary(b, SH_UNARY_SCALE_POSITION, x, 0, table, stem);
}

uint32_t sh_build_glu(struct sh_builder *b, enum sh_glu glu, uint32_t gate, uint32_t up, const char *stem) {
    if (b->code != SH_OK) return SH_NONE;
    const struct sh_activation x = activation(b, gate), y = activation(b, up);
    SH_ASSERT((x.width == y.width || x.width == 1) && x.rows == y.rows);
    struct sh_op op = blank(SH_OP_GLU);
    op.x = gate;
    op.y = up;
    op.glu = glu;
    op.out = result(b, y.width, y.rows, stem);
    return append_op(b, op);
}

uint32_t sh_build_concat(struct sh_builder *b, uint32_t x, uint32_t y, uint32_t n_heads, const char *stem) {
    if (b->code != SH_OK) return SH_NONE;
    const struct sh_activation left = activation(b, x), right = activation(b, y);
    SH_ASSERT(n_heads > 0 && left.width % n_heads == 0 && right.width % n_heads == 0 && left.rows == right.rows);
    struct sh_op op = blank(SH_OP_CONCAT);
    op.x = x;
    op.y = y;
    op.concat_heads = n_heads;
    op.out = result(b, left.width + right.width, left.rows, stem);
    return append_op(b, op);
}

uint32_t sh_build_gather_out(struct sh_builder *b, uint32_t x, const char *stem) {
    if (b->code != SH_OK) return SH_NONE;
    const struct sh_activation in = activation(b, x);
    SH_ASSERT(in.rows == SH_ROWS_ALL);
    struct sh_op op = blank(SH_OP_GATHER_OUT);
    op.x = x;
    op.out = result(b, in.width, SH_ROWS_OUT, stem);
    return append_op(b, op);
}

/* ---- attention ---- */

static void check_rotation(const struct sh_builder *b, const struct sh_build_attention *a) {
    SH_ASSERT(a->n_rot % 2 == 0 && a->rope_first <= a->k_dim && a->n_rot <= a->k_dim - a->rope_first);
    SH_ASSERT(a->n_rot == 0 ? a->rope_table == SH_NONE : weight(b, a->rope_table)->cols == a->n_rot);
}

static void set_rotation(struct sh_op *op, const struct sh_build_attention *a) {
    op->w = a->rope_table;
    op->rope.pairing = a->pairing;
    op->rope.first = a->rope_first;
    op->rope.n_rot = a->n_rot;
}

uint32_t sh_build_rope(struct sh_builder *b, const struct sh_build_attention *a, uint32_t x, uint32_t n_heads, const char *stem) {
    if (b->code != SH_OK) return SH_NONE;
    check_rotation(b, a);
    const struct sh_activation in = activation(b, x);
    SH_ASSERT(a->n_rot > 0 && in.width == n_heads * a->k_dim && in.rows == SH_ROWS_ALL);
    struct sh_op op = blank(SH_OP_ROPE);
    op.x = x;
    set_rotation(&op, a);
    op.attn.n_heads = n_heads;
    op.attn.k_dim = a->k_dim;
    op.out = result(b, in.width, SH_ROWS_ALL, stem);
    return append_op(b, op);
}

uint32_t sh_build_attend(struct sh_builder *b, const struct sh_build_attention *a, uint32_t q, uint32_t k, uint32_t v,
                         const char *rope_stem, const char *stem) {
    if (b->code != SH_OK) return SH_NONE;
    check_rotation(b, a);
    SH_ASSERT(a->n_kv_heads > 0 && a->n_heads % a->n_kv_heads == 0);
    SH_ASSERT(activation(b, q).width == a->n_heads * a->k_dim && activation(b, k).width == a->n_kv_heads * a->k_dim);
    SH_ASSERT(a->v_in_k ? v == SH_NONE && a->v_dim <= a->k_dim : activation(b, v).width == a->n_kv_heads * a->v_dim);
    SH_ASSERT(a->slopes == SH_NONE || weight(b, a->slopes)->cols == a->n_heads);
    SH_ASSERT(a->sinks == SH_NONE || weight(b, a->sinks)->cols == a->n_heads);
    struct sh_op op = blank(SH_OP_ROPE_CACHE);
    op.x = q;
    op.y = k;
    op.z = v;
    set_rotation(&op, a);
    op.attn.group = a->group;
    op.attn.layer_in_group = a->layer_in_group;
    op.attn.n_heads = a->n_heads;
    op.attn.n_kv_heads = a->n_kv_heads;
    op.attn.k_dim = a->k_dim;
    op.attn.v_dim = a->v_dim;
    op.attn.scale = a->scale;
    op.attn.softcap = a->softcap;
    op.attn.bidirectional = a->bidirectional;
    op.attn.window = a->window;
    op.attn.v_in_k = a->v_in_k;
    op.out = result(b, a->n_heads * a->k_dim, SH_ROWS_ALL, rope_stem);
    const uint32_t rotated = append_op(b, op);

    struct sh_op attention = blank(SH_OP_ATTENTION);
    attention.attn = op.attn;
    attention.x = rotated;
    attention.w = a->slopes;
    attention.bias = a->sinks;
    attention.out = result(b, a->n_heads * a->v_dim, SH_ROWS_ALL, stem);
    return append_op(b, attention);
}

/* ---- experts ---- */

static void set_experts(struct sh_op *op, const struct sh_build_experts *e) {
    SH_ASSERT(e->n_used > 0 && e->n_used <= e->n_expert);
    op->expert.n_expert = e->n_expert;
    op->expert.n_used = e->n_used;
    op->expert.gating = e->gating;
    op->expert.normalise = e->normalise;
    op->expert.scale = e->scale;
    op->expert.n_groups = e->n_groups;
    op->expert.n_groups_used = e->n_groups_used;
}

uint32_t sh_build_route(struct sh_builder *b, const struct sh_build_experts *e, uint32_t logits, uint32_t selection_bias,
                        const char *stem) {
    if (b->code != SH_OK) return SH_NONE;
    const struct sh_activation in = activation(b, logits);
    SH_ASSERT(in.width == e->n_expert && (selection_bias == SH_NONE || weight(b, selection_bias)->cols == e->n_expert));
    SH_ASSERT(e->n_groups <= 1 || (e->n_expert % e->n_groups == 0 && e->n_groups_used > 0 && e->n_groups_used <= e->n_groups &&
                                   e->n_used <= e->n_expert / e->n_groups * e->n_groups_used));
    struct sh_op op = blank(SH_OP_ROUTE);
    op.x = logits;
    op.bias = selection_bias;
    set_experts(&op, e);
    op.out = result(b, 2 * e->n_used, in.rows, stem);
    return append_op(b, op);
}

uint32_t sh_build_expert_matmul(struct sh_builder *b, const struct sh_build_experts *e, uint32_t x, bool per_slot, uint32_t route,
                                uint32_t w, uint32_t bias, const char *stem) {
    if (b->code != SH_OK) return SH_NONE;
    const struct sh_activation in = activation(b, x), chosen = activation(b, route);
    SH_ASSERT(chosen.width == 2 * e->n_used && chosen.rows == in.rows && weight(b, w)->rows % e->n_expert == 0);
    SH_ASSERT(in.width == weight(b, w)->cols * (per_slot ? e->n_used : 1));
    SH_ASSERT(bias == SH_NONE || weight(b, bias)->cols == weight(b, w)->rows);
    struct sh_op op = blank(SH_OP_EXPERT_MATMUL);
    op.x = x;
    op.y = route;
    op.w = w;
    op.bias = bias;
    set_experts(&op, e);
    op.expert.per_slot = per_slot;
    op.out = result(b, (uint32_t)(weight(b, w)->rows / e->n_expert) * e->n_used, in.rows, stem);
    return sh_build_adapted(b, x, w, append_op(b, op), e, per_slot, route, stem);
}

uint32_t sh_build_expert_sum(struct sh_builder *b, const struct sh_build_experts *e, uint32_t x, uint32_t route, const char *stem) {
    if (b->code != SH_OK) return SH_NONE;
    const struct sh_activation in = activation(b, x), chosen = activation(b, route);
    SH_ASSERT(in.width % e->n_used == 0 && chosen.width == 2 * e->n_used && chosen.rows == in.rows);
    struct sh_op op = blank(SH_OP_EXPERT_SUM);
    op.x = x;
    op.y = route;
    set_experts(&op, e);
    op.out = result(b, in.width / e->n_used, in.rows, stem);
    return append_op(b, op);
}

/* ---- recurrent ---- */

static struct sh_op recurrent(enum sh_op_kind kind, const struct sh_build_recurrent *s) {
    struct sh_op op = blank(kind);
    op.state.group = s->group;
    op.state.layer_in_group = s->layer_in_group;
    op.state.offset = s->offset;
    op.state.floats = s->floats;
    return op;
}

uint32_t sh_build_conv(struct sh_builder *b, const struct sh_build_recurrent *s, uint32_t x, uint32_t w, uint32_t bias,
                       const char *stem) {
    if (b->code != SH_OK) return SH_NONE;
    const struct sh_activation in = activation(b, x);
    SH_ASSERT(in.rows == SH_ROWS_ALL && weight(b, w)->rows == in.width && weight(b, w)->cols > 1 &&
              s->floats == in.width * (weight(b, w)->cols - 1) && (bias == SH_NONE || weight(b, bias)->cols == in.width));
    struct sh_op op = recurrent(SH_OP_CONV, s);
    op.x = x;
    op.w = w;
    op.bias = bias;
    op.d_conv = (uint32_t)weight(b, w)->cols;
    op.out = result(b, in.width, SH_ROWS_ALL, stem);
    return append_op(b, op);
}

uint32_t sh_build_scan(struct sh_builder *b, const struct sh_build_recurrent *s, uint32_t x, uint32_t dt, uint32_t bb, uint32_t c,
                       uint32_t a, uint32_t d, const char *stem) {
    if (b->code != SH_OK) return SH_NONE;
    const struct sh_activation in = activation(b, x);
    const uint64_t n_state = weight(b, a)->cols;
    SH_ASSERT(in.rows == SH_ROWS_ALL && activation(b, dt).width == in.width && activation(b, bb).width == n_state &&
              activation(b, c).width == n_state && weight(b, a)->rows == in.width && weight(b, d)->cols == in.width &&
              s->floats == in.width * n_state);
    struct sh_op op = recurrent(SH_OP_SCAN, s);
    op.x = x;
    op.y = dt;
    op.z = bb;
    op.u = c;
    op.w = a;
    op.bias = d;
    op.out = result(b, in.width, SH_ROWS_ALL, stem);
    return append_op(b, op);
}

uint32_t sh_build_delta_net(struct sh_builder *b, const struct sh_build_recurrent *s, const struct sh_build_delta *d, uint32_t q,
                            uint32_t k, uint32_t v, uint32_t decay, uint32_t beta, uint32_t a, uint32_t dt_bias, const char *stem) {
    if (b->code != SH_OK) return SH_NONE;
    SH_ASSERT(d->n_k_heads > 0 && d->n_v_heads % d->n_k_heads == 0);
    SH_ASSERT(activation(b, q).width == d->n_k_heads * d->k_dim && activation(b, k).width == d->n_k_heads * d->k_dim &&
              activation(b, v).width == d->n_v_heads * d->v_dim && activation(b, v).rows == SH_ROWS_ALL);
    SH_ASSERT(activation(b, decay).width == d->n_v_heads && activation(b, beta).width == d->n_v_heads &&
              weight(b, a)->cols == d->n_v_heads && weight(b, dt_bias)->cols == d->n_v_heads);
    SH_ASSERT(s->floats == (uint64_t)d->n_v_heads * d->k_dim * d->v_dim);
    struct sh_op op = recurrent(SH_OP_DELTA_NET, s);
    op.x = q;
    op.y = k;
    op.z = v;
    op.u = decay;
    op.t = beta;
    op.w = a;
    op.bias = dt_bias;
    op.delta.n_k_heads = d->n_k_heads;
    op.delta.n_v_heads = d->n_v_heads;
    op.delta.k_dim = d->k_dim;
    op.delta.v_dim = d->v_dim;
    op.delta.tiled = d->tiled;
    op.delta.scale = d->scale;
    op.out = result(b, d->n_v_heads * d->v_dim, SH_ROWS_ALL, stem);
    return append_op(b, op);
}

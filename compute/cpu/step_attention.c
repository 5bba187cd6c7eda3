/* Rotation, the key/value cache, and attention over it. */
#include "compute/cpu/step.h"

/* The pages of a group that belong to a sequence, and what they hold of the op's layer. */
static struct sh_ref_cache cache_of(const struct sh_cpu_step *s, const struct sh_op *op, uint32_t sequence) {
    const struct sh_cpu_pages *pages = &s->context->groups[op->attn.group];
    const struct sh_cpu_slot *slot = s->slot;
    const uint64_t k_offset = pages->layer_bytes * (op->attn.layer_in_group - pages->first_layer);
    return (struct sh_ref_cache){
        .kv_type = s->context->params.kv_type,
        .pages = slot->pages + slot->sequences[sequence].first_page[op->attn.group],
        .page_tokens = SH_PAGE_TOKENS,
        .k_offset = k_offset,
        .v_offset = op->attn.v_in_k ? k_offset : k_offset + pages->k_bytes,
        .n_kv_heads = op->attn.n_kv_heads,
        .k_dim = op->attn.k_dim,
        .v_dim = op->attn.v_dim,
        .v_in_k = op->attn.v_in_k,
    };
}

/* ---- rotation ---- */

static struct sh_ref_rope rope_of(const struct sh_op *op, uint32_t n_heads) {
    return (struct sh_ref_rope){.n_heads = n_heads,
                                .dim = op->attn.k_dim,
                                .first = op->rope.first,
                                .n_rot = op->w != SH_NONE ? op->rope.n_rot : 0,
                                .pairing = op->rope.pairing};
}

static const float *angles_of(const struct sh_cpu_step *s, const struct sh_op *op, uint32_t position) {
    const float *table = sh_step_vector(s, op->w);
    return table != NULL ? table + (size_t)position * op->rope.n_rot : NULL;
}

static void rope_rows(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    (void)worker;
    const struct sh_cpu_run *o = arg;
    const struct sh_ref_rope rope = rope_of(o->op, o->op->attn.n_heads);
    for (uint64_t r = begin; r < end; r++)
        o->step->kernels->rope(&rope, sh_step_buffer(o->step, o->op->x) + r * o->width,
                    angles_of(o->step, o->op, o->step->slot->rows[r].position),
                    sh_step_buffer(o->step, o->op->out) + r * o->width);
}

void sh_step_rope(struct sh_cpu_step *s, const struct sh_op *op) {
    struct sh_cpu_run o = {.step = s, .op = op, .n_rows = sh_step_rows(s, op->out), .width = sh_step_width(s, op->out)};
    sh_step_pool(s, o.n_rows, sh_step_grain(o.width), rope_rows, &o);
}

/* k stays as the matmul made it: the rotated key goes to the cache by way of the worker's scratch. */
static void rope_cache_rows(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    const struct sh_cpu_run *o = arg;
    const struct sh_cpu_step *s = o->step;
    const struct sh_op *op = o->op;
    float *key = sh_step_scratch(s, worker);
    const uint32_t k_width = sh_step_width(s, op->y), v_width = op->z != SH_NONE ? sh_step_width(s, op->z) : 0;
    const struct sh_ref_rope q_rope = rope_of(op, op->attn.n_heads), k_rope = rope_of(op, op->attn.n_kv_heads);
    for (uint64_t r = begin; r < end; r++) {
        const struct sh_step_row *row = &s->slot->rows[r];
        const float *angles = angles_of(s, op, row->position);
        const struct sh_ref_cache cache = cache_of(s, op, row->sequence);
        s->kernels->rope(&q_rope, sh_step_buffer(s, op->x) + r * o->width, angles, sh_step_buffer(s, op->out) + r * o->width);
        s->kernels->rope(&k_rope, sh_step_buffer(s, op->y) + r * k_width, angles, key);
        s->kernels->cache_store(&cache, row->position, key, op->z != SH_NONE ? sh_step_buffer(s, op->z) + r * v_width : NULL);
    }
}

void sh_step_rope_cache(struct sh_cpu_step *s, const struct sh_op *op) {
    struct sh_cpu_run o = {.step = s, .op = op, .n_rows = sh_step_rows(s, op->out), .width = sh_step_width(s, op->out)};
    sh_step_pool(s, o.n_rows, sh_step_grain(o.width), rope_cache_rows, &o);
}

/* ---- attention ---- */

struct attend {
    const struct sh_cpu_step *step;
    const struct sh_op *op;
    const float *slopes, *sinks;
    uint32_t n_parts;    /* the most of any row */
    uint32_t block_rows; /* rows of an item that is not in parts */
    uint64_t partial;
};
#define MOST_BLOCK_ROWS 64

/* Positions [*first, *end) that a row sees. */
static void visible(const struct sh_cpu_step *s, const struct sh_op *op, const struct sh_step_row *row, uint32_t *first,
                    uint32_t *end) {
    const uint32_t window = op->attn.window, p = row->position;
    if (!op->attn.bidirectional) {
        *first = window > 0 && p >= window ? p - window + 1 : 0;
        *end = p + 1;
        return;
    }
    const struct sh_cpu_sequence *q = &s->slot->sequences[row->sequence];
    const uint32_t length = s->slot->rows[q->first_row].position + q->n_rows, reach = window / 2;
    *first = window > 0 && p > reach ? p - reach : 0;
    *end = window > 0 && length - p > reach ? p + reach + 1 : length;
}

/* The attention of row r's heads of a kv head, over the cache of its sequence. */
static struct sh_ref_attention attention_of(const struct attend *o, uint64_t r, uint32_t kv_head,
                                            const struct sh_ref_cache *cache) {
    const struct sh_cpu_step *s = o->step;
    const struct sh_op *op = o->op;
    const uint32_t per_kv = op->attn.n_heads / op->attn.n_kv_heads, head = kv_head * per_kv;
    const struct sh_step_row *row = &s->slot->rows[r];
    struct sh_ref_attention a = {
        .cache = cache,
        .kv_head = kv_head,
        .n_heads = per_kv,
        .q = sh_step_buffer(s, op->x) + r * sh_step_width(s, op->x) + (size_t)head * op->attn.k_dim,
        .position = row->position,
        .scale = op->attn.scale,
        .softcap = op->attn.softcap,
        .slopes = o->slopes != NULL ? o->slopes + head : NULL,
        .sinks = o->sinks != NULL ? o->sinks + head : NULL,
        .out = sh_step_buffer(s, op->out) + r * sh_step_width(s, op->out) + (size_t)head * op->attn.v_dim,
    };
    visible(s, op, row, &a.first, &a.end);
    return a;
}

static uint32_t parts_of(uint32_t first, uint32_t end, uint32_t split) { return (end - 1) / split - first / split + 1; }

/* Items are (block of rows, kv head); the rows of one sequence in a block are computed together. */
static void attention_items(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    const struct attend *o = arg;
    const struct sh_cpu_step *s = o->step;
    const struct sh_step_row *rows = s->slot->rows;
    const uint32_t n_kv = o->op->attn.n_kv_heads;
    struct sh_ref_attention block[MOST_BLOCK_ROWS];
    for (uint64_t i = begin; i < end; i++) {
        uint64_t r = i / n_kv * o->block_rows;
        const uint64_t last = sh_min_u64(r + o->block_rows, s->slot->n_rows);
        while (r < last) {
            const struct sh_ref_cache cache = cache_of(s, o->op, rows[r].sequence);
            uint32_t n = 0;
            for (const uint32_t sequence = rows[r].sequence; r < last && rows[r].sequence == sequence; r++)
                block[n++] = attention_of(o, r, (uint32_t)(i % n_kv), &cache);
            s->kernels->attention(block, n, sh_step_scratch(s, worker));
        }
    }
}

/* Items are (row, kv head, part); those beyond a row's positions do nothing. */
static void attention_parts(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    const struct attend *o = arg;
    const struct sh_cpu_kernels *kernels = o->step->kernels;
    const uint32_t n_kv = o->op->attn.n_kv_heads;
    for (uint64_t i = begin; i < end; i++) {
        const uint64_t row = i / o->n_parts / n_kv;
        const struct sh_ref_cache cache = cache_of(o->step, o->op, o->step->slot->rows[row].sequence);
        const struct sh_ref_attention a = attention_of(o, row, (uint32_t)(i / o->n_parts % n_kv), &cache);
        const uint32_t part = (uint32_t)(i % o->n_parts);
        if (part >= parts_of(a.first, a.end, kernels->attention_split)) continue;
        kernels->attention_part(&a, part, (float *)o->step->context->partials.data + i * o->partial,
                                sh_step_scratch(o->step, worker));
    }
}

static void attention_joins(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    (void)worker;
    const struct attend *o = arg;
    const uint32_t n_kv = o->op->attn.n_kv_heads;
    for (uint64_t i = begin; i < end; i++) {
        const struct sh_ref_cache cache = cache_of(o->step, o->op, o->step->slot->rows[i / n_kv].sequence);
        const struct sh_ref_attention a = attention_of(o, i / n_kv, (uint32_t)(i % n_kv), &cache);
        o->step->kernels->attention_join(&a, (float *)o->step->context->partials.data + i * o->n_parts * o->partial);
    }
}

static uint32_t most_parts(const struct sh_cpu_step *s, const struct sh_op *op) {
    const uint32_t split = s->kernels->attention_split;
    uint32_t most = 1;
    for (uint32_t r = 0; split > 0 && r < s->slot->n_rows; r++) {
        uint32_t first, end;
        visible(s, op, &s->slot->rows[r], &first, &end);
        const uint32_t n = parts_of(first, end, split);
        if (n > most) most = n;
    }
    return most;
}

#define ITEMS_PER_WORKER 8 /* so that a worker that was held up, or has the rows that see most, can be helped */

/* Few rows over a long cache leave workers without an item of their own: then the parts of an item are shared out. How many rows
 * make an item shows in the time alone. */
void sh_step_attention(struct sh_cpu_step *s, const struct sh_op *op) {
    struct attend o = {.step = s,
                       .op = op,
                       .slopes = sh_step_vector(s, op->w),
                       .sinks = sh_step_vector(s, op->bias),
                       .n_parts = most_parts(s, op)};
    const uint32_t threads = s->model->device->threads, n_rows = s->slot->n_rows, n_kv = op->attn.n_kv_heads;
    const uint64_t items = (uint64_t)n_rows * n_kv;
    if (threads == 1 || o.n_parts == 1 || items > (uint64_t)SH_CPU_SPLIT_ITEMS * threads) {
        const uint32_t fits = s->kernels->attention_rows(op->attn.n_heads / n_kv);
        const uint64_t most = fits < MOST_BLOCK_ROWS ? fits : MOST_BLOCK_ROWS;
        o.block_rows = (uint32_t)sh_min_u64(most, sh_max_u64(1, items / ((uint64_t)threads * ITEMS_PER_WORKER)));
        sh_step_pool(s, (n_rows + o.block_rows - 1) / o.block_rows * (uint64_t)n_kv, 1, attention_items, &o);
        return;
    }
    o.partial = s->kernels->attention_partial(op->attn.n_heads / op->attn.n_kv_heads, op->attn.v_dim);
    sh_step_pool(s, items * o.n_parts, 1, attention_parts, &o);
    sh_step_pool(s, items, 1, attention_joins, &o);
}

void sh_step_attention_memory(const struct sh_exec_model *m, const struct sh_op *op, uint64_t n_positions,
                              struct sh_cpu_step_memory *need) {
    const struct sh_cpu_kernels *kernels = m->device->kernels;
    const uint32_t per_kv = op->attn.n_heads / op->attn.n_kv_heads;
    uint64_t seen = n_positions; /* by one row */
    if (op->attn.window > 0) seen = sh_min_u64(seen, op->attn.window + (op->attn.bidirectional ? UINT64_C(1) : 0));
    need->scratch = sh_max_u64(need->scratch, kernels->attention_scratch(per_kv, (uint32_t)seen, op->attn.k_dim, op->attn.v_dim));
    if (kernels->attention_split == 0) return;
    const uint64_t parts = seen / kernels->attention_split + 2; /* a window may begin and end within parts */
    need->partials = sh_max_u64(need->partials, kernels->attention_partial(per_kv, op->attn.v_dim) * parts * SH_CPU_SPLIT_ITEMS *
                                                    m->device->threads * sizeof(float));
}

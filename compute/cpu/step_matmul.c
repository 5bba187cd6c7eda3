/* Products: one matrix; or many, of which each takes some of the rows (experts, blocks of a block-diagonal matrix). */
#include "compute/cpu/step.h"

#define PIECES_PER_WORKER 8 /* so that a worker that was held up can be helped */
#define SMALL_PIECE 65536   /* multiply-adds; a smaller piece of a product is not worth handing to another thread */

/* Items of a matrix: two groups of rows each, as tables multiply two together. */
static uint64_t items_of(uint64_t groups) { return (groups + 1) / 2; }
/* Items that a worker takes at once, of n, where one costs `products` multiply-adds. */
static uint64_t grain_of_items(const struct sh_cpu_step *s, uint64_t n, uint64_t products) {
    return sh_max_u64(sh_min_u64(16, n / ((uint64_t)s->model->device->threads * PIECES_PER_WORKER) + 1),
                      SMALL_PIECE / sh_max_u64(1, products));
}

/* ---- one matrix ---- */

struct product {
    const struct sh_cpu_step *step;
    struct sh_cpu_matmul matmul;
    const float *x;
    uint32_t operand;
    uint64_t cols, operand_bytes, groups;
};

static void prepare_rows(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    (void)worker;
    const struct product *p = arg;
    p->step->kernels->prepare(p->operand, p->x + begin * p->cols, p->cols, (uint32_t)(end - begin),
                              (uint8_t *)p->step->context->operands.data + begin * p->operand_bytes);
}

static void matmul_items(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    const struct product *p = arg;
    p->step->kernels->matmul(&p->matmul, 2 * begin, sh_min_u64(2 * end, p->groups), sh_step_scratch(p->step, worker));
}

void sh_step_matmul(struct sh_cpu_step *s, const struct sh_op *op) {
    const struct sh_cpu_weight *w = sh_step_weight(s, op->w);
    const uint32_t n_rows = sh_step_rows(s, op->out);
    struct product p = {.step = s, .x = sh_step_buffer(s, op->x), .cols = w->matrix.cols};
    p.operand = s->kernels->operand(w->matrix.type);
    p.operand_bytes = s->kernels->operand_bytes(p.operand, p.cols);
    if (s->prepared != op->x || s->prepared_kind != p.operand) {
        sh_step_pool(s, n_rows, sh_step_grain(p.cols), prepare_rows, &p);
        sh_step_lap(s, op, 1, "operands");
        s->prepared = op->x;
        s->prepared_kind = p.operand;
    }
    p.matmul = (struct sh_cpu_matmul){
        .w = &w->matrix,
        .x = s->context->operands.data,
        .n_rows = n_rows,
        .bias = sh_step_vector(s, op->bias),
        .residual = sh_step_buffer(s, op->residual),
        .out = sh_step_buffer(s, op->out),
    };
    p.groups = (w->matrix.rows + s->kernels->group_rows - 1) / s->kernels->group_rows;
    const uint64_t items = items_of(p.groups), products = 2 * p.cols * s->kernels->group_rows * n_rows;
    sh_step_pool(s, items, grain_of_items(s, items, products), matmul_items, &p);
}

/* ---- many matrices ---- */

/*
 * Rows of x are cut into chunks of `cols`, rows of out into chunks of `part_rows`; chunk `source[i]` of x through matrix p makes
 * chunk `target[i]` of out, for i in [begin[p], begin[p + 1]). The chunks of one matrix are prepared side by side, so that it is
 * read once for all of them; their results go to their places by way of the staging memory, or, a single one's, at once.
 */
struct grouped {
    const struct sh_cpu_step *step;
    const struct sh_cpu_weight *w;
    uint32_t *begin, *active, *source, *target; /* [n_parts + 1], [n_parts], [n_chunks] twice */
    uint32_t n_active, n_chunks;                /* active: the matrices that have chunks */
    uint32_t operand;
    uint64_t cols, part_rows, operand_bytes, groups;
    const float *x, *bias, *residual;
    float *out;
};

/* The matrix of chunk i of out: of experts the one the row was routed to, of blocks the one at this place. */
static uint32_t part_of(const struct sh_cpu_step *s, const struct sh_op *op, uint32_t i) {
    if (op->kind == SH_OP_MATMUL) return i % op->blocks;
    const uint32_t n_used = op->expert.n_used;
    const float e = sh_step_buffer(s, op->y)[(size_t)(i / n_used) * 2 * n_used + i % n_used];
    return e >= 0.0f && e < (float)op->expert.n_expert ? (uint32_t)e : 0; /* another executor may have made the route of NaN */
}

/* Sorts the chunks by matrix, ascending within each. */
static void sort_chunks(struct grouped *g, const struct sh_op *op) {
    const struct sh_cpu_step *s = g->step;
    const uint32_t n_parts = g->w->n_parts;
    const bool shared_x = op->kind == SH_OP_EXPERT_MATMUL && !op->expert.per_slot;
    memset(g->begin, 0, (n_parts + 1) * sizeof *g->begin);
    for (uint32_t i = 0; i < g->n_chunks; i++) g->begin[part_of(s, op, i) + 1]++;
    g->n_active = 0;
    for (uint32_t p = 0; p < n_parts; p++) {
        if (g->begin[p + 1] > 0) g->active[g->n_active++] = p;
        g->begin[p + 1] += g->begin[p];
    }
    for (uint32_t i = 0; i < g->n_chunks; i++) { /* begin[p] runs ahead to begin[p + 1] */
        const uint32_t at = g->begin[part_of(s, op, i)]++;
        g->target[at] = i;
        g->source[at] = shared_x ? i / op->expert.n_used : i;
    }
    for (uint32_t p = n_parts; p > 0; p--) g->begin[p] = g->begin[p - 1];
    g->begin[0] = 0;
}

static void prepare_chunks(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    (void)worker;
    const struct grouped *g = arg;
    for (uint64_t i = begin; i < end; i++)
        g->step->kernels->prepare(g->operand, g->x + g->source[i] * g->cols, g->cols, 1,
                                  (uint8_t *)g->step->context->operands.data + i * g->operand_bytes);
}

/* Rows [n0, n1) of a matrix's chunks [first, first + n), from the staging memory to their places. */
static void unstage(const struct grouped *g, uint32_t first, uint32_t n, uint64_t n0, uint64_t n1) {
    const float *staged = (const float *)g->step->context->staging.data + first * g->part_rows;
    for (uint32_t i = 0; i < n; i++, staged += g->part_rows) {
        const uint64_t at = g->target[first + i] * g->part_rows;
        for (uint64_t k = n0; k < n1; k++) g->out[at + k] = g->residual != NULL ? staged[k] + g->residual[at + k] : staged[k];
    }
}

/* Groups [group0, group1) of rows of one matrix. */
static void run_part(const struct grouped *g, uint32_t part, uint64_t group0, uint64_t group1, void *scratch) {
    const struct sh_cpu_kernels *kernels = g->step->kernels;
    const struct sh_cpu_matrix w = sh_cpu_weight_part(g->w, part);
    const uint32_t first = g->begin[part], n = g->begin[part + 1] - first;
    const uint64_t at = g->target[first] * g->part_rows;
    const struct sh_cpu_matmul m = {
        .w = &w,
        .x = (const uint8_t *)g->step->context->operands.data + first * g->operand_bytes,
        .n_rows = n,
        .bias = g->bias != NULL ? g->bias + part * g->part_rows : NULL,
        .residual = n == 1 && g->residual != NULL ? g->residual + at : NULL,
        .out = n == 1 ? g->out + at : (float *)g->step->context->staging.data + first * g->part_rows,
    };
    kernels->matmul(&m, group0, group1, scratch);
    if (n > 1) unstage(g, first, n, group0 * kernels->group_rows, sh_min_u64(group1 * kernels->group_rows, g->part_rows));
}

/* Item i: item i % items of the active matrix i / items. */
static void run_items(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    const struct grouped *g = arg;
    const uint64_t items = items_of(g->groups);
    for (uint64_t i = begin; i < end;) {
        const uint64_t item = i % items, n = sh_min_u64(items - item, end - i);
        run_part(g, g->active[i / items], 2 * item, sh_min_u64(2 * (item + n), g->groups), sh_step_scratch(g->step, worker));
        i += n;
    }
}

void sh_step_grouped(struct sh_cpu_step *s, const struct sh_op *op) {
    const struct sh_cpu_weight *w = sh_step_weight(s, op->w);
    const uint32_t per_row = op->kind == SH_OP_MATMUL ? op->blocks : op->expert.n_used;
    struct grouped g = {
        .step = s,
        .w = w,
        .n_chunks = sh_step_rows(s, op->out) * per_row,
        .cols = w->matrix.cols,
        .part_rows = w->matrix.rows / w->n_parts,
        .x = sh_step_buffer(s, op->x),
        .bias = sh_step_vector(s, op->bias),
        .residual = sh_step_buffer(s, op->residual),
        .out = sh_step_buffer(s, op->out),
    };
    g.begin = s->context->routing.data;
    g.active = g.begin + w->n_parts + 1;
    g.source = g.active + w->n_parts;
    g.target = g.source + g.n_chunks;
    g.operand = s->kernels->operand(w->matrix.type);
    g.operand_bytes = s->kernels->operand_bytes(g.operand, g.cols);
    g.groups = (g.part_rows + s->kernels->group_rows - 1) / s->kernels->group_rows;
    sort_chunks(&g, op);
    sh_step_pool(s, g.n_chunks, sh_step_grain(g.cols), prepare_chunks, &g);
    sh_step_lap(s, op, 1, "operands");
    s->prepared = SH_NONE; /* these are in another order */
    const uint64_t items = g.n_active * items_of(g.groups), products = 2 * g.cols * s->kernels->group_rows * (g.n_chunks / g.n_active);
    sh_step_pool(s, items, grain_of_items(s, items, products), run_items, &g);
}

void sh_step_matmul_memory(const struct sh_exec_model *m, const struct sh_op *op, uint64_t max_rows,
                           struct sh_cpu_step_memory *need) {
    const struct sh_cpu_kernels *kernels = m->device->kernels;
    const struct sh_cpu_weight *w = &m->weights[op->w];
    const uint64_t chunks = max_rows * (op->kind == SH_OP_MATMUL ? op->blocks : op->expert.n_used);
    const uint64_t operand = kernels->operand_bytes(kernels->operand(w->matrix.type), w->matrix.cols);
    need->operands = sh_max_u64(need->operands, operand * chunks);
    need->scratch = sh_max_u64(need->scratch, kernels->matmul_scratch(w->matrix.cols));
    if (op->kind == SH_OP_MATMUL && op->blocks == 1) return;
    need->staging = sh_max_u64(need->staging, w->matrix.rows / w->n_parts * chunks * sizeof(float));
    need->routing = sh_max_u64(need->routing, (2 * (uint64_t)w->n_parts + 1 + 2 * chunks) * sizeof(uint32_t));
}

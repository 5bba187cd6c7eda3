/* Fusion of a segment's ops and the memory plan of its activations. */
#include "compute/program/program.h"

#include <stdlib.h>

/* Activations that stay to the end of the step: what enters and leaves the segment, and the program's results. */
static void mark_kept(const struct sh_segment *segment, bool *kept) {
    for (uint32_t i = 0; i < segment->n_inputs; i++) kept[segment->inputs[i]] = true;
    for (uint32_t i = 0; i < segment->n_outputs; i++) kept[segment->outputs[i]] = true;
    if (segment->program->hidden != SH_NONE) kept[segment->program->hidden] = true;
    if (segment->program->logits != SH_NONE) kept[segment->program->logits] = true;
}

static void count_reads(const struct sh_op *op, uint32_t *reads) {
    uint32_t list[SH_OP_READS];
    sh_op_reads(op, list);
    for (int i = 0; i < SH_OP_READS; i++)
        if (list[i] != SH_NONE) reads[list[i]]++;
}

/* MATMUL, then at once ADD of its result to something else that nobody but the ADD needs: the sum can be the matmul's own output.
 * The ADD must follow at once, so that its other operand is certainly made before. */
static bool takes_residual(const struct sh_op *matmul, const struct sh_op *add, const uint32_t *reads, const bool *kept) {
    if (matmul->kind != SH_OP_MATMUL || matmul->residual != SH_NONE || add->kind != SH_OP_ADD) return false;
    if ((add->x == matmul->out) == (add->y == matmul->out)) return false; /* neither, or x + x */
    return reads[matmul->out] == 1 && !kept[matmul->out];
}

/* ---- bundles ---- */

static bool is_product(const struct sh_op *op) { return op->kind == SH_OP_MATMUL && op->blocks <= 1 && op->residual == SH_NONE; }

static bool makes(const struct sh_op *products, uint32_t n, uint32_t activation) {
    for (uint32_t i = 0; i < n; i++)
        if (products[i].out == activation) return true;
    return false;
}

/* Is `op` made of these products alone, and of each of them? */
static bool is_tail(const struct sh_op *op, const struct sh_op *products, uint32_t n, const uint32_t *reads, const bool *kept) {
    for (uint32_t i = 0; i < n; i++)
        if (reads[products[i].out] != 1 || kept[products[i].out]) return false;
    if (!makes(products, n, op->x) || !makes(products, n, op->y)) return false; /* two different ones: each is read once */
    if (op->kind == SH_OP_GLU) return n == 2;
    if (op->kind != SH_OP_ROPE_CACHE) return false;
    return op->z == SH_NONE ? n == 2 : n == 3 && makes(products, n, op->z);
}

/* May what the op reads be a part of wider rows? */
static bool reads_parts(const struct sh_op *op) {
    switch (op->kind) {
    case SH_OP_NORM:
    case SH_OP_MATMUL:
    case SH_OP_ADD:
    case SH_OP_GLU:
    case SH_OP_CONCAT:
    case SH_OP_ROPE:
    case SH_OP_ROPE_CACHE: return true;
    default: return false;
    }
}

/* Activations that must have their slot's rows for themselves. */
static void mark_alone(const struct sh_segment *segment, const bool *kept, bool *alone) {
    for (uint32_t a = 0; a < segment->program->n_activations; a++) alone[a] = kept[a];
    for (uint32_t i = segment->first_op; i < segment->first_op + segment->n_ops; i++) {
        const struct sh_op *op = &segment->program->ops[i];
        uint32_t list[SH_OP_READS];
        sh_op_reads(op, list);
        for (int k = 0; k < SH_OP_READS; k++)
            if (list[k] != SH_NONE && !reads_parts(op)) alone[list[k]] = true;
    }
}

static struct sh_bundle bundle_at(const struct sh_op *ops, uint32_t n_ops, const uint32_t *reads, const bool *kept, const bool *must_be_alone) {
    const struct sh_bundle alone = {.n_ops = 1};
    struct sh_bundle b = {0};
    b.norm = ops[0].kind == SH_OP_NORM && n_ops > 1 && is_product(&ops[1]) && ops[1].x == ops[0].out;
    const struct sh_op *products = ops + b.norm, *end = ops + n_ops;
    while (products + b.n_products < end && b.n_products < SH_BUNDLE_PRODUCTS && is_product(products + b.n_products) &&
           products[b.n_products].x == products[0].x)
        b.n_products++;
    if (b.n_products == 0) return alone;
    b.tail = products + b.n_products < end && is_tail(products + b.n_products, products, b.n_products, reads, kept);
    b.beside = b.n_products > 1;
    for (uint32_t i = 0; i < b.n_products; i++) b.beside = b.beside && !must_be_alone[products[i].out];
    b.norm_inner = b.norm && reads[ops[0].out] == b.n_products && !kept[ops[0].out];
    b.n_ops = b.norm + b.n_products + b.tail;
    return b.n_ops > 1 ? b : alone;
}

static void find_bundles(struct sh_fused *f, uint32_t flags, const uint32_t *reads, const bool *kept, const bool *alone) {
    for (uint32_t i = 0; i < f->n_ops; i += f->bundles[i].n_ops)
        f->bundles[i] = (flags & SH_FUSE_BUNDLES) != 0 ? bundle_at(&f->ops[i], f->n_ops - i, reads, kept, alone)
                                                       : (struct sh_bundle){.n_ops = 1};
}

/* ---- the memory plan ---- */

/* Index of the last fused op of the last bundle that touches each activation (reads or makes it). */
static void find_last_use(const struct sh_fused *f, const bool *kept, uint32_t n_activations, uint32_t *last) {
    uint32_t end = 0; /* of the bundle */
    for (uint32_t i = 0; i < f->n_ops; i++) {
        const struct sh_op *op = &f->ops[i];
        if (f->bundles[i].n_ops > 0) end = i + f->bundles[i].n_ops - 1;
        uint32_t reads[SH_OP_READS];
        sh_op_reads(op, reads);
        for (int r = 0; r < SH_OP_READS; r++)
            if (reads[r] != SH_NONE) last[reads[r]] = end;
        last[op->out] = end;
    }
    for (uint32_t a = 0; a < n_activations; a++)
        if (kept[a]) last[a] = SH_NONE; /* never freed */
}

/* The free slot of the same row kind whose width fits best: first the narrowest that is wide enough, else the widest, which
 * grows. It will hold n_live activations. */
static uint32_t take_slot(struct sh_fused *f, uint32_t *live, uint32_t width, enum sh_rows rows, uint32_t n_live) {
    uint32_t best = SH_NONE;
    for (uint32_t s = 0; s < f->n_slots; s++) {
        if (live[s] > 0 || f->slots[s].rows != rows) continue;
        if (best == SH_NONE) {
            best = s;
            continue;
        }
        const uint32_t have = f->slots[s].width, top = f->slots[best].width;
        const bool better = have >= width ? top < width || have < top : top < width && have > top;
        if (better) best = s;
    }
    if (best == SH_NONE) {
        best = f->n_slots++;
        f->slots[best].width = 0;
        f->slots[best].rows = rows;
    }
    if (f->slots[best].width < width) f->slots[best].width = width;
    live[best] = n_live;
    return best;
}

/* A bundle's products side by side in one slot. */
static void take_side_by_side(const struct sh_program *p, struct sh_fused *f, uint32_t *live, const struct sh_op *products, uint32_t n) {
    uint32_t width = 0;
    for (uint32_t i = 0; i < n; i++) {
        f->column[products[i].out] = width;
        width += (p->activations[products[i].out].width + SH_COLUMN_ALIGN - 1) / SH_COLUMN_ALIGN * SH_COLUMN_ALIGN;
    }
    const uint32_t slot = take_slot(f, live, width, p->activations[products[0].out].rows, n);
    for (uint32_t i = 0; i < n; i++) {
        f->slot[products[i].out] = slot;
        f->pitch[products[i].out] = width;
    }
}

/* The input that an op's result may overwrite because each element is read by the one that writes it, before it does. */
static uint32_t in_place_of(const struct sh_op *op) {
    if (op->kind == SH_OP_MATMUL) return op->residual;
    if (op->kind == SH_OP_ROPE_CACHE) return op->x;
    return SH_NONE;
}

/* Gives back what nobody needs after the bundle that ends with op `i`. */
static void free_slots(const struct sh_fused *f, uint32_t *last, uint32_t *live, uint32_t first, uint32_t i) {
    const uint32_t out = f->ops[i].out;
    for (uint32_t o = first; o <= i; o++) {
        uint32_t touched[SH_OP_READS + 1];
        sh_op_reads(&f->ops[o], touched);
        touched[SH_OP_READS] = f->ops[o].out;
        for (int t = 0; t <= SH_OP_READS; t++) {
            const uint32_t a = touched[t];
            if (a == SH_NONE || last[a] != i) continue;
            if (a != out && f->slot[a] == f->slot[out]) continue; /* handed on in place */
            live[f->slot[a]]--;
            last[a] = SH_NONE; /* once */
        }
    }
}

static void plan_slots(const struct sh_segment *segment, struct sh_fused *f, uint32_t *last, uint32_t *live) {
    const struct sh_program *p = segment->program;
    for (uint32_t i = 0; i < segment->n_inputs; i++) {
        const uint32_t a = segment->inputs[i];
        f->slot[a] = take_slot(f, live, p->activations[a].width, p->activations[a].rows, 1);
    }
    uint32_t first = 0; /* of the bundle */
    for (uint32_t i = 0; i < f->n_ops; i++) {
        struct sh_op *op = &f->ops[i];
        if (f->bundles[i].n_ops > 0) first = i;
        const struct sh_bundle *bundle = &f->bundles[first];
        if (bundle->beside && i == first + bundle->norm) take_side_by_side(p, f, live, op, bundle->n_products);
        const struct sh_activation *out = &p->activations[op->out];
        const uint32_t over = in_place_of(op);
        if (f->slot[op->out] != SH_NONE) {
            SH_ASSERT(bundle->beside);
        } else if (over != SH_NONE && last[over] == i && over != op->y && over != op->z &&
                   (over != op->x || op->kind == SH_OP_ROPE_CACHE) && p->activations[over].width == out->width &&
                   f->pitch[over] == out->width && p->activations[over].rows == out->rows) {
            f->slot[op->out] = f->slot[over]; /* which lives on under its new name */
        } else {
            f->slot[op->out] = take_slot(f, live, out->width, out->rows, 1);
        }
        if (i + 1 == first + bundle->n_ops) free_slots(f, last, live, first, i);
    }
}

enum sh_code sh_fuse(const struct sh_segment *segment, uint32_t flags, struct sh_fused *out, struct sh_error *err) {
    const struct sh_program *p = segment->program;
    *out = (struct sh_fused){0};
    const uint32_t n = p->n_activations;
    bool *kept = sh_calloc(n, sizeof *kept), *alone = sh_calloc(n, sizeof *alone);
    uint32_t *reads = sh_calloc(n, sizeof *reads), *last = sh_calloc(n, sizeof *last), *live = sh_calloc(n, sizeof *live);
    out->ops = sh_calloc(segment->n_ops, sizeof *out->ops);
    out->bundles = sh_calloc(segment->n_ops, sizeof *out->bundles);
    out->last_source = sh_calloc(segment->n_ops, sizeof *out->last_source);
    out->slot = sh_calloc(n, sizeof *out->slot);
    out->column = sh_calloc(n, sizeof *out->column);
    out->pitch = sh_calloc(n, sizeof *out->pitch);
    out->slots = sh_calloc(n, sizeof *out->slots);
    enum sh_code code = SH_OK;
    if (kept == NULL || alone == NULL || live == NULL || reads == NULL || last == NULL || out->ops == NULL || out->bundles == NULL ||
        out->last_source == NULL || out->slot == NULL || out->column == NULL || out->pitch == NULL || out->slots == NULL) {
        sh_fused_finish(out);
        code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the plan of a segment of %u ops", segment->n_ops);
        goto done;
    }
    mark_kept(segment, kept);
    mark_alone(segment, kept, alone);
    const uint32_t end = segment->first_op + segment->n_ops;
    for (uint32_t i = segment->first_op; i < end; i++) count_reads(&p->ops[i], reads);

    for (uint32_t i = segment->first_op; i < end; i++) {
        struct sh_op *op = &out->ops[out->n_ops];
        *op = p->ops[i];
        if ((flags & SH_FUSE_RESIDUAL) != 0 && i + 1 < end && takes_residual(op, &p->ops[i + 1], reads, kept)) {
            const struct sh_op *add = &p->ops[i + 1];
            op->residual = add->x == op->out ? add->y : add->x;
            op->out = add->out;
            i++;
        }
        out->last_source[out->n_ops++] = i;
    }
    for (uint32_t a = 0; a < n; a++) {
        out->slot[a] = SH_NONE;
        out->pitch[a] = p->activations[a].width;
    }
    find_bundles(out, flags, reads, kept, alone);
    find_last_use(out, kept, n, last);
    plan_slots(segment, out, last, live);
done:
    free(kept);
    free(alone);
    free(live);
    free(reads);
    free(last);
    return code;
}

void sh_fused_finish(struct sh_fused *f) {
    free(f->ops);
    free(f->bundles);
    free(f->last_source);
    free(f->slot);
    free(f->column);
    free(f->pitch);
    free(f->slots);
    *f = (struct sh_fused){0};
}

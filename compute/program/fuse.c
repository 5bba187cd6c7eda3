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

/* ---- the memory plan ---- */

/* Index of the last fused op that touches each activation (reads or makes it). */
static void find_last_use(const struct sh_fused *f, const bool *kept, uint32_t n_activations, uint32_t *last) {
    for (uint32_t i = 0; i < f->n_ops; i++) {
        const struct sh_op *op = &f->ops[i];
        uint32_t reads[SH_OP_READS];
        sh_op_reads(op, reads);
        for (int r = 0; r < SH_OP_READS; r++)
            if (reads[r] != SH_NONE) last[reads[r]] = i;
        last[op->out] = i;
    }
    for (uint32_t a = 0; a < n_activations; a++)
        if (kept[a]) last[a] = SH_NONE; /* never freed */
}

/* The free slot of the same row kind whose width fits best: first the narrowest that is wide enough, else the widest, which
 * grows. */
static uint32_t take_slot(struct sh_fused *f, bool *busy, uint32_t width, enum sh_rows rows) {
    uint32_t best = SH_NONE;
    for (uint32_t s = 0; s < f->n_slots; s++) {
        if (busy[s] || f->slots[s].rows != rows) continue;
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
    busy[best] = true;
    return best;
}

/* The input that an op's result may overwrite because each element is read by the one that writes it, before it does. */
static uint32_t in_place_of(const struct sh_op *op) {
    if (op->kind == SH_OP_MATMUL) return op->residual;
    if (op->kind == SH_OP_ROPE_CACHE) return op->x;
    return SH_NONE;
}

static void plan_slots(const struct sh_segment *segment, struct sh_fused *f, const uint32_t *last, bool *busy) {
    const struct sh_program *p = segment->program;
    for (uint32_t i = 0; i < segment->n_inputs; i++) {
        const uint32_t a = segment->inputs[i];
        f->slot[a] = take_slot(f, busy, p->activations[a].width, p->activations[a].rows);
    }
    for (uint32_t i = 0; i < f->n_ops; i++) {
        struct sh_op *op = &f->ops[i];
        const struct sh_activation *out = &p->activations[op->out];
        const uint32_t over = in_place_of(op);
        if (over != SH_NONE && last[over] == i && over != op->y && over != op->z &&
            (over != op->x || op->kind == SH_OP_ROPE_CACHE) && p->activations[over].width == out->width &&
            p->activations[over].rows == out->rows) {
            f->slot[op->out] = f->slot[over]; /* stays busy, under its new name */
        } else {
            f->slot[op->out] = take_slot(f, busy, out->width, out->rows);
        }
        uint32_t touched[SH_OP_READS + 1];
        sh_op_reads(op, touched);
        touched[SH_OP_READS] = op->out;
        for (int t = 0; t <= SH_OP_READS; t++) {
            const uint32_t a = touched[t];
            if (a == SH_NONE || last[a] != i) continue;
            if (a != op->out && f->slot[a] == f->slot[op->out]) continue; /* handed on in place */
            busy[f->slot[a]] = false;
        }
    }
}

enum sh_code sh_fuse(const struct sh_segment *segment, uint32_t flags, struct sh_fused *out, struct sh_error *err) {
    const struct sh_program *p = segment->program;
    *out = (struct sh_fused){0};
    const uint32_t n = p->n_activations;
    bool *kept = sh_calloc(n, sizeof *kept), *busy = sh_calloc(n, sizeof *busy);
    uint32_t *reads = sh_calloc(n, sizeof *reads), *last = sh_calloc(n, sizeof *last);
    out->ops = sh_calloc(segment->n_ops, sizeof *out->ops);
    out->last_source = sh_calloc(segment->n_ops, sizeof *out->last_source);
    out->slot = sh_calloc(n, sizeof *out->slot);
    out->slots = sh_calloc(n, sizeof *out->slots);
    enum sh_code code = SH_OK;
    if (kept == NULL || busy == NULL || reads == NULL || last == NULL || out->ops == NULL || out->last_source == NULL ||
        out->slot == NULL || out->slots == NULL) {
        sh_fused_finish(out);
        code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the plan of a segment of %u ops", segment->n_ops);
        goto done;
    }
    mark_kept(segment, kept);
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
    for (uint32_t a = 0; a < n; a++) out->slot[a] = SH_NONE;
    find_last_use(out, kept, n, last);
    plan_slots(segment, out, last, busy);
done:
    free(kept);
    free(busy);
    free(reads);
    free(last);
    return code;
}

void sh_fused_finish(struct sh_fused *f) {
    free(f->ops);
    free(f->last_source);
    free(f->slot);
    free(f->slots);
    *f = (struct sh_fused){0};
}

/*
 * Gate OPS: the device runs a prompt and shows what every op made; then the scalar executor makes each op's result again from the
 * device's own inputs, so that a deviation is that op's and not what came before. An activation that the device fused away is taken from
 * the scalar executor.
 */
#include "compute/verify/verify.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/*
 * Limits, of a row's largest magnitude. Float arithmetic differs in the order of additions alone: some 1e-6 at K = 14336. Activations
 * rounded to 8 bits are off by up to 1/254 of their block's largest each; over K of them that averages to below a hundredth of the result,
 * and where a result is the small rest of large terms to a few.
 */
#define LIMIT_FLOAT 1e-4
#define LIMIT_ROUNDED 5e-2

struct judge {
    struct sh_verifier *v;
    uint32_t n_rows;
    uint32_t *shown;         /* activations of the present part of the program, ascending */
    const char **names;      /* [n_shown] */
    uint32_t n_shown;
    const float **device;    /* [n_activations] the device's values, lent by the context, or NULL: fused away */
    uint32_t *maker;         /* [n_activations] the op of this part that makes it, SH_NONE */
    struct subject {
        char name[56];
        double limit;
        struct sh_worst worst;
    } subjects[2 * SH_OP_KINDS + 64];
    uint32_t n_subjects;
};

/* The op that made an input of this one and was fused with it, so that both are judged as one; NULL: none. */
static const struct sh_op *fused_with(const struct judge *j, const struct sh_op *op) {
    uint32_t reads[SH_OP_READS];
    sh_op_reads(op, reads);
    for (int i = 0; i < SH_OP_READS; i++)
        if (reads[i] != SH_NONE && j->device[reads[i]] == NULL && j->maker[reads[i]] != SH_NONE)
            return &j->v->reference->program->ops[j->maker[reads[i]]];
    return NULL;
}

/* "matmul Q4_K"; *limit is raised to what such an op may deviate by. */
static void describe(const struct judge *j, const struct sh_op *op, char name[24], double *limit) {
    const bool product = op->kind == SH_OP_MATMUL || op->kind == SH_OP_EXPERT_MATMUL;
    if (!product) {
        snprintf(name, 24, "%s", sh_op_name(op->kind));
        return;
    }
    const uint32_t type = j->v->reference->program->weights[op->w].type;
    snprintf(name, 24, "%s %s", sh_op_name(op->kind), sh_type_info(type)->name);
    if (sh_verify_rounds(j->v->params->device, type)) *limit = LIMIT_ROUNDED;
}

static struct subject *subject_of(struct judge *j, const struct sh_op *op) {
    char own[24], before[24], name[sizeof j->subjects[0].name];
    double limit = LIMIT_FLOAT;
    describe(j, op, own, &limit);
    const struct sh_op *fused = fused_with(j, op);
    if (fused != NULL) {
        describe(j, fused, before, &limit);
        snprintf(name, sizeof name, "%s + %s", before, own);
    } else {
        snprintf(name, sizeof name, "%s", own);
    }
    for (uint32_t i = 0; i < j->n_subjects; i++)
        if (strcmp(j->subjects[i].name, name) == 0) return &j->subjects[i];
    SH_ASSERT(j->n_subjects < SH_COUNT(j->subjects));
    struct subject *s = &j->subjects[j->n_subjects++];
    *s = (struct subject){.limit = limit};
    memcpy(s->name, name, sizeof name);
    return s;
}

/* How far `found` is from `expected`, of the row's largest magnitude. Of a ROUTE only the weights count: experts that swap places in a tie
 * have equal ones. */
static double row_deviation(const struct sh_op *op, const float *expected, const float *found, uint32_t width) {
    double largest = 0, off = 0;
    const uint32_t from = op->kind == SH_OP_ROUTE ? width / 2 : 0;
    for (uint32_t i = from; i < width; i++) {
        const double e = (double)expected[i], d = fabs((double)found[i] - e);
        if (!(d <= off)) off = d; /* NaN stays */
        if (fabs(e) > largest) largest = fabs(e);
    }
    return off == 0 ? 0 : off / fmax(largest, 1e-30);
}

static void compare(struct judge *j, const struct sh_op *op) {
    const struct sh_activation *a = &j->v->reference->program->activations[op->out];
    struct subject *s = subject_of(j, op);
    const float *expected = j->v->reference->made[op->out], *found = j->device[op->out];
    for (uint32_t r = 0; r < j->n_rows; r++) {
        const double deviation = row_deviation(op, expected + (size_t)r * a->width, found + (size_t)r * a->width, a->width);
        if (sh_worst_note(&s->worst, deviation)) snprintf(s->worst.where, sizeof s->worst.where, "%s, position %u", a->name, r);
    }
}

/* ---- one part of the program: a layer, or what is in none ---- */

static void show(struct judge *j, bool *seen, uint32_t a) {
    if (a == SH_NONE || seen[a]) return;
    seen[a] = true;
    j->names[j->n_shown] = j->v->reference->program->activations[a].name;
    j->shown[j->n_shown++] = a;
}

static enum sh_code list_activations(struct judge *j, uint32_t layer, struct sh_error *err) {
    const struct sh_program *p = j->v->reference->program;
    bool *seen = sh_calloc(p->n_activations, sizeof *seen);
    if (seen == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the list of activations");
    j->n_shown = 0;
    for (uint32_t i = 0; i < p->n_ops; i++) {
        if (p->ops[i].layer != layer) continue;
        uint32_t reads[SH_OP_READS];
        sh_op_reads(&p->ops[i], reads);
        for (int k = 0; k < SH_OP_READS; k++) show(j, seen, reads[k]);
        show(j, seen, p->ops[i].out);
    }
    free(seen);
    return SH_OK;
}

/* The prompt's first rows on the device, with the activations shown. */
static enum sh_code run_device(struct judge *j, struct sh_context *c, struct sh_error *err) {
    const struct sh_verify_params *params = j->v->params;
    uint32_t sequence;
    struct sh_row *rows = sh_calloc(j->n_rows, sizeof *rows);
    if (rows == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a prompt");
    enum sh_code code = sh_context_capture(c, j->names, j->n_shown, err);
    if (code == SH_OK) code = sh_sequence_create(c, &sequence, err);
    if (code != SH_OK) {
        free(rows);
        return code;
    }
    for (uint32_t i = 0; i < j->n_rows; i++)
        rows[i] = (struct sh_row){.sequence = sequence,
                                  .input = SH_INPUT_TOKEN,
                                  .token = params->tokens[i],
                                  .position = i,
                                  .outputs = SH_OUT_HIDDEN};
    const struct sh_batch batch = {.rows = rows, .n_rows = j->n_rows};
    struct sh_results results;
    sh_ticket ticket = 0;
    code = sh_submit(c, &batch, &ticket, err);
    if (code == SH_OK) code = sh_wait(c, ticket, -1, &results, err);
    for (uint32_t i = 0; i < j->n_shown && code == SH_OK; i++) {
        uint32_t n, width;
        j->device[j->shown[i]] = sh_context_captured(c, ticket, i, &n, &width);
    }
    sh_sequence_destroy(c, sequence);
    free(rows);
    return code;
}

static enum sh_code judge_part(struct judge *j, uint32_t layer, struct sh_error *err) {
    struct sh_reference *r = j->v->reference;
    const struct sh_program *p = r->program;
    enum sh_code code = SH_OK;
    for (uint32_t i = 0; i < p->n_ops && code == SH_OK; i++) {
        const struct sh_op *op = &p->ops[i];
        if (op->layer != layer) continue;
        uint32_t reads[SH_OP_READS];
        sh_op_reads(op, reads);
        for (int k = 0; k < SH_OP_READS; k++) {
            const uint32_t a = reads[k];
            if (a == SH_NONE || j->device[a] == NULL) continue;
            const size_t bytes = (size_t)j->n_rows * p->activations[a].width * sizeof(float);
            if (r->made[a] == NULL) r->made[a] = malloc((size_t)r->max_rows * p->activations[a].width * sizeof(float));
            if (r->made[a] == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for activation %s", p->activations[a].name);
            memcpy(r->made[a], j->device[a], bytes);
        }
        code = sh_reference_run(r, i, j->v->params->tokens, j->n_rows, err);
        j->maker[op->out] = i;
        if (code == SH_OK && j->device[op->out] != NULL) compare(j, op);
    }
    return code;
}

static enum sh_code judge_all(struct judge *j, struct sh_error *err) {
    const struct sh_program *p = j->v->reference->program;
    struct sh_context *c = NULL;
    const struct sh_context_params params = {.size = sizeof params,
                                             .kv_type = SH_KV_F32,
                                             .max_sequences = 1,
                                             .max_batch_rows = j->n_rows,
                                             .max_outputs = j->n_rows,
                                             .kv_tokens = j->n_rows};
    enum sh_code code = sh_context_create(j->v->model, &params, &c, err);
    for (uint32_t part = 0; part <= p->n_layers && code == SH_OK; part++) {
        const uint32_t layer = part < p->n_layers ? part : SH_NONE;
        memset(j->device, 0, p->n_activations * sizeof *j->device);
        memset(j->maker, 0xff, p->n_activations * sizeof *j->maker); /* SH_NONE */
        code = list_activations(j, layer, err);
        if (code == SH_OK && j->n_shown > 0) code = run_device(j, c, err);
        if (code == SH_OK) code = judge_part(j, layer, err);
        if (code == SH_OK) code = sh_verify_progress(j->v, SH_VERIFY_OPS, (double)part / (p->n_layers + 1), err);
    }
    sh_context_destroy(c);
    return code;
}

enum sh_code sh_verify_ops(struct sh_verifier *v, struct sh_error *err) {
    const struct sh_program *p = v->reference->program;
    struct judge *j = sh_calloc(1, sizeof *j);
    if (j == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for gate ops");
    j->v = v;
    const uint32_t want = v->params->op_rows != 0 ? v->params->op_rows : 16;
    j->n_rows = want < v->params->n_tokens ? want : v->params->n_tokens;
    j->shown = sh_calloc(p->n_activations, sizeof *j->shown);
    j->names = sh_calloc(p->n_activations, sizeof *j->names);
    j->device = sh_calloc(p->n_activations, sizeof *j->device);
    j->maker = sh_calloc(p->n_activations, sizeof *j->maker);
    enum sh_code code = j->shown != NULL && j->names != NULL && j->device != NULL && j->maker != NULL
                            ? judge_all(j, err)
                            : sh_fail(err, SH_ERR_NO_MEMORY, "no memory for gate ops");
    for (uint32_t i = 0; i < j->n_subjects && code == SH_OK; i++) {
        const struct subject *s = &j->subjects[i];
        sh_verify_report(v, (struct sh_verify_line){.gate = SH_VERIFY_OPS,
                                                    .subject = s->name,
                                                    .checked = s->worst.checked,
                                                    .unit = "rows",
                                                    .worst = s->worst.value,
                                                    .limit = s->limit,
                                                    .measure = "of the row's largest",
                                                    .where = s->worst.where});
    }
    free(j->shown);
    free(j->names);
    free(j->device);
    free(j->maker);
    free(j);
    return code;
}

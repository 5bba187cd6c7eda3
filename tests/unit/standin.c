#include "tests/unit/standin.h"

#include "compute/program/build.h"
#include "tests/unit/core.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

struct standin standin;
static struct sh_error error;

/* ---- the stand-in ---- */

enum { MAX_COPIES = 32 };
struct sim_copy {
    uint32_t group, from, to, n;
};

struct sim_slot {
    struct sh_step_row rows[ROWS];
    struct sh_step_output outputs[ROWS];
    struct sh_step_sequence sequences[32];
    uint32_t pages[32][MAX_GROUPS][LONGEST / SH_PAGE_TOKENS + 2];
    uint32_t n_rows, n_outputs, n_sequences;
    float hidden[ROWS][WIDTH], logits[ROWS][VOCAB];
    const float *hidden_of[ROWS], *logits_of[ROWS];
    int32_t tokens[ROWS];
    struct sim_copy copies[MAX_COPIES];
    uint32_t n_copies;
};

struct sh_exec_context {
    const struct sh_program *program;
    uint64_t tokens[MAX_GROUPS][MAX_PAGES][SH_PAGE_TOKENS];
    uint64_t states[MAX_GROUPS][MAX_PAGES];
    uint32_t reserved[MAX_GROUPS];
    struct sim_slot slots[SH_SLOTS];
    struct sim_copy copies[MAX_COPIES];
    uint32_t n_copies;
};

static uint64_t mix(uint64_t a, uint64_t b) {
    uint64_t x = a * 0x9e3779b97f4a7c15ull + b + 0x632be59bd9b4e019ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static uint64_t token_hash(uint32_t group, uint32_t position, int32_t token) {
    return mix(mix(group, position), (uint64_t)token);
}

/* The first position that a row at `position` sees, and the end. */
static uint32_t seen_from(const struct sh_state_group *g, uint32_t position) {
    return g->kind == SH_STATE_WINDOWED && position + 1 > g->window ? position + 1 - g->window : 0;
}

static void spread(uint64_t h, float hidden[WIDTH]) {
    for (int i = 0; i < WIDTH; i++) hidden[i] = (float)((h >> (16 * i)) & 0xffff);
}

static struct sh_exec_context sim; /* one at a time */

static enum sh_code sim_context(struct sh_exec_model *m, const struct sh_exec_context_params *p, struct sh_exec_context **out,
                                struct sh_error *err) {
    (void)p;
    (void)err;
    memset(&sim, 0, sizeof sim);
    standin = (struct standin){0};
    sim.program = (const struct sh_program *)m;
    *out = &sim;
    return SH_OK;
}
static void sim_context_destroy(struct sh_exec_context *c) { (void)c; }
static void sim_memory(const struct sh_device *device, struct sh_device_memory *out) {
    (void)device;
    *out = (struct sh_device_memory){0};
}
static enum sh_code sim_reserve(struct sh_exec_context *c, uint32_t group, uint32_t n, struct sh_error *err) {
    assert_true(n <= MAX_PAGES);
    if (standin.reserve_most > 0 && n > standin.reserve_most)
        return sh_fail(err, SH_ERR_NO_DEVICE_MEMORY, "no device memory on demand");
    c->reserved[group] = n;
    return SH_OK;
}
static uint64_t sim_bytes(const struct sh_exec_context *c) { return c->reserved[0]; }

static enum sh_code sim_copy(struct sh_exec_context *c, uint32_t group, uint32_t from, uint32_t to, uint32_t n,
                             struct sh_error *err) {
    (void)err;
    assert_int_not_equal(c->program->groups[group].kind, SH_STATE_RECURRENT);
    assert_true(from < c->reserved[group] && to < c->reserved[group] && n < SH_PAGE_TOKENS);
    assert_true(c->n_copies < MAX_COPIES);
    c->copies[c->n_copies++] = (struct sim_copy){group, from, to, n}; /* with the step that is submitted next */
    return SH_OK;
}

static uint64_t sim_page_bytes(const struct sh_exec_context *c, uint32_t group) {
    return c->program->groups[group].kind == SH_STATE_RECURRENT ? sizeof c->states[0][0] : sizeof c->tokens[0][0];
}
static void *sim_page(struct sh_exec_context *c, uint32_t group, uint32_t page) {
    assert_true(page < c->reserved[group]);
    return c->program->groups[group].kind == SH_STATE_RECURRENT ? (void *)&c->states[group][page]
                                                                : (void *)c->tokens[group][page];
}
static enum sh_code sim_read(struct sh_exec_context *c, uint32_t group, uint32_t page, void *dst, struct sh_error *err) {
    (void)err;
    memcpy(dst, sim_page(c, group, page), sim_page_bytes(c, group));
    return SH_OK;
}
static enum sh_code sim_write(struct sh_exec_context *c, uint32_t group, uint32_t page, const void *src, struct sh_error *err) {
    (void)err;
    memcpy(sim_page(c, group, page), src, sim_page_bytes(c, group));
    return SH_OK;
}

static enum sh_code sim_submit(struct sh_exec_context *c, uint32_t slot, uint32_t segment, const struct sh_step *step,
                               struct sh_error *err) {
    assert_int_equal(segment, 0);
    struct sim_slot *s = &c->slots[slot];
    memcpy(s->copies, c->copies, c->n_copies * sizeof *s->copies);
    s->n_copies = c->n_copies;
    c->n_copies = 0;
    if (standin.fail_submit > 0 && --standin.fail_submit == 0) return sh_fail(err, SH_ERR_DEVICE, "submit fails on demand");
    s->n_rows = step->n_rows;
    s->n_outputs = step->n_outputs;
    s->n_sequences = step->n_sequences;
    memcpy(s->rows, step->rows, step->n_rows * sizeof *s->rows);
    memcpy(s->sequences, step->sequences, step->n_sequences * sizeof *s->sequences);
    memcpy(s->outputs, step->outputs, step->n_outputs * sizeof *s->outputs);
    for (uint32_t q = 0; q < step->n_sequences; q++)
        for (uint32_t g = 0; g < c->program->n_groups; g++) {
            const bool state = c->program->groups[g].kind == SH_STATE_RECURRENT;
            memcpy(s->pages[q][g], step->sequences[q].pages[g], (state ? 2 : step->sequences[q].n_pages) * sizeof(uint32_t));
        }
    return SH_OK;
}

static uint64_t sim_group(struct sh_exec_context *c, uint32_t g, const uint32_t *pages, const struct sh_step_row *row,
                          uint64_t *state, bool scribble) {
    const struct sh_state_group *group = &c->program->groups[g];
    if (group->kind == SH_STATE_RECURRENT) {
        *state = scribble ? mix(*state, 99) : mix(*state, (uint64_t)row->token);
        return *state;
    }
    const uint32_t p = row->position;
    assert_true(pages[p / SH_PAGE_TOKENS] < c->reserved[g]);
    uint64_t(*const stored)[SH_PAGE_TOKENS] = c->tokens[g];
    stored[pages[p / SH_PAGE_TOKENS]][p % SH_PAGE_TOKENS] = scribble ? 77 : token_hash(g, p, row->token);
    uint64_t h = g;
    for (uint32_t i = seen_from(group, p); i <= p && !scribble; i++) {
        assert_int_not_equal(pages[i / SH_PAGE_TOKENS], SH_NONE);
        h = mix(h, stored[pages[i / SH_PAGE_TOKENS]][i % SH_PAGE_TOKENS]);
    }
    return h;
}

static void sim_run(struct sh_exec_context *c, struct sim_slot *s, bool scribble) {
    for (uint32_t i = 0; i < s->n_copies; i++)
        memcpy(c->tokens[s->copies[i].group][s->copies[i].to], c->tokens[s->copies[i].group][s->copies[i].from],
               s->copies[i].n * sizeof(uint64_t));
    uint32_t out = 0;
    for (uint32_t q = 0; q < s->n_sequences; q++) {
        uint64_t states[MAX_GROUPS] = {0};
        const uint32_t n_groups = c->program->n_groups;
        for (uint32_t g = 0; g < n_groups; g++)
            if (c->program->groups[g].kind == SH_STATE_RECURRENT && s->pages[q][g][0] != SH_NONE)
                states[g] = c->states[g][s->pages[q][g][0]];
        for (uint32_t r = 0; r < s->sequences[q].n_rows; r++) {
            const struct sh_step_row *row = &s->rows[s->sequences[q].first_row + r];
            uint64_t h = 0;
            for (uint32_t g = 0; g < n_groups; g++) h = mix(h, sim_group(c, g, s->pages[q][g], row, &states[g], scribble));
            if (out < s->n_outputs && s->outputs[out].row == s->sequences[q].first_row + r) spread(h, s->hidden[out++]);
        }
        for (uint32_t g = 0; g < n_groups; g++) {
            if (c->program->groups[g].kind != SH_STATE_RECURRENT) continue;
            assert_int_not_equal(s->pages[q][g][0], s->pages[q][g][1]);
            c->states[g][s->pages[q][g][1]] = states[g];
        }
    }
    assert_int_equal(out, s->n_outputs);
}

static enum sh_code sim_wait(struct sh_exec_context *c, uint32_t slot, int64_t timeout, struct sh_step_result *result,
                             struct sh_error *err) {
    (void)timeout;
    struct sim_slot *s = &c->slots[slot];
    const bool fails = standin.fail_wait > 0 && --standin.fail_wait == 0;
    sim_run(c, s, fails);
    if (fails) return sh_fail(err, SH_ERR_DEVICE, "wait fails on demand");
    for (uint32_t i = 0; i < s->n_outputs; i++) {
        s->hidden_of[i] = s->outputs[i].want_hidden ? s->hidden[i] : NULL;
        s->logits_of[i] = s->outputs[i].want_logits ? s->logits[i] : NULL;
        s->tokens[i] = -1;
    }
    *result = (struct sh_step_result){.tokens = s->tokens, .hidden = s->hidden_of, .logits = s->logits_of};
    return SH_OK;
}

/* ---- the model ---- */

struct world *world_create(const struct kind *kind, const struct sh_context_params *params) {
    struct world *w = calloc(1, sizeof *w);
    struct sh_program *p = sh_program_create();
    assert_true(w != NULL && p != NULL);
    w->table = (struct sh_executor){.name = "stand-in",
                                    .context_create = sim_context,
                                    .context_destroy = sim_context_destroy,
                                    .pool_reserve = sim_reserve,
                                    .pool_bytes = sim_bytes,
                                    .page_copy = sim_copy,
                                    .page_bytes = sim_page_bytes,
                                    .page_read = sim_read,
                                    .page_write = sim_write,
                                    .submit = sim_submit,
                                    .wait = sim_wait,
                                    .device_memory = sim_memory};
    p->n_layers = 1;
    p->n_embd = WIDTH;
    p->n_vocab = VOCAB;
    p->context_length = LONGEST;
    p->n_groups = p->n_ops = kind->n_groups;
    p->n_activations = 2;
    p->activations = calloc(2, sizeof *p->activations);
    p->groups = calloc(kind->n_groups, sizeof *p->groups);
    p->ops = calloc(kind->n_groups, sizeof *p->ops);
    assert_true(p->groups != NULL && p->ops != NULL && p->activations != NULL);
    memcpy(p->groups, kind->groups, kind->n_groups * sizeof *p->groups);
    p->hidden = 0;
    p->logits = kind->no_logits ? SH_NONE : 1;
    p->encoder = kind->encoder;
    for (uint32_t g = 0; g < kind->n_groups; g++) {
        const bool state = kind->groups[g].kind == SH_STATE_RECURRENT;
        p->ops[g] = (struct sh_op){.kind = state ? SH_OP_SCAN : SH_OP_ROPE_CACHE, .out = 0};
        if (state) p->ops[g].state.group = g;
        else p->ops[g].attn.group = g;
    }
    w->device.executor = &w->table;
    w->devices[0] = &w->device;
    w->segment = (struct sh_segment){.program = p, .n_ops = p->n_ops};
    w->exec[0] = (struct sh_exec_model *)p; /* all that the stand-in knows of a model */
    w->model = (struct sh_model){.program = p,
                                 .spec = {.n_vocab = VOCAB, .n_embd = WIDTH, .context_length = LONGEST},
                                 .segments = &w->segment,
                                 .index_on_device = &w->index,
                                 .n_segments = 1,
                                 .exec = w->exec,
                                 .devices = w->devices,
                                 .n_devices = 1,
                                 .info = {.architecture = "stand-in"}};
    core_ok(sh_context_create(&w->model, params, &w->c, &error), &error);
    return w;
}

void world_destroy(struct world *w) {
    sh_context_destroy(w->c);
    sh_program_destroy(w->model.program);
    free(w);
}

void expect(const struct kind *kind, const int32_t *tokens, uint32_t position, float hidden[WIDTH]) {
    uint64_t h = 0;
    for (uint32_t g = 0; g < kind->n_groups; g++) {
        const bool state = kind->groups[g].kind == SH_STATE_RECURRENT;
        uint64_t of_group = state ? 0 : g;
        for (uint32_t i = state ? 0 : seen_from(&kind->groups[g], position); i <= position; i++)
            of_group = mix(of_group, state ? (uint64_t)tokens[i] : token_hash(g, i, tokens[i]));
        h = mix(h, of_group);
    }
    spread(h, hidden);
}

uint32_t new_sequence(struct world *w) {
    uint32_t id = 0;
    core_ok(sh_sequence_create(w->c, &id, &error), &error);
    return id;
}

bool page_holds(uint32_t group, uint32_t page, const int32_t *tokens, uint32_t first) {
    for (uint32_t i = 0; i < SH_PAGE_TOKENS; i++)
        if (sim.tokens[group][page][i] != token_hash(group, first + i, tokens[first + i])) return false;
    return true;
}

bool state_holds(uint32_t group, uint32_t page, const int32_t *tokens, uint32_t end) {
    uint64_t h = 0;
    for (uint32_t i = 0; i < end; i++) h = mix(h, (uint64_t)tokens[i]);
    return sim.states[group][page] == h;
}

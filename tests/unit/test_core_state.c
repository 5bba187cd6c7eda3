/*
 * Sequences under random treatment: whatever order of submissions (one or two in flight), copies, truncations, destructions and
 * refusals leads to a sequence's tokens, its logits are those of the same tokens computed afresh, and no page is lost.
 */
#include "compute/state/context.h"
#include "tests/unit/core.h"
#include "tests/unit/shared.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static struct sh_error error;
static char model_path[256];

enum { LIVE = 6, LONGEST = 120, PAGES = 14 };

static int write_model(void **state) {
    (void)state;
    core_write_small(model_path, sizeof model_path, "state.gguf");
    return 0;
}

struct mirror { /* what a sequence should hold */
    bool live;
    uint32_t id, length;
    int32_t tokens[LONGEST];
};

struct world {
    struct core_model m, oracle;
    struct test_rng rng;
    struct mirror s[LIVE];
    sh_ticket flight[2];
    uint32_t in_flight, checked, refused;
};

static uint32_t below(struct world *w, uint32_t n) { return (uint32_t)(test_random(&w->rng) % n); }

/* Logits of the last token of these, computed in another context from nothing. */
static void afresh(struct world *w, const int32_t *tokens, uint32_t n, float *logits) {
    const uint32_t s = core_sequence(&w->oracle);
    core_prefill(&w->oracle, s, tokens, n, 0, NULL, logits);
    sh_sequence_destroy(w->oracle.context, s);
}

static void wait_one(struct world *w) {
    if (w->in_flight == 0) return;
    struct sh_results results;
    core_ok(sh_wait(w->m.context, w->flight[0], -1, &results, &error), &error);
    for (uint32_t i = 0; i < results.count; i++) {
        float expected[260];
        const struct sh_result *r = &results.items[i];
        for (uint32_t k = 0; k < LIVE; k++) {
            if (!w->s[k].live || w->s[k].id != r->sequence || r->position >= w->s[k].length) continue;
            afresh(w, w->s[k].tokens, r->position + 1, expected);
            assert_memory_equal(r->logits, expected, sizeof expected);
            w->checked++;
        }
    }
    w->flight[0] = w->flight[1];
    w->in_flight--;
}

static void wait_all(struct world *w) {
    while (w->in_flight > 0) wait_one(w);
}

static void submit_some(struct world *w) {
    struct sh_row rows[LIVE * 48];
    uint32_t n = 0, more[LIVE] = {0};
    int32_t fresh[LIVE][48];
    const uint32_t start = below(w, LIVE);
    for (uint32_t i = 0; i < LIVE; i++) {
        const uint32_t k = (start + i) % LIVE;
        struct mirror *s = &w->s[k];
        if (!s->live || below(w, 2) == 0) continue;
        more[k] = 1 + below(w, below(w, 3) == 0 ? 47 : 4);
        if (s->length + more[k] > LONGEST) more[k] = LONGEST - s->length;
        for (uint32_t t = 0; t < more[k]; t++) {
            fresh[k][t] = (int32_t)below(w, 260);
            rows[n++] = (struct sh_row){.sequence = s->id,
                                        .token = fresh[k][t],
                                        .position = s->length + t,
                                        .outputs = t + 1 == more[k] ? SH_OUT_LOGITS : 0};
        }
    }
    if (n == 0) return;
    sh_ticket ticket;
    const enum sh_code code = sh_submit(w->m.context, &(struct sh_batch){rows, n}, &ticket, &error);
    if (code == SH_ERR_NO_PAGES) {
        w->refused++;
        for (uint32_t k = 0; k < LIVE; k++)
            if (w->s[k].live) assert_int_equal(sh_sequence_length(w->m.context, w->s[k].id), w->s[k].length);
        return;
    }
    core_ok(code, &error);
    for (uint32_t k = 0; k < LIVE; k++) {
        memcpy(w->s[k].tokens + w->s[k].length, fresh[k], more[k] * sizeof fresh[k][0]);
        w->s[k].length += more[k];
    }
    w->flight[w->in_flight++] = ticket;
}

static void change_something(struct world *w) {
    struct mirror *s = &w->s[below(w, LIVE)], *other = &w->s[below(w, LIVE)];
    switch (below(w, 4)) {
    case 0: /* a new one, perhaps as a copy, which may settle steps in flight */
        if (s->live) return;
        *s = (struct mirror){.live = true, .id = core_sequence(&w->m)};
        if (s == other || !other->live || other->length == 0) return;
        s->length = below(w, other->length + 1);
        core_ok(sh_sequence_copy(w->m.context, s->id, other->id, s->length, &error), &error);
        memcpy(s->tokens, other->tokens, s->length * sizeof s->tokens[0]);
        return;
    case 1:
        if (!s->live || below(w, 3) != 0) return;
        sh_sequence_destroy(w->m.context, s->id);
        s->live = false;
        return;
    default:
        if (!s->live) return;
        wait_all(w);
        s->length = below(w, s->length + 1);
        core_ok(sh_sequence_truncate(w->m.context, s->id, s->length, &error), &error);
    }
}

/* Every page's references are those of the tables that name it, and free pages are referred to by none. */
static void pages_add_up(const struct world *w) {
    const struct sh_context *c = w->m.context;
    const struct sh_page_pool *pool = &c->pools[0];
    uint32_t refs[PAGES] = {0}, used = 0;
    for (uint32_t i = 0; i < c->params.max_sequences; i++) {
        if (!c->sequences[i].used) continue;
        const struct sh_page_table *table = &c->sequences[i].tables[0];
        assert_int_equal(table->n, (c->sequences[i].length + 31) / 32);
        for (uint32_t p = 0; p < table->n; p++) refs[table->pages[p]]++;
    }
    for (uint32_t p = 0; p < PAGES; p++) {
        used += refs[p] > 0;
        if (p < pool->n_reserved) assert_int_equal(pool->refs[p], refs[p]);
        else assert_int_equal(refs[p], 0);
    }
    assert_int_equal(sh_page_pool_used(pool), used);
    struct sh_context_stats stats;
    sh_context_get_stats(c, &stats);
    assert_int_equal(stats.pages_used, used);
}

static void random_treatment(void **state) {
    (void)state;
    const char *names[CORE_MAX_DEVICES];
    const uint32_t n_devices = core_devices(names);
    for (uint32_t d = 0; d < n_devices; d++) {
        /* Destroyed sequences may linger until their step is waited for: room for those. */
        const struct sh_context_params params = {
            .size = sizeof params, .kv_type = d % 2 ? SH_KV_F32 : SH_KV_F16, .max_sequences = LIVE + 12, .kv_tokens = PAGES * 32};
        struct world w = {.rng = {d + 7}};
        core_load(&w.m, names[d], model_path, &params);
        core_load(&w.oracle, names[d], model_path, &params);
        const uint32_t rounds = sh_device_get_info(w.m.devices[0])->kind == SH_DEVICE_SOFTWARE ? 120 : 1200;
        for (uint32_t round = 0; round < rounds; round++) {
            if (w.in_flight == 2 || below(&w, 3) == 0) wait_one(&w);
            if (w.in_flight < 2 && below(&w, 3) != 0) submit_some(&w);
            change_something(&w);
            pages_add_up(&w);
        }
        wait_all(&w);
        assert_true(w.checked > rounds / 10 && (rounds < 500 || w.refused > 5));
        for (uint32_t k = 0; k < LIVE; k++)
            if (w.s[k].live) sh_sequence_destroy(w.m.context, w.s[k].id);
        pages_add_up(&w);
        assert_int_equal(sh_page_pool_used(&w.m.context->pools[0]), 0);
        core_unload(&w.m);
        core_unload(&w.oracle);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_treatment)};
    return cmocka_run_group_tests_name("core_state", tests, write_model, NULL);
}

/*
 * What a sequence remembers, by kind of group: paged, windowed, recurrent, and encoders, which remember nothing; on an executor
 * that stores hashes (standin.h).
 */
#include "tests/unit/core.h"
#include "tests/unit/shared.h"
#include "tests/unit/standin.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static struct sh_error error;

enum { LIVE = 5 };

static const struct kind kinds[] = {
    {"recurrent", {RECURRENT_GROUP}, 1, false, false},
    {"windowed", {WINDOWED_GROUP(40)}, 1, false, false},
    {"one", {WINDOWED_GROUP(1), PAGED_GROUP}, 2, false, false},
    {"hybrid", {PAGED_GROUP, RECURRENT_GROUP}, 2, false, false},
    {"all", {WINDOWED_GROUP(64), RECURRENT_GROUP, PAGED_GROUP, WINDOWED_GROUP(33)}, 4, false, false},
};

/* ---- random treatment ---- */

struct mirror {
    bool live;
    uint32_t id, length;
    uint32_t settled; /* the longest length that was finished since it was empty: windows have passed what is before */
    uint32_t snapshots[SH_MAX_SNAPSHOTS], n_snapshots;
    int32_t tokens[LONGEST];
};

struct flight {
    sh_ticket ticket;
    uint32_t length[LIVE], before[LIVE]; /* after and before the step; equal: not in it */
    uint32_t id[LIVE];
};

struct play {
    struct world *w;
    const struct kind *kind;
    struct test_rng rng;
    struct mirror s[LIVE];
    struct flight flights[2];
    uint32_t n_flights, checked, refused, failed, no_pages;
};

static uint32_t below(struct play *p, uint32_t n) { return (uint32_t)(test_random(&p->rng) % n); }

static bool has_recurrent(const struct kind *kind) {
    for (uint32_t g = 0; g < kind->n_groups; g++)
        if (kind->groups[g].kind == SH_STATE_RECURRENT) return true;
    return false;
}

static uint32_t page_of_window(const struct sh_state_group *g, uint32_t length) {
    return g->kind == SH_STATE_WINDOWED && length >= g->window ? (length - g->window + 1) / SH_PAGE_TOKENS : 0;
}

static bool can_go_back(const struct play *p, const struct mirror *s, uint32_t length) {
    if (length == 0 || length == s->length) return true;
    bool snapshot = !has_recurrent(p->kind);
    for (uint32_t i = 0; i < s->n_snapshots; i++) snapshot = snapshot || s->snapshots[i] == length;
    for (uint32_t g = 0; g < p->kind->n_groups; g++)
        if (page_of_window(&p->kind->groups[g], length) < page_of_window(&p->kind->groups[g], s->settled)) return false;
    return snapshot;
}

static void forget(struct mirror *s, uint32_t length) {
    s->length = length;
    if (length == 0) s->settled = 0;
    while (s->n_snapshots > 0 && s->snapshots[s->n_snapshots - 1] > length) s->n_snapshots--;
}

static void check_result(struct play *p, const struct sh_result *r) {
    for (uint32_t k = 0; k < LIVE; k++) {
        if (!p->s[k].live || p->s[k].id != r->sequence || r->position >= p->s[k].length) continue;
        float expected[WIDTH];
        expect(p->kind, p->s[k].tokens, r->position, expected);
        assert_memory_equal(r->hidden, expected, sizeof expected);
        p->checked++;
    }
}

/* The step in front is over: what became of the mirrors. */
static void settle_front(struct play *p, bool ok) {
    struct flight *f = &p->flights[0], *next = &p->flights[1];
    for (uint32_t k = 0; k < LIVE; k++) {
        struct mirror *s = &p->s[k];
        if (f->length[k] == f->before[k] || !s->live || s->id != f->id[k]) continue;
        if (ok) {
            if (f->length[k] > s->settled) s->settled = f->length[k];
            continue;
        }
        forget(s, f->before[k]);
        if (p->n_flights > 1) next->before[k] = next->length[k] = 0;
    }
}

static void pop(struct play *p) {
    p->flights[0] = p->flights[1];
    p->n_flights--;
}

static void wait_one(struct play *p) {
    if (p->n_flights == 0) return;
    bool poisoned = false;
    const struct flight *f = &p->flights[0], *next = &p->flights[1];
    for (uint32_t k = 0; k < LIVE && p->n_flights > 1; k++)
        poisoned = poisoned || (f->length[k] != f->before[k] && next->length[k] != next->before[k] && f->id[k] == next->id[k]);
    if (standin.fail_wait == 0 && below(p, 12) == 0) standin.fail_wait = 1;
    struct sh_results results;
    const bool fails = standin.fail_wait == 1;
    const enum sh_code code = sh_wait(p->w->c, f->ticket, -1, &results, &error);
    assert_int_equal(code, fails ? SH_ERR_DEVICE : SH_OK);
    for (uint32_t i = 0; i < results.count; i++) check_result(p, &results.items[i]);
    settle_front(p, !fails);
    pop(p);
    if (!fails) return;
    p->failed++;
    if (p->n_flights == 0) return;
    /* what builds on it fails with it, and with it whatever else was in that step */
    const enum sh_code late = sh_wait(p->w->c, p->flights[0].ticket, -1, &results, &error);
    assert_int_equal(late, poisoned ? SH_ERR_DEVICE : SH_OK);
    for (uint32_t i = 0; i < results.count; i++) check_result(p, &results.items[i]);
    settle_front(p, !poisoned);
    pop(p);
}

static void wait_all(struct play *p) {
    while (p->n_flights > 0) wait_one(p);
}

static void submit_some(struct play *p) {
    struct sh_row rows[ROWS];
    uint32_t n = 0;
    struct flight f = {0};
    const uint32_t start = below(p, LIVE);
    for (uint32_t i = 0; i < LIVE; i++) {
        const uint32_t k = (start + i) % LIVE;
        struct mirror *s = &p->s[k];
        f.before[k] = f.length[k] = s->length;
        f.id[k] = s->id;
        if (!s->live || below(p, 2) == 0) continue;
        uint32_t more = 1 + below(p, below(p, 3) == 0 ? 40 : 4);
        if (s->length + more > LONGEST) more = LONGEST - s->length;
        if (n + more > ROWS) more = ROWS - n;
        for (uint32_t t = 0; t < more; t++) {
            s->tokens[s->length + t] = (int32_t)below(p, VOCAB);
            rows[n++] = (struct sh_row){.sequence = s->id,
                                        .token = s->tokens[s->length + t],
                                        .position = s->length + t,
                                        .outputs = t % 3 == 0 || t + 1 == more ? SH_OUT_HIDDEN : 0};
        }
        f.length[k] += more;
    }
    if (n == 0) return;
    if (below(p, 15) == 0) standin.fail_submit = 1;
    const enum sh_code code = sh_submit(p->w->c, &(struct sh_batch){rows, n}, &f.ticket, &error);
    standin.fail_submit = 0;
    p->no_pages += code == SH_ERR_NO_PAGES;
    if (code != SH_OK) { /* nothing has changed */
        assert_true(code == SH_ERR_NO_PAGES || code == SH_ERR_DEVICE);
        for (uint32_t k = 0; k < LIVE; k++)
            if (p->s[k].live) assert_int_equal(sh_sequence_length(p->w->c, p->s[k].id), p->s[k].length);
        return;
    }
    for (uint32_t k = 0; k < LIVE; k++) p->s[k].length = f.length[k];
    p->flights[p->n_flights++] = f;
}

static void change_something(struct play *p) {
    struct mirror *s = &p->s[below(p, LIVE)], *other = &p->s[below(p, LIVE)];
    uint32_t length;
    switch (below(p, 6)) {
    case 0: /* a new one, perhaps as a copy */
        if (s->live) return;
        wait_all(p);
        *s = (struct mirror){.live = true, .id = new_sequence(p->w)};
        if (s == other || !other->live || other->length == 0) return;
        length = below(p, 2) ? other->length : below(p, other->length + 1);
        if (other->n_snapshots > 0 && below(p, 2)) length = other->snapshots[below(p, other->n_snapshots)];
        if (!can_go_back(p, other, length)) {
            assert_int_equal(sh_sequence_copy(p->w->c, s->id, other->id, length, &error), SH_ERR_UNSUPPORTED);
            assert_int_equal(sh_sequence_length(p->w->c, s->id), 0);
            p->refused++;
            return;
        }
        core_ok(sh_sequence_copy(p->w->c, s->id, other->id, length, &error), &error);
        memcpy(s->tokens, other->tokens, sizeof s->tokens);
        s->length = s->settled = length;
        return;
    case 1:
        if (!s->live || below(p, 4) != 0) return;
        sh_sequence_destroy(p->w->c, s->id);
        s->live = false;
        return;
    case 2:
        if (!s->live) return;
        wait_all(p);
        if (has_recurrent(p->kind) && s->n_snapshots == SH_MAX_SNAPSHOTS && s->snapshots[SH_MAX_SNAPSHOTS - 1] < s->length) {
            assert_int_equal(sh_sequence_snapshot(p->w->c, s->id, &error), SH_ERR_LIMIT);
            return;
        }
        core_ok(sh_sequence_snapshot(p->w->c, s->id, &error), &error);
        if (!has_recurrent(p->kind) || s->length == 0) return;
        if (s->n_snapshots == 0 || s->snapshots[s->n_snapshots - 1] < s->length) s->snapshots[s->n_snapshots++] = s->length;
        return;
    default:
        if (!s->live || below(p, 2) == 0) return;
        wait_all(p);
        length = below(p, 3) == 0 ? 0 : s->length - below(p, s->length < 20 ? s->length + 1 : 20);
        if (s->n_snapshots > 0 && below(p, 2)) length = s->snapshots[below(p, s->n_snapshots)];
        if (!can_go_back(p, s, length)) {
            assert_int_equal(sh_sequence_truncate(p->w->c, s->id, length, &error), SH_ERR_UNSUPPORTED);
            assert_int_equal(sh_sequence_length(p->w->c, s->id), s->length);
            p->refused++;
            return;
        }
        core_ok(sh_sequence_truncate(p->w->c, s->id, length, &error), &error);
        forget(s, length);
    }
}

/* Every page's references are those of tables, of states before a step, and of snapshots; and windows hold no more than they need
 * once nothing is in flight. */
static void pages_add_up(const struct play *p) {
    const struct sh_context *c = p->w->c;
    uint64_t used_in_all = 0;
    for (uint32_t g = 0; g < c->n_groups; g++) {
        uint32_t refs[MAX_PAGES] = {0}, used = 0;
        const struct sh_state_group *group = &p->kind->groups[g];
        for (uint32_t i = 0; i < c->params.max_sequences; i++) {
            const struct sh_sequence *s = &c->sequences[i];
            if (!s->used) continue;
            const struct sh_page_table *table = &s->tables[g];
            const bool state = group->kind == SH_STATE_RECURRENT;
            assert_int_equal(table->n, state ? s->length > 0 : (s->length + 31) / 32);
            for (uint32_t k = 0; k < table->n; k++) {
                assert_int_equal(table->pages[k] == SH_NONE, k < table->first);
                if (k >= table->first) refs[table->pages[k]]++;
            }
            if (group->kind == SH_STATE_WINDOWED && s->in_flight == 0)
                assert_true(table->n - table->first <= (group->window + 30) / 32 + 1);
            for (int k = 0; k < SH_SLOTS; k++)
                if (s->before[k][g] != SH_NONE) refs[s->before[k][g]]++;
            for (uint32_t k = 0; k < s->n_snapshots; k++)
                if (s->snapshots[k].pages[g] != SH_NONE) refs[s->snapshots[k].pages[g]]++;
        }
        for (uint32_t i = 0; i < MAX_PAGES; i++) {
            used += refs[i] > 0;
            assert_int_equal(i < c->pools[g].n_reserved ? c->pools[g].refs[i] : 0, refs[i]);
        }
        assert_int_equal(sh_page_pool_used(&c->pools[g]), used);
        used_in_all += used;
    }
    struct sh_context_stats stats;
    sh_context_get_stats(c, &stats);
    assert_int_equal(stats.pages_used, used_in_all);
}

static void random_treatment(void **state) {
    (void)state;
    for (size_t k = 0; k < SH_COUNT(kinds); k++) {
        /* Destroyed sequences may linger until their step is waited for: room for those. */
        const struct sh_context_params params = {
            .size = sizeof params, .max_sequences = LIVE + 10, .max_batch_rows = ROWS, .max_outputs = ROWS, .kv_tokens = 24 * 32};
        struct play *p = calloc(1, sizeof *p);
        assert_non_null(p);
        p->kind = &kinds[k];
        p->rng.state = k + 1;
        p->w = world_create(&kinds[k], &params);
        for (uint32_t round = 0; round < 6000; round++) {
            if (p->n_flights == 2 || below(p, 3) == 0) wait_one(p);
            if (p->n_flights < 2 && below(p, 3) != 0) submit_some(p);
            change_something(p);
            pages_add_up(p);
        }
        wait_all(p);
        assert_true(p->checked > 6000 && p->failed > 50);
        assert_true(p->refused > 50);
        for (uint32_t i = 0; i < LIVE; i++)
            if (p->s[i].live) sh_sequence_destroy(p->w->c, p->s[i].id);
        pages_add_up(p);
        for (uint32_t g = 0; g < p->kind->n_groups; g++) assert_int_equal(sh_page_pool_used(&p->w->c->pools[g]), 0);
        world_destroy(p->w);
        free(p);
    }
}

/* ---- windows ---- */

static void feed(struct world *w, uint32_t sequence, uint32_t n, uint32_t outputs, struct sh_results *results) {
    struct sh_row rows[ROWS];
    const uint32_t begin = sh_sequence_length(w->c, sequence);
    assert_true(n <= ROWS);
    for (uint32_t i = 0; i < n; i++)
        rows[i] = (struct sh_row){
            .sequence = sequence, .token = (int32_t)((begin + i) * 7 % VOCAB), .position = begin + i, .outputs = outputs};
    sh_ticket ticket;
    core_ok(sh_submit(w->c, &(struct sh_batch){rows, n}, &ticket, &error), &error);
    core_ok(sh_wait(w->c, ticket, -1, results, &error), &error);
}

/* A window's pages come back, and its pool is no larger than windows and chunks ask for. */
static void windows_give_pages_back(void **state) {
    (void)state;
    const struct kind kind = {"windowed", {WINDOWED_GROUP(40)}, 1, false, false};
    const struct sh_context_params params = {
        .size = sizeof params, .max_sequences = 2, .max_batch_rows = 64, .max_outputs = 64, .kv_tokens = 2 * LONGEST};
    struct world *w = world_create(&kind, &params);
    struct sh_context_stats stats;
    struct sh_results results;
    const uint32_t a = new_sequence(w), b = new_sequence(w);
    sh_context_get_stats(w->c, &stats);
    assert_int_equal(stats.pages_total, 2 * (2 + 2) + 2 * 2); /* 40 tokens and the ends of each sequence; two steps of 64 rows */
    for (uint32_t n = 0; n < LONGEST; n += 50) {
        feed(w, a, 50, 0, &results);
        sh_context_get_stats(w->c, &stats);
        assert_in_range(stats.pages_used, 2, 3);
    }
    assert_int_equal(sh_sequence_truncate(w->c, a, 200, &error), SH_ERR_UNSUPPORTED);
    assert_non_null(strstr(error.message, "window of 40"));
    assert_int_equal(sh_sequence_copy(w->c, b, a, 200, &error), SH_ERR_UNSUPPORTED);
    core_ok(sh_sequence_copy(w->c, b, a, LONGEST, &error), &error);
    core_ok(sh_sequence_truncate(w->c, a, 0, &error), &error);
    sh_context_get_stats(w->c, &stats);
    assert_in_range(stats.pages_used, 2, 3);
    core_ok(sh_sequence_truncate(w->c, b, 0, &error), &error);
    sh_context_get_stats(w->c, &stats);
    assert_int_equal(stats.pages_used, 0);
    world_destroy(w);
}

static void feed_long(struct world *w, uint32_t sequence, uint32_t n) {
    struct sh_results results;
    for (uint32_t k; n > 0; n -= k) {
        k = n < 50 ? n : 50;
        feed(w, sequence, k, 0, &results);
    }
}

/* What may be entered on trial can be taken back, and of a window not a row more. */
static void rows_on_trial(void **state) {
    (void)state;
    const struct kind windows[] = {{"windowed", {WINDOWED_GROUP(40)}, 1, false, false}, {"narrow", {WINDOWED_GROUP(1)}, 1, false, false}};
    struct sh_context_params params = {
        .size = sizeof params, .max_sequences = 1, .max_batch_rows = 64, .max_outputs = 64, .kv_tokens = LONGEST};
    for (uint32_t k = 0; k < 2 * SH_COUNT(windows); k++) {
        params.back_tokens = k < SH_COUNT(windows) ? 0 : 64;
        struct world *w = world_create(&windows[k % SH_COUNT(windows)], &params);
        const uint32_t a = new_sequence(w);
        for (uint32_t n = 0; n < 120; n++) {
            const uint32_t undoable = sh_sequence_undoable(w->c, a);
            assert_true(undoable >= params.back_tokens && undoable < 80 + params.back_tokens);
            for (uint32_t more = 0; more < 2; more++) {
                core_ok(sh_sequence_truncate(w->c, a, 0, &error), &error);
                feed_long(w, a, n);
                feed_long(w, a, 1 + undoable + more);
                const enum sh_code expected = more ? SH_ERR_UNSUPPORTED : SH_OK;
                assert_int_equal(sh_sequence_truncate(w->c, a, n + 1, &error), expected);
            }
            core_ok(sh_sequence_truncate(w->c, a, 0, &error), &error);
            feed_long(w, a, n + 1);
        }
        world_destroy(w);
    }
    const struct kind paged = {"paged", {PAGED_GROUP}, 1, false, false}, recurrent = {"recurrent", {RECURRENT_GROUP}, 1, false, false};
    struct world *w = world_create(&paged, &params);
    assert_int_equal(sh_sequence_undoable(w->c, new_sequence(w)), UINT32_MAX);
    world_destroy(w);
    w = world_create(&recurrent, &params);
    assert_int_equal(sh_sequence_undoable(w->c, new_sequence(w)), 0);
    world_destroy(w);
}

/* ---- encoders, and models without logits ---- */

static void encoders_take_a_text_whole(void **state) {
    (void)state;
    const struct kind kind = {"encoder", {PAGED_GROUP}, 1, true, true};
    const struct sh_context_params params = {
        .size = sizeof params, .max_sequences = 3, .max_batch_rows = 64, .max_outputs = 64, .kv_type = SH_KV_F16};
    struct world *w = world_create(&kind, &params);
    assert_int_equal(w->c->params.kv_type, SH_KV_F32);
    struct sh_results results;
    const uint32_t a = new_sequence(w), b = new_sequence(w);
    feed(w, a, 40, SH_OUT_HIDDEN, &results);
    assert_int_equal(results.count, 40);
    struct sh_context_stats stats;
    sh_context_get_stats(w->c, &stats);
    assert_int_equal(stats.pages_used, 0); /* scratch */
    assert_int_equal(sh_sequence_length(w->c, a), 40);
    const struct sh_row more = {.sequence = a, .token = 1, .position = 40, .outputs = SH_OUT_HIDDEN};
    sh_ticket ticket;
    assert_int_equal(sh_submit(w->c, &(struct sh_batch){&more, 1}, &ticket, &error), SH_ERR_INVALID);
    assert_non_null(strstr(error.message, "whole"));
    assert_int_equal(sh_sequence_copy(w->c, b, a, 40, &error), SH_ERR_UNSUPPORTED);
    assert_int_equal(sh_sequence_truncate(w->c, a, 20, &error), SH_ERR_UNSUPPORTED);
    core_ok(sh_sequence_truncate(w->c, a, 0, &error), &error);
    static const uint32_t refused[] = {SH_OUT_SAMPLE, SH_OUT_LOGITS, SH_OUT_SAMPLE | SH_OUT_LOGPROBS};
    for (size_t i = 0; i < SH_COUNT(refused); i++) {
        const struct sh_row row = {.sequence = b, .token = 1, .outputs = refused[i]};
        assert_int_equal(sh_submit(w->c, &(struct sh_batch){&row, 1}, &ticket, &error), SH_ERR_UNSUPPORTED);
        assert_non_null(strstr(error.message, "no output layer"));
    }
    feed(w, a, 33, SH_OUT_HIDDEN, &results);
    world_destroy(w);
}

/* ---- pooling ---- */

static void pooled_of(struct world *w, enum sh_pooling pooling, uint32_t n, uint32_t chunk, float *out) {
    struct sh_results results = {0};
    const uint32_t s = new_sequence(w);
    core_ok(sh_sequence_set_pooling(w->c, s, pooling, &error), &error);
    for (uint32_t at = 0; at < n; at += chunk) {
        feed(w, s, chunk < n - at ? chunk : n - at, SH_OUT_POOLED, &results);
        for (uint32_t i = 0; i < results.count; i++) {
            assert_null(results.items[i].hidden);
            memcpy(out + (at + i) * WIDTH, results.items[i].pooled, WIDTH * sizeof *out);
        }
    }
    sh_sequence_destroy(w->c, s);
}

static void pooled_rows(void **state) {
    (void)state;
    const struct kind kind = {"paged", {PAGED_GROUP}, 1, false, false};
    const struct sh_context_params params = {.size = sizeof params, .max_sequences = 3, .max_batch_rows = 64, .max_outputs = 64};
    struct world *w = world_create(&kind, &params);
    enum { N = 60 };
    int32_t tokens[N];
    for (int i = 0; i < N; i++) tokens[i] = i * 7 % VOCAB;
    static const enum sh_pooling all[] = {SH_POOL_NONE, SH_POOL_MEAN, SH_POOL_CLS, SH_POOL_LAST};
    for (size_t k = 0; k < SH_COUNT(all); k++) {
        float whole[N * WIDTH], found[N * WIDTH], hidden[WIDTH];
        double sum[WIDTH] = {0};
        pooled_of(w, all[k], N, N, whole);
        for (uint32_t p = 0; p < N; p++) {
            expect(&kind, tokens, all[k] == SH_POOL_CLS ? 0 : p, hidden);
            for (int i = 0; i < WIDTH; i++) {
                sum[i] += (double)hidden[i];
                const double expected = all[k] == SH_POOL_MEAN ? sum[i] / (p + 1) : (double)hidden[i];
                assert_true((double)whole[p * WIDTH + (uint32_t)i] - expected < 1e-2 &&
                            expected - (double)whole[p * WIDTH + (uint32_t)i] < 1e-2);
            }
        }
        for (uint32_t chunk = 1; chunk < N; chunk += 11) {
            pooled_of(w, all[k], N, chunk, found);
            assert_memory_equal(found, whole, sizeof whole);
        }
    }

    struct sh_results results;
    const uint32_t s = new_sequence(w), t = new_sequence(w);
    sh_ticket ticket;
    core_ok(sh_sequence_set_pooling(w->c, s, SH_POOL_MEAN, &error), &error);
    feed(w, s, 3, SH_OUT_POOLED, &results);
    assert_int_equal(sh_sequence_set_pooling(w->c, s, SH_POOL_CLS, &error), SH_ERR_INVALID);
    assert_int_equal(sh_sequence_copy(w->c, t, s, 3, &error), SH_ERR_UNSUPPORTED);
    assert_int_equal(sh_sequence_truncate(w->c, s, 2, &error), SH_ERR_UNSUPPORTED);
    feed(w, s, 1, 0, &results); /* a gap: from here on there is no mean */
    const struct sh_row row = {.sequence = s, .token = 1, .position = 4, .outputs = SH_OUT_POOLED};
    assert_int_equal(sh_submit(w->c, &(struct sh_batch){&row, 1}, &ticket, &error), SH_ERR_INVALID);
    assert_non_null(strstr(error.message, "3 is the first"));
    core_ok(sh_sequence_set_pooling(w->c, t, SH_POOL_CLS, &error), &error);
    feed(w, t, 2, 0, &results);
    const struct sh_row cls = {.sequence = t, .token = 1, .position = 2, .outputs = SH_OUT_POOLED};
    assert_int_equal(sh_submit(w->c, &(struct sh_batch){&cls, 1}, &ticket, &error), SH_ERR_INVALID);
    assert_int_equal(sh_sequence_set_pooling(w->c, t, (enum sh_pooling)9, &error), SH_ERR_INVALID);

    /* A failed step leaves the mean as it was, and the same rows can come again. */
    core_ok(sh_sequence_truncate(w->c, s, 0, &error), &error);
    float before[WIDTH], after[WIDTH];
    feed(w, s, 20, SH_OUT_POOLED, &results);
    memcpy(before, results.items[19].pooled, sizeof before);
    core_ok(sh_sequence_truncate(w->c, s, 0, &error), &error);
    feed(w, s, 15, SH_OUT_POOLED, &results);
    struct sh_row rows[5];
    for (uint32_t i = 0; i < 5; i++)
        rows[i] = (struct sh_row){.sequence = s, .token = tokens[15 + i], .position = 15 + i, .outputs = SH_OUT_POOLED};
    standin.fail_wait = 1;
    core_ok(sh_submit(w->c, &(struct sh_batch){rows, 5}, &ticket, &error), &error);
    assert_int_equal(sh_wait(w->c, ticket, -1, &results, &error), SH_ERR_DEVICE);
    feed(w, s, 5, SH_OUT_POOLED, &results);
    memcpy(after, results.items[4].pooled, sizeof after);
    assert_memory_equal(after, before, sizeof after);
    world_destroy(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_treatment),
        cmocka_unit_test(windows_give_pages_back),
        cmocka_unit_test(rows_on_trial),
        cmocka_unit_test(encoders_take_a_text_whole),
        cmocka_unit_test(pooled_rows),
    };
    return cmocka_run_group_tests_name("core_kinds", tests, NULL, NULL);
}

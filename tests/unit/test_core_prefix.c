/*
 * What sequences share over time, under random treatment: texts with common beginnings, reused, copied, truncated, suspended, destroyed,
 * saved and restored, with steps that fail and with too little room. Whatever happens, rows see what computing from nothing would show
 * them, every page of the index holds what its tokens leave there, references add up, and nothing stays behind.
 */
#include "tests/unit/core.h"
#include "tests/unit/shared.h"
#include "tests/unit/standin.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

static struct sh_error error;

enum { LIVE = 6, TEXTS = 5, MOST_DEPTH = LONGEST / SH_PAGE_TOKENS, COMPUTED = 1 << 15 };

static const struct kind kinds[] = {
    {"paged", {PAGED_GROUP}, 1, false, false},
    {"windowed", {WINDOWED_GROUP(40)}, 1, false, false},
    {"recurrent", {RECURRENT_GROUP}, 1, false, false},
    {"hybrid", {PAGED_GROUP, RECURRENT_GROUP}, 2, false, false},
    {"window and all", {WINDOWED_GROUP(33), PAGED_GROUP}, 2, false, false},
    {"all", {WINDOWED_GROUP(64), RECURRENT_GROUP, PAGED_GROUP, WINDOWED_GROUP(1)}, 4, false, false},
};

struct mirror {
    bool live, takes_part;
    uint32_t id, length, aim; /* aim: a suspended sequence is on its way back to that length */
    uint64_t salt;
    int32_t tokens[LONGEST];
};

struct flight {
    sh_ticket ticket;
    uint32_t length[LIVE], before[LIVE], id[LIVE]; /* after and before the step; equal: not in it */
};

struct play {
    struct world *w;
    const struct kind *kind;
    struct test_rng rng;
    int32_t texts[TEXTS][LONGEST];
    struct mirror s[LIVE];
    struct flight flights[2];
    uint64_t computed[COMPUTED]; /* beginnings in whole pages that a finished step has ended in; open addressing */
    uint32_t n_flights, checked, failed, refused, reused, kept_out, restored;
};

static uint32_t below(struct play *p, uint32_t n) { return (uint32_t)(test_random(&p->rng) % n); }

/* ---- what was computed ---- */

static uint64_t name_of(uint64_t salt, const int32_t *tokens, uint32_t n) {
    uint64_t h = salt + 1;
    for (uint32_t i = 0; i < n; i++) h = (h ^ (uint64_t)(tokens[i] + 1)) * 0x100000001b3u ^ h >> 31;
    return h | 1;
}

static bool was_computed(const struct play *p, uint64_t name) {
    for (uint32_t i = (uint32_t)(name >> 20) % COMPUTED; p->computed[i] != 0; i = (i + 1) % COMPUTED)
        if (p->computed[i] == name) return true;
    return false;
}

static void note(struct play *p, uint64_t name) {
    if (was_computed(p, name)) return;
    uint32_t i = (uint32_t)(name >> 20) % COMPUTED;
    while (p->computed[i] != 0) i = (i + 1) % COMPUTED;
    p->computed[i] = name;
}

/* ---- steps ---- */

static void check_result(struct play *p, const struct sh_result *r) {
    for (uint32_t k = 0; k < LIVE; k++) {
        if (!p->s[k].live || p->s[k].id != r->sequence || r->position >= p->s[k].length) continue;
        float expected[WIDTH];
        expect(p->kind, p->s[k].tokens, r->position, expected);
        assert_memory_equal(r->hidden, expected, sizeof expected);
        p->checked++;
    }
}

static void settle_front(struct play *p, bool ok) {
    const struct flight *f = &p->flights[0];
    struct flight *next = &p->flights[1];
    for (uint32_t k = 0; k < LIVE; k++) {
        struct mirror *s = &p->s[k];
        if (f->length[k] == f->before[k] || !s->live || s->id != f->id[k]) continue;
        for (uint32_t n = SH_PAGE_TOKENS; ok && s->takes_part && n <= f->length[k]; n += SH_PAGE_TOKENS)
            note(p, name_of(s->salt, s->tokens, n));
        if (ok) continue;
        s->length = f->before[k];
        if (p->n_flights > 1) next->before[k] = next->length[k] = 0;
    }
    p->flights[0] = p->flights[1];
    p->n_flights--;
}

static void wait_one(struct play *p) {
    if (p->n_flights == 0) return;
    bool poisoned = false;
    const struct flight *f = &p->flights[0], *next = &p->flights[1];
    for (uint32_t k = 0; k < LIVE && p->n_flights > 1; k++)
        poisoned = poisoned || (f->length[k] != f->before[k] && next->length[k] != next->before[k] && f->id[k] == next->id[k]);
    const bool fails = below(p, 12) == 0;
    standin.fail_wait = fails;
    struct sh_results results;
    assert_int_equal(sh_wait(p->w->c, f->ticket, -1, &results, &error), fails ? SH_ERR_DEVICE : SH_OK);
    for (uint32_t i = 0; i < results.count; i++) check_result(p, &results.items[i]);
    settle_front(p, !fails);
    p->failed += fails;
    if (!fails || p->n_flights == 0) return;
    assert_int_equal(sh_wait(p->w->c, p->flights[0].ticket, -1, &results, &error), poisoned ? SH_ERR_DEVICE : SH_OK);
    for (uint32_t i = 0; i < results.count; i++) check_result(p, &results.items[i]);
    settle_front(p, !poisoned);
}

static void wait_all(struct play *p) {
    while (p->n_flights > 0) wait_one(p);
}

/* A submission was refused for want of room: nothing that is kept could have made some. */
static void check_refusal(const struct play *p) {
    const struct sh_context *c = p->w->c;
    bool exhausted = false;
    for (uint32_t g = 0; g < c->n_groups; g++)
        exhausted = exhausted || (p->kind->groups[g].kind == SH_STATE_PAGED ? c->prefix.n_idle == 0 : c->pools[g].n_kept == 0);
    assert_true(exhausted);
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
        if (!s->live || below(p, 3) == 0) continue;
        uint32_t more = 1 + below(p, below(p, 2) == 0 ? 40 : 4);
        if (below(p, 2) == 0) more = SH_PAGE_TOKENS - s->length % SH_PAGE_TOKENS; /* to a page's end */
        const uint32_t most = s->aim > s->length ? s->aim : LONGEST;
        if (s->length + more > most) more = most - s->length;
        if (n + more > ROWS) more = ROWS - n;
        for (uint32_t t = 0; t < more; t++) {
            const uint32_t at = s->length + t;
            if (at >= s->aim) s->tokens[at] = p->texts[s->salt % TEXTS][at];                 /* what others write there, too, */
            if (at >= s->aim && below(p, 60) == 0) s->tokens[at] = (int32_t)below(p, VOCAB); /* mostly */
            rows[n++] = (struct sh_row){.sequence = s->id,
                                        .role = below(p, 2) ? SH_ROLE_PROMPT : SH_ROLE_GENERATED,
                                        .token = s->tokens[at],
                                        .position = at,
                                        .outputs = t % 3 == 0 || t + 1 == more ? SH_OUT_HIDDEN : 0};
        }
        f.length[k] += more;
    }
    if (n == 0) return;
    if (below(p, 15) == 0) standin.fail_submit = 1;
    standin.reserve_most = below(p, 4) == 0 ? 10 : 0;
    const enum sh_code code = sh_submit(p->w->c, &(struct sh_batch){rows, n}, &f.ticket, &error);
    standin.fail_submit = 0;
    standin.reserve_most = 0;
    if (code != SH_OK) { /* nothing has changed */
        assert_true(code == SH_ERR_NO_PAGES || code == SH_ERR_NO_DEVICE_MEMORY || code == SH_ERR_DEVICE);
        if (code != SH_ERR_DEVICE) check_refusal(p);
        p->refused += code != SH_ERR_DEVICE;
        for (uint32_t k = 0; k < LIVE; k++)
            if (p->s[k].live) assert_int_equal(sh_sequence_length(p->w->c, p->s[k].id), p->s[k].length);
        return;
    }
    for (uint32_t k = 0; k < LIVE; k++) p->s[k].length = f.length[k];
    p->flights[p->n_flights++] = f;
}

/* ---- treatment ---- */

/* How much of the tokens the living hold under the salt: so much is found, where every token is kept. */
static uint32_t held_by_living(const struct play *p, const struct mirror *who, const int32_t *tokens, uint32_t n) {
    uint32_t most = 0;
    for (uint32_t k = 0; k < LIVE; k++) {
        const struct mirror *s = &p->s[k];
        if (!s->live || s == who || !s->takes_part || s->salt != who->salt) continue;
        uint32_t settled = s->length;
        for (uint32_t i = 0; i < p->n_flights; i++)
            if (p->flights[i].length[k] != p->flights[i].before[k] && p->flights[i].id[k] == s->id &&
                p->flights[i].before[k] < settled)
                settled = p->flights[i].before[k];
        uint32_t same = 0;
        while (same < n && same < settled && s->tokens[same] == tokens[same]) same++;
        if (same > most) most = same;
    }
    return most / SH_PAGE_TOKENS * SH_PAGE_TOKENS;
}

static void reuse(struct play *p, struct mirror *s, const int32_t *tokens, uint32_t n) {
    uint32_t reused = 0;
    core_ok(sh_sequence_reuse(p->w->c, s->id, tokens, NULL, n, s->salt, &reused, &error), &error);
    assert_true(reused <= n && reused % SH_PAGE_TOKENS == 0);
    assert_int_equal(sh_sequence_length(p->w->c, s->id), reused);
    if (reused > 0) assert_true(was_computed(p, name_of(s->salt, tokens, reused)));
    if (p->kind->n_groups == 1 && p->kind->groups[0].kind == SH_STATE_PAGED)
        assert_true(reused >= held_by_living(p, s, tokens, n));
    memmove(s->tokens, tokens, LONGEST * sizeof *tokens);
    s->takes_part = true;
    s->length = reused;
    p->reused += reused > 0;
    uint32_t held = 0;
    for (uint32_t g = 0; g < p->kind->n_groups; g++)
        if (p->kind->groups[g].kind == SH_STATE_PAGED) held = held_by_living(p, s, tokens, n);
    p->kept_out += reused > held;
}

static void begin(struct play *p, struct mirror *s, const struct mirror *other) {
    *s = (struct mirror){.live = true, .id = new_sequence(p->w), .salt = below(p, 2)};
    if (s != other && other->live && below(p, 4) == 0) { /* a copy */
        wait_all(p);
        const uint32_t length = below(p, 2) ? other->length : below(p, other->length + 1);
        const enum sh_code code = sh_sequence_copy(p->w->c, s->id, other->id, length, &error);
        assert_true(code == SH_OK || code == SH_ERR_UNSUPPORTED);
        if (code != SH_OK) return;
        const uint32_t id = s->id;
        *s = *other;
        s->id = id;
        s->aim = 0;
        s->length = length;
        if (length == 0) s->takes_part = false;
        return;
    }
    if (below(p, 8) == 0) return; /* takes no part */
    const int32_t *tokens = below(p, 3) == 0 && other->live ? other->tokens : p->texts[s->salt % TEXTS];
    int32_t wanted[LONGEST];
    memcpy(wanted, tokens, sizeof wanted);
    if (below(p, 3) == 0) wanted[below(p, LONGEST)] = (int32_t)below(p, VOCAB);
    const uint32_t n = below(p, 6) == 0 ? 0 : below(p, LONGEST + 1);
    for (uint32_t i = 0; i < LONGEST; i++) s->tokens[i] = wanted[i];
    reuse(p, s, wanted, n);
    s->aim = n;
}

static void suspend(struct play *p, struct mirror *s) {
    wait_all(p);
    if (!s->live) return;
    const uint32_t length = s->length > s->aim ? s->length : s->aim;
    core_ok(sh_sequence_suspend(p->w->c, s->id, &error), &error);
    s->length = 0;
    s->aim = length;
    assert_int_equal(sh_sequence_length(p->w->c, s->id), 0);
    if (s->takes_part) reuse(p, s, s->tokens, length);
}

static void to_file_and_back(struct play *p, const struct mirror *s) {
    wait_all(p);
    if (!s->live) return;
    uint32_t saved = 0, n = 0;
    int32_t *tokens = NULL;
    const int fd = memfd_create("state", MFD_CLOEXEC);
    assert_true(fd >= 0);
    const enum sh_code code = sh_context_save(p->w->c, s->tokens, s->length, s->salt, fd, &saved, &error);
    assert_true(code == SH_OK || code == SH_ERR_NOT_FOUND);
    if (code == SH_OK) {
        const uint64_t salt = below(p, 3);
        const bool damaged = below(p, 3) == 0;
        const off_t end = lseek(fd, 0, SEEK_CUR);
        assert_true(was_computed(p, name_of(s->salt, s->tokens, saved)));
        if (damaged) {
            uint8_t byte;
            const off_t at = (off_t)below(p, (uint32_t)end);
            assert_int_equal(pread(fd, &byte, 1, at), 1);
            byte ^= 64;
            assert_int_equal(pwrite(fd, &byte, 1, at), 1);
        }
        assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
        const enum sh_code back = sh_context_restore(p->w->c, fd, salt, &tokens, &n, &error);
        if (damaged) assert_true(back == SH_ERR_FORMAT || back == SH_ERR_UNSUPPORTED || back == SH_ERR_NO_PAGES);
        else assert_true(back == SH_OK || back == SH_ERR_NO_PAGES);
        if (back == SH_OK) {
            assert_int_equal(n, saved);
            assert_memory_equal(tokens, s->tokens, n * sizeof *tokens);
            for (uint32_t i = SH_PAGE_TOKENS; i <= n; i += SH_PAGE_TOKENS) note(p, name_of(salt, tokens, i));
            p->restored++;
        }
        free(tokens);
    }
    close(fd);
}

static void change_something(struct play *p) {
    struct mirror *s = &p->s[below(p, LIVE)], *other = &p->s[below(p, LIVE)];
    const uint32_t what = below(p, 12);
    if (what < 4) {
        if (!s->live) begin(p, s, other);
    } else if (what < 6) {
        if (!s->live || below(p, 2) == 0) return;
        for (uint32_t n = SH_PAGE_TOKENS; s->takes_part && n <= s->length; n += SH_PAGE_TOKENS) /* what is in flight may finish */
            note(p, name_of(s->salt, s->tokens, n));
        sh_sequence_destroy(p->w->c, s->id);
        s->live = false;
    } else if (what == 6) {
        suspend(p, s);
    } else if (what == 7) {
        if (below(p, 4) == 0) to_file_and_back(p, s);
    } else if (what < 10) {
        if (!s->live || below(p, 3) != 0) return;
        wait_all(p);
        const uint32_t length = below(p, 4) == 0 ? 0 : s->length - below(p, s->length < 40 ? s->length + 1 : 40);
        const enum sh_code code = sh_sequence_truncate(p->w->c, s->id, length, &error);
        assert_true(code == SH_OK || code == SH_ERR_UNSUPPORTED);
        if (code != SH_OK) return;
        s->length = length;
        s->aim = 0;
    } else if (s->live) {
        wait_all(p);
        const enum sh_code code = sh_sequence_snapshot(p->w->c, s->id, &error);
        assert_true(code == SH_OK || code == SH_ERR_LIMIT);
    }
}

/* ---- what must hold ---- */

static void tokens_of(const struct sh_prefix_index *x, uint32_t node, int32_t *tokens) {
    for (uint32_t at = node; at != SH_NONE; at = x->nodes[at].parent)
        memcpy(tokens + (size_t)(x->nodes[at].depth - 1) * SH_PAGE_TOKENS, x->nodes[at].tokens, sizeof x->nodes[at].tokens);
}

/* Nodes: what they say of themselves, who lives on them, and what lies in their pages. refs counts the index's references. */
static void check_index(const struct play *p, uint32_t (*refs)[MAX_PAGES]) {
    const struct sh_context *c = p->w->c;
    const struct sh_prefix_index *x = &c->prefix;
    uint32_t *live = calloc(x->n_nodes + 1, sizeof *live), n_idle = 0, n_found = 0;
    assert_non_null(live);
    for (uint32_t i = 0; i < c->params.max_sequences; i++) {
        const struct sh_sequence *s = &c->sequences[i];
        if (!s->used) continue;
        for (uint32_t at = s->node; at != SH_NONE; at = x->nodes[at].parent) {
            const struct sh_prefix_node *node = &x->nodes[at];
            live[at]++;
            assert_true(node->depth * SH_PAGE_TOKENS <= s->length);
            assert_memory_equal(node->tokens, s->tokens + (size_t)(node->depth - 1) * SH_PAGE_TOKENS, sizeof node->tokens);
            for (uint32_t g = 0; g < c->n_groups; g++)
                if (p->kind->groups[g].kind == SH_STATE_PAGED)
                    assert_int_equal(s->tables[g].pages[node->depth - 1], sh_prefix_page(x, at, g));
        }
    }
    for (uint32_t b = 0; b < x->n_buckets; b++)
        for (uint32_t at = x->buckets[b]; at != SH_NONE; at = x->nodes[at].next) {
            const struct sh_prefix_node *node = &x->nodes[at];
            int32_t tokens[LONGEST];
            n_found++;
            assert_int_equal(node->live, live[at]);
            assert_int_equal(node->depth, node->parent == SH_NONE ? 1 : x->nodes[node->parent].depth + 1);
            if (node->parent != SH_NONE) assert_true(x->nodes[node->parent].live >= node->live);
            tokens_of(x, at, tokens);
            for (uint32_t g = 0; g < c->n_groups; g++) {
                const uint32_t page = sh_prefix_page(x, at, g);
                if (page == SH_NONE) {
                    assert_int_not_equal(p->kind->groups[g].kind, SH_STATE_PAGED);
                    continue;
                }
                refs[g][page]++;
                assert_int_equal(c->pools[g].owner[page], at);
                if (p->kind->groups[g].kind == SH_STATE_RECURRENT)
                    assert_true(state_holds(g, page, tokens, node->depth * SH_PAGE_TOKENS));
                else assert_true(page_holds(g, page, tokens, (node->depth - 1) * SH_PAGE_TOKENS));
            }
        }
    for (uint32_t at = x->oldest, older = SH_NONE; at != SH_NONE; older = at, at = x->nodes[at].newer) {
        assert_int_equal(x->nodes[at].live, 0);
        assert_int_equal(x->nodes[at].older, older);
        n_idle++;
    }
    assert_int_equal(n_idle, x->n_idle);
    assert_true(n_idle <= x->most_idle && n_found >= n_idle);
    free(live);
}

static void all_adds_up(const struct play *p) {
    const struct sh_context *c = p->w->c;
    static uint32_t refs[MAX_GROUPS][MAX_PAGES];
    uint64_t used_in_all = 0, kept_in_all = 0;
    memset(refs, 0, sizeof refs);
    check_index(p, refs);
    for (uint32_t g = 0; g < c->n_groups; g++) {
        const struct sh_page_pool *pool = &c->pools[g];
        const bool state = p->kind->groups[g].kind == SH_STATE_RECURRENT;
        uint32_t kept = 0, used = 0, listed = 0, by_index[MAX_PAGES];
        memcpy(by_index, refs[g], sizeof by_index);
        for (uint32_t i = 0; i < c->params.max_sequences; i++) {
            const struct sh_sequence *s = &c->sequences[i];
            if (!s->used) continue;
            const struct sh_page_table *table = &s->tables[g];
            assert_int_equal(table->n, state ? s->length > 0 : sh_pages_of(s->length));
            for (uint32_t k = table->first; k < table->n; k++) refs[g][table->pages[k]]++;
            for (int k = 0; k < SH_SLOTS; k++)
                if (s->before[k][g] != SH_NONE) refs[g][s->before[k][g]]++;
            for (uint32_t k = 0; k < s->n_snapshots; k++)
                if (s->snapshots[k].pages[g] != SH_NONE) refs[g][s->snapshots[k].pages[g]]++;
        }
        for (uint32_t i = 0; i < pool->n_reserved; i++) {
            assert_int_equal(pool->refs[i], refs[g][i]);
            assert_true(by_index[i] <= 1 && (by_index[i] == 1) == (pool->owner[i] != SH_NONE));
            kept += refs[g][i] == 1 && by_index[i] == 1;
            used += refs[g][i] > by_index[i];
        }
        for (uint32_t at = pool->oldest_kept; at != SH_NONE; at = pool->newer[at]) listed++;
        assert_int_equal(listed, kept);
        assert_int_equal(pool->n_kept, kept);
        assert_int_equal(sh_page_pool_used(pool), used);
        assert_int_equal(pool->n_free + used + kept, pool->n_reserved);
        used_in_all += used;
        kept_in_all += kept;
    }
    struct sh_context_stats stats;
    sh_context_get_stats(c, &stats);
    assert_int_equal(stats.pages_used, used_in_all);
    assert_int_equal(stats.pages_kept, kept_in_all);
}

static void treat(const struct kind *kind, uint64_t seed, uint64_t reuse_tokens, uint32_t kv_pages, uint32_t rounds) {
    const struct sh_context_params params = {.size = sizeof params,
                                             .max_sequences =
                                                 LIVE + 10, /* destroyed ones linger until their step is waited for */
                                             .max_batch_rows = ROWS,
                                             .max_outputs = ROWS,
                                             .kv_tokens = kv_pages * SH_PAGE_TOKENS,
                                             .reuse_tokens = reuse_tokens,
                                             .back_tokens = seed % 2 ? 40 : 0};
    struct play *p = calloc(1, sizeof *p);
    assert_non_null(p);
    p->kind = kind;
    p->rng.state = seed;
    p->w = world_create(kind, &params);
    for (uint32_t t = 0; t < TEXTS; t++)
        for (uint32_t i = 0; i < LONGEST; i++)
            p->texts[t][i] = t > 0 && i < 100 ? p->texts[0][i] : (int32_t)below(p, VOCAB); /* with one beginning */
    for (uint32_t round = 0; round < rounds; round++) {
        if (p->n_flights == 2 || below(p, 3) == 0) wait_one(p);
        if (p->n_flights < 2 && below(p, 3) != 0) submit_some(p);
        change_something(p);
        all_adds_up(p);
        assert_true(sh_context_free_tokens(p->w->c) <= (uint64_t)params.max_sequences * LONGEST);
    }
    wait_all(p);
    assert_true(p->checked > rounds && p->failed > rounds / 100 && p->reused > rounds / 100);
    bool paged = false;
    for (uint32_t g = 0; g < kind->n_groups; g++) paged = paged || kind->groups[g].kind == SH_STATE_PAGED;
    if (paged && kv_pages < 30) assert_true(p->refused > rounds / 10);
    if (reuse_tokens > 0) assert_true(p->kept_out > rounds / 200 && p->restored > 0);
    for (uint32_t i = 0; i < LIVE; i++)
        if (p->s[i].live) sh_sequence_destroy(p->w->c, p->s[i].id);
    all_adds_up(p);
    struct sh_context_stats stats;
    sh_context_get_stats(p->w->c, &stats);
    assert_int_equal(stats.pages_used, 0);
    assert_true(stats.reused_tokens > 0);
    if (reuse_tokens == 0) assert_int_equal(stats.pages_kept, 0);
    world_destroy(p->w);
    free(p);
}

static void random_treatment(void **state) {
    (void)state;
    for (size_t k = 0; k < SH_COUNT(kinds); k++) treat(&kinds[k], k + 1, 20 * SH_PAGE_TOKENS, 64, 3000);
}

/* Too little room for all, and then for what is kept. */
static void random_treatment_of_few_pages(void **state) {
    (void)state;
    for (size_t k = 0; k < SH_COUNT(kinds); k++) treat(&kinds[k], k + 51, 400 * SH_PAGE_TOKENS, 22, 3000);
}

static void random_treatment_without_keeping(void **state) {
    (void)state;
    treat(&kinds[0], 101, 0, 64, 2000);
    treat(&kinds[5], 102, 0, 64, 2000);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_treatment),
        cmocka_unit_test(random_treatment_of_few_pages),
        cmocka_unit_test(random_treatment_without_keeping),
    };
    return cmocka_run_group_tests_name("core_prefix", tests, NULL, NULL);
}

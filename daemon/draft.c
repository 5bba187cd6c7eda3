/* draft.c - see draft.h. */
#include "daemon/draft.h"

#include "compute/base.h"

#include <math.h>
#include <stdlib.h>

/* ---- prompt lookup ---- */

static const uint8_t grams[DRAFT_GRAMS] = {2, 3, 4, 6, 8};

static uint64_t mix(uint64_t h) { /* splitmix64's finaliser */
    h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9ull;
    h = (h ^ h >> 27) * 0x94d049bb133111ebull;
    return h ^ h >> 31;
}

/* The hashes of the runs that end before `end`, shortest first; how many of the lengths there are behind `base`. */
static uint32_t hash_runs(const int32_t *tokens, uint32_t base, uint32_t end, uint64_t hashes[DRAFT_GRAMS]) {
    uint32_t n = 0, length = 0;
    uint64_t h = 0;
    while (n < DRAFT_GRAMS && end - base >= grams[n]) {
        while (length < grams[n]) h = h * 0x9e3779b97f4a7c15ull + (uint32_t)tokens[end - ++length] + 1;
        hashes[n++] = mix(h + length);
    }
    return n;
}

/* A slot holds the place of the token behind the run, counted from base, and which of the lengths it is; 0 is none, since a place has a
 * run before it. */
static uint32_t slot_value(const struct draft_index *x, uint32_t place, uint32_t gram) {
    return (place - x->base) * DRAFT_GRAMS + gram;
}

/* The slot of the run of that length before `end`: the one that has it, or the empty one where it would go. */
static uint32_t find_slot(const struct draft_index *x, const int32_t *tokens, uint32_t end, uint32_t gram, uint64_t hash) {
    const uint32_t mask = x->capacity - 1, length = grams[gram];
    for (uint32_t i = (uint32_t)hash & mask;; i = (i + 1) & mask) {
        const uint32_t value = x->slots[i], place = value / DRAFT_GRAMS + x->base;
        if (value == 0) return i;
        if (value % DRAFT_GRAMS == gram && memcmp(tokens + place - length, tokens + end - length, length * sizeof *tokens) == 0)
            return i;
    }
}

/* The token at `place` followed the runs before it. */
static void insert(struct draft_index *x, const int32_t *tokens, uint32_t place) {
    uint64_t hashes[DRAFT_GRAMS];
    const uint32_t n = hash_runs(tokens, x->base, place, hashes);
    for (uint32_t g = 0; g < n; g++) {
        const uint32_t slot = find_slot(x, tokens, place, g, hashes[g]);
        x->used += x->slots[slot] == 0;
        x->slots[slot] = slot_value(x, place, g);
    }
}

/* Makes room for the runs before another token: a larger table, or one of the later half of the text alone. */
static bool make_room(struct draft_index *x, const int32_t *tokens) {
    const bool full = x->count - x->base >= DRAFT_INDEX_TOKENS;
    if (!full && 4ull * (x->used + DRAFT_GRAMS) <= 3ull * x->capacity) return true;
    const uint32_t capacity = full ? x->capacity : x->capacity > 0 ? 2 * x->capacity : 256;
    uint32_t *slots = sh_calloc(capacity, sizeof *slots);
    if (!slots) return false;
    free(x->slots);
    x->slots = slots;
    x->capacity = capacity;
    x->used = 0;
    if (full) x->base = x->count - DRAFT_INDEX_TOKENS / 2;
    for (uint32_t place = x->base; place < x->count; place++) insert(x, tokens, place);
    return true;
}

bool draft_index_push(struct draft_index *x, const int32_t *tokens, uint32_t count) {
    if (x->count == 0 && count > DRAFT_INDEX_TOKENS) x->base = x->count = count - DRAFT_INDEX_TOKENS;
    while (x->count < count) {
        if (!make_room(x, tokens)) return false;
        insert(x, tokens, x->count++);
    }
    return true;
}

void draft_index_finish(struct draft_index *x) {
    free(x->slots);
    *x = (struct draft_index){0};
}

uint32_t draft_index_guess(const struct draft_index *x, const int32_t *tokens, uint32_t max, int32_t *guess, uint32_t *run) {
    *run = 0;
    if (x->capacity == 0) return 0;
    uint64_t hashes[DRAFT_GRAMS];
    for (uint32_t g = hash_runs(tokens, x->base, x->count, hashes); g-- > 0;) {
        const uint32_t value = x->slots[find_slot(x, tokens, x->count, g, hashes[g])];
        if (value == 0) continue;
        const uint32_t place = value / DRAFT_GRAMS + x->base;
        for (uint32_t i = 0; i < max; i++) guess[i] = place + i < x->count ? tokens[place + i] : guess[place + i - x->count];
        *run = grams[g];
        return max;
    }
    return 0;
}

/* ---- how often guesses were right ---- */

void draft_rate_add(struct draft_rate *rate, uint32_t right, uint32_t wrong) {
    for (uint32_t i = 0; i < right + wrong; i++) {
        rate->right = rate->right * (1 - DRAFT_FADE) + (i < right ? 1 : 0);
        rate->tried = rate->tried * (1 - DRAFT_FADE) + 1;
    }
}

double draft_rate_get(const struct draft_rate *rate, double expected, double weight) {
    return (rate->right + expected * weight) / (rate->tried + weight);
}

/* ---- what a step takes ---- */

#define COST_NEW 0.1 /* what a new time counts in the mean */
enum { COST_EXACT = 16 };

static uint32_t cost_class(uint32_t rows) {
    if (rows <= COST_EXACT) return rows > 0 ? rows - 1 : 0;
    const uint32_t class = COST_EXACT + (uint32_t)(4 * log2((double)rows / COST_EXACT));
    return class < DRAFT_COSTS ? class : DRAFT_COSTS - 1;
}

void draft_cost_add(struct draft_cost *cost, uint32_t rows, uint64_t step_ns) {
    const uint32_t c = cost_class(rows);
    double ns = (double)step_ns;
    if (cost->ns[c] == 0) {
        cost->ns[c] = ns > 1 ? ns : 1;
        cost->rows[c] = rows;
        return;
    }
    if (ns > 4 * cost->ns[c]) ns = 4 * cost->ns[c]; /* the machine did something else meanwhile */
    cost->ns[c] += COST_NEW * (ns - cost->ns[c]);
    cost->rows[c] += COST_NEW * (rows - cost->rows[c]);
}

double draft_cost_get(const struct draft_cost *cost, uint32_t rows) {
    double before_rows = 0, before_ns = 0;
    for (uint32_t c = 0; c < DRAFT_COSTS; c++) {
        if (cost->ns[c] == 0) continue;
        const double ns = cost->ns[c] > before_ns ? cost->ns[c] : before_ns;
        if (cost->rows[c] >= rows) {
            /* Fewer rows than were ever seen: what they take is learned when such a step is taken, so it looks worth while. */
            if (before_ns == 0) return ns * rows / cost->rows[c];
            return before_ns + (ns - before_ns) * (rows - before_rows) / (cost->rows[c] - before_rows);
        }
        before_rows = cost->rows[c];
        before_ns = ns;
    }
    if (before_ns == 0) return 1 + 0.1 * rows;
    return before_ns * (1 + 0.1 * (rows - before_rows) / (1 + 0.1 * before_rows));
}

/* ---- how many ---- */

#define LEAST_GAIN 0.02    /* tokens that a row is expected to bring; nobody looks at less */
#define LEAST_ADVANTAGE 1.1 /* by which guesses have to be better than none: times are measured, and not exact */
#define HIGHEST_RATE 0.98
#define LONGEST_STEP 1.3 /* times one without guesses, where somebody waits for it who gets none */

/* Gives rows away one by one, each to the choice that expects most of its next one; at most `room`. Calls it a plan where tokens per
 * time are most, and returns how many rows that is. */
static uint32_t share_out(const struct draft_cost *cost, const struct draft_cost *draft, uint32_t rows, uint32_t tokens, uint32_t room,
                          struct draft_share *shares, uint32_t n_shares) {
    double expected = tokens, draft_ns = 0;
    double best = expected / draft_cost_get(cost, rows) * LEAST_ADVANTAGE;
    const double longest = draft_cost_get(cost, rows) * LONGEST_STEP;
    uint32_t best_given = 0, served = 0, at_depth[DRAFT_MAX + 1] = {0};
    for (uint32_t i = 0; i < n_shares; i++) {
        shares[i].length = 0;
        shares[i].next = shares[i].rate < HIGHEST_RATE ? shares[i].rate : HIGHEST_RATE;
    }
    for (uint32_t given = 1; given <= room; given++) {
        struct draft_share *to = NULL;
        double most = LEAST_GAIN;
        for (uint32_t i = 0; i < n_shares; i++) {
            struct draft_share *share = &shares[i];
            if (share->length >= share->most || share->length >= DRAFT_MAX || share->next <= most) continue;
            most = share->next;
            to = share;
        }
        if (!to) break;
        to->next *= to->rate < HIGHEST_RATE ? to->rate : HIGHEST_RATE;
        served += to->length++ == 0;
        if (to->modelled) {
            const uint32_t n = ++at_depth[to->length];
            draft_ns += draft_cost_get(draft, n) - (n > 1 ? draft_cost_get(draft, n - 1) : 0);
        }
        expected += most;
        const double ns = draft_cost_get(cost, rows + given) + draft_ns, rate = expected / ns;
        if (rate <= best || (served < tokens && ns > longest)) continue;
        best = rate;
        best_given = given;
    }
    return best_given;
}

void draft_plan(const struct draft_cost *cost, const struct draft_cost *draft, uint32_t rows, uint32_t tokens, uint32_t room,
                struct draft_share *shares, uint32_t n_shares) {
    const uint32_t given = share_out(cost, draft, rows, tokens, room, shares, n_shares);
    share_out(cost, draft, rows, tokens, given, shares, n_shares); /* the same ways as far as that */
}

enum { FIRST_LENGTH = 4, FIRST_PATIENCE = 32, MOST_PATIENCE = 1024 };

void draft_pace_token(struct draft_pace *pace) {
    if (pace->idle < UINT32_MAX) pace->idle++;
}

uint32_t draft_pace_most(const struct draft_pace *pace, uint32_t most) {
    const uint32_t length = pace->length > 0 ? pace->length : FIRST_LENGTH;
    return length < most ? length : most;
}

bool draft_pace_due(const struct draft_pace *pace) {
    return pace->idle >= (pace->patience > 0 ? pace->patience : FIRST_PATIENCE);
}

void draft_pace_result(struct draft_pace *pace, uint32_t guessed, uint32_t right, uint32_t most) {
    const uint32_t patience = pace->patience > 0 ? pace->patience : FIRST_PATIENCE;
    pace->idle = 0;
    if (right > 0) pace->patience = FIRST_PATIENCE;
    else pace->patience = patience < MOST_PATIENCE ? 2 * patience : MOST_PATIENCE;
    if (right < guessed) pace->length = right + 1;
    else if (pace->length < 2 * guessed) pace->length = 2 * guessed;
    if (pace->length > most) pace->length = most;
}

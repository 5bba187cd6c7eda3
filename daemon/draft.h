/*
 * draft.h - guesses of the tokens that come next, and whether they pay: what followed the same tokens before (prompt lookup), what a step
 * of so many rows takes, how often guesses were right, and how many of them go into the next step.
 *
 * A guess is verified by entering it as rows of the step that would have been taken anyway (speculate.h), so what is decided here changes
 * how long an answer takes and never what it says. All of it is arithmetic on the caller's memory; nothing here knows of models or clocks.
 *
 * Thread-safety: one thread at a time per object.
 */
#ifndef SHIMMYD_DRAFT_H
#define SHIMMYD_DRAFT_H

#include <stdbool.h>
#include <stdint.h>

enum {
    DRAFT_MAX = 64,            /* tokens of one guess, whatever is configured */
    DRAFT_GRAMS = 5,           /* lengths of the runs that are looked for: 2, 3, 4, 6 and 8 tokens */
    DRAFT_INDEX_TOKENS = 32768 /* of a text the last so many at most are looked at, and at least half of these */
};

/* ---- prompt lookup ---- */

/* Where runs of tokens stood last in a text: a hash table of places that stand for the run before them. A token costs constant time, and
 * 27 to 54 bytes. The text itself is the caller's, who passes it each time. */
struct draft_index {
    uint32_t *slots; /* [capacity], 0: empty, else 1 + the place of the token that followed - base */
    uint32_t capacity, used;
    uint32_t count; /* tokens of the text that were taken in */
    uint32_t base;  /* runs that reach before it are forgotten */
};
/* Takes in the text's tokens up to `count`. False: no memory; what is known stays. An empty index is zeroed memory. */
bool draft_index_push(struct draft_index *index, const int32_t *tokens, uint32_t count);
/* The text was cut to `count` tokens, or is another one: the index begins anew at the next push. */
void draft_index_finish(struct draft_index *index);
/* What followed the last time that the text's last 8 tokens (or 6, 4, 3, 2: the longest of these runs that stood there before) occurred. Behind the text's
 * end the guess continues with itself, as a text that repeats a short run does. Writes at most `max` tokens to `guess` and returns how
 * many; *run: the length of what matched, 0 with none. */
uint32_t draft_index_guess(const struct draft_index *index, const int32_t *tokens, uint32_t max, int32_t *guess, uint32_t *run);

/* ---- how often guesses were right ---- */

/* A share of rights among tries, in which old ones fade: it is as if the last 1 / DRAFT_FADE of them counted. */
struct draft_rate {
    double right, tried;
};
#define DRAFT_FADE 0.03
void draft_rate_add(struct draft_rate *rate, uint32_t right, uint32_t wrong);
/* As if `weight` tries had been made before, right as often as `expected` says. */
double draft_rate_get(const struct draft_rate *rate, double expected, double weight);

/* ---- what a step takes ---- */

enum { DRAFT_COSTS = 40 };
/* The time of a step by its rows, smoothed per number of rows up to 16 and per quarter of an octave above. What lies between is
 * interpolated; below what was seen it is proportional, and above a row more counts a tenth of what a step costs without rows. */
struct draft_cost {
    double ns[DRAFT_COSTS], rows[DRAFT_COSTS]; /* means; ns 0: none seen */
};
void draft_cost_add(struct draft_cost *cost, uint32_t rows, uint64_t step_ns);
/* Nanoseconds, or as long as nothing was seen in units of a step without rows. Never falls with rows. */
double draft_cost_get(const struct draft_cost *cost, uint32_t rows);

/* ---- how many ---- */

/* One choice's part in the next step. */
struct draft_share {
    double rate;      /* how probable it is that a guessed token is right when those before it were */
    uint32_t most;    /* tokens, at most */
    bool modelled;    /* a model guesses them, which takes time */
    uint32_t length;  /* set: so many pay */
    double next;      /* draft_plan's: what one more is expected to bring */
};
/* Shares out rows to guesses such that tokens per time are most: a step of `rows` rows that brings `tokens` tokens without guesses becomes
 * longer by a row for each guess (cost), and those that are modelled cost a step of the model that guesses (draft) for the first of each
 * choice, one for the second of each, and so on. At most `room` guesses in all. Where guesses do not pay lengths are 0; and
 * where some of those in the step get none, it becomes at most 30 % longer for the others. */
void draft_plan(const struct draft_cost *cost, const struct draft_cost *draft, uint32_t rows, uint32_t tokens, uint32_t room,
                struct draft_share *shares, uint32_t n_shares);

/* A choice's own pace: how long its guesses are, and when to try again after they stopped paying. Counted in tokens of the choice. */
struct draft_pace {
    uint32_t length;   /* of the next guess, at most; 0: none was made yet */
    uint32_t idle;     /* tokens since the last */
    uint32_t patience; /* tokens after which one is made though it does not seem to pay; 0: none was made yet */
};
void draft_pace_token(struct draft_pace *pace); /* the choice got a token */
/* A guess of `guessed` tokens was verified, the first `right` were right; `most` as configured. */
void draft_pace_result(struct draft_pace *pace, uint32_t guessed, uint32_t right, uint32_t most);
uint32_t draft_pace_most(const struct draft_pace *pace, uint32_t most); /* tokens of the next guess */
bool draft_pace_due(const struct draft_pace *pace); /* it is time to try again */

#endif

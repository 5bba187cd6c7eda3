/*
 * pace.h - how many rows a step may have: a model of what steps take, made of the steps so far, and the rule that keeps the time between
 * the tokens of those that run bounded while prompts are taken in.
 *
 * What a row costs depends on the machine: on a GPU sixteen rows that decode take little longer than one, on a CPU nearly sixteen times
 * the part that is arithmetic. So nothing is assumed: two tables hold what was measured, by number of rows: steps that only decode, and
 * what rows of prompts added to such a step. Between measured numbers the tables are interpolated; old values give way to new
 * ones, since contexts grow. Pure arithmetic on the numbers it is told: no clock. Thread-safety: one thread at a time.
 */
#ifndef SHIMMYD_PACE_H
#define SHIMMYD_PACE_H

#include <stdbool.h>
#include <stdint.h>

enum { PACE_BUCKETS = 72 };

struct pace_table {
    struct pace_entry {
        double rows, ns; /* means, recent steps counting more; rows is 0: nothing was measured */
    } entries[PACE_BUCKETS];
};

struct pace {
    uint32_t most;  /* rows of prompts in a step, at most */
    uint32_t chunk; /* rows of a step that has nothing but prompts: so many take between 150 and 500 ms */
    struct pace_table decoding, added;
    double alone_row_ns;            /* of a row in a step of prompts alone; 0: not known */
    uint32_t unmeasured[PACE_BUCKETS]; /* steps with prompts since a step of so many rows decoded alone */
    uint32_t mixed;                 /* steps with both */
};

void pace_init(struct pace *pace, uint32_t most_prompt_rows);
/* A step is finished that took `ns`: of `decode_rows` rows that go on with texts, and `prompt_rows` of prompts. */
void pace_step(struct pace *pace, uint32_t decode_rows, uint32_t prompt_rows, uint64_t ns);
/* Rows of prompts that a step beside `decode_rows` may have so that it takes at most `share` percent longer than it would without them, for each of
 * the requests that wait for their first token (`waiting`), as long as that makes the step no longer than a quarter of a second: where many wait, small
 * steps would keep all of them waiting, since a row costs most in a small step. 0: none this time, so that the step without them is measured
 * (rarely). Without decode_rows: as many as take a bearable time. */
uint32_t pace_prompt_rows(struct pace *pace, uint32_t decode_rows, uint32_t waiting, uint32_t share);
/* What a step of so many rows that decode takes, as far as is known; 0: nothing was measured. What has never been tried is thought to cost no
 * more than the nearest that was, so that it is tried. */
double pace_decode_ns(const struct pace *pace, uint32_t rows);

#endif

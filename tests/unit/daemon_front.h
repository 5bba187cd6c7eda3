/*
 * daemon_front.h - a front end for tests of generations: it waits for events and keeps what came. Fails the running test on events that
 * may not come, and where none comes for five minutes.
 */
#ifndef SHIMMY_TESTS_DAEMON_FRONT_H
#define SHIMMY_TESTS_DAEMON_FRONT_H

#include "daemon/generation.h"

#include <pthread.h>

enum { FRONT_TOKENS = 300, FRONT_CHOICES = 4 };

struct front {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    bool news;
    struct generation *g;
    bool started, ended;
    uint32_t n_prompt_events;
    float prompt_logprobs[FRONT_TOKENS];
    struct {
        int32_t tokens[FRONT_TOKENS];
        float logprobs[FRONT_TOKENS]; /* 0: none */
        uint32_t count;
        char text[FRONT_TOKENS * 40];
        enum gen_finish finish;
        int32_t stop_index;
    } choices[FRONT_CHOICES];
    struct gen_event end;
    struct gen_usage usage; /* from its end on */
};

struct front *front_create(void);
void front_free(struct front *front); /* releases its generation */
/* One greedy choice that end tokens do not end, with seed 5; `prompt` is lent until the submission. */
struct gen_params front_params(struct front *front, const int32_t *prompt, uint32_t n_prompt, uint32_t max_tokens);
/* Takes events until `tokens` of the first choice are there, or the end. */
void front_follow(struct front *front, uint32_t tokens);
/* Submits and follows to the end; returns params->user. */
struct front *front_run(struct model *model, const struct gen_params *params);

#endif

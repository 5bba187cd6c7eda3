#include "tests/unit/daemon_front.h"

#include "compute/base.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

static void wake(void *user) {
    struct front *front = user;
    pthread_mutex_lock(&front->lock);
    front->news = true;
    pthread_cond_signal(&front->cond);
    pthread_mutex_unlock(&front->lock);
}

static void take(struct front *front, const struct gen_event *event) {
    assert_false(front->ended);
    switch (event->kind) {
    case GEN_EVENT_STARTED: front->started = true; break;
    case GEN_EVENT_EMBEDDING: fail_msg("a vector, where tokens were asked for"); break;
    case GEN_EVENT_PROMPT: front->prompt_logprobs[front->n_prompt_events++] = event->logprob ? event->logprob->logprob : 1; break;
    case GEN_EVENT_TOKEN:
    case GEN_EVENT_CHOICE:
        assert_true(front->started);
        assert_int_equal(front->choices[event->choice].finish, GEN_RUNNING);
        assert_int_equal(strlen(event->text), event->text_length);
        strcat(front->choices[event->choice].text, event->text);
        if (event->kind == GEN_EVENT_CHOICE) {
            front->choices[event->choice].finish = event->finish;
            front->choices[event->choice].stop_index = event->stop_index;
        } else {
            if (event->logprob)
                front->choices[event->choice].logprobs[front->choices[event->choice].count] = event->logprob->logprob;
            front->choices[event->choice].tokens[front->choices[event->choice].count++] = event->token;
        }
        break;
    case GEN_EVENT_END:
        front->ended = true;
        front->end = *event;
        break;
    }
}

struct front *front_create(void) {
    struct front *front = calloc(1, sizeof *front);
    assert_non_null(front);
    pthread_mutex_init(&front->lock, NULL);
    pthread_cond_init(&front->cond, NULL);
    return front;
}

void front_free(struct front *front) {
    gen_release(front->g);
    free(front);
}

struct gen_params front_params(struct front *front, const int32_t *prompt, uint32_t n_prompt, uint32_t max_tokens) {
    return (struct gen_params){.prompt = prompt,
                               .n_prompt = n_prompt,
                               .n_choices = 1,
                               .max_tokens = max_tokens,
                               .ignore_eos = true,
                               .sampler = {.size = sizeof(struct sh_sampler_params), .seed = 5},
                               .notify = wake,
                               .user = front};
}

void front_follow(struct front *front, uint32_t tokens) {
    while (!front->ended && front->choices[0].count < tokens) {
        struct gen_event event;
        while (!front->ended && front->choices[0].count < tokens && gen_next(front->g, &event)) {
            take(front, &event);
            gen_event_finish(&event);
        }
        if (front->ended || front->choices[0].count >= tokens) break;
        struct timespec limit;
        clock_gettime(CLOCK_REALTIME, &limit);
        limit.tv_sec += 300; /* under a sanitizer, and others at work */
        pthread_mutex_lock(&front->lock);
        while (!front->news)
            if (pthread_cond_timedwait(&front->cond, &front->lock, &limit) != 0) fail_msg("no event for 300 s");
        front->news = false;
        pthread_mutex_unlock(&front->lock);
    }
    if (front->ended) gen_get_usage(front->g, &front->usage);
}

struct front *front_run(struct model *model, const struct gen_params *params) {
    struct sh_error err;
    struct front *front = params->user;
    if (gen_submit(model, params, &front->g, &err) != SH_OK) fail_msg("%s", err.message);
    front_follow(front, UINT32_MAX);
    return front;
}

/*
 * generation.h - one request for tokens, from a front end (control socket, HTTP) to a model's runner and back as events.
 *
 * A front end fills struct gen_params, calls gen_submit, and is told through `notify` (called from the runner's thread, or from
 * within gen_cancel_id) that events wait; it then takes them with gen_next until it returns false. notify is called when the
 * ring was empty before, never under a lock of the ring, and not any more once gen_release has returned; it must not call
 * gen_release itself. gen_cancel may be called at any time by any thread; gen_release drops the front end's reference (and
 * cancels a generation that is not finished). The event ring is bounded: a reader that lets it fill (GEN_RING_EVENTS) is cut
 * off: the generation is cancelled and its last event says so. *out of gen_submit is set before the first notify can come.
 *
 * Thread-safety: gen_submit, gen_cancel: any thread. gen_next, gen_release: the front end's, one at a time. gen_release waits
 * for a notify that is being called just then; after it has returned notify is not called any more. notify takes no lock of
 * this room and does not call back into it.
 */
#ifndef SHIMMYD_GENERATION_H
#define SHIMMYD_GENERATION_H

#include "compute/engine.h"

#define GEN_RING_EVENTS 4096

struct model; /* daemon/models.h */
struct generation;

enum gen_finish { GEN_RUNNING, GEN_STOP /* end token or stop string */, GEN_LENGTH, GEN_CANCELLED, GEN_FAILED };
const char *gen_finish_name(enum gen_finish finish); /* OpenAI's words: "stop", "length", "cancelled", "error" */

enum gen_priority { GEN_PRIORITY_NORMAL, GEN_PRIORITY_LOW /* admitted when no normal one waits, and preempted before any */ };
enum gen_speculation { GEN_SPECULATION_CONFIGURED, GEN_SPECULATION_OFF }; /* the tokens are the same, whatever it is */

struct gen_params {
    const int32_t *prompt; /* copied */
    uint32_t n_prompt;
    uint32_t n_choices;               /* >= 1: choices 0..n-1 share the prompt, sampled with their own index */
    uint32_t max_tokens;              /* per choice; 0 = up to the context's end */
    struct sh_sampler_params sampler; /* bias copied; the runner fills in choice, end_tokens and, from what follows, the token lists */
    const char *const *stops;         /* copied */
    uint32_t n_stops;
    const int32_t *stop_tokens;       /* copied; each ends a choice as an end token does, whatever ignore_eos is */
    uint32_t n_stop_tokens;
    const char *const *bad_words; /* copied; see sh_bad_words */
    uint32_t n_bad_words;
    const char *const *dry_breakers; /* copied; see sh_dry_breakers. Looked at with sampler.dry_multiplier */
    uint32_t n_dry_breakers;
    bool ignore_eos; /* an end token does not end it */
    bool special;    /* write control tokens into the text, */
    const int32_t *shown; /* or at least these; copied */
    uint32_t n_shown;
    struct sh_grammar *grammar; /* what every choice is held to; NULL: nothing. The generation takes a reference of its own. A choice ends
                                   with GEN_STOP where the grammar lets nothing follow, whatever ignore_eos and min_tokens are; a token that is the
                                   only one possible is reported like a sampled one, though not sampled unless logprobs are wanted (or it is
                                   the first, for which the prompt's last row has to be computed anyway) */
    const char *grammar_source; /* bytes that tell `grammar` from any other; lent until gen_submit returns. NULL: there are none, and an answer */
    size_t n_grammar_source;    /* with a grammar is not kept */
    bool repeatable; /* greedy, or with a seed that the client gave: the response cache may answer it, and keep the answer */
    bool logprobs;
    uint32_t n_top;       /* with logprobs */
    bool echo_logprobs;   /* prompt tokens' log-probs too (completions' echo with logprobs): GEN_EVENT_PROMPT */
    /* With n_texts > 0 nothing is generated: `prompt` holds that many texts behind each other, and each becomes one vector
     * (GEN_EVENT_EMBEDDING). n_choices is 1; the fields from max_tokens to echo_logprobs are not looked at. */
    const uint32_t *text_lengths; /* [n_texts] tokens, at least one each; their sum is n_prompt; copied */
    uint32_t n_texts;
    uint32_t dimensions;  /* of the vectors: the first so many of the model's; 0 = all */
    enum gen_priority priority;
    uint64_t client;      /* whose it is: hash of the API key, else of the address; 0: local. Clients with waiting requests of one priority take turns */
    uint64_t salt;        /* see sh_sequence_reuse; requests with different ones share nothing */
    bool no_reuse;        /* compute the whole prompt, and leave nothing to others */
    const char *session;  /* the name under which the runner remembers this request's tokens, so that they can be saved; copied; NULL: none */
    enum gen_speculation speculation;
    uint64_t id;          /* of gen_new_id, where it was told before; 0: a new one */
    uint64_t deadline_ns; /* CLOCK_MONOTONIC; 0 = none */
    const struct sh_vocab *vocab; /* what its tokens are of (model_get_vocab); compared only, with what the model is served with. NULL: not checked */
    uint64_t load_ns;     /* what the request waited for its model's load; only handed on to the usage */
    void (*notify)(void *user);
    void *user;
};

struct gen_logprob { /* of one token */
    int32_t token;
    float logprob;
    uint32_t n_top;
    struct sh_top top[20];
};

enum gen_event_kind {
    GEN_EVENT_STARTED, /* left the queue */
    GEN_EVENT_PROMPT, /* with echo_logprobs: one prompt token, in order (the first has no logprob); not counted in the ring's limit */
    GEN_EVENT_TOKEN,  /* a token of a choice; text may be empty while held back, and tokens may come with a final text */
    GEN_EVENT_CHOICE, /* a choice is finished: finish, and the last held-back text */
    GEN_EVENT_EMBEDDING, /* text `choice` is done: its vector; in the order of the texts, not counted in the ring's limit */
    GEN_EVENT_END,    /* all choices are finished, or the whole failed: the last event */
};
struct gen_event {
    enum gen_event_kind kind;
    uint32_t choice;
    int32_t token; /* TOKEN; an end token that stops is not reported as TOKEN */
    char *text;    /* malloc'd, NUL-terminated, valid UTF-8; "" if nothing may be shown; owned by the taker (gen_event_finish) */
    size_t text_length;          /* bytes; a model may write NULs */
    struct gen_logprob *logprob; /* PROMPT, TOKEN with logprobs; malloc'd */
    float *vector;               /* EMBEDDING: of length 1 (all zeros stay so); malloc'd, owned by the taker */
    uint32_t n_vector;
    enum gen_finish finish;      /* CHOICE, END */
    int32_t stop_index;          /* CHOICE that ended by stop string number n, else -1 */
    struct sh_error error; /* END with GEN_FAILED; also CANCELLED's reason ("deadline", "shutdown", "client", "slow reader") */
};
void gen_event_finish(struct gen_event *event);

struct gen_usage {                             /* valid after END */
    uint32_t prompt_tokens, completion_tokens; /* all choices */
    uint32_t cached_tokens;                    /* of the prompt, that were not computed (prefix reuse); once, however many choices */
    uint32_t draft_tokens, accepted_tokens;    /* speculation: proposed, and of these found right */
    uint32_t preemptions;                      /* how often it was put back for want of pages */
    bool replayed;                             /* the response cache had the answer */
    uint64_t queued_ns, load_ns, prefill_ns, first_token_ns /* since submission */, decode_ns;
};

/* The model should be ready (model_load). If it is not any more, because it is swapped or made room just then, the generation waits until it is
 * loaded again, and ends with the error if it cannot be. It takes its own reference on the model and drops it at its end. SH_ERR_LIMIT: the
 * prompt does not fit the context; SH_ERR_INVALID: a token that is none, more choices than sequences, or more dimensions than the model has;
 * SH_ERR_UNSUPPORTED: tokens are wanted of a model that only makes vectors; SH_ERR_BUSY: the queue
 * is full; SH_ERR_CANCELLED: shutting down; SH_ERR_NOT_FOUND: the file was replaced by one with another vocabulary since the tokens were made. */
enum sh_code gen_submit(struct model *model, const struct gen_params *params, struct generation **out, struct sh_error *err);
bool gen_next(struct generation *generation, struct gen_event *event);
void gen_cancel(struct generation *generation, const char *reason);
void gen_release(struct generation *generation);
uint64_t gen_id(const struct generation *generation); /* unique in this process, for Cancel */
uint64_t gen_new_id(void);                            /* for one that is submitted later, with it in its params */
bool gen_cancel_id(uint64_t id,
                   const char *reason); /* false: no such running or queued generation. A queued one ends before it returns */
void gen_get_usage(const struct generation *generation, struct gen_usage *out);

#endif

/*
 * scheduler_private.h - the inside of a runner, for the files that make it: scheduler.c (the thread: admission, steps, ends), queue.c (what
 * waits), admission.c (who gets
 * sequences and pages), batch.c (which rows a step has), choice.c (what becomes of a token), embedding.c (texts to vectors), session.c (files of
 * what the cache holds).
 *
 * A generation that was admitted is a struct run. Runs stand in a list, normal priority before low, within that the oldest first: so
 * prompts are taken in, and the other way round runs are preempted. A run that is over (finished, failed, cancelled) asks for no more rows; it
 * is ended when nothing of it is in flight any more. Everything but what the runner's lock guards belongs to the runner's thread.
 */
#ifndef SHIMMYD_SCHEDULER_PRIVATE_H
#define SHIMMYD_SCHEDULER_PRIVATE_H

#include "daemon/generation_private.h"
#include "daemon/pace.h"
#include "daemon/scheduler.h"
#include "daemon/speculate.h"

struct constraint;
struct texts; /* embedding.c */
struct run;

/* One choice of a run. Its tokens are the prompt's and behind them those of its answer; `at` of them were submitted. A row at the position
 * n_prompt - 1 + sampled samples the next one; rows before that only enter the model, whether for the first time or again. */
struct choice {
    struct run *run;
    uint32_t index;
    uint32_t sequence;
    bool has_sequence, active;
    bool follows; /* it waits for the leader to have the prompt, which it then shares */
    bool empty;   /* its grammar allows nothing but the empty text */
    struct sh_text_stream *stream;
    struct constraint *constraint; /* NULL: no grammar */
    int32_t *tokens;               /* [received] */
    uint32_t cap_tokens;
    uint32_t at;        /* tokens of prompt and answer that were submitted: the sequence's length, */
    uint32_t settled;   /* and those of them whose steps are finished */
    uint32_t entry;     /* up to here they are taken in in chunks, as a prompt is, whatever they are; from there on it decodes */
    uint32_t sampled;   /* tokens of the answer for which a row was submitted or none was needed, */
    uint32_t received;  /* those that the host knows, */
    uint32_t generated; /* and those that were reported */
    uint32_t in_flight; /* steps that hold rows of it */
    struct speculation *speculation; /* NULL: none */
    struct speculate_ask ask; /* its guess: of the step that is being made, or of the one it is in */
    uint32_t right;     /* tokens of the guess that were found right so far, */
    bool differed;      /* and whether one was found wrong */
    sh_ticket ticket;   /* of its last row that sampled, */
    uint32_t row;       /* and which one it was */
    uint64_t first_ns;
};

struct run { /* one generation being served */
    struct run *next;
    struct runner *runner;
    struct generation *g;
    uint64_t order; /* of admission */
    struct choice *choices; /* [n_choices]; NULL for texts */
    struct texts *texts;    /* of a request for vectors */
    uint32_t leader;        /* the choice that takes in the prompt for those that follow */
    uint32_t shared;        /* tokens of the prompt that they share */
    uint32_t counted;       /* tokens of the prompt that were counted as taken in */
    uint32_t echoed;        /* with echo_logprobs: tokens of the prompt whose successor was told of */
    uint32_t limit;         /* tokens per choice */
    uint32_t share;         /* rows of a step for a choice that decodes, at most */
    bool overlap_prompt, overlap_decode; /* its rows may be submitted while such are in flight */
    uint32_t in_flight;     /* steps that hold rows of it */
    bool suspended;         /* it gave up its pages and waits for others */
    bool preempted;         /* it was suspended once */
    bool undone;            /* a step with rows of it failed: it goes on where it was before, see admission_after_failure */
    bool over;
    enum sh_code code; /* how, and why */
    struct sh_error err;
    int32_t *end_tokens; /* those that end a choice; only with min_tokens or a grammar */
    uint32_t n_end_tokens;
    uint64_t start_ns;
};

/* Whose a sequence is. */
struct seat {
    struct run *run; /* NULL: nobody's */
    struct choice *choice; /* NULL: a text's */
};

/* The rows of one choice, or one text, in a step. */
struct part {
    struct run *run;
    struct choice *choice;
    uint32_t text; /* without a choice */
    uint32_t first_row, n_rows;
    bool samples; /* the last row does, */
    uint32_t n_guess; /* and so many before it, which are guessed tokens but for the first */
};

struct step {
    sh_ticket ticket;
    uint64_t submitted_ns;
    uint32_t n_rows, n_decoded; /* all, and those of choices that decode */
    uint32_t n_outputs, n_logits; /* rows that ask for something; for all logits */
    struct part *parts;         /* [max_sequences] */
    uint32_t n_parts;
};

enum { STEPS = 2, CLIENTS = 64, SESSIONS = 64 };

struct queue { /* of generations that wait; the runner's lock */
    struct generation *first, **end;
    struct generation *dropped; /* taken out, to be ended by the runner's thread */
    uint32_t n, n_sequences;    /* sequences: that those waiting need */
    struct client {
        uint64_t id, turn; /* the last turn it had; 0: the entry is free */
    } clients[CLIENTS];
    uint64_t turns;
};

struct sessions {
    struct session {
        char *name; /* NULL: none */
        uint64_t salt, used;
        int32_t *tokens;
        uint32_t n;
    } items[SESSIONS]; /* the thread's */
    uint64_t uses;
    struct session_job *jobs; /* the runner's lock */
    uint32_t n_askers;        /* the runner's lock: who wait for a job */
    pthread_cond_t served;
};

struct runner {
    struct runner_params params; /* id is ours; no field of context is 0 that has a default */
    struct sh_model *engine;
    struct sh_context *context;
    const struct sh_vocab *vocab;
    struct sh_model_info info;
    uint32_t max_outputs;
    pthread_t thread;

    /* the thread's */
    struct pace pace;
    struct sh_row *rows;      /* [max_batch_rows] of the step that is being made */
    struct speculator *speculator; /* NULL: none */
    struct speculate_ask *asks;    /* [max_sequences] scratch of a step, */
    struct choice **asking;        /* [max_sequences] and whose they are */
    struct step flights[STEPS]; /* submitted and not waited for, oldest first; the one behind them is being made */
    uint32_t n_flights;
    struct seat *seats;       /* [max_sequences] */
    uint64_t last_order, last_done_ns;
    uint32_t undone;          /* so many runs are, or were and have ended: nothing is submitted until all that is in flight has come back; */
    struct sh_error failure;  /* why */
    uint32_t careful;         /* so many steps more nobody joins those that run: with more of them a step failed; */
    uint32_t care;            /* and so many after the next that fails */
    uint64_t made, forced, guessed, guessed_right; /* tokens since they were counted */

    pthread_mutex_t lock; /* the rest */
    pthread_cond_t wake;
    struct queue queue;
    struct sessions sessions;
    struct run *runs; /* changed by the thread alone, which may read it without the lock */
    uint32_t n_runs, n_seats; /* seats: sequences that the runs were promised */
    bool draining, stopping, lost;
    uint64_t prompt_tokens, generated_tokens, draft_tokens, accepted_tokens, preemptions;
    uint64_t idle_since_ns, progress_ns;
    uint64_t cache_limit; /* tokens; see runner_limit_cache */
    struct generation *beginning; /* taken out of the queue, and not yet among the runs */
    uint32_t step_rows; /* see struct runner_stats */
    uint64_t steps, longest_step_ns;
    char *stuck; /* why nothing is accepted; NULL: all is well */
};

/* ---- queue.c */
void queue_init(struct queue *queue);
/* Ends what was cancelled while it waited, or whose time is over. */
void queue_sweep(struct runner *r);
/* The generation whose turn it is: normal priority before low, the clients in turn, a client's own in order; those are passed over that `later`
 * names. NULL: none. The lock is held. */
struct generation *queue_next_locked(struct runner *r, bool (*later)(struct runner *r, struct generation *g));
/* Out of the queue, and its client had its turn. The lock is held. */
void queue_take_locked(struct runner *r, struct generation *g);
/* Sequences that it needs at once. */
uint32_t queue_sequences_of(const struct generation *g);

/* ---- admission.c */
/* Takes back who was put aside, and begins what waits, as far as there is room. */
void admission_next(struct runner *r);
/* A step found no pages, and nothing is in flight: somebody is put aside, or fails for want of them. */
void admission_make_room(struct runner *r, enum sh_code code, struct sh_error *err);
/* A step failed and the device is not lost; nothing is in flight. Runs of it that are undone begin again from what the cache has of them: the one
 * that was alone in it fails; of several, the older half at once, the others when that gets on. So what fails is what fails by itself. */
void admission_after_failure(struct runner *r);
/* What the cache has of the choice's tokens becomes the beginning of its sequence, which is empty; what it computes is shared from now on. */
enum sh_code choice_reuse(struct choice *choice, struct sh_error *err);

/* ---- session.c */
void session_remember(struct run *run); /* it ends */
bool session_waits(struct runner *r);
void session_serve(struct runner *r, bool refuse); /* nothing is in flight */
/* Whose turn has not come is told why it never will. The runner's lock is held; any thread. */
void session_fail_locked(struct runner *r, const char *reason);
void session_leave(struct runner *r);              /* the thread has ended: until the last who asked is gone */
void session_free(struct sessions *sessions);

/* ---- scheduler.c: for the other files */
/* Taken out of the queue, and counted as running. */
void run_begin(struct runner *r, struct generation *g);
/* Where the last whole page of its prompt ends, of which the prompt's last token is no part. */
uint32_t run_last_page(const struct run *run);
/* It asks for no more rows. The first call counts. */
void run_over(struct run *run, enum sh_code code, const struct sh_error *err);
void runner_count_prompt(struct runner *r, uint32_t tokens); /* taken in */

/* ---- batch.c */
/* Puts the rows of the next step into r->rows and *step; none: what is in flight has to come back first, or nobody wants any. What
 * goes wrong is over by itself. */
void batch_make(struct runner *r, struct step *step);
/* It was submitted. */
void batch_submitted(struct runner *r, struct step *step);
/* Puts a row behind those of the step; the caller looked that there is room. */
struct sh_row *batch_add(struct runner *r, struct step *step, uint32_t sequence, uint32_t position);
struct part *batch_part(struct step *step, struct run *run, struct choice *choice, uint32_t text);

/* ---- choice.c */
enum sh_code choices_begin(struct run *run, struct sh_error *err);
void choices_end(struct run *run);
/* The choice's own sequence, if it has one, is given back. */
void choice_drop_sequence(struct choice *choice);
/* It ends here for want of room (GEN_LENGTH). Nothing of it is in flight. */
void choice_cut(struct choice *choice);
/* The tokens that the grammar leaves no choice about, as many as there is room for. Then the choice is finished, or *mask is what its next token
 * is sampled under, or that is NULL: more such tokens follow, so the step's last row samples nothing. */
enum sh_code choice_take_forced(struct choice *choice, uint32_t room, const uint32_t **mask, struct sh_error *err);
enum sh_code choice_take_result(struct choice *choice, const struct sh_result *result, struct sh_error *err);
/* All results of a step with a guess of its were taken: what follows the first token that was not as guessed is forgotten. */
enum sh_code choice_settle_guess(struct choice *choice, struct sh_error *err);
/* An event without a token: STARTED, or the first of PROMPT. */
void run_push(struct run *run, enum gen_event_kind kind, int32_t token);

/* ---- embedding.c */
/* Whether texts of these lengths can be embedded at all: before they are queued. Any thread. */
enum sh_code embedding_check(const struct runner *r, const struct gen_params *p, struct sh_error *err);
enum sh_code embedding_begin(struct run *run, struct sh_error *err);
void embedding_end(struct run *run);
/* Adds rows to the step, at most `room`, but an encoder's first text whole. */
enum sh_code embedding_rows(struct run *run, struct step *step, uint32_t room, struct sh_error *err);
void embedding_submitted(struct run *run, const struct part *part);
enum sh_code embedding_take_result(struct run *run, const struct sh_result *result, struct sh_error *err);
/* Gives up its pages; the texts that are not done begin again. Nothing of it is in flight. */
void embedding_restart(struct run *run);
/* There are no pages: of its texts only the first that is not done goes on, the others begin again, one by one. False: so it was already. Nothing
 * of it is in flight. */
bool embedding_shrink(struct run *run);

/* warmup.c: a chunk of a prompt and a step of one row, so that pipelines are made and memory is faulted in before somebody waits for that.
 * Before the runner's thread starts. Nothing of it stays: no sequence, no page in use, no token counted. What fails here would fail every request. */
enum sh_code warm_up(struct sh_context *context, const struct sh_model_info *info, uint32_t max_rows, struct sh_error *err);

#endif

/*
 * openai.h - what /v1/completions, /v1/chat/completions and /v1/embeddings share: from a parsed request over the model's load to
 * generations and back as one JSON answer or as a stream of events. The families differ in how a prompt becomes tokens and in the
 * shape of a choice; embeddings are one generation over all inputs, and have an answer of their own.
 *
 * A job belongs to its connection's thread but while it is prepared (phase JOB_PREPARING), which takes long for a long prompt and
 * happens in work.h's threads. load_done (openai.c) comes from the loader's.
 */
#ifndef SHIMMYD_HTTP_OPENAI_H
#define SHIMMYD_HTTP_OPENAI_H

#include "daemon/generation.h"
#include "daemon/http/internal.h"
#include "daemon/models.h"
#include "daemon/work.h"

struct api_message; /* chat.c: the parts of one answer */

struct api_choice {
    uint32_t index; /* in the response */
    bool begun, finished;
    char *text; /* whole answers only, like the next two */
    size_t length, capacity;
    json_t *token_ids, *logprobs;
    uint64_t chars; /* code points of the answer's text so far, by its tokens: where the next token begins */
    enum gen_finish finish;
    struct api_message *message; /* chats, from `prepare` to `finish` */
};

struct api_part { /* one prompt: one generation of n choices; or one input, all of which are the first one's generation */
    int32_t *ids;
    size_t n_ids;
    char *text; /* echo: the prompt as text */
    size_t text_length;
    json_t *echo_logprobs; /* echo with logprobs: of the prompt's tokens */
    struct generation *generation;
    float *vector; /* embeddings: of this input */
    uint32_t n_vector;
    bool ended;
    struct api_choice *choices; /* n */
};

struct api_piece { /* what one event adds to a choice */
    const char *text;
    size_t length;
    json_t *token_ids, *logprobs; /* NULL: none; lent */
    const char *finish;           /* NULL: goes on */
    bool first, token; /* the choice's first; of a token (the last text of a choice is none) */
};

struct api_job;
struct api_family {
    enum api_kind kind;
    const char *id_prefix, *object, *chunk_object;
    bool begins_at_start; /* a choice's first chunk goes out before its first token */
    /* Fills ids (and text) of all parts. Not in the connection's thread. */
    bool (*prepare)(struct api_job *job, struct api_error *err);
    /* Adds one token to a log-prob object, making it if *object is NULL. logprob NULL: none (the first token of a prompt). */
    void (*add_logprob)(const struct api_job *job, json_t **object, int32_t token, const struct gen_logprob *logprob,
                        uint64_t offset);
    /* A choice of a chunk and of a whole answer. New references. */
    json_t *(*chunk)(const struct api_job *job, const struct api_part *part, const struct api_choice *choice,
                     const struct api_piece *piece);
    json_t *(*whole)(const struct api_job *job, const struct api_part *part, const struct api_choice *choice);
    /* The whole answer instead of one made of choices; NULL in a family that has these. malloc'd; NULL: no memory. */
    char *(*answer)(const struct api_job *job, size_t *length);
    /* Where an answer's text is not passed on as it is: takes all that comes of a choice, and sends it with api_send_choice or keeps it for
     * `whole`. A failure is the job's error. NULL: the text is the answer. */
    void (*take)(struct api_job *job, struct api_part *part, struct api_choice *choice, const struct api_piece *piece);
    void (*finish)(struct api_job *job); /* frees what the family keeps in a job; NULL: nothing */
};

struct api_job {
    struct http_request *request;
    const struct api_family *family;
    struct api_request q;
    struct model *model; /* a reference, as resolved */
    struct model *ready; /* a reference that load_done got */
    const struct sh_vocab *vocab;
    char *model_id, id[64], fingerprint[32];
    json_int_t created;
    const char *const *stops; /* the request's and the template's; the array alone is owned */
    uint32_t n_stops;
    const struct sh_chat *chat; /* chats: the model's, lent with `ready`, or named_chat; like the next four set by `prepare` */
    struct sh_chat *named_chat; /* of the template that the request names; owned */
    struct sh_chat_info chat_info;
    struct sh_chat_prompt prompt; /* outlives the answers; text and parts are gone once it is tokenised */
    struct sh_grammar *grammar;   /* what every choice is held to; a reference; NULL: nothing */
    char *grammar_source;         /* see gen_params */
    size_t grammar_source_length;
    struct api_part *parts;
    uint32_t n_parts;
    uint32_t n_generations, n_submitted, n_ended; /* as many as parts, or one */
    uint32_t n_replayed;                          /* of those submitted: the response cache had the answer */
    struct gen_usage usage;
    uint64_t tokens_taken; /* generated so far: what the client is charged for when it is over */
    bool counts_reasoning;
    uint64_t reasoning_tokens; /* those of usage.completion_tokens that reasoning was written with */
    struct api_error error; /* status != 0 */
    bool dry;               /* max_tokens is 0: nothing is generated */
    bool drop_tokens;       /* the same, but one token is computed for the sake of the prompt's log-probs */
    enum { JOB_NEW, JOB_LOADING, JOB_PREPARING, JOB_RUNNING } phase;
    struct work work;
    bool started, overrun; /* a generation has left the queue; the reader was too slow */
    uint64_t load_began_ns, load_ns;
    uint32_t max_prompt_tokens; /* here, since a work that goes on at the end may outlive the server */

    char *out; /* events not read yet */
    size_t out_length, out_capacity, out_taken;
    bool out_ended;

    struct load *load;
    /* under the request's lock */
    bool load_done, closed, prepared;
    enum sh_code load_code;
    struct sh_error load_error;
};

/* Tokenises text prompts, takes token ids over. For families' `prepare`; param names the field in an error. */
bool api_prompts_ids(struct api_job *job, const char *param, struct api_error *err);
/* The grammar of the request's constraint, a reference; NULL if it has none. What is wrong with it is a 400 that names the field. */
bool api_constraint_compile(struct api_job *job, struct sh_grammar **out, struct api_error *err);
/* Streams: an event of one choice, whose reference it takes; NULL: no memory. `first`: of this choice. */
void api_send_choice(struct api_job *job, struct api_part *part, json_t *choice, bool first);
bool api_append(char **text, size_t *length, size_t *capacity, const char *more, size_t n); /* false: no memory */

enum http_step api_run(struct http_request *request, const struct api_family *family);

/* The bytes of a token as its name in log-probs; what is no UTF-8 as escapes behind `escape` ("bytes:" or ""). New reference. */
json_t *api_token_name(const struct api_job *job, int32_t token, const char *escape);
double api_logprob(float logprob); /* JSON has no infinity: not below -9999 */
json_t *api_ids_json(const int32_t *ids, size_t count);

#endif

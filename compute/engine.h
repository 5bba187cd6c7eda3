/*
 * engine.h - the one public header of libshimmy: a GGUF file in, logits and tokens out.
 *
 * What it is. The engine loads a model file, binds it to one or more devices (Vulkan or CPU) and runs
 * batches of tokens of many sequences on it. It has no sockets, no HTTP, no daemon state; it never exits
 * the process and never prints: what it has to say it returns, or hands to the log callback.
 *
 * Errors. Every function that can fail returns enum sh_code (SH_OK is 0) and fills the caller's
 * struct sh_error, which may be NULL. The message names the file, tensor or key, the byte offset where
 * there is one, what was found, what was expected, and what to do.
 *
 * Ownership. Objects are opaque and come in create/destroy (open/close, load/unload) pairs; the destroying
 * function takes NULL. What an object lends (const pointers) lives as long as the object unless said.
 *
 * Versioning. Parameter structs begin with `size` = sizeof(struct); fields are only appended. Zero means
 * "the default" for every field unless said otherwise.
 *
 * Thread-safety by object:
 *   sh_device   any thread; locked inside (one queue). Outlives the models loaded on it.
 *   sh_vocab    immutable: any thread.
 *   sh_template, sh_chat: immutable: any thread.
 *   sh_grammar  locked inside, counted references: any thread.
 *   sh_model    immutable after load: any thread. Outlives its contexts.
 *   sh_context  one thread at a time (sh_context_get_stats: any thread).
 *   sh_text_stream, sh_matcher, sh_answer, sh_file: one thread at a time.
 *
 * Units: bytes, tokens and rows are named so; times are nanoseconds (_ns); arrays are row-major, the last
 * dimension contiguous; activations and logits are float32.
 */
#ifndef SHIMMY_ENGINE_H
#define SHIMMY_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sh_device;
struct sh_file;
struct sh_vocab;
struct sh_text_stream;
struct sh_model;
struct sh_context;

#define SH_API __attribute__((visibility("default")))
#define SH_PRINTF(fmt_index, args_index) __attribute__((format(printf, fmt_index, args_index)))

/* ---- errors and logging ---------------------------------------------------------------------------- */

enum sh_code {
    SH_OK = 0,
    SH_ERR_INVALID,          /* the caller's mistake: a bad argument, a row out of order */
    SH_ERR_NOT_FOUND,        /* no such file, device, name */
    SH_ERR_IO,               /* open, read, short file while reading */
    SH_ERR_FORMAT,           /* the file is truncated, inconsistent or hostile */
    SH_ERR_UNSUPPORTED,      /* well formed, but not something this build computes */
    SH_ERR_NO_MEMORY,        /* host memory */
    SH_ERR_NO_DEVICE_MEMORY, /* device memory */
    SH_ERR_NO_PAGES,         /* the context's KV pages are used up; nothing was changed */
    SH_ERR_LIMIT,            /* beyond the context length, the batch size or the number of sequences */
    SH_ERR_BUSY,             /* two submissions are already in flight */
    SH_ERR_TIMEOUT,          /* sh_wait: not finished yet */
    SH_ERR_CANCELLED,        /* the progress callback asked to stop */
    SH_ERR_DEVICE,           /* the device or its driver failed */
    SH_ERR_DEVICE_LOST,      /* the device is gone; models on it are unusable */
};

/* A short constant name such as "no_memory"; never NULL. */
SH_API const char *sh_code_name(enum sh_code code);

struct sh_error {
    enum sh_code code;
    char message[512]; /* one line, NUL-terminated, no trailing full stop or line feed */
};

enum sh_log_level { SH_LOG_ERROR = 3, SH_LOG_WARNING = 4, SH_LOG_NOTICE = 5, SH_LOG_INFO = 6, SH_LOG_DEBUG = 7 };

/* Called from any thread; `line` has no line feed. Set once, before anything else; NULL is silence. */
typedef void (*sh_log_fn)(void *user, enum sh_log_level level, const char *line);
SH_API void sh_set_log(sh_log_fn fn, void *user, enum sh_log_level max_level);

SH_API const char *sh_version(void); /* "0.1.0" */

/* ---- devices ---------------------------------------------------------------------------------------- */

enum sh_device_kind {
    SH_DEVICE_CPU = 0,      /* the CPU executor */
    SH_DEVICE_DISCRETE = 1, /* Vulkan */
    SH_DEVICE_INTEGRATED = 2,
    SH_DEVICE_VIRTUAL = 3,
    SH_DEVICE_SOFTWARE = 4, /* a Vulkan driver that runs on the CPU (llvmpipe); used only when named */
};
SH_API const char *sh_device_kind_name(enum sh_device_kind kind); /* "cpu", "discrete", ... */

struct sh_device_info {
    enum sh_device_kind kind;
    char name[256];         /* the driver's name of it; for the CPU its model name */
    char driver[128];       /* "llvmpipe Mesa 22.3.6 (LLVM 15.0.6)"; for the CPU the instruction set in use */
    char tier[32];          /* Vulkan: base, fp16, intdot, coopmat; CPU: scalar, avx2, ... */
    uint8_t uuid[16];       /* Vulkan deviceUUID; zero for the CPU */
    uint64_t memory_bytes;  /* device-local heap; host memory for CPU and software devices */
    uint64_t free_bytes;    /* what is free of it now, 0 where the driver does not tell */
    bool usable;            /* false: `reason` says which requirement is missing */
    bool selected;          /* filled by sh_device_select */
    char reason[256];       /* why selected, or why not */
};

/* Lists the CPU and every Vulkan device. Loads Vulkan drivers into this process (a broken one can crash it, and
 * an open software driver keeps tens of MB resident), so a daemon calls it in a short-lived child. Fills at most
 * `max`; *count is the number filled. A missing Vulkan loader is no error: the CPU alone is listed. */
SH_API enum sh_code sh_device_enumerate(struct sh_device_info *infos, uint32_t max, uint32_t *count, struct sh_error *err);

/* Chooses among enumerated devices and writes `selected` and `reason` into every one of them. `want` is "auto" (NULL
 * is the same), "cpu", or a case-insensitive part of a device's name; ambiguous and unknown names, and named but
 * unusable devices, are errors. auto: discrete, integrated, virtual, then the CPU; never software. Pure function. */
SH_API enum sh_code sh_device_select(struct sh_device_info *infos, uint32_t count, const char *want, uint32_t *chosen,
                                     struct sh_error *err);

enum sh_tune { /* Vulkan: whether shapes of workgroups are measured; results are the same */
    SH_TUNE_OFF,
    SH_TUNE_AUTO, /* not on software devices */
    SH_TUNE_ON,
};
struct sh_device_params {
    size_t size;
    const struct sh_device_info *info; /* which one, as enumerated (by kind, uuid and name) */
    const char *cache_dir;             /* where the pipeline cache is kept; NULL: none */
    uint32_t threads;                  /* CPU: 0 = one per physical core, within the quota. The CPU pool belongs to the process. */
    const char *tier;                  /* force a Vulkan tier or CPU instruction set; NULL: $SHIMMY_VULKAN / $SHIMMY_CPU,
                                          else the best. One that the device lacks is an error. */
    bool validation;                   /* Vulkan: enable the validation layer; its messages go to the log as errors */
    enum sh_tune tune;                 /* choices are kept in cache_dir */
};
SH_API enum sh_code sh_device_open(const struct sh_device_params *params, struct sh_device **out, struct sh_error *err);
SH_API void sh_device_close(struct sh_device *device);
SH_API const struct sh_device_info *sh_device_get_info(const struct sh_device *device);

/* What this process holds on the device now, by use. Any thread. */
struct sh_device_memory {
    uint64_t weights_bytes, cache_bytes, activation_bytes, staging_bytes;
    uint64_t free_bytes; /* what the driver says is free, whoever holds the rest; 0: it does not tell */
};
SH_API void sh_device_get_memory(const struct sh_device *device, struct sh_device_memory *out);

/* Number of validation-layer messages since the device was opened (0 unless params.validation). */
SH_API uint64_t sh_device_validation_count(const struct sh_device *device);

/* ---- files: looking at a GGUF without loading its weights --------------------------------------------- */

enum sh_value_type { /* numbered as in the file format */
    SH_VALUE_U8 = 0, SH_VALUE_I8, SH_VALUE_U16, SH_VALUE_I16, SH_VALUE_U32, SH_VALUE_I32, SH_VALUE_F32, SH_VALUE_BOOL,
    SH_VALUE_STRING, SH_VALUE_ARRAY, SH_VALUE_U64, SH_VALUE_I64, SH_VALUE_F64,
};
SH_API const char *sh_value_type_name(enum sh_value_type type); /* "u8", "str", "arr", ... */

struct sh_file_summary {
    uint32_t version, shards;
    uint64_t alignment, file_bytes; /* all shards */
    uint64_t n_metadata, n_tensors;
    const char *architecture; /* "" where the key is missing; lent */
    const char *name;         /* general.name or "" */
    char type_name[32];       /* "Q4_K_M" from general.file_type, else the commonest matrix type */
    uint64_t n_parameters;
    uint64_t context_length; /* native; 0 unknown */
    bool adapter;            /* general.type is "adapter": for sh_model_params.lora, no model of its own */
    const char *base;        /* of an adapter: the name of the model it was made for (general.base_model.0.name) or "" */
    char other[100];         /* what it is, if by its metadata it is no language model ("a multimodal projector (...)"); else "" */
};
struct sh_file_value { /* one metadata entry; strings are not NUL-terminated by contract, use length */
    const char *key;
    enum sh_value_type type;      /* SH_VALUE_ARRAY: see element_type and count */
    enum sh_value_type element_type;
    uint64_t count;               /* elements of an array, else 1 */
    uint64_t offset;              /* byte offset of the entry in its file */
};
struct sh_file_tensor {
    const char *name;
    const char *type_name; /* "Q4_K", or "type 99" for one that is not known */
    bool type_supported;   /* the engine computes with it */
    uint32_t rank;
    uint64_t dims[4]; /* dims[0] is contiguous */
    uint64_t offset, bytes;
    uint32_t shard;
};
/* Opens and checks header, metadata and tensor directory of all shards. Nothing refers to the file afterwards. */
SH_API enum sh_code sh_file_open(const char *path, struct sh_file **out, struct sh_error *err);
SH_API void sh_file_close(struct sh_file *file);
SH_API void sh_file_get_summary(const struct sh_file *file, struct sh_file_summary *out);
SH_API bool sh_file_get_value(const struct sh_file *file, uint64_t index, struct sh_file_value *out);
/* Element `element` of entry `index` as text (numbers in decimal, bool as true/false, strings as they are); writes at most
 * cap bytes including NUL, returns the length it would have had. Nested arrays print as "[...]". */
SH_API size_t sh_file_value_text(const struct sh_file *file, uint64_t index, uint64_t element, char *buf, size_t cap);
SH_API bool sh_file_get_tensor(const struct sh_file *file, uint64_t index, struct sh_file_tensor *out);
/* Would it load? SH_OK, or the error that sh_model_load would give for architecture, types, shapes, missing tensors or
 * the kind of tokenizer. */
SH_API enum sh_code sh_file_check(const struct sh_file *file, struct sh_error *err);

/* What this build computes, for documents and listings. */
struct sh_architecture_info {
    const char *name;   /* general.architecture */
    const char *family; /* "dense", "experts", "recurrent", "embedding" */
    const char *note;   /* models that come under this name */
};
SH_API bool sh_architecture_at(uint32_t index, struct sh_architecture_info *out); /* false: no more */
SH_API const char *sh_weight_type_at(uint32_t index);                             /* "F32", ...; NULL: no more */

/* Quantises a model file of F32, F16, BF16 or Q8_0 (all shards) into one file, with the reference quantisers and without an importance matrix.
 * `type` is one that sh_quantize_type_at lists, whatever its case ("Q4_K" is Q4_K_M); which tensors get more bits, or stay, is as llama-quantize has it.
 * Written beside `out`, brought to the disk and renamed, so that `out` is whole or as it was. The result does not depend on the threads. */
struct sh_quantize_file_params {
    size_t size;
    const char *in, *out, *type;
    uint32_t threads; /* 0: as many as there are CPUs */
    bool (*progress)(void *user, const char *tensor, double fraction); /* false cancels; NULL: none */
    void *user;
};
SH_API enum sh_code sh_quantize_file(const struct sh_quantize_file_params *params, struct sh_error *err);
SH_API const char *sh_quantize_type_at(uint32_t index);   /* "Q4_K_M", ...; NULL: no more */
SH_API const char *sh_quantize_type(const char *type); /* the listed one that it means ("q4_k": "Q4_K_M"); NULL: there is none */

/* ---- vocabulary and text ------------------------------------------------------------------------------ */

SH_API enum sh_code sh_vocab_open(const char *gguf_path, struct sh_vocab **out, struct sh_error *err); /* vocabulary alone */
SH_API void sh_vocab_close(struct sh_vocab *vocab); /* only for one that sh_vocab_open made */

enum { SH_TOKENIZE_SPECIAL = 1, /* add BOS/EOS ([CLS]/[SEP]) as the file says */
       SH_TOKENIZE_PARSE = 2 };  /* control tokens written in the text become that token */
/* On SH_OK *ids is malloc'd (free it), *count its length. `text` may hold any bytes, NUL and invalid UTF-8 too: of ill-formed bytes
 * "bpe" and "spm" make the tokens of these bytes, which come back as they were (a byte that the vocabulary has no token for becomes
 * its unknown token or is left out); "unigram" reads each as U+FFFD; "wpm" leaves them out, as it does U+FFFD. */
SH_API enum sh_code sh_tokenize(const struct sh_vocab *vocab, const char *text, size_t length, uint32_t flags, int32_t **ids,
                                size_t *count, struct sh_error *err);
/* The text of a sequence; *text malloc'd and NUL-terminated (length does not count the NUL). With `special` control
 * tokens are written out, else left out. Ids out of range are SH_ERR_INVALID. The space that a space prefix added
 * at the very beginning is removed only if `strip_prefix`. */
SH_API enum sh_code sh_detokenize(const struct sh_vocab *vocab, const int32_t *ids, size_t count, bool special, bool strip_prefix,
                                  char **text, size_t *length, struct sh_error *err);

SH_API uint32_t sh_vocab_size(const struct sh_vocab *vocab);
SH_API int32_t sh_vocab_bos(const struct sh_vocab *vocab); /* -1: none */
SH_API int32_t sh_vocab_eos(const struct sh_vocab *vocab);
SH_API bool sh_vocab_is_end(const struct sh_vocab *vocab, int32_t token); /* any end-of-generation token: EOS, EOT, <|im_end|>... */
/* The bytes of one token as generated (space marks resolved, byte tokens as their byte, control tokens as text if
 * `special`, else empty). Lent; not NUL-terminated. Out of range: length 0. */
SH_API const char *sh_vocab_piece(const struct sh_vocab *vocab, int32_t token, bool special, size_t *length);
SH_API const char *sh_vocab_kind(const struct sh_vocab *vocab); /* "spm", "bpe", "wpm", "unigram" */
SH_API const char *sh_vocab_pre(const struct sh_vocab *vocab);  /* the pre-tokenizer in use; "" for all but bpe */
SH_API const char *sh_vocab_chat_template(const struct sh_vocab *vocab); /* the model's own template text or NULL; lent */

/* Streaming detokenisation with stop strings. What it returns is valid UTF-8 as long as the model's bytes are (a code point is
 * held back until it is whole; bytes that can never become one leave as U+FFFD), and nothing of a stop string is ever emitted:
 * text that may still grow into one is held back. The stop string that is complete first wins, of several that end together the longest;
 * empty ones never match; one that is not UTF-8 is SH_ERR_INVALID. The vocabulary must outlive the stream, the strings need not. */
SH_API enum sh_code sh_text_stream_create(const struct sh_vocab *vocab, const char *const *stops, uint32_t n_stops, bool special,
                                          struct sh_text_stream **out, struct sh_error *err);
SH_API void sh_text_stream_destroy(struct sh_text_stream *stream);
/* The text that may be shown after this token (lent until the next call; *length may be 0). True: a stop string is complete,
 * *text is the last text, pushing further is an error of the caller. *stop_index says which. */
SH_API bool sh_text_stream_push(struct sh_text_stream *stream, int32_t token, const char **text, size_t *length, uint32_t *stop_index);
/* Control tokens whose text is written although `special` is off: those that an answer's parts are marked with (sh_chat_info.shown). Copied,
 * instead of those of an earlier call; before the first push. SH_ERR_INVALID: one that is no token. */
SH_API enum sh_code sh_text_stream_show(struct sh_text_stream *stream, const int32_t *tokens, uint32_t count, struct sh_error *err);
/* While stop strings are held off none is looked for, and one that begins before they are looked for again is not found. */
SH_API void sh_text_stream_hold_off_stops(struct sh_text_stream *stream, bool hold_off);
/* What was held back, at the end of a generation that did not stop by a stop string. */
SH_API void sh_text_stream_finish(struct sh_text_stream *stream, const char **text, size_t *length);

/* A prompt is made of parts, some of which came from a request's messages (sh_chat_apply). */
struct sh_chat_part { /* text[begin, end); parts cover the text in order */
    size_t begin, end;
    bool literal;
};
/* Tokenises it: control tokens are parsed in what is the template's, and not in literal parts, so that a message cannot smuggle one in. A BOS
 * that the prompt itself begins with is not doubled. */
SH_API enum sh_code sh_chat_tokenize(const struct sh_vocab *vocab, const char *text, const struct sh_chat_part *parts, uint32_t n_parts,
                                     int32_t **ids, size_t *count, struct sh_error *err);

/* ---- templates ---------------------------------------------------------------------------------------- */

struct sh_template; /* immutable: any thread */
/* Compiles a chat template: the Jinja language as the models' authors use it (trim_blocks, lstrip_blocks, loop controls, no
 * escaping). `text` may hold any bytes. SH_ERR_FORMAT: wrong, with the line and what was found; SH_ERR_LIMIT: too large or nested
 * too deeply. Nothing refers to `text` afterwards. */
SH_API enum sh_code sh_template_create(const char *text, size_t length, struct sh_template **out, struct sh_error *err);
SH_API void sh_template_destroy(struct sh_template *tmpl);
/* Renders it with the variables in a JSON object (UTF-8). `now` is what strftime_now formats, "2025-02-21T14:30:05"; NULL: the local
 * time. *text malloc'd and NUL-terminated. SH_ERR_INVALID: raise_exception was called, the message is its argument, or the variables
 * are no JSON object or `now` no moment; SH_ERR_FORMAT: the template failed, with the line; SH_ERR_LIMIT: it goes beyond the
 * limit that the message names (steps, depth, size of a text, memory). */
SH_API enum sh_code sh_template_render(const struct sh_template *tmpl, const char *variables, size_t variables_length,
                                       const char *now, char **text, size_t *length, struct sh_error *err);

/* ---- grammars: what a text may be ------------------------------------------------------------------------- */

struct sh_grammar; /* compiled for one vocabulary, which must outlive it */
struct sh_matcher; /* where one text stands in a grammar */

enum sh_grammar_kind {
    SH_GRAMMAR_NONE = 0,
    SH_GRAMMAR_GBNF,   /* rules as llama.cpp writes them; the text is what `root` derives */
    SH_GRAMMAR_SCHEMA, /* a JSON Schema; the text is a JSON value that it allows. shimmyd-http(7) lists what is enforced */
    SH_GRAMMAR_OBJECT, /* any JSON object; no text is given */
    SH_GRAMMAR_REGEX,  /* the whole text matches it */
    SH_GRAMMAR_CHOICE, /* one of the strings of a JSON array */
};
/* SH_ERR_INVALID: not well formed, with the place (line and column, or the schema's path) and what was expected; SH_ERR_UNSUPPORTED:
 * something that would not be enforced, by name; SH_ERR_LIMIT: too large or too deep. Grammars that were compiled lately are kept with
 * the vocabulary, so the same text again costs next to nothing. Release with sh_grammar_unref. */
SH_API enum sh_code sh_grammar_create(const struct sh_vocab *vocab, enum sh_grammar_kind kind, const char *text, size_t length,
                                      struct sh_grammar **out, struct sh_error *err);
SH_API struct sh_grammar *sh_grammar_ref(struct sh_grammar *grammar);
SH_API void sh_grammar_unref(struct sh_grammar *grammar); /* takes NULL */
SH_API uint32_t sh_grammar_n_vocab(const struct sh_grammar *grammar); /* tokens of its vocabulary, and bits of its masks */

SH_API enum sh_code sh_matcher_create(struct sh_grammar *grammar, struct sh_matcher **out, struct sh_error *err); /* takes a reference */
SH_API void sh_matcher_destroy(struct sh_matcher *matcher);
/* The tokens that may come next: [(n_vocab + 31) / 32] words, bit token % 32 of word token / 32; lent until the next call for this
 * matcher. *count is how many, *only the token if it is one, else -1. End tokens are among them only where the grammar itself names them: with
 * sh_matcher_can_end the text may end here, and the caller adds them. Neither a token nor an end: the vocabulary cannot write what the grammar
 * wants. SH_ERR_LIMIT: what may come next is more than can be kept track of. */
SH_API enum sh_code sh_matcher_mask(struct sh_matcher *matcher, const uint32_t **mask, uint32_t *count, int32_t *only,
                                    struct sh_error *err);
SH_API bool sh_matcher_can_end(const struct sh_matcher *matcher);
/* SH_ERR_INVALID: the token may not come here, nothing has changed. */
SH_API enum sh_code sh_matcher_accept(struct sh_matcher *matcher, int32_t token, struct sh_error *err);

/* ---- chats: from messages to a prompt, and from an answer to its parts -------------------------------------- */

struct sh_chat; /* how a model chats: its templates, compiled, and the form of its tool calls and its reasoning */

/* `which`: NULL: the model's own template, or for a model without one a built-in family chosen by the tokens that the vocabulary has; a
 * path (with a '/' or ending in .jinja): that file's text; else the name of a template of the model ("tool_use") or of a built-in family
 * ("chatml", "llama3", ...). SH_ERR_NOT_FOUND lists the names there are. The vocabulary must outlive it. */
SH_API enum sh_code sh_chat_create(const struct sh_vocab *vocab, const char *which, struct sh_chat **out, struct sh_error *err);
SH_API void sh_chat_destroy(struct sh_chat *chat);

struct sh_chat_info { /* lent by the chat */
    const char *name;      /* of the template: "default", "tool_use", a path, "chatml" */
    const char *source;    /* "model", "file", "built-in" */
    const char *reason;    /* why this one, for people */
    const char *tools;     /* form of tool calls: "hermes", "llama3", ..., "generic" where the template does not know tools */
    const char *reasoning; /* form of reasoning: "think", "harmony", ..., "" none */
    const char *const *stops; /* strings that end an answer besides the end tokens */
    uint32_t n_stops;
    const int32_t *shown;  /* control tokens that mark the parts of an answer: their text must reach sh_answer_push */
    uint32_t n_shown;
};
SH_API void sh_chat_get_info(const struct sh_chat *chat, struct sh_chat_info *out);

enum sh_tool_choice { SH_TOOLS_AUTO, SH_TOOLS_NONE, SH_TOOLS_REQUIRED };
struct sh_chat_request { /* texts are UTF-8 and NUL-terminated */
    size_t size;
    const char *messages;  /* JSON array of messages in OpenAI's form: role, content (text, null, parts), name, tool_calls, tool_call_id,
                              reasoning_content */
    const char *tools;     /* JSON array in OpenAI's form; NULL: none */
    enum sh_tool_choice tool_choice; /* NONE: the tools are not shown */
    const char *tool_name; /* with REQUIRED: this function; NULL: any */
    bool single_call;      /* at most one call: a required one is held to that, and of those that come by themselves the first is handed out */
    const char *variables; /* JSON object of further template variables; NULL: none */
    const char *now;       /* for strftime_now, as in sh_template_render; NULL: the local time */
    bool no_generation_prompt;
    bool continue_last;    /* the prompt ends within the last message, which the answer continues */
    bool keep_reasoning;   /* reasoning is content, as the model writes it */
    enum sh_grammar_kind grammar_kind; /* what the answer must be, apart from its reasoning; not together with REQUIRED */
    const char *grammar;
    size_t grammar_length;
};
/* What can be said of a request without a model, which sh_chat_apply says, too: messages, tools and variables are of the right form. */
SH_API enum sh_code sh_chat_check(const struct sh_chat_request *request, struct sh_error *err);
struct sh_chat_prompt {
    char *text; /* malloc'd, like parts; both may be freed, and made NULL, before the rest */
    size_t length;
    struct sh_chat_part *parts; /* what came from the request, so that sh_chat_tokenize parses no control tokens there */
    uint32_t n_parts;
    struct sh_grammar *grammar; /* what the answer is held to; a reference; NULL: nothing */
    struct sh_answer_plan *plan; /* for sh_answer_create */
};
/* SH_ERR_INVALID: the request's fault: no JSON of that form, something that the template refuses (raise_exception), a tool_name that
 * is none of the tools. SH_ERR_FORMAT, SH_ERR_LIMIT: the template failed (sh_template_render); grammars fail as sh_grammar_create does. */
SH_API enum sh_code sh_chat_apply(const struct sh_chat *chat, const struct sh_chat_request *request, struct sh_chat_prompt *out,
                                  struct sh_error *err);
SH_API void sh_chat_prompt_finish(struct sh_chat_prompt *prompt);

/* An answer's text, as it comes, cut into content, reasoning and tool calls. Nothing is lost: what looks like a call and turns out to
 * be none is content. The prompt must outlive it. */
struct sh_answer;
enum sh_answer_kind {
    SH_ANSWER_CONTENT,
    SH_ANSWER_REASONING,
    SH_ANSWER_CALL,      /* a call begins: name and id */
    SH_ANSWER_ARGUMENTS, /* more of the call's arguments: all of a call's together are the text of a JSON object */
};
struct sh_answer_piece {
    enum sh_answer_kind kind;
    uint32_t call;    /* CALL, ARGUMENTS: counted from 0 */
    const char *name; /* CALL */
    const char *id;   /* CALL: as the model wrote it, NULL if it wrote none */
    const char *text; /* the others: valid UTF-8 where what was pushed is, NUL-terminated */
    size_t length;
};
SH_API enum sh_code sh_answer_create(const struct sh_chat_prompt *prompt, struct sh_answer **out, struct sh_error *err);
/* After the last text: it ended within a call, whose arguments are not whole. */
SH_API bool sh_answer_is_cut(const struct sh_answer *answer);
SH_API void sh_answer_destroy(struct sh_answer *answer);
/* `last`: the answer ends with this text (which may be empty). *pieces are lent until the next call. SH_ERR_NO_MEMORY. */
SH_API enum sh_code sh_answer_push(struct sh_answer *answer, const char *text, size_t length, bool last,
                                   const struct sh_answer_piece **pieces, uint32_t *count, struct sh_error *err);

/* ---- models ------------------------------------------------------------------------------------------- */

enum sh_load_phase { SH_LOAD_HEADER, SH_LOAD_WEIGHTS, SH_LOAD_PREPARE, SH_LOAD_DONE };
SH_API const char *sh_load_phase_name(enum sh_load_phase phase); /* "header", "weights", "prepare", "done" */
/* fraction of the whole load, 0..1, never falling. Return false to cancel. Called from the loading thread. */
typedef bool (*sh_progress_fn)(void *user, enum sh_load_phase phase, double fraction);

struct sh_placement { /* layers [first_layer, first_layer + n_layers) run on devices[device]; embedding with the first, head with the last */
    uint32_t first_layer, n_layers, device;
};
#define SH_LAYERS_AUTO UINT32_MAX
struct sh_context_params;
struct sh_lora { /* an adapter: a GGUF file with general.type = adapter, applied to every row at this scale (0 = 1) */
    const char *path;
    float scale;
};
struct sh_model_params {
    size_t size;
    const char *path;        /* a GGUF file; of a sharded model any shard */
    uint32_t context_length; /* tokens; 0 = min(native, 8192). More than the native length is allowed only with rope scaling */
    const struct sh_placement *placement; /* NULL: everything on devices[0]; else covers all layers in ascending order */
    uint32_t n_placement;
    sh_progress_fn progress;
    void *progress_user;
    float rope_scale;        /* 0 = as the file says; a factor >= 1 extends the context linearly */
    const struct sh_lora *lora;
    uint32_t n_lora;
    uint32_t n_host_layers;  /* the experts of the first so many layers (UINT32_MAX: of all) are kept and computed on host_device */
    uint32_t host_device;    /* index into devices; the CPU's */
    uint64_t room_bytes[2];  /* sh_model_plan alone: it may take so much of the device and of the host, whatever is free; 0: what is free */
};
enum sh_pooling { SH_POOL_NONE, SH_POOL_MEAN, SH_POOL_CLS, SH_POOL_LAST };
struct sh_model_info {
    const char *architecture, *name; /* lent */
    char type_name[32];
    uint64_t n_parameters, file_bytes;
    uint32_t n_layers, n_embd, n_heads, n_kv_heads, n_vocab;
    uint32_t context_native, context_length;
    uint64_t weights_bytes[8]; /* per device index given to sh_model_load: resident, after repacking */
    uint32_t n_devices, n_segments;
    uint64_t load_ns;
    uint64_t kv_bytes_per_token_f16; /* of one token, with an f16 cache, in all layers that keep every token */
    enum sh_pooling pooling;   /* what the file asks for; NONE: nothing */
    bool encoder;                    /* a sequence enters whole, in one submission at position 0, and takes no more rows */
    bool has_logits;                 /* false: an embedding model, whose rows can be asked for HIDDEN and POOLED alone */
    uint32_t n_expert, n_expert_used; /* 0: not a mixture of experts */
    uint64_t state_bytes_per_sequence; /* recurrent layers; 0: none */
    uint64_t window_bytes_per_sequence_f16; /* layers with a sliding window hold at most so much, with an f16 cache; 0: none */
};
/* Which layers of a model to put on a device, and which on the host, without loading it: the header is read, and what each layer's
 * weights will take after repacking follows from it. The last layers and the head go to the device, as they do in llama.cpp, the first
 * ones and the embedding to the host. */
struct sh_plan {
    uint32_t n_layers;        /* of the model */
    uint32_t n_device_layers; /* the last so many are on the device */
    uint32_t n_host_layers;   /* for sh_model_params: the experts of the first so many layers are on the host */
    struct sh_placement placement[2]; /* for sh_model_params */
    uint32_t n_placement;
    /* [0] the device, [1] the host; estimates. The cache is that of one sequence of full length. */
    uint64_t weights_bytes[2], cache_bytes[2], activation_bytes[2];
    uint64_t room_bytes; /* what the device has left for all three */
    uint64_t need_bytes[2];  /* the sum of the three, and what is needed besides: staging, tables, what allocators round up; 0: nothing is there */
};
/* devices[0] is the device, devices[1] the host, the CPU executor. n_device_layers: so many, or all if the model has fewer;
 * SH_LAYERS_AUTO: as many as fit into what is free on the device now. *params as for the load (its placement and host_device are not
 * looked at), *context as for its context (NULL: default). SH_ERR_NO_DEVICE_MEMORY with the figures if so many layers do not fit,
 * SH_ERR_NO_MEMORY if the rest is more than the host has: *out has the figures then, too. Both may be the CPU: then all of it is devices[0]'s.
 * Any thread. */
SH_API enum sh_code sh_model_plan(struct sh_device *const devices[2], const struct sh_model_params *params,
                                  const struct sh_context_params *context, uint32_t n_device_layers, struct sh_plan *out,
                                  struct sh_error *err);
SH_API enum sh_code sh_model_load(struct sh_device *const *devices, uint32_t n_devices, const struct sh_model_params *params,
                                  struct sh_model **out, struct sh_error *err);
SH_API void sh_model_unload(struct sh_model *model);
SH_API void sh_model_get_info(const struct sh_model *model, struct sh_model_info *out);
SH_API const struct sh_vocab *sh_model_vocab(const struct sh_model *model); /* lent by the model */

/* ---- contexts: many sequences on one model ---------------------------------------------------------------- */

enum sh_kv_type { SH_KV_F16 = 0, SH_KV_F32 = 1 };

struct sh_context_params {
    size_t size;
    enum sh_kv_type kv_type;
    uint32_t max_sequences;  /* 0 = 8 */
    uint32_t max_batch_rows; /* rows of one submission, 0 = 512 */
    uint64_t kv_tokens;      /* room of the cache in tokens over all sequences; 0 = context_length. Pools grow in slabs up to it. */
    uint32_t max_outputs;    /* rows of one submission that ask for something, 0 = the larger of 64 and max_sequences; at most max_batch_rows */
    uint64_t reuse_tokens;   /* pages of so many tokens at most are kept for sh_sequence_reuse when no sequence holds them any more; 0 = none */
    uint32_t back_tokens;    /* layers with a sliding window keep so many tokens more, so that sh_sequence_truncate can take back as many
                                that were submitted last (drafts); 0 = none */
    const char *trace;       /* "ops": the time of each op is taken (sh_context_op_times), which makes steps somewhat slower; "": nothing is;
                                NULL: as $SHIMMY_TRACE says, which is read when the context is created */
};
SH_API enum sh_code sh_context_create(struct sh_model *model, const struct sh_context_params *params, struct sh_context **out,
                                      struct sh_error *err);
SH_API void sh_context_destroy(struct sh_context *context);
/* From now on pools grow no further than for so many tokens over all sequences, but at least for one sequence of full length, and never beyond kv_tokens.
 * What they have they keep. So contexts can share memory, the larger part of which goes to those that come to need it. Any thread. */
SH_API void sh_context_limit(struct sh_context *context, uint64_t kv_tokens);

struct sh_context_stats {
    uint32_t page_tokens;              /* tokens of a page */
    uint64_t pages_used, pages_total;  /* over all groups; used: by sequences; total = what the context may grow to */
    uint64_t pages_kept;               /* held for reuse alone, not among the used ones: they go when room is wanted */
    uint64_t reused_tokens;            /* that sequences got from pages so far */
    uint64_t kept_evicted;             /* pages that were kept and had to go so far */
    uint64_t cache_bytes;              /* memory the pools hold now */
    uint32_t sequences;
};
SH_API void sh_context_get_stats(const struct sh_context *context, struct sh_context_stats *out); /* any thread */

/* Where the time of a context's steps went, with trace = "ops": one line for each kind of op and weight, over all layers. `part` is a part of
 * the op that was timed by itself ("operands"), else "". bytes and macs are what the ops need at least: weights once as the file has them,
 * activations, keys and values; multiply-adds. What is not a line happened between ops, or outside of the device. */
struct sh_op_time {
    char op[48];   /* "matmul"; of several that run as one "norm+matmul"; "sampling" */
    char name[96]; /* of the weight or activation, without its layer: "ffn_up" */
    char type[24]; /* of a product's weights: "Q4_K"; else "" */
    char part[16];
    uint32_t device;
    uint64_t count, ns, bytes, macs;
};
/* Writes at most `max` lines, returns how many there are; 0 where nothing is traced. The lines are logged (SH_LOG_NOTICE) when the context is
 * destroyed. */
SH_API uint32_t sh_context_op_times(struct sh_context *context, struct sh_op_time *out, uint32_t max);
SH_API void sh_context_reset_op_times(struct sh_context *context);

struct sh_logit_bias { int32_t token; float bias; }; /* bias may be -INFINITY */

/* Lists of token ids, behind each other in `tokens`: list i has lengths[i] of them, at least one. */
struct sh_token_lists {
    const int32_t *tokens;
    const uint32_t *lengths;
    uint32_t count;
};

/* The sampler of one sequence. Order: raw logits -> log-probs (reported, of the raw distribution) -> logit_bias -> penalties -> DRY ->
 * what may not be drawn (min_tokens, bad_words) -> the row's mask -> temperature 0: the largest, lowest id on ties; else top_n_sigma ->
 * top_k -> typical_p -> top_p -> min_p -> XTC -> temperature -> draw. With mirostat the filters from top_n_sigma to XTC are replaced by its own, after the
 * temperature. Each filter sees what the one before has left, as a distribution of its own, and leaves at least one token.
 *   The draw is argmax over what is left of logit/T + Gumbel(u), u from Philox4x32-10 keyed by the seed, counter {choice, position, token / 4,
 * 0}; XTC's one number has the counter {choice, position, 0, 1}: no state, so batching, chunking and rollback cannot disturb it.
 *   Mirostat's mu at a position is 2 tau - eta * sum(surprise - tau) over the tokens before it that this sampler drew from the rows they
 * follow and that stand in the sequence: truncating takes mu back with them, and a copied sequence or a new sampler begins at 2 tau.
 * Note that struct defaults are "off", not the product's defaults. */
struct sh_sampler_params {
    size_t size;
    float temperature;       /* 0 = greedy, and so is what is below 1e-6 */
    uint32_t top_k;          /* 0 = off */
    float top_p;             /* 0 or >= 1 = off */
    float min_p;             /* 0 = off */
    float repeat_penalty;    /* 0 or 1 = off: logit > 0 ? logit / r : logit * r, for tokens among the last repeat_last_n */
    uint32_t repeat_last_n;  /* 0 = 64; of prompt and generated tokens */
    float frequency_penalty; /* logit -= count * f, over generated tokens */
    float presence_penalty;  /* logit -= p, if generated before */
    uint64_t seed;
    uint32_t choice;         /* index among `n` choices of one request */
    const struct sh_logit_bias *bias; /* copied */
    uint32_t n_bias;
    float top_n_sigma;       /* 0 = off: drops logits below the largest - n * their standard deviation */
    float typical_p;         /* 0 or >= 1 = off: the tokens whose surprise is nearest to the entropy, until they make up typical_p */
    float xtc_probability;   /* 0 = off: how often, of the tokens that have at least the threshold, all but the least likely go */
    float xtc_threshold;     /* 0 = 0.1 */
    float dry_multiplier;    /* 0 = off: logit -= m * base^(n - allowed) if the token would continue a repetition of n >= allowed tokens */
    float dry_base;          /* 0 = 1.75; at least 1 */
    uint32_t dry_allowed_length;        /* 0 = 2 */
    uint32_t dry_penalty_last_n;        /* looks at so many tokens of prompt and text; 0 = all */
    struct sh_token_lists dry_breakers; /* no repetition goes across one of them; copied. sh_dry_breakers makes them of strings */
    uint32_t mirostat;                  /* 0 = off, 2 = version 2; there is no other */
    float mirostat_tau, mirostat_eta;   /* the surprise aimed at in bits, 0 = 5; the rate, 0 = 0.1 */
    uint32_t min_tokens;                /* no token of end_tokens is drawn before so many are generated */
    const int32_t *end_tokens;          /* copied */
    uint32_t n_end_tokens;
    struct sh_token_lists bad_words;    /* none of these is completed by generated tokens; copied. sh_bad_words makes them of strings */
};

/* Strings as the lists that the sampler takes; free both with sh_token_lists_finish, which takes empty ones.
 *   Bad words: each as it is tokenised at the beginning of a text, and with a space before it if that is as many tokens and another first
 * one. Spaces that a word begins with do not count; SH_ERR_INVALID for one that has nothing else.
 *   Breakers: each token that contains the string; each token that ends in a beginning of it, followed by the tokens of the rest. Empty ones
 * are SH_ERR_INVALID; of longer ones the first 40 bytes count, of a rest the first 20 tokens. */
SH_API enum sh_code sh_bad_words(const struct sh_vocab *vocab, const char *const *words, uint32_t n_words, struct sh_token_lists *out,
                                 struct sh_error *err);
SH_API enum sh_code sh_dry_breakers(const struct sh_vocab *vocab, const char *const *breakers, uint32_t n_breakers,
                                    struct sh_token_lists *out, struct sh_error *err);
SH_API void sh_token_lists_finish(struct sh_token_lists *lists);

/* A sequence: its tokens in the cache, and its sampler. */
SH_API enum sh_code sh_sequence_create(struct sh_context *context, uint32_t *sequence, struct sh_error *err); /* SH_ERR_LIMIT: none free */
/* Its pages return at once when no submission with it is still to be waited for, else at that wait; so does its number. */
SH_API void sh_sequence_destroy(struct sh_context *context, uint32_t sequence);
/* Copies *params; a new sequence samples greedily. Not while a submission with this sequence is in flight (SH_ERR_BUSY). */
SH_API enum sh_code sh_sequence_set_sampler(struct sh_context *context, uint32_t sequence, const struct sh_sampler_params *params,
                                            struct sh_error *err);
/* Does the device that has the last layers draw this sequence's tokens itself? By the sampler that it has now, in rows that do not ask for
 * SH_OUT_LOGPROBS. Then a submission that refers to such a token (SH_INPUT_SAMPLED) does not wait for it where that device has all layers; with
 * layers elsewhere sh_submit waits. False if there is no such sequence, or the model samples nothing. */
SH_API bool sh_sequence_samples_on_device(const struct sh_context *context, uint32_t sequence);
SH_API uint32_t sh_sequence_length(const struct sh_context *context, uint32_t sequence); /* tokens in the cache, submitted ones included */
/* How rows that ask for SH_OUT_POOLED are pooled: NONE (and a new sequence) takes what the file asks for, else the last row (decoders)
 * or the mean (encoders). The result of such a row holds the pooled hidden states of rows 0 .. itself, not normalised, summed in ascending
 * order of position, so that chunks cannot show. MEAN: every row from position 0 on must ask; CLS: row 0 at least; LAST: it alone. Only for
 * an empty sequence. A sequence with pooled rows is not copied, and truncated only to 0. */
SH_API enum sh_code sh_sequence_set_pooling(struct sh_context *context, uint32_t sequence, enum sh_pooling pooling,
                                            struct sh_error *err);
/* Forgets the tokens from `length` on. SH_ERR_UNSUPPORTED where the model's state cannot go back that far: layers with a sliding window only
 * while the last `window` tokens before `length` are held, recurrent layers only to the present length, 0, or a snapshot. Not while a
 * submission with this sequence is in flight (SH_ERR_BUSY). */
SH_API enum sh_code sh_sequence_truncate(struct sh_context *context, uint32_t sequence, uint32_t length, struct sh_error *err);
/* How many rows of its next submission, all but the first, could be taken back by truncating when that is finished: UINT32_MAX where layers keep
 * every token, with a window less: back_tokens, and up to its next page to go; 0 with recurrent layers. For rows that are entered on trial. */
SH_API uint32_t sh_sequence_undoable(const struct sh_context *context, uint32_t sequence);
/* Keeps the state of a model with recurrent layers at the sequence's present length, so that truncating and copying can go there; without
 * such layers it does nothing. Forgotten when the sequence is truncated below it; copies begin
 * without any. At most 4 are kept (SH_ERR_LIMIT). Finishes what is in flight with it first. */
SH_API enum sh_code sh_sequence_snapshot(struct sh_context *context, uint32_t sequence, struct sh_error *err);
/* dst, which must be empty, becomes the first `length` tokens of src; whole pages are shared, the last part copied on write. Refused as
 * truncation is. Finishes what
 * is in flight with src first (its sh_wait then returns at once). */
SH_API enum sh_code sh_sequence_copy(struct sh_context *context, uint32_t dst, uint32_t src, uint32_t length, struct sh_error *err);

enum sh_role { SH_ROLE_PROMPT, SH_ROLE_GENERATED }; /* of a token, for ever; the two may differ in arithmetic (design: numerics contract) */

/* ---- reuse, preemption, files ---- */

/* Gives an empty sequence the longest beginning of tokens [n] whose keys and values the context holds for the same tokens under the same
 * salt, in whole pages, of sequences that live or have ended (within reuse_tokens, the least recently used go first, and all of them
 * go before SH_ERR_NO_PAGES). *reused becomes the sequence's length; it is 0 where nothing is found. The tokens are compared, not only hashes
 * of them. Roles count only on devices whose arithmetic differs between them. Layers with a sliding window reuse a beginning only if
 * its last `window` tokens are held, recurrent layers only up to where a submission ended on a page's boundary.
 *   What this sequence computes from then on is found by others under the same salt, once a page is full and its step is finished; a sequence
 * that was never asked with this is not, nor is what follows an embedding. salt: 0, or what keeps tenants apart. Call it with n = 0 to only
 * take part. Nothing changes in what is computed: a reused beginning equals a recomputed one bit for bit. */
/* The caller leaves the last token of a prompt out of [n], as its row is to be computed anyway. roles NULL: all of the prompt. */
SH_API enum sh_code sh_sequence_reuse(struct sh_context *context, uint32_t sequence, const int32_t *tokens, const enum sh_role *roles, uint32_t n,
                                      uint64_t salt, uint32_t *reused, struct sh_error *err);
/* Preemption: the sequence gives up its pages (which are kept for reuse as those of an ended one are) and has length 0, but keeps its
 * sampler with all that it remembers. It goes on when the same tokens have been submitted again with the same roles, or were reused; positions
 * that had been sampled are not to be sampled again. Finishes what is in flight with it first. SH_ERR_UNSUPPORTED with pooled rows. */
SH_API enum sh_code sh_sequence_suspend(struct sh_context *context, uint32_t sequence, struct sh_error *err);
/* Tokens that sequences could take now beyond what they hold: of pages that are free, not reserved yet, or kept; of the group that has
 * fewest. Rows of a sequence take whole pages. */
SH_API uint64_t sh_context_free_tokens(const struct sh_context *context);
/* Tokens of a page: what a last row's position is rounded up to. */
SH_API uint32_t sh_context_page_tokens(const struct sh_context *context);

/* Writes what the context holds of the longest beginning of tokens [n] under that salt to a file, and *saved, how many tokens that are
 * (0 is an error, SH_ERR_NOT_FOUND). The file says which model, build, device arithmetic and cache type it is for; it is checked by length and a
 * checksum when it is read. No submission may be in flight (SH_ERR_BUSY). SH_ERR_IO names the cause (ENOSPC). fd: written from its present
 * position on; what an error leaves there is of no use. compute/state/README.md describes the file. */
SH_API enum sh_code sh_context_save(struct sh_context *context, const int32_t *tokens, uint32_t n, uint64_t salt, int fd, uint32_t *saved,
                                    struct sh_error *err);
/* Reads such a file, a regular one, from its present position into pages kept for reuse under `salt`. *tokens malloc'd, [*n]: what
 * sh_sequence_reuse now finds. SH_ERR_FORMAT: damaged, or no such file; SH_ERR_UNSUPPORTED: of another model, build or device, said which;
 * SH_ERR_NO_PAGES: more than reuse_tokens, or than can be freed. On an error nothing has changed, the position neither. No submission may be
 * in flight. */
SH_API enum sh_code sh_context_restore(struct sh_context *context, int fd, uint64_t salt, int32_t **tokens, uint32_t *n, struct sh_error *err);

typedef uint64_t sh_ticket;

enum sh_input { SH_INPUT_TOKEN, SH_INPUT_EMBEDDING, SH_INPUT_SAMPLED };
enum { SH_OUT_SAMPLE = 1, SH_OUT_LOGITS = 2, SH_OUT_HIDDEN = 4, SH_OUT_LOGPROBS = 8 /* with SAMPLE: its log-prob and the n_top best */,
       SH_OUT_POOLED = 16 /* see sh_sequence_set_pooling for which rows have to ask */ };

/* One row: one token of one sequence. Rows of a sequence stand together, positions ascending without gaps from
 * sh_sequence_length on. At most one submission in flight may hold a sequence's sampled row that a later one refers to. */
struct sh_row {
    uint32_t sequence;
    enum sh_input input;
    enum sh_role role;
    int32_t token;          /* SH_INPUT_TOKEN */
    const float *embedding; /* SH_INPUT_EMBEDDING: [n_embd], read during sh_submit */
    sh_ticket ticket;       /* SH_INPUT_SAMPLED: the token that row `sampled_row` of that submission sampled (the latest one, or one waited for
                               last); its id need not be known to the host yet */
    uint32_t sampled_row;
    uint32_t position;
    uint32_t outputs;       /* SH_OUT_* or 0 for nothing */
    uint32_t n_top;         /* with SH_OUT_LOGPROBS: how many of the best are wanted besides the sampled one, 0..64 */
    const uint32_t *mask;   /* with SH_OUT_SAMPLE: the tokens that may be drawn, at least one: [(n_vocab + 31) / 32] words, bit token % 32 of word
                               token / 32; NULL: all. Read during sh_submit. It comes before everything else that could forbid a token: if
                               that leaves none of the mask's tokens, the draw is from their raw logits. A row whose mask's logits are
                               not numbers gives -1. Devices that sample, sample under a mask too. */
};
struct sh_batch {
    const struct sh_row *rows;
    uint32_t n_rows;
};
/* Validates, takes pages, and starts the step; returns before it is finished where the device allows. At most two in flight. On an
 * error nothing has changed. */
SH_API enum sh_code sh_submit(struct sh_context *context, const struct sh_batch *batch, sh_ticket *ticket, struct sh_error *err);

struct sh_top { int32_t token; float logprob; };
struct sh_result { /* of one row that asked for something, in row order */
    uint32_t row, sequence, position;
    int32_t token;           /* sampled; -1: not asked, or see code */
    float logprob;           /* of that token, raw distribution; 0 if not wanted */
    const struct sh_top *top; /* n_top best, descending, ties by id */
    uint32_t n_top;
    const float *logits;     /* [n_vocab] if asked */
    const float *hidden;     /* [n_embd], after the final norm, if asked */
    const float *pooled;     /* [n_embd] if asked */
    enum sh_code code;       /* not SH_OK: no token could be sampled, which costs this sequence alone: SH_ERR_DEVICE: the logits are not numbers;
                                SH_ERR_NO_MEMORY: the sampler had none */
};
struct sh_results {
    const struct sh_result *items; /* lent until the next sh_submit or sh_wait on this context */
    uint32_t count;
    uint64_t step_ns; /* from submission to completion */
};
/* Waits for a ticket, in order of submission; timeout_ns < 0 waits for ever. SH_ERR_TIMEOUT leaves it in flight. After another
 * error the step's sequences are as they were before it (their length is reset), unless the device is lost. */
SH_API enum sh_code sh_wait(struct sh_context *context, sh_ticket ticket, int64_t timeout_ns, struct sh_results *results,
                            struct sh_error *err);

/* Raw log-probs of a row of logits [n_vocab]: that of `token`, and the n_top best in descending order (ties by id) into top. Any thread. */
SH_API void sh_logprobs(const float *logits, uint32_t n_vocab, int32_t token, float *logprob, struct sh_top *top, uint32_t n_top);

/* ---- certification of a model on a device -------------------------------------------------------------------- */

/* WEIGHTS: the device's dequantisation against the reference, over whole tensors of every type, sampled across the file. STRUCTURE: every
 * tensor that the architecture expects is there with its shape, none is left over. OPS: each op on a prompt, the device's result against
 * the scalar executor's from the same inputs. DECODE: token by token and in chunks against the whole prompt at once, bit for bit.
 * LOGITS: log-probs against the scalar executor's own forward pass, and whether both would choose the same tokens. */
enum sh_verify_gate {
    SH_VERIFY_WEIGHTS, SH_VERIFY_STRUCTURE, SH_VERIFY_OPS, SH_VERIFY_DECODE, SH_VERIFY_LOGITS, SH_VERIFY_GATES
};
SH_API const char *sh_verify_gate_name(enum sh_verify_gate gate); /* "weights", ... */

struct sh_verify_line { /* one subject of one gate */
    enum sh_verify_gate gate;
    const char *subject; /* a type, an op, "largest", ...; lent for the call, as are the others */
    bool passed, skipped;
    uint64_t checked;
    const char *unit;    /* "elements", "tensors", "rows", "positions" */
    double worst, limit; /* deviation found and allowed, in `measure` */
    const char *measure; /* "absolute", "of the row's largest", "log-prob", "differing positions" */
    const char *where;   /* of the worst: "blk.3.attn_out, position 17"; why, if skipped; "" nothing to say */
};
struct sh_verify_params {
    size_t size;
    struct sh_device *device;
    struct sh_device *reference;         /* a CPU device opened with tier "scalar" */
    const struct sh_model_params *model; /* path, context_length, rope_scale */
    const int32_t *tokens;               /* the prompt */
    uint32_t n_tokens;                   /* at least 2; positions of DECODE and LOGITS */
    uint32_t op_rows;                    /* rows of OPS, 0 = min(n_tokens, 16) */
    uint64_t weight_elements;            /* per type, how many elements WEIGHTS compares at least, in whole tensors; 0 = 16 Mi */
    void (*line)(void *user, const struct sh_verify_line *line);
    bool (*progress)(void *user, enum sh_verify_gate gate, double fraction); /* of that gate; false cancels. NULL: none */
    void *user;
};
/* Runs all gates, also after one that fails. *passed: every line that is not skipped passed. An error means that a gate could not be run
 * (no memory, a failing device, cancelled). Loads the model twice: on the device, and unpacked on the reference. */
SH_API enum sh_code sh_verify(const struct sh_verify_params *params, bool *passed, struct sh_error *err);

#endif

/*
 * chat.h - inside view of a chat for the files of this folder that choose templates and give them what they want.
 *
 *   chat.c      which template; from a request to a prompt
 *   probe.c     what a template can take, found out by rendering small conversations
 *   messages.c  checks a request's messages and tools, and turns them into what the template takes
 *   families.c  built-in templates
 *
 * All pure functions of their arguments: any thread.
 */
#ifndef SHIMMY_CHAT_CHAT_H
#define SHIMMY_CHAT_CHAT_H

#include "compute/base.h"

#include <jansson.h>

/* ---- families.c ---- */

struct sh_chat_builtin {
    const char *name, *text;
    const char *tokens[4]; /* a vocabulary that has all of these, of any type, is one of this family; none: only by name */
    const char *stops[3];  /* strings that end an answer, whatever tokens there are */
};
const struct sh_chat_builtin *sh_chat_builtin_at(size_t index); /* in order of choice; NULL: no more */
const struct sh_chat_builtin *sh_chat_builtin_find(const char *name);
/* Never NULL: the last resort is the plain transcript. */
const struct sh_chat_builtin *sh_chat_builtin_choose(const struct sh_vocab *vocab);

/* ---- probe.c ---- */

enum sh_chat_speaker { SH_CHAT_SYSTEM, SH_CHAT_USER, SH_CHAT_ASSISTANT, SH_CHAT_TOOL, SH_CHAT_SPEAKERS };
enum { SH_TAKES_TEXT = 1, SH_TAKES_PARTS = 2 };                            /* a content */
enum { SH_TAKES_OBJECT = 1, SH_TAKES_JSON = 2 };                           /* a call's arguments */
enum { SH_NOTHING_NULL = 1, SH_NOTHING_ABSENT = 2, SH_NOTHING_EMPTY = 4 }; /* the content of a message that has calls alone */

struct sh_chat_caps {
    uint8_t content[SH_CHAT_SPEAKERS]; /* SH_TAKES_; 0: what such a message says is not shown, or it is refused */
    uint8_t arguments;                 /* SH_TAKES_; 0: calls are not shown */
    uint8_t nothing;                   /* SH_NOTHING_; 0 where calls are not shown */
    bool beside;                       /* shows calls also in a message with a content (which it may leave out) */
    bool functions;                    /* fails without sh_chat_set_functions */
    bool one_call;                     /* shows, or takes, one call of a message alone */
    bool short_ids;                    /* takes ids of calls that are nine letters or digits, and no others */
    bool lists;                        /* where there are no tools or documents it wants empty lists: null fails */
    bool tools;                        /* shows tools */
    bool developer;                    /* knows the word "developer" */
    const char *reasoning;             /* a message's key for it: "reasoning_content", "thinking", "reasoning"; NULL: not shown */
};
/* bos, eos: the texts that the template's variables get. *stop (malloc'd or NULL): what it writes behind an answer, if that is no
 * token that ends a text anyway. */
enum sh_code sh_chat_probe(const struct sh_template *tmpl, const char *text, size_t length, const struct sh_vocab *vocab,
                           const char *bos, const char *eos, struct sh_chat_caps *out, char **stop, struct sh_error *err);
/* The variables that every rendering has, except messages; tools and documents are null, or empty lists. New reference; NULL: no memory. */
json_t *sh_chat_variables(const char *bos, const char *eos, bool lists, bool add_generation_prompt);

/* Variables that Firefunction's template takes instead of tools: `functions`, the JSON text of the tools (NULL: an empty one), and `datetime`, the
 * moment `now` (as in sh_template_render) in words. What is there already stays. False: no memory. */
bool sh_chat_set_functions(json_t *variables, const json_t *tools, const char *now);

/* ---- messages.c ---- */

/* No string anywhere in the value holds a NUL, and it is not nested deeper than templates are given. `at` names it in errors. */
enum sh_code sh_chat_check_values(const json_t *value, const char *at, struct sh_error *err);
/* Reads and checks a request's messages: fields' types, roles, parts. What OpenAI calls function and function_call becomes tool and
 * tool_calls. *out: new reference. SH_ERR_INVALID names messages[i].field. */
enum sh_code sh_chat_read_messages(const char *text, json_t **out, struct sh_error *err);
/* The same for tools; *out is NULL for NULL, null and an empty array. `name` (may be NULL) must be one of theirs. */
enum sh_code sh_chat_read_tools(const char *text, const char *name, json_t **out, struct sh_error *err);
/* Gives checked tools what a request may leave out and some templates take for granted: a description, parameters, their properties, and
 * descriptions of these. False: they had all that. */
bool sh_chat_complete_tools(json_t *tools);
/* A value as text (indent 0: on one line), with numbers as short as they can be for the whole of it (0.1 stays 0.1); malloc'd. NULL: no memory. */
char *sh_chat_json(const json_t *value, uint32_t indent);
/* Changes checked messages into what a template of these capabilities takes. `form`: how calls are written where the template does not.
 * `instructions` (may be NULL): what the model has to be told of tools, since the template does not. */
struct sh_call_form;
enum sh_code sh_chat_adapt(json_t *messages, const struct sh_chat_caps *caps, const struct sh_call_form *form,
                           const char *instructions, struct sh_error *err);

#endif

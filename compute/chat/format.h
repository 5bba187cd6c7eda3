/*
 * format.h - the forms in which models write tool calls and reasoning, for chat.c (templates and prompts).
 *
 * A form is a row of a table (markers, and the shape of what stands between them), recognised in a template's text; one table
 * drives reading an answer (answer.c), the grammar of an enforced call (constraint.c) and the list of control tokens to show.
 *
 *   chat.c, template choice and capabilities: what the template can take (system messages, parts, tools, arguments as text or object)
 *   families.c   built-in templates
 *   format.c     the table of forms, and recognising them
 *   answer.c     an answer's text -> content, reasoning, calls, as it comes; with reader.c, answer_call.c, answer_notation.c
 *   literal.c    values as models write them, read a byte at a time
 *   plan.c       a request -> how its answer is read
 *   constraint.c tool choice and response format -> a grammar
 */
#ifndef SHIMMY_CHAT_FORMAT_H
#define SHIMMY_CHAT_FORMAT_H

#include "compute/base.h"

struct sh_format; /* one row: a form of tool calls, and a form of reasoning */

/* By the template's text and what the vocabulary has. Never fails: without any markers calls are "generic", and there is no reasoning. The
 * result is static or the caller's to free with sh_format_free. */
enum sh_code sh_format_recognise(const struct sh_vocab *vocab, const char *text, size_t length, struct sh_format **out,
                                 struct sh_error *err);
void sh_format_free(struct sh_format *format);
const char *sh_format_tools(const struct sh_format *format);     /* "hermes", ... */
const char *sh_format_reasoning(const struct sh_format *format); /* "think", ..., "" */
const int32_t *sh_format_shown(const struct sh_format *format, uint32_t *count);
/* For a template that does not know tools: what the system message has to say of them. malloc'd; NULL: no memory. */
char *sh_format_instructions(const struct sh_format *format, const char *tools_json, bool single_call);

/* From a request and the end of the rendered prompt (in which reasoning may be open already): how to read the answer, and what it is
 * held to (*grammar NULL: nothing). */
enum sh_code sh_answer_plan_create(const struct sh_format *format, const struct sh_vocab *vocab,
                                   const struct sh_chat_request *request, const char *prompt, size_t prompt_length,
                                   struct sh_answer_plan **plan, struct sh_grammar **grammar, struct sh_error *err);
void sh_answer_plan_free(struct sh_answer_plan *plan);

#endif

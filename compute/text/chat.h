/*
 * chat.h - which chat form a template text is, decided once when a vocabulary is made, and the rendering of that form.
 *
 * A template is recognised as a whole: its statements and outputs, brought into one spelling, must be one of the known forms from
 * the first to the last, except for branches that only tools or other media take. So what is rendered here is what the template
 * itself would render for system, user and assistant messages of text; anything else is not recognised. Pure functions, any
 * thread.
 */
#ifndef SHIMMY_CHAT_H
#define SHIMMY_CHAT_H

#include "compute/base.h"

#include <time.h>

enum sh_chat_family {
    SH_CHAT_UNKNOWN, /* a template, but none of the five families */
    SH_CHAT_PLAIN,   /* no template */
    SH_CHAT_CHATML,
    SH_CHAT_LLAMA2,
    SH_CHAT_LLAMA3,
    SH_CHAT_GEMMA,
    SH_CHAT_ZEPHYR,
};

/* What distinguishes the forms of a family. */
enum {
    SH_CHAT_BOS = 1 << 0,             /* begins with BOS */
    SH_CHAT_BOS_IF_OPENED = 1 << 1,   /* begins with BOS if the first message is of the user or the system */
    SH_CHAT_EOS_IF_ANSWERED = 1 << 2, /* EOS behind a last message of the assistant, without a generation prompt */
    SH_CHAT_EOS_AT_END = 1 << 3,      /* EOS instead of a generation prompt */
    SH_CHAT_ALWAYS_PROMPT = 1 << 4,   /* the generation prompt is not optional */
    SH_CHAT_OPEN_LAST = 1 << 5,       /* the last message is closed only for a generation prompt, and an assistant's gets none */
    SH_CHAT_TRIM = 1 << 6,            /* contents without surrounding white space (found in the text, not given in the table) */
    SH_CHAT_DATE_FIXED = 1 << 7,      /* Llama 3.1: a system part always, with the dates that the template holds */
    SH_CHAT_DATE_NOW = 1 << 8,        /* Llama 3.2: the same with today's date */
    SH_CHAT_SYSTEM_TO_USER = 1 << 9,  /* Gemma 3: the system message goes before the first user message */
    SH_CHAT_INNER_SYSTEM = 1 << 10,   /* Llama 2: a later system message is rendered, too */
};

struct sh_chat_form {
    enum sh_chat_family family;
    uint32_t flags;
    char *default_system; /* rendered where the first message is not the system's; NULL: none */
};

/* text NULL: the plain transcript. Fails for lack of memory only. */
enum sh_code sh_chat_recognise(const char *text, size_t length, struct sh_chat_form *out, struct sh_error *err);
void sh_chat_form_free(struct sh_chat_form *form);

/* sh_chat_render without a vocabulary: bos and eos are texts ("" where there is none), today is for SH_CHAT_DATE_NOW. What the
 * template itself refuses (roles that do not alternate) is SH_ERR_INVALID. */
enum sh_code sh_chat_render_form(const struct sh_chat_form *form, const char *bos, const char *eos, const struct tm *today,
                                 const struct sh_chat_message *messages, uint32_t n_messages, bool add_generation_prompt,
                                 char **text, struct sh_chat_part **parts, uint32_t *n_parts, struct sh_error *err);

#endif

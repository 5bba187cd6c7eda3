/*
 * chat.h - which chat form a template text is, decided once when a vocabulary is made.
 */
#ifndef SHIMMY_CHAT_H
#define SHIMMY_CHAT_H

#include "compute/base.h"

enum sh_chat_family {
    SH_CHAT_UNKNOWN, /* a template, but none of the five families */
    SH_CHAT_PLAIN,   /* no template */
    SH_CHAT_CHATML,
    SH_CHAT_LLAMA2,
    SH_CHAT_LLAMA3,
    SH_CHAT_GEMMA,
    SH_CHAT_ZEPHYR,
};

struct sh_chat_form {
    enum sh_chat_family family;
};

/* template NULL: the plain transcript. */
enum sh_code sh_chat_recognise(const char *text, size_t length, struct sh_chat_form *out, struct sh_error *err);
void sh_chat_form_free(struct sh_chat_form *form);

#endif

/*
 * template.h - rendering a template so that one can tell what it wrote from what it was given.
 */
#ifndef SHIMMY_TEMPLATE_H
#define SHIMMY_TEMPLATE_H

#include "compute/base.h"

/* As sh_template_render, with the variables of two JSON objects; of a name in both, `given`'s counts. *parts (malloc'd, covering the text in
 * order) says which bytes came from `given`, however the template has cut, joined, changed or escaped them: `literal`. What it made of
 * the template's own text and of `trusted` is not; nor are the roles of messages (the strings messages[i].role of `given`), which templates
 * build control tokens of: the caller has checked that they are words. A byte that depends on given text only through a decision or a
 * count is the template's. */
enum sh_code sh_template_render_parts(const struct sh_template *tmpl, const char *trusted, const char *given, const char *now,
                                      char **text, size_t *length, struct sh_chat_part **parts, uint32_t *n_parts,
                                      struct sh_error *err);

#endif

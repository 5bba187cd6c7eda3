/*
 * text.h - inside view of the vocabulary for the rest of the engine: making one from an open GGUF.
 * Everything else about text is in engine.h (sh_tokenize, sh_text_stream_*, sh_chat_*).
 */
#ifndef SHIMMY_TEXT_H
#define SHIMMY_TEXT_H

#include "compute/gguf/gguf.h"

/* Copies all it needs; the gguf may be closed afterwards. A missing or unknown tokenizer is SH_ERR_UNSUPPORTED and named. */
enum sh_code sh_vocab_create(const struct sh_gguf *g, struct sh_vocab **out, struct sh_error *err);
/* Whether one can be made, as far as can be told without making it: the kind of tokenizer, its pre-tokenizer, what it needs. */
enum sh_code sh_vocab_check(const struct sh_gguf *g, struct sh_error *err);
void sh_vocab_destroy(struct sh_vocab *vocab);

#endif

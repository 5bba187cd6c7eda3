/*
 * normaliser.h - the character map that SentencePiece applies to a text before it is tokenised, and its treatment of white space.
 *
 * `tokenizer.ggml.precompiled_charsmap` holds, little-endian: a u32, the bytes of the double array; the double array of u32
 * units; then replacements, each ended by a NUL. The children of unit n lie around b = n ^ base(n): the byte c leads to unit b ^ c
 * if that one's check is c. If n has a leaf, it is unit b, and holds the place of a replacement. In a unit, bits 10 to 31 are the
 * base, shifted left by 8 if bit 9 is set; bit 8 says that there is a leaf; bits 0 to 7 and 31 must be the check. In a leaf, bits 0
 * to 30 are the place. (Formats: github.com/s-yata/darts-clone, github.com/google/sentencepiece.) The longest match at each place
 * of the text is replaced; what matches nothing stays.
 *
 * Nothing in the array is trusted: what points outside of it ends a match, and what a text can grow to is limited.
 * Immutable after creation: any thread.
 */
#ifndef SHIMMY_NORMALISER_H
#define SHIMMY_NORMALISER_H

#include "compute/gguf/gguf.h"

struct sh_normaliser;

/* Reads the map (absent: nothing is replaced) and tokenizer.ggml.remove_extra_whitespaces (absent: true, as SentencePiece has it).
 * Copies what it needs. SH_ERR_FORMAT for a map that cannot be one, SH_ERR_NO_MEMORY. */
enum sh_code sh_normaliser_create(const struct sh_gguf *g, struct sh_normaliser **out, struct sh_error *err);
void sh_normaliser_destroy(struct sh_normaliser *normaliser); /* NULL is fine */

/* The text with characters replaced, ill-formed bytes as U+FFFD, spaces as U+2581, and one before it if add_space. Where extra
 * white space is removed, spaces at both ends go and several become one, before anything is added. *out is malloc'd, NULL if
 * nothing is left. SH_ERR_LIMIT for a text that a map makes more than 32 times (and a kilobyte) as long, which no real one does. */
enum sh_code sh_normalise(const struct sh_normaliser *normaliser, const char *text, size_t length, bool add_space, char **out,
                          uint32_t *out_length, struct sh_error *err);

#endif

/*
 * unicode.h - what BERT's basic tokenizer asks of a code point: its class, its lower case, and the letter under its accents.
 *
 * Tables (unicode_table.c) of the Unicode Character Database; one code point maps to one. Pure functions, any thread.
 */
#ifndef SHIMMY_UNICODE_H
#define SHIMMY_UNICODE_H

#include <stdint.h>

enum sh_unicode_class {
    SH_UNICODE_OTHER,
    SH_UNICODE_SPACE,       /* White_Space */
    SH_UNICODE_CONTROL,     /* Cc, Cf, Co */
    SH_UNICODE_PUNCTUATION, /* P* */
};

struct sh_unicode_run { /* first + i * step maps to target + i * target_step, i < count */
    uint32_t first;
    uint16_t count;
    uint8_t step, target_step;
    uint32_t target;
};
struct sh_unicode_range { /* inclusive */
    uint32_t first, last;
    enum sh_unicode_class what;
};

/* Sorted, and no run reaches beyond the first code point of the next one. */
extern const struct sh_unicode_run sh_unicode_base_runs[], sh_unicode_lower_runs[];
extern const struct sh_unicode_range sh_unicode_ranges[];
extern const uint32_t sh_unicode_base_runs_count, sh_unicode_lower_runs_count, sh_unicode_ranges_count;

enum sh_unicode_class sh_unicode_class_of(uint32_t code_point);
uint32_t sh_unicode_lower(uint32_t code_point);
/* The first code point of the canonical decomposition (NFD): U+00E9 gives e, a Hangul syllable its leading consonant. */
uint32_t sh_unicode_base(uint32_t code_point);

#endif

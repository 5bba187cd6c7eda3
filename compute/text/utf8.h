/*
 * utf8.h - UTF-8 as the Unicode standard defines it (table 3-7): no overlong forms, no surrogates, nothing above U+10FFFF.
 * Ill-formed bytes are replaced as the standard recommends: one U+FFFD for each maximal subpart. Pure functions.
 */
#ifndef SHIMMY_UTF8_H
#define SHIMMY_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum sh_utf8_status {
    SH_UTF8_OK,      /* a whole code point */
    SH_UTF8_PARTIAL, /* all n bytes are the beginning of one: more may complete it */
    SH_UTF8_BAD,     /* can never become one */
};

/* Looks at the code point that begins at s (n > 0 bytes). *length: bytes of the code point, of the partial one (= n), or of the
 * maximal ill-formed subpart. *code_point (may be NULL) is set for SH_UTF8_OK. */
enum sh_utf8_status sh_utf8_scan(const char *s, size_t n, size_t *length, uint32_t *code_point);

/* Writes code_point (a scalar value) as 1 to 4 bytes and returns how many. */
size_t sh_utf8_encode(uint32_t code_point, char out[4]);

bool sh_utf8_valid(const char *s, size_t n);

#endif

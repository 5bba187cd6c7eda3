/*
 * text.h - small things about text that several rooms of the daemon need. Pure functions, any thread.
 */
#ifndef SHIMMYD_TEXT_H
#define SHIMMYD_TEXT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A JSON string of any bytes: each that is not UTF-8 becomes U+FFFD. New reference; NULL: no memory. */
json_t *json_bytes(const char *text, size_t length);
/* A value as JSON text, members in their order, numbers with as many digits as bring them back (0.1 stays 0.1); malloc'd and
 * NUL-terminated. NULL: no memory. */
char *json_exact(const json_t *value);
/* Replaces each byte that is not UTF-8 by '?', in place. */
void text_clean(char *text);
/* Levenshtein distance of two names in bytes. b shorter than TEXT_DISTANCE_MAX, else UINT32_MAX. */
enum { TEXT_DISTANCE_MAX = 256 };
uint32_t text_distance(const char *a, const char *b);
/* A hash of any bytes (FNV-1a, its bits mixed): the same on every machine, no protection from those who look for collisions. */
uint64_t text_hash(const void *bytes, size_t count);
/* A time as Ollama writes keep_alive: numbers with units ("5m", "1h30m", "300ms", "-1s") or a number of seconds alone. Rounded up to whole
 * seconds, at most 1e9; what is below 0 is -1. False: it is none. */
bool text_duration(const char *text, int64_t *seconds);

#endif

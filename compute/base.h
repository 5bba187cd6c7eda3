/*
 * base.h - what every room of the engine stands on: error filling, checked arithmetic, logging, allocation.
 *
 * Three classes of failure, three ways: a caller's mistake or bad input -> return sh_fail(...); a device failure -> the executor's
 * own macro, which ends in sh_fail; a broken invariant of ours -> SH_ASSERT (on in release; prints expression and place through the
 * log callback, then aborts: it is never reachable from input).
 */
#ifndef SHIMMY_BASE_H
#define SHIMMY_BASE_H

#include "compute/engine.h"

#include <stdarg.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "GGUF data is read in place: little-endian machines only");

/* Fills *err (if not NULL) and returns code. The message becomes one line of valid UTF-8 whatever is formatted into it (names from
 * hostile files): other bytes and control characters turn into '?', what does not fit is cut at a code point. */
enum sh_code sh_fail(struct sh_error *err, enum sh_code code, const char *fmt, ...) SH_PRINTF(3, 4);

/* Bytes of the UTF-8 code point that text[0..n) begins with; 0 if it is invalid, cut short, or n is 0. */
size_t sh_utf8_length(const char *text, size_t n);

void sh_log(enum sh_log_level level, const char *fmt, ...) SH_PRINTF(2, 3);
bool sh_log_enabled(enum sh_log_level level);

_Noreturn void sh_assert_failed(const char *expression, const char *file, int line);
#define SH_ASSERT(e) ((e) ? (void)0 : sh_assert_failed(#e, __FILE__, __LINE__))

/* Checked arithmetic: false on overflow. */
static inline bool sh_mul_u64(uint64_t a, uint64_t b, uint64_t *out) { return !__builtin_mul_overflow(a, b, out); }
static inline bool sh_add_u64(uint64_t a, uint64_t b, uint64_t *out) { return !__builtin_add_overflow(a, b, out); }

static inline uint64_t sh_align_up(uint64_t v, uint64_t a) { return (v + a - 1) / a * a; }
static inline uint64_t sh_min_u64(uint64_t a, uint64_t b) { return a < b ? a : b; }
static inline uint64_t sh_max_u64(uint64_t a, uint64_t b) { return a > b ? a : b; }
#define SH_COUNT(array) (sizeof(array) / sizeof((array)[0]))

uint64_t sh_now_ns(void); /* monotonic */

/* Zeroed array of n elements; NULL on overflow or no memory. */
void *sh_calloc(uint64_t n, size_t element_bytes);
/* 64-byte aligned, uninitialised; free(). NULL when there is no memory. */
void *sh_alloc_aligned(uint64_t bytes);
/* Grows *array (of element_bytes each) so that it holds `need`; doubles. False: no memory, array unchanged. */
bool sh_grow(void **array, uint32_t *capacity, uint32_t need, size_t element_bytes);

/* IEEE half and bfloat16, exact both ways (to half: round to nearest even). */
float sh_f16_to_f32(uint16_t h);
uint16_t sh_f32_to_f16(float f);
static inline float sh_bf16_to_f32(uint16_t b) { uint32_t u = (uint32_t)b << 16; float f; memcpy(&f, &u, 4); return f; }
uint16_t sh_f32_to_bf16(float f);

#endif

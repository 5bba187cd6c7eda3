#include "compute/base.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static struct {
    sh_log_fn fn;
    void *user;
    enum sh_log_level max;
} logger;

void sh_set_log(sh_log_fn fn, void *user, enum sh_log_level max_level) {
    logger.fn = fn;
    logger.user = user;
    logger.max = max_level;
}

bool sh_log_enabled(enum sh_log_level level) { return logger.fn != NULL && level <= logger.max; }

void sh_log(enum sh_log_level level, const char *fmt, ...) {
    if (!sh_log_enabled(level)) return;
    char line[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    logger.fn(logger.user, level, line);
}

const char *sh_version(void) { return SHIMMY_VERSION; }

const char *sh_code_name(enum sh_code code) {
    static const char *const names[] = {
        [SH_OK] = "ok",
        [SH_ERR_INVALID] = "invalid",
        [SH_ERR_NOT_FOUND] = "not_found",
        [SH_ERR_IO] = "io",
        [SH_ERR_FORMAT] = "format",
        [SH_ERR_UNSUPPORTED] = "unsupported",
        [SH_ERR_NO_MEMORY] = "no_memory",
        [SH_ERR_NO_DEVICE_MEMORY] = "no_device_memory",
        [SH_ERR_NO_PAGES] = "no_pages",
        [SH_ERR_LIMIT] = "limit",
        [SH_ERR_BUSY] = "busy",
        [SH_ERR_TIMEOUT] = "timeout",
        [SH_ERR_CANCELLED] = "cancelled",
        [SH_ERR_DEVICE] = "device",
        [SH_ERR_DEVICE_LOST] = "device_lost",
    };
    return (size_t)code < SH_COUNT(names) ? names[code] : "unknown";
}

size_t sh_utf8_length(const char *text, size_t n) {
    const unsigned char *s = (const unsigned char *)text;
    if (n == 0) return 0;
    if (s[0] < 0x80) return 1;
    const size_t length = s[0] >= 0xF0 ? 4 : s[0] >= 0xE0 ? 3 : 2;
    if (s[0] < 0xC2 || s[0] > 0xF4 || length > n) return 0;
    for (size_t i = 1; i < length; i++)
        if ((s[i] & 0xC0) != 0x80) return 0;
    /* overlong forms, surrogates, beyond U+10FFFF */
    if ((s[0] == 0xE0 && s[1] < 0xA0) || (s[0] == 0xED && s[1] > 0x9F) || (s[0] == 0xF0 && s[1] < 0x90) || (s[0] == 0xF4 && s[1] > 0x8F)) return 0;
    return length;
}

enum sh_code sh_fail(struct sh_error *err, enum sh_code code, const char *fmt, ...) {
    if (err == NULL) return code;
    char text[sizeof err->message]; /* an argument may be the old message */
    va_list args;
    va_start(args, fmt);
    const int wanted = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    size_t length = strlen(text);
    if (wanted >= (int)sizeof text) { /* do not leave half a code point at the cut */
        size_t start = length;
        while (start > 0 && length - start < 3 && ((unsigned char)text[start - 1] & 0xC0) == 0x80) start--;
        if (start > 0 && (unsigned char)text[start - 1] >= 0xC0 && sh_utf8_length(text + start - 1, length - start + 1) == 0)
            length = start - 1;
    }
    for (size_t i = 0, n; i < length; i += n) {
        n = sh_utf8_length(text + i, length - i);
        if (n == 0 || (unsigned char)text[i] < 0x20 || text[i] == 0x7F) {
            text[i] = '?';
            n = 1;
        }
    }
    text[length] = '\0';
    err->code = code;
    memcpy(err->message, text, length + 1);
    return code;
}

void sh_assert_failed(const char *expression, const char *file, int line) {
    if (logger.fn != NULL) sh_log(SH_LOG_ERROR, "%s:%d: broken invariant: %s", file, line, expression);
    abort();
}

uint64_t sh_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void *sh_calloc(uint64_t n, size_t element_bytes) {
    uint64_t total;
    if (!sh_mul_u64(n, element_bytes, &total) || total > SIZE_MAX / 2) return NULL;
    return calloc(n > 0 ? (size_t)n : 1, element_bytes > 0 ? element_bytes : 1);
}

void *sh_alloc_aligned(uint64_t bytes) {
    if (bytes > SIZE_MAX / 2) return NULL;
    return aligned_alloc(64, (size_t)sh_align_up(bytes > 0 ? bytes : 1, 64));
}

bool sh_grow(void **array, uint32_t *capacity, uint32_t need, size_t element_bytes) {
    if (need <= *capacity) return true;
    uint64_t want = sh_max_u64(need, (uint64_t)*capacity * 2);
    if (want > UINT32_MAX || want > SIZE_MAX / 2 / element_bytes) return false;
    void *grown = realloc(*array, (size_t)want * element_bytes);
    if (grown == NULL) return false;
    *array = grown;
    *capacity = (uint32_t)want;
    return true;
}

float sh_f16_to_f32(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t exponent = (h >> 10) & 0x1Fu;
    uint32_t mantissa = h & 0x3FFu;
    uint32_t bits;
    if (exponent == 0x1F) {
        bits = sign | 0x7F800000u | (mantissa << 13);
    } else if (exponent != 0) {
        bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
    } else if (mantissa == 0) {
        bits = sign;
    } else { /* subnormal: normalise */
        uint32_t e = 113;
        while ((mantissa & 0x400u) == 0) {
            mantissa <<= 1;
            e--;
        }
        bits = sign | (e << 23) | ((mantissa & 0x3FFu) << 13);
    }
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

uint16_t sh_f32_to_f16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    const uint16_t sign = (uint16_t)((bits >> 16) & 0x8000u);
    const uint32_t magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return (uint16_t)(sign | 0x7E00u); /* NaN */
    if (magnitude >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u); /* rounds beyond 65504 */
    if (magnitude < 0x33000001u) return sign;                        /* at most half of the smallest subnormal */
    const int32_t exponent = (int32_t)(magnitude >> 23) - 112;
    const uint32_t mantissa = (magnitude & 0x7FFFFFu) | 0x800000u;
    const uint32_t shift = exponent > 0 ? 13u : (uint32_t)(14 - exponent);
    uint32_t half = mantissa >> shift;
    const uint32_t rest = mantissa & ((1u << shift) - 1), middle = 1u << (shift - 1);
    if (rest > middle || (rest == middle && (half & 1u))) half++;
    /* the hidden bit carries into the exponent field, and so does a rounding overflow */
    if (exponent > 0) half += (uint32_t)(exponent - 1) << 10;
    return (uint16_t)(sign | half);
}

uint16_t sh_f32_to_bf16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)((bits >> 16) | 0x40u); /* keep NaN quiet */
    return (uint16_t)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

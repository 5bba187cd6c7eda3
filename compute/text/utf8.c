#include "compute/text/utf8.h"

enum sh_utf8_status sh_utf8_scan(const char *s, size_t n, size_t *length, uint32_t *code_point) {
    const unsigned char lead = (unsigned char)s[0];
    *length = 1;
    if (lead < 0x80) {
        if (code_point != NULL) *code_point = lead;
        return SH_UTF8_OK;
    }
    if (lead < 0xC2 || lead > 0xF4) return SH_UTF8_BAD;
    const size_t need = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    /* The second byte alone tells overlong forms, surrogates and values that are too large. */
    const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    const unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    uint32_t value = lead & (0xFFu >> (need + 1));
    for (size_t i = 1; i < need; i++) {
        if (i == n) return SH_UTF8_PARTIAL;
        const unsigned char c = (unsigned char)s[i];
        if (c < (i == 1 ? low : 0x80) || c > (i == 1 ? high : 0xBF)) return SH_UTF8_BAD;
        value = value << 6 | (c & 0x3Fu);
        *length = i + 1;
    }
    if (code_point != NULL) *code_point = value;
    return SH_UTF8_OK;
}

size_t sh_utf8_encode(uint32_t c, char out[4]) {
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xC0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3F));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xE0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3F));
        out[2] = (char)(0x80 | (c & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3F));
    out[2] = (char)(0x80 | (c >> 6 & 0x3F));
    out[3] = (char)(0x80 | (c & 0x3F));
    return 4;
}

bool sh_utf8_valid(const char *s, size_t n) {
    size_t length;
    for (size_t i = 0; i < n; i += length) {
        if (sh_utf8_scan(s + i, n - i, &length, NULL) != SH_UTF8_OK) return false;
    }
    return true;
}

/*
 * stream.c - tokens to text that may be shown: whole code points only, and nothing that is or may become a stop string.
 *
 * Bytes pass through two stages. The first assembles code points: at most 3 bytes wait, ill-formed ones become U+FFFD. The second
 * runs each stop string's automaton (Knuth, Morris, Pratt) over the assembled text; what the longest of them has matched so far
 * is held back. The stop that is complete first wins; of several that end at the same byte, the longest.
 */
#include "compute/text/vocab.h"

#include "compute/text/utf8.h"

#include <stdlib.h>

struct stop {
    const uint8_t *bytes; /* NULL: an empty string, which never matches */
    uint32_t length;
    uint32_t matched;     /* bytes: the longest end of the text that is a beginning of this stop */
    const uint32_t *fail; /* [length]: how much stays matched after a mismatch behind i + 1 bytes */
};

struct sh_text_stream {
    const struct sh_vocab *vocab;
    bool special;
    bool stopped;
    bool stops_off; /* held off; `matched` of all stops is 0 */
    int32_t *shown_tokens; /* written though they are control tokens; a few dozen at most, so they are just gone through */
    uint32_t n_shown_tokens;
    struct stop *stops;
    uint32_t n_stops;
    uint8_t *stop_bytes;
    uint32_t *stop_fail;

    char part[4]; /* the beginning of a code point */
    uint32_t n_part;

    char *text; /* what was handed out, then what is held back */
    size_t shown, length, capacity;
};

enum sh_code sh_text_stream_create(const struct sh_vocab *vocab, const char *const *stops, uint32_t n_stops, bool special,
                                   struct sh_text_stream **out, struct sh_error *err) {
    *out = NULL;
    uint64_t total = 0;
    size_t longest = 0;
    for (uint32_t i = 0; i < n_stops; i++) {
        const size_t n = strlen(stops[i]);
        if (!sh_utf8_valid(stops[i], n)) return sh_fail(err, SH_ERR_INVALID, "stop string %u is not valid UTF-8", i);
        total += n;
        longest = sh_max_u64(longest, n);
    }
    if (total > INT32_MAX)
        return sh_fail(err, SH_ERR_LIMIT, "the stop strings have %llu bytes together, too many", (unsigned long long)total);
    struct sh_text_stream *s = sh_calloc(1, sizeof *s);
    if (s == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a text stream");
    s->vocab = vocab;
    s->special = special;
    s->n_stops = n_stops;
    s->stops = sh_calloc(n_stops, sizeof *s->stops);
    s->stop_bytes = sh_calloc(total, 1);
    s->stop_fail = sh_calloc(total, sizeof *s->stop_fail);
    /* Held-back text, then one token, each byte of which may become the three of U+FFFD: nothing is allocated later. */
    s->capacity = longest + 3 * ((size_t)vocab->max_rendered + sizeof s->part);
    s->text = malloc(s->capacity);
    if (s->stops == NULL || s->stop_bytes == NULL || s->stop_fail == NULL || s->text == NULL) {
        sh_text_stream_destroy(s);
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a text stream");
    }
    uint64_t at = 0;
    for (uint32_t i = 0; i < n_stops; i++) {
        const uint32_t n = (uint32_t)strlen(stops[i]);
        if (n == 0) continue;
        uint8_t *bytes = s->stop_bytes + at;
        uint32_t *fail = s->stop_fail + at;
        memcpy(bytes, stops[i], n);
        for (uint32_t k = 1, m = 0; k < n; k++) { /* fail[0] = 0 */
            while (m > 0 && bytes[k] != bytes[m]) m = fail[m - 1];
            m += bytes[k] == bytes[m];
            fail[k] = m;
        }
        s->stops[i] = (struct stop){bytes, n, 0, fail};
        at += n;
    }
    *out = s;
    return SH_OK;
}

void sh_text_stream_destroy(struct sh_text_stream *s) {
    if (s == NULL) return;
    free(s->stops);
    free(s->stop_bytes);
    free(s->stop_fail);
    free(s->shown_tokens);
    free(s->text);
    free(s);
}

enum sh_code sh_text_stream_show(struct sh_text_stream *s, const int32_t *tokens, uint32_t count, struct sh_error *err) {
    for (uint32_t i = 0; i < count; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= s->vocab->n_tokens)
            return sh_fail(err, SH_ERR_INVALID, "shown token %u is %d: the vocabulary has ids 0 to %u", i, tokens[i],
                           s->vocab->n_tokens - 1);
    int32_t *copy = sh_calloc(count + 1ull, sizeof *copy);
    if (copy == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a text stream");
    if (count > 0) memcpy(copy, tokens, count * sizeof *copy);
    free(s->shown_tokens);
    s->shown_tokens = copy;
    s->n_shown_tokens = count;
    return SH_OK;
}

static bool is_shown(const struct sh_text_stream *s, int32_t token) {
    bool found = s->special;
    for (uint32_t i = 0; i < s->n_shown_tokens && !found; i++) found = s->shown_tokens[i] == token;
    return found;
}

void sh_text_stream_hold_off_stops(struct sh_text_stream *s, bool hold_off) {
    s->stops_off = hold_off;
    for (uint32_t i = 0; i < s->n_stops && hold_off; i++) s->stops[i].matched = 0;
}

static void append_replacement(struct sh_text_stream *s) {
    memcpy(s->text + s->length, "\xEF\xBF\xBD", 3);
    s->length += 3;
}

/* First stage: the bytes of one token behind what is there. */
static void assemble(struct sh_text_stream *s, const char *bytes, size_t n) {
    for (size_t i = 0; i < n;) {
        size_t length;
        if (s->n_part == 0) {
            switch (sh_utf8_scan(bytes + i, n - i, &length, NULL)) {
            case SH_UTF8_OK:
                memcpy(s->text + s->length, bytes + i, length);
                s->length += length;
                break;
            case SH_UTF8_BAD: append_replacement(s); break;
            case SH_UTF8_PARTIAL:
                memcpy(s->part, bytes + i, length);
                s->n_part = (uint32_t)length;
                break;
            }
            i += length;
            continue;
        }
        s->part[s->n_part] = bytes[i];
        switch (sh_utf8_scan(s->part, s->n_part + 1, &length, NULL)) {
        case SH_UTF8_OK:
            memcpy(s->text + s->length, s->part, length);
            s->length += length;
            s->n_part = 0;
            i++;
            break;
        case SH_UTF8_PARTIAL:
            s->n_part++;
            i++;
            break;
        case SH_UTF8_BAD: /* what waited can never be completed; this byte is looked at again on its own */
            append_replacement(s);
            s->n_part = 0;
            break;
        }
    }
}

/* Second stage: bytes [from, length) have come. True: a stop is complete, *end is where the text before it ends. */
static bool run_stops(struct sh_text_stream *s, size_t from, size_t *end, uint32_t *stop_index) {
    if (s->stops_off) return false;
    for (size_t i = from; i < s->length; i++) {
        const uint8_t c = (uint8_t)s->text[i];
        uint32_t longest = 0;
        for (uint32_t k = 0; k < s->n_stops; k++) {
            struct stop *stop = &s->stops[k];
            if (stop->bytes == NULL) continue;
            uint32_t m = stop->matched;
            while (m > 0 && stop->bytes[m] != c) m = stop->fail[m - 1];
            m += stop->bytes[m] == c;
            stop->matched = m;
            if (m == stop->length && m > longest) {
                longest = m;
                *stop_index = k;
            }
        }
        if (longest > 0) {
            *end = i + 1 - longest;
            return true;
        }
    }
    return false;
}

bool sh_text_stream_push(struct sh_text_stream *s, int32_t token, const char **text, size_t *length, uint32_t *stop_index) {
    *text = "";
    *length = 0;
    if (s->stopped) return true;
    memmove(s->text, s->text + s->shown, s->length - s->shown);
    s->length -= s->shown;
    s->shown = 0;
    const size_t from = s->length;
    size_t n, end;
    const char *piece = sh_vocab_piece(s->vocab, token, is_shown(s, token), &n);
    assemble(s, piece, n);
    s->stopped = run_stops(s, from, &end, stop_index);
    if (!s->stopped) {
        uint32_t held = 0;
        for (uint32_t k = 0; k < s->n_stops; k++) held = (uint32_t)sh_max_u64(held, s->stops[k].matched);
        end = s->length - held;
    }
    s->shown = end;
    *text = s->text;
    *length = end;
    return s->stopped;
}

void sh_text_stream_finish(struct sh_text_stream *s, const char **text, size_t *length) {
    *text = "";
    *length = 0;
    if (s->stopped) return;
    if (s->n_part > 0) { /* a beginning without its end is one more replacement, which a stop may contain */
        const size_t from = s->length;
        size_t end;
        uint32_t stop_index;
        append_replacement(s);
        if (run_stops(s, from, &end, &stop_index)) s->length = end;
    }
    s->n_part = 0;
    *text = s->text + s->shown;
    *length = s->length - s->shown;
    s->shown = s->length;
    s->stopped = true;
}

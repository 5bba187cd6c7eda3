#include "tests/unit/genmodel.h"

#include "compute/gguf/quant.h"
#include "compute/gguf/write.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- random numbers ------------------------------------------------------------------------------------ */

static uint64_t next(uint64_t *state) { /* splitmix64 */
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* Nearly normal with deviation 1: the sum of four uniform 16-bit numbers. */
static float draw(uint64_t *state) {
    const uint64_t r = next(state);
    const int32_t sum = (int32_t)((r & 0xFFFF) + (r >> 16 & 0xFFFF) + (r >> 32 & 0xFFFF) + (r >> 48)) - 2 * 65535;
    return (float)sum * (1.7320508f / 65536); /* four uniforms of width 65536 have deviation 65536 * sqrt(4/12) */
}

static void random_bytes(uint64_t *state, uint8_t *dst, uint32_t n) { /* n is a multiple of 8 */
    for (uint32_t i = 0; i < n; i += 8) {
        const uint64_t r = next(state);
        memcpy(dst + i, &r, 8);
    }
}

static void put_half(uint8_t *p, float v) {
    const uint16_t h = sh_f32_to_f16(v);
    memcpy(p, &h, 2);
}

/* A scale around d, within 12 %, of random sign: the quants' own mean of -1/2 then cancels over many blocks. */
static float jitter(uint64_t *state, float d) {
    const uint64_t r = next(state);
    const float size = d * (0.88f + 0.24f * (float)(r >> 40) * 0x1p-24f);
    return r & 1 ? -size : size;
}

/* Deviation of uniform quants 0..n-1. */
static float spread(int n) { return sqrtf((float)(n * n - 1) / 12); }

/* Sub-block scales and mins of Q4_K and Q5_K: scales 32..63, each min equal to its scale, so dmin = d * middle centres them. */
static void put_mins(uint64_t *state, uint8_t *b, float deviation, int levels) {
    const float d = fabsf(jitter(state, deviation / (spread(levels) * 48.4f))); /* 48.4: root mean square of 32..63 */
    uint8_t s[8];
    const uint64_t r = next(state);
    for (int j = 0; j < 8; j++) s[j] = (uint8_t)(32 + (r >> (8 * j) & 31));
    put_half(b, d);
    put_half(b + 2, d * (float)(levels - 1) / 2);
    for (int j = 0; j < 4; j++) {
        b[4 + j] = b[8 + j] = (uint8_t)(s[j] | (s[j + 4] >> 4) << 6);
        b[12 + j] = (uint8_t)((s[j + 4] & 15) | (s[j + 4] & 15) << 4);
    }
}

/* Where a table type has its d: at the start, at the end, or in the upper nibbles of four words. */
static void put_scale(uint32_t type, uint8_t *b, float d) {
    const uint16_t h = sh_f32_to_f16(d);
    const bool last = type == SH_TYPE_Q3_K || type == SH_TYPE_TQ1_0 || type == SH_TYPE_TQ2_0;
    if (type == SH_TYPE_IQ1_M)
        for (int i = 0; i < 4; i++) b[49 + 2 * i] = (uint8_t)((b[49 + 2 * i] & 15) | (h >> (4 * i) & 15) << 4);
    else memcpy(b + (last ? sh_type_info(type)->block_bytes - 2 : 0), &h, 2);
}

/* Random codes and scales of a table type. */
static void random_codes(uint32_t type, uint64_t *state, uint8_t *b) {
    const uint32_t bytes = sh_type_info(type)->block_bytes;
    uint64_t r[32];
    for (uint32_t i = 0; i < SH_COUNT(r); i++) r[i] = next(state);
    memcpy(b, r, bytes);
    if (type != SH_TYPE_TQ2_0) return;
    for (uint32_t i = 0; i < 64; i++) b[i] = (uint8_t)(b[i] & ~(b[i] >> 1 & 0x55)); /* the pattern 3 becomes 2 */
}

/* Root mean square of such blocks with d = 1, of a sample. */
static float table_deviation(uint32_t type) {
    uint8_t b[256];
    float y[256];
    double sum = 0;
    uint64_t state = type, n = 0;
    for (int i = 0; i < 256; i++) {
        random_codes(type, &state, b);
        if (type == SH_TYPE_MXFP4) b[0] = 127;
        else put_scale(type, b, 1);
        sh_dequantize(type, b, y, sh_type_info(type)->block_elements);
        for (uint32_t e = 0; e < sh_type_info(type)->block_elements; e++, n++) sum += (double)y[e] * (double)y[e];
    }
    return (float)sqrt(sum / (double)n);
}

/* MXFP4's scales are powers of two: two neighbouring ones are mixed so that the mean square is the wanted one. */
static uint8_t power_scale(uint64_t *state, float d) {
    const int exponent = ilogbf(d);
    const float share = (d * d / ldexpf(1, 2 * exponent) - 1) / 3; /* of the larger one */
    return (uint8_t)(127 + exponent + ((float)(next(state) >> 40) * 0x1p-24f < share));
}

static void fill_table(uint32_t type, uint64_t *state, float d, uint8_t *b) {
    random_codes(type, state, b);
    if (type == SH_TYPE_MXFP4) b[0] = power_scale(state, d);
    else put_scale(type, b, jitter(state, d));
}

static void fill_block(uint32_t type, uint64_t *state, float deviation, uint8_t *b) {
    uint64_t r;
    switch (type) {
    case SH_TYPE_Q4_0:
        put_half(b, jitter(state, deviation / spread(16)));
        random_bytes(state, b + 2, 16);
        break;
    case SH_TYPE_Q8_0:
        put_half(b, jitter(state, deviation / spread(255)));
        random_bytes(state, b + 2, 32);
        for (int i = 2; i < 34; i++)
            if (b[i] == 0x80) b[i] = 0; /* quantisers never write -128, and some readers cannot negate it */
        break;
    case SH_TYPE_Q4_K:
        put_mins(state, b, deviation, 16);
        random_bytes(state, b + 16, 128);
        break;
    case SH_TYPE_Q5_K:
        put_mins(state, b, deviation, 32);
        random_bytes(state, b + 16, 160);
        break;
    case SH_TYPE_Q4_1: /* m puts the middle quant at 0 */
    case SH_TYPE_Q5_1: {
        const int levels = type == SH_TYPE_Q4_1 ? 16 : 32;
        const float d = jitter(state, deviation / spread(levels));
        put_half(b, d);
        put_half(b + 2, -d * (float)(levels - 1) / 2);
        random_bytes(state, b + 4, levels == 16 ? 16 : 20);
        break;
    }
    case SH_TYPE_Q5_0:
        put_half(b, jitter(state, deviation / spread(32)));
        random_bytes(state, b + 2, 20);
        break;
    case SH_TYPE_Q2_K: {                                                        /* scales 8..15, each min equal to its scale */
        const float d = fabsf(jitter(state, deviation / (spread(4) * 11.73f))); /* 11.73: root mean square of 8..15 */
        random_bytes(state, b, 80);
        for (int i = 0; i < 16; i++) b[i] = (uint8_t)((b[i] & 7) * 17 + 0x88);
        put_half(b + 80, d);
        put_half(b + 82, d * 1.5f);
        break;
    }
    case SH_TYPE_Q6_K:
        random_bytes(state, b, 192);
        for (int i = 0; i < 16; i += 8) {
            r = next(state);
            for (int j = 0; j < 8; j++) {
                const int scale = 64 + (int)(r >> (8 * j) & 63);
                b[192 + i + j] = (uint8_t)(int8_t)(r >> (8 * j) & 64 ? -scale : scale);
            }
        }
        put_half(b + 208, jitter(state, deviation / (spread(64) * 97.3f))); /* 97.3: root mean square of 64..127 */
        break;
    default: SH_ASSERT(!"a type that fill() knows");
    }
}

static void fill(uint32_t type, uint64_t *state, float mean, float deviation, uint8_t *dst, uint64_t count) {
    const struct sh_type_info *info = sh_type_info(type);
    const float d = sh_table_type(type) != NULL ? deviation / table_deviation(type) : 0;
    for (uint64_t i = 0; i < count; i += info->block_elements, dst += info->block_bytes) {
        if (sh_table_type(type) != NULL) {
            fill_table(type, state, d, dst);
            continue;
        }
        if (info->block_elements > 1) {
            fill_block(type, state, deviation, dst);
            continue;
        }
        const float v = mean + deviation * draw(state);
        const uint16_t half = type == SH_TYPE_F16 ? sh_f32_to_f16(v) : sh_f32_to_bf16(v);
        memcpy(dst, type == SH_TYPE_F32 ? (const void *)&v : (const void *)&half, info->block_bytes);
    }
}

void genmodel_fill(uint32_t type, uint64_t seed, float deviation, void *dst, uint64_t count) {
    uint64_t state = seed;
    SH_ASSERT(sh_type_info(type) != NULL && sh_type_info(type)->computable);
    fill(type, &state, 0, deviation, dst, count);
}

/* ---- vocabulary ---------------------------------------------------------------------------------------- */

struct text { /* strings in one buffer that never moves */
    char *bytes;
    size_t used, capacity;
};

static struct sh_str keep(struct text *t, const char *s, size_t n) {
    SH_ASSERT(n <= t->capacity - t->used);
    char *copy = memcpy(t->bytes + t->used, s, n);
    t->used += n;
    return (struct sh_str){copy, n};
}

/* Word number k: all strings of a..z by length, each plain and then after a space mark: "a", "_a", "b", "_b", ... "aa", "_aa",
 * ... A word is its predecessor of one letter less plus a letter, so a merge for it always exists. Single plain letters are left
 * out where the vocabulary has them anyway. Returns the length; *split is where the last merge joins. */
static size_t word(uint64_t k, const char *mark, char buf[32], size_t *split) {
    uint64_t n = k / 2, length = 1, of_length = 26;
    while (n >= of_length) {
        n -= of_length;
        of_length *= 26;
        length++;
    }
    size_t at = 0;
    if (k % 2 == 1) {
        memcpy(buf, mark, strlen(mark));
        at = strlen(mark);
    }
    for (uint64_t i = 0; i < length; i++) {
        buf[at + length - 1 - i] = (char)('a' + n % 26);
        n /= 26;
    }
    *split = at + length - 1;
    return at + length;
}

/* The printable stand-in of a byte in byte-level vocabularies: itself where it is printable, else U+0100 onwards in order. */
static size_t byte_char(uint32_t byte, char buf[4]) {
    uint32_t code = byte, others = 0;
    for (uint32_t b = 0; b <= byte; b++) {
        const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        if (b == byte && !printable) code = 256 + others;
        others += !printable;
    }
    if (code < 128) {
        buf[0] = (char)code;
        return 1;
    }
    buf[0] = (char)(0xC0 | code >> 6);
    buf[1] = (char)(0x80 | (code & 63));
    return 2;
}

enum { KIND_NORMAL = 1, KIND_UNKNOWN = 2, KIND_CONTROL = 3, KIND_USER_DEFINED = 4, KIND_BYTE = 6 };
#define MARK "\xE2\x96\x81"  /* U+2581: a space in SentencePiece vocabularies */
#define BYTE_MARK "\xC4\xA0" /* U+0120: a space in byte-level vocabularies */
static const char bpe_bos[] = "<|begin_of_text|>", bpe_eos[] = "<|end_of_text|>"; /* those of byte-level vocabularies */

/* What `pieces` adds, and all that they begin with: a merge makes each of its predecessor and one byte (SentencePiece: character). */
static const char *const pieces[] = {
    "{\"",
    "\"}",
    "\":",
    "\",",
    "\":\"",
    "\",\"",
    "\": ",
    "\", \"",
    "\": \"",
    "\"},{\"",
    "\"]",
    "[\"",
    "[[",
    "]]",
    "[{",
    "{}",
    "[]",
    "}]",
    "]}",
    "},",
    "],",
    "}}",
    "}}\n",
    "{\n",
    "[\n",
    ",\n",
    "\",\n",
    "\"\n",
    "\n\n",
    "\n  ",
    "\n    ",
    "  ",
    "    ",
    " \"",
    " {",
    " [",
    " }",
    " ]",
    ", ",
    ": ",
    ": {",
    ": [",
    "\\\"",
    "\\\\",
    "\\n",
    "\\t",
    "\\u",
    "\\u00",
    "\\ud83d",
    "\"\"",
    "\" ",
    " :",
    " ,",
    "\t",
    "\n",
    "00",
    "01",
    "10",
    "11",
    "12",
    "19",
    "20",
    "23",
    "24",
    "25",
    "31",
    "42",
    "50",
    "59",
    "64",
    "99",
    "000",
    "100",
    "123",
    "255",
    "999",
    "2024",
    "-1",
    "-0",
    "-02",
    "-12",
    "0.",
    "1.",
    ".5",
    ".0",
    "e+",
    "e-",
    "E1",
    "1e",
    ":0",
    ":59",
    "T00",
    "T12",
    "Z\"",
    "+00",
    "true",
    "false",
    "null",
    " true",
    " false",
    " null",
    "name",
    "\"name",
    "value",
    "type",
    "\"type",
    "\"id",
    "arguments",
    "\"arguments",
    "string",
    "number",
    "the",
    " the",
    "of",
    " of",
    "and",
    " and",
    "city",
    "\"city",
    "location",
    "red",
    "green",
    "blue",
    "one",
    "two",
    "red\"",
    "function",
    "parameters",
    "A",
    "AB",
    "Hello",
    "XY",
    "_a",
    "__",
    "--",
    "..",
    "...",
    "/",
    "://",
    "@",
    "#",
    "$",
    "(",
    ")",
    "()",
    "<",
    "</",
    "<t",
    "<|",
    "|>",
    "<think",
    "user",
    "assistant",
    "\xC3\xA4",
    "\xC3\xA9",
    "\xC3\xBC",
    "\xC3\xA4p",
    "\xD0\xB6",
    "\xD0\xB8\xD1\x8F",
    "\xE2\x82\xAC",
    "\xE6\x97\xA5",
    "\xE6\x97\xA5\xE6\x9C\xAC",
    "\xE2\x80\x9C",
    "\xF0\x9F\x98\x80",
    " \xF0\x9F\x98\x80",
    "\xF0\x9F\x8E\x89",
    "\xC3\xA9\"",
    "\xE6\x97\xA5\"",
};

struct vocab {
    struct text text;
    struct sh_str *tokens, *merges;
    float *scores;
    int32_t *kinds;
    uint32_t n, n_merges, n_tokens;
    uint32_t first_piece, n_pieces;
};

static void add_token(struct vocab *v, const char *s, size_t length, int32_t kind, float score) {
    v->tokens[v->n] = keep(&v->text, s, length);
    v->scores[v->n] = score;
    v->kinds[v->n++] = kind;
}

static bool is_piece(const struct vocab *v, const char *s, size_t length) {
    for (uint32_t i = v->first_piece; i < v->first_piece + v->n_pieces; i++)
        if (v->tokens[i].length == length && memcmp(v->tokens[i].ptr, s, length) == 0) return true;
    return false;
}

/* Both leave room for what comes at the end of the vocabulary: `last` is where they stop. */
static void spm_pieces(struct vocab *v, uint32_t last, float *score) {
    char buf[96];
    for (size_t i = 0; i < SH_COUNT(pieces); i++) {
        size_t length = 0;
        for (const char *c = pieces[i]; *c != '\0';) {
            const char *const character = *c == ' ' ? MARK : c;
            size_t bytes = 1;
            while ((character[bytes] & 0xC0) == 0x80) bytes++;
            memcpy(buf + length, character, bytes);
            length += bytes;
            c += *c == ' ' ? 1 : bytes;
            if ((length == 3 && memcmp(buf, MARK, 3) == 0) || is_piece(v, buf, length) || v->n >= last) continue;
            add_token(v, buf, length, KIND_NORMAL, *score -= 1);
            v->n_pieces++;
        }
    }
}

static void bpe_pieces(struct vocab *v, uint32_t last) {
    char buf[96], merge[128];
    for (size_t i = 0; i < SH_COUNT(pieces); i++) {
        size_t length = 0;
        for (const char *c = pieces[i]; *c != '\0'; c++) {
            const size_t split = length;
            length += byte_char((uint8_t)*c, buf + length);
            if (split == 0 || is_piece(v, buf, length) || v->n >= last) continue;
            add_token(v, buf, length, KIND_NORMAL, 0);
            v->n_pieces++;
            memcpy(merge, buf, split);
            merge[split] = ' ';
            memcpy(merge + split + 1, buf + split, length - split);
            v->merges[v->n_merges++] = keep(&v->text, merge, length + 1);
        }
    }
}

static void spm_tokens(struct vocab *v, bool with_pieces, uint32_t last) {
    char buf[32];
    size_t split;
    add_token(v, "<unk>", 5, KIND_UNKNOWN, 0);
    add_token(v, "<s>", 3, KIND_CONTROL, 0);
    add_token(v, "</s>", 4, KIND_CONTROL, 0);
    for (unsigned b = 0; b < 256; b++) {
        snprintf(buf, sizeof buf, "<0x%02X>", b);
        add_token(v, buf, 6, KIND_BYTE, 0);
    }
    float score = 0;
    add_token(v, MARK, 3, KIND_NORMAL, score); /* without it a space would become the bytes of its mark */
    v->first_piece = v->n;
    if (with_pieces) spm_pieces(v, last, &score);
    for (uint64_t k = 0; v->n < last; k++) {
        const size_t length = word(k, MARK, buf, &split);
        if (!is_piece(v, buf, length)) add_token(v, buf, length, KIND_NORMAL, score -= 1);
    }
}

static void bpe_tokens(struct vocab *v, bool with_pieces, uint32_t last) {
    char buf[32], merge[40];
    size_t split;
    for (unsigned b = 0; b < 256; b++) add_token(v, buf, byte_char(b, buf), KIND_NORMAL, 0);
    v->first_piece = v->n;
    if (with_pieces) bpe_pieces(v, last);
    for (uint64_t k = 1; v->n < last; k++) {
        const size_t length = word(k, BYTE_MARK, buf, &split);
        if (length == 1 || is_piece(v, buf, length)) continue;
        add_token(v, buf, length, KIND_NORMAL, 0);
        memcpy(merge, buf, split);
        merge[split] = ' ';
        memcpy(merge + split + 1, buf + split, length - split);
        v->merges[v->n_merges++] = keep(&v->text, merge, length + 1);
    }
}

/* What is given, behind the rest: control tokens, user-defined ones, and byte-level vocabularies' own BOS and EOS. */
static void last_tokens(struct vocab *v, const struct genmodel_params *p) {
    for (uint32_t i = 0; i < p->n_control; i++) add_token(v, p->control[i], strlen(p->control[i]), KIND_CONTROL, 0);
    for (uint32_t i = 0; i < p->n_user_defined; i++)
        add_token(v, p->user_defined[i], strlen(p->user_defined[i]), KIND_USER_DEFINED, 0);
    if (p->vocab_kind == GENMODEL_SPM) return;
    add_token(v, bpe_bos, sizeof bpe_bos - 1, KIND_CONTROL, 0);
    add_token(v, bpe_eos, sizeof bpe_eos - 1, KIND_CONTROL, 0);
}

static uint32_t count_last(const struct genmodel_params *p) {
    return p->n_control + p->n_user_defined + (p->vocab_kind == GENMODEL_BPE ? 2 : 0);
}

/* Token i of those given. */
static const char *given_token(const struct genmodel_params *p, uint32_t i) {
    return i < p->n_control ? p->control[i] : p->user_defined[i - p->n_control];
}

static enum sh_code check_vocab(const struct genmodel_params *p, struct sh_error *err) {
    const uint32_t least = (p->vocab_kind == GENMODEL_SPM ? 260 : 256) + count_last(p);
    if (p->vocab < least || p->vocab > 262144)
        return sh_fail(err, SH_ERR_INVALID, "vocabulary of %u tokens: expected %u to 262144", p->vocab, least);
    bool eos_there = p->eos == NULL;
    for (uint32_t i = 0; i < p->n_control + p->n_user_defined; i++) {
        const char *token = given_token(p, i);
        bool there = p->vocab_kind == GENMODEL_BPE && (strcmp(token, bpe_bos) == 0 || strcmp(token, bpe_eos) == 0);
        for (uint32_t k = 0; k < i && !there; k++) there = strcmp(given_token(p, k), token) == 0;
        if (there)
            return sh_fail(err, SH_ERR_INVALID, "token '%s' twice: expected tokens that the vocabulary does not have", token);
        if (i < p->n_control && !eos_there) eos_there = strcmp(token, p->eos) == 0;
    }
    if (!eos_there) return sh_fail(err, SH_ERR_INVALID, "eos '%s': expected one of the control tokens given", p->eos);
    for (uint32_t i = 0; i < p->n_templates; i++)
        if (p->templates[i].name != NULL && strlen(p->templates[i].name) > 64)
            return sh_fail(err, SH_ERR_INVALID, "template '%s': expected a name of at most 64 bytes", p->templates[i].name);
    return SH_OK;
}

static uint32_t eos_token(const struct vocab *v, const struct genmodel_params *p) {
    for (uint32_t i = 0; p->eos != NULL && i < v->n; i++)
        if (v->kinds[i] == KIND_CONTROL && v->tokens[i].length == strlen(p->eos) &&
            memcmp(v->tokens[i].ptr, p->eos, v->tokens[i].length) == 0)
            return i;
    return p->vocab_kind == GENMODEL_SPM ? 2 : p->vocab - 1;
}

static void add_templates(struct sh_gguf_writer *w, const struct genmodel_params *p) {
    char key[128];
    for (uint32_t i = 0; i < p->n_templates; i++) {
        const struct genmodel_template *t = &p->templates[i];
        snprintf(key, sizeof key, "tokenizer.chat_template%s%s", t->name != NULL ? "." : "", t->name != NULL ? t->name : "");
        sh_gguf_add_str(w, key, t->text, strlen(t->text));
    }
}

static void free_vocab(struct vocab *v) {
    free(v->text.bytes);
    free(v->tokens);
    free(v->merges);
    free(v->scores);
    free(v->kinds);
}

/* Everything under tokenizer., but for templates, which are given apart. */
static enum sh_code copy_vocab(struct sh_gguf_writer *w, const char *path, struct sh_error *err) {
    static const char prefix[] = "tokenizer.", template[] = "tokenizer.chat_template";
    struct sh_gguf *g;
    const enum sh_code code = sh_gguf_open(path, &g, err);
    if (code != SH_OK) return code;
    for (uint64_t i = 0; i < sh_gguf_kv_count(g); i++) {
        const struct sh_kv *kv = sh_gguf_kv_at(g, i);
        if (strncmp(kv->key, prefix, sizeof prefix - 1) != 0 || strncmp(kv->key, template, sizeof template - 1) == 0) continue;
        if (kv->type == SH_VALUE_STRING) sh_gguf_add_str(w, kv->key, kv->strings[0].ptr, kv->strings[0].length);
        else if (kv->type != SH_VALUE_ARRAY) sh_gguf_add_scalar(w, kv->key, kv->type, kv->data);
        else if (kv->element_type == SH_VALUE_STRING) sh_gguf_add_strings(w, kv->key, kv->strings, kv->count);
        else sh_gguf_add_array(w, kv->key, kv->element_type, kv->data, kv->count);
    }
    sh_gguf_close(g);
    return SH_OK;
}

static enum sh_code count_tokens(const char *path, uint32_t *out, struct sh_error *err) {
    struct sh_gguf *g;
    const enum sh_code code = sh_gguf_open(path, &g, err);
    if (code != SH_OK) return code;
    const struct sh_kv *tokens = sh_gguf_find(g, "tokenizer.ggml.tokens");
    *out = tokens != NULL && tokens->type == SH_VALUE_ARRAY && tokens->count <= 262144 ? (uint32_t)tokens->count : 0;
    sh_gguf_close(g);
    return *out > 0 ? SH_OK : sh_fail(err, SH_ERR_INVALID, "%s: expected tokenizer.ggml.tokens, 1 to 262144 of them", path);
}

static bool add_vocab(struct sh_gguf_writer *w, const struct genmodel_params *p) {
    struct vocab v = {.n_tokens = p->vocab};
    v.text.capacity = (size_t)p->vocab * 40 + 65536;
    for (uint32_t i = 0; i < p->n_control; i++) v.text.capacity += strlen(p->control[i]);
    for (uint32_t i = 0; i < p->n_user_defined; i++) v.text.capacity += strlen(p->user_defined[i]);
    v.text.bytes = malloc(v.text.capacity);
    v.tokens = sh_calloc(p->vocab, sizeof *v.tokens);
    v.merges = sh_calloc(p->vocab, sizeof *v.merges);
    v.scores = sh_calloc(p->vocab, sizeof *v.scores);
    v.kinds = sh_calloc(p->vocab, sizeof *v.kinds);
    const bool ok = v.text.bytes != NULL && v.tokens != NULL && v.merges != NULL && v.scores != NULL && v.kinds != NULL;
    const bool spm = p->vocab_kind == GENMODEL_SPM;
    if (ok) {
        const uint32_t last = v.n_tokens - count_last(p);
        if (spm) spm_tokens(&v, p->pieces, last);
        else bpe_tokens(&v, p->pieces, last);
        last_tokens(&v, p);
        sh_gguf_add_str(w, "tokenizer.ggml.model", spm ? "llama" : "gpt2", spm ? 5 : 4);
        sh_gguf_add_str(w, "tokenizer.ggml.pre", spm ? "default" : "llama-bpe", spm ? 7 : 9);
        sh_gguf_add_strings(w, "tokenizer.ggml.tokens", v.tokens, v.n);
        if (spm) sh_gguf_add_array(w, "tokenizer.ggml.scores", SH_VALUE_F32, v.scores, v.n);
        sh_gguf_add_array(w, "tokenizer.ggml.token_type", SH_VALUE_I32, v.kinds, v.n);
        if (!spm) sh_gguf_add_strings(w, "tokenizer.ggml.merges", v.merges, v.n_merges);
        sh_gguf_add_u32(w, "tokenizer.ggml.bos_token_id", spm ? 1 : p->vocab - 2);
        sh_gguf_add_u32(w, "tokenizer.ggml.eos_token_id", eos_token(&v, p));
        if (spm) sh_gguf_add_u32(w, "tokenizer.ggml.unknown_token_id", 0);
        sh_gguf_add_bool(w, "tokenizer.ggml.add_bos_token", true);
        sh_gguf_add_bool(w, "tokenizer.ggml.add_eos_token", false);
        if (spm) sh_gguf_add_bool(w, "tokenizer.ggml.add_space_prefix", true);
    }
    free_vocab(&v);
    return ok;
}

/* ---- types --------------------------------------------------------------------------------------------- */

struct recipe {
    const char *name;
    uint32_t base, more; /* more: what attn_v and ffn_down of the chosen layers get */
    uint32_t file_type;
};
static const struct recipe recipes[] = {
    {"F32", SH_TYPE_F32, SH_TYPE_F32, 0},
    {"F16", SH_TYPE_F16, SH_TYPE_F16, 1},
    {"Q4_0", SH_TYPE_Q4_0, SH_TYPE_Q4_0, 2},
    {"Q8_0", SH_TYPE_Q8_0, SH_TYPE_Q8_0, 7},
    {"Q4_K_S", SH_TYPE_Q4_K, SH_TYPE_Q4_K, 14},
    {"Q4_K_M", SH_TYPE_Q4_K, SH_TYPE_Q6_K, 15},
    {"Q5_K_S", SH_TYPE_Q5_K, SH_TYPE_Q5_K, 16},
    {"Q5_K_M", SH_TYPE_Q5_K, SH_TYPE_Q6_K, 17},
    {"Q6_K", SH_TYPE_Q6_K, SH_TYPE_Q6_K, 18},
    {"BF16", SH_TYPE_BF16, SH_TYPE_BF16, 32},
    {"Q4_K", SH_TYPE_Q4_K, SH_TYPE_Q4_K, 14},
    {"Q5_K", SH_TYPE_Q5_K, SH_TYPE_Q5_K, 16},
    {"Q4_1", SH_TYPE_Q4_1, SH_TYPE_Q4_1, 3},
    {"Q5_0", SH_TYPE_Q5_0, SH_TYPE_Q5_0, 8},
    {"Q5_1", SH_TYPE_Q5_1, SH_TYPE_Q5_1, 9},
    {"Q2_K", SH_TYPE_Q2_K, SH_TYPE_Q2_K, 10},
    {"Q3_K_S", SH_TYPE_Q3_K, SH_TYPE_Q3_K, 11},
    {"Q3_K_M", SH_TYPE_Q3_K, SH_TYPE_Q5_K, 12},
    {"IQ2_XXS", SH_TYPE_IQ2_XXS, SH_TYPE_IQ2_XXS, 19},
    {"IQ2_XS", SH_TYPE_IQ2_XS, SH_TYPE_IQ2_XS, 20},
    {"IQ3_XXS", SH_TYPE_IQ3_XXS, SH_TYPE_IQ3_XXS, 23},
    {"IQ1_S", SH_TYPE_IQ1_S, SH_TYPE_IQ1_S, 24},
    {"IQ4_NL", SH_TYPE_IQ4_NL, SH_TYPE_IQ4_NL, 25},
    {"IQ3_S", SH_TYPE_IQ3_S, SH_TYPE_IQ3_S, 26},
    {"IQ2_S", SH_TYPE_IQ2_S, SH_TYPE_IQ2_S, 28},
    {"IQ4_XS", SH_TYPE_IQ4_XS, SH_TYPE_IQ4_XS, 30},
    {"IQ1_M", SH_TYPE_IQ1_M, SH_TYPE_IQ1_M, 31},
    {"TQ1_0", SH_TYPE_TQ1_0, SH_TYPE_TQ1_0, 36},
    {"TQ2_0", SH_TYPE_TQ2_0, SH_TYPE_TQ2_0, 37},
    {"MXFP4", SH_TYPE_MXFP4, SH_TYPE_MXFP4, 38},
};

static const struct recipe *find_recipe(const char *name) {
    for (size_t i = 0; i < SH_COUNT(recipes); i++)
        if (strcmp(recipes[i].name, name) == 0) return &recipes[i];
    return NULL;
}

/* ---- tensors ------------------------------------------------------------------------------------------- */

struct plan_tensor {
    char name[64];
    uint32_t type, rank, shard;
    uint64_t dims[3], bytes;
    float mean, deviation;
};

struct plan {
    const struct genmodel_params *p;
    struct plan_tensor *tensors;
    uint32_t n;
    uint64_t bytes;
};

static void matrix(struct plan *plan, const char *name, uint32_t type, uint64_t cols, uint64_t rows, float gain) {
    struct plan_tensor *t = &plan->tensors[plan->n++];
    snprintf(t->name, sizeof t->name, "%s", name);
    t->type = type;
    t->rank = 2;
    t->dims[0] = cols;
    t->dims[1] = rows;
    t->dims[2] = 1;
    t->mean = 0;
    t->deviation = gain / sqrtf((float)cols);
    t->bytes = sh_type_row_bytes(type, cols) * rows;
    plan->bytes += t->bytes;
}

static void vector(struct plan *plan, const char *name, uint64_t n, float mean, float deviation) {
    matrix(plan, name, SH_TYPE_F32, n, 1, 0);
    struct plan_tensor *t = &plan->tensors[plan->n - 1];
    t->rank = 1;
    t->mean = mean;
    t->deviation = deviation;
}

/* n matrices of one shape in one tensor. */
static void experts(struct plan *plan, const char *name, uint32_t type, uint64_t cols, uint64_t rows, float gain) {
    matrix(plan, name, type, cols, rows * plan->p->experts, gain);
    struct plan_tensor *t = &plan->tensors[plan->n - 1];
    t->rank = 3;
    t->dims[1] = rows;
    t->dims[2] = plan->p->experts;
}

static void llama_layer(struct plan *plan, const struct recipe *recipe, uint32_t i) {
    const struct genmodel_params *p = plan->p;
    const uint64_t q = (uint64_t)p->heads * p->head_dim, kv = (uint64_t)p->kv_heads * p->head_dim;
    const uint32_t n = p->layers;
    const bool more = i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
    const uint32_t wide = more ? recipe->more : recipe->base;
    const float branch = 1 / sqrtf(2 * (float)n);
    char name[64];
#define NAME(suffix) (snprintf(name, sizeof name, "blk.%u." suffix, i), name)
    vector(plan, NAME("attn_norm.weight"), p->embd, 1, 0.1f);
    matrix(plan, NAME("attn_q.weight"), recipe->base, p->embd, q, 1);
    matrix(plan, NAME("attn_k.weight"), recipe->base, p->embd, kv, 1);
    matrix(plan, NAME("attn_v.weight"), wide, p->embd, kv, 1);
    matrix(plan, NAME("attn_output.weight"), recipe->base, q, p->embd, branch);
    if (p->bias) {
        vector(plan, NAME("attn_q.bias"), q, 0, 0.1f);
        vector(plan, NAME("attn_k.bias"), kv, 0, 0.1f);
        vector(plan, NAME("attn_v.bias"), kv, 0, 0.1f);
        vector(plan, NAME("attn_output.bias"), p->embd, 0, 0.1f);
    }
    vector(plan, NAME("ffn_norm.weight"), p->embd, 1, 0.1f);
    if (p->experts > 0) {
        matrix(plan, NAME("ffn_gate_inp.weight"), SH_TYPE_F32, p->embd, p->experts, 1);
        experts(plan, NAME("ffn_gate_exps.weight"), recipe->base, p->embd, p->ff, 1);
        experts(plan, NAME("ffn_up_exps.weight"), recipe->base, p->embd, p->ff, 1);
        experts(plan, NAME("ffn_down_exps.weight"), wide, p->ff, p->embd, 2 * branch);
        return;
    }
    matrix(plan, NAME("ffn_gate.weight"), recipe->base, p->embd, p->ff, 1);
    matrix(plan, NAME("ffn_up.weight"), recipe->base, p->embd, p->ff, 1);
    matrix(plan, NAME("ffn_down.weight"), wide, p->ff, p->embd, 2 * branch); /* silu halves what comes in */
#undef NAME
}

/* The factors of Llama 3.1: low frequencies are divided by 8, the highest kept, those between blended. */
static float rope_factor(uint32_t i, uint32_t head_dim, float base) {
    const double wavelength = 6.283185307179586 * pow((double)base, 2.0 * i / head_dim);
    if (wavelength < 8192.0 / 4) return 1;
    if (wavelength > 8192.0 / 1) return 8;
    const double smooth = (8192.0 / wavelength - 1) / (4 - 1);
    return (float)(1 / ((1 - smooth) / 8 + smooth));
}

static bool is_rope(const struct plan_tensor *t) { return strcmp(t->name, "rope_freqs.weight") == 0; }

/* FNV-1a of the name: a tensor's values do not depend on which other tensors there are. */
static uint64_t tensor_seed(const struct plan_tensor *t, uint64_t seed) {
    uint64_t h = 0xCBF29CE484222325u ^ (seed * 0x9E3779B97F4A7C15u);
    for (const char *c = t->name; *c != '\0'; c++) h = (h ^ (uint8_t)*c) * 0x100000001B3u;
    return h;
}

static enum sh_code write_tensor(struct sh_gguf_writer *w, const struct plan *plan, const struct plan_tensor *t, uint8_t *piece,
                                 uint64_t piece_bytes, struct sh_error *err) {
    const struct sh_type_info *info = sh_type_info(t->type);
    uint64_t state = tensor_seed(t, plan->p->seed), left = t->dims[0] * t->dims[1] * t->dims[2];
    if (is_rope(t)) {
        float *factors = (float *)piece; /* head_dim / 2 of them, checked to fit */
        for (uint32_t i = 0; i < t->dims[0]; i++) factors[i] = rope_factor(i, plan->p->head_dim, plan->p->rope_base);
        return sh_gguf_writer_data(w, piece, t->bytes, err);
    }
    while (left > 0) {
        const uint64_t blocks = sh_min_u64(left / info->block_elements, piece_bytes / info->block_bytes);
        fill(t->type, &state, t->mean, t->deviation, piece, blocks * info->block_elements);
        const enum sh_code code = sh_gguf_writer_data(w, piece, blocks * info->block_bytes, err);
        if (code != SH_OK) return code;
        left -= blocks * info->block_elements;
    }
    return SH_OK;
}

static void add_u32(struct sh_gguf_writer *w, const char *arch, const char *key, uint32_t v) {
    char full[128];
    snprintf(full, sizeof full, "%s.%s", arch, key);
    sh_gguf_add_u32(w, full, v);
}

static enum sh_code add_metadata(struct sh_gguf_writer *w, const struct genmodel_params *p, const struct recipe *recipe,
                                 struct sh_error *err) {
    char key[128];
    sh_gguf_add_str(w, "general.architecture", p->arch, strlen(p->arch));
    sh_gguf_add_str(w, "general.name", p->name, strlen(p->name));
    sh_gguf_add_u32(w, "general.file_type", recipe->file_type);
    sh_gguf_add_u32(w, "general.quantization_version", 2);
    add_u32(w, p->arch, "block_count", p->layers);
    add_u32(w, p->arch, "context_length", p->context);
    add_u32(w, p->arch, "embedding_length", p->embd);
    add_u32(w, p->arch, "feed_forward_length", p->ff);
    if (p->experts > 0) {
        add_u32(w, p->arch, "expert_count", p->experts);
        add_u32(w, p->arch, "expert_used_count", p->experts_used);
    }
    add_u32(w, p->arch, "attention.head_count", p->heads);
    add_u32(w, p->arch, "attention.head_count_kv", p->kv_heads);
    add_u32(w, p->arch, "attention.key_length", p->head_dim);
    add_u32(w, p->arch, "attention.value_length", p->head_dim);
    add_u32(w, p->arch, "rope.dimension_count", p->head_dim);
    add_u32(w, p->arch, "vocab_size", p->vocab);
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", p->arch);
    sh_gguf_add_f32(w, key, 1e-5f);
    snprintf(key, sizeof key, "%s.rope.freq_base", p->arch);
    sh_gguf_add_f32(w, key, p->rope_base);
    add_templates(w, p);
    if (p->vocab_from != NULL) return copy_vocab(w, p->vocab_from, err);
    return add_vocab(w, p) ? SH_OK : sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the vocabulary");
}

void genmodel_shard_path(const char *path, uint32_t i, uint32_t n, char *buf, size_t cap) {
    size_t length = strlen(path);
    if (n > 1 && length > 5 && strcmp(path + length - 5, ".gguf") == 0) length -= 5;
    if (n > 1) snprintf(buf, cap, "%.*s-%05u-of-%05u.gguf", (int)length, path, i + 1, n);
    else snprintf(buf, cap, "%s", path);
}

static enum sh_code write_shard(const char *path, const struct plan *plan, const struct recipe *recipe, uint32_t shard,
                                uint8_t *piece, uint64_t piece_bytes, struct sh_error *err) {
    const struct genmodel_params *p = plan->p;
    struct sh_gguf_writer *w;
    char shard_path[4096];
    genmodel_shard_path(path, shard, p->shards, shard_path, sizeof shard_path);
    enum sh_code code = sh_gguf_writer_create(shard_path, p->version != 0 ? p->version : 3, p->alignment, &w, err);
    if (code != SH_OK) return code;
    if (shard == 0) code = add_metadata(w, p, recipe, err);
    if (p->shards > 1) {
        const uint16_t no = (uint16_t)shard, count = (uint16_t)p->shards;
        const int32_t tensors = (int32_t)plan->n;
        sh_gguf_add_scalar(w, "split.no", SH_VALUE_U16, &no);
        sh_gguf_add_scalar(w, "split.count", SH_VALUE_U16, &count);
        sh_gguf_add_scalar(w, "split.tensors.count", SH_VALUE_I32, &tensors);
    }
    for (uint32_t i = 0; i < plan->n; i++) {
        const struct plan_tensor *t = &plan->tensors[i];
        if (t->shard == shard) sh_gguf_add_tensor(w, t->name, t->type, t->rank, t->dims);
    }
    if (code == SH_OK) code = sh_gguf_writer_begin(w, err);
    for (uint32_t i = 0; i < plan->n && code == SH_OK; i++)
        if (plan->tensors[i].shard == shard) code = write_tensor(w, plan, &plan->tensors[i], piece, piece_bytes, err);
    if (code == SH_OK) code = sh_gguf_writer_finish(w, err);
    sh_gguf_writer_destroy(w);
    return code;
}

static enum sh_code check_params(const struct genmodel_params *p, struct sh_error *err) {
    if (strcmp(p->arch, "llama") != 0) return sh_fail(err, SH_ERR_UNSUPPORTED, "architecture '%s': expected llama", p->arch);
    if (p->layers < 1 || p->embd < 1 || p->heads < 1 || p->kv_heads < 1 || p->head_dim < 1 || p->ff < 1 || p->context < 1)
        return sh_fail(err, SH_ERR_INVALID, "layers, embd, heads, kv-heads, head-dim, ff and context must be at least 1");
    if (p->layers > 1024 || p->embd > 1u << 20 || p->ff > 1u << 20 || p->heads > 4096 || p->head_dim > 4096)
        return sh_fail(err, SH_ERR_INVALID, "layers up to 1024, embd and ff up to 1048576, heads and head-dim up to 4096");
    if (p->heads % p->kv_heads != 0)
        return sh_fail(err, SH_ERR_INVALID, "%u heads are no multiple of %u kv-heads", p->heads, p->kv_heads);
    if (p->head_dim % 2 != 0) return sh_fail(err, SH_ERR_INVALID, "head-dim %u is odd", p->head_dim);
    if (p->experts > 1024 || p->experts_used > p->experts || (p->experts > 0) != (p->experts_used > 0))
        return sh_fail(err, SH_ERR_INVALID, "%u of %u experts used: expected 1 to all of up to 1024", p->experts_used,
                       p->experts);
    if (p->shards > 512) return sh_fail(err, SH_ERR_INVALID, "%u shards: expected at most 512", p->shards);
    return p->vocab_from != NULL ? SH_OK : check_vocab(p, err);
}

static enum sh_code make_plan(struct plan *plan, const struct recipe *recipe, uint32_t embd_type, uint32_t head_type,
                              struct sh_error *err) {
    const struct genmodel_params *p = plan->p;
    plan->tensors = sh_calloc((uint64_t)p->layers * 14 + 4, sizeof *plan->tensors);
    if (plan->tensors == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the tensor list");
    /* a tied embedding is the head too: its rows must be small for logits to be */
    matrix(plan, "token_embd.weight", embd_type, p->embd, p->vocab, p->tied ? 2 : sqrtf((float)p->embd));
    for (uint32_t i = 0; i < p->layers; i++) llama_layer(plan, recipe, i);
    vector(plan, "output_norm.weight", p->embd, 1, 0.1f);
    if (!p->tied) matrix(plan, "output.weight", head_type, p->embd, p->vocab, 2);
    if (p->rope_freqs) vector(plan, "rope_freqs.weight", p->head_dim / 2, 1, 0);
    uint64_t before = 0;
    for (uint32_t i = 0; i < plan->n; i++) {
        struct plan_tensor *t = &plan->tensors[i];
        const struct sh_type_info *info = sh_type_info(t->type);
        if (t->dims[0] % info->block_elements != 0)
            return sh_fail(err, SH_ERR_INVALID,
                           "tensor '%s': rows of %" PRIu64 " elements, expected a multiple of %u for type %s", t->name,
                           t->dims[0], info->block_elements, info->name);
        /* shards of about equal size */
        if (p->shards > 1)
            t->shard = (uint32_t)sh_min_u64(p->shards - 1, (uint64_t)((double)before / (double)plan->bytes * p->shards));
        before += t->bytes;
    }
    return SH_OK;
}

struct genmodel_params genmodel_defaults(void) {
    return (struct genmodel_params){.arch = "llama",
                                    .name = "generated",
                                    .layers = 2,
                                    .embd = 256,
                                    .heads = 4,
                                    .kv_heads = 2,
                                    .head_dim = 64,
                                    .ff = 512,
                                    .vocab = 512,
                                    .context = 256,
                                    .type = "Q8_0",
                                    .seed = 1,
                                    .rope_base = 10000};
}

enum sh_code genmodel_write(const char *path, const struct genmodel_params *given, struct sh_error *err) {
    struct genmodel_params with_vocab = *given;
    const struct genmodel_params *const params = &with_vocab;
    enum sh_code code = given->vocab_from != NULL ? count_tokens(given->vocab_from, &with_vocab.vocab, err) : SH_OK;
    if (code == SH_OK) code = check_params(params, err);
    if (code != SH_OK) return code;
    const struct recipe *recipe = find_recipe(params->type);
    if (recipe == NULL)
        return sh_fail(err, SH_ERR_INVALID, "type '%s': expected the name of a type, as Q8_0, or of a mix, as Q4_K_M",
                       params->type);
    const uint32_t bits = sh_type_info(recipe->base)->block_bytes * 8 / sh_type_info(recipe->base)->block_elements;
    const uint32_t usual_head = bits < 6 && params->embd % 256 == 0 ? SH_TYPE_Q6_K : recipe->base;
    const struct recipe *embd = params->embd_type != NULL ? find_recipe(params->embd_type) : recipe;
    const struct recipe *head = params->head_type != NULL ? find_recipe(params->head_type) : NULL;
    if (embd == NULL || (params->head_type != NULL && head == NULL))
        return sh_fail(err, SH_ERR_INVALID, "head or embedding type: expected the name of a type such as Q6_K");

    struct plan plan = {.p = params};
    const uint64_t piece_bytes = 1 << 20;
    uint8_t *piece = malloc(piece_bytes);
    const uint32_t embd_type = params->tied && params->embd_type == NULL ? usual_head : embd->base;
    code = piece != NULL ? make_plan(&plan, recipe, embd_type, head != NULL ? head->base : usual_head, err)
                         : sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a piece of the model");
    for (uint32_t i = 0; i < sh_max_u64(params->shards, 1) && code == SH_OK; i++)
        code = write_shard(path, &plan, recipe, i, piece, piece_bytes, err);
    free(plan.tensors);
    free(piece);
    return code;
}

#include "compute/text/vocab.h"

#include "compute/text/pretokenizer.h"
#include "compute/text/utf8.h"

#include <ctype.h>
#include <math.h>
#include <float.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- maps --------------------------------------------------------------------------------------------- */

static uint32_t hash_bytes(const char *s, size_t n) {
    uint64_t h = 0x9E3779B97F4A7C15u ^ n;
    while (n >= 8) {
        uint64_t w;
        memcpy(&w, s, 8);
        h = (h ^ w) * 0xD6E8FEB86659FD93u;
        h ^= h >> 32;
        s += 8;
        n -= 8;
    }
    uint64_t w = 0;
    memcpy(&w, s, n);
    h = (h ^ w) * 0xD6E8FEB86659FD93u;
    h ^= h >> 32;
    return (uint32_t)(h * 0xD6E8FEB86659FD93u >> 32);
}

static bool map_init(struct sh_map *map, uint64_t entries) {
    uint64_t slots = 16;
    while (slots < entries * 2) slots *= 2;
    if (slots > UINT32_MAX) return false;
    map->slots = sh_calloc(slots, sizeof *map->slots);
    if (map->slots == NULL) return false;
    for (uint64_t i = 0; i < slots; i++) map->slots[i].value = -1;
    map->mask = (uint32_t)(slots - 1);
    return true;
}

static struct sh_map_slot *map_slot(const struct sh_vocab *v, const struct sh_map *map, const struct sh_span *strings,
                                    const char *s, size_t n, uint32_t hash) {
    for (uint32_t i = hash & map->mask;; i = (i + 1) & map->mask) {
        struct sh_map_slot *slot = &map->slots[i];
        if (slot->value < 0) return slot;
        if (slot->hash != hash) continue;
        const struct sh_span span = strings[slot->value];
        if (span.length == n && memcmp(sh_span_ptr(v, span), s, n) == 0) return slot;
    }
}

int32_t sh_vocab_find_key(const struct sh_vocab *v, const char *key, size_t length) {
    if (length > v->max_key) return -1;
    return map_slot(v, &v->by_key, v->keys, key, length, hash_bytes(key, length))->value;
}

int32_t sh_vocab_find_special(const struct sh_vocab *v, const char *text, size_t length) {
    return map_slot(v, &v->by_special, v->texts, text, length, hash_bytes(text, length))->value;
}

int32_t sh_vocab_find_text(const struct sh_vocab *v, const char *text) {
    const size_t length = strlen(text);
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        if (v->texts[i].length == length && memcmp(sh_span_ptr(v, v->texts[i]), text, length) == 0) return (int32_t)i;
    }
    return -1;
}

int sh_vocab_compare_keys(const void *a, const void *b, void *vocab) {
    const struct sh_vocab *v = vocab;
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    const struct sh_span p = v->keys[x], q = v->keys[y];
    const int order = memcmp(sh_span_ptr(v, p), sh_span_ptr(v, q), p.length < q.length ? p.length : q.length);
    return order != 0 ? order : p.length != q.length ? (p.length < q.length ? -1 : 1) : x < y ? -1 : x > y;
}

static uint32_t hash_pair(int32_t left, int32_t right) {
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    h ^= h >> 29;
    return (uint32_t)(h * 0xBF58476D1CE4E5B9u >> 32);
}

int32_t sh_vocab_find_merge(const struct sh_vocab *v, int32_t left, int32_t right, uint32_t *rank) {
    for (uint32_t i = hash_pair(left, right) & v->merge_mask;; i = (i + 1) & v->merge_mask) {
        const struct sh_merge *m = &v->merges[i];
        if (m->left < 0) return -1;
        if (m->left == left && m->right == right) {
            *rank = m->rank;
            return m->result;
        }
    }
}

bool sh_ids_push(struct sh_ids *ids, int32_t id) {
    if (!sh_grow((void **)&ids->items, &ids->capacity, ids->count + 1, sizeof *ids->items)) return false;
    ids->items[ids->count++] = id;
    return true;
}

/* ---- building ------------------------------------------------------------------------------------------- */

static enum sh_code no_memory(struct sh_error *err) { return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the vocabulary"); }

/* Room for `length` bytes at the end of the pool; NULL: none. The bytes count only after pool_used is raised. */
static char *pool_reserve(struct sh_vocab *v, size_t length) {
    uint64_t need;
    if (!sh_add_u64(v->pool_used, length, &need) || need > UINT32_MAX) return NULL;
    if (need > v->pool_capacity) {
        const uint64_t want = sh_min_u64(sh_max_u64(need, v->pool_capacity * 2), UINT32_MAX);
        char *grown = realloc(v->pool, (size_t)want);
        if (grown == NULL) return NULL;
        v->pool = grown;
        v->pool_capacity = want;
    }
    return v->pool + v->pool_used;
}

static bool pool_add(struct sh_vocab *v, const char *s, size_t length, struct sh_span *out) {
    char *at = pool_reserve(v, length);
    if (at == NULL) return false;
    memcpy(at, s, length);
    *out = (struct sh_span){(uint32_t)v->pool_used, (uint32_t)length};
    v->pool_used += length;
    return true;
}

/* The byte-level alphabet of GPT-2: printable Latin-1 bytes stand for themselves, the other 68 are moved to U+0100 and above, in
 * ascending order. */
static bool byte_is_printable(uint32_t b) {
    return (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
}

static void alphabet_bytes(uint8_t of_moved[68]) {
    uint32_t n = 0;
    for (uint32_t b = 0; b < 256; b++) {
        if (!byte_is_printable(b)) of_moved[n++] = (uint8_t)b;
    }
}

/* The bytes that a byte-level token's text stands for, at the end of the pool (not yet counted as used). A code point outside of
 * the alphabet stays as it is written, and *pure is false. */
static bool decode_bytes(struct sh_vocab *v, const uint8_t of_moved[68], struct sh_span text, size_t *length, bool *pure) {
    char *out = pool_reserve(v, text.length);
    if (out == NULL) return false;
    const char *s = sh_span_ptr(v, text);
    size_t n = 0, step;
    *pure = true;
    for (size_t i = 0; i < text.length; i += step) {
        uint32_t c;
        if (sh_utf8_scan(s + i, text.length - i, &step, &c) == SH_UTF8_OK) {
            if (c < 256 && byte_is_printable(c)) {
                out[n++] = (char)c;
                continue;
            }
            if (c >= 256 && c < 256 + 68) {
                out[n++] = (char)of_moved[c - 256];
                continue;
            }
        }
        *pure = false;
        memcpy(out + n, s + i, step);
        n += step;
    }
    *length = n;
    return true;
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* "<0x0A>" -> 10; -1 for another text. */
static int byte_of_text(const char *s, size_t length) {
    if (length != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>') return -1;
    const int high = hex_digit(s[3]), low = hex_digit(s[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

static const struct sh_kv *find_array(const struct sh_gguf *g, const char *key) {
    const struct sh_kv *kv = sh_gguf_find(g, key);
    return kv != NULL && kv->type == SH_VALUE_ARRAY ? kv : NULL;
}

static bool is_integer(enum sh_value_type t) {
    return t == SH_VALUE_U8 || t == SH_VALUE_I8 || t == SH_VALUE_U16 || t == SH_VALUE_I16 || t == SH_VALUE_U32 ||
           t == SH_VALUE_I32 || t == SH_VALUE_U64 || t == SH_VALUE_I64;
}

static const char no_tokens[] = "tokenizer.ggml.tokens is missing, empty or not an array of strings";

static enum sh_code read_tokens(struct sh_vocab *v, const struct sh_gguf *g, struct sh_error *err) {
    const struct sh_kv *tokens = find_array(g, "tokenizer.ggml.tokens");
    if (tokens == NULL || tokens->element_type != SH_VALUE_STRING || tokens->count == 0) {
        return sh_fail(err, SH_ERR_FORMAT, "%s", no_tokens);
    }
    if (tokens->count > INT32_MAX / 4) {
        return sh_fail(err, SH_ERR_FORMAT, "tokenizer.ggml.tokens at byte %llu has %llu tokens; at most %d are supported",
                       (unsigned long long)tokens->offset, (unsigned long long)tokens->count, INT32_MAX / 4);
    }
    const struct sh_kv *scores = find_array(g, "tokenizer.ggml.scores"), *types = find_array(g, "tokenizer.ggml.token_type");
    if (scores != NULL && (scores->count < tokens->count || scores->element_type != SH_VALUE_F32)) {
        return sh_fail(err, SH_ERR_FORMAT, "tokenizer.ggml.scores at byte %llu: found %llu of type %s, expected %llu of type f32",
                       (unsigned long long)scores->offset, (unsigned long long)scores->count,
                       sh_value_type_name(scores->element_type), (unsigned long long)tokens->count);
    }
    if (types != NULL && (types->count < tokens->count || !is_integer(types->element_type))) {
        return sh_fail(err, SH_ERR_FORMAT,
                       "tokenizer.ggml.token_type at byte %llu: found %llu of type %s, expected %llu integers",
                       (unsigned long long)types->offset, (unsigned long long)types->count,
                       sh_value_type_name(types->element_type), (unsigned long long)tokens->count);
    }
    v->n_tokens = (uint32_t)tokens->count;
    v->texts = sh_calloc(v->n_tokens, sizeof *v->texts);
    v->rendered = sh_calloc(v->n_tokens, sizeof *v->rendered);
    v->scores = sh_calloc(v->n_tokens, sizeof *v->scores);
    v->types = sh_calloc(v->n_tokens, 1);
    v->flags = sh_calloc(v->n_tokens, 1);
    if (v->texts == NULL || v->rendered == NULL || v->scores == NULL || v->types == NULL || v->flags == NULL)
        return no_memory(err);
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        struct sh_str s = tokens->strings[i];
        char empty[32]; /* an empty text would match everywhere */
        if (s.length == 0) s = (struct sh_str){empty, (size_t)snprintf(empty, sizeof empty, "[EMPTY_%u]", i)};
        if (!pool_add(v, s.ptr, s.length, &v->texts[i])) return no_memory(err);
        const double score = scores != NULL ? sh_kv_number(scores, i) : 0;
        v->scores[i] = isnan(score) ? -FLT_MAX : (float)score;
        if (types != NULL) {
            const int64_t type = sh_kv_integer(types, i);
            v->types[i] = type > SH_TOKEN_UNDEFINED && type <= SH_TOKEN_BYTE ? (uint8_t)type : SH_TOKEN_UNDEFINED;
        } else {
            const bool bytes = v->model == SH_VOCAB_SPM || v->model == SH_VOCAB_UNIGRAM;
            v->types[i] = bytes && byte_of_text(s.ptr, s.length) >= 0 ? SH_TOKEN_BYTE : SH_TOKEN_NORMAL;
        }
    }
    return SH_OK;
}

/* An id of 4294967295 means that there is none; another one outside of the vocabulary is ignored with a warning. */
static enum sh_code read_id(struct sh_vocab *v, const struct sh_gguf *g, const char *key, int32_t *id, struct sh_error *err) {
    uint32_t value = *id < 0 ? UINT32_MAX : (uint32_t)*id;
    const enum sh_code code = sh_gguf_u32(g, key, &value, err);
    if (code != SH_OK) return code;
    if (value != UINT32_MAX && value >= v->n_tokens && sh_gguf_find(g, key) != NULL) {
        sh_log(SH_LOG_WARNING, "%s is %u, but the vocabulary has %u tokens; ignored", key, value, v->n_tokens);
    }
    *id = value < v->n_tokens ? (int32_t)value : -1;
    return SH_OK;
}

/* Tokens that other tools recognise by their text, because many files do not mark them. */
enum { TEXT_END = 1, TEXT_CONTROL = 2, TEXT_TURN = 4, TEXT_IF_CONTROL = 8 };
static const struct {
    const char *text;
    uint32_t what;
} known_texts[] = {
    {"<|eot_id|>", TEXT_END | TEXT_TURN},
    {"<|im_end|>", TEXT_END | TEXT_TURN},
    {"<|end|>", TEXT_END | TEXT_TURN},
    {"<|return|>", TEXT_END},
    {"<|call|>", TEXT_END},
    {"<|flush|>", TEXT_END},
    {"<|calls|>", TEXT_END},
    {"<end_of_turn>", TEXT_END | TEXT_TURN},
    {"<|endoftext|>", TEXT_END},
    {"</s>", TEXT_END | TEXT_IF_CONTROL}, /* an ordinary word of mark-up elsewhere */
    {"<|eom_id|>", TEXT_END},
    {"<EOT>", TEXT_END},
    {"_<EOT>", TEXT_END},
    {"[EOT]", TEXT_END},
    {"[EOS]", TEXT_END},
    {"<|end_of_text|>", TEXT_END},
    {"<end_of_utterance>", TEXT_END},
    {"<eos>", TEXT_END},
    {"<turn|>", TEXT_END},
    {"<|tool_response>", TEXT_END},
    {"<\xEF\xBD\x9C"
     "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>",
     TEXT_END},
    {"[e~[", TEXT_END},
    /* padding and separators of fill-in-the-middle: a completion is over when they come */
    {"<|fim_pad|>", TEXT_END},
    {"<fim-pad>", TEXT_END},
    {"<fim_pad>", TEXT_END},
    {"<PAD>", TEXT_END},
    {"[PAD]", TEXT_END},
    {"<|fim_repo|>", TEXT_END},
    {"<|repo_name|>", TEXT_END},
    {"<fim-repo>", TEXT_END},
    {"<REPO>", TEXT_END},
    {"<reponame>", TEXT_END},
    {"<|file_sep|>", TEXT_END},
    {"<|fim_prefix|>", TEXT_CONTROL},
    {"<fim-prefix>", TEXT_CONTROL},
    {"<fim_prefix>", TEXT_CONTROL},
    {"<|fim_suffix|>", TEXT_CONTROL},
    {"<fim-suffix>", TEXT_CONTROL},
    {"<fim_suffix>", TEXT_CONTROL},
    {"<|fim_middle|>", TEXT_CONTROL},
    {"<fim-middle>", TEXT_CONTROL},
    {"<fim_middle>", TEXT_CONTROL},
    {"<\xEF\xBD\x9C"
     "fim\xE2\x96\x81"
     "begin\xEF\xBD\x9C>",
     TEXT_CONTROL},
    {"<\xEF\xBD\x9C"
     "fim\xE2\x96\x81"
     "hole\xEF\xBD\x9C>",
     TEXT_CONTROL},
    {"<\xEF\xBD\x9C"
     "fim\xE2\x96\x81"
     "end\xEF\xBD\x9C>",
     TEXT_CONTROL},
    {"<PRE>", TEXT_CONTROL},
    {"<SUF>", TEXT_CONTROL},
    {"<MID>", TEXT_CONTROL},
    {"\xE2\x96\x81<PRE>", TEXT_CONTROL},
    {"\xE2\x96\x81<SUF>", TEXT_CONTROL},
    {"\xE2\x96\x81<MID>", TEXT_CONTROL},
    {"<|channel|>", TEXT_TURN},
    {"<|message|>", TEXT_TURN},
    {"<|start|>", TEXT_TURN},
    {"<|constrain|>", TEXT_TURN},
    /* what opens a turn: some files have it as user-defined, which plain text may contain, but a chat message must not */
    {"<|im_start|>", TEXT_TURN},
    {"<|start_header_id|>", TEXT_TURN},
    {"<|end_header_id|>", TEXT_TURN},
    {"<|begin_of_text|>", TEXT_TURN},
    {"<start_of_turn>", TEXT_TURN},
    {"<|user|>", TEXT_TURN},
    {"<|system|>", TEXT_TURN},
    {"<|assistant|>", TEXT_TURN},
    {"[INST]", TEXT_TURN},
    {"[/INST]", TEXT_TURN},
};

static int32_t known_index(const char *s, size_t length) {
    for (uint32_t i = 0; i < SH_COUNT(known_texts); i++) {
        if (strlen(known_texts[i].text) == length && memcmp(known_texts[i].text, s, length) == 0) return (int32_t)i;
    }
    return -1;
}

static void mark_known_texts(struct sh_vocab *v) {
    int32_t end_of_message = -1;
    bool has_return = false, has_call = false, has_flush = false;
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        const char *s = sh_span_ptr(v, v->texts[i]);
        if (s[0] != '<' && s[0] != '[' && s[0] != '_' && s[0] != '\xE2') continue;
        const int32_t known = known_index(s, v->texts[i].length);
        if (known < 0) continue;
        const char *text = known_texts[known].text;
        const uint32_t what = known_texts[known].what;
        if ((what & TEXT_IF_CONTROL) && v->types[i] != SH_TOKEN_CONTROL) continue;
        if (what & (TEXT_END | TEXT_CONTROL)) v->types[i] = SH_TOKEN_CONTROL;
        if (what & TEXT_END) v->flags[i] |= SH_TOKEN_END;
        if (what & TEXT_TURN) v->flags[i] |= SH_TOKEN_STRUCTURAL;
        if (strcmp(text, "<|end|>") == 0) end_of_message = (int32_t)i;
        has_return |= strcmp(text, "<|return|>") == 0;
        has_call |= strcmp(text, "<|call|>") == 0 || strcmp(text, "<|calls|>") == 0;
        has_flush |= strcmp(text, "<|flush|>") == 0;
    }
    /* Where messages end with <|end|> and answers with <|return|> or <|call|>, the former ends no generation. */
    if (end_of_message >= 0 && has_call && (has_return || has_flush)) {
        v->flags[end_of_message] &= (uint8_t)~SH_TOKEN_END;
    }
}

static enum sh_code read_special_ids(struct sh_vocab *v, const struct sh_gguf *g, struct sh_error *err) {
    const struct {
        const char *key;
        int32_t *id;
        bool end;
    } ids[] = {
        {"tokenizer.ggml.bos_token_id", &v->bos, false},     {"tokenizer.ggml.eos_token_id", &v->eos, true},
        {"tokenizer.ggml.eot_token_id", &v->eot, true},      {"tokenizer.ggml.eom_token_id", &v->eom, true},
        {"tokenizer.ggml.unknown_token_id", &v->unk, false},
    };
    v->bos = v->eos = v->eot = v->eom = v->unk = -1;
    if (v->model == SH_VOCAB_WPM) { /* [CLS] stands where BOS does, [SEP] where EOS does */
        v->unk = sh_vocab_find_text(v, "[UNK]");
        v->bos = sh_vocab_find_text(v, "[CLS]");
        v->eos = sh_vocab_find_text(v, "[SEP]");
    }
    if (v->model == SH_VOCAB_SPM) { /* what SentencePiece itself assigns */
        v->unk = 0;
        v->bos = 1;
        v->eos = 2;
    }
    if (v->model == SH_VOCAB_UNIGRAM) { /* what T5 assigns */
        v->eos = 1;
        v->unk = 2;
    }
    for (uint32_t i = 0; i < SH_COUNT(ids); i++) {
        const enum sh_code code = read_id(v, g, ids[i].key, ids[i].id, err);
        if (code != SH_OK) return code;
        if (ids[i].end && *ids[i].id >= 0) v->flags[*ids[i].id] |= SH_TOKEN_END;
    }
    if (v->model == SH_VOCAB_WPM) {
        enum sh_code code = read_id(v, g, "tokenizer.ggml.cls_token_id", &v->bos, err);
        if (code == SH_OK) code = read_id(v, g, "tokenizer.ggml.seperator_token_id", &v->eos, err); /* spelled so in the format */
        if (code != SH_OK) return code;
    }
    if (find_array(g, "tokenizer.ggml.token_type") == NULL) {
        if (v->bos >= 0) v->types[v->bos] = SH_TOKEN_CONTROL;
        if (v->eos >= 0) v->types[v->eos] = SH_TOKEN_CONTROL;
        if (v->unk >= 0 && v->model != SH_VOCAB_BPE) v->types[v->unk] = SH_TOKEN_UNKNOWN;
    }
    mark_known_texts(v);
    return SH_OK;
}

static bool contains_fold(const char *s, size_t n, const char *part) {
    const size_t length = strlen(part);
    for (size_t i = 0; i + length <= n; i++) {
        size_t k = 0;
        while (k < length && tolower((unsigned char)s[i + k]) == part[k]) k++;
        if (k == length) return true;
    }
    return false;
}

/* Files do not carry the "strip" attributes of added tokens; Phi-3's are known by the model's name. */
static enum sh_code mark_stripping(struct sh_vocab *v, const struct sh_gguf *g, struct sh_error *err) {
    struct sh_str name = {"", 0};
    const enum sh_code code = sh_gguf_str(g, "general.name", &name, err);
    if (code != SH_OK) return code;
    if (!contains_fold(name.ptr, name.length, "phi-3") && !contains_fold(name.ptr, name.length, "phi3")) return SH_OK;
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        if (v->types[i] == SH_TOKEN_CONTROL || v->types[i] == SH_TOKEN_USER_DEFINED || v->types[i] == SH_TOKEN_UNKNOWN) {
            v->flags[i] |= SH_TOKEN_STRIP_RIGHT;
        }
    }
    static const char *const keeping[] = {"<unk>", "<s>", "<|endoftext|>"};
    for (uint32_t i = 0; i < SH_COUNT(keeping); i++) {
        const int32_t id = sh_vocab_find_text(v, keeping[i]);
        if (id >= 0) v->flags[id] &= (uint8_t)~SH_TOKEN_STRIP_RIGHT;
    }
    return SH_OK;
}

static bool is_special_type(uint8_t type) {
    return type == SH_TOKEN_CONTROL || type == SH_TOKEN_UNKNOWN || type == SH_TOKEN_USER_DEFINED;
}

static bool render_spm(struct sh_vocab *v, struct sh_span text, size_t *length) {
    char *out = pool_reserve(v, text.length);
    if (out == NULL) return false;
    const char *s = sh_span_ptr(v, text);
    size_t n = 0;
    for (size_t i = 0; i < text.length;) {
        if (text.length - i >= 3 && memcmp(s + i, "\xE2\x96\x81", 3) == 0) {
            out[n++] = ' ';
            i += 3;
        } else {
            out[n++] = s[i++];
        }
    }
    *length = n;
    return true;
}

/* Printable ASCII, which the byte alphabet writes as itself. */
static bool is_ascii(const char *s, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (s[i] < 0x21 || s[i] > 0x7E) return false;
    }
    return true;
}

/* Keys and rendered bytes of all tokens. */
static enum sh_code build_pieces(struct sh_vocab *v, struct sh_error *err) {
    uint8_t of_moved[68];
    alphabet_bytes(of_moved);
    v->pieces_capacity = v->n_pieces = v->n_tokens;
    v->keys = sh_calloc(v->n_tokens, sizeof *v->keys);
    if (v->keys == NULL) return no_memory(err);
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        const struct sh_span text = v->texts[i];
        size_t length = 0;
        bool pure = false;
        if (is_special_type(v->types[i])) {
            v->rendered[i] = text;
            if (v->types[i] == SH_TOKEN_USER_DEFINED && v->model != SH_VOCAB_BPE) v->keys[i] = text;
            if (v->types[i] == SH_TOKEN_USER_DEFINED && v->model == SH_VOCAB_BPE && is_ascii(sh_span_ptr(v, text), text.length)) {
                v->keys[i] = text; /* its bytes either way; another one's text, read as the byte alphabet, would be other bytes */
            }
        } else if (v->types[i] == SH_TOKEN_BYTE) {
            const int byte = byte_of_text(sh_span_ptr(v, text), text.length);
            const char c = (char)byte;
            v->rendered[i] = text;
            if (byte >= 0 && !pool_add(v, &c, 1, &v->rendered[i])) return no_memory(err);
            if (v->model != SH_VOCAB_BPE) v->keys[i] = text;
        } else if (v->model != SH_VOCAB_BPE) {
            if (!render_spm(v, text, &length)) return no_memory(err);
            v->keys[i] = text;
        } else {
            if (!decode_bytes(v, of_moved, text, &length, &pure)) return no_memory(err);
        }
        if (length > 0) {
            v->rendered[i] = (struct sh_span){(uint32_t)v->pool_used, (uint32_t)length};
            v->pool_used += length;
            if (pure) v->keys[i] = v->rendered[i];
        }
        if (v->types[i] == SH_TOKEN_UNUSED || v->types[i] == SH_TOKEN_UNDEFINED) v->rendered[i].length = 0;
        v->max_key = (uint32_t)sh_max_u64(v->max_key, v->keys[i].length);
        v->max_rendered = (uint32_t)sh_max_u64(v->max_rendered, v->rendered[i].length);
    }
    return SH_OK;
}

static void map_put(struct sh_vocab *v, struct sh_map *map, const struct sh_span *strings, uint32_t id) {
    const struct sh_span span = strings[id];
    const uint32_t hash = hash_bytes(sh_span_ptr(v, span), span.length);
    struct sh_map_slot *slot = map_slot(v, map, strings, sh_span_ptr(v, span), span.length, hash);
    map->used += slot->value < 0;
    *slot = (struct sh_map_slot){hash, (int32_t)id}; /* of equal texts the last one is taken, as elsewhere */
}

static int compare_groups(const void *a, const void *b) {
    const uint32_t x = ((const struct sh_special_group *)a)->length, y = ((const struct sh_special_group *)b)->length;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* Bytes. A text is searched once for each length that occurs, and a file could have thousands of them. */
enum { MAX_SPECIAL = 512 };

static enum sh_code build_groups(struct sh_vocab *v, uint32_t which, struct sh_error *err) {
    uint32_t capacity = 0;
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        if (!is_special_type(v->types[i]) || (which == 0 && v->types[i] != SH_TOKEN_USER_DEFINED)) continue;
        const struct sh_span text = v->texts[i];
        if (text.length > MAX_SPECIAL) continue;
        uint32_t g = 0;
        while (g < v->n_groups[which] && v->groups[which][g].length != text.length) g++;
        if (g == v->n_groups[which]) {
            if (!sh_grow((void **)&v->groups[which], &capacity, g + 1, sizeof *v->groups[which])) return no_memory(err);
            v->groups[which][g] = (struct sh_special_group){.length = text.length};
            v->n_groups[which]++;
        }
        const char *s = sh_span_ptr(v, text);
        const uint8_t first = (uint8_t)s[0], last = (uint8_t)s[text.length - 1];
        v->groups[which][g].first[first >> 6] |= 1ull << (first & 63);
        v->groups[which][g].last[last >> 6] |= 1ull << (last & 63);
    }
    if (v->n_groups[which] > 0) qsort(v->groups[which], v->n_groups[which], sizeof *v->groups[which], compare_groups);
    return SH_OK;
}

static enum sh_code build_maps(struct sh_vocab *v, uint64_t n_merges, struct sh_error *err) {
    uint64_t n_special = 0;
    for (uint32_t i = 0; i < v->n_tokens; i++) n_special += is_special_type(v->types[i]);
    /* every merge can add three pieces, the byte alphabet 256 */
    if (!map_init(&v->by_key, v->n_tokens + n_merges + 256) || !map_init(&v->by_special, n_special)) return no_memory(err);
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        if (is_special_type(v->types[i])) map_put(v, &v->by_special, v->texts, i);
        if (v->types[i] == SH_TOKEN_USER_DEFINED && v->keys[i].length > 0) map_put(v, &v->by_key, v->keys, i);
    }
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        if (!is_special_type(v->types[i]) && v->keys[i].length > 0) map_put(v, &v->by_key, v->keys, i);
    }
    for (uint32_t which = 0; which < 2; which++) {
        const enum sh_code code = build_groups(v, which, err);
        if (code != SH_OK) return code;
    }
    return SH_OK;
}

/* ---- SPM ------------------------------------------------------------------------------------------------- */

static void finish_spm(struct sh_vocab *v) {
    static const char digits[] = "0123456789ABCDEF";
    for (uint32_t b = 0; b < 256; b++) {
        const char text[6] = {'<', '0', 'x', digits[b >> 4], digits[b & 15], '>'};
        const char plain = (char)b;
        v->byte_token[b] = sh_vocab_find_key(v, text, sizeof text);
        if (v->byte_token[b] < 0) v->byte_token[b] = sh_vocab_find_key(v, &plain, 1);
        if (v->byte_token[b] < 0) v->byte_token[b] = sh_vocab_fallback(v);
    }
    v->word_cut = true;
    for (uint32_t i = 0; i < v->n_tokens && v->word_cut; i++) {
        const char *s = sh_span_ptr(v, v->keys[i]);
        for (size_t k = 3; k + 3 <= v->keys[i].length && v->word_cut; k++) {
            v->word_cut = memcmp(s + k, "\xE2\x96\x81", 3) != 0 || memcmp(s + k - 3, "\xE2\x96\x81", 3) == 0;
        }
        for (size_t k = 1; k < 3 && k + 3 <= v->keys[i].length && v->word_cut; k++) {
            v->word_cut = memcmp(s + k, "\xE2\x96\x81", 3) != 0;
        }
    }
}

/* ---- byte-level BPE -------------------------------------------------------------------------------------- */

/* The piece with these bytes (which lie at the end of the pool), added if it is new; -1: no memory. */
static int32_t intern(struct sh_vocab *v, size_t length) {
    const char *s = v->pool + v->pool_used;
    const uint32_t hash = hash_bytes(s, length);
    struct sh_map_slot *slot = map_slot(v, &v->by_key, v->keys, s, length, hash);
    if (slot->value >= 0) return slot->value;
    if (v->by_key.used >= v->by_key.mask - v->by_key.mask / 8) { /* more unknown pieces than foreseen */
        struct sh_map larger = {0};
        if (!map_init(&larger, ((uint64_t)v->by_key.mask + 1) * 2)) return -1;
        for (uint32_t i = 0; i <= v->by_key.mask; i++) {
            const struct sh_map_slot old = v->by_key.slots[i];
            if (old.value < 0) continue;
            uint32_t at = old.hash & larger.mask;
            while (larger.slots[at].value >= 0) at = (at + 1) & larger.mask;
            larger.slots[at] = old;
            larger.used++;
        }
        free(v->by_key.slots);
        v->by_key = larger;
        slot = map_slot(v, &v->by_key, v->keys, s, length, hash);
    }
    if (!sh_grow((void **)&v->keys, &v->pieces_capacity, v->n_pieces + 1, sizeof *v->keys)) return -1;
    v->keys[v->n_pieces] = (struct sh_span){(uint32_t)v->pool_used, (uint32_t)length};
    v->pool_used += length;
    v->max_key = (uint32_t)sh_max_u64(v->max_key, length);
    *slot = (struct sh_map_slot){hash, (int32_t)v->n_pieces};
    v->by_key.used++;
    return (int32_t)v->n_pieces++;
}

static enum sh_code read_merges(struct sh_vocab *v, const struct sh_kv *merges, struct sh_error *err) {
    uint64_t slots = 16;
    while (slots < merges->count * 2) slots *= 2;
    if (slots > UINT32_MAX) {
        return sh_fail(err, SH_ERR_FORMAT, "tokenizer.ggml.merges at byte %llu has %llu entries, too many",
                       (unsigned long long)merges->offset, (unsigned long long)merges->count);
    }
    v->merges = sh_calloc(slots, sizeof *v->merges);
    if (v->merges == NULL) return no_memory(err);
    for (uint64_t i = 0; i < slots; i++) v->merges[i].left = -1;
    v->merge_mask = (uint32_t)(slots - 1);

    uint8_t of_moved[68];
    alphabet_bytes(of_moved);
    for (uint32_t b = 0; b < 256; b++) {
        char *at = pool_reserve(v, 1);
        if (at == NULL) return no_memory(err);
        *at = (char)b;
        v->byte_token[b] = intern(v, 1);
        if (v->byte_token[b] < 0) return no_memory(err);
    }
    for (uint64_t i = 0; i < merges->count; i++) {
        const struct sh_str s = merges->strings[i];
        /* The halves are parted by a space; a half may begin with one. */
        const char *space = s.length > 1 ? memchr(s.ptr + 1, ' ', s.length - 1) : NULL;
        if (space == NULL) {
            return sh_fail(err, SH_ERR_FORMAT, "tokenizer.ggml.merges at byte %llu: entry %llu has no space between two halves",
                           (unsigned long long)merges->offset, (unsigned long long)i);
        }
        const size_t half[2] = {(size_t)(space - s.ptr), s.length - (size_t)(space - s.ptr) - 1};
        const char *half_text[2] = {s.ptr, space + 1};
        int32_t piece[3];
        bool reachable = true;
        for (uint32_t k = 0; k < 2; k++) {
            /* decode_bytes reads from the pool: the text is put there first, then moved down over itself */
            char *at = pool_reserve(v, half[k]);
            if (at == NULL) return no_memory(err);
            memcpy(at, half_text[k], half[k]);
            const struct sh_span text = {(uint32_t)v->pool_used, (uint32_t)half[k]};
            v->pool_used += half[k];
            size_t length;
            bool pure;
            const bool decoded = decode_bytes(v, of_moved, text, &length, &pure);
            v->pool_used -= half[k];
            if (!decoded) return no_memory(err);
            reachable &= pure && length > 0;
            if (!reachable) break; /* no text consists of such symbols */
            memmove(v->pool + v->pool_used, v->pool + v->pool_used + half[k], length);
            piece[k] = intern(v, length);
            if (piece[k] < 0) return no_memory(err);
        }
        if (!reachable) continue;
        const struct sh_span left = v->keys[piece[0]], right = v->keys[piece[1]];
        char *at = pool_reserve(v, (size_t)left.length + right.length);
        if (at == NULL) return no_memory(err);
        memcpy(at, sh_span_ptr(v, left), left.length);
        memcpy(at + left.length, sh_span_ptr(v, right), right.length);
        piece[2] = intern(v, (size_t)left.length + right.length);
        if (piece[2] < 0) return no_memory(err);
        uint32_t slot = hash_pair(piece[0], piece[1]) & v->merge_mask;
        while (v->merges[slot].left >= 0 && (v->merges[slot].left != piece[0] || v->merges[slot].right != piece[1])) {
            slot = (slot + 1) & v->merge_mask;
        }
        if (v->merges[slot].left >= 0) continue; /* the first of equal merges counts */
        v->merges[slot] = (struct sh_merge){piece[0], piece[1], piece[2], (uint32_t)i};
    }
    return SH_OK;
}

/* ---- WordPiece --------------------------------------------------------------------------------------------- */

/* Whether a word of the vocabulary begins with a capital letter of ASCII. Files written before there was a key for it do not say
 * whether a model tells capitals from small letters; a vocabulary that has them was made by one that does. */
static bool has_capitals(const struct sh_vocab *v) {
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        const char *s = sh_span_ptr(v, v->texts[i]);
        if (v->types[i] == SH_TOKEN_NORMAL && v->texts[i].length > 3 && memcmp(s, "\xE2\x96\x81", 3) == 0 && s[3] >= 'A' &&
            s[3] <= 'Z') {
            return true;
        }
    }
    return false;
}

/* ---- creation ---------------------------------------------------------------------------------------------- */

static enum sh_code read_flags(struct sh_vocab *v, const struct sh_gguf *g, bool add_bos, struct sh_error *err) {
    const bool wpm = v->model == SH_VOCAB_WPM, unigram = v->model == SH_VOCAB_UNIGRAM;
    v->add_bos = add_bos;
    v->add_eos = wpm || unigram;
    v->add_space_prefix = v->model == SH_VOCAB_SPM || unigram;
    enum sh_code code = sh_gguf_bool(g, "tokenizer.ggml.add_bos_token", &v->add_bos, err);
    if (code == SH_OK) code = sh_gguf_bool(g, wpm ? "tokenizer.ggml.add_sep_token" : "tokenizer.ggml.add_eos_token", &v->add_eos, err);
    if (code == SH_OK && (v->model == SH_VOCAB_SPM || unigram)) {
        code = sh_gguf_bool(g, "tokenizer.ggml.add_space_prefix", &v->add_space_prefix, err);
    }
    if (code == SH_OK && wpm) {
        v->lower_case = !has_capitals(v);
        code = sh_gguf_bool(g, "tokenizer.ggml.normalizer.lowercase", &v->lower_case, err);
        v->strip_accents = v->lower_case;
    }
    if (code == SH_OK && wpm) code = sh_gguf_bool(g, "tokenizer.ggml.normalizer.strip_accents", &v->strip_accents, err);
    if (v->bos < 0) v->add_bos = false;
    if (v->eos < 0) v->add_eos = false;
    return code;
}

enum { MAX_TEMPLATES = 64 };

/* Keeps a copy of a template's text; an empty one is none. */
static enum sh_code add_template(struct sh_vocab *v, const char *name, struct sh_str text, struct sh_error *err) {
    if (text.ptr == NULL || text.length == 0) return SH_OK;
    struct sh_vocab_template *grown = realloc(v->templates, (v->n_templates + 1) * sizeof *grown);
    if (grown == NULL) return no_memory(err);
    v->templates = grown;
    struct sh_vocab_template *t = &v->templates[v->n_templates++];
    *t = (struct sh_vocab_template){strdup(name), malloc(text.length + 1), text.length};
    if (t->name == NULL || t->text == NULL) return no_memory(err);
    memcpy(t->text, text.ptr, text.length);
    t->text[text.length] = '\0';
    return SH_OK;
}

/* tokenizer.chat_template, and tokenizer.chat_template.NAME in the file's order. (tokenizer.chat_templates lists the names, which are
 * in the keys anyway.) */
static enum sh_code read_templates(struct sh_vocab *v, const struct sh_gguf *g, struct sh_error *err) {
    static const char prefix[] = "tokenizer.chat_template.";
    struct sh_str text = {NULL, 0};
    enum sh_code code = sh_gguf_str(g, "tokenizer.chat_template", &text, err);
    if (code == SH_OK) code = add_template(v, "default", text, err);
    for (uint64_t i = 0; i < sh_gguf_kv_count(g) && code == SH_OK; i++) {
        const struct sh_kv *kv = sh_gguf_kv_at(g, i);
        if (strncmp(kv->key, prefix, sizeof prefix - 1) != 0 || v->n_templates == MAX_TEMPLATES) continue;
        text = (struct sh_str){NULL, 0};
        code = sh_gguf_str(g, kv->key, &text, err);
        if (code == SH_OK) code = add_template(v, kv->key + sizeof prefix - 1, text, err);
    }
    return code;
}

/* Which tokenizer it is, and what that needs besides tokens: pre-tokenizer and merges for byte-level BPE. */
static enum sh_code read_kind(struct sh_vocab *v, const struct sh_gguf *g, struct sh_pre_rules *rules, const struct sh_kv **merges,
                              struct sh_error *err) {
    static const struct {
        const char *name;
        enum sh_vocab_model model;
    } models[] = {{"llama", SH_VOCAB_SPM}, {"gpt2", SH_VOCAB_BPE}, {"bert", SH_VOCAB_WPM}, {"t5", SH_VOCAB_UNIGRAM}};
    struct sh_str model = {NULL, 0}, pre = {"", 0};
    enum sh_code code = sh_gguf_str(g, "tokenizer.ggml.model", &model, err);
    if (code == SH_OK) code = sh_gguf_str(g, "tokenizer.ggml.pre", &pre, err);
    if (code != SH_OK) return code;
    if (model.ptr == NULL) {
        return sh_fail(err, SH_ERR_UNSUPPORTED, "%s: tokenizer.ggml.model is missing: the file has no tokenizer", sh_gguf_path(g, 0));
    }
    uint32_t kind = 0;
    while (kind < SH_COUNT(models) &&
           (strlen(models[kind].name) != model.length || memcmp(models[kind].name, model.ptr, model.length) != 0)) {
        kind++;
    }
    if (kind == SH_COUNT(models)) {
        return sh_fail(err, SH_ERR_UNSUPPORTED,
                       "tokenizer.ggml.model is \"%.*s\"; supported are \"llama\" (SPM), \"gpt2\" (byte-level BPE), \"bert\" "
                       "(WordPiece) and \"t5\" (Unigram)",
                       (int)sh_min_u64(model.length, 64), model.ptr);
    }
    v->model = models[kind].model;
    rules->add_bos = v->model != SH_VOCAB_UNIGRAM; /* BPE: as its pre-tokenizer has it */
    if (v->model != SH_VOCAB_BPE) return SH_OK;
    code = sh_pretokenizer_create(pre.ptr, pre.length, &v->pretokenizer, rules, err);
    if (code != SH_OK) return code;
    snprintf(v->pre, sizeof v->pre, "%s", rules->name);
    v->ignore_merges = rules->ignore_merges;
    *merges = find_array(g, "tokenizer.ggml.merges");
    if (*merges == NULL || (*merges)->element_type != SH_VALUE_STRING) {
        return sh_fail(err, SH_ERR_FORMAT, "%s: tokenizer.ggml.merges is missing or not an array of strings; byte-level BPE needs it",
                       sh_gguf_path(g, 0));
    }
    return SH_OK;
}

static enum sh_code fill(struct sh_vocab *v, const struct sh_gguf *g, struct sh_error *err) {
    struct sh_pre_rules rules = {0};
    const struct sh_kv *merges = NULL;
    enum sh_code code = read_kind(v, g, &rules, &merges, err);
    if (code == SH_OK) code = read_tokens(v, g, err);
    if (code == SH_OK) code = read_special_ids(v, g, err);
    if (code == SH_OK) code = mark_stripping(v, g, err);
    if (code == SH_OK) code = build_pieces(v, err);
    if (code == SH_OK) code = build_maps(v, merges != NULL ? sh_min_u64(merges->count, v->n_tokens) : 0, err);
    if (code != SH_OK) return code;
    if (v->model == SH_VOCAB_SPM) {
        finish_spm(v);
    } else if (v->model == SH_VOCAB_WPM) {
        if (!sh_wpm_prepare(v)) return no_memory(err);
    } else if (v->model == SH_VOCAB_UNIGRAM) {
        code = sh_unigram_prepare(v, g, err);
        if (code != SH_OK) return code;
    } else {
        code = read_merges(v, merges, err);
        if (code != SH_OK) return code;
    }
    char *fitting = realloc(v->pool, (size_t)v->pool_used); /* it grew by doubling, and is kept as long as the model */
    if (fitting != NULL) {
        v->pool = fitting;
        v->pool_capacity = v->pool_used;
    }
    code = read_flags(v, g, rules.add_bos, err);
    if (code == SH_OK) code = read_templates(v, g, err);
    return code;
}

/* *err is `why`, with the file's name before it unless it is there. */
static enum sh_code name_file(const struct sh_gguf *g, enum sh_code code, const struct sh_error *why, struct sh_error *err) {
    const char *path = sh_gguf_path(g, 0);
    const bool named = strncmp(why->message, path, strlen(path)) == 0;
    return sh_fail(err, code, "%s%s%s", named ? "" : path, named ? "" : ": ", why->message);
}

enum sh_code sh_vocab_check(const struct sh_gguf *g, struct sh_error *err) {
    struct sh_vocab *v = sh_calloc(1, sizeof *v);
    if (v == NULL) return no_memory(err);
    struct sh_error why = {0};
    struct sh_pre_rules rules;
    const struct sh_kv *merges, *tokens = find_array(g, "tokenizer.ggml.tokens");
    enum sh_code code = read_kind(v, g, &rules, &merges, &why);
    if (code == SH_OK && (tokens == NULL || tokens->element_type != SH_VALUE_STRING || tokens->count == 0))
        code = sh_fail(&why, SH_ERR_FORMAT, "%s", no_tokens);
    sh_vocab_destroy(v);
    return code == SH_OK ? SH_OK : name_file(g, code, &why, err);
}

enum sh_code sh_vocab_create(const struct sh_gguf *g, struct sh_vocab **out, struct sh_error *err) {
    *out = NULL;
    struct sh_vocab *v = sh_calloc(1, sizeof *v);
    if (v == NULL) return no_memory(err);
    struct sh_error why = {0};
    v->kept = sh_calloc(1, sizeof *v->kept);
    if (v->kept != NULL) pthread_mutex_init(&v->kept->lock, NULL);
    const enum sh_code code = v->kept != NULL ? fill(v, g, &why) : no_memory(&why);
    if (code != SH_OK) {
        sh_vocab_destroy(v);
        return name_file(g, code, &why, err);
    }
    *out = v;
    return SH_OK;
}

void sh_vocab_destroy(struct sh_vocab *v) {
    if (v == NULL) return;
    if (v->kept != NULL) { /* first: it may refer to the rest */
        if (v->kept->data != NULL) v->kept->destroy(v->kept->data);
        pthread_mutex_destroy(&v->kept->lock);
        free(v->kept);
    }
    sh_pretokenizer_destroy(v->pretokenizer);
    free(v->pool);
    free(v->texts);
    free(v->keys);
    free(v->rendered);
    free(v->scores);
    free(v->types);
    free(v->flags);
    free(v->by_key.slots);
    free(v->by_special.slots);
    free(v->groups[0]);
    free(v->groups[1]);
    free(v->merges);
    free(v->sorted);
    free(v->firsts);
    sh_unigram_destroy(v->unigram);
    for (uint32_t i = 0; i < v->n_templates; i++) {
        free(v->templates[i].name);
        free(v->templates[i].text);
    }
    free(v->templates);
    free(v);
}

enum sh_code sh_vocab_open(const char *gguf_path, struct sh_vocab **out, struct sh_error *err) {
    *out = NULL;
    struct sh_gguf *g;
    enum sh_code code = sh_gguf_open(gguf_path, &g, err);
    if (code != SH_OK) return code;
    code = sh_vocab_create(g, out, err);
    sh_gguf_close(g);
    return code;
}

void sh_vocab_close(struct sh_vocab *vocab) { sh_vocab_destroy(vocab); }

/* ---- questions ---------------------------------------------------------------------------------------------- */

uint32_t sh_vocab_size(const struct sh_vocab *v) { return v->n_tokens; }
int32_t sh_vocab_bos(const struct sh_vocab *v) { return v->bos; }
int32_t sh_vocab_eos(const struct sh_vocab *v) { return v->eos; }
const char *sh_vocab_kind(const struct sh_vocab *v) {
    static const char *const names[] = {
        [SH_VOCAB_SPM] = "spm", [SH_VOCAB_BPE] = "bpe", [SH_VOCAB_WPM] = "wpm", [SH_VOCAB_UNIGRAM] = "unigram"};
    return names[v->model];
}
const char *sh_vocab_pre(const struct sh_vocab *v) { return v->pre; }
const char *sh_vocab_chat_template(const struct sh_vocab *v) {
    return v->n_templates > 0 && strcmp(v->templates[0].name, "default") == 0 ? v->templates[0].text : NULL;
}

bool sh_vocab_is_end(const struct sh_vocab *v, int32_t token) {
    return token >= 0 && (uint32_t)token < v->n_tokens && (v->flags[token] & SH_TOKEN_END) != 0;
}

const char *sh_vocab_piece(const struct sh_vocab *v, int32_t token, bool special, size_t *length) {
    *length = 0;
    if (token < 0 || (uint32_t)token >= v->n_tokens) return "";
    if (!special && (v->types[token] == SH_TOKEN_CONTROL || v->types[token] == SH_TOKEN_UNKNOWN)) return "";
    *length = v->rendered[token].length;
    return sh_span_ptr(v, v->rendered[token]);
}

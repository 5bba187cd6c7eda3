/* Metadata keys with a sticky error; which of a file's keys nobody asked for. */
#include "compute/model/spec.h"

#include <stdio.h>

static void make_key(const struct sh_reader *r, const char *suffix, char key[160]) {
    snprintf(key, 160, "%s.%s", r->architecture, suffix);
}

const char *sh_read_key(const struct sh_reader *r, const char *suffix) {
    static _Thread_local char key[160];
    make_key(r, suffix, key);
    return key;
}

/* The entry, noted as asked for; NULL: absent, or an earlier failure. */
static const struct sh_kv *find(struct sh_reader *r, const char *suffix) {
    if (*r->code != SH_OK) return NULL;
    char key[160];
    make_key(r, suffix, key);
    const struct sh_kv *kv = sh_gguf_find(r->g, key);
    if (kv == NULL) return NULL;
    for (uint32_t i = 0; i < r->n_asked; i++)
        if (r->asked[i] == kv) return kv;
    SH_ASSERT(r->n_asked < SH_READER_KEYS);
    r->asked[r->n_asked++] = kv;
    return kv;
}

void sh_read_fail(struct sh_reader *r, enum sh_code code, const char *suffix, const char *fmt, ...) {
    if (*r->code != SH_OK) return;
    char key[160], text[300];
    make_key(r, suffix, key);
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    *r->code = sh_fail(r->err, code, "%s: key '%s' %s", sh_gguf_path(r->g, 0), key, text);
}

bool sh_read_has(struct sh_reader *r, const char *suffix) { return find(r, suffix) != NULL; }

static uint32_t integer(struct sh_reader *r, const char *suffix, bool required, uint32_t fallback, uint32_t lowest,
                        uint32_t highest) {
    const struct sh_kv *kv = find(r, suffix);
    if (*r->code != SH_OK || (kv == NULL && !required)) return fallback;
    char key[160];
    make_key(r, suffix, key);
    uint32_t value = fallback;
    *r->code = required ? sh_gguf_u32_req(r->g, key, &value, r->err) : sh_gguf_u32(r->g, key, &value, r->err);
    if (*r->code == SH_OK && (value < lowest || value > highest))
        sh_read_fail(r, SH_ERR_FORMAT, suffix, "is %u, expected %u to %u", value, lowest, highest);
    return *r->code == SH_OK ? value : fallback;
}

uint32_t sh_read_u32(struct sh_reader *r, const char *suffix, uint32_t fallback, uint32_t lowest, uint32_t highest) {
    return integer(r, suffix, false, fallback, lowest, highest);
}

uint32_t sh_read_u32_required(struct sh_reader *r, const char *suffix, uint32_t lowest, uint32_t highest) {
    return integer(r, suffix, true, lowest, lowest, highest);
}

double sh_read_real(struct sh_reader *r, const char *suffix, double fallback, double lowest, double highest) {
    const struct sh_kv *kv = find(r, suffix);
    if (kv == NULL) return fallback;
    char key[160];
    make_key(r, suffix, key);
    float value = 0;
    *r->code = sh_gguf_f32(r->g, key, &value, r->err);
    const double v = (double)value;
    if (*r->code == SH_OK && !(v >= lowest && v <= highest))
        sh_read_fail(r, SH_ERR_FORMAT, suffix, "is %g, expected %g to %g", v, lowest, highest);
    return *r->code == SH_OK ? v : fallback;
}

double sh_read_real_required(struct sh_reader *r, const char *suffix, double lowest, double highest) {
    if (*r->code == SH_OK && find(r, suffix) == NULL)
        sh_read_fail(r, SH_ERR_FORMAT, suffix, "is missing, expected a number from %g to %g", lowest, highest);
    return sh_read_real(r, suffix, lowest, lowest, highest);
}

bool sh_read_bool(struct sh_reader *r, const char *suffix, bool fallback) {
    if (find(r, suffix) == NULL) return fallback;
    char key[160];
    make_key(r, suffix, key);
    bool value = fallback;
    *r->code = sh_gguf_bool(r->g, key, &value, r->err);
    return value;
}

struct sh_str sh_read_str(struct sh_reader *r, const char *suffix, const char *fallback) {
    struct sh_str value = {.ptr = fallback, .length = strlen(fallback)};
    if (find(r, suffix) == NULL) return value;
    char key[160];
    make_key(r, suffix, key);
    *r->code = sh_gguf_str(r->g, key, &value, r->err);
    return value;
}

bool sh_str_is(struct sh_str s, const char *text) { return s.length == strlen(text) && memcmp(s.ptr, text, s.length) == 0; }

static bool is_integer(enum sh_value_type t) {
    return t <= SH_VALUE_I32 || t == SH_VALUE_BOOL || t == SH_VALUE_U64 || t == SH_VALUE_I64;
}

void sh_read_u32s(struct sh_reader *r, const char *suffix, uint32_t fallback, uint32_t lowest, uint32_t highest, uint32_t *out,
                  uint32_t n) {
    for (uint32_t i = 0; i < n; i++) out[i] = fallback;
    const struct sh_kv *kv = find(r, suffix);
    if (kv == NULL) return;
    if (kv->type != SH_VALUE_ARRAY) {
        const uint32_t value = sh_read_u32(r, suffix, fallback, lowest, highest);
        for (uint32_t i = 0; i < n; i++) out[i] = value;
        return;
    }
    if (!is_integer(kv->element_type) || kv->count < n) {
        sh_read_fail(r, SH_ERR_FORMAT, suffix, "is an array of %llu elements of type %s, expected integers for %u layers",
                     (unsigned long long)kv->count, sh_value_type_name(kv->element_type), n);
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        const int64_t value = sh_kv_integer(kv, i);
        if (value < (int64_t)lowest || value > (int64_t)highest) {
            sh_read_fail(r, SH_ERR_FORMAT, suffix, "has the element %u = %lld, expected %u to %u", i, (long long)value, lowest,
                         highest);
            return;
        }
        out[i] = (uint32_t)value;
    }
}

/* Keys that change nothing about what is computed, whatever they say. */
static bool is_neutral_key(const char *suffix) {
    static const char *const neutral[] = {
        "vocab_size",         /* the embedding's rows count */
        "tensor_data_layout", /* how the converter permuted; all files of an architecture agree */
        "attention.layer_norm_epsilon",
        "attention.layer_norm_rms_epsilon", /* of the norm that the architecture has not */
        "rope.scaling.finetuned",           /* whether it was trained with the scaling */
        "rope.freq_base",
        "rope.dimension_count", /* written for models without rotation, too */
    };
    static const char *const other_inputs[] = {"mm.", "vision.", "audio."}; /* text takes no notice of them */
    for (size_t i = 0; i < SH_COUNT(neutral); i++)
        if (strcmp(suffix, neutral[i]) == 0) return true;
    for (size_t i = 0; i < SH_COUNT(other_inputs); i++)
        if (strncmp(suffix, other_inputs[i], strlen(other_inputs[i])) == 0) return true;
    return false;
}

/* Keys of parts that the file has not, as converters of a family write them for its simpler members, too (Granite 4 without experts or
 * recurrent layers). If it had the parts, their tensors would be left over. */
static bool is_idle_key(const struct sh_reader *r, const char *suffix) {
    const bool experts = strncmp(suffix, "expert_", 7) == 0, recurrent = strncmp(suffix, "ssm.", 4) == 0;
    if (!experts && !recurrent) return false;
    const uint64_t n = sh_gguf_tensor_count(r->g);
    for (uint64_t i = 0; i < n; i++)
        if (strstr(sh_gguf_tensor_at(r->g, i)->name, experts ? "exp" : "ssm_") != NULL) return false;
    return true;
}

/* Values that mean "no such thing": 0, false, "", a factor of 1. */
static bool is_neutral_value(const struct sh_kv *kv) {
    if (kv->type == SH_VALUE_STRING) return kv->strings->length == 0 || sh_str_is(*kv->strings, "none");
    if (kv->type == SH_VALUE_ARRAY) return kv->count == 0;
    const double v = sh_kv_number(kv, 0);
    return v == 0 || (v == 1 && (kv->type == SH_VALUE_F32 || kv->type == SH_VALUE_F64));
}

void sh_reader_check_all_read(struct sh_reader *r) {
    const size_t prefix = strlen(r->architecture);
    const uint64_t n = sh_gguf_kv_count(r->g);
    for (uint64_t i = 0; i < n && *r->code == SH_OK; i++) {
        const struct sh_kv *kv = sh_gguf_kv_at(r->g, i);
        if (strncmp(kv->key, r->architecture, prefix) != 0 || kv->key[prefix] != '.') continue;
        const char *suffix = kv->key + prefix + 1;
        bool asked = is_neutral_key(suffix) || is_neutral_value(kv) || is_idle_key(r, suffix);
        for (uint32_t k = 0; k < r->n_asked && !asked; k++) asked = r->asked[k] == kv;
        if (!asked)
            sh_read_fail(r, SH_ERR_UNSUPPORTED, suffix,
                         "asks for something that architecture '%s' as this build computes it has not", r->architecture);
    }
}

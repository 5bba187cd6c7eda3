/* sh_file_*: looking at a GGUF without loading its weights. */
#include "compute/gguf/file.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

struct sh_file {
    struct sh_gguf *gguf;
    char *architecture, *name, *base;
    char (*type_names)[20]; /* "type 99", one per tensor; NULL if every type is in the table */
    struct sh_file_summary summary;
};

const struct sh_gguf *sh_file_gguf(const struct sh_file *file) { return file->gguf; }

/* general.file_type as model files number it */
static const char *const file_types[] = {
    [0] = "F32",     [1] = "F16",     [2] = "Q4_0",     [3] = "Q4_1",    [7] = "Q8_0",    [8] = "Q5_0",    [9] = "Q5_1",
    [10] = "Q2_K",   [11] = "Q3_K_S", [12] = "Q3_K_M",  [13] = "Q3_K_L", [14] = "Q4_K_S", [15] = "Q4_K_M", [16] = "Q5_K_S",
    [17] = "Q5_K_M", [18] = "Q6_K",   [19] = "IQ2_XXS", [20] = "IQ2_XS", [21] = "Q2_K_S", [22] = "IQ3_XS", [23] = "IQ3_XXS",
    [24] = "IQ1_S",  [25] = "IQ4_NL", [26] = "IQ3_S",   [27] = "IQ3_M",  [28] = "IQ2_S",  [29] = "IQ2_M",  [30] = "IQ4_XS",
    [31] = "IQ1_M",  [32] = "BF16",   [36] = "TQ1_0",   [37] = "TQ2_0",  [38] = "MXFP4",
};

/* Elements of a tensor; the reader has checked that they are less than 2^63. */
static uint64_t elements(const struct sh_tensor *t) { return t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3]; }

void sh_gguf_name_type(const struct sh_gguf *g, char *out, size_t cap) {
    uint32_t file_type = UINT32_MAX;
    if (sh_gguf_u32(g, "general.file_type", &file_type, NULL) == SH_OK && file_type < SH_COUNT(file_types) &&
        file_types[file_type] != NULL) {
        snprintf(out, cap, "%s", file_types[file_type]);
        return;
    }
    uint64_t sums[64] = {0};
    uint32_t best = 0;
    for (uint64_t i = 0; i < sh_gguf_tensor_count(g); i++) {
        const struct sh_tensor *t = sh_gguf_tensor_at(g, i);
        if (t->rank < 2 || t->type >= SH_COUNT(sums) || sh_type_info(t->type) == NULL) continue;
        if (!sh_add_u64(sums[t->type], elements(t), &sums[t->type])) sums[t->type] = UINT64_MAX;
        if (sums[t->type] > sums[best]) best = t->type;
    }
    snprintf(out, cap, "%s", sums[best] > 0 ? sh_type_info(best)->name : "");
}

/* A string value as one line of valid UTF-8; "" where the key is missing or no string. */
static char *text_of(const struct sh_gguf *g, const char *key) {
    struct sh_str s = {"", 0};
    (void)sh_gguf_str(g, key, &s, NULL); /* a value of another type shows as missing */
    char *copy = malloc(s.length + 1);
    if (copy == NULL) return NULL;
    for (size_t i = 0, n; i < s.length; i += n) {
        n = sh_utf8_length(s.ptr + i, s.length - i);
        const bool plain = n > 0 && (unsigned char)s.ptr[i] >= 0x20 && s.ptr[i] != 0x7F;
        if (!plain) n = 1;
        memcpy(copy + i, plain ? s.ptr + i : "?", n);
    }
    copy[s.length] = '\0';
    return copy;
}

static bool name_unknown_types(struct sh_file *f) {
    const uint64_t n = sh_gguf_tensor_count(f->gguf);
    for (uint64_t i = 0; i < n; i++) {
        const struct sh_tensor *t = sh_gguf_tensor_at(f->gguf, i);
        if (sh_type_info(t->type) != NULL) continue;
        if (f->type_names == NULL && (f->type_names = sh_calloc(n, sizeof *f->type_names)) == NULL) return false;
        snprintf(f->type_names[i], sizeof f->type_names[i], "type %u", t->type);
    }
    return true;
}

/* Files of other programs, by the words that they put into their headers: general.architecture of stable-diffusion.cpp's, ComfyUI's,
 * whisper.cpp's and llama.cpp's converters, general.type of the format's specification. */
static const struct {
    const char *word, *kind;
    bool is_type;
} others[] = {
    {"clip", "a multimodal projector", false},
    {"mmproj", "a multimodal projector", true},
    {"projector", "a multimodal projector", true},
    {"imatrix", "an importance matrix", true},
    {"imatrix", "an importance matrix", false},
    {"controlvector", "a control vector", false},
    {"wavtokenizer-dec", "a vocoder", false},
    {"snac", "a vocoder", false},
    {"encodec", "a vocoder", false},
    {"whisper", "a speech recogniser", false},
    {"parakeet", "a speech recogniser", false},
    {"kokoro", "a speech synthesiser", false},
    {"parler-tts", "a speech synthesiser", false},
    {"dia", "a speech synthesiser", false},
    {"bark", "a speech synthesiser", false},
    {"vae", "an image decoder", false},
    {"pig", "an image decoder", false},
    {"sd1", "a diffusion model", false},
    {"sd2", "a diffusion model", false},
    {"sd3", "a diffusion model", false},
    {"sdxl", "a diffusion model", false},
    {"flux", "a diffusion model", false},
    {"flux2", "a diffusion model", false},
    {"aura", "a diffusion model", false},
    {"chroma", "a diffusion model", false},
    {"hidream", "a diffusion model", false},
    {"cosmos", "a diffusion model", false},
    {"ltxv", "a diffusion model", false},
    {"hyvid", "a diffusion model", false},
    {"wan", "a diffusion model", false},
    {"lumina2", "a diffusion model", false},
    {"qwen_image", "a diffusion model", false},
    {"z_image", "a diffusion model", false},
};

static bool has_key_below(const struct sh_gguf *g, const char *prefix) {
    for (uint64_t i = 0; i < sh_gguf_kv_count(g); i++)
        if (strncmp(sh_gguf_kv_at(g, i)->key, prefix, strlen(prefix)) == 0) return true;
    return false;
}

/* Diffusion models that were converted without metadata still name their parts. */
static bool has_tensor_below(const struct sh_gguf *g, const char *prefix) {
    for (uint64_t i = 0; i < sh_gguf_tensor_count(g); i++)
        if (strncmp(sh_gguf_tensor_at(g, i)->name, prefix, strlen(prefix)) == 0) return true;
    return false;
}

static void name_other(const struct sh_gguf *g, const char *architecture, char *out, size_t cap) {
    struct sh_str type = {"", 0};
    (void)sh_gguf_str(g, "general.type", &type, NULL);
    for (uint32_t i = 0; i < SH_COUNT(others); i++) {
        const char *word = others[i].word;
        const bool fits =
            others[i].is_type ? type.length == strlen(word) && memcmp(type.ptr, word, type.length) == 0 : strcmp(architecture, word) == 0;
        if (!fits) continue;
        snprintf(out, cap, "%s (general.%s is %s)", others[i].kind, others[i].is_type ? "type" : "architecture", word);
        return;
    }
    if (*architecture) return;
    if (has_key_below(g, "clip.")) snprintf(out, cap, "a multimodal projector (it has keys clip.*, and no general.architecture)");
    else if (has_tensor_below(g, "model.diffusion_model."))
        snprintf(out, cap, "a diffusion model (it has tensors model.diffusion_model.*, and no general.architecture)");
    else if (has_tensor_below(g, "first_stage_model."))
        snprintf(out, cap, "an image decoder (it has tensors first_stage_model.*, and no general.architecture)");
}

enum sh_code sh_file_open(const char *path, struct sh_file **out, struct sh_error *err) {
    *out = NULL;
    struct sh_file *f = sh_calloc(1, sizeof *f);
    if (f == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory to open a model");
    const enum sh_code code = sh_gguf_open(path, &f->gguf, err);
    if (code != SH_OK) {
        free(f);
        return code;
    }
    const struct sh_gguf *g = f->gguf;
    sh_gguf_close_files(f->gguf);
    f->architecture = text_of(g, "general.architecture");
    f->name = text_of(g, "general.name");
    f->base = text_of(g, "general.base_model.0.name");
    if (f->architecture == NULL || f->name == NULL || f->base == NULL || !name_unknown_types(f)) {
        sh_file_close(f);
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory to open a model");
    }
    struct sh_file_summary *s = &f->summary;
    *s = (struct sh_file_summary){
        .version = sh_gguf_version(g),
        .shards = sh_gguf_shards(g),
        .alignment = sh_gguf_alignment(g),
        .file_bytes = sh_gguf_file_bytes(g),
        .n_metadata = sh_gguf_kv_count(g),
        .n_tensors = sh_gguf_tensor_count(g),
        .architecture = f->architecture,
        .name = f->name,
        .adapter = sh_gguf_is_adapter(g),
        .base = f->base,
    };
    sh_gguf_name_type(g, s->type_name, sizeof s->type_name);
    name_other(g, f->architecture, s->other, sizeof s->other);
    for (uint64_t i = 0; i < s->n_tensors; i++)
        if (!sh_add_u64(s->n_parameters, elements(sh_gguf_tensor_at(g, i)), &s->n_parameters)) s->n_parameters = UINT64_MAX;
    char key[128];
    uint32_t context = 0;
    snprintf(key, sizeof key, "%.100s.context_length", f->architecture);
    (void)sh_gguf_u32(g, key, &context, NULL); /* unusable: unknown */
    s->context_length = context;
    *out = f;
    return SH_OK;
}

void sh_file_close(struct sh_file *file) {
    if (file == NULL) return;
    sh_gguf_close(file->gguf);
    free(file->architecture);
    free(file->name);
    free(file->base);
    free(file->type_names);
    free(file);
}

void sh_file_get_summary(const struct sh_file *file, struct sh_file_summary *out) { *out = file->summary; }

bool sh_file_get_value(const struct sh_file *file, uint64_t index, struct sh_file_value *out) {
    const struct sh_kv *kv = sh_gguf_kv_at(file->gguf, index);
    if (kv == NULL) return false;
    *out = (struct sh_file_value){
        .key = kv->key, .type = kv->type, .element_type = kv->element_type, .count = kv->count, .offset = kv->offset};
    return true;
}

/* The shortest decimal form that reads back as the same number. */
static int float_text(char *buf, size_t cap, double v, bool single) {
    int n = 0;
    for (int digits = single ? 6 : 15; digits <= (single ? 9 : 17); digits++) {
        n = snprintf(buf, cap, "%.*g", digits, v);
        const double back = strtod(buf, NULL);
        if (single ? (float)back == (float)v : back == v) break;
    }
    return n;
}

size_t sh_file_value_text(const struct sh_file *file, uint64_t index, uint64_t element, char *buf, size_t cap) {
    const struct sh_kv *kv = sh_gguf_kv_at(file->gguf, index);
    char number[64] = "";
    struct sh_str text = {number, 0};
    if (kv != NULL && element < kv->count) {
        int n = 0;
        switch (kv->element_type) {
        case SH_VALUE_STRING: text = kv->strings[element]; break;
        case SH_VALUE_ARRAY: text = (struct sh_str){"[...]", 5}; break;
        case SH_VALUE_BOOL: n = snprintf(number, sizeof number, "%s", sh_kv_integer(kv, element) != 0 ? "true" : "false"); break;
        case SH_VALUE_F32: n = float_text(number, sizeof number, sh_kv_number(kv, element), true); break;
        case SH_VALUE_F64: n = float_text(number, sizeof number, sh_kv_number(kv, element), false); break;
        case SH_VALUE_U64: n = snprintf(number, sizeof number, "%" PRIu64, (uint64_t)sh_kv_integer(kv, element)); break;
        default: n = snprintf(number, sizeof number, "%" PRId64, sh_kv_integer(kv, element)); break;
        }
        if (n > 0) text.length = (size_t)n;
    }
    if (cap > 0) {
        const size_t copied = text.length < cap - 1 ? text.length : cap - 1;
        memcpy(buf, text.ptr, copied);
        buf[copied] = '\0';
    }
    return text.length;
}

bool sh_file_get_tensor(const struct sh_file *file, uint64_t index, struct sh_file_tensor *out) {
    const struct sh_tensor *t = sh_gguf_tensor_at(file->gguf, index);
    if (t == NULL) return false;
    const struct sh_type_info *info = sh_type_info(t->type);
    *out = (struct sh_file_tensor){
        .name = t->name,
        .type_name = info != NULL ? info->name : file->type_names[index],
        .type_supported = info != NULL && info->computable,
        .rank = t->rank,
        .offset = t->offset,
        .bytes = t->bytes,
        .shard = t->shard,
    };
    memcpy(out->dims, t->dims, sizeof out->dims);
    return true;
}

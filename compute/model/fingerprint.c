#include "compute/model/fingerprint.h"

#define SAMPLE_BYTES 4096

static void add_string(struct sh_digest *d, const char *text) { sh_digest_text(d, text, strlen(text)); }

static void add_double(struct sh_digest *d, double value) { sh_digest_add(d, &value, sizeof value); }

static void add_value(struct sh_digest *d, const struct sh_kv *kv) {
    add_string(d, kv->key);
    sh_digest_u64(d, kv->count);
    for (uint64_t i = 0; i < kv->count; i++) {
        if (kv->strings != NULL) sh_digest_text(d, kv->strings[i].ptr, kv->strings[i].length);
        else add_double(d, sh_kv_number(kv, i));
    }
}

static bool tells_of_numbers(const char *key, struct sh_str architecture) {
    if (strcmp(key, "general.architecture") == 0 || strncmp(key, "adapter.", 8) == 0) return true;
    return strncmp(key, architecture.ptr, architecture.length) == 0 && key[architecture.length] == '.';
}

static void add_file(struct sh_digest *d, const struct sh_gguf *g) {
    struct sh_str architecture = {.ptr = "", .length = 0};
    sh_gguf_str(g, "general.architecture", &architecture, NULL);
    for (uint64_t i = 0; i < sh_gguf_kv_count(g); i++)
        if (tells_of_numbers(sh_gguf_kv_at(g, i)->key, architecture)) add_value(d, sh_gguf_kv_at(g, i));
    sh_digest_u64(d, sh_gguf_file_bytes(g));
    sh_digest_u64(d, sh_gguf_tensor_count(g));
    for (uint64_t i = 0; i < sh_gguf_tensor_count(g); i++) {
        const struct sh_tensor *t = sh_gguf_tensor_at(g, i);
        add_string(d, t->name);
        sh_digest_u64(d, t->type);
        for (int k = 0; k < 4; k++) sh_digest_u64(d, t->dims[k]);
    }
}

void sh_fingerprint_header(struct sh_digest *d, const struct sh_gguf *g, const struct sh_adapter_set *adapters,
                           const struct sh_model_params *params, const struct sh_spec *spec) {
    add_file(d, g);
    sh_digest_u64(d, adapters->n);
    for (uint32_t i = 0; i < adapters->n; i++) {
        add_file(d, adapters->files[i]);
        add_double(d, (double)params->lora[i].scale);
    }
    sh_digest_u64(d, spec->context_length);
    add_double(d, (double)params->rope_scale);
}

void sh_fingerprint_constants(struct sh_digest *d, const struct sh_program *program) {
    for (uint32_t i = 0; i < program->n_weights; i++) {
        const struct sh_weight *w = &program->weights[i];
        if (w->constant == NULL) continue;
        add_string(d, w->name);
        sh_digest_add(d, w->constant, (size_t)(w->rows * w->cols * sizeof *w->constant));
    }
}

void sh_fingerprint_piece(struct sh_digest *d, const struct sh_program *program, const struct sh_piece *piece) {
    const struct sh_weight *w = &program->weights[piece->weight];
    add_string(d, w->name);
    sh_digest_u64(d, piece->row0);
    sh_digest_add(d, piece->data, (size_t)sh_min_u64(SAMPLE_BYTES, piece->n_rows * sh_type_row_bytes(w->type, w->cols)));
}

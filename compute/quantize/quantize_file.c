/* quantize_file.c - a model file quantised into another: metadata as it is but for its type, tensors one after the other. */
#include "compute/engine.h"
#include "compute/gguf/quant.h"
#include "compute/gguf/write.h"
#include "compute/quantize/recipe.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { PIECE_ELEMENTS = 1 << 22, MAX_THREADS = 64 }; /* elements converted at once, by all threads together */

struct job {
    struct sh_gguf *in;
    struct sh_gguf_writer *out;
    const struct sh_recipe *recipe;
    struct sh_recipe_model model;
    const struct sh_quantize_file_params *params;
    uint64_t elements, done; /* of all tensors */
};

static uint64_t elements_of(const struct sh_tensor *t) { return t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3]; }

static enum sh_code fail_input(struct sh_error *err, const struct sh_tensor *t) {
    const struct sh_type_info *info = sh_type_info(t->type);
    return sh_fail(err, SH_ERR_UNSUPPORTED,
                   "tensor %s: found type %s, expected F32, F16, BF16 or Q8_0: quantising what was quantised before loses twice",
                   t->name, info ? info->name : "unknown");
}

/* ---- metadata ---- */

static enum sh_code u32_of(const struct sh_gguf *g, const char *architecture, const char *key, uint32_t *out,
                           struct sh_error *err) {
    char full[160];
    snprintf(full, sizeof full, "%s.%s", architecture, key);
    const struct sh_kv *kv = sh_gguf_find(g, full);
    if (kv && kv->type == SH_VALUE_ARRAY) return SH_OK; /* one number per layer: nothing depends on which */
    return sh_gguf_u32(g, full, out, err);
}

static enum sh_code read_model(struct job *j, struct sh_error *err) {
    struct sh_str name = {"", 0};
    char architecture[80];
    uint32_t heads = 0, kv_heads = 0;
    enum sh_code code = sh_gguf_str(j->in, "general.architecture", &name, err);
    snprintf(architecture, sizeof architecture, "%.*s", (int)sh_min_u64(name.length, sizeof architecture - 1), name.ptr);
    if (code == SH_OK) code = u32_of(j->in, architecture, "block_count", &j->model.n_layers, err);
    if (code == SH_OK) code = u32_of(j->in, architecture, "expert_count", &j->model.n_experts, err);
    if (code == SH_OK) code = u32_of(j->in, architecture, "attention.head_count", &heads, err);
    if (code == SH_OK) code = u32_of(j->in, architecture, "attention.head_count_kv", &kv_heads, err);
    j->model.n_heads_per_kv = kv_heads > 0 ? heads / kv_heads : 1;
    j->model.tied = sh_gguf_tensor(j->in, "output.weight") == NULL;
    return code;
}

static enum sh_code copy_metadata(struct job *j, struct sh_error *err) {
    for (uint64_t i = 0; i < sh_gguf_kv_count(j->in); i++) {
        const struct sh_kv *kv = sh_gguf_kv_at(j->in, i);
        if (!strcmp(kv->key, "general.file_type") || !strcmp(kv->key, "general.quantization_version") ||
            !strcmp(kv->key, "general.alignment") || !strncmp(kv->key, "split.", 6))
            continue; /* said anew below; the copy is one file */
        if (kv->type == SH_VALUE_STRING) sh_gguf_add_str(j->out, kv->key, kv->strings[0].ptr, kv->strings[0].length);
        else if (kv->type != SH_VALUE_ARRAY) sh_gguf_add_scalar(j->out, kv->key, kv->type, kv->data);
        else if (kv->element_type == SH_VALUE_STRING) sh_gguf_add_strings(j->out, kv->key, kv->strings, kv->count);
        else if (kv->element_type != SH_VALUE_ARRAY) sh_gguf_add_array(j->out, kv->key, kv->element_type, kv->data, kv->count);
        else return sh_fail(err, SH_ERR_UNSUPPORTED, "metadata %s: an array of arrays cannot be written", kv->key);
    }
    sh_gguf_add_u32(j->out, "general.file_type", j->recipe->file_type);
    sh_gguf_add_u32(j->out, "general.quantization_version", 2);
    return SH_OK;
}

/* ---- tensors ---- */

struct share { /* one thread's part of a piece */
    uint32_t from, to;
    const uint8_t *src;
    uint8_t *dst;
    float *floats;
    uint64_t count;
    bool finite;
};

static void *convert(void *arg) {
    struct share *s = arg;
    sh_dequantize(s->from, s->src, s->floats, s->count);
    s->finite = true;
    const float limit = s->to == SH_TYPE_F16 ? 65520.0f : INFINITY; /* what F16 rounds to infinity from on */
    for (uint64_t i = 0; i < s->count; i++) s->finite &= fabsf(s->floats[i]) < limit;
    sh_quantize(s->to, s->floats, s->dst, s->count);
    return NULL;
}

/* One piece of whole rows on several threads; a row's blocks do not depend on who makes them. */
static bool convert_piece(const struct share *whole, uint64_t cols, uint32_t n_threads) {
    const struct sh_type_info *from = sh_type_info(whole->from), *to = sh_type_info(whole->to);
    const uint64_t rows = whole->count / cols;
    struct share shares[MAX_THREADS];
    pthread_t threads[MAX_THREADS];
    bool started[MAX_THREADS] = {false}, finite = true;
    for (uint32_t t = 0; t < n_threads; t++) {
        const uint64_t begin = rows * t / n_threads * cols, end = rows * (t + 1) / n_threads * cols;
        shares[t] = *whole;
        shares[t].count = end - begin;
        shares[t].src += begin / from->block_elements * from->block_bytes;
        shares[t].dst += begin / to->block_elements * to->block_bytes;
        shares[t].floats += begin;
        started[t] = t > 0 && pthread_create(&threads[t], NULL, convert, &shares[t]) == 0;
        if (t > 0 && !started[t]) convert(&shares[t]); /* no thread to be had: here, then */
    }
    convert(&shares[0]);
    for (uint32_t t = 0; t < n_threads; t++) {
        if (started[t]) pthread_join(threads[t], NULL);
        finite &= shares[t].finite;
    }
    return finite;
}

static enum sh_code write_tensor(struct job *j, const struct sh_tensor *t, uint32_t to, struct sh_error *err) {
    const uint64_t cols = t->dims[0], total = elements_of(t), rows = cols > 0 ? total / cols : 0;
    const uint64_t in_row = sh_type_row_bytes(t->type, cols), out_row = sh_type_row_bytes(to, cols);
    const uint64_t step = sh_max_u64(1, PIECE_ELEMENTS / sh_max_u64(cols, 1));
    const uint64_t most = sh_min_u64(step, rows);
    uint8_t *src = malloc((size_t)(most * in_row)), *dst = malloc((size_t)(most * out_row));
    float *floats = to == t->type ? NULL : malloc((size_t)(most * cols) * sizeof *floats);
    enum sh_code code = SH_OK;
    if (!src || !dst || (to != t->type && !floats))
        code = sh_fail(err, SH_ERR_NO_MEMORY, "tensor %s: no memory for %" PRIu64 " rows", t->name, most);
    for (uint64_t row = 0; code == SH_OK && row < rows; row += most) {
        const uint64_t n = sh_min_u64(most, rows - row);
        code = sh_gguf_read(j->in, t, row * in_row, src, n * in_row, err);
        if (code == SH_OK && to != t->type) {
            const struct share whole = {.from = t->type, .to = to, .src = src, .dst = dst, .floats = floats, .count = n * cols};
            if (!convert_piece(&whole, cols, j->params->threads))
                code = sh_fail(err, SH_ERR_FORMAT, "tensor %s: found a value that is not finite, or not as %s, expected numbers", t->name,
                               sh_type_info(to)->name);
        }
        if (code == SH_OK) code = sh_gguf_writer_data(j->out, to == t->type ? src : dst, n * out_row, err);
        j->done += n * cols;
        if (code == SH_OK && j->params->progress &&
            !j->params->progress(j->params->user, t->name, (double)j->done / (double)j->elements))
            code = sh_fail(err, SH_ERR_CANCELLED, "cancelled");
    }
    free(src);
    free(dst);
    free(floats);
    return code;
}

static enum sh_code run(struct job *j, struct sh_error *err) {
    enum sh_code code = read_model(j, err);
    if (code == SH_OK) code = copy_metadata(j, err);
    if (code != SH_OK) return code;
    const uint64_t n = sh_gguf_tensor_count(j->in);
    for (uint64_t i = 0; i < n; i++) {
        const struct sh_tensor *t = sh_gguf_tensor_at(j->in, i);
        const uint32_t to = sh_recipe_type(j->recipe, &j->model, t);
        if (sh_type_info(t->type) == NULL || (to != t->type && t->type != SH_TYPE_F32 && t->type != SH_TYPE_F16 &&
                                              t->type != SH_TYPE_BF16 && t->type != SH_TYPE_Q8_0))
            return fail_input(err, t);
        sh_gguf_add_tensor(j->out, t->name, to, t->rank, t->dims);
        j->elements += elements_of(t);
    }
    code = sh_gguf_writer_begin(j->out, err);
    for (uint64_t i = 0; code == SH_OK && i < n; i++) {
        const struct sh_tensor *t = sh_gguf_tensor_at(j->in, i);
        code = write_tensor(j, t, sh_recipe_type(j->recipe, &j->model, t), err);
    }
    return code == SH_OK ? sh_gguf_writer_finish(j->out, err) : code;
}

/* On the disk before it takes the other file's place: a crash leaves one of the two whole. */
static enum sh_code settle(const char *path, struct sh_error *err) {
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    const bool settled = fd >= 0 && fsync(fd) == 0;
    const int why = errno;
    if (fd >= 0) close(fd);
    return settled ? SH_OK : sh_fail(err, SH_ERR_IO, "%s: cannot write: %s", path, strerror(why));
}

enum sh_code sh_quantize_file(const struct sh_quantize_file_params *params, struct sh_error *err) {
    struct sh_quantize_file_params p = *params;
    if (p.threads == 0 || p.threads > MAX_THREADS) {
        const long cpus = sysconf(_SC_NPROCESSORS_ONLN);
        p.threads = (uint32_t)(cpus < 1 ? 1 : cpus > MAX_THREADS ? MAX_THREADS : cpus);
    }
    struct job j = {.recipe = sh_recipe_find(p.type), .params = &p};
    if (!j.recipe && sh_recipe_needs_importance(p.type))
        return sh_fail(err, SH_ERR_UNSUPPORTED, "type: found \"%s\", which takes an importance matrix; expected one without, such as IQ2_M or Q2_K",
                       p.type);
    if (!j.recipe)
        return sh_fail(err, SH_ERR_NOT_FOUND, "type: found \"%s\", expected one of those that sh_quantize_type_at lists", p.type);
    char *temporary = malloc(strlen(p.out) + 32);
    if (!temporary) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a file's name");
    sprintf(temporary, "%s.part-%ld", p.out, (long)getpid());
    enum sh_code code = sh_gguf_open(p.in, &j.in, err);
    if (code == SH_OK) code = sh_gguf_writer_create(temporary, 3, 0, &j.out, err);
    if (code == SH_OK) {
        code = run(&j, err);
        if (code == SH_OK) code = settle(temporary, err);
        if (code == SH_OK && rename(temporary, p.out) != 0) code = sh_fail(err, SH_ERR_IO, "%s: %s", p.out, strerror(errno));
        sh_gguf_writer_destroy(j.out);
        if (code != SH_OK) unlink(temporary);
    }
    sh_gguf_close(j.in);
    free(temporary);
    return code;
}

const char *sh_quantize_type_at(uint32_t index) {
    const struct sh_recipe *r = sh_recipe_at(index);
    return r ? r->name : NULL;
}

const char *sh_quantize_type(const char *type) {
    const struct sh_recipe *r = sh_recipe_find(type);
    return r ? r->name : NULL;
}

/* From an open file to a checked program: architecture, spec, builder, and nothing in the file left unused. */
#include "compute/model/build_model.h"
#include "compute/gguf/file.h"
#include "compute/text/text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* ---- tables ---- */

/* A tensor of divisors of the shape that it must have; NULL: b has failed. */
static const struct sh_tensor *check_factors(struct sh_builder *b, const char *name, uint32_t pairs) {
    const struct sh_tensor *t = sh_gguf_tensor(b->gguf, name);
    const char *path = sh_gguf_path(b->gguf, t != NULL ? t->shard : 0);
    if (t == NULL) {
        sh_build_fail(b, SH_ERR_FORMAT, "%s: tensor '%s' is missing, expected %u elements of type F32", path, name, pairs);
    } else if (t->dims[0] != pairs || t->bytes != (uint64_t)pairs * 4) {
        sh_build_fail(b, SH_ERR_FORMAT, "%s: tensor '%s' has %llu elements in %llu bytes, expected %u of type F32", path, t->name,
                      (unsigned long long)t->dims[0], (unsigned long long)t->bytes, pairs);
    } else if (t->type != SH_TYPE_F32) {
        const struct sh_type_info *info = sh_type_info(t->type);
        sh_build_fail(b, SH_ERR_UNSUPPORTED, "%s: tensor '%s' is %s, expected F32", path, t->name,
                      info != NULL ? info->name : "of an unknown type");
    }
    return b->code == SH_OK ? t : NULL;
}

/* The divisors of the frequencies; *factors stays NULL if only their shape is to be checked. Of the pair for short and long contexts
 * both are checked: the other one is right for another configured context. */
static void read_rope_factors(struct sh_model_builder *m, const struct sh_rope_spec *rope, float **factors) {
    static const char *const pair[] = {"rope_factors_short.weight", "rope_factors_long.weight"};
    struct sh_builder *b = &m->b;
    const uint32_t pairs = rope->n_rot / 2;
    if (strcmp(rope->factors, pair[0]) == 0 || strcmp(rope->factors, pair[1]) == 0)
        for (size_t i = 0; i < SH_COUNT(pair); i++) check_factors(b, pair[i], pairs);
    const struct sh_tensor *t = check_factors(b, rope->factors, pairs);
    if (t == NULL) return;
    const char *path = sh_gguf_path(b->gguf, t->shard);
    if (m->check_only) return;
    float *f = sh_calloc(pairs, sizeof *f);
    if (f == NULL) {
        sh_build_fail(b, SH_ERR_NO_MEMORY, "no memory for tensor '%s'", t->name);
        return;
    }
    b->code = sh_gguf_read(b->gguf, t, 0, f, t->bytes, b->err);
    for (uint32_t i = 0; i < pairs && b->code == SH_OK; i++)
        if (!(f[i] > 0 && f[i] < 1e9f))
            sh_build_fail(b, SH_ERR_FORMAT, "%s: tensor '%s': element %u is %g, expected a factor above 0", path, t->name, i,
                          (double)f[i]);
    *factors = f;
}

/* A configured context may be huge: its table must fit twice, here and on its device. */
static void check_table(struct sh_model_builder *m, uint32_t n_rot) {
    const uint64_t bytes = (uint64_t)m->positions * n_rot * sizeof(float);
    const long pages = sysconf(_SC_PHYS_PAGES), page_bytes = sysconf(_SC_PAGESIZE);
    if (pages <= 0 || page_bytes <= 0 || bytes <= (uint64_t)pages * (uint64_t)page_bytes / 2) return;
    sh_build_fail(&m->b, SH_ERR_NO_MEMORY,
                  "%s: a rotation table for %u positions needs %llu MiB twice, this machine has %llu MiB; "
                  "configure a shorter context",
                  sh_gguf_path(m->b.gguf, 0), m->positions, (unsigned long long)(bytes >> 20),
                  (unsigned long long)((uint64_t)pages * (uint64_t)page_bytes >> 20));
}

static bool same_rope(const struct sh_rope_spec *a, const struct sh_rope_spec *b) {
    const bool factors =
        a->factors == NULL || b->factors == NULL ? a->factors == b->factors : strcmp(a->factors, b->factors) == 0;
    return factors && a->scaling == b->scaling && a->base == b->base && a->factor == b->factor && a->extend == b->extend &&
           a->original_context == b->original_context && a->beta_fast == b->beta_fast && a->beta_slow == b->beta_slow &&
           a->extrapolation == b->extrapolation && a->magnitude == b->magnitude && a->n_rot == b->n_rot;
}

uint32_t sh_model_rope(struct sh_model_builder *m, const struct sh_rope_spec *rope) {
    if (m->b.code != SH_OK || rope->n_rot == 0) return SH_NONE;
    for (uint32_t i = 0; i < m->n_ropes; i++)
        if (same_rope(&m->ropes[i], rope)) return m->rope_tables[i];
    SH_ASSERT(m->n_ropes < SH_MODEL_ROPES);
    check_table(m, rope->n_rot);
    float *factors = NULL;
    if (m->b.code == SH_OK && rope->factors != NULL) read_rope_factors(m, rope, &factors);
    uint32_t table = SH_NONE;
    if (m->b.code == SH_OK) {
        char name[24];
        if (m->n_ropes == 0) snprintf(name, sizeof name, "rope_table");
        else snprintf(name, sizeof name, "rope_table.%u", m->n_ropes);
        table = sh_build_constant(&m->b, rope->n_rot, m->positions, sh_rope_table(rope, factors, m->positions), name);
        m->ropes[m->n_ropes] = *rope;
        m->rope_tables[m->n_ropes++] = table;
    }
    free(factors);
    return table;
}

void sh_model_equal_heads(struct sh_model_builder *m) {
    const struct sh_spec *s = &m->spec;
    for (uint32_t l = 0; l < s->n_layers; l++)
        if (s->heads[l] != s->n_heads)
            sh_read_fail(&m->r, SH_ERR_UNSUPPORTED, "attention.head_count", "differs from layer to layer (%u and %u)", s->n_heads,
                         s->heads[l]);
}

uint32_t sh_model_alibi(struct sh_model_builder *m, double max_bias) {
    sh_model_equal_heads(m);
    if (m->b.code != SH_OK) return SH_NONE;
    const uint32_t n_heads = m->spec.n_heads;
    float *slopes = sh_calloc(n_heads, sizeof *slopes);
    uint32_t power = 1;
    while (power <= n_heads / 2) power *= 2;
    for (uint32_t h = 0; h < n_heads && slopes != NULL; h++) {
        const double steps = h < power ? (h + 1.0) / power : (2.0 * (h - power) + 1.0) / (2.0 * power);
        slopes[h] = (float)exp2(-max_bias * steps);
    }
    return sh_build_constant(&m->b, n_heads, 1, slopes, "alibi_slopes");
}

uint32_t sh_model_temperature(struct sh_model_builder *m, double scale, double period) {
    if (m->b.code != SH_OK) return SH_NONE;
    float *table = sh_calloc(m->positions, sizeof *table);
    for (uint32_t p = 0; p < m->positions && table != NULL; p++) table[p] = (float)(1.0 + scale * log(1.0 + floor(p / period)));
    return sh_build_constant(&m->b, 1, m->positions, table, "attention_temperature");
}

float sh_model_eps(struct sh_model_builder *m, enum sh_norm_kind kind) {
    const bool layer = kind == SH_NORM_LAYER;
    const double eps = layer ? m->spec.layer_eps : m->spec.rms_eps;
    if (eps <= 0)
        sh_read_fail(&m->r, SH_ERR_FORMAT, layer ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon",
                     "is %s, expected a number above 0", eps < 0 ? "missing" : "0");
    return (float)eps;
}

void sh_model_leave_predictors(struct sh_model_builder *m) {
    if (m->b.code != SH_OK) return;
    m->n_predictors = sh_read_u32(&m->r, "nextn_predict_layers", 0, 0, m->spec.n_layers - 1);
    m->spec.n_layers -= m->n_predictors;
    m->b.program->n_layers = m->spec.n_layers;
}

/* ---- the door ---- */

static bool is_predictors(const struct sh_model_builder *m, const char *name) {
    unsigned layer = 0;
    return m->n_predictors > 0 && sscanf(name, "blk.%5u.", &layer) == 1 && layer >= m->spec.n_layers &&
           layer < m->spec.n_layers + m->n_predictors;
}

static bool is_accounted(const struct sh_model_builder *m, const char *name) {
    for (uint32_t i = 0; i < m->n_ropes; i++) {
        const char *factors = m->ropes[i].factors;
        if (factors == NULL) continue;
        if (strcmp(name, factors) == 0) return true;
        /* of the pair for short and long contexts one is used */
        if (strncmp(factors, "rope_factors_", 13) == 0 &&
            (strcmp(name, "rope_factors_long.weight") == 0 || strcmp(name, "rope_factors_short.weight") == 0))
            return true;
    }
    if (is_predictors(m, name)) return true;
    /* inverse frequencies that old converters kept; they follow from the metadata */
    const char *const redundant = ".attn_rot_embd";
    const size_t length = strlen(name);
    return length > strlen(redundant) && strcmp(name + length - strlen(redundant), redundant) == 0;
}

/* A tensor that the program does not use means that the file asks for something that would silently be left out. */
static void check_all_used(struct sh_model_builder *m) {
    const struct sh_gguf *g = m->b.gguf;
    const struct sh_program *p = m->b.program;
    const uint64_t n = sh_gguf_tensor_count(g);
    for (uint64_t i = 0; i < n && m->b.code == SH_OK; i++) {
        const struct sh_tensor *t = sh_gguf_tensor_at(g, i);
        bool used = is_accounted(m, t->name);
        for (uint32_t w = 0; w < p->n_weights && !used; w++) used = p->weights[w].tensor == t;
        if (!used)
            sh_build_fail(&m->b, SH_ERR_UNSUPPORTED, "%s: tensor '%s' is not part of architecture '%s' as this build computes it",
                          sh_gguf_path(g, t->shard), t->name, m->r.architecture);
    }
}

/* A window as long as any context hides nothing, whatever the architecture makes of the key. */
static void pass_wide_window(struct sh_model_builder *m) {
    const char *const suffix = "attention.sliding_window";
    const struct sh_kv *kv = sh_gguf_find(m->b.gguf, sh_read_key(&m->r, suffix));
    const uint32_t longest = m->spec.context_length > m->spec.context_native ? m->spec.context_length : m->spec.context_native;
    if (kv != NULL && kv->type != SH_VALUE_ARRAY && sh_kv_number(kv, 0) >= longest) sh_read_has(&m->r, suffix);
}

static void build(struct sh_model_builder *m, const struct sh_architecture *architecture, const struct sh_model_params *params) {
    struct sh_builder *b = &m->b;
    sh_spec_read(&m->r, params, architecture->flags, &m->spec);
    if (b->code == SH_OK && (b->program = sh_program_create()) == NULL)
        sh_build_fail(b, SH_ERR_NO_MEMORY, "no memory for the program");
    if (b->code != SH_OK) return;
    m->positions = m->check_only ? 1 : m->spec.context_length;
    b->program->n_layers = m->spec.n_layers;
    b->program->n_embd = m->spec.n_embd;
    b->program->n_vocab = m->spec.n_vocab;
    b->program->context_length = m->spec.context_length;
    b->program->pooling = m->spec.pooling;
    architecture->build(m);
    sh_build_check_adapters(b);
    check_all_used(m);
    pass_wide_window(m);
    sh_reader_check_all_read(&m->r);
}

enum sh_code sh_model_build(const struct sh_gguf *g, const struct sh_model_params *params, const struct sh_adapter_set *adapters,
                            struct sh_spec *spec, struct sh_program **out, struct sh_error *err) {
    struct sh_str name = {0};
    enum sh_code code = sh_gguf_str(g, "general.architecture", &name, err);
    if (code != SH_OK) return code;
    if (sh_gguf_is_adapter(g))
        return sh_fail(err, SH_ERR_UNSUPPORTED, "%s: this is an adapter, no model; load the model it was made for with it (--lora)",
                       sh_gguf_path(g, 0));
    if (name.length == 0) return sh_fail(err, SH_ERR_FORMAT, "%s: key 'general.architecture' is missing", sh_gguf_path(g, 0));
    const struct sh_architecture *architecture = sh_architecture_find(name.ptr, name.length);
    if (architecture == NULL)
        return sh_fail(
            err, SH_ERR_UNSUPPORTED,
            "%s: architecture '%.*s' is not computed by this build; shimmyctl inspect --supported lists those that are",
            sh_gguf_path(g, 0), (int)(name.length < 64 ? name.length : 64), name.ptr);

    struct sh_model_builder *m = sh_calloc(1, sizeof *m);
    if (m == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory to build a program");
    struct sh_error local;
    m->b = (struct sh_builder){.gguf = g, .layer = SH_NONE, .err = err != NULL ? err : &local};
    if (adapters != NULL) {
        m->b.adapters = adapters->list;
        m->b.n_adapters = adapters->n;
    }
    m->r = (struct sh_reader){.g = g, .architecture = architecture->name, .err = m->b.err, .code = &m->b.code};
    m->check_only = params == NULL;
    build(m, architecture, params);
    code = m->b.code;
    *spec = m->spec;
    if (code == SH_OK) *out = m->b.program;
    else sh_program_destroy(m->b.program);
    free(m);
    return code;
}

enum sh_code sh_file_check(const struct sh_file *file, struct sh_error *err) {
    struct sh_spec spec;
    struct sh_program *program = NULL;
    const enum sh_code code = sh_model_build(sh_file_gguf(file), NULL, NULL, &spec, &program, err);
    if (code != SH_OK) return code;
    sh_program_destroy(program);
    return sh_vocab_check(sh_file_gguf(file), err);
}

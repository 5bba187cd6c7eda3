/* From an open file to a checked program: architecture, spec, rotation table, builder, and nothing in the file left unused. */
#include "compute/model/build_model.h"
#include "compute/gguf/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const struct sh_architecture architectures[] = {
    {"llama", sh_build_llama},
};

const struct sh_architecture *sh_architecture_find(const char *name, size_t length) {
    for (size_t i = 0; i < SH_COUNT(architectures); i++)
        if (strlen(architectures[i].name) == length && memcmp(architectures[i].name, name, length) == 0) return &architectures[i];
    return NULL;
}

const char *sh_architecture_names(void) { return "llama"; }

#define ROPE_FREQS "rope_freqs.weight"

/* The divisors of the frequencies that Llama 3.1 and later files carry; *factors stays NULL where there are none, and if only its
 * shape is to be checked. */
static enum sh_code read_rope_factors(const struct sh_gguf *g, const struct sh_rope_spec *rope, bool check_only, float **factors,
                                      struct sh_error *err) {
    const struct sh_tensor *t = sh_gguf_tensor(g, ROPE_FREQS);
    if (t == NULL) return SH_OK;
    const uint32_t pairs = rope->n_rot / 2;
    const char *path = sh_gguf_path(g, t->shard);
    if (t->dims[0] != pairs || t->bytes != (uint64_t)pairs * 4)
        return sh_fail(err, SH_ERR_FORMAT, "%s: tensor '" ROPE_FREQS "' has %llu elements in %llu bytes, expected %u of type F32",
                       path, (unsigned long long)t->dims[0], (unsigned long long)t->bytes, pairs);
    if (t->type != SH_TYPE_F32) {
        const struct sh_type_info *info = sh_type_info(t->type);
        return sh_fail(err, SH_ERR_UNSUPPORTED, "%s: tensor '" ROPE_FREQS "' is %s, expected F32", path,
                       info != NULL ? info->name : "of an unknown type");
    }
    if (check_only) return SH_OK;
    float *f = sh_calloc(pairs, sizeof *f);
    if (f == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for tensor '" ROPE_FREQS "'");
    const enum sh_code code = sh_gguf_read(g, t, 0, f, t->bytes, err);
    if (code != SH_OK) {
        free(f);
        return code;
    }
    for (uint32_t i = 0; i < pairs; i++) {
        if (f[i] > 0 && f[i] < 1e9f) continue;
        const double found = (double)f[i];
        free(f);
        return sh_fail(err, SH_ERR_FORMAT, "%s: tensor '" ROPE_FREQS "': element %u is %g, expected a factor above 0", path, i,
                       found);
    }
    *factors = f;
    return SH_OK;
}

/* A tensor that the program does not use means that the file asks for something that would silently be left out. */
static enum sh_code check_all_used(const struct sh_gguf *g, const struct sh_program *p, const char *architecture,
                                   struct sh_error *err) {
    const uint64_t n = sh_gguf_tensor_count(g);
    for (uint64_t i = 0; i < n; i++) {
        const struct sh_tensor *t = sh_gguf_tensor_at(g, i);
        bool used = strcmp(t->name, ROPE_FREQS) == 0;
        for (uint32_t w = 0; w < p->n_weights && !used; w++) used = p->weights[w].tensor == t;
        const size_t length = strlen(t->name);
        /* inverse frequencies that old converters kept; they follow from the metadata */
        const char *const redundant = ".attn_rot_embd";
        used = used || (length > strlen(redundant) && strcmp(t->name + length - strlen(redundant), redundant) == 0);
        if (!used)
            return sh_fail(err, SH_ERR_UNSUPPORTED, "%s: tensor '%s' is not part of architecture '%s' as this build computes it",
                           sh_gguf_path(g, t->shard), t->name, architecture);
    }
    return SH_OK;
}

/* A configured context may be huge: its table must fit twice, here and on its device. */
static enum sh_code check_table(const struct sh_gguf *g, const struct sh_spec *spec, uint32_t positions, struct sh_error *err) {
    const uint64_t bytes = (uint64_t)positions * spec->rope.n_rot * sizeof(float);
    const long pages = sysconf(_SC_PHYS_PAGES), page_bytes = sysconf(_SC_PAGESIZE);
    if (pages <= 0 || page_bytes <= 0 || bytes <= (uint64_t)pages * (uint64_t)page_bytes / 2) return SH_OK;
    return sh_fail(err, SH_ERR_NO_MEMORY,
                   "%s: a rotation table for %u positions needs %llu MiB twice, this machine has %llu MiB; "
                   "configure a shorter context",
                   sh_gguf_path(g, 0), positions, (unsigned long long)(bytes >> 20),
                   (unsigned long long)((uint64_t)pages * (uint64_t)page_bytes >> 20));
}

enum sh_code sh_model_build(const struct sh_gguf *g, const struct sh_model_params *params, const struct sh_adapter_set *adapters,
                            struct sh_spec *spec, struct sh_program **out, struct sh_error *err) {
    struct sh_str name = {0};
    enum sh_code code = sh_gguf_str(g, "general.architecture", &name, err);
    if (code != SH_OK) return code;
    if (name.length == 0) return sh_fail(err, SH_ERR_FORMAT, "%s: key 'general.architecture' is missing", sh_gguf_path(g, 0));
    const struct sh_architecture *architecture = sh_architecture_find(name.ptr, name.length);
    if (architecture == NULL)
        return sh_fail(err, SH_ERR_UNSUPPORTED, "%s: architecture '%.*s' is not computed by this build, which knows: %s",
                       sh_gguf_path(g, 0), (int)(name.length < 64 ? name.length : 64), name.ptr, sh_architecture_names());

    const bool check_only = params == NULL;
    float *factors = NULL;
    struct sh_builder b = {.gguf = g, .layer = SH_NONE, .err = err};
    struct sh_error local;
    if (b.err == NULL) b.err = &local;
    if (adapters != NULL) {
        b.adapters = adapters->list;
        b.n_adapters = adapters->n;
    }
    code = sh_spec_read(g, architecture->name, params, spec, err);
    if (code == SH_OK) code = read_rope_factors(g, &spec->rope, check_only, &factors, err);
    if (code == SH_OK && (b.program = sh_program_create()) == NULL)
        code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the program");
    if (code != SH_OK) goto fail;

    b.program->n_layers = spec->n_layers;
    b.program->n_embd = spec->n_embd;
    b.program->n_vocab = spec->n_vocab;
    b.program->context_length = spec->context_length;
    const uint32_t positions = check_only ? 1 : spec->context_length;
    code = check_table(g, spec, positions, err);
    if (code != SH_OK) goto fail;
    float *table = sh_rope_table(&spec->rope, factors, positions);
    const uint32_t rope_table = sh_build_constant(&b, spec->rope.n_rot, positions, table, "rope_table");
    architecture->build(&b, spec, rope_table);
    sh_build_check_adapters(&b);
    code = b.code;
    if (code == SH_OK) code = check_all_used(g, b.program, architecture->name, err);
    if (code != SH_OK) goto fail;
    free(factors);
    *out = b.program;
    return SH_OK;

fail:
    free(factors);
    sh_program_destroy(b.program);
    return code;
}

enum sh_code sh_file_check(const struct sh_file *file, struct sh_error *err) {
    struct sh_spec spec;
    struct sh_program *program = NULL;
    const enum sh_code code = sh_model_build(sh_file_gguf(file), NULL, NULL, &spec, &program, err);
    if (code == SH_OK) sh_program_destroy(program);
    return code;
}

/*
 * Loading: header and checks first, so that a file that cannot run is refused before a weight is read; then the weights, in the
 * order they lie in the file, in pieces of whole rows handed to the executors. The file is closed at the end and never needed
 * again.
 */
#include "compute/gguf/file.h"
#include "compute/model/build_model.h"
#include "compute/model/fingerprint.h"
#include "compute/model/model.h"
#include "compute/model/stream.h"
#include "compute/text/text.h"

#include <stdio.h>
#include <stdlib.h>

#define MAX_DEVICES 8 /* struct sh_model_info reports as many */

const char *sh_load_phase_name(enum sh_load_phase phase) {
    static const char *const names[] = {
        [SH_LOAD_HEADER] = "header", [SH_LOAD_WEIGHTS] = "weights", [SH_LOAD_PREPARE] = "prepare", [SH_LOAD_DONE] = "done"};
    return (size_t)phase < SH_COUNT(names) ? names[phase] : "unknown";
}

/* ---- progress ---- */

/* Shares of the whole: the header is quick, and so is what an executor does after the last row. */
#define WEIGHTS_FROM 0.02
#define WEIGHTS_TO 0.97

static enum sh_code report(const struct sh_model_params *p, enum sh_load_phase phase, double fraction, struct sh_error *err) {
    if (p->progress == NULL || p->progress(p->progress_user, phase, fraction)) return SH_OK;
    return sh_fail(err, SH_ERR_CANCELLED, "%s: loading was cancelled in phase %s", p->path, sh_load_phase_name(phase));
}

/* ---- placement and segments ---- */

static enum sh_code place_layers(const struct sh_model_params *p, uint32_t n_layers, uint32_t n_devices,
                                 uint32_t *device_of_layer, struct sh_error *err) {
    if (p->placement == NULL || p->n_placement == 0) return SH_OK; /* zeroed: everything on the first device */
    uint32_t next = 0;
    for (uint32_t i = 0; i < p->n_placement; i++) {
        const struct sh_placement *at = &p->placement[i];
        if (at->first_layer != next || at->n_layers == 0 || at->n_layers > n_layers - next)
            return sh_fail(err, SH_ERR_INVALID, "placement %u: layers %u to %u, expected to begin at %u and end by %u", i,
                           at->first_layer, at->first_layer + at->n_layers, next, n_layers);
        if (at->device >= n_devices)
            return sh_fail(err, SH_ERR_INVALID, "placement %u: device %u, there are %u", i, at->device, n_devices);
        for (uint32_t l = 0; l < at->n_layers; l++) device_of_layer[next++] = at->device;
    }
    if (next != n_layers) return sh_fail(err, SH_ERR_INVALID, "the placement covers %u layers, the model has %u", next, n_layers);
    return SH_OK;
}

static bool has_out_rows(const struct sh_program *p, const struct sh_segment *segment) {
    for (uint32_t i = segment->first_op; i < segment->first_op + segment->n_ops; i++)
        if (p->ops[i].out != SH_NONE && p->activations[p->ops[i].out].rows == SH_ROWS_OUT) return true;
    return false;
}

static bool reads(const struct sh_segment *segment, uint32_t activation) {
    for (uint32_t i = 0; i < segment->n_inputs; i++)
        if (segment->inputs[i] == activation) return true;
    return false;
}

/* Is output `a` of segment s read in or behind the next segment of the same device? */
static bool outlives(const struct sh_model *m, uint32_t s, uint32_t a) {
    bool passed = false;
    for (uint32_t t = s + 1; t < m->n_segments; t++) {
        passed = passed || m->segments[t].device == m->segments[s].device;
        if (passed && reads(&m->segments[t], a)) return true;
    }
    return false;
}

static enum sh_code number_segments(struct sh_model *m, struct sh_error *err) {
    uint32_t n_on[MAX_DEVICES] = {0};
    m->index_on_device = sh_calloc(m->n_segments, sizeof *m->index_on_device);
    m->outlives = sh_calloc(m->n_segments, sizeof *m->outlives);
    if (m->index_on_device == NULL || m->outlives == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the placement");
    for (uint32_t s = 0; s < m->n_segments; s++) {
        m->index_on_device[s] = n_on[m->segments[s].device]++;
        for (uint32_t i = 0; i < m->segments[s].n_outputs; i++) m->outlives[s][i] = outlives(m, s, m->segments[s].outputs[i]);
    }
    while (m->first_out_segment + 1 < m->n_segments && !has_out_rows(m->program, &m->segments[m->first_out_segment]))
        m->first_out_segment++;
    return SH_OK;
}

/* The segments of one device, in order: *out malloc'd. */
static enum sh_code segments_of(const struct sh_model *m, uint32_t device, struct sh_segment **out, uint32_t *n,
                                struct sh_error *err) {
    struct sh_segment *list = sh_calloc(m->n_segments, sizeof *list);
    if (list == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the placement");
    *n = 0;
    for (uint32_t s = 0; s < m->n_segments; s++)
        if (m->segments[s].device == device) list[(*n)++] = m->segments[s];
    *out = list;
    return SH_OK;
}

static enum sh_code cut(struct sh_model *m, const struct sh_model_params *p, struct sh_error *err) {
    uint32_t *device_of_layer = sh_calloc(m->spec.n_layers, sizeof *device_of_layer);
    if (device_of_layer == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the placement");
    enum sh_code code = place_layers(p, m->spec.n_layers, m->n_devices, device_of_layer, err);
    uint32_t *device_of_op = sh_calloc(m->program->n_ops, sizeof *device_of_op);
    if (code == SH_OK && device_of_op == NULL) code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the placement");
    if (code == SH_OK) {
        sh_program_place(m->program, device_of_layer, p->n_host_layers, p->host_device, device_of_op);
        code = sh_program_cut(m->program, device_of_op, &m->segments, &m->n_segments, err);
    }
    free(device_of_op);
    free(device_of_layer);
    return code == SH_OK ? number_segments(m, err) : code;
}

/* ---- memory ---- */

enum sh_code sh_check_device_memory(const struct sh_device *device, uint64_t bytes, const char *what, struct sh_error *err) {
    const struct sh_device_info *info = &device->info;
    if (info->memory_bytes == 0) return SH_OK;
    struct sh_device_memory held = {0};
    device->executor->device_memory(device, &held);
    const uint64_t used = held.weights_bytes + held.cache_bytes + held.activation_bytes + held.staging_bytes;
    const uint64_t room = info->memory_bytes > used ? info->memory_bytes - used : 0;
    if (bytes <= room) return SH_OK;
    return sh_fail(err, info->kind == SH_DEVICE_CPU ? SH_ERR_NO_MEMORY : SH_ERR_NO_DEVICE_MEMORY,
                   "%s needs %llu MiB on %s, which has %llu MiB, %llu of them held by this process", what,
                   (unsigned long long)(bytes >> 20), info->name, (unsigned long long)(info->memory_bytes >> 20),
                   (unsigned long long)(used >> 20));
}

static uint64_t stored_bytes(const struct sh_weight *w) { return sh_type_row_bytes(w->type, w->cols) * w->rows; }

/* ---- weights ---- */

struct loading {
    struct sh_model *model;
    const struct sh_model_params *params;
    bool *wanted;     /* [n_devices][n_weights] */
    uint32_t *stored; /* the weights that lie in the file, in its order */
    uint32_t n_stored;
    uint64_t total_bytes, done_bytes;
    struct sh_digest *digest;
};

/* qsort has no user pointer: what it compares is looked up first. */
struct place {
    uint32_t weight, shard;
    uint64_t offset;
};

static int by_place(const void *a, const void *b) {
    const struct place *x = a, *y = b;
    if (x->shard != y->shard) return x->shard < y->shard ? -1 : 1;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return 0;
}

static bool is_wanted(const struct loading *l, uint32_t device, uint32_t weight) {
    return l->wanted[(uint64_t)device * l->model->program->n_weights + weight];
}

static enum sh_code order_weights(struct loading *l, struct sh_error *err) {
    const struct sh_program *p = l->model->program;
    struct place *places = sh_calloc(p->n_weights, sizeof *places);
    l->stored = sh_calloc(p->n_weights, sizeof *l->stored);
    if (places == NULL || l->stored == NULL) {
        free(places);
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the list of weights");
    }
    for (uint32_t w = 0; w < p->n_weights; w++) {
        bool any = false;
        for (uint32_t d = 0; d < l->model->n_devices; d++) any = any || is_wanted(l, d, w);
        if (!any) continue;
        l->total_bytes += stored_bytes(&p->weights[w]);
        const struct sh_tensor *t = p->weights[w].tensor;
        if (t != NULL) places[l->n_stored++] = (struct place){.weight = w, .shard = t->shard, .offset = t->offset};
    }
    qsort(places, l->n_stored, sizeof *places, by_place);
    for (uint32_t i = 0; i < l->n_stored; i++) l->stored[i] = places[i].weight;
    free(places);
    return SH_OK;
}

/* Who wants what, and whether it can fit. */
static enum sh_code survey_weights(struct loading *l, struct sh_error *err) {
    struct sh_model *m = l->model;
    const struct sh_program *p = m->program;
    l->wanted = sh_calloc((uint64_t)m->n_devices * p->n_weights, sizeof *l->wanted);
    if (l->wanted == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the list of weights");
    for (uint32_t d = 0; d < m->n_devices; d++) {
        struct sh_segment *segments = NULL;
        uint32_t *list = NULL, n_segments = 0, n = 0;
        enum sh_code code = segments_of(m, d, &segments, &n_segments, err);
        if (code == SH_OK && n_segments > 0) code = sh_segment_weights(segments, n_segments, &list, &n, err);
        free(segments);
        if (code != SH_OK) return code;
        uint64_t need = 0;
        for (uint32_t i = 0; i < n; i++) {
            l->wanted[(uint64_t)d * p->n_weights + list[i]] = true;
            need += stored_bytes(&p->weights[list[i]]);
        }
        free(list);
        if (n_segments > 0) code = sh_check_device_memory(m->devices[d], need, "the model", err);
        if (code != SH_OK) return code;
    }
    return order_weights(l, err);
}

/* Rows of a weight to every device that wants them. */
static enum sh_code hand_out(struct loading *l, uint32_t weight, uint64_t row0, uint64_t n_rows, const void *src,
                             struct sh_error *err) {
    struct sh_model *m = l->model;
    const struct sh_weight *w = &m->program->weights[weight];
    for (uint32_t d = 0; d < m->n_devices; d++) {
        if (!is_wanted(l, d, weight)) continue;
        const enum sh_code code = m->devices[d]->executor->weight_rows(m->exec[d], weight, row0, n_rows, src, err);
        if (code != SH_OK) return code;
    }
    l->done_bytes += n_rows * sh_type_row_bytes(w->type, w->cols);
    const double fraction = (double)l->done_bytes / (double)l->total_bytes;
    return report(l->params, SH_LOAD_WEIGHTS, WEIGHTS_FROM + (WEIGHTS_TO - WEIGHTS_FROM) * fraction, err);
}

static enum sh_code stream_weights(struct loading *l, struct sh_error *err) {
    struct sh_weight_stream *stream;
    enum sh_code code = sh_weight_stream_open(l->model->program, l->stored, l->n_stored, &stream, err);
    while (code == SH_OK) {
        struct sh_piece piece;
        code = sh_weight_stream_next(stream, &piece, err);
        if (code != SH_OK || piece.weight == SH_NONE) break;
        sh_fingerprint_piece(l->digest, l->model->program, &piece);
        code = hand_out(l, piece.weight, piece.row0, piece.n_rows, piece.data, err);
    }
    sh_weight_stream_close(stream);
    return code;
}

static enum sh_code load_weights(struct sh_model *m, const struct sh_model_params *p, struct sh_digest *digest,
                                 struct sh_error *err) {
    struct loading l = {.model = m, .params = p, .digest = digest};
    sh_fingerprint_constants(digest, m->program);
    enum sh_code code = survey_weights(&l, err);
    for (uint32_t d = 0; d < m->n_devices && code == SH_OK; d++) {
        struct sh_segment *segments = NULL;
        uint32_t n_segments = 0;
        code = segments_of(m, d, &segments, &n_segments, err);
        if (code == SH_OK && n_segments > 0)
            code = m->devices[d]->executor->model_create(m->devices[d], segments, n_segments, &m->exec[d], err);
        free(segments);
    }
    for (uint32_t w = 0; w < m->program->n_weights && code == SH_OK; w++) {
        const struct sh_weight *weight = &m->program->weights[w];
        if (weight->constant != NULL) code = hand_out(&l, w, 0, weight->rows, weight->constant, err);
    }
    if (code == SH_OK) code = stream_weights(&l, err);
    free(l.wanted);
    free(l.stored);
    return code;
}

static enum sh_code finish(struct sh_model *m, const struct sh_model_params *p, struct sh_error *err) {
    for (uint32_t d = 0; d < m->n_devices; d++) {
        if (m->exec[d] == NULL) continue;
        enum sh_code code = report(p, SH_LOAD_PREPARE, WEIGHTS_TO + (1 - WEIGHTS_TO) * d / m->n_devices, err);
        if (code == SH_OK) code = m->devices[d]->executor->model_finish(m->exec[d], err);
        if (code != SH_OK) return code;
    }
    for (uint32_t w = 0; w < m->program->n_weights; w++) { /* the executors have their own copies */
        free(m->program->weights[w].constant);
        m->program->weights[w].constant = NULL;
        m->program->weights[w].tensor = NULL;
        m->program->weights[w].gguf = NULL;
    }
    return SH_OK;
}

/* ---- info ---- */

/* The metadata string `key` as a C string, "" if absent; NULL: no memory. */
static char *copy_string(const struct sh_gguf *g, const char *key) {
    struct sh_str s = {.ptr = "", .length = 0};
    sh_gguf_str(g, key, &s, NULL); /* a value of another type counts as absent */
    char *copy = sh_calloc(s.length + 1, 1);
    if (copy != NULL) memcpy(copy, s.ptr, s.length);
    return copy;
}

static void fill_info(struct sh_model *m, const struct sh_gguf *g, const char *architecture) {
    struct sh_model_info *info = &m->info;
    info->architecture = architecture;
    info->name = m->name;
    sh_gguf_name_type(g, info->type_name, sizeof info->type_name);
    for (uint64_t i = 0; i < sh_gguf_tensor_count(g); i++) {
        const struct sh_tensor *t = sh_gguf_tensor_at(g, i);
        info->n_parameters += t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3];
    }
    info->file_bytes = sh_gguf_file_bytes(g);
    info->n_layers = m->spec.n_layers;
    info->n_embd = m->spec.n_embd;
    info->n_heads = m->spec.n_heads;
    info->n_kv_heads = m->spec.n_kv_heads;
    info->n_vocab = m->spec.n_vocab;
    info->context_native = m->spec.context_native;
    info->context_length = m->spec.context_length;
    info->n_devices = m->n_devices;
    info->n_segments = m->n_segments;
    for (uint32_t i = 0; i < m->program->n_groups; i++) {
        const struct sh_state_group *group = &m->program->groups[i];
        const uint64_t token = 2ull * group->n_layers * group->n_kv_heads * (group->k_dim + (group->v_in_k ? 0 : group->v_dim));
        if (group->kind == SH_STATE_RECURRENT) info->state_bytes_per_sequence += 4ull * group->n_layers * group->floats;
        else if (group->kind == SH_STATE_PAGED) info->kv_bytes_per_token_f16 += token;
        else info->window_bytes_per_sequence_f16 += token * sh_min_u64(group->window, info->context_length);
    }
    info->pooling = m->program->pooling;
    info->encoder = m->program->encoder;
    info->has_logits = m->program->logits != SH_NONE;
    for (uint32_t i = 0; i < m->program->n_ops; i++) {
        if (m->program->ops[i].kind != SH_OP_ROUTE) continue;
        info->n_expert = m->program->ops[i].expert.n_expert;
        info->n_expert_used = m->program->ops[i].expert.n_used;
    }
}

/* ---- the door ---- */

static enum sh_code check_arguments(struct sh_device *const *devices, uint32_t n_devices, const struct sh_model_params *p,
                                    struct sh_error *err) {
    if (p->path == NULL) return sh_fail(err, SH_ERR_INVALID, "no path to a model was given");
    if (n_devices == 0 || n_devices > MAX_DEVICES)
        return sh_fail(err, SH_ERR_INVALID, "%s: %u devices were given, expected 1 to %d", p->path, n_devices, MAX_DEVICES);
    for (uint32_t i = 0; i < n_devices; i++)
        if (devices[i] == NULL) return sh_fail(err, SH_ERR_INVALID, "%s: device %u of %u is NULL", p->path, i, n_devices);
    if (p->n_host_layers > 0 && p->host_device >= n_devices)
        return sh_fail(err, SH_ERR_INVALID, "%s: experts are to be kept on device %u, there are %u", p->path, p->host_device,
                       n_devices);
    return SH_OK;
}

static enum sh_code load(struct sh_model *m, const struct sh_gguf *g, const struct sh_adapter_set *adapters,
                         const struct sh_model_params *p, struct sh_error *err) {
    enum sh_code code = sh_model_build(g, p, adapters, &m->spec, &m->program, err);
    if (code == SH_OK) code = sh_vocab_create(g, &m->vocab, err);
    if (code != SH_OK) return code;
    code = cut(m, p, err);
    if (code != SH_OK) return code;
    m->exec = sh_calloc(m->n_devices, sizeof *m->exec);
    m->name = copy_string(g, "general.name");
    if (m->exec == NULL || m->name == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "%s: no memory for the model", p->path);
    struct sh_str architecture = {0};
    code = sh_gguf_str(g, "general.architecture", &architecture, err);
    if (code == SH_OK) code = report(p, SH_LOAD_HEADER, WEIGHTS_FROM, err);
    struct sh_digest digest;
    sh_digest_begin(&digest);
    sh_fingerprint_header(&digest, g, adapters, p, &m->spec);
    if (code == SH_OK) code = load_weights(m, p, &digest, err);
    sh_digest_end(&digest, m->fingerprint);
    if (code == SH_OK) code = finish(m, p, err);
    if (code != SH_OK) return code;
    fill_info(m, g, sh_architecture_find(architecture.ptr, architecture.length)->name);
    for (uint32_t d = 0; d < m->n_devices; d++)
        if (m->exec[d] != NULL) m->info.weights_bytes[d] = m->devices[d]->executor->model_bytes(m->exec[d]);
    return SH_OK;
}

enum sh_code sh_model_load(struct sh_device *const *devices, uint32_t n_devices, const struct sh_model_params *params,
                           struct sh_model **out, struct sh_error *err) {
    *out = NULL;
    const uint64_t begun = sh_now_ns();
    struct sh_model_params p = {0};
    memcpy(&p, params, sh_min_u64(params->size, sizeof p));
    enum sh_code code = check_arguments(devices, n_devices, &p, err);
    if (code != SH_OK) return code;

    struct sh_gguf *g = NULL;
    struct sh_adapter_set adapters = {0};
    struct sh_model *m = sh_calloc(1, sizeof *m);
    if (m == NULL || (m->devices = sh_calloc(n_devices, sizeof *m->devices)) == NULL)
        code = sh_fail(err, SH_ERR_NO_MEMORY, "%s: no memory for the model", p.path);
    if (code == SH_OK) {
        memcpy(m->devices, devices, n_devices * sizeof *devices);
        m->n_devices = n_devices;
        code = report(&p, SH_LOAD_HEADER, 0, err);
    }
    if (code == SH_OK) code = sh_gguf_open(p.path, &g, err);
    if (code == SH_OK) code = sh_adapters_open(g, p.lora, p.n_lora, &adapters, err);
    if (code == SH_OK) code = load(m, g, &adapters, &p, err);
    sh_adapters_close(&adapters);
    sh_gguf_close(g);
    if (code == SH_OK) code = report(&p, SH_LOAD_DONE, 1, err);
    if (code != SH_OK) {
        sh_model_unload(m);
        return code;
    }
    m->info.load_ns = sh_now_ns() - begun;
    *out = m;
    return SH_OK;
}

void sh_model_unload(struct sh_model *m) {
    if (m == NULL) return;
    for (uint32_t d = 0; m->exec != NULL && d < m->n_devices; d++)
        if (m->exec[d] != NULL) m->devices[d]->executor->model_destroy(m->exec[d]);
    free(m->exec);
    free(m->index_on_device);
    free(m->outlives);
    free(m->segments);
    sh_program_destroy(m->program);
    if (m->vocab != NULL) sh_vocab_destroy(m->vocab);
    free(m->devices);
    free(m->name);
    free(m);
}

void sh_model_get_info(const struct sh_model *model, struct sh_model_info *out) { *out = model->info; }

const struct sh_vocab *sh_model_vocab(const struct sh_model *model) { return model->vocab; }

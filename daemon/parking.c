/*
 * parking.c - the way of a generation to its model's runner: at once if the model is ready, else by way of a load that it waits for. A model may go
 * while a request for it is being prepared (it is swapped, or makes room for another one); that is not the request's fault.
 */
#include "daemon/models_private.h"

#include "compute/base.h"
#include "daemon/generation_private.h"

static bool same_pieces(const struct sh_vocab *a, const struct sh_vocab *b) {
    const uint32_t n = sh_vocab_size(a);
    if (sh_vocab_size(b) != n) return false;
    for (uint32_t i = 0; i < n; i++) {
        size_t length, other_length;
        const char *piece = sh_vocab_piece(a, (int32_t)i, true, &length), *other = sh_vocab_piece(b, (int32_t)i, true, &other_length);
        if (length != other_length || (length > 0 && memcmp(piece, other, length) != 0)) return false;
    }
    return true;
}

/* *parks: the model is not ready. */
static enum sh_code enqueue(struct model *model, struct generation *g, bool *parks, struct sh_error *err) {
    enum sh_code code = SH_OK;
    const struct sh_vocab *vocab = g->params.vocab;
    pthread_mutex_lock(&registry.lock);
    *parks = model->state != MODEL_READY;
    if (registry.refusing) {
        *parks = false;
        code = sh_fail(err, SH_ERR_CANCELLED, "shutting down");
    } else if (!*parks && vocab && model->vocab && vocab != model->vocab && !same_pieces(vocab, model->vocab)) {
        code = sh_fail(err, SH_ERR_NOT_FOUND, "the file of %s was replaced by one with another vocabulary: send the request again", model->id);
    } else if (!*parks) {
        code = runner_enqueue(model->runner, g, err);
    }
    pthread_mutex_unlock(&registry.lock);
    return code;
}

static void loaded(void *user, enum sh_code code, struct model *model, const struct sh_error *err) {
    struct generation *g = user;
    struct sh_error why = {0};
    if (err) why = *err;
    pthread_mutex_lock(&g->lock);
    struct load *load = g->parked;
    g->parked = NULL;
    g->parked_over = true;
    pthread_mutex_unlock(&g->lock);
    if (code == SH_OK && atomic_load(&g->cancelled)) code = SH_ERR_CANCELLED;
    bool gone = false;
    if (code == SH_OK) code = enqueue(g->model, g, &gone, &why);
    if (gone) code = sh_fail(&why, SH_ERR_NOT_FOUND, "%s was unloaded again: send the request again", model_id(model));
    model_unref(model);
    if (code == SH_ERR_CANCELLED || code == SH_ERR_TIMEOUT) {
        gen_mark_cancelled(g, code == SH_ERR_TIMEOUT ? "deadline" : "shutdown"); /* unless it was cancelled itself */
        gen_end(g, GEN_CANCELLED, NULL);
    } else if (code) {
        gen_end(g, GEN_FAILED, &why);
    }
    load_release(load);
    gen_unref(g);
}

static enum sh_code park(struct model *model, struct generation *g, struct sh_error *err) {
    const struct load_params params = {.on_demand = true, .deadline_ns = g->params.deadline_ns};
    pthread_mutex_lock(&g->lock);
    g->parked_over = false;
    pthread_mutex_unlock(&g->lock);
    atomic_fetch_add(&g->refs, 1); /* until `loaded` */
    struct load *load = model_load(model, &params, loaded, NULL, g);
    if (!load) {
        gen_unref(g);
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory to wait for %s", model_id(model));
    }
    pthread_mutex_lock(&g->lock);
    const bool over = g->parked_over;
    if (!over) g->parked = load;
    pthread_mutex_unlock(&g->lock);
    if (over) load_release(load);
    else if (atomic_load(&g->cancelled)) gen_unpark(g);
    return SH_OK;
}

enum sh_code model_enqueue(struct model *model, struct generation *g, struct sh_error *err) {
    bool parks = false;
    const enum sh_code code = enqueue(model, g, &parks, err);
    return parks ? park(model, g, err) : code;
}

void gen_unpark(struct generation *g) {
    pthread_mutex_lock(&g->lock);
    struct load *load = g->parked;
    g->parked = NULL;
    pthread_mutex_unlock(&g->lock);
    if (!load) return;
    load_cancel(load);
    load_release(load);
}

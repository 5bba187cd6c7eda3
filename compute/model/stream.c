#include "compute/model/stream.h"
#include "compute/gguf/quant.h"

#include <pthread.h>
#include <stdlib.h>

#define READERS 2 /* while one copies out of the page cache, the disk works for the other */
#define BUFFERS 5 /* one for each reader, one being used, the rest waiting */
#define BUFFER_BYTES (2u << 20)
#define GROUP_ROWS 64u /* pieces hold whole groups of rows, as executors pack them, where they hold so many */

struct buffer {
    struct sh_piece piece;
    void *data;
    bool filled;       /* under the lock */
    enum sh_code code; /* of its read */
    struct sh_error error;
};

struct sh_weight_stream {
    const struct sh_program *program;
    const uint32_t *weights;
    uint32_t n_weights;
    uint64_t buffer_bytes; /* at least one row of the widest */
    float *converted;      /* of the piece that is lent, if it is one of a plain type that became F32 */

    struct buffer buffers[BUFFERS];
    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* Under the lock: pieces whose reading has begun, and pieces given back; where the next piece begins; whether another one
     * shall. */
    uint64_t begun, used, next_row;
    uint32_t next_weight;
    bool stop, lent;
    uint32_t n_readers;
    pthread_t readers[READERS];
};

/* The place of the next piece. */
static void next_piece(struct sh_weight_stream *s, struct buffer *b) {
    if (s->next_weight == s->n_weights) {
        b->piece = (struct sh_piece){.weight = SH_NONE};
        s->stop = true;
        return;
    }
    const uint32_t index = s->weights[s->next_weight];
    const struct sh_weight *w = &s->program->weights[index];
    uint64_t most = s->buffer_bytes / sh_type_row_bytes(w->tensor->type, w->cols);
    if (most > GROUP_ROWS) most -= most % GROUP_ROWS;
    b->piece = (struct sh_piece){
        .weight = index, .row0 = s->next_row, .n_rows = sh_min_u64(most, w->rows - s->next_row), .data = b->data};
    s->next_row += b->piece.n_rows;
    if (s->next_row < w->rows) return;
    s->next_row = 0;
    s->next_weight++;
}

/* Waits for a buffer that may be filled, and says with what; NULL: nothing more is to be read. */
static struct buffer *next_free(struct sh_weight_stream *s) {
    pthread_mutex_lock(&s->lock);
    while (!s->stop && s->begun - s->used == BUFFERS) pthread_cond_wait(&s->changed, &s->lock);
    struct buffer *b = NULL;
    if (!s->stop) {
        b = &s->buffers[s->begun++ % BUFFERS];
        b->filled = false;
        next_piece(s, b);
    }
    pthread_mutex_unlock(&s->lock);
    return b;
}

static void hand_over(struct sh_weight_stream *s, struct buffer *b) {
    pthread_mutex_lock(&s->lock);
    b->filled = true;
    if (b->code != SH_OK) s->stop = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

/* Of a vector the view counts elements, of a matrix rows: the size of one of these in the file. */
static uint64_t unit_bytes(const struct sh_weight *w) {
    const bool rows = w->view.take * w->view.count == w->rows;
    return sh_type_row_bytes(w->tensor->type, rows ? w->cols : 1);
}

/* Units [first, first + n) of the weight's view, run by run. */
static enum sh_code read_units(const struct sh_weight *w, uint64_t first, uint64_t n, uint8_t *to, struct sh_error *err) {
    const uint64_t unit = unit_bytes(w);
    enum sh_code code = SH_OK;
    while (n > 0 && code == SH_OK) {
        const uint64_t in_run = first % w->view.take, m = sh_min_u64(n, w->view.take - in_run);
        const uint64_t at = w->view.first + first / w->view.take * w->view.stride + in_run;
        code = sh_gguf_read(w->gguf, w->tensor, at * unit, to, m * unit, err);
        to += m * unit;
        first += m;
        n -= m;
    }
    return code;
}

/* Each ends after the last piece, after one that failed, or when the stream is closed. */
static void *read_ahead(void *arg) {
    struct sh_weight_stream *s = arg;
    for (struct buffer *b; (b = next_free(s)) != NULL; hand_over(s, b)) {
        b->code = SH_OK;
        if (b->piece.weight == SH_NONE) continue;
        const struct sh_weight *w = &s->program->weights[b->piece.weight];
        const uint64_t units_per_row = w->view.take * w->view.count / w->rows;
        b->code = read_units(w, b->piece.row0 * units_per_row, b->piece.n_rows * units_per_row, b->data, &b->error);
    }
    return NULL;
}

enum sh_code sh_weight_stream_open(const struct sh_program *program, const uint32_t *weights, uint32_t n,
                                   struct sh_weight_stream **out, struct sh_error *err) {
    *out = NULL;
    struct sh_weight_stream *s = sh_calloc(1, sizeof *s);
    if (s == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory to read weights");
    s->program = program;
    s->weights = weights;
    s->n_weights = n;
    s->buffer_bytes = BUFFER_BYTES;
    for (uint32_t i = 0; i < n; i++) {
        const struct sh_weight *w = &program->weights[weights[i]];
        SH_ASSERT(w->tensor != NULL);
        s->buffer_bytes = sh_max_u64(s->buffer_bytes, sh_type_row_bytes(w->tensor->type, w->cols));
    }
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    bool complete = true;
    for (int i = 0; i < BUFFERS; i++) {
        s->buffers[i].data = sh_alloc_aligned(s->buffer_bytes);
        complete = complete && s->buffers[i].data != NULL;
    }
    while (complete && s->n_readers < READERS && pthread_create(&s->readers[s->n_readers], NULL, read_ahead, s) == 0)
        s->n_readers++;
    if (s->n_readers == 0) { /* one is enough */
        sh_weight_stream_close(s);
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for %d load buffers of %llu bytes and a thread", BUFFERS,
                       (unsigned long long)s->buffer_bytes);
    }
    *out = s;
    return SH_OK;
}

/* Vectors and tables stored in half precision become F32 on their way. */
static enum sh_code convert(struct sh_weight_stream *s, struct sh_piece *piece, struct sh_error *err) {
    const struct sh_weight *w = &s->program->weights[piece->weight];
    if (w->tensor->type == w->type) return SH_OK;
    s->converted = sh_calloc(piece->n_rows * w->cols, sizeof *s->converted);
    if (s->converted == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for tensor '%s'", w->name);
    SH_ASSERT(sh_dequantize(w->tensor->type, piece->data, s->converted, piece->n_rows * w->cols));
    piece->data = s->converted;
    return SH_OK;
}

enum sh_code sh_weight_stream_next(struct sh_weight_stream *s, struct sh_piece *piece, struct sh_error *err) {
    free(s->converted);
    s->converted = NULL;
    pthread_mutex_lock(&s->lock);
    if (s->lent) { /* what the last call lent may be filled again */
        s->used++;
        s->lent = false;
        pthread_cond_broadcast(&s->changed);
    }
    const struct buffer *b = &s->buffers[s->used % BUFFERS];
    while (s->begun == s->used || !b->filled) pthread_cond_wait(&s->changed, &s->lock);
    const bool lasting = b->code != SH_OK || b->piece.weight == SH_NONE; /* the readers end: it stays as the answer */
    s->lent = !lasting;
    pthread_mutex_unlock(&s->lock);
    if (b->code != SH_OK) {
        if (err != NULL) *err = b->error;
        return b->code;
    }
    *piece = b->piece;
    return lasting ? SH_OK : convert(s, piece, err);
}

void sh_weight_stream_close(struct sh_weight_stream *s) {
    if (s == NULL) return;
    pthread_mutex_lock(&s->lock);
    s->stop = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    for (uint32_t i = 0; i < s->n_readers; i++) pthread_join(s->readers[i], NULL);
    for (int i = 0; i < BUFFERS; i++) free(s->buffers[i].data);
    free(s->converted);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->changed);
    free(s);
}

#include "compute/model/stream.h"
#include "compute/gguf/quant.h"

#include <pthread.h>
#include <stdlib.h>

#define BUFFERS 3 /* one being read, one waiting, one being used */
#define BUFFER_BYTES (4u << 20)

struct buffer {
    struct sh_piece piece;
    void *data;
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
    uint64_t filled, used; /* pieces read, and pieces given back; under the lock, as is stop */
    bool stop, reader_runs, lent;
    pthread_t reader;
};

/* Waits for a buffer that may be filled; NULL: the stream is being closed. */
static struct buffer *next_free(struct sh_weight_stream *s) {
    pthread_mutex_lock(&s->lock);
    while (!s->stop && s->filled - s->used == BUFFERS) pthread_cond_wait(&s->changed, &s->lock);
    struct buffer *b = s->stop ? NULL : &s->buffers[s->filled % BUFFERS];
    pthread_mutex_unlock(&s->lock);
    return b;
}

static void hand_over(struct sh_weight_stream *s) {
    pthread_mutex_lock(&s->lock);
    s->filled++;
    pthread_cond_signal(&s->changed);
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

/* Ends after the last piece, after one that failed, or on stop. */
static void *read_ahead(void *arg) {
    struct sh_weight_stream *s = arg;
    for (uint32_t i = 0; i < s->n_weights; i++) {
        const struct sh_weight *w = &s->program->weights[s->weights[i]];
        const uint64_t row_bytes = sh_type_row_bytes(w->tensor->type, w->cols), most = s->buffer_bytes / row_bytes;
        for (uint64_t row = 0; row < w->rows; row += most) {
            struct buffer *b = next_free(s);
            if (b == NULL) return NULL;
            b->piece = (struct sh_piece){
                .weight = s->weights[i], .row0 = row, .n_rows = sh_min_u64(most, w->rows - row), .data = b->data};
            const uint64_t units_per_row = w->view.take * w->view.count / w->rows;
            b->code = read_units(w, row * units_per_row, b->piece.n_rows * units_per_row, b->data, &b->error);
            const bool failed = b->code != SH_OK;
            hand_over(s);
            if (failed) return NULL;
        }
    }
    struct buffer *b = next_free(s);
    if (b == NULL) return NULL;
    b->piece = (struct sh_piece){.weight = SH_NONE};
    b->code = SH_OK;
    hand_over(s);
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
    if (complete) s->reader_runs = pthread_create(&s->reader, NULL, read_ahead, s) == 0;
    if (!s->reader_runs) {
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
        pthread_cond_signal(&s->changed);
    }
    while (s->filled == s->used) pthread_cond_wait(&s->changed, &s->lock);
    const struct buffer *b = &s->buffers[s->used % BUFFERS];
    const bool lasting = b->code != SH_OK || b->piece.weight == SH_NONE; /* the reader has ended: it stays as the answer */
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
    if (s->reader_runs) {
        pthread_mutex_lock(&s->lock);
        s->stop = true;
        pthread_cond_signal(&s->changed);
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->reader, NULL);
    }
    for (int i = 0; i < BUFFERS; i++) free(s->buffers[i].data);
    free(s->converted);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->changed);
    free(s);
}

/*
 * Files of state. The first byte of the input says what it is: even: a file as it stands; odd: what follows the identity, to which this
 * target adds a right beginning and a right digest, so that the reader gets to see it. Whatever it is: it is taken whole or leaves
 * nothing behind.
 */
#include "compute/digest.h"
#include "compute/program/build.h"
#include "compute/state/context.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { LONGEST = 256, VOCAB = 100, MOST_PAGES = 64, PAGE_BYTES = 8, GROUPS = 3 };

/* ---- an executor that keeps small pages and computes nothing ---- */

struct sh_exec_context {
    uint8_t pages[GROUPS][MOST_PAGES][PAGE_BYTES];
};
static struct sh_exec_context memory;

static enum sh_code create(struct sh_exec_model *m, const struct sh_exec_context_params *p, struct sh_exec_context **out,
                           struct sh_error *err) {
    (void)m, (void)p, (void)err;
    *out = &memory;
    return SH_OK;
}
static void destroy(struct sh_exec_context *c) { (void)c; }
static void device_memory(const struct sh_device *device, struct sh_device_memory *out) {
    (void)device;
    *out = (struct sh_device_memory){0};
}
static enum sh_code reserve(struct sh_exec_context *c, uint32_t group, uint32_t n, struct sh_error *err) {
    (void)c, (void)group, (void)err;
    SH_ASSERT(n <= MOST_PAGES);
    return SH_OK;
}
static uint64_t no_bytes(const struct sh_exec_context *c) { return c == NULL; }
static uint64_t page_bytes(const struct sh_exec_context *c, uint32_t group) {
    return c != NULL && group < GROUPS ? PAGE_BYTES : 0;
}
static enum sh_code page_read(struct sh_exec_context *c, uint32_t group, uint32_t page, void *dst, struct sh_error *err) {
    (void)err;
    memcpy(dst, c->pages[group][page], PAGE_BYTES);
    return SH_OK;
}
static enum sh_code page_write(struct sh_exec_context *c, uint32_t group, uint32_t page, const void *src, struct sh_error *err) {
    (void)err;
    memcpy(c->pages[group][page], src, PAGE_BYTES);
    return SH_OK;
}
static enum sh_code submit(struct sh_exec_context *c, uint32_t slot, uint32_t segment, const struct sh_step *step,
                           struct sh_error *err) {
    (void)c, (void)slot, (void)segment, (void)step, (void)err;
    return SH_OK;
}
static enum sh_code wait_for(struct sh_exec_context *c, uint32_t slot, int64_t timeout, struct sh_step_result *result,
                             struct sh_error *err) {
    (void)c, (void)slot, (void)timeout, (void)err;
    *result = (struct sh_step_result){0};
    return SH_OK;
}

static const struct sh_executor table = {.name = "none",
                                         .context_create = create,
                                         .context_destroy = destroy,
                                         .device_memory = device_memory,
                                         .pool_reserve = reserve,
                                         .pool_bytes = no_bytes,
                                         .page_bytes = page_bytes,
                                         .page_read = page_read,
                                         .page_write = page_write,
                                         .submit = submit,
                                         .wait = wait_for};

static struct sh_state_group groups[GROUPS] = {
    {.kind = SH_STATE_PAGED, .n_layers = 1, .n_kv_heads = 1, .k_dim = 1, .v_dim = 1},
    {.kind = SH_STATE_WINDOWED, .n_layers = 1, .n_kv_heads = 1, .k_dim = 1, .v_dim = 1, .window = 40},
    {.kind = SH_STATE_RECURRENT, .n_layers = 1, .floats = 2},
};
static struct sh_op ops[GROUPS] = {{.kind = SH_OP_ROPE_CACHE, .attn.group = 0},
                                   {.kind = SH_OP_ROPE_CACHE, .attn.group = 1},
                                   {.kind = SH_OP_SCAN, .state.group = 2}};
static struct sh_activation activation;
static struct sh_program program = {.n_layers = 1,
                                    .n_embd = 1,
                                    .n_vocab = VOCAB,
                                    .context_length = LONGEST,
                                    .groups = groups,
                                    .n_groups = GROUPS,
                                    .ops = ops,
                                    .n_ops = GROUPS,
                                    .activations = &activation,
                                    .n_activations = 1,
                                    .logits = SH_NONE};
static struct sh_device device = {.executor = &table};
static struct sh_device *devices[] = {&device};
static struct sh_exec_model *exec[] = {(struct sh_exec_model *)&program};
static struct sh_segment segment = {.program = &program, .n_ops = GROUPS};
static uint32_t first;
static struct sh_model model = {.program = &program,
                                .spec = {.n_vocab = VOCAB, .n_embd = 1, .context_length = LONGEST},
                                .segments = &segment,
                                .index_on_device = &first,
                                .n_segments = 1,
                                .exec = exec,
                                .devices = devices,
                                .n_devices = 1,
                                .info = {.architecture = "none"}};

/* ---- a right beginning ---- */

static uint8_t beginning[4096];
static uint32_t beginning_length;

static struct sh_context *open_context(void) {
    const struct sh_context_params params = {
        .size = sizeof params, .max_sequences = 2, .kv_tokens = 32 * SH_PAGE_TOKENS, .reuse_tokens = 7 * SH_PAGE_TOKENS};
    struct sh_context *c = NULL;
    SH_ASSERT(sh_context_create(&model, &params, &c, NULL) == SH_OK);
    return c;
}

/* That of a file which the context writes itself. */
static void learn_beginning(struct sh_context *c) {
    struct sh_row rows[SH_PAGE_TOKENS];
    int32_t tokens[SH_PAGE_TOKENS] = {0};
    uint32_t sequence = 0, n = 0;
    sh_ticket ticket;
    struct sh_results results;
    SH_ASSERT(sh_sequence_create(c, &sequence, NULL) == SH_OK);
    SH_ASSERT(sh_sequence_reuse(c, sequence, NULL, NULL, 0, 0, &n, NULL) == SH_OK);
    for (uint32_t i = 0; i < SH_PAGE_TOKENS; i++) rows[i] = (struct sh_row){.sequence = sequence, .position = i};
    SH_ASSERT(sh_submit(c, &(struct sh_batch){rows, SH_PAGE_TOKENS}, &ticket, NULL) == SH_OK);
    SH_ASSERT(sh_wait(c, ticket, -1, &results, NULL) == SH_OK);
    const int fd = memfd_create("fuzz", MFD_CLOEXEC);
    SH_ASSERT(fd >= 0 && sh_context_save(c, tokens, SH_PAGE_TOKENS, 0, fd, &n, NULL) == SH_OK);
    const ssize_t length = pread(fd, beginning, sizeof beginning, 0);
    SH_ASSERT(length > 16);
    uint32_t identity;
    memcpy(&identity, beginning + 12, sizeof identity);
    beginning_length = 16 + identity;
    SH_ASSERT(beginning_length < (size_t)length);
    close(fd);
    sh_sequence_destroy(c, sequence);
    sh_prefix_drop_idle(&c->prefix);
    sh_context_update_stats(c);
}

static int file_of(const uint8_t *data, size_t size) {
    const int fd = memfd_create("fuzz", MFD_CLOEXEC);
    const bool whole = size == 0 || data[0] % 2 == 0;
    SH_ASSERT(fd >= 0);
    if (size > 0) data++, size--;
    if (whole) {
        SH_ASSERT(write(fd, data, size) == (ssize_t)size);
    } else {
        struct sh_digest d;
        uint64_t digest[2];
        sh_digest_begin(&d);
        sh_digest_add(&d, beginning, beginning_length);
        sh_digest_add(&d, data, size);
        sh_digest_end(&d, digest);
        SH_ASSERT(write(fd, beginning, beginning_length) == (ssize_t)beginning_length);
        SH_ASSERT(write(fd, data, size) == (ssize_t)size && write(fd, digest, sizeof digest) == sizeof digest);
    }
    SH_ASSERT(lseek(fd, 0, SEEK_SET) == 0);
    return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct sh_context *c;
    if (c == NULL) learn_beginning(c = open_context());
    const int fd = file_of(data, size);
    int32_t *tokens = NULL;
    uint32_t n = 0, reused = 0, sequence = 0;
    struct sh_error err = {0};
    struct sh_context_stats stats;
    if (sh_context_restore(c, fd, 1, &tokens, &n, &err) == SH_OK) {
        SH_ASSERT(n > 0 && n % SH_PAGE_TOKENS == 0 && sh_sequence_create(c, &sequence, NULL) == SH_OK);
        SH_ASSERT(sh_sequence_reuse(c, sequence, tokens, NULL, n, 1, &reused, NULL) == SH_OK && reused == n);
        sh_sequence_destroy(c, sequence);
        free(tokens);
        sh_prefix_drop_idle(&c->prefix);
        sh_context_update_stats(c);
    } else {
        SH_ASSERT(tokens == NULL && err.code != SH_OK && err.message[0] != '\0');
    }
    sh_context_get_stats(c, &stats);
    SH_ASSERT(stats.pages_used == 0 && stats.pages_kept == 0);
    close(fd);
    return 0;
}

/* Saving and restoring a beginning. README.md has the format. */
#include "compute/digest.h"
#include "compute/state/context.h"

#include <elf.h>
#include <errno.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC "shimmyKV"
#define VERSION 1u
#define DIGEST_BYTES 16
#define MAX_IDENTITY 65536u

/* ---- what a file is for ---- */

struct text {
    char *at;
    uint32_t length, capacity;
    bool complete;
};

static void add_line(struct text *t, const char *fmt, ...) SH_PRINTF(2, 3);
static void add_line(struct text *t, const char *fmt, ...) {
    char line[512];
    va_list args;
    va_start(args, fmt);
    const int n = vsnprintf(line, sizeof line - 1, fmt, args);
    va_end(args);
    const uint32_t length = n < 0 ? 0 : (uint32_t)sh_min_u64((uint64_t)n, sizeof line - 2);
    for (uint32_t i = 0; i < length; i++)
        if (line[i] == '\n') line[i] = ' ';
    line[length] = '\n';
    t->complete = t->complete && sh_grow((void **)&t->at, &t->capacity, t->length + length + 1, 1);
    if (!t->complete) return;
    memcpy(t->at + t->length, line, length + 1);
    t->length += length + 1;
}

/* The linker's mark of this very program: another build may compute otherwise under the same version. Empty if it has none. */
static int find_build(struct dl_phdr_info *info, size_t size, void *user) {
    (void)size;
    char *text = user;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        if (p->p_type != PT_NOTE) continue;
        const uint8_t *at = (const uint8_t *)(info->dlpi_addr + p->p_vaddr), *end = at + p->p_memsz;
        while ((size_t)(end - at) >= sizeof(ElfW(Nhdr))) {
            const ElfW(Nhdr) *note = (const void *)at;
            const uint8_t *name = at + sizeof *note, *id = name + (note->n_namesz + 3) / 4 * 4;
            if (note->n_type == NT_GNU_BUILD_ID && note->n_namesz == 4 && memcmp(name, "GNU", 4) == 0) {
                for (uint32_t k = 0; k < note->n_descsz && k < 20; k++) snprintf(text + 2 * (size_t)k, 3, "%02x", id[k]);
                return 1;
            }
            at = id + (note->n_descsz + 3) / 4 * 4;
            if (at > end) break;
        }
    }
    return 1; /* the program itself comes first */
}

static uint64_t page_bytes(const struct sh_context *c, uint32_t device, uint32_t group) {
    if (c->exec[device] == NULL || !c->holds_group[device * c->n_groups + group]) return 0;
    return sh_context_executor(c, device)->page_bytes(c->exec[device], group);
}

static enum sh_code make_identity(const struct sh_context *c, struct text *t, struct sh_error *err) {
    static const char *const kinds[] = {
        [SH_STATE_PAGED] = "paged", [SH_STATE_WINDOWED] = "windowed", [SH_STATE_RECURRENT] = "recurrent"};
    char build[41] = "";
    dl_iterate_phdr(find_build, build);
    *t = (struct text){.complete = true};
    add_line(t, "program: %s %s", sh_version(), build);
    add_line(t, "model: %s %016llx%016llx", c->model->info.architecture, (unsigned long long)c->model->fingerprint[0],
             (unsigned long long)c->model->fingerprint[1]);
    add_line(t, "cache: %s, pages of %d tokens", c->params.kv_type == SH_KV_F32 ? "f32" : "f16", SH_PAGE_TOKENS);
    for (uint32_t d = 0; d < c->model->n_devices; d++) {
        if (c->exec[d] == NULL) continue;
        const struct sh_device_info *info = &c->model->devices[d]->info;
        add_line(t, "device %u: %s, %s, %s%s%s", d, sh_context_executor(c, d)->name, info->tier, info->driver,
                 info->kind == SH_DEVICE_CPU ? "" : ", ", info->kind == SH_DEVICE_CPU ? "" : info->name);
        for (uint32_t g = 0; g < c->n_groups; g++)
            if (page_bytes(c, d, g) > 0)
                add_line(t, "layers of group %u on device %u: %s, window %u, %llu bytes", g, d,
                         kinds[sh_context_group(c, g)->kind], sh_context_group(c, g)->window,
                         (unsigned long long)page_bytes(c, d, g));
    }
    if (t->complete && t->length <= MAX_IDENTITY) return SH_OK;
    free(t->at);
    t->at = NULL;
    return sh_fail(err, SH_ERR_NO_MEMORY, "no memory to say what a file of state is for");
}

/* Which pages of a beginning of n_pages stand in a file. */
static bool is_stored(const struct sh_context *c, uint32_t group, uint32_t index, uint32_t n_pages) {
    const struct sh_state_group *g = sh_context_group(c, group);
    if (g->kind == SH_STATE_RECURRENT) return index + 1 == n_pages;
    return index >= sh_first_page_seen(g, n_pages * SH_PAGE_TOKENS);
}

static uint64_t stored_bytes(const struct sh_context *c, uint32_t n_pages) {
    uint64_t sum = 0;
    for (uint32_t d = 0; d < c->model->n_devices; d++)
        for (uint32_t g = 0; g < c->n_groups; g++) {
            const struct sh_state_group *group = sh_context_group(c, g);
            const uint32_t n =
                group->kind == SH_STATE_RECURRENT ? 1 : n_pages - sh_first_page_seen(group, n_pages * SH_PAGE_TOKENS);
            sum += n * page_bytes(c, d, g);
        }
    return sum;
}

static uint64_t largest_page(const struct sh_context *c) {
    uint64_t most = 1;
    for (uint32_t d = 0; d < c->model->n_devices; d++)
        for (uint32_t g = 0; g < c->n_groups; g++) most = sh_max_u64(most, page_bytes(c, d, g));
    return most;
}

static enum sh_code check_idle(const struct sh_context *c, const char *what, struct sh_error *err) {
    if (c->lost) return sh_fail(err, SH_ERR_DEVICE_LOST, "the device of this context was lost; load the model again");
    for (uint32_t i = 0; i < SH_SLOTS; i++)
        if (c->slots[i].state == SH_SLOT_RUNNING)
            return sh_fail(err, SH_ERR_BUSY, "ticket %llu is in flight; wait for it before %s state",
                           (unsigned long long)c->slots[i].ticket, what);
    return SH_OK;
}

/* ---- bytes ---- */

struct stream { /* everything that passes goes into the digest */
    int fd;
    struct sh_digest digest;
};

static enum sh_code put(struct stream *s, const void *data, uint64_t n, struct sh_error *err) {
    sh_digest_add(&s->digest, data, (size_t)n);
    for (const uint8_t *at = data; n > 0;) {
        const ssize_t written = write(s->fd, at, (size_t)sh_min_u64(n, 1u << 30));
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) {
            const int reason = written == 0 ? EIO : errno;
            return sh_fail(err, SH_ERR_IO, "writing state: %s", strerror(reason));
        }
        at += written;
        n -= (uint64_t)written;
    }
    return SH_OK;
}

static enum sh_code get(struct stream *s, void *data, uint64_t n, struct sh_error *err) {
    uint8_t *at = data;
    for (uint64_t left = n; left > 0;) {
        const ssize_t got = read(s->fd, at, (size_t)sh_min_u64(left, 1u << 30));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) {
            const int reason = errno;
            return sh_fail(err, SH_ERR_IO, "reading state: %s", strerror(reason));
        }
        if (got == 0) return sh_fail(err, SH_ERR_FORMAT, "a file of state ends %llu bytes too early", (unsigned long long)left);
        at += got;
        left -= (uint64_t)got;
    }
    sh_digest_add(&s->digest, data, (size_t)n);
    return SH_OK;
}

/* ---- saving ---- */

static enum sh_code put_pages(struct sh_context *c, struct stream *s, const uint32_t *nodes, uint32_t n_pages, void *buffer,
                              struct sh_error *err) {
    for (uint32_t i = 0; i < n_pages; i++)
        for (uint32_t g = 0; g < c->n_groups; g++) {
            if (!is_stored(c, g, i, n_pages)) continue;
            for (uint32_t d = 0; d < c->model->n_devices; d++) {
                const uint64_t bytes = page_bytes(c, d, g);
                if (bytes == 0) continue;
                enum sh_code code =
                    sh_context_executor(c, d)->page_read(c->exec[d], g, sh_prefix_page(&c->prefix, nodes[i], g), buffer, err);
                if (code == SH_ERR_DEVICE_LOST) c->lost = true;
                if (code == SH_OK) code = put(s, buffer, bytes, err);
                if (code != SH_OK) return code;
            }
        }
    return SH_OK;
}

static enum sh_code put_all(struct sh_context *c, struct stream *s, const struct text *identity, const uint32_t *nodes,
                            uint32_t n_pages, void *buffer, struct sh_error *err) {
    const uint32_t head[2] = {VERSION, identity->length}, counts[2] = {n_pages * SH_PAGE_TOKENS, 0};
    enum sh_code code = put(s, MAGIC, 8, err);
    if (code == SH_OK) code = put(s, head, sizeof head, err);
    if (code == SH_OK) code = put(s, identity->at, identity->length, err);
    if (code == SH_OK) code = put(s, counts, sizeof counts, err);
    for (uint32_t i = 0; i < n_pages && code == SH_OK; i++)
        code = put(s, c->prefix.nodes[nodes[i]].tokens, sizeof c->prefix.nodes[0].tokens, err);
    for (uint32_t i = 0; i < n_pages && code == SH_OK; i++)
        code = put(s, c->prefix.nodes[nodes[i]].roles, sizeof c->prefix.nodes[0].roles, err);
    if (code == SH_OK) code = put_pages(c, s, nodes, n_pages, buffer, err);
    uint64_t digest[2];
    sh_digest_end(&s->digest, digest);
    if (code == SH_OK) code = put(s, digest, sizeof digest, err);
    return code;
}

enum sh_code sh_context_save(struct sh_context *c, const int32_t *tokens, uint32_t n, uint64_t salt, int fd, uint32_t *saved,
                             struct sh_error *err) {
    *saved = 0;
    enum sh_code code = check_idle(c, "saving", err);
    if (code != SH_OK) return code;
    const uint32_t node = sh_context_find_beginning(c, tokens, NULL, n, salt);
    if (node == SH_NONE && n < SH_PAGE_TOKENS)
        return sh_fail(err, SH_ERR_NOT_FOUND, "found %u tokens, expected at least %d, the smallest piece that is kept: go on with the text, then save it",
                       n, SH_PAGE_TOKENS);
    if (node == SH_NONE)
        return sh_fail(err, SH_ERR_NOT_FOUND, "none of these %u tokens are in the cache any more: compute them again, then save them", n);
    const uint32_t n_pages = c->prefix.nodes[node].depth;
    struct text identity;
    code = make_identity(c, &identity, err);
    uint32_t *nodes = sh_calloc(n_pages, sizeof *nodes);
    void *buffer = sh_alloc_aligned(largest_page(c));
    if (code == SH_OK && (nodes == NULL || buffer == NULL)) code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory to save state");
    for (uint32_t i = n_pages, at = node; i > 0 && nodes != NULL; at = c->prefix.nodes[at].parent) nodes[--i] = at;
    struct stream s = {.fd = fd};
    sh_digest_begin(&s.digest);
    if (code == SH_OK) code = put_all(c, &s, &identity, nodes, n_pages, buffer, err);
    if (code == SH_OK) *saved = n_pages * SH_PAGE_TOKENS;
    free(identity.at);
    free(nodes);
    free(buffer);
    return code;
}

/* ---- restoring ---- */

struct restoring {
    struct sh_context *c;
    struct stream stream;
    uint64_t salt;
    uint32_t n_pages;
    int32_t *tokens; /* [n_pages * SH_PAGE_TOKENS] */
    uint8_t *roles;
    void *buffer;    /* of one page */
    uint32_t *nodes; /* [n_pages] the beginning's, so far */
    bool *is_new;    /* [n_pages] the node was made for this */
    /* [n_pages][n_groups] what the nodes have is held until the end, so that it does not make room for the rest; SH_NONE: nothing */
    uint32_t *held;
    bool *given; /* [n_pages][n_groups] the node got this page here */
    uint32_t n_nodes;
};

/* The first line in which the file's identity is another. */
static enum sh_code tell_difference(const char *found, uint32_t n, const struct text *expected, struct sh_error *err) {
    uint32_t at = 0, line = 0;
    while (at < n && at < expected->length && found[at] == expected->at[at]) line = found[at++] == '\n' ? at : line;
    uint32_t end_found = line, end_expected = line;
    while (end_found < n && found[end_found] != '\n') end_found++;
    while (end_expected < expected->length && expected->at[end_expected] != '\n') end_expected++;
    return sh_fail(err, SH_ERR_UNSUPPORTED, "this state is not for this model, build and device: it says '%.*s', expected '%.*s'",
                   (int)sh_min_u64(end_found - line, 200), found + line, (int)sh_min_u64(end_expected - line, 200),
                   expected->at + line);
}

static enum sh_code get_identity(struct restoring *r, struct sh_error *err) {
    char magic[8];
    uint32_t head[2];
    enum sh_code code = get(&r->stream, magic, sizeof magic, err);
    if (code == SH_OK && memcmp(magic, MAGIC, sizeof magic) != 0)
        code = sh_fail(err, SH_ERR_FORMAT, "no file of state: it does not begin with '%s'", MAGIC);
    if (code == SH_OK) code = get(&r->stream, head, sizeof head, err);
    if (code != SH_OK) return code;
    if (head[0] != VERSION)
        return sh_fail(err, SH_ERR_UNSUPPORTED, "a file of state of version %u, expected %u", head[0], VERSION);
    if (head[1] > MAX_IDENTITY)
        return sh_fail(err, SH_ERR_FORMAT, "a file of state with an identity of %u bytes, expected at most %u", head[1],
                       MAX_IDENTITY);
    char *found = sh_calloc((uint64_t)head[1] + 1, 1);
    struct text expected = {0};
    code = found != NULL ? make_identity(r->c, &expected, err) : sh_fail(err, SH_ERR_NO_MEMORY, "no memory to read state");
    if (code == SH_OK) code = get(&r->stream, found, head[1], err);
    if (code == SH_OK && (head[1] != expected.length || memcmp(found, expected.at, head[1]) != 0))
        code = tell_difference(found, head[1], &expected, err);
    free(found);
    free(expected.at);
    return code;
}

/* Compares what is left of the file with what its header asks for. */
static enum sh_code check_length(const struct restoring *r, struct sh_error *err) {
    struct stat status;
    const off_t at = lseek(r->stream.fd, 0, SEEK_CUR);
    if (at < 0 || fstat(r->stream.fd, &status) != 0 || !S_ISREG(status.st_mode))
        return sh_fail(err, SH_ERR_INVALID, "state is read from a regular file, which this is not");
    const uint64_t n = (uint64_t)r->n_pages * SH_PAGE_TOKENS * 5 + stored_bytes(r->c, r->n_pages) + DIGEST_BYTES;
    if (status.st_size < at || (uint64_t)(status.st_size - at) < n)
        return sh_fail(err, SH_ERR_FORMAT, "a file of state has %lld bytes left, expected %llu for %u tokens",
                       (long long)(status.st_size - at), (unsigned long long)n, r->n_pages * SH_PAGE_TOKENS);
    return SH_OK;
}

/* Up to the pages; tokens and roles are checked. */
static enum sh_code get_header(struct restoring *r, struct sh_error *err) {
    const struct sh_context *c = r->c;
    uint32_t counts[2];
    sh_digest_begin(&r->stream.digest);
    enum sh_code code = get_identity(r, err);
    if (code == SH_OK) code = get(&r->stream, counts, sizeof counts, err);
    if (code != SH_OK) return code;
    const uint32_t n = counts[0];
    if (n == 0 || n % SH_PAGE_TOKENS != 0 || n > c->model->spec.context_length || counts[1] != 0)
        return sh_fail(err, SH_ERR_FORMAT, "a file of state of %u tokens, expected pages of %d up to the context of %u", n,
                       SH_PAGE_TOKENS, c->model->spec.context_length);
    if (r->n_pages != 0 && r->n_pages != n / SH_PAGE_TOKENS) /* the second time through */
        return sh_fail(err, SH_ERR_FORMAT, "a file of state changed while it was read");
    r->n_pages = n / SH_PAGE_TOKENS;
    code = check_length(r, err);
    if (code != SH_OK) return code;
    if (r->tokens == NULL) r->tokens = sh_calloc(n, sizeof *r->tokens);
    if (r->roles == NULL) r->roles = sh_calloc(n, sizeof *r->roles);
    if (r->tokens == NULL || r->roles == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for %u tokens of state", n);
    code = get(&r->stream, r->tokens, (uint64_t)n * sizeof *r->tokens, err);
    if (code == SH_OK) code = get(&r->stream, r->roles, n, err);
    for (uint32_t i = 0; i < n && code == SH_OK; i++)
        if (r->tokens[i] < 0 || (uint32_t)r->tokens[i] >= c->model->spec.n_vocab || r->roles[i] > SH_ROLE_GENERATED)
            code = sh_fail(err, SH_ERR_FORMAT,
                           "a file of state has token %d of role %u at position %u, expected 0 to %u, and 0 or 1", r->tokens[i],
                           r->roles[i], i, c->model->spec.n_vocab - 1);
    return code;
}

static enum sh_code check_digest(struct restoring *r, struct sh_error *err) {
    uint64_t expected[2], found[2];
    sh_digest_end(&r->stream.digest, expected);
    const enum sh_code code = get(&r->stream, found, sizeof found, err);
    if (code != SH_OK) return code;
    if (memcmp(expected, found, sizeof found) != 0)
        return sh_fail(err, SH_ERR_FORMAT, "a file of state is damaged: its digest is %016llx%016llx, expected %016llx%016llx",
                       (unsigned long long)found[0], (unsigned long long)found[1], (unsigned long long)expected[0],
                       (unsigned long long)expected[1]);
    return SH_OK;
}

/* The first time through: nothing is taken. */
static enum sh_code verify(struct restoring *r, struct sh_error *err) {
    enum sh_code code = get_header(r, err);
    if (code != SH_OK) return code;
    if (r->n_pages > r->c->prefix.most_idle)
        return sh_fail(err, SH_ERR_NO_PAGES, "a state of %u tokens, this context keeps %u for reuse", r->n_pages * SH_PAGE_TOKENS,
                       r->c->prefix.most_idle * SH_PAGE_TOKENS);
    r->buffer = sh_alloc_aligned(largest_page(r->c));
    r->nodes = sh_calloc(r->n_pages, sizeof *r->nodes);
    r->is_new = sh_calloc(r->n_pages, sizeof *r->is_new);
    const uint64_t n_held = (uint64_t)r->n_pages * r->c->n_groups;
    r->held = sh_calloc(n_held, sizeof *r->held);
    r->given = sh_calloc(n_held, sizeof *r->given);
    if (r->buffer == NULL || r->nodes == NULL || r->is_new == NULL || r->held == NULL || r->given == NULL)
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory to restore %u tokens", r->n_pages * SH_PAGE_TOKENS);
    memset(r->held, 0xff, n_held * sizeof *r->held);
    const uint64_t most = largest_page(r->c);
    for (uint64_t left = stored_bytes(r->c, r->n_pages), n; left > 0 && code == SH_OK; left -= n) {
        n = sh_min_u64(left, most);
        code = get(&r->stream, r->buffer, n, err);
    }
    return code == SH_OK ? check_digest(r, err) : code;
}

/* One page of one group, from every device's part of it; into `page`, or nowhere. */
static enum sh_code get_page(struct restoring *r, uint32_t group, uint32_t page, struct sh_error *err) {
    struct sh_context *c = r->c;
    enum sh_code code = SH_OK;
    for (uint32_t d = 0; d < c->model->n_devices && code == SH_OK; d++) {
        const uint64_t bytes = page_bytes(c, d, group);
        if (bytes == 0) continue;
        code = get(&r->stream, r->buffer, bytes, err);
        if (code == SH_OK && page != SH_NONE)
            code = sh_context_executor(c, d)->page_write(c->exec[d], group, page, r->buffer, err);
        if (code == SH_ERR_DEVICE_LOST) c->lost = true;
    }
    return code;
}

/* The node behind those so far, and what the file has for it. */
static enum sh_code add_node(struct restoring *r, struct sh_error *err) {
    struct sh_context *c = r->c;
    struct sh_prefix_index *x = &c->prefix;
    const uint32_t i = r->n_nodes, parent = i > 0 ? r->nodes[i - 1] : SH_NONE;
    const int32_t *tokens = r->tokens + (size_t)i * SH_PAGE_TOKENS;
    const uint8_t *roles = r->roles + (size_t)i * SH_PAGE_TOKENS;
    r->is_new[i] = sh_prefix_find(x, parent, r->salt, tokens, roles) == SH_NONE;
    const uint32_t node = sh_prefix_add(x, parent, r->salt, tokens, roles);
    if (node == SH_NONE) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the index of a state");
    sh_prefix_enter(x, node); /* so that it stays while room is made */
    r->nodes[r->n_nodes++] = node;
    for (uint32_t g = 0; g < c->n_groups; g++) {
        if (!is_stored(c, g, i, r->n_pages)) continue;
        const size_t at = (size_t)i * c->n_groups + g;
        const bool missing = sh_prefix_page(x, node, g) == SH_NONE;
        enum sh_code code = missing ? sh_context_make_room(c, g, err) : SH_OK;
        if (code != SH_OK) return code;
        if (missing) {
            r->held[at] = sh_page_take(&c->pools[g]);
            r->given[at] = true;
            sh_prefix_give(x, node, g, r->held[at]);
        } else {
            r->held[at] = sh_prefix_page(x, node, g);
            sh_page_share(&c->pools[g], r->held[at]);
        }
        code = get_page(r, g, missing ? r->held[at] : SH_NONE, err);
        if (code != SH_OK) return code;
    }
    return SH_OK;
}

/* Nothing is held any more; if it failed, nothing new stays. */
static void let_go(struct restoring *r, bool well) {
    struct sh_context *c = r->c;
    for (uint32_t i = r->n_nodes; i > 0; i--) {
        const uint32_t node = r->nodes[i - 1];
        for (uint32_t g = 0; g < c->n_groups; g++) {
            const size_t at = (size_t)(i - 1) * c->n_groups + g;
            if (r->held[at] == SH_NONE) continue;
            sh_page_release(&c->pools[g], r->held[at]);
            if (!well && r->given[at]) sh_prefix_drop_page(&c->prefix, node, g);
        }
        sh_prefix_leave(&c->prefix, node);
        if (!well && r->is_new[i - 1]) sh_prefix_remove(&c->prefix, node);
    }
}

static enum sh_code take_over(struct restoring *r, struct sh_error *err) {
    enum sh_code code = get_header(r, err);
    while (code == SH_OK && r->n_nodes < r->n_pages) code = add_node(r, err);
    if (code == SH_OK) code = check_digest(r, err);
    let_go(r, code == SH_OK);
    sh_context_update_stats(r->c);
    return code;
}

enum sh_code sh_context_restore(struct sh_context *c, int fd, uint64_t salt, int32_t **tokens, uint32_t *n,
                                struct sh_error *err) {
    *tokens = NULL;
    *n = 0;
    enum sh_code code = check_idle(c, "restoring", err);
    if (code != SH_OK) return code;
    struct restoring r = {.c = c, .stream = {.fd = fd}, .salt = salt};
    const off_t begin = lseek(fd, 0, SEEK_CUR);
    if (begin < 0) return sh_fail(err, SH_ERR_INVALID, "state is read from a regular file, which this is not");
    code = verify(&r, err);
    if (code == SH_OK && lseek(fd, begin, SEEK_SET) != begin) code = sh_fail(err, SH_ERR_IO, "state cannot be read again");
    if (code == SH_OK) code = take_over(&r, err);
    if (code == SH_OK) {
        *tokens = r.tokens;
        *n = r.n_pages * SH_PAGE_TOKENS;
        r.tokens = NULL;
    } else {
        (void)lseek(fd, begin, SEEK_SET); /* as it was; where that is not possible the error stands anyway */
    }
    free(r.tokens);
    free(r.roles);
    free(r.buffer);
    free(r.nodes);
    free(r.is_new);
    free(r.held);
    free(r.given);
    return code;
}

/*
 * A GGUF file of any bytes: reader, file view, vocabulary, check for loading. Nothing of it may crash, hang, or grow beyond what
 * the file holds.
 */
#include "compute/gguf/gguf.h"
#include "compute/text/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Everything the file view can say about the first entries and all tensors. */
static void look(const struct sh_file *file) {
    struct sh_file_summary s;
    struct sh_file_value v;
    struct sh_file_tensor t;
    char text[64];
    sh_file_get_summary(file, &s);
    for (uint64_t i = 0; sh_file_get_value(file, i, &v); i++) {
        SH_ASSERT(v.key[0] != '\0');
        for (uint64_t e = 0; e < v.count && e < 16; e++) sh_file_value_text(file, i, e, text, sizeof text);
    }
    for (uint64_t i = 0; sh_file_get_tensor(file, i, &t); i++)
        SH_ASSERT(t.offset <= s.file_bytes && t.bytes <= s.file_bytes - t.offset);
}

/* Reads every tensor's first and last byte and looks each up by its name. */
static void read_tensors(const struct sh_gguf *g) {
    uint8_t byte;
    for (uint64_t i = 0; i < sh_gguf_tensor_count(g); i++) {
        const struct sh_tensor *t = sh_gguf_tensor_at(g, i);
        SH_ASSERT(sh_gguf_tensor(g, t->name) == t);
        if (t->bytes == 0) continue;
        SH_ASSERT(sh_gguf_read(g, t, 0, &byte, 1, NULL) == SH_OK);
        SH_ASSERT(sh_gguf_read(g, t, t->bytes - 1, &byte, 1, NULL) == SH_OK);
        SH_ASSERT(sh_gguf_read(g, t, t->bytes, &byte, 1, NULL) == SH_ERR_INVALID);
    }
    for (uint64_t i = 0; i < sh_gguf_kv_count(g); i++)
        SH_ASSERT(sh_gguf_find(g, sh_gguf_kv_at(g, i)->key) == sh_gguf_kv_at(g, i));
}

static void use_vocab(const struct sh_gguf *g) {
    static const char text[] = "Hello <s>w\xC3\xB6rld</s> 12\n\xFF";
    struct sh_vocab *vocab;
    int32_t *ids;
    size_t count, length;
    char *back;
    if (sh_vocab_create(g, &vocab, NULL) != SH_OK) return;
    if (sh_tokenize(vocab, text, sizeof text - 1, SH_TOKENIZE_SPECIAL | SH_TOKENIZE_PARSE, &ids, &count, NULL) == SH_OK) {
        if (sh_detokenize(vocab, ids, count, true, true, &back, &length, NULL) == SH_OK) free(back);
        free(ids);
    }
    sh_vocab_destroy(vocab);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[64];
    struct sh_error err;
    struct sh_gguf *g;
    struct sh_file *file;
    const int fd = memfd_create("fuzz", MFD_CLOEXEC);
    SH_ASSERT(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (sh_gguf_open(path, &g, &err) == SH_OK) {
        read_tensors(g);
        use_vocab(g);
        sh_gguf_close(g);
    } else {
        SH_ASSERT(g == NULL && err.code != SH_OK && err.message[0] != '\0');
    }
    if (sh_file_open(path, &file, &err) == SH_OK) {
        look(file);
        sh_file_check(file, &err);
        sh_file_close(file);
    }
    close(fd);
    return 0;
}

#include "tests/unit/chatvocab.h"

#include "tests/unit/shared.h"

#include "compute/gguf/write.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_TOKENS = 1024 };

struct sh_vocab *chatvocab_create(const char *name, const char *const *control, const struct chatvocab_template *templates,
                                  uint32_t n_templates) {
    static char bytes[256][8];
    struct sh_str tokens[MAX_TOKENS] = {{"<unk>", 5}, {"<s>", 3}, {"</s>", 4}};
    int32_t types[MAX_TOKENS] = {2, 3, 3};
    float scores[MAX_TOKENS] = {0};
    uint32_t n = 3;
    for (unsigned b = 0; b < 256; b++) {
        snprintf(bytes[b], sizeof bytes[b], "<0x%02X>", b);
        tokens[n] = (struct sh_str){bytes[b], 6};
        types[n++] = 6;
    }
    for (uint32_t i = 0; control != NULL && control[i] != NULL; i++) {
        assert_true(n < MAX_TOKENS);
        tokens[n] = (struct sh_str){control[i], strlen(control[i])};
        types[n++] = 3;
    }
    struct sh_gguf_writer *w;
    struct sh_error err;
    struct sh_vocab *v;
    const char *path = test_scratch(name);
    assert_int_equal(sh_gguf_writer_create(path, 3, 0, &w, &err), SH_OK);
    sh_gguf_add_str(w, "general.architecture", "llama", 5);
    sh_gguf_add_str(w, "tokenizer.ggml.model", "llama", 5);
    sh_gguf_add_strings(w, "tokenizer.ggml.tokens", tokens, n);
    sh_gguf_add_array(w, "tokenizer.ggml.scores", SH_VALUE_F32, scores, n);
    sh_gguf_add_array(w, "tokenizer.ggml.token_type", SH_VALUE_I32, types, n);
    sh_gguf_add_u32(w, "tokenizer.ggml.bos_token_id", CHATVOCAB_BOS);
    sh_gguf_add_u32(w, "tokenizer.ggml.eos_token_id", CHATVOCAB_EOS);
    sh_gguf_add_bool(w, "tokenizer.ggml.add_bos_token", true);
    sh_gguf_add_bool(w, "tokenizer.ggml.add_space_prefix", false);
    for (uint32_t i = 0; i < n_templates; i++) {
        char key[128] = "tokenizer.chat_template";
        if (templates[i].name != NULL) snprintf(key, sizeof key, "tokenizer.chat_template.%s", templates[i].name);
        sh_gguf_add_str(w, key, templates[i].text, templates[i].length != 0 ? templates[i].length : strlen(templates[i].text));
    }
    assert_int_equal(sh_gguf_writer_begin(w, &err), SH_OK);
    assert_int_equal(sh_gguf_writer_finish(w, &err), SH_OK);
    sh_gguf_writer_destroy(w);
    if (sh_vocab_open(path, &v, &err) != SH_OK) fail_msg("%s", err.message);
    return v;
}

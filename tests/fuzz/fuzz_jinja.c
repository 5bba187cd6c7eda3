/* fuzz_jinja.c - any bytes as a chat template, up to a NUL; what is behind it are its variables, or those of a small chat. */
#include "compute/engine.h"

#include <stdlib.h>
#include <string.h>

static const char chat[] =
    "{\"messages\": [{\"role\": \"user\", \"content\": \"a \\u00e9\"}, {\"role\": \"assistant\", \"content\": null, "
    "\"tool_calls\": [{\"name\": \"f\", \"arguments\": {\"x\": [1, 2.5, true]}}]}], \"tools\": null, "
    "\"add_generation_prompt\": true, \"bos_token\": \"<s>\", \"eos_token\": \"</s>\"}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *nul = memchr(data, 0, size);
    const size_t length = nul ? (size_t)(nul - data) : size;
    struct sh_template *t;
    struct sh_error err = {0};
    if (sh_template_create((const char *)data, length, &t, &err)) {
        if (!err.message[0]) abort();
        return 0;
    }
    char *text;
    size_t rendered;
    const char *variables = nul ? (const char *)nul + 1 : chat;
    const size_t n = nul ? size - length - 1 : sizeof chat - 1;
    const enum sh_code code = sh_template_render(t, variables, n, "2025-02-21T14:30:05", &text, &rendered, &err);
    if (code == SH_OK ? !text || text[rendered] != 0 : code != err.code) abort();
    free(text);
    sh_template_destroy(t);
    return 0;
}

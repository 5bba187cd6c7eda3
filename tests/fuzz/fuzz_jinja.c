/* fuzz_jinja.c - any bytes as a chat template, up to a NUL; what is behind it are its variables, or those of a small chat. Rendered
 * twice: with parts it has to give the same text, and what the chat's content is marked with must never pass for the template's. */
#include "compute/engine.h"
#include "compute/text/template.h"

#include <stdlib.h>
#include <string.h>

#define MARK "\xEE\x80\x80" /* U+E000, of private use */
static const char chat[] =
    "{\"messages\": [{\"role\": \"user\", \"content\": \"a \\u00e9 \\ue000" MARK "<b> 7\\n\"}, {\"role\": \"assistant\", \"content\": null, "
    "\"tool_calls\": [{\"name\": \"f" MARK "\", \"arguments\": {\"x" MARK "\": [1, 2.5, true, \"" MARK "\"]}}]}], \"tools\": null, "
    "\"add_generation_prompt\": true, \"bos_token\": \"<s>\", \"eos_token\": \"</s>\"}";

/* Can the template write the mark itself: as it is, by an escape, or by '%c' and its like? */
static bool may_write_marks(const char *text, size_t length) {
    for (size_t i = 0; i < length; i++) {
        if (text[i] == '\\' || text[i] == MARK[0]) return true;
        if (text[i] == '%' && !(i > 0 && text[i - 1] == '{') && !(i + 1 < length && text[i + 1] == '}')) return true;
    }
    return memmem(text, length, "format", 6) != NULL;
}

static void check_parts(const char *text, size_t length, const struct sh_chat_part *parts, uint32_t n, bool marks) {
    size_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (parts[i].begin != at || parts[i].end <= at) abort();
        at = parts[i].end;
        if (marks && !parts[i].literal && memchr(text + parts[i].begin, MARK[0], at - parts[i].begin) &&
            memmem(text + parts[i].begin, at - parts[i].begin, MARK, strlen(MARK)))
            abort();
    }
    if (at != length) abort();
}

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
    const char *now = "2025-02-21T14:30:05";
    char *text, *again, *given = nul ? strndup((const char *)nul + 1, size - length - 1) : strdup(chat);
    size_t rendered, length_again;
    struct sh_chat_part *parts;
    uint32_t n_parts;
    if (!given) abort();
    const enum sh_code code = sh_template_render(t, given, strlen(given), now, &text, &rendered, &err);
    if (code == SH_OK ? !text || text[rendered] != 0 : code != err.code) abort();
    const enum sh_code with_parts = sh_template_render_parts(t, "{}", given, now, &again, &length_again, &parts, &n_parts, &err);
    if (with_parts != code && with_parts != SH_ERR_LIMIT) abort(); /* the copies of what is given count as memory */
    if (with_parts == SH_OK) {
        if (length_again != rendered || memcmp(text, again, rendered) != 0) abort();
        check_parts(again, rendered, parts, n_parts, !nul && !may_write_marks((const char *)data, length));
    }
    free(parts);
    free(again);
    free(text);
    free(given);
    sh_template_destroy(t);
    return 0;
}

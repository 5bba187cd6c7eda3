#include "tests/unit/expect_ids.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

void expect_ids(const struct sh_vocab *v, const char *text, size_t length, uint32_t flags, const int32_t *want, size_t n) {
    int32_t *ids;
    size_t count;
    struct sh_error err;
    assert_int_equal(sh_tokenize(v, text, length, flags, &ids, &count, &err), SH_OK);
    bool same = count == n && (n == 0 || memcmp(ids, want, n * sizeof *want) == 0);
    for (size_t i = 0; !same && i < count; i++) print_message(" %d", ids[i]);
    free(ids);
    if (!same) fail_msg("\"%.*s\" flags %u", (int)length, text, flags);
}

/*
 * expect_ids.h - for tests of tokenizers: a text becomes these tokens, or the test fails and says which they were.
 */
#ifndef SHIMMY_TESTS_EXPECT_IDS_H
#define SHIMMY_TESTS_EXPECT_IDS_H

#include "compute/engine.h"

void expect_ids(const struct sh_vocab *v, const char *text, size_t length, uint32_t flags, const int32_t *want, size_t n);

#define EXPECT(v, text, flags, ...)                                                                                              \
    do {                                                                                                                         \
        const int32_t want_[] = {__VA_ARGS__};                                                                                   \
        expect_ids(v, text, strlen(text), flags, want_, sizeof want_ / sizeof *want_);                                           \
    } while (0)

#endif

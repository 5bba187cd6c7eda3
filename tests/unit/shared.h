/*
 * shared.h - where tests find reference data, and where they may write. Linked into every unit test.
 *
 * Reference data lies in $SHIMMY_SHARED, else in ../shared (tests run with the repository's root as working directory). Data that
 * is not there skips the test and says so by name, unless REQUIRE_SHARED=1: then it fails the test.
 */
#ifndef SHIMMY_TESTS_SHARED_H
#define SHIMMY_TESTS_SHARED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Full path of a file or folder of the reference data, e.g. test_shared("parity/llama-F32.gguf"). NULL where it is absent (under
 * REQUIRE_SHARED=1 the running test fails instead of returning). Lent: the 64th call from here reuses the buffer. */
const char *test_shared(const char *relative);

/* The same, but never NULL: prints "SKIP <test>: <why>" and leaves the running cmocka test as skipped. */
#define TEST_SHARED(relative) test_shared_or_skip(__func__, (relative))
const char *test_shared_or_skip(const char *test, const char *relative);

/* Skips the running test for another reason than reference data (memory, device): prints the line and does not return. */
#define TEST_SKIP(...) test_skip(__func__, __VA_ARGS__)
_Noreturn void test_skip(const char *test, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Path of a file in a folder of this process, made on first use and removed with its files at exit. Lent as above. */
const char *test_scratch(const char *name);

/* Does it lie in that folder? What tests write must: a lent path that was kept for too long is another's. */
bool test_is_scratch(const char *path);

/* Writes a whole file (fails the running test if it cannot). */
void test_write_file(const char *path, const void *data, size_t bytes);
/* Reads a whole file; malloc'd, fails the running test if it cannot. */
void *test_read_file(const char *path, size_t *bytes);

/* Deterministic random numbers for tests: splitmix64. */
struct test_rng {
    uint64_t state;
};
uint64_t test_random(struct test_rng *rng);
float test_uniform(struct test_rng *rng, float low, float high);
float test_normal(struct test_rng *rng); /* mean 0, deviation 1 */

#endif

/*
 * core.h - for tests that run models: devices by name, a model with a context on them, and the two loops every such test needs.
 *
 * $SHIMMY_TEST_DEVICES lists the devices under test, separated by commas: "cpu-scalar", "cpu-avx2" and so on are the CPU with
 * that instruction set, "cpu" its best; anything else is a part of a Vulkan device's name, such as "llvmpipe". Default: the CPU
 * with each instruction set it has, and the Vulkan device that $SHIMMY_TEST_VULKAN names (llvmpipe); without one a line says SKIP.
 */
#ifndef SHIMMY_TESTS_CORE_H
#define SHIMMY_TESTS_CORE_H

#include "compute/engine.h"

#define CORE_MAX_DEVICES 8
/* The names in $SHIMMY_TEST_DEVICES (with commas; "cpu-scalar", "cpu-avx2", or a part of a Vulkan device's name), by default
 * every instruction set of the CPU executor here. How many; lent. */
uint32_t core_devices(const char *names[CORE_MAX_DEVICES]);
/* Opens a device by such a name; fails the running test if that is not possible. */
/* "cpu", "cpu-avx2", a part of a Vulkan device's name, or that with a tier: "llvmpipe:intdot". */
struct sh_device *core_open_device(const char *name);

struct core_model {
    struct sh_device *devices[4];
    struct sh_model *model;
    struct sh_context *context;
    uint32_t n_vocab;
    /* Which rows core_prefill asks logits of, where it is to ask for all; NULL: every one. The others' are 0. */
    bool (*observe)(uint32_t position);
};
/* One device, everything default but what *context says (NULL: default). Fails the test on any error. */
void core_load(struct core_model *m, const char *device, const char *path, const struct sh_context_params *context);
/* The layers in equal shares on the devices named, separated by '+'. */
void core_load_split(struct core_model *m, const char *devices, const char *path, const struct sh_context_params *context);
void core_unload(struct core_model *m);

/* What this process has computed so far, in seconds of one core: what a part of a long test costs, whatever else the machine does. */
double core_cpu_seconds(void);

/* Writes a small llama of F32 weights and 260 tokens to a scratch file of that name, whose path is put into `path`. */
void core_write_small(char *path, size_t cap, const char *name);

/* cmocka's assert_int_equal(code, SH_OK), with the error's message. */
#define core_ok(code, err) core_check_ok((code), (err), __FILE__, __LINE__)
void core_check_ok(enum sh_code code, const struct sh_error *err, const char *file, int line);

uint32_t core_sequence(struct core_model *m); /* a new one */
/* Feeds tokens [n] to a sequence as prompt rows in chunks of at most `chunk` (0 = all); asks for the logits of every row if
 * all_logits is not NULL ([n][n_vocab]), else those of the last row into last_logits ([n_vocab], may be NULL). */
void core_prefill(struct core_model *m, uint32_t sequence, const int32_t *tokens, uint32_t n, uint32_t chunk, float *all_logits,
                  float *last_logits);
/* One row in, its logits out (either may be NULL); returns the token that the sequence's sampler chose. */
int32_t core_step(struct core_model *m, uint32_t sequence, int32_t token, enum sh_role role, float *logits);

#endif

/*
 * parity.h - the vectors of ../shared/parity: which there are, what one holds, and how far an executor may be from it.
 *
 * The reference computes with float32 activations; its README measures 1e-4 between two such implementations and allows 1e-3. The
 * scalar executor is held to the former, other executors with float activations to the latter. An executor that rounds
 * activations to 8 bits for quantised weights differs as the reference's own kernels do: there the README's limits for such engines
 * hold. Greedy tokens must agree wherever the gap between the best two logits exceeds twice the allowed difference of one (both
 * may move); where experts may flip (8-bit activations) they need not.
 */
#ifndef SHIMMY_TESTS_PARITY_H
#define SHIMMY_TESTS_PARITY_H

#include "tests/unit/core.h"

#include <jansson.h>

struct parity_entry {
    const char *name;   /* "llama-F32": the .gguf and the .json */
    const char *family; /* of layouts that share a builder */
    bool brief;         /* its family's or its type's one in the short run */
};
extern const struct parity_entry parity_table[];
extern const uint32_t parity_count;
bool parity_full(void); /* SHIMMY_TEST_FULL=1 */
/* Everything in a full run, else the brief ones. */
bool parity_wanted(const struct parity_entry *entry);

struct parity {
    const char *name, *quant;
    char path[512]; /* of the model */
    json_t *json;
    const json_t *prompts;
    uint32_t n_prompts;
    bool embedding, quantised, experts;
};
/* Skips the running test where the data is absent. */
void parity_open(struct parity *p, const char *name);
void parity_close(struct parity *p);
/* Of prompt i; malloc'd. */
int32_t *parity_tokens(const struct parity *p, uint32_t i, uint32_t *n);

struct parity_tolerance {
    double largest, rms, median; /* of a log-prob's difference; INFINITY: not judged by it */
    double greedy_gap;           /* greedy tokens must agree at larger gaps */
    double cosine;               /* of embeddings: at least */
};
struct parity_tolerance parity_tolerance_of(const char *tier, const struct parity *p);

struct parity_deviation {
    double largest, sum;
    float *all;
    uint32_t n, cap;
};
double parity_rms(const struct parity_deviation *d);
double parity_median(struct parity_deviation *d); /* sorts */

/* Loads the model with an f32 cache and max_outputs 512 on a device that stays the caller's. SH_ERR_UNSUPPORTED is returned, with its
 * message; other errors fail the test. */
enum sh_code parity_load(const struct parity *p, struct sh_device *device, struct core_model *m, struct sh_error *err);
void parity_unload(struct core_model *m);
/* Runs the first n_prompts prompts (5, 37 and 150 tokens long), as decoder or embedding. False beyond the tolerance: `why` says what
 * differs, by how much. */
bool parity_check(const struct parity *p, struct core_model *m, const char *device, uint32_t n_prompts, char why[256]);

#endif

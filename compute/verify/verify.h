/*
 * verify.h - the gates of sh_verify, and what they share. One thread.
 */
#ifndef SHIMMY_VERIFY_H
#define SHIMMY_VERIFY_H

#include "compute/state/context.h"
#include "compute/verify/reference.h"

struct sh_verifier {
    const struct sh_verify_params *params;
    const struct sh_gguf *gguf;
    struct sh_reference *reference; /* from gate OPS on */
    struct sh_model *model;         /* on the device */
    bool failed;
};

/* Hands a line on and notes a failure. passed is worst <= limit. */
void sh_verify_report(struct sh_verifier *v, struct sh_verify_line line);
enum sh_code sh_verify_progress(struct sh_verifier *v, enum sh_verify_gate gate, double fraction, struct sh_error *err);
/* Does the device round activations to 8 bits for weights of this type? */
bool sh_verify_rounds(const struct sh_device *device, uint32_t type);

/* A deviation's worst case; NaN is worse than anything. */
struct sh_worst {
    double value;
    uint64_t checked;
    char where[160];
};
/* Notes `value`; true if it is the worst so far, and *where should be written. */
bool sh_worst_note(struct sh_worst *w, double value);

enum sh_code sh_verify_weights(struct sh_verifier *v, struct sh_error *err);
enum sh_code sh_verify_ops(struct sh_verifier *v, struct sh_error *err);
enum sh_code sh_verify_decode(struct sh_verifier *v, struct sh_error *err);
enum sh_code sh_verify_logits(struct sh_verifier *v, struct sh_error *err);

/* The logits (of a model without them the hidden states) of the whole prompt on the device, [n_tokens][width], malloc'd; `chunk` tokens at
 * a time, in the given role. */
enum sh_code sh_verify_prompt(struct sh_verifier *v, uint32_t chunk, enum sh_role role, float **out, uint32_t *width,
                              struct sh_error *err);

#endif

/* The rotation table: struct sh_rope_spec says what it holds. */
#include "compute/model/spec.h"

#include <math.h>
#include <stdlib.h>

struct sh_rope_spec sh_rope_plain(uint32_t n_rot, double base) {
    return (struct sh_rope_spec){
        .base = base, .factor = 1, .extend = 1, .attention_factor = 1, .magnitude = 1, .extrapolation = 1, .n_rot = n_rot};
}

/* The (fractional) pair that turns `turns` times over the original context. */
static double pair_of_turns(const struct sh_rope_spec *r, double turns) {
    const double two_pi = 6.283185307179586476925286766559;
    return r->n_rot * log(r->original_context / (turns * two_pi)) / (2.0 * log(r->base));
}

float *sh_rope_table(const struct sh_rope_spec *r, const float *factors, uint32_t context) {
    const uint32_t pairs = r->n_rot / 2;
    uint64_t elements;
    if (!sh_mul_u64(context, r->n_rot, &elements)) return NULL;
    float *table = sh_calloc(elements, sizeof *table);
    double *theta = sh_calloc(pairs, sizeof *theta);
    if (table == NULL || theta == NULL) {
        free(table);
        free(theta);
        return NULL;
    }
    double low = 0, high = 0;
    if (r->scaling == SH_ROPE_YARN) {
        low = fmax(0.0, floor(pair_of_turns(r, r->beta_fast)));
        high = fmin(r->n_rot - 1.0, ceil(pair_of_turns(r, r->beta_slow)));
    }
    for (uint32_t i = 0; i < pairs; i++) {
        const double whole = pow(r->base, -2.0 * i / r->n_rot) / (factors != NULL ? (double)factors[i] : 1.0);
        double scaled = whole;
        if (r->scaling == SH_ROPE_LINEAR) scaled = whole / r->factor;
        if (r->scaling == SH_ROPE_YARN) {
            const double ramp = fmin(1.0, fmax(0.0, (i - low) / fmax(0.001, high - low))); /* 0: as trained, 1: interpolated */
            const double kept = (1.0 - ramp) * r->extrapolation;
            scaled = whole * kept + whole / r->factor * (1.0 - kept);
        }
        theta[i] = scaled / r->extend;
    }
    for (uint64_t p = 0; p < context; p++) {
        float *row = table + p * r->n_rot;
        for (uint32_t i = 0; i < pairs; i++) {
            const double angle = (double)p * theta[i];
            row[2 * i] = (float)(cos(angle) * r->magnitude);
            row[2 * i + 1] = (float)(sin(angle) * r->magnitude);
        }
    }
    free(theta);
    return table;
}

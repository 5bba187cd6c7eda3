/*
 * The rotation table. Pair i of n = n_rot turns by the angle position * theta_i, theta_i = base^(-2i/n) / factors_i.
 * Linear scaling divides positions by the factor. YaRN (Peng et al., 2023) does so only for pairs that turn less than beta_slow
 * times over the original context, not at all for those that turn more than beta_fast times, and ramps between; cos and sin are
 * multiplied by attention_factor * (1 + 0.1 ln factor).
 */
#include "compute/model/spec.h"

#include <math.h>
#include <stdlib.h>

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
    double magnitude = 1.0, low = 0, high = 0;
    if (r->scaling == SH_ROPE_YARN) {
        magnitude = r->attention_factor * (1.0 + 0.1 * log(r->factor));
        low = fmax(0.0, floor(pair_of_turns(r, r->beta_fast)));
        high = fmin(r->n_rot - 1.0, ceil(pair_of_turns(r, r->beta_slow)));
    }
    for (uint32_t i = 0; i < pairs; i++) {
        const double whole = pow(r->base, -2.0 * i / r->n_rot) / (factors != NULL ? (double)factors[i] : 1.0);
        double scaled = whole;
        if (r->scaling == SH_ROPE_LINEAR) scaled = whole / r->factor;
        if (r->scaling == SH_ROPE_YARN) {
            const double ramp = fmin(1.0, fmax(0.0, (i - low) / fmax(0.001, high - low))); /* 0: as trained, 1: interpolated */
            scaled = whole * (1.0 - ramp) + whole / r->factor * ramp;
        }
        theta[i] = scaled / r->extend;
    }
    for (uint64_t p = 0; p < context; p++) {
        float *row = table + p * r->n_rot;
        for (uint32_t i = 0; i < pairs; i++) {
            const double angle = (double)p * theta[i];
            row[2 * i] = (float)(cos(angle) * magnitude);
            row[2 * i + 1] = (float)(sin(angle) * magnitude);
        }
    }
    free(theta);
    return table;
}

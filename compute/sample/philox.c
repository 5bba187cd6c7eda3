/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and Gumbel noise from it. */
#include "compute/sample/sample.h"

#include "compute/glsl/draw.h"

void sh_philox4x32_10(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c[4] = {counter[0], counter[1], counter[2], counter[3]};
    uint32_t k[2] = {key[0], key[1]};
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c[0];
        const uint64_t p1 = (uint64_t)0xCD9E8D57u * c[2];
        const uint32_t next[4] = {(uint32_t)(p1 >> 32) ^ c[1] ^ k[0], (uint32_t)p1, (uint32_t)(p0 >> 32) ^ c[3] ^ k[1],
                                  (uint32_t)p0};
        memcpy(c, next, sizeof c);
        k[0] += 0x9E3779B9u; /* the golden ratio */
        k[1] += 0xBB67AE85u; /* sqrt(3) - 1 */
    }
    memcpy(out, c, sizeof c);
}

static uint32_t random_word(uint64_t seed, uint32_t choice, uint32_t position, uint32_t token, uint32_t purpose) {
    const uint32_t counter[4] = {choice, position, token / 4, purpose};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t words[4];
    sh_philox4x32_10(counter, key, words);
    return words[token % 4];
}

float sh_gumbel(uint64_t seed, uint32_t choice, uint32_t position, uint32_t token) {
    return sh_gumbel_of(random_word(seed, choice, position, token, 0));
}

float sh_uniform(uint64_t seed, uint32_t choice, uint32_t position) { return sh_unit(random_word(seed, choice, position, 0, 1)); }

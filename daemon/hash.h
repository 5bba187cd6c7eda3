/*
 * hash.h - an index over an array that its owner keeps: from a hash to the numbers of the elements that have it.
 *
 * The owner compares; two elements may have one hash. Elements are never taken out. Thread-safety: one thread at a time.
 */
#ifndef SHIMMYD_HASH_H
#define SHIMMYD_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct hash_index { /* zeroed: empty */
    struct hash_slot {
        uint64_t hash;
        uint32_t element; /* + 1; 0 is free */
    } *slots;
    uint32_t n_slots /* a power of two */, used;
};
bool hash_put(struct hash_index *index, uint64_t hash, uint32_t element); /* false: no memory */
/* The elements with that hash, one by one: *at begins as 0. False: no more. */
bool hash_next(const struct hash_index *index, uint64_t hash, uint32_t *at, uint32_t *element);
void hash_finish(struct hash_index *index);

/* FNV-1a of 64 bits, going on from `hash` (HASH_BEGIN at first). */
#define HASH_BEGIN 0xCBF29CE484222325ull
uint64_t hash_bytes(uint64_t hash, const void *data, size_t bytes);
uint64_t hash_text(const char *text);

/* SipHash-2-4 (Aumasson and Bernstein, 2012): who does not know the key can make no two texts of one hash. */
uint64_t hash_keyed(const uint64_t key[2], const void *data, size_t bytes);

#endif

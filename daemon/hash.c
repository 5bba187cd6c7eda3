/* hash.c - see hash.h: open addressing, at most half full. */
#include "daemon/hash.h"

#include "compute/base.h"

#include <stdlib.h>

uint64_t hash_bytes(uint64_t hash, const void *data, size_t bytes) {
    for (const unsigned char *at = data, *end = at + bytes; at < end; at++) hash = (hash ^ *at) * 0x100000001B3ull;
    return hash;
}

uint64_t hash_text(const char *text) { return hash_bytes(HASH_BEGIN, text, strlen(text)); }

static uint64_t rotate(uint64_t x, unsigned by) { return x << by | x >> (64 - by); }

static void sip_rounds(uint64_t v[4], unsigned rounds) {
    while (rounds-- > 0) {
        v[0] += v[1];
        v[2] += v[3];
        v[1] = rotate(v[1], 13) ^ v[0];
        v[3] = rotate(v[3], 16) ^ v[2];
        v[0] = rotate(v[0], 32) + v[3];
        v[2] += v[1];
        v[3] = rotate(v[3], 21) ^ v[0];
        v[1] = rotate(v[1], 17) ^ v[2];
        v[2] = rotate(v[2], 32);
    }
}

uint64_t hash_keyed(const uint64_t key[2], const void *data, size_t bytes) {
    uint64_t v[4] = {key[0] ^ 0x736F6D6570736575ull, key[1] ^ 0x646F72616E646F6Dull, key[0] ^ 0x6C7967656E657261ull, key[1] ^ 0x7465646279746573ull};
    const unsigned char *at = data;
    for (size_t done = 0; done <= bytes; done += 8) { /* the last word, also one of no bytes, ends in their number */
        const size_t n = bytes - done < 8 ? bytes - done : 8;
        uint64_t word = n < 8 ? (uint64_t)(bytes & 0xFF) << 56 : 0;
        for (size_t i = 0; i < n; i++) word |= (uint64_t)at[done + i] << (8 * i);
        v[3] ^= word;
        sip_rounds(v, 2);
        v[0] ^= word;
    }
    v[2] ^= 0xFF;
    sip_rounds(v, 4);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

static void place(struct hash_slot *slots, uint32_t n_slots, struct hash_slot slot) {
    uint32_t i = (uint32_t)(slot.hash ^ slot.hash >> 32) & (n_slots - 1);
    while (slots[i].element) i = (i + 1) & (n_slots - 1);
    slots[i] = slot;
}

bool hash_put(struct hash_index *index, uint64_t hash, uint32_t element) {
    if (index->used * 2 >= index->n_slots) {
        const uint32_t n = index->n_slots ? index->n_slots * 2 : 64;
        struct hash_slot *slots = n > index->n_slots ? sh_calloc(n, sizeof *slots) : NULL;
        if (!slots) return false;
        for (uint32_t i = 0; i < index->n_slots; i++)
            if (index->slots[i].element) place(slots, n, index->slots[i]);
        free(index->slots);
        index->slots = slots;
        index->n_slots = n;
    }
    place(index->slots, index->n_slots, (struct hash_slot){hash, element + 1});
    index->used++;
    return true;
}

bool hash_next(const struct hash_index *index, uint64_t hash, uint32_t *at, uint32_t *element) {
    if (!index->n_slots) return false;
    const uint32_t first = (uint32_t)(hash ^ hash >> 32);
    for (;;) {
        const struct hash_slot *slot = &index->slots[(first + *at) & (index->n_slots - 1)];
        if (!slot->element) return false;
        ++*at;
        if (slot->hash != hash) continue;
        *element = slot->element - 1;
        return true;
    }
}

void hash_finish(struct hash_index *index) {
    free(index->slots);
    *index = (struct hash_index){0};
}

/* hash.c - see hash.h: open addressing, at most half full. */
#include "daemon/hash.h"

#include "compute/base.h"

#include <stdlib.h>

uint64_t hash_bytes(uint64_t hash, const void *data, size_t bytes) {
    for (const unsigned char *at = data, *end = at + bytes; at < end; at++) hash = (hash ^ *at) * 0x100000001B3ull;
    return hash;
}

uint64_t hash_text(const char *text) { return hash_bytes(HASH_BEGIN, text, strlen(text)); }

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

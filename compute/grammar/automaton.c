#include "compute/grammar/automaton.h"

#include <stdlib.h>

enum {
    MAX_CONFIGS = 1 << 13, /* of one state */
    MAX_STEPS = 1 << 16,   /* of one closure */
    MAX_WORK = 1 << 23,    /* steps of closures (and edges looked at, 16 as one) in one operation: about a second */
    BLOCK = 1 << 16,       /* bytes */
};
static const uint64_t max_bytes = (uint64_t)256 << 20; /* within one operation; between them the grammar's own limit counts */

static uint32_t fail(struct sh_gr_automaton *a, enum sh_code code) {
    a->failed = code;
    return SH_GR_UNKNOWN;
}

static uint32_t mix(uint64_t h) {
    h *= 0xD6E8FEB86659FD93u;
    h ^= h >> 32;
    h *= 0xD6E8FEB86659FD93u;
    return (uint32_t)(h >> 32);
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

static void *take(struct sh_gr_automaton *a, size_t bytes) {
    bytes = (bytes + 7) & ~(size_t)7;
    if (a->blocks == NULL || a->blocks->size - a->blocks->used < bytes) {
        const size_t size = bytes > BLOCK ? bytes : BLOCK;
        struct sh_gr_block *block = a->bytes + size > max_bytes ? NULL : malloc(sizeof *block + size);
        if (block == NULL) {
            fail(a, a->bytes + size > max_bytes ? SH_ERR_LIMIT : SH_ERR_NO_MEMORY);
            return NULL;
        }
        *block = (struct sh_gr_block){a->blocks, 0, size};
        a->blocks = block;
        a->bytes += size;
    }
    void *at = (char *)a->blocks->data + a->blocks->used;
    a->blocks->used += bytes;
    return at;
}

static bool grow(struct sh_gr_automaton *a, void **array, uint32_t *capacity, uint32_t need, size_t element) {
    const uint32_t before = *capacity;
    if (need <= before) return true;
    if (a->bytes > max_bytes || !sh_grow(array, capacity, need, element)) {
        fail(a, a->bytes > max_bytes ? SH_ERR_LIMIT : SH_ERR_NO_MEMORY);
        return false;
    }
    a->bytes += (uint64_t)(*capacity - before) * element;
    return true;
}

static uint32_t *new_slots(struct sh_gr_automaton *a, uint32_t n) {
    uint32_t *slots = sh_calloc(n, sizeof *slots);
    if (slots == NULL) fail(a, SH_ERR_NO_MEMORY);
    return slots;
}

bool sh_gr_automaton_init(struct sh_gr_automaton *a, const struct sh_gr_program *program, uint32_t depth) {
    *a = (struct sh_gr_automaton){.program = program, .max_work = MAX_WORK};
    a->n_frame_slots = a->n_state_slots = a->n_seen_slots = 256;
    a->frame_slots = new_slots(a, a->n_frame_slots);
    a->state_slots = new_slots(a, a->n_state_slots);
    a->seen_slots = new_slots(a, a->n_seen_slots);
    a->levels = sh_calloc((uint64_t)depth + 1, sizeof *a->levels);
    if (a->frame_slots == NULL || a->state_slots == NULL || a->seen_slots == NULL || a->levels == NULL ||
        !grow(a, (void **)&a->frames, &a->frames_capacity, 64, sizeof *a->frames) ||
        !grow(a, (void **)&a->states, &a->states_capacity, 64, sizeof *a->states)) {
        sh_gr_automaton_finish(a);
        return false;
    }
    a->frames[0] = (struct sh_gr_frame){0};
    a->n_frames = 1;
    memset(a->states, 0, SH_GR_FIRST_STATE * sizeof *a->states);
    a->n_states = SH_GR_FIRST_STATE;
    return true;
}

void sh_gr_automaton_finish(struct sh_gr_automaton *a) {
    for (uint32_t i = SH_GR_FIRST_STATE; i < a->n_states; i++) sh_gr_mask_unref(a->states[i].mask);
    for (struct sh_gr_block *block = a->blocks, *next; block != NULL; block = next) {
        next = block->next;
        free(block);
    }
    free(a->frames);
    free(a->frame_slots);
    free(a->states);
    free(a->state_slots);
    free(a->set);
    free(a->todo);
    free(a->seen);
    free(a->loops);
    free(a->seen_slots);
    free(a->levels);
    *a = (struct sh_gr_automaton){0};
}

/* ---- frames ------------------------------------------------------------------------------------------------------ */

static uint32_t hash_frame(const struct sh_gr_frame *f) {
    return mix(((uint64_t)f->below << 32 | f->back) ^ (uint64_t)f->count * 0x9E3779B97F4A7C15u);
}

/* The number of this frame; SH_GR_BAD: failed. The bottom is never made. */
#define SH_GR_BAD UINT32_MAX
static uint32_t frame(struct sh_gr_automaton *a, uint32_t below, uint32_t back, uint32_t count) {
    const struct sh_gr_frame f = {below, back, count};
    uint32_t at = hash_frame(&f) & (a->n_frame_slots - 1);
    for (; a->frame_slots[at] != 0; at = (at + 1) & (a->n_frame_slots - 1)) {
        const struct sh_gr_frame *have = &a->frames[a->frame_slots[at]];
        if (have->below == below && have->back == back && have->count == count) return a->frame_slots[at];
    }
    if (!grow(a, (void **)&a->frames, &a->frames_capacity, a->n_frames + 1, sizeof *a->frames)) return SH_GR_BAD;
    if ((a->n_frames + 1) * 2 > a->n_frame_slots) {
        uint32_t *slots = new_slots(a, a->n_frame_slots * 2);
        if (slots == NULL) return SH_GR_BAD;
        a->bytes += a->n_frame_slots * sizeof *slots;
        free(a->frame_slots);
        a->frame_slots = slots;
        a->n_frame_slots *= 2;
        for (uint32_t i = 1; i < a->n_frames; i++) {
            uint32_t to = hash_frame(&a->frames[i]) & (a->n_frame_slots - 1);
            while (slots[to] != 0) to = (to + 1) & (a->n_frame_slots - 1);
            slots[to] = i;
        }
        at = hash_frame(&f) & (a->n_frame_slots - 1);
        while (slots[at] != 0) at = (at + 1) & (a->n_frame_slots - 1);
    }
    a->frames[a->n_frames] = f;
    a->frame_slots[at] = a->n_frames;
    return a->n_frames++;
}

/* ---- closures ---------------------------------------------------------------------------------------------------- */

static uint32_t hash_step(const struct sh_gr_step *s) {
    return mix(((uint64_t)s->place << 32 | s->frame) ^ (uint64_t)s->count * 0x9E3779B97F4A7C15u);
}

/* Notes a step as done; false: it was before, or it failed. */
static bool first_time(struct sh_gr_automaton *a, struct sh_gr_step s) {
    uint32_t at = hash_step(&s) & (a->n_seen_slots - 1);
    for (; a->seen_slots[at] != 0; at = (at + 1) & (a->n_seen_slots - 1)) {
        const struct sh_gr_step *have = &a->seen[a->seen_slots[at] - 1];
        if (have->place == s.place && have->frame == s.frame && have->count == s.count) return false;
    }
    if (a->n_seen >= MAX_STEPS || ++a->work > a->max_work) return fail(a, SH_ERR_LIMIT);
    if (!grow(a, (void **)&a->seen, &a->seen_capacity, a->n_seen + 1, sizeof *a->seen)) return false;
    if ((a->n_seen + 1) * 2 > a->n_seen_slots) {
        uint32_t *slots = new_slots(a, a->n_seen_slots * 2);
        if (slots == NULL) return false;
        free(a->seen_slots);
        a->seen_slots = slots;
        a->n_seen_slots *= 2;
        for (uint32_t i = 0; i < a->n_seen; i++) {
            uint32_t to = hash_step(&a->seen[i]) & (a->n_seen_slots - 1);
            while (slots[to] != 0) to = (to + 1) & (a->n_seen_slots - 1);
            slots[to] = i + 1;
        }
        at = hash_step(&s) & (a->n_seen_slots - 1);
        while (slots[at] != 0) at = (at + 1) & (a->n_seen_slots - 1);
    }
    a->seen[a->n_seen] = s;
    a->seen_slots[at] = ++a->n_seen;
    return true;
}

/* Empties the set and the lists; the slots are cleared by what stands in them. */
static void begin_set(struct sh_gr_automaton *a) {
    if (a->n_seen * 4 > a->n_seen_slots) {
        memset(a->seen_slots, 0, a->n_seen_slots * sizeof *a->seen_slots);
    } else {
        for (uint32_t i = 0; i < a->n_seen; i++) {
            uint32_t at = hash_step(&a->seen[i]) & (a->n_seen_slots - 1);
            for (; a->seen_slots[at] != 0; at = (at + 1) & (a->n_seen_slots - 1)) a->seen_slots[at] = 0;
        }
    }
    a->n_seen = a->n_set = a->n_todo = a->n_loops = 0;
    a->set_can_end = false;
}

static bool later(struct sh_gr_automaton *a, uint32_t place, uint32_t frame_, uint32_t count) {
    if (!grow(a, (void **)&a->todo, &a->todo_capacity, a->n_todo + 1, sizeof *a->todo)) return false;
    a->todo[a->n_todo++] = (struct sh_gr_step){place, frame_, count};
    return true;
}

/* A place of the closure: into the set if bytes or tokens lead on, and on to where jumps and the way out lead. */
static bool visit_place(struct sh_gr_automaton *a, uint32_t place, uint32_t top) {
    const struct sh_gr_program *p = a->program;
    const struct sh_gr_place *at = &p->places[place];
    if (at->edge != at[1].edge || at->token != at[1].token) {
        if (a->n_set >= MAX_CONFIGS) return fail(a, SH_ERR_LIMIT);
        if (!grow(a, (void **)&a->set, &a->set_capacity, a->n_set + 1, sizeof *a->set)) return false;
        a->set[a->n_set++] = (struct sh_gr_config){place, top};
    }
    for (uint32_t i = at->jump; i < at[1].jump; i++) {
        const struct sh_gr_jump jump = p->jumps[i];
        uint32_t above = top;
        if (!(jump.into & SH_GR_REPEAT_BIT)) above = frame(a, top, jump.back, 0);
        if (above == SH_GR_BAD || !later(a, jump.into, above, 0)) return false;
    }
    if (!at->returns) return true;
    if (top == 0) {
        a->set_can_end = true;
        return true;
    }
    const struct sh_gr_frame f = a->frames[top];
    return later(a, f.back, f.below, f.count);
}

/* A repeat of which `count` items are done. One with fewer items done can do all that this one can, if neither lacks any: then
 * this one is left out. That also ends repeats whose items match nothing. */
static bool visit_loop(struct sh_gr_automaton *a, struct sh_gr_step s) {
    const struct sh_gr_loop *loop = &a->program->loops[s.place & ~SH_GR_REPEAT_BIT];
    if (s.count == SH_GR_RELATIVE) {
        a->set_can_end = true;
        const uint32_t again = frame(a, s.frame, s.place, SH_GR_RELATIVE);
        return again != SH_GR_BAD && later(a, loop->item, again, 0);
    }
    if (s.count >= loop->min) {
        for (uint32_t i = 0; i < a->n_loops; i++) {
            const struct sh_gr_step *done = &a->loops[i];
            if (done->place == s.place && done->frame == s.frame && done->count <= s.count && done->count >= loop->min)
                return true;
        }
        if (!grow(a, (void **)&a->loops, &a->loops_capacity, a->n_loops + 1, sizeof *a->loops)) return false;
        a->loops[a->n_loops++] = s;
        if (!later(a, loop->next, s.frame, 0)) return false;
    }
    if (s.count >= loop->max) return true;
    const uint32_t above = frame(a, s.frame, s.place, s.count + 1);
    return above != SH_GR_BAD && later(a, loop->item, above, 0);
}

/* Does all that is to be done: places first, then of the repeats the one with the fewest items done. */
static bool close_set(struct sh_gr_automaton *a) {
    while (a->n_todo > 0) {
        uint32_t pick = a->n_todo - 1;
        if (a->todo[pick].place & SH_GR_REPEAT_BIT) {
            for (uint32_t i = pick; i-- > 0;) {
                if (!(a->todo[i].place & SH_GR_REPEAT_BIT)) {
                    pick = i;
                    break;
                }
                if (a->todo[i].count < a->todo[pick].count) pick = i;
            }
        }
        const struct sh_gr_step s = a->todo[pick];
        a->todo[pick] = a->todo[--a->n_todo];
        if (!first_time(a, s)) {
            if (a->failed != SH_OK) return false;
            continue;
        }
        if (s.place & SH_GR_REPEAT_BIT ? !visit_loop(a, s) : !visit_place(a, s.place, s.frame)) return false;
    }
    return true;
}

static int compare_configs(const void *x, const void *y) {
    const struct sh_gr_config *a = x, *b = y;
    if (a->place != b->place) return a->place < b->place ? -1 : 1;
    return a->frame < b->frame ? -1 : a->frame > b->frame;
}

static void sort_set(struct sh_gr_automaton *a) {
    if (a->n_set > 16) {
        qsort(a->set, a->n_set, sizeof *a->set, compare_configs);
        return;
    }
    for (uint32_t i = 1; i < a->n_set; i++) {
        const struct sh_gr_config c = a->set[i];
        uint32_t k = i;
        for (; k > 0 && compare_configs(&a->set[k - 1], &c) > 0; k--) a->set[k] = a->set[k - 1];
        a->set[k] = c;
    }
}

static uint32_t hash_configs(const struct sh_gr_config *configs, uint32_t n, bool can_end) {
    uint64_t h = 0x9E3779B97F4A7C15u ^ can_end;
    for (uint32_t i = 0; i < n; i++) {
        h = (h ^ ((uint64_t)configs[i].place << 32 | configs[i].frame)) * 0xD6E8FEB86659FD93u;
        h ^= h >> 32;
    }
    return mix(h);
}

/* The state of the set under construction. */
static uint32_t end_set(struct sh_gr_automaton *a) {
    if (a->n_set == 0 && !a->set_can_end) return SH_GR_DEAD;
    sort_set(a);
    uint32_t at = hash_configs(a->set, a->n_set, a->set_can_end) & (a->n_state_slots - 1);
    for (; a->state_slots[at] != 0; at = (at + 1) & (a->n_state_slots - 1)) {
        const struct sh_gr_state *have = &a->states[a->state_slots[at]];
        if (have->n_configs == a->n_set && have->can_end == a->set_can_end &&
            (a->n_set == 0 || memcmp(have->configs, a->set, a->n_set * sizeof *a->set) == 0))
            return a->state_slots[at];
    }
    if (!grow(a, (void **)&a->states, &a->states_capacity, a->n_states + 1, sizeof *a->states)) return SH_GR_UNKNOWN;
    struct sh_gr_state s = {.n_configs = a->n_set, .can_end = a->set_can_end};
    const size_t row = a->program->n_classes * sizeof *s.row, configs = a->n_set * sizeof *a->set;
    s.row = take(a, row);
    s.configs = s.row != NULL ? take(a, configs) : NULL;
    if (s.configs == NULL) return SH_GR_UNKNOWN;
    memset(s.row, 0, row);
    if (configs > 0) memcpy(s.configs, a->set, configs);
    if ((a->n_states + 1) * 2 > a->n_state_slots) {
        uint32_t *slots = new_slots(a, a->n_state_slots * 2);
        if (slots == NULL) return SH_GR_UNKNOWN;
        a->bytes += a->n_state_slots * sizeof *slots;
        free(a->state_slots);
        a->state_slots = slots;
        a->n_state_slots *= 2;
        for (uint32_t i = SH_GR_FIRST_STATE; i < a->n_states; i++) {
            const struct sh_gr_state *have = &a->states[i];
            uint32_t to = hash_configs(have->configs, have->n_configs, have->can_end) & (a->n_state_slots - 1);
            while (slots[to] != 0) to = (to + 1) & (a->n_state_slots - 1);
            slots[to] = i;
        }
        at = hash_configs(a->set, a->n_set, a->set_can_end) & (a->n_state_slots - 1);
        while (slots[at] != 0) at = (at + 1) & (a->n_state_slots - 1);
    }
    a->states[a->n_states] = s;
    a->state_slots[at] = a->n_states;
    return a->n_states++;
}

static uint32_t closed(struct sh_gr_automaton *a) { return close_set(a) ? end_set(a) : SH_GR_UNKNOWN; }

/* ---- steps ------------------------------------------------------------------------------------------------------- */

uint32_t sh_gr_start(struct sh_gr_automaton *a) {
    a->failed = SH_OK;
    begin_set(a);
    return later(a, a->program->start, 0, 0) ? closed(a) : SH_GR_UNKNOWN;
}

uint32_t sh_gr_state_at(struct sh_gr_automaton *a, uint32_t place, uint32_t top, uint32_t count) {
    a->failed = SH_OK;
    begin_set(a);
    return later(a, place, top, count) ? closed(a) : SH_GR_UNKNOWN;
}

uint32_t sh_gr_state_of_all(struct sh_gr_automaton *a, const struct sh_gr_config *configs, uint32_t n, bool can_end) {
    a->failed = SH_OK;
    begin_set(a);
    if (!grow(a, (void **)&a->set, &a->set_capacity, n, sizeof *a->set)) return SH_GR_UNKNOWN;
    for (uint32_t i = 0; i < n; i++) a->set[a->n_set++] = configs[i];
    a->set_can_end = can_end;
    return end_set(a);
}

uint32_t sh_gr_state_of(struct sh_gr_automaton *a, struct sh_gr_config config) {
    return sh_gr_state_of_all(a, &config, 1, false);
}

uint32_t sh_gr_frame_of(struct sh_gr_automaton *a, uint32_t below, uint32_t back, uint32_t count) {
    a->failed = SH_OK;
    return frame(a, below, back, count);
}

uint32_t sh_gr_step(struct sh_gr_automaton *a, uint32_t state, uint32_t byte_class) {
    const struct sh_gr_program *p = a->program;
    const uint8_t byte = p->member[byte_class];
    a->failed = SH_OK;
    begin_set(a);
    for (uint32_t i = 0; i < a->states[state].n_configs; i++) {
        const struct sh_gr_config c = a->states[state].configs[i];
        a->work += (p->places[c.place + 1].edge - p->places[c.place].edge) / 16;
        for (uint32_t e = p->places[c.place].edge; e < p->places[c.place + 1].edge; e++)
            if (sh_gr_set_has(&p->sets[p->edges[e].set], byte) && !later(a, p->edges[e].target, c.frame, 0)) return SH_GR_UNKNOWN;
    }
    const uint32_t to = a->n_todo > 0 ? closed(a) : SH_GR_DEAD;
    return a->states[state].row[byte_class] = to;
}

uint32_t sh_gr_step_token(struct sh_gr_automaton *a, uint32_t state, int32_t token, uint32_t beside) {
    const struct sh_gr_program *p = a->program;
    a->failed = SH_OK;
    begin_set(a);
    for (uint32_t i = 0; i < a->states[state].n_configs; i++) {
        const struct sh_gr_config c = a->states[state].configs[i];
        for (uint32_t e = p->places[c.place].token; e < p->places[c.place + 1].token; e++)
            if (p->tokens[e].token == token && !later(a, p->tokens[e].target, c.frame, 0)) return SH_GR_UNKNOWN;
    }
    if (a->n_todo == 0) return beside;
    if (beside != SH_GR_DEAD) { /* its configurations are closed: they go on as they are */
        const struct sh_gr_state *s = &a->states[beside];
        a->set_can_end = s->can_end;
        for (uint32_t i = 0; i < s->n_configs; i++)
            if (!later(a, s->configs[i].place, s->configs[i].frame, 0)) return SH_GR_UNKNOWN;
    }
    return closed(a);
}

int sh_gr_plain_behind(struct sh_gr_automaton *a, uint32_t loop, uint32_t below) {
    a->failed = SH_OK;
    begin_set(a);
    if (!later(a, a->program->loops[loop].next, below, 0) || !close_set(a)) return -1;
    for (uint32_t i = 0; i < a->n_set; i++)
        if (a->program->places[a->set[i].place].plain != SH_GR_PLAIN_NONE) return 1;
    return 0;
}

/* ---- beginning anew ---------------------------------------------------------------------------------------------- */

/* A frame of `from`, with those below it, from the bottom up. */
static uint32_t move_frame(struct sh_gr_automaton *to, const struct sh_gr_automaton *from, uint32_t top) {
    uint32_t n = 0;
    for (uint32_t f = top; f != 0; f = from->frames[f].below) n++;
    uint32_t *path = sh_calloc(n, sizeof *path);
    if (path == NULL) {
        fail(to, SH_ERR_NO_MEMORY);
        return SH_GR_BAD;
    }
    for (uint32_t f = top, i = n; f != 0; f = from->frames[f].below) path[--i] = f;
    uint32_t at = 0;
    for (uint32_t i = 0; i < n && at != SH_GR_BAD; i++)
        at = frame(to, at, from->frames[path[i]].back, from->frames[path[i]].count);
    free(path);
    return at;
}

uint32_t sh_gr_move_state(struct sh_gr_automaton *to, const struct sh_gr_automaton *from, uint32_t state) {
    const struct sh_gr_state *s = &from->states[state];
    to->failed = SH_OK;
    begin_set(to);
    to->set_can_end = s->can_end;
    if (!grow(to, (void **)&to->set, &to->set_capacity, s->n_configs, sizeof *to->set)) return SH_GR_UNKNOWN;
    for (uint32_t i = 0; i < s->n_configs; i++) {
        const uint32_t top = move_frame(to, from, s->configs[i].frame);
        if (top == SH_GR_BAD) return SH_GR_UNKNOWN;
        to->set[to->n_set++] = (struct sh_gr_config){s->configs[i].place, top};
    }
    return end_set(to);
}

/*
 * automaton.h - a compiled grammar, the sets of configurations that a text can stand in, and what a vocabulary keeps for masks.
 *
 * Program (compile.c; immutable). A *place* is a position in a rule. From it lead byte edges and token edges; jumps into
 * another rule (which comes back at a place) or into a repeat; and perhaps the way back out of the rule. Everything that needs
 * no stack (choices, unlimited repeats, calls with nothing behind them) is resolved when a place is made. Every place can reach
 * the end of its rule: what cannot is dropped at compile, so a text that stands in a place can always be finished.
 *
 * Automaton (automaton.c; under the grammar's lock). A *frame* is what remains to be done behind a rule: a place to come back
 * to, or a repeat with the number of items begun; frames are immutable, made once each, and name the frame below. A
 * configuration is a place with byte or token edges, and the frame on top of it. A *state* is a sorted set of configurations,
 * and whether the text may end. States are made when first met and numbered; their transitions, one per class of bytes that no
 * edge of the grammar tells apart, are filled in as they are asked for. Beyond a limit of memory all is dropped but the states
 * that matchers stand in, and begun anew.
 */
#ifndef SHIMMY_GRAMMAR_AUTOMATON_H
#define SHIMMY_GRAMMAR_AUTOMATON_H

#include "compute/grammar/expr.h"

#include <pthread.h>
#include <stdatomic.h>

/* ---- program ----------------------------------------------------------------------------------------------------- */

#define SH_GR_REPEAT_BIT 0x80000000u /* in jumps and frames: the number of a repeat, not a place */

struct sh_gr_edge {
    uint32_t set, target;
};
struct sh_gr_token_edge {
    int32_t token;
    uint32_t target;
};
struct sh_gr_jump {
    uint32_t into; /* place where the other rule begins, or a repeat's number with the bit */
    uint32_t back; /* place behind it; of a repeat: unused, it knows itself */
};

/* How "plain" characters (what stands for itself inside a JSON string) lead on from a place. */
enum sh_gr_plain {
    SH_GR_PLAIN_SOME,  /* anyhow */
    SH_GR_PLAIN_NONE,  /* no byte that begins one goes on */
    SH_GR_PLAIN_LOOP,  /* each leads, maybe among others, to a place from which each leads back to itself */
    SH_GR_PLAIN_ITEM,  /* each leads out of the rule and nowhere else, */
    SH_GR_PLAIN_MIXED, /* or some elsewhere too */
};

struct sh_gr_place { /* its edges are [first of this one, first of the next) */
    uint32_t edge, token, jump;
    bool returns;
    uint8_t plain;
};
struct sh_gr_loop { /* a repeat that counts; min is 0 where its items may match nothing */
    uint32_t min, max;
    uint32_t item, next; /* places */
};

struct sh_gr_program {
    struct sh_gr_place *places; /* [n_places + 1]; place 0 is the end of a rule */
    struct sh_gr_edge *edges;
    struct sh_gr_token_edge *tokens;
    struct sh_gr_jump *jumps;
    struct sh_gr_loop *loops;
    struct sh_gr_set *sets;
    uint32_t n_places, n_edges, n_tokens, n_jumps, n_loops, n_sets;
    uint32_t start;
    uint32_t n_classes;
    uint8_t class_of[256];
    uint8_t member[256]; /* [n_classes] a byte of each */
};

/* compile.c. The program belongs to the caller, who frees it with sh_gr_program_finish (also after a failure). */
enum sh_code sh_gr_program_init(struct sh_gr_program *program, const struct sh_gr *gr, sh_gr_expr root, uint32_t n_vocab,
                                struct sh_error *err);
void sh_gr_program_finish(struct sh_gr_program *program);

/* ---- a vocabulary's trie ----------------------------------------------------------------------------------------- */

struct sh_gr_trie_node { /* in preorder; node 0 is the root, depth 0 */
    uint32_t skip;       /* the node behind its descendants */
    int32_t token;       /* -1: none ends here; others with the same bytes: sh_gr_lexicon.same */
    uint16_t depth;
    uint8_t byte;
};
struct sh_gr_trie {
    struct sh_gr_trie_node *nodes;
    uint32_t n_nodes;
};

enum { SH_GR_SLICES = 32 };

/* What masks need of a vocabulary; immutable. Tokens of plain characters alone, up to SH_GR_SLICES of them, are in slices:
 * slices[k] are those of 1 to k characters. `other` holds the tokens that are in none. Control, unknown, unused, end tokens
 * and those without bytes are nowhere. */
struct sh_gr_lexicon {
    uint32_t n_tokens, n_words; /* words of 32 tokens */
    struct sh_gr_trie all, other;
    int32_t *same;                      /* [n_tokens] the next token with the same bytes, or -1 */
    uint64_t *in_trie;                  /* bit set of tokens */
    uint32_t *slices[SH_GR_SLICES + 1]; /* [0] unused */
    uint32_t slice_count[SH_GR_SLICES + 1];
    uint32_t depth;       /* of the deepest node */
    atomic_ullong *bytes; /* held by the automata and tables of all this vocabulary's grammars */
};
enum sh_code sh_gr_lexicon_create(const struct sh_vocab *vocab, struct sh_gr_lexicon **out, struct sh_error *err);
void sh_gr_lexicon_destroy(struct sh_gr_lexicon *lexicon);

/* ---- automaton --------------------------------------------------------------------------------------------------- */

enum { SH_GR_UNKNOWN = 0 /* a transition not computed yet; as a result: failed */, SH_GR_DEAD = 1, SH_GR_FIRST_STATE = 2 };

struct sh_gr_frame {
    uint32_t below;
    uint32_t back;  /* a place, or a repeat with the bit */
    uint32_t count; /* of a repeat: items begun */
};
struct sh_gr_config {
    uint32_t place, frame;
};
struct sh_gr_mask {
    uint32_t refs; /* the state's and those of the matchers that lent it */
    uint32_t count;
    int32_t only;
    uint32_t words[];
};
struct sh_gr_state {
    struct sh_gr_config *configs;
    uint32_t n_configs;
    bool can_end;
    uint32_t *row;           /* [n_classes] states */
    struct sh_gr_mask *mask; /* NULL: not made yet */
};
struct sh_gr_block { /* of memory that is freed as a whole */
    struct sh_gr_block *next;
    size_t used, size;
    uint64_t data[];
};

struct sh_gr_level { /* of a walk along the trie */
    uint32_t *row;
    uint32_t state, done;
    bool gate;
};
struct sh_gr_step { /* of a closure: a place or a repeat to go on from */
    uint32_t place, frame, count;
};

struct sh_gr_automaton {
    const struct sh_gr_program *program;
    struct sh_gr_frame *frames; /* [0] the bottom */
    uint32_t n_frames, frames_capacity;
    uint32_t *frame_slots, n_frame_slots;
    struct sh_gr_state *states; /* [0], [1] unused */
    uint32_t n_states, states_capacity;
    uint32_t *state_slots, n_state_slots;
    struct sh_gr_block *blocks;
    uint64_t bytes;          /* that all this holds, masks included */
    uint64_t work, max_work; /* since the operation began, which sets it to 0; beyond max_work it fails */
    enum sh_code failed;     /* of the last call that returned SH_GR_UNKNOWN */

    /* the set under construction, and the closure's lists */
    struct sh_gr_config *set;
    uint32_t n_set, set_capacity;
    bool set_can_end;
    struct sh_gr_step *todo, *seen, *loops;
    uint32_t n_todo, todo_capacity, n_seen, seen_capacity, n_loops, loops_capacity;
    uint32_t *seen_slots, n_seen_slots;
    struct sh_gr_level *levels; /* [depth of the trie + 1] */
};

bool sh_gr_automaton_init(struct sh_gr_automaton *a, const struct sh_gr_program *program, uint32_t depth);
void sh_gr_automaton_finish(struct sh_gr_automaton *a);

/* The state that a text begins in. SH_GR_UNKNOWN: it failed (a->failed). */
uint32_t sh_gr_start(struct sh_gr_automaton *a);
/* The state behind a byte of the class: SH_GR_DEAD if none may come, SH_GR_UNKNOWN if it failed. */
uint32_t sh_gr_step(struct sh_gr_automaton *a, uint32_t state, uint32_t byte_class);
/* The state of this one configuration alone. */
uint32_t sh_gr_state_of(struct sh_gr_automaton *a, struct sh_gr_config config);
/* The state of these configurations, which are in order; it can end if `can_end`. */
uint32_t sh_gr_state_of_all(struct sh_gr_automaton *a, const struct sh_gr_config *configs, uint32_t n, bool can_end);
/* The state that a text is in at a place, or at a repeat with `count` items done (SH_GR_RELATIVE: see tables), above a frame. */
uint32_t sh_gr_state_at(struct sh_gr_automaton *a, uint32_t place, uint32_t frame, uint32_t count);
/* The number of a frame; UINT32_MAX: failed. */
uint32_t sh_gr_frame_of(struct sh_gr_automaton *a, uint32_t below, uint32_t back, uint32_t count);
/* Behind the token's edges; `beside` (a state or SH_GR_DEAD) is where its bytes lead. */
uint32_t sh_gr_step_token(struct sh_gr_automaton *a, uint32_t state, int32_t token, uint32_t beside);
/* Whether plain characters can go on from any place that follows a repeat's end. -1: failed. */
int sh_gr_plain_behind(struct sh_gr_automaton *a, uint32_t loop, uint32_t below);
/* A state of `from` in `to`, with its frames. */
uint32_t sh_gr_move_state(struct sh_gr_automaton *to, const struct sh_gr_automaton *from, uint32_t state);

/* ---- tables: masks of places that do not depend on the frames below ---------------------------------------------- */

/* A count that stands for any: a repeat in such a frame begins its items for ever, and a text can end between two of them. */
#define SH_GR_RELATIVE UINT32_MAX

struct sh_gr_exit { /* a node of the trie at which, or before which, the rule or an item of the repeat is complete */
    uint32_t node;
    uint32_t done : 31; /* items complete */
    bool gated : 1;     /* an exit behind a gate */
};

/* What a configuration does below a node of the trie, whatever lies below its rule or repeat. `slices` [levels][n_words]:
 * the tokens that need at most 1, 2, ... items of the repeat to have begun (without a repeat: one level); `deep`: those
 * that need more. Where the rule or an item is complete, what follows decides from there on. Each node behind such a one is
 * an exit; they are in order of the classes of their bytes, kept are those of the wanted classes. A node with much below it
 * is also a gate, for what can go on with many bytes. */
struct sh_gr_table {
    uint32_t place, loop, node;                                          /* loop: with the bit; 0: none */
    enum { SH_GR_TABLE_HOT, SH_GR_TABLE_READY, SH_GR_TABLE_NEVER } kind; /* HOT: worth making */
    uint32_t levels, n_deep, n_gates, times_made;
    uint32_t *slices;
    struct sh_gr_exit *deep; /* node: the token; done: items that must have begun */
    struct sh_gr_exit *gates, *exits;
    uint32_t *first_exit; /* [n_classes + 1] */
    uint64_t wanted[4];
    /* Far from a repeat's limits masks do not depend on the count: the one made last, and what it does depend on. */
    uint32_t most_begun; /* items that any token needs */
    struct sh_gr_mask *far;
    uint32_t far_below, n_far_others;
    struct sh_gr_config far_others[4];
};
enum { SH_GR_MAX_TABLES = 96 };
struct sh_gr_tables {
    struct sh_gr_table items[SH_GR_MAX_TABLES];
    uint32_t n;
    uint64_t bytes;
    uint32_t hot; /* nodes visited that make a table worth while, nodes below one that make it a gate */
};
struct sh_gr_table *sh_gr_find_table(struct sh_gr_tables *tables, uint32_t place, uint32_t loop, uint32_t node); /* or NULL */
void sh_gr_note_table(struct sh_gr_tables *tables, uint32_t place, uint32_t loop, uint32_t node);
/* Makes it, or makes it anew with more classes wanted; it may become NEVER. False: failed (a->failed). */
bool sh_gr_make_table(struct sh_gr_automaton *a, const struct sh_gr_lexicon *l, struct sh_gr_tables *tables,
                      struct sh_gr_table *table, const uint64_t wanted[4]);
void sh_gr_tables_finish(struct sh_gr_tables *tables); /* it may be used again, empty */
void sh_gr_tables_forget(struct sh_gr_tables *tables); /* the masks, which refer to frames by number */

/* ---- grammars ---------------------------------------------------------------------------------------------------- */

struct sh_matcher {
    struct sh_grammar *grammar;
    uint32_t state;
    struct sh_gr_mask *mask;            /* the one lent last, or NULL */
    struct sh_matcher *previous, *next; /* of the grammar's list */
};

struct sh_grammar {
    atomic_uint refs;
    const struct sh_vocab *vocab;
    const struct sh_gr_lexicon *lexicon; /* the vocabulary's */
    struct sh_gr_program program;
    pthread_mutex_t lock; /* of what follows */
    struct sh_gr_automaton automaton;
    struct sh_gr_tables tables;
    struct sh_matcher *matchers;
    uint64_t limit;   /* bytes of the automaton, beyond which it is begun anew */
    uint64_t counted; /* bytes of it that stand in lexicon->bytes */
};

/* Bytes of all automata and tables of a vocabulary, beyond which those with more than their share begin anew. */
#define SH_GR_ALL_BYTES ((uint64_t)256 << 20)
#define SH_GR_SHARE_BYTES ((uint64_t)6 << 20)

/* matcher.c: drops what an idle grammar's automaton holds beyond its share. */
void sh_gr_trim(struct sh_grammar *grammar);

/* mask.c: the state's mask, made if need be. NULL: failed (automaton->failed). Under the lock. */
struct sh_gr_mask *sh_gr_make_mask(struct sh_gr_automaton *a, const struct sh_gr_lexicon *lexicon, struct sh_gr_tables *tables,
                                   uint32_t state);
void sh_gr_mask_unref(struct sh_gr_mask *mask); /* takes NULL; under the lock */

/* The vocabulary's lexicon, made on first use; any thread. */
enum sh_code sh_gr_lexicon_get(const struct sh_vocab *vocab, const struct sh_gr_lexicon **out, struct sh_error *err);

#endif

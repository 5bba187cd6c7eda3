/* pace.c - see pace.h. */
#include "daemon/pace.h"

enum {
    FIRST_CHUNK = 128, /* rows of the first step of prompts */
    LEAST_CHUNK = 16,  /* rows of a step of prompts alone, however slow they are, */
    LEAST_SHARED = 4,  /* and of prompts beside what is decoded: they have to get on */
    EXACT = 16,        /* up to here each number of rows is an entry of its own, then each quarter of an octave */
    MEASURE_AGAIN = 64, /* steps with prompts, after which one without them is measured again */
    EXPLORE = 40,       /* one of so many steps with prompts tries twice the rows: a kernel may take 16 rows in the time of 9 */
};
/* Steps of prompts alone are sized to take about this long: between steps cancellations are noticed. */
#define STEP_LONG_NS 500e6
#define STEP_SHORT_NS 150e6
#define STEP_CROWD_NS 250e6 /* a step that is longer because many wait takes no longer than this */
/* What takes longer than known counts less than what takes shorter: most of it is other work of the machine, which comes and goes. */
#define WEIGHT_OF_NEW 0.25
#define WEIGHT_OF_LONGER 0.1
#define OUTLIER 3.0 /* a step that took longer than so many times what is known counts as so many times: the machine did something else */

void pace_init(struct pace *pace, uint32_t most_prompt_rows) {
    *pace = (struct pace){.most = most_prompt_rows, .chunk = most_prompt_rows < FIRST_CHUNK ? most_prompt_rows : FIRST_CHUNK};
}

static uint32_t bucket_of(uint32_t rows) {
    if (rows <= EXACT) return rows > 0 ? rows - 1 : 0;
    const uint32_t octave = 31 - (uint32_t)__builtin_clz(rows);
    const uint32_t bucket = EXACT + 4 * (octave - 4) + ((rows - (1u << octave)) >> (octave - 2));
    return bucket < PACE_BUCKETS ? bucket : PACE_BUCKETS - 1;
}

static void learn(struct pace_table *table, uint32_t rows, double ns) {
    struct pace_entry *entry = &table->entries[bucket_of(rows)];
    if (entry->rows == 0) {
        *entry = (struct pace_entry){.rows = rows, .ns = ns};
        return;
    }
    if (ns > OUTLIER * entry->ns && entry->ns > 0) ns = OUTLIER * entry->ns;
    entry->rows += WEIGHT_OF_NEW * (rows - entry->rows);
    entry->ns += (ns > entry->ns ? WEIGHT_OF_LONGER : WEIGHT_OF_NEW) * (ns - entry->ns);
}

/* The measured entries next to so many rows, below and above; NULL: there is none. */
static void neighbours(const struct pace_table *table, uint32_t rows, const struct pace_entry **below, const struct pace_entry **above) {
    *below = *above = 0;
    for (uint32_t i = 0; i < PACE_BUCKETS; i++) {
        const struct pace_entry *entry = &table->entries[i];
        if (entry->rows == 0) continue;
        if (entry->rows <= rows) *below = entry;
        if (entry->rows >= rows && !*above) *above = entry;
    }
}

static double between(const struct pace_entry *below, const struct pace_entry *above, double rows) {
    if (above->rows <= below->rows) return above->ns;
    return below->ns + (above->ns - below->ns) * (rows - below->rows) / (above->rows - below->rows);
}

double pace_decode_ns(const struct pace *pace, uint32_t rows) {
    const struct pace_entry *below, *above;
    neighbours(&pace->decoding, rows, &below, &above);
    if (below && above) return between(below, above, rows);
    return below ? below->ns : above ? above->ns : 0;
}

/* What rows of prompts add to a step; beyond what was tried in proportion. */
static double added_ns(const struct pace *pace, uint32_t rows) {
    const struct pace_entry *below, *above;
    neighbours(&pace->added, rows, &below, &above);
    if (below && above) return between(below, above, rows);
    if (below) return below->ns * rows / below->rows;
    if (above) return above->ns * rows / above->rows;
    return pace->alone_row_ns * rows;
}

void pace_step(struct pace *pace, uint32_t decode_rows, uint32_t prompt_rows, uint64_t ns) {
    if (decode_rows > 0 && prompt_rows == 0) {
        learn(&pace->decoding, decode_rows, (double)ns);
        pace->unmeasured[bucket_of(decode_rows)] = 0;
    } else if (decode_rows > 0) {
        const double without = pace_decode_ns(pace, decode_rows);
        if (without > 0) learn(&pace->added, prompt_rows, (double)ns > without ? (double)ns - without : 0);
        pace->unmeasured[bucket_of(decode_rows)]++;
        pace->mixed++;
    } else if (prompt_rows > 0) {
        const double row_ns = (double)ns / prompt_rows;
        pace->alone_row_ns = pace->alone_row_ns > 0 ? pace->alone_row_ns + WEIGHT_OF_NEW * (row_ns - pace->alone_row_ns) : row_ns;
        /* of a whole chunk: was it of a good length? */
        if (prompt_rows >= pace->chunk && (double)ns > STEP_LONG_NS)
            pace->chunk = pace->chunk / 2 > LEAST_CHUNK ? pace->chunk / 2 : LEAST_CHUNK;
        else if (prompt_rows >= pace->chunk && (double)ns < STEP_SHORT_NS) pace->chunk *= 2;
        if (pace->chunk > pace->most) pace->chunk = pace->most;
    }
}

/* Not much more than what was tried: how it goes on from there is a guess. */
static uint32_t most_to_try(const struct pace *pace) {
    double tried = 0;
    for (uint32_t i = 0; i < PACE_BUCKETS; i++)
        if (pace->added.entries[i].rows > tried) tried = pace->added.entries[i].rows;
    if (tried == 0 && pace->alone_row_ns == 0) return LEAST_SHARED < pace->most ? LEAST_SHARED : pace->most;
    if (tried < LEAST_CHUNK) tried = LEAST_CHUNK;
    return 4 * tried < pace->most ? (uint32_t)(4 * tried) : pace->most;
}

static double allowed_ns(const struct pace *pace, uint32_t decode_rows, uint32_t waiting, uint32_t share) {
    const double alone = pace_decode_ns(pace, decode_rows), fair = alone * share / 100;
    const double more = fair * waiting, most = STEP_CROWD_NS - alone, crowd = more < most ? more : most;
    return crowd > fair ? crowd : fair;
}

uint32_t pace_prompt_rows(struct pace *pace, uint32_t decode_rows, uint32_t waiting, uint32_t share) {
    if (decode_rows == 0) return pace->chunk;
    const uint32_t bucket = bucket_of(decode_rows);
    if (pace->decoding.entries[bucket].rows == 0 || pace->unmeasured[bucket] >= MEASURE_AGAIN) return 0;
    const double allowed = allowed_ns(pace, decode_rows, waiting, share);
    uint32_t low = LEAST_SHARED < pace->most ? LEAST_SHARED : pace->most, high = most_to_try(pace);
    while (low < high) { /* the most rows that do not add more than that */
        const uint32_t middle = low + (high - low + 1) / 2;
        if (added_ns(pace, middle) <= allowed) low = middle;
        else high = middle - 1;
    }
    if (pace->mixed % EXPLORE == EXPLORE - 1) low = low * 2 < pace->most ? low * 2 : pace->most;
    return low;
}

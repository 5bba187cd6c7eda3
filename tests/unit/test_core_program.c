/* Fusion, memory plan and segments, on hand-made and on random programs. */
#include "compute/program/build.h"
#include "compute/program/executor.h"
#include "tests/unit/shared.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static struct sh_error error;

static struct sh_builder begin(void) {
    struct sh_builder b = {.program = sh_program_create(), .layer = SH_NONE, .err = &error};
    assert_non_null(b.program);
    return b;
}

static uint32_t below(struct test_rng *rng, uint32_t n) { return (uint32_t)(test_random(rng) % n); }

/* ---- a reference for the plan: which value stands in each slot after each op ---- */

static void each_read(const struct sh_op *op, uint32_t reads[4]) {
    reads[0] = op->x;
    reads[1] = op->y;
    reads[2] = op->z;
    reads[3] = op->residual;
}

/* Whose value stands where: a slot's row in cells of SH_COLUMN_ALIGN elements. */
#define CELLS 32u /* 1,024 elements */
static uint32_t first_cell(const struct sh_fused *f, uint32_t a) { return f->slot[a] * CELLS + f->column[a] / SH_COLUMN_ALIGN; }
static uint32_t n_cells(const struct sh_program *p, uint32_t a) { return (p->activations[a].width + SH_COLUMN_ALIGN - 1) / SH_COLUMN_ALIGN; }

static void put(const struct sh_program *p, const struct sh_fused *f, uint32_t *holds, uint32_t a) {
    uint32_t *slot = &holds[f->slot[a] * CELLS];
    assert_in_range(f->pitch[a], 1, CELLS * SH_COLUMN_ALIGN);
    for (uint32_t c = 0; c < CELLS; c++) /* rows of another length lie elsewhere */
        if (slot[c] != SH_NONE && f->pitch[slot[c]] != f->pitch[a]) slot[c] = SH_NONE;
    for (uint32_t c = 0; c < n_cells(p, a); c++) holds[first_cell(f, a) + c] = a;
}
static void is_there(const struct sh_program *p, const struct sh_fused *f, const uint32_t *holds, uint32_t a) {
    assert_in_range(f->slot[a], 0, f->n_slots - 1);
    for (uint32_t c = 0; c < n_cells(p, a); c++) assert_int_equal(holds[first_cell(f, a) + c], a);
}
static bool overlap(const struct sh_program *p, const struct sh_fused *f, uint32_t a, uint32_t b) {
    return f->slot[a] == f->slot[b] && (f->pitch[a] != f->pitch[b] || (first_cell(f, a) < first_cell(f, b) + n_cells(p, b) &&
                                                                        first_cell(f, b) < first_cell(f, a) + n_cells(p, a)));
}

/* Plays the fused ops against slots that remember whose value they hold: everything read must still be there, and what is kept
 * must be there at the end. Overwriting an input is right only where the op may work in place. */
static void play(const struct sh_segment *segment, const struct sh_fused *f) {
    const struct sh_program *p = segment->program;
    uint32_t *holds = calloc((size_t)(f->n_slots + 1) * CELLS, sizeof *holds);
    assert_non_null(holds);
    for (uint32_t c = 0; c < f->n_slots * CELLS; c++) holds[c] = SH_NONE;
    for (uint32_t i = 0; i < segment->n_inputs; i++) put(p, f, holds, segment->inputs[i]);
    for (uint32_t i = 0; i < f->n_ops; i++) {
        const struct sh_op *op = &f->ops[i];
        uint32_t reads[4];
        each_read(op, reads);
        const uint32_t to = f->slot[op->out], width = p->activations[op->out].width;
        assert_in_range(to, 0, f->n_slots - 1);
        for (int r = 0; r < 4; r++) {
            if (reads[r] == SH_NONE) continue;
            is_there(p, f, holds, reads[r]);
            const bool in_place = (r == 3 && op->kind == SH_OP_MATMUL) || (r == 0 && op->kind == SH_OP_ROPE_CACHE);
            if (!in_place) assert_false(overlap(p, f, reads[r], op->out));
        }
        assert_true(f->slots[to].width >= f->pitch[op->out] && f->pitch[op->out] >= f->column[op->out] + width);
        assert_true(f->slots[to].rows == p->activations[op->out].rows);
        put(p, f, holds, op->out);
    }
    for (uint32_t i = 0; i < segment->n_inputs; i++) is_there(p, f, holds, segment->inputs[i]);
    for (uint32_t i = 0; i < segment->n_outputs; i++) is_there(p, f, holds, segment->outputs[i]);
    const uint32_t ends[] = {p->hidden, p->logits};
    for (int i = 0; i < 2; i++) {
        bool made = false;
        for (uint32_t o = 0; o < f->n_ops; o++) made = made || f->ops[o].out == ends[i];
        if (made) is_there(p, f, holds, ends[i]);
    }
    free(holds);
}

/* What stands alone fills its slot's rows; products side by side stand in their order. */
static void columns_are_sound(const struct sh_segment *segment, const struct sh_fused *f) {
    const struct sh_program *p = segment->program;
    for (uint32_t i = 0; i < f->n_ops; i++)
        for (uint32_t o = 0, column = 0; o < f->bundles[i].n_ops; o++) {
            const uint32_t a = f->ops[i + o].out, first = f->ops[i + f->bundles[i].norm].out;
            if (!f->bundles[i].beside || o < f->bundles[i].norm || o >= f->bundles[i].norm + f->bundles[i].n_products) {
                assert_int_equal(f->column[a], 0);
                assert_int_equal(f->pitch[a], p->activations[a].width);
                continue;
            }
            assert_int_equal(f->slot[a], f->slot[first]);
            assert_int_equal(f->pitch[a], f->pitch[first]);
            assert_int_equal(f->column[a], column);
            column += n_cells(p, a) * SH_COLUMN_ALIGN;
        }
}

/* Bundles follow each other without a gap and are what the header says; without the flag each op stands by itself. Then a bundle's
 * results, all written before anything is read, leave what it reads from outside alone. */
static uint32_t bundles_are_sound(const struct sh_segment *segment, const struct sh_fused *f, bool wanted) {
    const struct sh_program *p = segment->program;
    uint32_t found = 0;
    for (uint32_t i = 0, n; i < f->n_ops; i += n) {
        const struct sh_bundle *b = &f->bundles[i];
        const struct sh_op *ops = &f->ops[i];
        n = b->n_ops;
        assert_in_range(n, 1, f->n_ops - i);
        for (uint32_t o = 1; o < n; o++) assert_int_equal(b[o].n_ops, 0);
        if (n == 1) {
            assert_int_equal(b->n_products, 0);
            assert_false(b->norm || b->norm_inner || b->tail);
            continue;
        }
        found++;
        assert_true(wanted);
        assert_int_equal(b->norm + b->n_products + b->tail, n);
        assert_in_range(b->n_products, 1, SH_BUNDLE_PRODUCTS);
        if (b->tail) assert_true(b->beside);
        if (b->beside) assert_true(b->n_products > 1);
        const struct sh_op *products = ops + b->norm, *tail = ops + n - 1;
        if (b->norm) assert_true(ops[0].kind == SH_OP_NORM && products[0].x == ops[0].out);
        for (uint32_t o = 0; o < b->n_products; o++) {
            assert_true(products[o].kind == SH_OP_MATMUL && products[o].x == products[0].x && products[o].residual == SH_NONE);
            assert_in_range(products[o].blocks, 0, 1);
        }
        if (b->tail) assert_int_equal(b->n_products, tail->kind == SH_OP_GLU ? 2 : tail->z == SH_NONE ? 2 : 3);
        for (uint32_t o = 0; o < b->n_products && b->beside; o++) {
            assert_true(products[o].out != p->hidden && products[o].out != p->logits);
            for (uint32_t r = segment->first_op; r < segment->first_op + segment->n_ops; r++)
                if (p->ops[r].kind == SH_OP_GATHER_OUT) assert_int_not_equal(p->ops[r].x, products[o].out);
        }
        for (uint32_t o = 0; o < n; o++) { /* who else reads this result? */
            const bool inner = o == 0 ? b->norm && b->norm_inner : o < b->norm + b->n_products && b->tail;
            uint32_t within = 0, all = 0;
            for (uint32_t r = segment->first_op; r < segment->first_op + segment->n_ops; r++) {
                uint32_t reads[SH_OP_READS];
                sh_op_reads(&p->ops[r], reads);
                for (int k = 0; k < SH_OP_READS; k++) all += reads[k] == ops[o].out;
            }
            for (uint32_t r = 0; r < n; r++) {
                uint32_t reads[SH_OP_READS];
                sh_op_reads(&ops[r], reads);
                for (int k = 0; k < SH_OP_READS; k++) within += reads[k] == ops[o].out;
            }
            bool leaves = ops[o].out == p->hidden || ops[o].out == p->logits;
            for (uint32_t k = 0; k < segment->n_outputs; k++) leaves = leaves || segment->outputs[k] == ops[o].out;
            if (o == 0 && b->norm) assert_int_equal(inner, !leaves && all == within);
            else if (inner) assert_true(!leaves && all == 1 && within == 1);
        }
        for (uint32_t w = 0; w < n; w++) {
            const uint32_t to = f->slot[ops[w].out];
            for (uint32_t o = 0; o < n; o++) {
                if (o != w) assert_false(overlap(p, f, ops[o].out, ops[w].out));
                uint32_t reads[SH_OP_READS];
                sh_op_reads(&ops[o], reads);
                for (int k = 0; k < SH_OP_READS; k++) {
                    bool inside = reads[k] == SH_NONE;
                    for (uint32_t m = 0; m < n; m++) inside = inside || ops[m].out == reads[k];
                    if (!inside) assert_int_not_equal(f->slot[reads[k]], to);
                }
            }
        }
    }
    return found;
}

/* The fused list stands for every op of the segment, in order, and says so in last_source. */
static void sources_are_complete(const struct sh_segment *segment, const struct sh_fused *f) {
    uint32_t next = segment->first_op;
    for (uint32_t i = 0; i < f->n_ops; i++) {
        const uint32_t last = f->last_source[i], members = last - next + 1;
        assert_in_range(members, 1, 2);
        assert_int_equal(f->ops[i].out, segment->program->ops[last].out);
        assert_int_equal(members == 2, f->ops[i].kind == SH_OP_MATMUL && f->ops[i].residual != SH_NONE);
        next = last + 1;
    }
    assert_int_equal(next, segment->first_op + segment->n_ops);
}

/* ---- random programs ---- */

enum { WIDTHS = 3 };
static const uint32_t widths[WIDTHS] = {8, 24, 40};

/* Any earlier activation of that width, or SH_NONE; the latest ones more often. */
static uint32_t pick(const struct sh_program *p, struct test_rng *rng, uint32_t width, enum sh_rows rows) {
    for (int attempt = 0; attempt < 16; attempt++) {
        const uint32_t window = below(rng, 3) == 0 || p->n_activations < 6 ? p->n_activations : 6;
        const uint32_t a = p->n_activations - 1 - below(rng, window);
        if (p->activations[a].width == width && p->activations[a].rows == rows) return a;
    }
    return SH_NONE;
}

static void add_attention(struct sh_builder *b, uint32_t width, uint32_t q, uint32_t k, uint32_t v, uint32_t table) {
    const struct sh_build_attention a = {.n_heads = width / 8,
                                         .n_kv_heads = 1,
                                         .k_dim = 8,
                                         .v_dim = 8,
                                         .n_rot = 8,
                                         .rope_table = table,
                                         .slopes = SH_NONE,
                                         .sinks = SH_NONE,
                                         .scale = 1,
                                         .pairing = SH_ROPE_ADJACENT};
    sh_build_attend(b, &a, q, k, v, "rope", "attention");
}

static void add_random_op(struct sh_builder *b, struct test_rng *rng, uint32_t matrices[WIDTHS][WIDTHS], uint32_t norms[WIDTHS],
                          uint32_t table, enum sh_rows rows) {
    const uint32_t from = below(rng, WIDTHS), to = below(rng, WIDTHS);
    const uint32_t x = pick(b->program, rng, widths[from], rows), y = pick(b->program, rng, widths[from], rows);
    if (x == SH_NONE || y == SH_NONE) return;
    switch (below(rng, rows == SH_ROWS_ALL ? 7 : 6)) {
    case 0: sh_build_norm(b, SH_NORM_RMS, x, 1, norms[from], SH_NONE, 1e-5f, "norm"); return;
    case 1: sh_build_glu(b, SH_GLU_SILU, x, y, "glu"); return;
    case 2: sh_build_add(b, x, y, "add"); return;
    case 3: sh_build_matmul(b, x, matrices[from][to], SH_NONE, "matmul"); return;
    case 4: { /* the pair that fuses, with any residual */
        const uint32_t residual = pick(b->program, rng, widths[to], rows);
        const uint32_t product = sh_build_matmul(b, x, matrices[from][to], SH_NONE, "matmul");
        if (residual == SH_NONE) return;
        if (below(rng, 2) == 0) sh_build_add(b, product, residual, "sum");
        else sh_build_add(b, residual, product, "sum");
        return;
    }
    case 5: { /* products of one input, with a norm, a GLU or an attention around them */
        const uint32_t h = below(rng, 3) ? sh_build_norm(b, SH_NORM_RMS, x, 1, norms[from], SH_NONE, 1e-5f, "norm") : x;
        uint32_t made[6];
        const uint32_t n = 1 + below(rng, 6);
        for (uint32_t i = 0; i < n; i++) made[i] = sh_build_matmul(b, h, matrices[from][n == 3 && i > 0 ? 0 : to], SH_NONE, "matmul");
        if (n == 2 && below(rng, 4)) sh_build_glu(b, SH_GLU_SILU, made[below(rng, 2)], made[below(rng, 4) != 0], "glu");
        else if (n == 3 && rows == SH_ROWS_ALL && below(rng, 4)) add_attention(b, widths[to], made[0], made[1], made[2], table);
        if (below(rng, 4) == 0) sh_build_glu(b, SH_GLU_SILU, made[0], made[0], "again");
        return;
    }
    default: {
        const uint32_t q = x, k = pick(b->program, rng, 8, rows), v = pick(b->program, rng, 8, rows);
        if (k == SH_NONE || v == SH_NONE) return;
        add_attention(b, widths[from], q, k, v, table);
    }
    }
}

static struct sh_program *random_program(struct test_rng *rng, uint32_t n_layers) {
    struct sh_builder b = begin();
    uint32_t matrices[WIDTHS][WIDTHS], norms[WIDTHS];
    for (uint32_t i = 0; i < WIDTHS; i++) {
        norms[i] = sh_build_vector(&b, widths[i], "norm%u", i);
        for (uint32_t j = 0; j < WIDTHS; j++) matrices[i][j] = sh_build_matrix(&b, widths[i], widths[j], "m%u.%u", i, j);
    }
    const uint32_t table = sh_build_constant(&b, 8, 4, sh_calloc(32, sizeof(float)), "table");
    uint32_t x = sh_build_embed(&b, matrices[0][2], SH_EMBED_TOKEN, "embedding");
    for (uint32_t i = 1; i < WIDTHS; i++) sh_build_matmul(&b, x, matrices[0][i], SH_NONE, "start");
    for (uint32_t l = 0; l < n_layers; l++) {
        b.layer = l;
        for (uint32_t n = 2 + below(rng, 12); n > 0; n--) add_random_op(&b, rng, matrices, norms, table, SH_ROWS_ALL);
    }
    b.layer = n_layers - 1;
    x = pick(b.program, rng, 8, SH_ROWS_ALL);
    if (x == SH_NONE) x = 0;
    b.layer = SH_NONE;
    sh_build_gather_out(&b, x, "gather");
    for (uint32_t n = below(rng, 6); n > 0; n--) add_random_op(&b, rng, matrices, norms, table, SH_ROWS_OUT);
    x = b.program->n_activations - 1;
    while (b.program->activations[x].rows != SH_ROWS_OUT) x--;
    b.program->hidden = x;
    uint32_t from = 0;
    while (widths[from] != b.program->activations[x].width) from++;
    b.program->logits = sh_build_matmul(&b, x, matrices[from][2], SH_NONE, "logits");
    b.program->n_layers = n_layers;
    assert_int_equal(b.code, SH_OK);
    return b.program;
}

static void plans_never_overlap(void **state) {
    (void)state;
    struct test_rng rng = {1};
    uint32_t fused_pairs = 0, cut_programs = 0, refused = 0, bundles = 0;
    for (int round = 0; round < 2000; round++) {
        const uint32_t n_layers = 1 + below(&rng, 4);
        struct sh_program *p = random_program(&rng, n_layers);
        uint32_t devices[4];
        for (uint32_t l = 0; l < n_layers; l++) devices[l] = below(&rng, 2);
        struct sh_segment *segments = NULL;
        uint32_t n = 0;
        uint32_t *device_of_op = calloc(p->n_ops, sizeof *device_of_op);
        assert_non_null(device_of_op);
        sh_program_place(p, devices, 0, 0, device_of_op);
        const enum sh_code code = sh_program_cut(p, device_of_op, &segments, &n, &error);
        free(device_of_op);
        if (code != SH_OK) { /* random layers share more than a model's do */
            assert_int_equal(code, SH_ERR_UNSUPPORTED);
            refused++;
            sh_program_destroy(p);
            continue;
        }
        cut_programs += n > 1;
        uint32_t ops = 0;
        for (uint32_t s = 0; s < n; s++) {
            assert_int_equal(segments[s].first_op, ops);
            ops += segments[s].n_ops;
            for (uint32_t flags = 0; flags <= (SH_FUSE_RESIDUAL | SH_FUSE_BUNDLES); flags++) {
                struct sh_fused f;
                assert_int_equal(sh_fuse(&segments[s], flags, &f, &error), SH_OK);
                play(&segments[s], &f);
                columns_are_sound(&segments[s], &f);
                sources_are_complete(&segments[s], &f);
                bundles += bundles_are_sound(&segments[s], &f, (flags & SH_FUSE_BUNDLES) != 0);
                fused_pairs += segments[s].n_ops - f.n_ops;
                if ((flags & SH_FUSE_RESIDUAL) == 0) assert_int_equal(f.n_ops, segments[s].n_ops);
                sh_fused_finish(&f);
            }
        }
        assert_int_equal(ops, p->n_ops);
        free(segments);
        sh_program_destroy(p);
    }
    assert_true(bundles > 5000);
    assert_true(fused_pairs > 500 && cut_programs > 200 && refused < 1500); /* the generator reaches what it is for */
}

/* ---- by hand ---- */

/* A llama-like layer needs few slots, the residual stream is updated in place, and logits do not take a slot of all rows. */
static void a_layer_is_planned_tightly(void **state) {
    (void)state;
    struct sh_builder b = begin();
    const uint32_t embedding = sh_build_matrix(&b, 64, 1000, "token_embd.weight");
    const uint32_t square = sh_build_matrix(&b, 64, 64, "square"), up = sh_build_matrix(&b, 64, 172, "up");
    const uint32_t down = sh_build_matrix(&b, 172, 64, "down"), norm = sh_build_vector(&b, 64, "norm");
    uint32_t x = sh_build_embed(&b, embedding, SH_EMBED_TOKEN, "token_embd");
    for (uint32_t l = 0; l < 3; l++) {
        b.layer = l;
        uint32_t h = sh_build_norm(&b, SH_NORM_RMS, x, 1, norm, SH_NONE, 1e-5f, "attn_norm");
        x = sh_build_add(&b, sh_build_matmul(&b, h, square, SH_NONE, "attn_output"), x, "attn_residual");
        h = sh_build_norm(&b, SH_NORM_RMS, x, 1, norm, SH_NONE, 1e-5f, "ffn_norm");
        const uint32_t g = sh_build_matmul(&b, h, up, SH_NONE, "ffn_gate"), u = sh_build_matmul(&b, h, up, SH_NONE, "ffn_up");
        x = sh_build_add(&b, x, sh_build_matmul(&b, sh_build_glu(&b, SH_GLU_SILU, g, u, "ffn_glu"), down, SH_NONE, "ffn_down"),
                         "ffn_residual");
    }
    b.layer = SH_NONE;
    b.program->hidden = sh_build_norm(&b, SH_NORM_RMS, sh_build_gather_out(&b, x, "output_rows"), 1, norm, SH_NONE, 1e-5f, "output_norm");
    b.program->logits = sh_build_matmul(&b, b.program->hidden, embedding, SH_NONE, "output");
    b.program->n_layers = 3;
    assert_int_equal(b.code, SH_OK);
    assert_string_equal(b.program->activations[x].name, "blk.2.ffn_residual");

    const struct sh_segment all = {.program = b.program, .n_ops = b.program->n_ops};
    struct sh_fused f;
    assert_int_equal(sh_fuse(&all, SH_FUSE_RESIDUAL, &f, &error), SH_OK);
    assert_int_equal(b.program->n_ops - f.n_ops, 6);
    const uint32_t stream = f.slot[f.ops[0].out];
    uint32_t wide = 0, gathered = 0;
    for (uint32_t i = 0; i < f.n_ops; i++)
        if (f.ops[i].residual != SH_NONE) assert_int_equal(f.slot[f.ops[i].out], stream);
    for (uint32_t s = 0; s < f.n_slots; s++) {
        wide += f.slots[s].rows == SH_ROWS_ALL;
        gathered += f.slots[s].rows == SH_ROWS_OUT;
        if (f.slots[s].width >= 1000) assert_int_equal(f.slots[s].rows, SH_ROWS_OUT);
    }
    assert_in_range(wide, 1, 5);   /* stream, norm, gate, up, glu */
    assert_int_equal(gathered, 2); /* hidden, and logits where the gathered rows were */
    play(&all, &f);
    sh_fused_finish(&f);

    const uint32_t devices[] = {0, 1, 1};
    struct sh_segment *segments = NULL;
    uint32_t n = 0;
    uint32_t device_of_op[64];
    assert_true(b.program->n_ops <= 64);
    sh_program_place(b.program, devices, 0, 0, device_of_op);
    assert_int_equal(sh_program_cut(b.program, device_of_op, &segments, &n, &error), SH_OK);
    assert_int_equal(n, 2);
    assert_int_equal(segments[0].n_inputs, 0);
    assert_int_equal(segments[0].n_outputs, 1);
    assert_int_equal(segments[1].n_inputs, 1);
    assert_int_equal(segments[1].inputs[0], segments[0].outputs[0]);
    assert_string_equal(b.program->activations[segments[0].outputs[0]].name, "blk.0.ffn_residual");
    uint32_t *weights = NULL, count = 0;
    assert_int_equal(sh_segment_weights(&segments[1], 1, &weights, &count, &error), SH_OK);
    assert_int_equal(count, 5); /* the tied head needs the embedding on the second device too */
    for (uint32_t i = 1; i < count; i++) assert_true(weights[i - 1] < weights[i]);
    free(weights);
    free(segments);
    sh_program_destroy(b.program);
}

/* A llama's layer: norm, q, k, v and their rotation; norm, gate, up and GLU. Each is one bundle, whose inside need not be written. */
static void a_layer_has_two_bundles(void **state) {
    (void)state;
    struct sh_builder b = begin();
    const uint32_t square = sh_build_matrix(&b, 8, 8, "square"), up = sh_build_matrix(&b, 8, 24, "up");
    const uint32_t down = sh_build_matrix(&b, 24, 8, "down"), norm = sh_build_vector(&b, 8, "norm");
    const uint32_t table = sh_build_constant(&b, 8, 4, sh_calloc(32, sizeof(float)), "table");
    uint32_t x = sh_build_embed(&b, square, SH_EMBED_TOKEN, "token_embd");
    b.layer = 0;
    uint32_t h = sh_build_norm(&b, SH_NORM_RMS, x, 1, norm, SH_NONE, 1e-5f, "attn_norm");
    const uint32_t q = sh_build_matmul(&b, h, square, SH_NONE, "q"), k = sh_build_matmul(&b, h, square, SH_NONE, "k"),
                   v = sh_build_matmul(&b, h, square, SH_NONE, "v");
    add_attention(&b, 8, q, k, v, table);
    x = sh_build_add(&b, sh_build_matmul(&b, b.program->n_activations - 1, square, SH_NONE, "attn_output"), x, "attn_residual");
    h = sh_build_norm(&b, SH_NORM_RMS, x, 1, norm, SH_NONE, 1e-5f, "ffn_norm");
    const uint32_t g = sh_build_matmul(&b, h, up, SH_NONE, "ffn_gate"), u = sh_build_matmul(&b, h, up, SH_NONE, "ffn_up");
    h = sh_build_glu(&b, SH_GLU_SILU, g, u, "ffn_glu");
    x = sh_build_add(&b, sh_build_matmul(&b, h, down, SH_NONE, "ffn_down"), x, "ffn_residual");
    b.program->hidden = x;
    assert_int_equal(b.code, SH_OK);
    const struct sh_segment all = {.program = b.program, .n_ops = b.program->n_ops};
    struct sh_fused f;
    assert_int_equal(sh_fuse(&all, SH_FUSE_RESIDUAL | SH_FUSE_BUNDLES, &f, &error), SH_OK);
    assert_int_equal(f.n_ops, 13);
    static const uint32_t sizes[12] = {1, 5, 0, 0, 0, 0, 1, 1, 4};
    for (uint32_t i = 0; i < 9; i++) assert_int_equal(f.bundles[i].n_ops, sizes[i]);
    assert_int_equal(f.bundles[11].n_ops, 0);
    assert_int_equal(f.bundles[12].n_ops, 1);
    assert_true(f.bundles[1].norm && f.bundles[1].norm_inner && f.bundles[1].tail && f.bundles[1].n_products == 3);
    assert_true(f.bundles[8].norm && f.bundles[8].norm_inner && f.bundles[8].tail && f.bundles[8].n_products == 2);
    assert_true(f.slot[q] == f.slot[k] && f.slot[q] == f.slot[v] && f.slot[q] != f.slot[f.ops[5].out]);
    assert_true(f.column[q] == 0 && f.column[k] == 32 && f.column[v] == 64 && f.pitch[q] == 96 && f.pitch[k] == 96);
    assert_true(f.slot[g] == f.slot[u] && f.column[g] == 0 && f.column[u] == 32);
    play(&all, &f);
    assert_int_equal(bundles_are_sound(&all, &f, true), 2);
    sh_fused_finish(&f);
    sh_program_destroy(b.program);
}

/* What somebody else still needs is not fused away. */
static void a_result_used_twice_is_not_fused(void **state) {
    (void)state;
    struct sh_builder b = begin();
    const uint32_t w = sh_build_matrix(&b, 8, 8, "w");
    const uint32_t x = sh_build_embed(&b, w, SH_EMBED_TOKEN, "x");
    const uint32_t product = sh_build_matmul(&b, x, w, SH_NONE, "product");
    const uint32_t sum = sh_build_add(&b, product, x, "sum");
    const uint32_t doubled = sh_build_add(&b, sh_build_matmul(&b, sum, w, SH_NONE, "other"), sum, "doubled");
    const uint32_t self = sh_build_matmul(&b, doubled, w, SH_NONE, "self");
    const uint32_t twice = sh_build_add(&b, self, self, "twice");
    sh_build_glu(&b, SH_GLU_SILU, product, twice, "late");
    const struct sh_segment all = {.program = b.program, .n_ops = b.program->n_ops};
    struct sh_fused f;
    assert_int_equal(sh_fuse(&all, SH_FUSE_RESIDUAL, &f, &error), SH_OK);
    assert_int_equal(b.program->n_ops - f.n_ops, 1); /* "other" + "doubled" alone */
    play(&all, &f);
    assert_int_equal(f.slot[4 - 1] == SH_NONE, true); /* "other" is never materialised */
    sh_fused_finish(&f);
    sh_program_destroy(b.program);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plans_never_overlap),
        cmocka_unit_test(a_layer_is_planned_tightly),
        cmocka_unit_test(a_layer_has_two_bundles),
        cmocka_unit_test(a_result_used_twice_is_not_fused),
    };
    return cmocka_run_group_tests_name("core_program", tests, NULL, NULL);
}

/* jinja_parse.c - tokens to the tree: one function for each level of precedence and each statement. */
#include "compute/text/jinja.h"

struct parser {
    struct jinja *s;
    const struct jtoken *t; /* the one to be read next; never beyond T_END */
    uint32_t nesting;
    uint32_t conditional; /* within branches: a filter that does not exist matters only if it is reached */
    uint32_t loops;       /* around the next token, within its macro */
    uint8_t uses;         /* of the macro that is being read */
};

static struct jnode *expression(struct parser *p);
static struct jnode *tuple(struct parser *p, bool condition);
static struct jnode *unary(struct parser *p, bool filters);
static struct jnode *statements(struct parser *p, const char *const *ends);

/* ---- helpers ---- */

static struct jnode *node(struct parser *p, enum jnode_kind kind) {
    struct jnode *n = jinja_alloc(p->s, sizeof *n);
    n->kind = kind;
    n->line = p->t->line;
    return n;
}

static struct jnode *with_operand(struct parser *p, enum jnode_kind kind, struct jnode *a) {
    struct jnode *n = node(p, kind);
    n->a = a;
    return n;
}

_Noreturn static void unexpected(struct parser *p, const char *expected) {
    p->s->line = p->t->line;
    jinja_fail(p->s, "found '%.*s', expected %s", (int)sh_min_u64(p->t->text.n, 60), p->t->text.p, expected);
}

static void enter(struct parser *p) {
    p->s->line = p->t->line;
    if (++p->nesting > JINJA_MAX_NESTING) jinja_limit(p->s, "nesting", JINJA_MAX_NESTING);
}

static bool is_op(const struct parser *p, uint32_t op) { return p->t->kind == T_OP && p->t->op == op; }
static bool is_name(const struct parser *p, const char *name) { return p->t->kind == T_NAME && jstr_is(p->t->text, name); }

static bool skip_op(struct parser *p, uint32_t op) {
    if (!is_op(p, op)) return false;
    p->t++;
    return true;
}

static bool skip_name(struct parser *p, const char *name) {
    if (!is_name(p, name)) return false;
    p->t++;
    return true;
}

static void expect_op(struct parser *p, char op) {
    const char expected[] = {'\'', op, '\'', 0};
    if (!skip_op(p, (uint8_t)op)) unexpected(p, expected);
}

static struct jstr expect_name(struct parser *p, const char *expected) {
    if (p->t->kind != T_NAME) unexpected(p, expected);
    return p->t++->text;
}

/* Lists of a node grow by doubling: capacity is the power of two at or above n. */
static void add_item(struct parser *p, struct jnode *n, struct jnode *item) {
    if (!(n->n & (n->n - 1))) {
        struct jnode **grown = jinja_alloc(p->s, (n->n ? n->n * 2 : 1) * sizeof *grown);
        if (n->n) memcpy(grown, n->items, n->n * sizeof *grown);
        n->items = grown;
    }
    n->items[n->n++] = item;
}

static void add_op(struct parser *p, struct jnode *n, uint32_t op) { /* for the item that comes next */
    if (!(n->n & (n->n - 1))) {
        uint32_t *grown = jinja_alloc(p->s, (n->n ? n->n * 2 : 1) * sizeof *grown);
        if (n->n) memcpy(grown, n->ops, n->n * sizeof *grown);
        n->ops = grown;
    }
    n->ops[n->n] = op;
}

static void add_named(struct parser *p, struct jnode *n, struct jstr name, struct jnode *value) {
    jinja_spend(p->s, n->n_named / 8);
    for (size_t i = 0; i < n->n_named; i++) {
        if (name.n && jstr_equal(n->named[i].name, name)) jinja_fail(p->s, "argument %.*s is given twice", (int)name.n, name.p);
    }
    if (!(n->n_named & (n->n_named - 1))) {
        struct jnamed *grown = jinja_alloc(p->s, (n->n_named ? n->n_named * 2 : 1) * sizeof *grown);
        if (n->n_named) memcpy(grown, n->named, n->n_named * sizeof *grown);
        n->named = grown;
    }
    n->named[n->n_named++] = (struct jnamed){name, value};
}

static struct jnode *constant(struct parser *p, struct jval value) {
    struct jnode *n = node(p, N_CONST);
    n->value = value;
    return n;
}

/* ---- expressions ---- */

/* Behind '(' to ')'. */
static void arguments(struct parser *p, struct jnode *call) {
    while (!skip_op(p, ')')) {
        if (skip_op(p, '*')) {
            add_item(p, call, with_operand(p, N_SPREAD, expression(p)));
        } else if (skip_op(p, JOP('*', '*'))) {
            add_named(p, call, JSTR(""), expression(p));
        } else if (p->t->kind == T_NAME && p->t[1].kind == T_OP && p->t[1].op == '=') {
            const struct jstr name = p->t->text;
            p->t += 2;
            add_named(p, call, name, expression(p));
        } else {
            if (call->n_named) unexpected(p, "name=value, as arguments by place come first");
            add_item(p, call, expression(p));
        }
        if (!is_op(p, ')')) expect_op(p, ',');
    }
}

static struct jnode *dict_display(struct parser *p) {
    struct jnode *n = node(p, N_DICT);
    while (!skip_op(p, '}')) {
        add_item(p, n, expression(p));
        expect_op(p, ':');
        add_item(p, n, expression(p));
        if (!is_op(p, '}')) expect_op(p, ',');
    }
    return n;
}

static struct jnode *list_display(struct parser *p) {
    struct jnode *n = node(p, N_LIST);
    while (!skip_op(p, ']')) {
        add_item(p, n, expression(p));
        if (!is_op(p, ']')) expect_op(p, ',');
    }
    return n;
}

static struct jnode *string_constant(struct parser *p) { /* adjacent ones are one */
    struct jnode *n = constant(p, p->t->value);
    struct jbuf joined = {0};
    p->t++;
    if (p->t->kind != T_CONST || p->t->value.kind != J_STRING) return n;
    jbuf_str(p->s, &joined, n->value.s);
    for (; p->t->kind == T_CONST && p->t->value.kind == J_STRING; p->t++) jbuf_str(p->s, &joined, p->t->value.s);
    n->value = jbuf_value(&joined);
    return n;
}

static struct jnode *name_or_constant(struct parser *p) {
    struct jnode *n = node(p, N_NAME);
    n->name = p->t->text;
    if (is_name(p, "true") || is_name(p, "True")) n = constant(p, jv_bool(true));
    else if (is_name(p, "false") || is_name(p, "False")) n = constant(p, jv_bool(false));
    else if (is_name(p, "none") || is_name(p, "None")) n = constant(p, jv_none());
    else if (is_name(p, "varargs")) p->uses |= JINJA_USES_VARARGS;
    else if (is_name(p, "kwargs")) p->uses |= JINJA_USES_KWARGS;
    p->t++;
    return n;
}

static struct jnode *primary(struct parser *p) {
    struct jnode *n;
    if (p->t->kind == T_NAME) return name_or_constant(p);
    if (p->t->kind == T_CONST && p->t->value.kind == J_STRING) return string_constant(p);
    if (p->t->kind == T_CONST) {
        n = constant(p, p->t->value);
        p->t++;
        return n;
    }
    enter(p);
    if (skip_op(p, '(')) {
        if (is_op(p, ')')) n = node(p, N_TUPLE);
        else n = tuple(p, true);
        expect_op(p, ')');
    } else if (skip_op(p, '[')) {
        n = list_display(p);
    } else if (skip_op(p, '{')) {
        n = dict_display(p);
    } else {
        unexpected(p, "an expression");
    }
    p->nesting--;
    return n;
}

static bool ends_slice_part(const struct parser *p) { return is_op(p, ':') || is_op(p, ',') || is_op(p, ']'); }

static struct jnode *subscript(struct parser *p, struct jnode *of) { /* behind '[' */
    struct jnode *first = ends_slice_part(p) ? NULL : expression(p), *n;
    if (!is_op(p, ':')) {
        if (!first) unexpected(p, "an index");
        if (is_op(p, ',')) unexpected(p, "']'; an index is one value");
        n = with_operand(p, N_ITEM, of);
        n->b = first;
    } else {
        n = with_operand(p, N_SLICE, of);
        add_item(p, n, first);
        for (int i = 0; i < 2; i++) add_item(p, n, skip_op(p, ':') && !ends_slice_part(p) ? expression(p) : NULL);
    }
    expect_op(p, ']');
    return n;
}

static struct jnode *attribute(struct parser *p, struct jnode *of) { /* behind '.' */
    struct jnode *n;
    if (p->t->kind == T_CONST && p->t->value.kind == J_INT) {
        n = with_operand(p, N_ITEM, of);
        n->b = constant(p, p->t->value);
        p->t++;
    } else {
        n = with_operand(p, N_ATTRIBUTE, of);
        n->name = expect_name(p, "a name or an index behind '.'");
    }
    return n;
}

static struct jnode *call(struct parser *p, struct jnode *of) { /* behind '(' */
    struct jnode *n = with_operand(p, N_CALL, of);
    arguments(p, n);
    return n;
}

static struct jnode *postfix(struct parser *p, struct jnode *n) {
    for (;;) {
        if (skip_op(p, '.')) n = attribute(p, n);
        else if (skip_op(p, '[')) n = subscript(p, n);
        else if (skip_op(p, '(')) n = call(p, n);
        else return n;
    }
}

/* Fills in what a filter's or test's name stands for. */
static void resolve(struct parser *p, struct jnode *n) {
    const bool filter = n->kind == N_FILTER;
    n->builtin = filter ? jinja_find_filter(n->name) : jinja_find(jinja_tests, n->name);
    if (n->builtin || p->conditional) return;
    p->s->line = n->line;
    jinja_fail(p->s, "found %s '%.*s', which does not exist", filter ? "filter" : "test", (int)sh_min_u64(n->name.n, 60),
               n->name.p);
}

static struct jnode *filter(struct parser *p, struct jnode *of) { /* behind '|' */
    struct jnode *n = with_operand(p, N_FILTER, of);
    n->name = expect_name(p, "the name of a filter");
    resolve(p, n);
    if (skip_op(p, '(')) arguments(p, n);
    return n;
}

/* A test's argument without brackets begins with a name or a constant; words that go on with the expression do not count. */
static bool begins_argument(const struct parser *p) {
    static const char *const words[] = {"else", "or", "and", "if", "in", "not"};
    for (size_t i = 0; i < SH_COUNT(words); i++) {
        if (is_name(p, words[i])) return false;
    }
    return p->t->kind == T_NAME || p->t->kind == T_CONST || is_op(p, '[') || is_op(p, '{');
}

static struct jnode *test(struct parser *p, struct jnode *of) { /* behind `is` */
    const bool negated = skip_name(p, "not");
    struct jnode *n = with_operand(p, N_TEST, of);
    n->name = expect_name(p, "the name of a test");
    resolve(p, n);
    if (skip_op(p, '(')) {
        arguments(p, n);
    } else if (begins_argument(p)) {
        if (is_name(p, "is")) unexpected(p, "something else, as tests cannot follow each other");
        add_item(p, n, postfix(p, primary(p)));
    }
    return negated ? with_operand(p, N_NOT, n) : n;
}

static struct jnode *filters_and_tests(struct parser *p, struct jnode *n) {
    for (;;) {
        if (skip_op(p, '|')) n = filter(p, n);
        else if (skip_name(p, "is")) n = test(p, n);
        else if (skip_op(p, '(')) n = call(p, n);
        else return n;
    }
}

static struct jnode *unary(struct parser *p, bool filters) {
    struct jnode *n;
    enter(p);
    if (skip_op(p, '-')) n = with_operand(p, N_NEGATE, unary(p, false));
    else if (skip_op(p, '+')) n = with_operand(p, N_PLUS, unary(p, false));
    else n = primary(p);
    n = postfix(p, n);
    if (filters) n = filters_and_tests(p, n);
    p->nesting--;
    return n;
}

static struct jnode *binary(struct parser *p, struct jnode *a, uint32_t op, struct jnode *b) {
    struct jnode *n = with_operand(p, N_BINARY, a);
    n->op = op;
    n->b = b;
    return n;
}

static struct jnode *power(struct parser *p) {
    struct jnode *n = unary(p, true);
    while (skip_op(p, JOP('*', '*'))) n = binary(p, n, JOP('*', '*'), unary(p, true));
    return n;
}

static struct jnode *product(struct parser *p) {
    struct jnode *n = power(p);
    while (is_op(p, '*') || is_op(p, '/') || is_op(p, JOP('/', '/')) || is_op(p, '%')) {
        const uint32_t op = p->t++->op;
        n = binary(p, n, op, power(p));
    }
    return n;
}

static struct jnode *concatenation(struct parser *p) {
    struct jnode *first = product(p);
    if (!is_op(p, '~')) return first;
    struct jnode *n = node(p, N_CONCAT);
    add_item(p, n, first);
    while (skip_op(p, '~')) add_item(p, n, product(p));
    return n;
}

static struct jnode *sum(struct parser *p) {
    struct jnode *n = concatenation(p);
    while (is_op(p, '+') || is_op(p, '-')) {
        const uint32_t op = p->t++->op;
        n = binary(p, n, op, concatenation(p));
    }
    return n;
}

/* The operator of a comparison at the next token, which is skipped; 0: none. */
static uint32_t comparison_operator(struct parser *p) {
    static const uint32_t ops[] = {'<', '>', JOP('<', '='), JOP('>', '='), JOP('=', '='), JOP('!', '=')};
    for (size_t i = 0; i < SH_COUNT(ops); i++) {
        if (skip_op(p, ops[i])) return ops[i];
    }
    if (skip_name(p, "in")) return JINJA_IN;
    if (is_name(p, "not") && p->t[1].kind == T_NAME && jstr_is(p->t[1].text, "in")) return p->t += 2, JINJA_NOT_IN;
    return 0;
}

static struct jnode *comparison(struct parser *p) {
    struct jnode *a = sum(p), *n = NULL;
    for (uint32_t op; (op = comparison_operator(p)) != 0;) {
        if (!n) n = with_operand(p, N_COMPARE, a);
        add_op(p, n, op);
        add_item(p, n, sum(p));
    }
    return n ? n : a;
}

static struct jnode *negation(struct parser *p) {
    if (!is_name(p, "not")) return comparison(p);
    enter(p);
    p->t++;
    struct jnode *n = with_operand(p, N_NOT, negation(p));
    p->nesting--;
    return n;
}

static struct jnode *conjunction(struct parser *p) {
    struct jnode *n = negation(p);
    while (skip_name(p, "and")) {
        n = with_operand(p, N_AND, n);
        n->b = negation(p);
    }
    return n;
}

static struct jnode *disjunction(struct parser *p) {
    struct jnode *n = conjunction(p);
    while (skip_name(p, "or")) {
        n = with_operand(p, N_OR, n);
        n->b = conjunction(p);
    }
    return n;
}

static struct jnode *expression(struct parser *p) {
    enter(p);
    struct jnode *a = disjunction(p);
    while (skip_name(p, "if")) {
        struct jnode *n = with_operand(p, N_CONDITION, a);
        n->b = disjunction(p);
        if (skip_name(p, "else")) n->c = expression(p);
        a = n;
    }
    p->nesting--;
    return a;
}

static bool ends_tuple(const struct parser *p) {
    return p->t->kind == T_VAR_END || p->t->kind == T_BLOCK_END || is_op(p, ')') || is_op(p, '=') || is_name(p, "in") ||
           is_name(p, "recursive");
}

/* One expression, or several with commas; condition: `a if b` may come in it. */
static struct jnode *tuple(struct parser *p, bool condition) {
    struct jnode *first = condition ? expression(p) : disjunction(p);
    if (!is_op(p, ',')) return first;
    struct jnode *n = node(p, N_TUPLE);
    add_item(p, n, first);
    while (skip_op(p, ',') && !ends_tuple(p)) add_item(p, n, condition ? expression(p) : disjunction(p));
    return n;
}

/* ---- targets ---- */

static struct jnode *one_target(struct parser *p) {
    struct jnode *n;
    if (skip_op(p, '(')) {
        enter(p);
        n = node(p, N_TUPLE);
        while (!skip_op(p, ')')) {
            add_item(p, n, one_target(p));
            if (!is_op(p, ')')) expect_op(p, ',');
        }
        p->nesting--;
        return n;
    }
    n = node(p, N_NAME);
    n->name = expect_name(p, "a name to assign to");
    static const char *const reserved[] = {"true", "True", "false", "False", "none", "None"};
    for (size_t i = 0; i < SH_COUNT(reserved); i++) {
        if (jstr_is(n->name, reserved[i])) jinja_fail(p->s, "found %s, expected a name to assign to", reserved[i]);
    }
    return n;
}

static struct jnode *target(struct parser *p) {
    struct jnode *first = one_target(p);
    if (!is_op(p, ',')) return first;
    struct jnode *n = node(p, N_TUPLE);
    add_item(p, n, first);
    while (skip_op(p, ',') && !ends_tuple(p)) add_item(p, n, one_target(p));
    return n;
}

/* ---- statements ---- */

static void end_of_tag(struct parser *p) {
    if (p->t->kind != T_BLOCK_END) unexpected(p, "the end of the tag, %}");
    p->t++;
}

/* The statements up to the tag `{% end %}`, with it. */
static struct jnode *body_to(struct parser *p, const char *end) {
    const char *const ends[] = {end, NULL};
    struct jnode *body = statements(p, ends);
    p->t++;
    end_of_tag(p);
    return body;
}

static struct jnode *body(struct parser *p, const char *end) {
    end_of_tag(p);
    return body_to(p, end);
}

static struct jnode *if_statement(struct parser *p) {
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    struct jnode *n = node(p, N_IF);
    p->conditional++;
    do {
        add_item(p, n, tuple(p, true));
        end_of_tag(p);
        add_item(p, n, statements(p, ends));
    } while (skip_name(p, "elif"));
    if (skip_name(p, "else")) {
        n->b = body(p, "endif");
    } else {
        p->t++;
        end_of_tag(p);
    }
    p->conditional--;
    return n;
}

static struct jnode *for_statement(struct parser *p) {
    static const char *const ends[] = {"else", "endfor", NULL};
    struct jnode *n = node(p, N_FOR);
    n->a = target(p);
    if (!skip_name(p, "in")) unexpected(p, "`in`");
    n->b = tuple(p, false);
    if (skip_name(p, "if")) n->c = expression(p);
    n->flag = skip_name(p, "recursive");
    end_of_tag(p);
    p->loops++;
    n->body = statements(p, ends);
    p->loops--;
    if (skip_name(p, "else")) {
        n->other = body(p, "endfor");
    } else {
        p->t++;
        end_of_tag(p);
    }
    return n;
}

/* `| filter | filter` on the text of a block, or NULL. */
static struct jnode *block_filters(struct parser *p) {
    if (!is_op(p, '|')) return NULL;
    struct jnode *n = node(p, N_CAPTURED);
    while (skip_op(p, '|')) n = filter(p, n);
    return n;
}

static struct jnode *set_statement(struct parser *p) {
    struct jnode *n = node(p, N_SET);
    if (p->t->kind == T_NAME && p->t[1].kind == T_OP && p->t[1].op == '.') {
        n->a = name_or_constant(p);
        p->t++;
        n->a = attribute(p, n->a);
        if (n->a->kind != N_ATTRIBUTE || n->a->a->kind != N_NAME) unexpected(p, "namespace.name to assign to");
    } else {
        n->a = target(p);
    }
    if (skip_op(p, '=')) {
        n->b = tuple(p, true);
        end_of_tag(p);
    } else {
        n->kind = N_SET_BLOCK;
        n->b = block_filters(p);
        n->body = body(p, "endset");
    }
    return n;
}

static void parameters(struct parser *p, struct jnode *macro) {
    expect_op(p, '(');
    while (!skip_op(p, ')')) {
        const struct jstr name = expect_name(p, "the name of a parameter");
        struct jnode *otherwise = skip_op(p, '=') ? expression(p) : NULL;
        if (!otherwise && macro->n_named && macro->named[macro->n_named - 1].value)
            unexpected(p, "a default, as the one before has it");
        add_named(p, macro, name, otherwise);
        if (!is_op(p, ')')) expect_op(p, ',');
    }
}

static void macro_body(struct parser *p, struct jnode *macro, const char *end) {
    const uint8_t outer = p->uses;
    const uint32_t loops = p->loops;
    p->uses = 0;
    p->loops = 0;
    macro->body = body(p, end);
    macro->uses = p->uses;
    p->loops = loops;
    p->uses |= outer;
}

static struct jnode *macro_statement(struct parser *p) {
    struct jnode *n = node(p, N_MACRO);
    n->name = expect_name(p, "the name of the macro");
    parameters(p, n);
    macro_body(p, n, "endmacro");
    return n;
}

static struct jnode *call_statement(struct parser *p) {
    struct jnode *n = node(p, N_CALL_BLOCK);
    n->b = node(p, N_MACRO);
    n->b->name = JSTR("caller");
    if (is_op(p, '(')) parameters(p, n->b);
    n->a = expression(p);
    if (n->a->kind != N_CALL) unexpected(p, "a call of a macro before it");
    macro_body(p, n->b, "endcall");
    return n;
}

static struct jnode *filter_statement(struct parser *p) {
    struct jnode *n = node(p, N_FILTER_BLOCK);
    n->b = filter(p, node(p, N_CAPTURED));
    while (skip_op(p, '|')) n->b = filter(p, n->b);
    n->body = body(p, "endfilter");
    return n;
}

static struct jnode *with_statement(struct parser *p) {
    struct jnode *n = node(p, N_WITH);
    while (p->t->kind != T_BLOCK_END) {
        if (n->n) expect_op(p, ',');
        add_item(p, n, one_target(p));
        expect_op(p, '=');
        add_item(p, n, expression(p));
    }
    n->body = body(p, "endwith");
    return n;
}

static struct jnode *jump(struct parser *p, enum jnode_kind kind) {
    struct jnode *n = node(p, kind);
    if (!p->loops) unexpected(p, "break and continue within a loop");
    end_of_tag(p);
    return n;
}

static struct jnode *do_statement(struct parser *p) {
    struct jnode *n = node(p, N_DO);
    n->a = tuple(p, true);
    end_of_tag(p);
    return n;
}

/* A tag, its word next; of {% generation %} the statements in it, if there are any. */
static struct jnode *tag(struct parser *p) {
    if (skip_name(p, "if")) return if_statement(p);
    if (skip_name(p, "for")) return for_statement(p);
    if (skip_name(p, "set")) return set_statement(p);
    if (skip_name(p, "macro")) return macro_statement(p);
    if (skip_name(p, "call")) return call_statement(p);
    if (skip_name(p, "filter")) return filter_statement(p);
    if (skip_name(p, "with")) return with_statement(p);
    if (skip_name(p, "generation")) return body(p, "endgeneration");
    if (skip_name(p, "break")) return jump(p, N_BREAK);
    if (skip_name(p, "continue")) return jump(p, N_CONTINUE);
    if (skip_name(p, "do")) return do_statement(p);
    static const char *const others[] = {"include", "import", "from", "extends", "block"};
    for (size_t i = 0; i < SH_COUNT(others); i++) {
        if (is_name(p, others[i]))
            jinja_fail(p->s, "found '%s', but a chat template is one text: it can neither load others nor be loaded", others[i]);
    }
    unexpected(p, "a statement: if, for, set, macro, call, filter, with, do, raw, generation, break, continue");
}

static bool is_any(const struct parser *p, const char *const *names) {
    for (; names && *names; names++) {
        if (is_name(p, *names)) return true;
    }
    return false;
}

/* Up to a tag that begins with one of the words (p->t is at the word then), or to the end of the template if ends is NULL. */
static struct jnode *statements(struct parser *p, const char *const *ends) {
    struct jnode *first = NULL, **last = &first;
    const uint32_t begun = p->t->line;
    enter(p);
    for (;;) {
        if (p->t->kind == T_END) {
            if (!ends) break;
            while (ends[1]) ends++; /* the last word is the one that closes it */
            jinja_fail(p->s, "found the end of the template, expected {%% %s %%} for the block that begins in line %u", ends[0],
                       begun);
        }
        if (p->t->kind == T_DATA) {
            *last = node(p, N_DATA);
            (*last)->name = p->t++->text;
        } else if (p->t->kind == T_VAR_BEGIN) {
            *last = node(p, N_OUTPUT);
            p->t++;
            (*last)->a = tuple(p, true);
            if (p->t->kind != T_VAR_END) unexpected(p, "the end of the output, }}");
            p->t++;
        } else {
            p->t++;
            if (is_any(p, ends)) break;
            *last = tag(p);
        }
        while (*last) last = &(*last)->next;
    }
    p->nesting--;
    return first;
}

struct jnode *jinja_parse(struct jinja *s, const struct jtoken *tokens) {
    struct parser p = {.s = s, .t = tokens};
    return statements(&p, NULL);
}

/*
 * reader.c - what an answer's reader gives out, and its buffer of text.
 */
#include "compute/chat/reader.h"

/* ---- pieces ---- */

static struct sh_answer_piece *new_piece(struct sh_answer *a, enum sh_answer_kind kind) {
    if (!sh_grow((void **)&a->pieces, &a->pieces_capacity, a->n_pieces + 1, sizeof *a->pieces) ||
        !sh_grow((void **)&a->ranges, &a->ranges_capacity, a->n_pieces + 1, sizeof *a->ranges)) {
        a->failed = true;
        return NULL;
    }
    a->ranges[a->n_pieces] = (struct piece_range){.text = a->out.length};
    struct sh_answer_piece *p = &a->pieces[a->n_pieces++];
    *p = (struct sh_answer_piece){.kind = kind, .call = a->n_calls};
    return p;
}

void sh_reader_add_text(struct sh_answer *a, enum sh_answer_kind kind, const char *text, size_t length) {
    if (length == 0) return;
    const struct sh_answer_piece *before = a->n_pieces == 0 ? NULL : &a->pieces[a->n_pieces - 1];
    if (before == NULL || before->kind != kind || before->call != a->n_calls) {
        if (before != NULL) sh_buffer_add(&a->out, "", 1); /* the NUL of the text before */
        if (new_piece(a, kind) == NULL) return;
    }
    sh_buffer_add(&a->out, text, length);
    a->ranges[a->n_pieces - 1].length += length;
}

void sh_reader_add_content(struct sh_answer *a, const char *text, size_t length) {
    if (length == 0) return;
    a->fresh = a->drop_space = false;
    for (size_t i = length; i > 0; i--) {
        if (text[i - 1] == ' ' || text[i - 1] == '\t') continue;
        a->line_start = text[i - 1] == '\n';
        break;
    }
    sh_reader_add_text(a, SH_ANSWER_CONTENT, text, length);
}

void sh_reader_add_arguments(struct sh_answer *a, const char *text, size_t length) {
    if (a->muted) return;
    if (a->called) sh_reader_add_text(a, SH_ANSWER_ARGUMENTS, text, length);
    else sh_buffer_add(&a->held, text, length);
}

void sh_reader_add_escaped(struct sh_answer *a, const char *text, size_t length) {
    a->scratch.length = 0;
    sh_buffer_add_escaped(&a->scratch, text, length);
    if (!a->scratch.failed) sh_reader_add_arguments(a, a->scratch.text, a->scratch.length);
}

/* The name is known: the call is handed out. */
void sh_reader_hand_out(struct sh_answer *a) {
    if (a->called) return;
    a->called = true;
    a->raw = false;
    const char *none = a->plan->calls->not_called;
    if (none != NULL && a->name.length == strlen(none)) {
        a->muted = true; /* the two spellings in use: directly_answer, directly-answer */
        for (size_t i = 0; i < a->name.length; i++)
            a->muted &= a->name.text[i] == none[i] || (none[i] == '_' && a->name.text[i] == '-');
    }
    if (a->plan->single_call && a->n_calls > 0) a->muted = true;
    if (a->muted) return;
    if (a->n_pieces > 0) sh_buffer_add(&a->out, "", 1);
    if (new_piece(a, SH_ANSWER_CALL) == NULL) return;
    struct piece_range *r = &a->ranges[a->n_pieces - 1];
    r->name = a->out.length;
    sh_buffer_add(&a->out, a->name.text, a->name.length + 1);
    r->id = a->out.length;
    r->has_id = a->id.length > 0;
    if (r->has_id) sh_buffer_add(&a->out, a->id.text, a->id.length + 1);
    r->text = a->out.length;
    if (a->held.length > 0) sh_reader_add_text(a, SH_ANSWER_ARGUMENTS, a->held.text, a->held.length);
}

void sh_reader_begin_call(struct sh_answer *a) {
    a->named = a->called = a->arguments = a->muted = a->nested = false;
    a->name.length = a->id.length = a->held.length = 0;
}

void sh_reader_end_call(struct sh_answer *a) {
    if (!a->arguments) {
        a->arguments = true;
        sh_reader_add_arguments(a, "{}", 2);
    }
    sh_reader_hand_out(a);
    if (!a->muted) a->n_calls++;
    sh_reader_begin_call(a);
}

/* ---- reading ---- */

enum match sh_reader_match_at(const struct sh_answer *a, size_t at, const char *text) {
    const size_t want = strlen(text), have = a->in.length - at;
    if (memcmp(a->in.text + at, text, want < have ? want : have) != 0) return NO;
    if (want <= have) return YES;
    return a->last ? NO : PERHAPS;
}

enum match sh_reader_take(struct sh_answer *a, const char *text) {
    const enum match m = sh_reader_match_at(a, a->at, text);
    if (m == YES) a->at += strlen(text);
    return m;
}

/* False: no more text. */
bool sh_reader_skip_space(struct sh_answer *a) {
    while (a->at < a->in.length && sh_reader_is_space(a->in.text[a->at])) a->at++;
    return a->at < a->in.length;
}

void sh_reader_leave_to_content(struct sh_answer *a) {
    a->state = a->in_section ? SECTION : CONTENT;
    a->in_array = false;
    if (a->raw) return;
    a->keep = a->at;
    a->drop_space = a->fresh = a->line_start = true;
}

/* This is no call, or none any more. */
void sh_reader_give_up(struct sh_answer *a) {
    const bool raw = a->raw;
    if (a->called && !a->muted) a->n_calls++;
    sh_reader_begin_call(a);
    a->in_section = a->in_array = a->raw = false;
    a->state = a->plan->harmony ? MESSAGE : CONTENT;
    a->message = SH_ANSWER_CONTENT;
    if (raw) sh_reader_add_content(a, a->in.text + a->keep, a->at - a->keep);
    else a->drop_space = a->fresh = a->line_start = true;
    a->keep = a->at;
}

static bool well_named(const struct sh_answer *a) {
    if (a->name.failed || a->name.length == 0 || a->name.length > MAX_NAME) return false;
    for (size_t i = 0; i < a->name.length; i++)
        if ((unsigned char)a->name.text[i] < 0x20) return false;
    if (!(a->plan->calls->flags & SH_FORM_KNOWN)) return true;
    return sh_plan_find_tool(a->plan, a->name.text, a->name.length) != NULL;
}

bool sh_reader_set_name(struct sh_answer *a, const char *text, size_t length) {
    while (length > 0 && sh_reader_is_space(*text)) text++, length--;
    while (length > 0 && sh_reader_is_space(text[length - 1])) length--;
    a->name.length = 0;
    sh_buffer_add(&a->name, text, length);
    a->named = well_named(a);
    return a->named;
}

static const char *const message_ends[] = {"<|end|>", "<|call|>", "<|return|>", "<|start|>"};

/* Does a message end here? */
enum match sh_reader_match_message_end(const struct sh_answer *a, size_t at) {
    enum match best = NO;
    if (a->in.text[at] != '<') return NO;
    for (size_t i = 0; i < SH_COUNT(message_ends); i++) {
        const enum match m = sh_reader_match_at(a, at, message_ends[i]);
        if (m == YES) return YES;
        if (m == PERHAPS) best = PERHAPS;
    }
    return best;
}

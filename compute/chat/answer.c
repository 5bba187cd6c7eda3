/*
 * answer.c - an answer's text -> content, reasoning and calls, as it comes.
 *
 * The text that was not yet dealt with is kept; a state says what is being read, and every step either goes on from `at`, or
 * needs more text, or finds that this is no call. Where it stopped is remembered inside of strings, values and markers too,
 * so that every byte is looked at a bounded number of times however the text is cut. While nothing of a call was handed out
 * its text is kept (`raw`): if it is none after all, that text is content.
 */
#include "compute/chat/reader.h"

#include <stdlib.h>

/* ---- harmony: <|start|>assistant<|channel|>CHANNEL to=RECIPIENT <|constrain|>json<|message|>TEXT<|end|> ---- */

enum { MAX_HEADER = 512 };
static const char *const header_begins[] = {"<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", " to=", "assistant"};

/* A header is whole: what follows it? */
static void read_header(struct sh_answer *a) {
    const char *text = a->header.text;
    const char *channel = strstr(text, "<|channel|>"), *to = strstr(text, "to=");
    sh_reader_begin_call(a);
    a->in_json = a->in_array = false;
    a->state = MESSAGE;
    a->message =
        channel != NULL && strncmp(channel + strlen("<|channel|>"), "analysis", 8) == 0 ? SH_ANSWER_REASONING : SH_ANSWER_CONTENT;
    if (to == NULL || a->plan->calls == NULL) return;
    to += 3;
    size_t length = strcspn(to, " <\n");
    if (length > 10 && memcmp(to, "functions.", 10) == 0) to += 10, length -= 10;
    if (!sh_reader_set_name(a, to, length)) return;
    sh_reader_hand_out(a);
    a->state = MESSAGE_CALL;
}

static enum step step_header(struct sh_answer *a) {
    enum match begins = a->header.length > 0 || a->at > a->mark ? YES : NO;
    for (size_t i = 0; i < SH_COUNT(header_begins) && begins != YES; i++) {
        const enum match m = sh_reader_match_at(a, a->mark, header_begins[i]);
        if (m == YES || (m == PERHAPS && begins == NO)) begins = m;
    }
    if (begins == PERHAPS) return MORE;
    if (begins == NO) return BAD;
    for (; a->at < a->in.length; a->at++) {
        if (a->at - a->mark > MAX_HEADER) return BAD;
        const enum match m = sh_reader_match_at(a, a->at, "<|message|>");
        if (m == PERHAPS) return MORE;
        if (m == NO) continue;
        sh_buffer_add(&a->header, a->in.text + a->mark, a->at - a->mark);
        a->at += strlen("<|message|>");
        a->raw = false;
        if (a->header.failed) return BAD;
        read_header(a);
        if (a->plan->keep_reasoning && a->state == MESSAGE && a->message == SH_ANSWER_REASONING)
            sh_reader_add_content(a, a->in.text + a->mark, a->at - a->mark);
        a->keep = a->at;
        return GO;
    }
    return MORE;
}

static enum step step_message(struct sh_answer *a) {
    const size_t plain = a->at;
    const bool keep = a->plan->keep_reasoning;
    enum match m = NO;
    for (; a->at < a->in.length; a->at++) {
        m = sh_reader_match_message_end(a, a->at);
        if (m != NO) break;
    }
    if (keep) sh_reader_add_content(a, a->in.text + plain, a->at - plain);
    else sh_reader_add_text(a, a->message, a->in.text + plain, a->at - plain);
    a->keep = a->at;
    if (m != YES) return MORE;
    if (keep && a->message == SH_ANSWER_REASONING && sh_reader_match_at(a, a->at, "<|end|>") == YES)
        sh_reader_add_content(a, "<|end|>", 7);
    a->state = BETWEEN;
    return GO;
}

static enum step step_message_call(struct sh_answer *a) {
    if (!sh_reader_skip_space(a)) return MORE;
    const enum match m = sh_reader_match_message_end(a, a->at);
    if (m == PERHAPS) return MORE;
    if (m == YES) {
        sh_reader_end_call(a);
        a->state = BETWEEN;
    } else if (a->in.text[a->at] == '{') {
        sh_json_begin(&a->json);
        a->arguments = true;
        a->state = ARGUMENTS;
    } else if (a->in.text[a->at] == '"') {
        sh_reader_begin_quoted(a);
    } else {
        sh_reader_begin_code(a);
    }
    return GO;
}

/* Anything but a header here is content. */
static enum step step_between(struct sh_answer *a) {
    if (!sh_reader_skip_space(a)) return MORE;
    a->keep = a->mark = a->at;
    const enum match m = sh_reader_match_message_end(a, a->at);
    if (m == PERHAPS) return MORE;
    if (m == YES && sh_reader_match_at(a, a->at, "<|start|>") != YES) { /* which belongs to the header */
        while (a->in.text[a->at] != '>') a->at++;
        a->at++;
        return GO;
    }
    a->raw = true;
    a->header.length = 0;
    a->state = HEADER;
    return GO;
}

/* ---- content and reasoning ---- */

static void add_trigger(struct sh_answer *a, const char *text, enum trigger_kind kind) {
    if (text == NULL) return;
    a->triggers[a->n_triggers++] = (struct trigger){text, strlen(text), kind};
    a->begins[(uint8_t)*text / 8] |= (uint8_t)(1u << ((uint8_t)*text % 8));
}

static void set_triggers(struct sh_answer *a) {
    const struct sh_thought_form *thought = a->plan->thought;
    const struct sh_call_form *calls = a->plan->calls;
    if (thought != NULL) {
        add_trigger(a, thought->open, ON_THOUGHT);
        add_trigger(a, thought->close, ON_STRAY_CLOSE);
        if (!a->plan->keep_reasoning)
            for (size_t i = 0; i < SH_COUNT(thought->silent); i++) add_trigger(a, thought->silent[i], ON_SILENT);
    }
    if (calls == NULL) return;
    add_trigger(a, calls->open, ON_SECTION);
    add_trigger(a, calls->call_open, ON_CALL);
    if (calls->call_open == NULL || calls->shape == SH_CALL_TAGGED) add_trigger(a, calls->name_open, ON_NAME);
    if (calls->flags & SH_FORM_PYTHON_TAG) add_trigger(a, "<|python_tag|>", ON_TAG);
    add_trigger(a, calls->silent, ON_SILENT);
    if (calls->flags & SH_FORM_BARE) {
        if (calls->flags & SH_FORM_FENCE) add_trigger(a, "```json", ON_BARE);
        add_trigger(a, "{", ON_BARE);
        add_trigger(a, "[", ON_BARE);
    }
}

static void begin_thought(struct sh_answer *a) {
    a->state = THOUGHT;
    a->thought_seen = true;
    a->drop_space = true;
}

/* A marker in content. False: here it is ordinary text. */
static bool pull_trigger(struct sh_answer *a, const struct trigger *t) {
    switch (t->kind) {
    case ON_THOUGHT:
        if (!a->fresh && !a->plan->thought->anywhere) {
            a->thought_seen = true; /* content speaks of the marker */
            return false;
        }
        if (a->plan->keep_reasoning) sh_reader_add_content(a, a->in.text + a->keep, a->at + t->length - a->keep);
        a->at += t->length;
        a->keep = a->at;
        begin_thought(a);
        return true;
    case ON_STRAY_CLOSE: /* of reasoning whose opening is not in the answer */
        if (a->thought_seen || a->plan->keep_reasoning) return false;
        a->thought_seen = true;
        a->at += t->length;
        a->keep = a->at;
        a->drop_space = a->fresh = true;
        return true;
    case ON_SILENT:
        a->at += t->length;
        a->keep = a->at;
        a->drop_space = true;
        return true;
    case ON_SECTION:
        a->in_section = a->raw = true;
        a->at += t->length;
        a->state = SECTION;
        return true;
    case ON_CALL:
        a->raw = true;
        a->at += t->length;
        a->state = BODY;
        return true;
    case ON_TAG:
        a->raw = true;
        a->at += t->length;
        a->state = TAG;
        return true;
    case ON_BARE:
        if (!a->line_start) return false;
        /* fallthrough */
    case ON_NAME:
        a->raw = true;
        a->state = BODY;
        return true;
    }
    return false;
}

/* White space in front of `at` waits in [keep, at) as long as a call may follow, before which it is none of the content. */
static enum step step_content(struct sh_answer *a) {
    size_t sure = a->keep;
    enum step step = MORE;
    while (a->at < a->in.length) {
        const char c = a->in.text[a->at];
        if (sh_reader_is_space(c)) {
            a->at++;
            if (a->drop_space) sure = a->keep = a->at;
            continue;
        }
        if (a->begins[(uint8_t)c / 8] >> ((uint8_t)c % 8) & 1) {
            const struct trigger *found = NULL;
            bool perhaps = false;
            for (uint32_t i = 0; i < a->n_triggers; i++) {
                const enum match m = sh_reader_match_at(a, a->at, a->triggers[i].text);
                perhaps |= m == PERHAPS;
                if (m == YES && (found == NULL || a->triggers[i].length > found->length)) found = &a->triggers[i];
            }
            if (perhaps) break;
            if (found != NULL) {
                /* Where a line begins is told by the content so far and the white space that waits. */
                const size_t space = sure;
                sh_reader_add_content(a, a->in.text + a->keep, sure - a->keep);
                a->keep = space;
                for (size_t i = a->keep; i < a->at; i++) a->line_start |= a->in.text[i] == '\n';
                if (pull_trigger(a, found)) return GO;
                a->line_start = false;
            }
        }
        a->drop_space = a->line_start = false;
        sure = ++a->at;
    }
    if (a->last && a->at == a->in.length && !a->drop_space) sure = a->at;
    if (a->plan->calls == NULL && a->plan->thought == NULL) sure = a->at;
    sh_reader_add_content(a, a->in.text + a->keep, sure - a->keep);
    a->keep = sure;
    return step;
}

static enum step step_thought(struct sh_answer *a) {
    const struct sh_thought_form *form = a->plan->thought;
    const bool ends = a->plan->calls != NULL && (a->plan->calls->flags & SH_FORM_ENDS_THOUGHT);
    size_t sure = a->keep;
    const bool keep = a->plan->keep_reasoning;
    while (a->at < a->in.length) {
        const char c = a->in.text[a->at];
        if (sh_reader_is_space(c)) {
            a->at++;
            if (keep) sure = a->at;
            else if (a->drop_space) sure = a->keep = a->at;
            continue;
        }
        const enum match m = sh_reader_match_at(a, a->at, form->close),
                         call = ends ? sh_reader_match_at(a, a->at, a->plan->calls->open) : NO;
        if (m == PERHAPS || call == PERHAPS) break;
        if (m == YES || call == YES) {
            if (keep) sh_reader_add_content(a, a->in.text + a->keep, a->at - a->keep + (m == YES ? strlen(form->close) : 0));
            else sh_reader_add_text(a, SH_ANSWER_REASONING, a->in.text + a->keep, sure - a->keep);
            if (m == YES) a->at += strlen(form->close);
            a->keep = a->at;
            a->state = CONTENT;
            a->drop_space = !keep;
            a->fresh = a->line_start = true;
            return GO;
        }
        a->drop_space = false;
        sure = ++a->at;
    }
    if (a->last && !a->drop_space) sure = a->in.length;
    if (keep) sh_reader_add_content(a, a->in.text + a->keep, sure - a->keep);
    else sh_reader_add_text(a, SH_ANSWER_REASONING, a->in.text + a->keep, sure - a->keep);
    a->keep = sure;
    return MORE;
}

static bool uses_mark(enum state state) {
    switch (state) {
    case KEY_TEXT:
    case NAME_VALUE:
    case ID_VALUE:
    case NAME:
    case ID:
    case PARAM_KEY:
    case PARAM_TYPE:
    case PARAM_VALUE:
    case WORD:
    case HEADER: return true;
    default: return false;
    }
}

static enum step step(struct sh_answer *a) {
    switch (a->state) {
    case CONTENT: return step_content(a);
    case THOUGHT: return step_thought(a);
    case HEADER: return step_header(a);
    case MESSAGE: return step_message(a);
    case MESSAGE_CALL: return step_message_call(a);
    case BETWEEN: return step_between(a);
    default: return sh_reader_step_call(a);
    }
}

/* ---- the public functions ---- */

enum sh_code sh_answer_create(const struct sh_chat_prompt *prompt, struct sh_answer **out, struct sh_error *err) {
    *out = NULL;
    struct sh_answer *a = sh_calloc(1, sizeof *a);
    if (a == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for reading an answer");
    a->plan = prompt->plan;
    a->fresh = a->line_start = true;
    set_triggers(a);
    if (a->plan->start == SH_START_THOUGHT) begin_thought(a);
    if (a->plan->start == SH_START_CALL) {
        a->raw = true;
        a->state = BODY;
    }
    if (a->plan->start == SH_START_HEADER) {
        a->raw = true;
        a->state = HEADER;
        sh_buffer_add_string(&a->header, a->plan->header);
    }
    if (a->plan->start == SH_START_MESSAGE) {
        sh_buffer_add_string(&a->header, a->plan->header);
        if (!a->header.failed) read_header(a);
    }
    *out = a;
    return SH_OK;
}

void sh_answer_destroy(struct sh_answer *answer) {
    if (answer == NULL) return;
    free(answer->in.text);
    free(answer->name.text);
    free(answer->id.text);
    free(answer->held.text);
    free(answer->scratch.text);
    free(answer->converted.text);
    free(answer->param.text);
    free(answer->header.text);
    free(answer->out.text);
    free(answer->pieces);
    free(answer->ranges);
    free(answer);
}

bool sh_answer_is_cut(const struct sh_answer *answer) { return answer->cut; }

enum sh_code sh_answer_push(struct sh_answer *a, const char *text, size_t length, bool last,
                            const struct sh_answer_piece **pieces, uint32_t *count, struct sh_error *err) {
    *pieces = NULL;
    *count = 0;
    a->n_pieces = 0;
    a->out.length = 0;
    a->last = last;
    sh_buffer_add(&a->in, text, length);
    while (!a->in.failed) {
        const enum step s = step(a);
        if (!a->raw && a->state != CONTENT && a->state != THOUGHT) a->keep = a->at;
        if (!uses_mark(a->state)) a->mark = a->at;
        if (s == GO) continue;
        if (s == MORE && (!last || a->state == CONTENT || a->state == THOUGHT || a->state == MESSAGE)) break;
        if (s == MORE) { /* a call that was cut off */
            a->at = a->in.length;
            a->cut |= a->called && !a->muted;
        }
        sh_reader_give_up(a);
    }
    if (a->n_pieces > 0) sh_buffer_add(&a->out, "", 1);
    if (a->failed || a->in.failed || a->out.failed || a->name.failed || a->id.failed || a->held.failed || a->scratch.failed ||
        a->converted.failed || a->param.failed || a->header.failed)
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for an answer of %zu bytes so far", a->in.length);
    /* What was dealt with goes once it is the larger half: each byte moves a bounded number of times. */
    const size_t done = a->keep < a->mark ? a->keep : a->mark;
    if (done > a->in.length / 2) {
        memmove(a->in.text, a->in.text + done, a->in.length - done);
        a->in.length -= done;
        a->at -= done;
        a->mark -= done;
        a->keep -= done;
    }
    for (uint32_t i = 0; i < a->n_pieces; i++) {
        struct sh_answer_piece *p = &a->pieces[i];
        const struct piece_range *r = &a->ranges[i];
        p->text = a->out.text + r->text;
        p->length = r->length;
        if (p->kind != SH_ANSWER_CALL) continue;
        p->name = a->out.text + r->name;
        p->id = r->has_id ? a->out.text + r->id : NULL;
    }
    *pieces = a->pieces;
    *count = a->n_pieces;
    return SH_OK;
}

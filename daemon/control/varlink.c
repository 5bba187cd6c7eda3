/* varlink.c - see varlink.h. */
#include "daemon/control/varlink.h"

#include <stdlib.h>
#include <string.h>

size_t frame_reader_room(const struct frame_reader *reader) {
    size_t have = reader->length - reader->consumed;
    return have < FRAME_MAX_BYTES + 1 ? FRAME_MAX_BYTES + 1 - have : 0;
}

/* Only when bytes are added: to move what is left for each of many messages that came at once would take quadratic time. */
static void drop_consumed(struct frame_reader *reader) {
    size_t drop = reader->consumed;
    if (drop == 0) return;
    reader->length -= drop;
    memmove(reader->data, reader->data + drop, reader->length);
    reader->scanned -= drop;
    reader->value_start -= drop; /* of no meaning before the next message has begun */
    reader->value_end -= drop;
    reader->consumed = 0;
}

bool frame_reader_append(struct frame_reader *reader, const char *bytes, size_t count) {
    drop_consumed(reader);
    size_t need = reader->length + count;
    if (need > reader->capacity) {
        size_t capacity = reader->capacity ? reader->capacity : 4096;
        while (capacity < need) capacity *= 2;
        char *data = realloc(reader->data, capacity);
        if (!data) return false;
        reader->data = data;
        reader->capacity = capacity;
    }
    memcpy(reader->data + reader->length, bytes, count);
    reader->length = need;
    return true;
}

void frame_reader_finish(struct frame_reader *reader) {
    free(reader->data);
    *reader = (struct frame_reader){0};
}

static bool is_space(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

/* One byte of the message's value. Braces are counted, the grammar is the JSON parser's business. Returns what is wrong, or
 * NULL. */
static const char *scan_value(struct frame_reader *reader, char c) {
    if (c == '\0') return "the message ends within its JSON object";
    if (reader->in_string) {
        if (reader->escaped) reader->escaped = false;
        else if (c == '\\') reader->escaped = true;
        else if (c == '"') reader->in_string = false;
        return NULL;
    }
    if (c == '"') reader->in_string = true;
    if (c == '{' || c == '[') {
        if (++reader->depth > FRAME_MAX_DEPTH) return "the message is nested too deeply";
    }
    if (c == '}' || c == ']') {
        if (--reader->depth == 0) {
            reader->complete = true;
            reader->value_end = reader->scanned + 1;
        }
    }
    return NULL;
}

enum frame_result frame_reader_next(struct frame_reader *reader, char **message, size_t *length, const char **why) {
    if (!reader->terminator_known) reader->terminator = '\n';
    for (; reader->scanned < reader->length; reader->scanned++) {
        char c = reader->data[reader->scanned];
        if (!reader->begun) {
            if (is_space(c)) continue;
            if (c != '{') {
                *why = "a message is one JSON object, beginning with {";
                return FRAME_BAD;
            }
            reader->begun = true;
            reader->value_start = reader->scanned;
        }
        if (!reader->complete) {
            *why = scan_value(reader, c);
            if (*why) return FRAME_BAD;
            continue;
        }
        bool ends = reader->terminator_known ? c == reader->terminator : c == '\0' || c == '\n';
        if (!ends && !is_space(c)) {
            *why = "a message ends with a NUL or a line feed, and nothing else may stand behind its JSON object";
            return FRAME_BAD;
        }
        if (!ends) continue;
        reader->terminator_known = true;
        reader->terminator = c;
        reader->consumed = ++reader->scanned;
        *message = reader->data + reader->value_start;
        *length = reader->value_end - reader->value_start;
        reader->data[reader->value_end] = '\0';
        reader->begun = reader->complete = false;
        reader->depth = 0;
        return FRAME_MESSAGE;
    }
    if (!reader->begun) { /* nothing but white space */
        reader->length = reader->scanned = reader->consumed = 0;
    } else if (reader->length - reader->consumed > FRAME_MAX_BYTES) {
        *why = "the message is longer than 16 MiB";
        return FRAME_BAD;
    }
    return FRAME_NONE;
}

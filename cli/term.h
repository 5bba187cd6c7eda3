/*
 * term.h - what shimmyctl shows: tables, sizes, colours, and one progress line. One thread.
 *
 * Colours and the progress line appear only on a terminal; NO_COLOR (any value that is not empty) and TERM=dumb switch colours
 * off. Text that comes from a file or a model is shown with its control characters replaced on a terminal, so that no model can
 * drive it.
 */
#ifndef SHIMMYCTL_TERM_H
#define SHIMMYCTL_TERM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum term_style { TERM_PLAIN, TERM_BOLD, TERM_DIM, TERM_RED, TERM_GREEN, TERM_YELLOW };

bool term_is_terminal(FILE *stream);
bool term_has_colour(FILE *stream);

/* Writes length bytes of UTF-8. On a terminal control characters other than line feed and tab become U+FFFD. */
void term_write(FILE *stream, const char *text, size_t length);
void term_puts(FILE *stream, enum term_style style, const char *text);

/* "1.2 GiB", "512 B". buf holds at least 16 bytes; returned. */
const char *term_bytes(uint64_t bytes, char *buf, size_t size);

/* A table: cells are added row by row and copied; columns are aligned when it is printed, the last one is not padded. */
struct term_table;
struct term_table *term_table_create(size_t columns); /* NULL: no memory */
void term_table_add(struct term_table *table, enum term_style style, const char *text); /* NULL text: "-" */
/* True if all cells were kept (memory). Frees the table. */
bool term_table_print(struct term_table *table, FILE *stream);

/* The progress line on stderr, drawn over itself; nothing at all when stderr is no terminal. */
struct term_progress {
    bool shown;
    uint64_t begun_ns, drawn_ns;
};
void term_progress_show(struct term_progress *progress, const char *what, const char *phase, double fraction);
void term_progress_finish(struct term_progress *progress, const char *what, const char *phase); /* a full bar, which stays */
void term_progress_clear(struct term_progress *progress);

uint64_t term_now_ns(void); /* monotonic */

#endif

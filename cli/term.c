/* term.c - tables, sizes, colours and the progress line of shimmyctl. */
#include "cli/term.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>
#include <wchar.h>

static const char *const style_codes[] = {"", "\033[1m", "\033[2m", "\033[31m", "\033[32m", "\033[33m"};

bool term_is_terminal(FILE *stream) { return isatty(fileno(stream)) == 1; }

bool term_has_colour(FILE *stream) {
    const char *no_color = getenv("NO_COLOR"), *terminal = getenv("TERM");
    if (no_color && *no_color) return false;
    return terminal && strcmp(terminal, "dumb") != 0 && term_is_terminal(stream);
}

/* Length of a control character at text: C0, DEL, or C1 in its two-byte UTF-8 form; 0: none. */
static size_t control_length(const char *text, size_t length) {
    unsigned char c = (unsigned char)text[0];
    if (c == '\n' || c == '\t') return 0;
    if (c < 0x20 || c == 0x7f) return 1;
    if (c == 0xc2 && length > 1 && (unsigned char)text[1] >= 0x80 && (unsigned char)text[1] < 0xa0) return 2;
    return 0;
}

void term_write(FILE *stream, const char *text, size_t length) {
    if (!term_is_terminal(stream)) {
        fwrite(text, 1, length, stream);
        return;
    }
    size_t begin = 0;
    for (size_t i = 0; i < length;) {
        size_t control = control_length(text + i, length - i);
        if (!control) {
            i++;
            continue;
        }
        fwrite(text + begin, 1, i - begin, stream);
        fputs("\xef\xbf\xbd", stream);
        begin = i += control;
    }
    fwrite(text + begin, 1, length - begin, stream);
}

void term_puts(FILE *stream, enum term_style style, const char *text) {
    bool colour = style != TERM_PLAIN && term_has_colour(stream);
    if (colour) fputs(style_codes[style], stream);
    term_write(stream, text, strlen(text));
    if (colour) fputs("\033[0m", stream);
}

const char *term_bytes(uint64_t bytes, char *buf, size_t size) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)bytes;
    size_t unit = 0;
    while (value >= 1023.95 && unit < 6) value /= 1024, unit++;
    if (unit == 0) snprintf(buf, size, "%.0f B", value);
    else snprintf(buf, size, "%.1f %s", value, units[unit]);
    return buf;
}

/* ---- tables ---- */

struct cell {
    char *text;
    enum term_style style;
    size_t width; /* columns on the screen */
};
struct term_table {
    size_t columns, count, capacity;
    struct cell *cells;
    bool failed;
};

/* Screen columns of UTF-8 text in the locale's opinion; bytes where it has none. */
static size_t display_width(const char *text) {
    mbstate_t state = {0};
    size_t width = 0;
    for (const char *p = text; *p;) {
        wchar_t wide;
        size_t n = mbrtowc(&wide, p, MB_CUR_MAX, &state);
        if (n == (size_t)-1 || n == (size_t)-2) {
            state = (mbstate_t){0};
            p++, width++;
            continue;
        }
        int columns = wcwidth(wide);
        width += columns > 0 ? (size_t)columns : columns < 0;
        p += n;
    }
    return width;
}

struct term_table *term_table_create(size_t columns) {
    struct term_table *table = calloc(1, sizeof *table);
    if (table) table->columns = columns;
    return table;
}

void term_table_add(struct term_table *table, enum term_style style, const char *text) {
    if (!table || table->failed) return;
    if (table->count == table->capacity) {
        size_t capacity = table->capacity ? table->capacity * 2 : 64;
        struct cell *cells = reallocarray(table->cells, capacity, sizeof *cells);
        if (!cells) {
            table->failed = true;
            return;
        }
        table->cells = cells;
        table->capacity = capacity;
    }
    char *copy = strdup(text ? text : "-");
    if (!copy) {
        table->failed = true;
        return;
    }
    for (char *c = copy; *c; c++) /* one cell is one line */
        if (*c == '\n' || *c == '\t') *c = ' ';
    table->cells[table->count++] = (struct cell){copy, style, display_width(copy)};
}

bool term_table_print(struct term_table *table, FILE *stream) {
    if (!table) return false;
    bool complete = !table->failed;
    for (size_t i = 0; i < table->count; i++) {
        size_t column = i % table->columns, width = 0;
        bool last = column + 1 == table->columns || i + 1 == table->count;
        for (size_t j = column; j < table->count; j += table->columns)
            if (table->cells[j].width > width) width = table->cells[j].width;
        term_puts(stream, table->cells[i].style, table->cells[i].text);
        if (last) fputc('\n', stream);
        else fprintf(stream, "%*s", (int)(width - table->cells[i].width + 2), "");
    }
    for (size_t i = 0; i < table->count; i++) free(table->cells[i].text);
    free(table->cells);
    free(table);
    return complete;
}

/* ---- progress ---- */

uint64_t term_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void draw(struct term_progress *progress, const char *what, const char *phase, double fraction, uint64_t now) {
    enum { BAR_MAX = 40 };
    struct winsize window;
    size_t width = ioctl(STDERR_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col ? window.ws_col : 80;
    size_t text = display_width(what) + display_width(phase) + 26;
    size_t bar = width > text ? width - text : 0;
    if (bar > BAR_MAX) bar = BAR_MAX;

    fputs("\r\033[K", stderr);
    term_puts(stderr, TERM_BOLD, what);
    if (bar >= 4) {
        char filled[BAR_MAX + 1];
        size_t full = (size_t)(fraction * (double)bar + 0.5);
        memset(filled, '#', full);
        memset(filled + full, '.', bar - full);
        filled[bar] = 0;
        fputs("  [", stderr);
        term_puts(stderr, TERM_GREEN, filled);
        fputc(']', stderr);
    }
    fprintf(stderr, " %3.0f %%  ", fraction * 100);
    term_write(stderr, phase, strlen(phase));
    fprintf(stderr, "  %.1f s", (double)(now - progress->begun_ns) / 1e9);
    fflush(stderr);
    progress->shown = true;
    progress->drawn_ns = now;
}

void term_progress_show(struct term_progress *progress, const char *what, const char *phase, double fraction) {
    enum { FIRST_NS = 150000000, REDRAW_NS = 50000000 }; /* what is over at once does not flicker */
    if (!term_is_terminal(stderr)) return;
    uint64_t now = term_now_ns();
    if (!progress->begun_ns) progress->begun_ns = now;
    if (!progress->shown && now - progress->begun_ns < FIRST_NS) return;
    if (progress->shown && fraction < 1 && now - progress->drawn_ns < REDRAW_NS) return;
    draw(progress, what, phase, fraction >= 0 ? fraction > 1 ? 1 : fraction : 0, now);
}

void term_progress_finish(struct term_progress *progress, const char *what, const char *phase) {
    if (!term_is_terminal(stderr)) return;
    const uint64_t now = term_now_ns();
    if (!progress->begun_ns) progress->begun_ns = now;
    draw(progress, what, phase, 1, now);
    fputc('\n', stderr);
    progress->shown = false;
}

void term_progress_clear(struct term_progress *progress) {
    if (progress->shown) fputs("\r\033[K", stderr);
    progress->shown = false;
}

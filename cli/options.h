/*
 * options.h - the command line of shimmyctl as tables: what a command takes, and the parser that fills it in.
 *
 * One table per command plus one of options that every command takes. Dispatch, --help, the bash completion and the tests all
 * read the same tables, so an option cannot exist in one and not in another.
 * Ownership: a struct cli_line points into argv and must not outlive it. One thread.
 */
#ifndef SHIMMYCTL_OPTIONS_H
#define SHIMMYCTL_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>

enum cli_kind {
    CLI_FLAG,    /* --json */
    CLI_TEXT,    /* --device NAME; the last one counts */
    CLI_TEXTS,   /* --stop TEXT, repeatable up to CLI_TEXTS_MAX */
    CLI_INTEGER, /* decimal, min..max */
    CLI_NUMBER,  /* a finite number, min..max */
};

struct cli_option {
    const char *name; /* without the dashes; NULL ends a table */
    char letter;      /* short form, 0: none */
    enum cli_kind kind;
    const char *value; /* what stands for the value in the help; NULL for a flag */
    const char *help;  /* one line */
    const char *words; /* for the completion: values parted by spaces, "@file", "@device", or NULL */
    double min, max;   /* CLI_INTEGER and CLI_NUMBER, both ends included */
};

struct cli;
struct cli_command {
    const char *name;      /* NULL ends the table */
    const char *arguments; /* "MODEL [PROMPT]" */
    const char *summary;   /* one line */
    const char *details;   /* further lines of the command's help, or NULL */
    size_t min_arguments, max_arguments;
    const struct cli_option *options; /* NULL: none of its own */
    const char *complete;             /* what its first argument is: "@model", "@file", words, or NULL */
    int (*run)(struct cli *cli);      /* returns the exit status */
};

enum { CLI_OPTIONS_MAX = 64, CLI_TEXTS_MAX = 64, CLI_ARGUMENTS_MAX = 65536 };

struct cli_value {
    bool set;
    const char *text;    /* CLI_TEXT; of numbers as written */
    long long integer;   /* CLI_INTEGER */
    double number;       /* CLI_NUMBER */
    const char **texts;  /* CLI_TEXTS, malloc'd */
    size_t n_texts;
};

struct cli_line { /* a parsed command line */
    const struct cli_command *command; /* NULL: none was given */
    const struct cli_option *global;
    struct cli_value global_values[CLI_OPTIONS_MAX], values[CLI_OPTIONS_MAX];
    const char **arguments; /* malloc'd array of what is no option, without the command's name */
    size_t n_arguments;
};

/* Fills *line. False: `error` (one line: what was found, what was expected) is set; finish *line all the same. Options may stand
 * before and after the command and among its arguments; "--" ends them; `--name=value` is `--name value`; -hv is -h -v. Counts of
 * arguments are not checked when --help is given. */
bool cli_parse(const struct cli_option *global, const struct cli_command *commands, int argc, char **argv, struct cli_line *line,
               char *error, size_t error_size);
void cli_line_finish(struct cli_line *line);

const struct cli_command *cli_find_command(const struct cli_command *commands, const char *name); /* NULL: no such */

/* The value of an option of this line's command or of the global ones; never NULL: asking for a name that is in neither table is
 * a mistake in this program and ends it. */
const struct cli_value *cli_value(const struct cli_line *line, const char *name);
bool cli_flag(const struct cli_line *line, const char *name);
const char *cli_text(const struct cli_line *line, const char *name); /* NULL: not given */

#endif

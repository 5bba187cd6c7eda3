/*
 * commands.h - the table of shimmyctl's commands, and what the files that implement them share.
 *
 * Exit statuses: 0 done; 1 refused or failed, also when no daemon answers; 2 usage; 130 interrupted (SIGINT or SIGTERM).
 * Results go to stdout, everything else to stderr. With --json each reply of the daemon is one line of JSON on stdout, errors too
 * ({"error", "parameters"}).
 */
#ifndef SHIMMYCTL_COMMANDS_H
#define SHIMMYCTL_COMMANDS_H

#include "cli/client.h"
#include "cli/options.h"
#include "cli/term.h"

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_INTERRUPTED = 130 };

struct cli {
    struct cli_line line;
    bool json, quiet;
    struct client *client; /* opened by cli_connect */
};

/* Both end with an entry whose name is NULL. */
extern const struct cli_option cli_global_options[];
extern const struct cli_command cli_commands[];

void cli_print_help(const struct cli_command *command); /* NULL: of the whole program */
void cli_print_completion(FILE *stream);                /* the bash completion, from the tables */

int cli_usage_error(const struct cli *cli, const char *fmt, ...) __attribute__((format(printf, 2, 3))); /* EXIT_USAGE */
int cli_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));                               /* EXIT_FAILED */

/* Connects once. False: it has said that no daemon answers and how to start one. */
bool cli_connect(struct cli *cli);
/* Calls without "more". EXIT_DONE: *reply is a new reference. */
int cli_ask(struct cli *cli, const char *method, json_t *parameters, json_t **reply);
/* The same, and with --json the reply has been printed, too. */
int cli_call(struct cli *cli, const char *method, json_t *parameters, json_t **reply);
/* After client_next gave something else than CLIENT_REPLY: says so; returns the exit status. Drops `parameters`. */
int cli_call_failed(struct cli *cli, enum client_result result, json_t *parameters);

/* Is a MODEL argument a path? It is if it ends in .gguf, begins with / or ., or has a slash and such a file exists. Else it is a name. */
bool cli_is_path(const char *model);
/* {"model": the MODEL argument}; a relative path is made absolute, since the daemon works in another directory. */
json_t *cli_model_parameters(const char *model);
/* --chat-template, a file's path made absolute; NULL: not given. New reference. */
json_t *cli_template_parameter(struct cli *cli);
/* The object of --kwargs, a new reference; NULL where it was not given. False: it has said why, a usage error. */
bool cli_read_kwargs(const struct cli *cli, json_t **variables);
/* Loads with a progress line; takes --device, --context and --kv-type from the line if `options`. With `print` the outcome goes
 * to stdout, with --json every reply. */
int cli_load(struct cli *cli, const char *model, bool options, bool print);

/* The options of an answer (ANSWER_OPTIONS of commands.c) as a request of Generate without model and prompt; new reference. NULL: it has
 * said why, and *status is the exit status. */
json_t *cli_answer_request(const struct cli *cli, int *status);
/* Shows the replies of Generate until the last one, and writes the text to `copy`, too, unless that is NULL; returns the exit status. */
int cli_answer_show(struct cli *cli, FILE *copy);

/* --priority and --keep-alive, as they were given. */
void cli_add_service(const struct cli_line *line, json_t *request);

void cli_print_json(const json_t *value); /* one line on stdout */
/* A JSON string of any bytes; what is not UTF-8 becomes U+FFFD. */
json_t *cli_json_text(const char *bytes, size_t length);
/* Reads a whole stream, `name` for messages; *text malloc'd and NUL-terminated. False: it has said why. */
bool cli_read_all(FILE *stream, const char *name, char **text, size_t *length);
bool cli_read_file(const char *path, char **text, size_t *length); /* the same of a file */

/* Argument `index`, else standard input without its last line feed; `what` names it for a person who is to type it. */
bool cli_argument_or_stdin(const struct cli *cli, size_t index, const char *what, char **text, size_t *length);

int cmd_status(struct cli *cli);
int cmd_list(struct cli *cli);
int cmd_discover(struct cli *cli);
int cmd_devices(struct cli *cli);
int cmd_load(struct cli *cli);
int cmd_unload(struct cli *cli);
int cmd_generate(struct cli *cli);
int cmd_chat(struct cli *cli);
int cmd_embed(struct cli *cli);
int cmd_cancel(struct cli *cli);
int cmd_tokenize(struct cli *cli);
int cmd_detokenize(struct cli *cli);
int cmd_template(struct cli *cli);
int cmd_inspect(struct cli *cli);
int cmd_verify(struct cli *cli);
int cmd_perplexity(struct cli *cli);
int cmd_quantize(struct cli *cli);
int cmd_session(struct cli *cli);
int cmd_help(struct cli *cli);
int cmd_completion(struct cli *cli);

#endif

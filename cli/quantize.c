/* quantize.c - quantize: a model file with smaller weights. Needs no daemon. */
#include "cli/commands.h"
#include "compute/engine.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>

struct show {
    struct term_progress progress;
    bool on;
};

static volatile sig_atomic_t interrupted;

static void on_signal(int signal_number) {
    (void)signal_number;
    interrupted = 1;
}

/* The first SIGINT or SIGTERM ends the work, so that what was written is removed; a second one kills. */
static void catch_signals(void) {
    const struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND | SA_RESTART};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

static bool on_progress(void *user, const char *tensor, double fraction) {
    struct show *show = user;
    if (show->on) term_progress_show(&show->progress, "quantising", tensor, fraction);
    return !interrupted;
}

/* Bytes of a model's file, all shards of it; 0: it cannot be opened any more. */
static uint64_t size_of(const char *path) {
    struct sh_file *file;
    struct sh_file_summary summary = {0};
    struct sh_error err;
    if (sh_file_open(path, &file, &err) != SH_OK) return 0;
    sh_file_get_summary(file, &summary);
    sh_file_close(file);
    return summary.file_bytes;
}

static int unknown_type(const struct cli *cli, const char *type) {
    char names[512] = "";
    const char *name;
    for (uint32_t i = 0; (name = sh_quantize_type_at(i)) != NULL; i++)
        snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", i > 0 ? ", " : "", name);
    return cli_usage_error(cli, "TYPE: found '%s', expected one of %s; what takes an importance matrix cannot be made", type, names);
}

int cmd_quantize(struct cli *cli) {
    const char *in = cli->line.arguments[0], *out = cli->line.arguments[1], *type = cli->line.arguments[2];
    if (!sh_quantize_type(type)) return unknown_type(cli, type);
    struct stat before;
    if (!cli_flag(&cli->line, "force") && lstat(out, &before) == 0) return cli_fail("%s: exists; --force replaces it", out);
    struct show show = {.on = !cli->quiet && !cli->json && term_is_terminal(stderr)};
    struct sh_error err = {0};
    const struct sh_quantize_file_params params = {
        .size = sizeof params,
        .in = in,
        .out = out,
        .type = type,
        .threads = cli_value(&cli->line, "threads")->set ? (uint32_t)cli_value(&cli->line, "threads")->integer : 0,
        .progress = on_progress,
        .user = &show};
    catch_signals();
    const enum sh_code code = sh_quantize_file(&params, &err);
    if (show.on) term_progress_clear(&show.progress);
    if (code == SH_ERR_CANCELLED) {
        fprintf(stderr, "shimmyctl: interrupted\n");
        return EXIT_INTERRUPTED;
    }
    if (code != SH_OK) return cli_fail("%s", err.message);
    struct stat is;
    if (stat(out, &is) != 0) return cli_fail("%s: %s", out, strerror(errno));
    char from[16], to[16];
    if (cli->json) {
        json_t *object =
            json_pack("{s:o, s:s, s:I}", "file", cli_json_text(out, strlen(out)), "type", type, "bytes", (json_int_t)is.st_size);
        cli_print_json(object);
        json_decref(object);
    } else if (!cli->quiet) {
        printf("%s: %s, from %s\n", out, term_bytes((uint64_t)is.st_size, to, sizeof to),
               term_bytes(size_of(in), from, sizeof from));
    }
    return EXIT_DONE;
}

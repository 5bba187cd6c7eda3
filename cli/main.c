/* main.c - shimmyctl: reads the command line, runs the command, says how it ended. */
#include "cli/commands.h"
#include "compute/engine.h"

#include <fcntl.h>
#include <locale.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Where a standard stream was closed, the connection would get its number, and be read as standard input or written to as output. What
 * stands there instead fails: standard input can only be written, the others only be read. */
static bool fill_standard_streams(void) {
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) != fd) return false;
    return true;
}

static int run(struct cli *cli) {
    const struct cli_command *command = cli->line.command;
    if (cli_flag(&cli->line, "version")) {
        printf("shimmyctl %s\n", sh_version());
        return EXIT_DONE;
    }
    if (cli_flag(&cli->line, "help")) {
        cli_print_help(command);
        return EXIT_DONE;
    }
    if (!command) return cli_usage_error(cli, "a command is missing");
    return command->run(cli);
}

int main(int argc, char **argv) {
    if (!fill_standard_streams()) return EXIT_FAILED;
    setlocale(LC_CTYPE, ""); /* widths of what is shown; numbers keep their points */
    struct cli cli = {0};
    char error[512];
    int status;
    if (!cli_parse(cli_global_options, cli_commands, argc, argv, &cli.line, error, sizeof error)) {
        status = cli_usage_error(&cli, "%s", error);
    } else {
        cli.json = cli_flag(&cli.line, "json");
        cli.quiet = cli_flag(&cli.line, "quiet");
        status = run(&cli);
    }
    client_close(cli.client);
    cli_line_finish(&cli.line);
    if (fflush(stdout) || ferror(stdout)) {
        perror("shimmyctl: standard output");
        if (status == EXIT_DONE) status = EXIT_FAILED;
    }
    return status;
}

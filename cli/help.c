/* help.c - help, and the bash completion that is written from the same tables. */
#include "cli/commands.h"

#include <string.h>

int cmd_help(struct cli *cli) {
    const struct cli_command *about = NULL;
    if (cli->line.n_arguments) {
        about = cli_find_command(cli_commands, cli->line.arguments[0]);
        if (!about) return cli_usage_error(cli, "unknown command \"%s\"", cli->line.arguments[0]);
    }
    cli_print_help(about);
    return EXIT_DONE;
}

static void print_words(FILE *out, const struct cli_option *options) {
    for (const struct cli_option *o = options; o && o->name; o++) {
        if (o->letter) fprintf(out, " -%c", o->letter);
        fprintf(out, " --%s", o->name);
    }
}

/* The case branch that completes an option's value. */
static void print_value(FILE *out, const char *command, const struct cli_option *o) {
    if (o->kind == CLI_FLAG) return;
    fprintf(out, "    %s,--%s", command, o->name);
    if (o->letter) fprintf(out, " | %s,-%c", command, o->letter);
    if (o->words && o->words[0] == '@') fprintf(out, ") _shimmyctl_%s; return ;;\n", o->words + 1);
    else fprintf(out, ") _shimmyctl_words '%s'; return ;;\n", o->words ? o->words : "");
}

void cli_print_completion(FILE *out) {
    fputs("# bash completion for shimmyctl. Written by `shimmyctl completion bash`; do not edit.\n"
          "\n"
          "_shimmyctl_words() { mapfile -t COMPREPLY < <(compgen -W \"$1\" -- \"$cur\"); }\n"
          "_shimmyctl_file() { mapfile -t COMPREPLY < <(compgen -f -- \"$cur\"); compopt -o filenames; }\n"
          "_shimmyctl_names() { shimmyctl ${socket:+--socket \"$socket\"} \"$@\" 2>/dev/null; }\n"
          "_shimmyctl_model() {\n"
          "    local IFS=$'\\n'\n"
          "    case $cur in\n"
          "    */* | .*) _shimmyctl_file ;;\n"
          "    *) mapfile -t COMPREPLY < <(compgen -W \"$(_shimmyctl_names list --names)\" -- \"$cur\") ;;\n"
          "    esac\n"
          "}\n"
          "_shimmyctl_device() { _shimmyctl_words 'auto cpu'; }\n",
          out);
    fputs("_shimmyctl_command() { _shimmyctl_words '", out);
    for (const struct cli_command *c = cli_commands; c->name; c++) fprintf(out, "%s%s", c == cli_commands ? "" : " ", c->name);
    fputs(
        "'; }\n"
        "\n"
        "_shimmyctl() {\n"
        "    local cur=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} command='' socket='' arguments=0 i word\n"
        "    COMPREPLY=()\n"
        "    for ((i = 1; i < COMP_CWORD; i++)); do\n"
        "        word=${COMP_WORDS[i]}\n"
        "        case $word in\n"
        "        --socket | -s) socket=${COMP_WORDS[i + 1]} i=$((i + 1)) ;;\n"
        "        -*) ;;\n"
        "        *) if [ -z \"$command\" ]; then command=$word; else arguments=$((arguments + 1)); fi ;;\n"
        "        esac\n"
        "    done\n"
        "    case $command,$previous in\n",
        out);
    for (const struct cli_option *o = cli_global_options; o->name; o++) print_value(out, "*", o);
    for (const struct cli_command *c = cli_commands; c->name; c++)
        for (const struct cli_option *o = c->options; o && o->name; o++) print_value(out, c->name, o);
    fputs("    esac\n"
          "    local options='",
          out);
    print_words(out, cli_global_options);
    fputs("'\n"
          "    case $command in\n",
          out);
    for (const struct cli_command *c = cli_commands; c->name; c++) {
        if (!c->options) continue;
        fprintf(out, "    %s) options+='", c->name);
        print_words(out, c->options);
        fputs("' ;;\n", out);
    }
    fputs("    esac\n"
          "    case $cur in\n"
          "    -*) _shimmyctl_words \"$options\"; return ;;\n"
          "    esac\n"
          "    case $command,$arguments in\n"
          "    ,*) _shimmyctl_command ;;\n",
          out);
    for (const struct cli_command *c = cli_commands; c->name; c++) {
        if (!c->complete) continue;
        fprintf(out, "    %s,0) ", c->name);
        if (c->complete[0] == '@') fprintf(out, "_shimmyctl_%s ;;\n", c->complete + 1);
        else fprintf(out, "_shimmyctl_words '%s' ;;\n", c->complete);
    }
    fputs("    esac\n"
          "}\n"
          "complete -F _shimmyctl shimmyctl\n",
          out);
}

int cmd_completion(struct cli *cli) {
    const char *shell = cli->line.arguments[0];
    if (strcmp(shell, "bash") != 0) return cli_usage_error(cli, "SHELL: found \"%s\", expected bash", shell);
    cli_print_completion(stdout);
    return EXIT_DONE;
}

/* commands.c - the tables: every command and option of shimmyctl, once; and the help that is printed from them. */
#include "cli/commands.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define INT_LIMIT 2147483647.0
#define SEED_LIMIT 9223372036854774784.0 /* the largest double below 2^63 */

const struct cli_option cli_global_options[] = {
    {"socket", 's', CLI_TEXT, "PATH", "control socket of the daemon (default: see below)", "@file"},
    {"json", 'j', CLI_FLAG, NULL, "print JSON, one line per reply"},
    {"quiet", 'q', CLI_FLAG, NULL, "no progress line and no timings"},
    {"verbose", 'v', CLI_FLAG, NULL, "say which socket is used"},
    {"help", 'h', CLI_FLAG, NULL, "show this help, or that of a command"},
    {"version", 0, CLI_FLAG, NULL, "show the version"},
    {NULL},
};

static const struct cli_option list_options[] = {
    {"rescan", 0, CLI_FLAG, NULL, "search for models again first"},
    {"names", 0, CLI_FLAG, NULL, "print the names alone, one on a line"},
    {NULL},
};

static const struct cli_option discover_options[] = {
    {"all", 'a', CLI_FLAG, NULL, "also what was left out, and why"},
    {NULL},
};

#define PLACE_OPTIONS                                                                                                            \
    {"device", 'd', CLI_TEXT, "NAME", "auto, cpu, or a part of a device's name (default: the daemon's setting)", "@device"},     \
        {"gpu-layers",                                                                                                           \
         0,                                                                                                                      \
         CLI_TEXT,                                                                                                               \
         "N",                                                                                                                    \
         "layers on the device, the last N, or auto: as many as fit (default: the daemon's setting)",                            \
         "auto"},                                                                                                                \
        {"cpu-moe", 0, CLI_FLAG, NULL, "keep the experts of all layers in host memory, on the CPU"},                             \
        {"n-cpu-moe", 0, CLI_INTEGER, "N", "keep the experts of the first N layers in host memory", NULL, 0, 100000},            \
        {"context", 'c', CLI_INTEGER, "TOKENS", "context length (default: the daemon's setting)", NULL, 1, INT_LIMIT}, {         \
        "kv-type", 0, CLI_TEXT, "TYPE", "element type of the cache, f16 or f32 (default: the daemon's setting)", "f16 f32"       \
    }

static const struct cli_option load_options[] = {
    PLACE_OPTIONS,
    {"lora", 0, CLI_TEXTS, "FILE[=SCALE]", "apply a LoRA adapter, a file or a name from `shimmyctl list`; may be repeated", "@file"},
    {"chat-template", 0, CLI_TEXT, "FILE|NAME", "render chats with it: a file, one of the model's, or a built-in one (chatml, ...)",
     "@file"},
    {"keep-alive", 0, CLI_TEXT, "TIME", "how long it stays when it is idle: seconds, or 5m, 2h; -1 for ever (default: the daemon's setting)",
     "0 5m 1h -1"},
    {"draft", 0, CLI_TEXT, "MODEL", "a small model with the same vocabulary that guesses tokens for it; none: no guesses of one", "@model"},
    {"reload", 'r', CLI_FLAG, NULL, "load again even if it is loaded: swap it after its requests are finished"},
    {NULL},
};

#define SERVICE_OPTIONS                                                                                                          \
    {"priority", 0, CLI_TEXT, "LEVEL", "normal, or low: wait until no normal request does (default normal)", "normal low"}, {    \
        "keep-alive", 0, CLI_TEXT, "TIME",                                                                                       \
            "how long the model stays loaded after it: seconds, or 5m, 2h; -1 for ever, 0 not at all", "0 5m 1h -1"              \
    }

#define ANSWER_OPTIONS \
    {"max-tokens", 'n', CLI_INTEGER, "N", "at most so many tokens (default: up to the context's end)", NULL, 1, INT_LIMIT}, \
    {"temperature", 't', CLI_NUMBER, "T", "0 is greedy (default 0.8)", NULL, 0, 100}, \
    {"top-k", 0, CLI_INTEGER, "K", "sample among the K likeliest tokens, 0 is off (default 40)", NULL, 0, INT_LIMIT}, \
    {"top-p", 0, CLI_NUMBER, "P", "sample among the likeliest tokens that make up P, 1 is off (default 0.95)", NULL, 0, 1}, \
    {"min-p", 0, CLI_NUMBER, "P", "drop tokens below P times the likeliest one, 0 is off (default 0.05)", NULL, 0, 1}, \
    {"repeat-penalty", 0, CLI_NUMBER, "R", "penalty on tokens seen lately, 1 is off (default 1)", NULL, 0.01, 100}, \
    {"repeat-last-n", 0, CLI_INTEGER, "N", "how far the repeat penalty looks back (default 64)", NULL, 1, INT_LIMIT}, \
    {"frequency-penalty", 0, CLI_NUMBER, "F", "penalty for each time a token was generated (default 0)", NULL, -100, 100}, \
    {"presence-penalty", 0, CLI_NUMBER, "F", "penalty on tokens that were generated (default 0)", NULL, -100, 100}, \
    {"top-n-sigma", 0, CLI_NUMBER, "N", "drop logits further below the largest than N deviations, 0 is off (default 0)", NULL, 0, 1000}, \
    {"typical-p", 0, CLI_NUMBER, "P", "sample among the most typical tokens that make up P, 1 is off (default 1)", NULL, 0, 1}, \
    {"xtc-probability", 0, CLI_NUMBER, "P", "how often top choices are left out (default 0)", NULL, 0, 1}, \
    {"xtc-threshold", 0, CLI_NUMBER, "P", "probability from which a token is a top choice (default 0.1)", NULL, 1e-6, 1}, \
    {"dry-multiplier", 0, CLI_NUMBER, "M", "strength of the penalty on repeated sequences, 0 is off (default 0)", NULL, 0, 100}, \
    {"dry-base", 0, CLI_NUMBER, "B", "growth of that penalty with each token (default 1.75)", NULL, 1, 100}, \
    {"dry-allowed-length", 0, CLI_INTEGER, "N", "shorter repetitions are free (default 2)", NULL, 1, INT_LIMIT}, \
    {"dry-penalty-last-n", 0, CLI_INTEGER, "N", "how far it looks back, 0 is all (default 0)", NULL, 0, INT_LIMIT}, \
    {"dry-sequence-breaker", 0, CLI_TEXTS, "TEXT", "no repetition goes across TEXT; may be repeated (default: line feed : \" *)"}, \
    {"mirostat", 0, CLI_INTEGER, "V", "2: aim at a surprise instead of top-k to XTC, 0 is off (default 0)", NULL, 0, 2}, \
    {"mirostat-tau", 0, CLI_NUMBER, "BITS", "the surprise aimed at (default 5)", NULL, 1e-6, 100}, \
    {"mirostat-eta", 0, CLI_NUMBER, "E", "how fast it is corrected (default 0.1)", NULL, 1e-6, 100}, \
    {"logit-bias", 0, CLI_TEXTS, "ID=BIAS", "add BIAS to the logit of token ID; may be repeated"}, \
    {"seed", 0, CLI_INTEGER, "N", "seed of the random numbers (default: random, and reported)", NULL, 0, SEED_LIMIT}, \
    {"stop", 0, CLI_TEXTS, "TEXT", "end before this text; may be repeated"}, \
    {"stop-token", 0, CLI_TEXTS, "ID", "end at token ID; may be repeated"}, \
    {"min-tokens", 0, CLI_INTEGER, "N", "do not end before so many tokens (default 0)", NULL, 0, INT_LIMIT}, \
    {"bad-word", 0, CLI_TEXTS, "TEXT", "keep TEXT, as it is tokenised, out of the continuation; may be repeated"}, \
    {"grammar", 0, CLI_TEXT, "FILE", "hold the continuation to a grammar, a text file of GBNF rules", "@file"}, \
    {"json-schema", 0, CLI_TEXT, "FILE|JSON", "hold it to a JSON Schema, a file or, where it begins with {, itself", "@file"}, \
    {"regex", 0, CLI_TEXT, "RE", "hold it to a regular expression, of the whole"}, \
    {"choice", 0, CLI_TEXTS, "TEXT", "hold it to one of these texts; may be repeated"}, \
    {"ignore-eos", 0, CLI_FLAG, NULL, "go on after an end token"}, \
    {"no-prompt-cache", 0, CLI_FLAG, NULL, "compute the whole prompt, and leave nothing of it to others"}, \
    {"cache-salt", 0, CLI_TEXT, "TEXT", "share cached prompts only with requests of the same TEXT"}, \
    {"session", 0, CLI_TEXT, "NAME", "the name under which `shimmyctl session save` finds what this leaves in the cache"}, \
    {"no-speculation", 0, CLI_FLAG, NULL, "propose no tokens; the text is the same"}, \
    SERVICE_OPTIONS, \
    {"timeout", 0, CLI_NUMBER, "SECONDS", "give up after this time", NULL, 0.001, 1e9}, \
    PLACE_OPTIONS

static const struct cli_option generate_options[] = {
    {"prompt", 'p', CLI_TEXT, "TEXT", "the prompt (default: the argument after MODEL, else standard input)"},
    {"special", 0, CLI_FLAG, NULL, "write control tokens into the text"},
    {"no-bos", 0, CLI_FLAG, NULL, "do not begin the prompt with the vocabulary's beginning token"},
    {"no-parse", 0, CLI_FLAG, NULL, "take control tokens that are written in the prompt as plain text"},
    {"logprobs", 0, CLI_INTEGER, "N", "with --json: log-probability of each token and of the N likeliest", NULL, 0, 20},
    ANSWER_OPTIONS,
    {NULL},
};

#define KWARGS_OPTION                                                                                                            \
    {"kwargs", 0, CLI_TEXT, "JSON", "further variables of the template, as chat_template_kwargs: {\"enable_thinking\": false}"}

static const struct cli_option chat_options[] = {
    {"system", 0, CLI_TEXT, "TEXT", "what the model is told before the first message"},
    {"chat-template", 0, CLI_TEXT, "FILE|NAME", "render with it: a file, one of the model's, or a built-in one (chatml, ...)", "@file"},
    KWARGS_OPTION,
    ANSWER_OPTIONS,
    {NULL},
};

static const struct cli_option embed_options[] = {
    {"dimensions", 0, CLI_INTEGER, "N", "only the first N numbers of each vector, brought to length 1 again", NULL, 1, INT_LIMIT},
    SERVICE_OPTIONS,
    {"timeout", 0, CLI_NUMBER, "SECONDS", "give up after this time", NULL, 0.001, 1e9},
    PLACE_OPTIONS,
    {NULL},
};

static const struct cli_option tokenize_options[] = {
    {"gguf", 0, CLI_TEXT, "FILE", "work on a model file's vocabulary, without the daemon", "@file"},
    {"jsonl", 0, CLI_FLAG, NULL, "with --gguf: read lines of JSON from standard input, answer each with one"},
    {"add-special", 0, CLI_FLAG, NULL, "add beginning and end tokens as the vocabulary says"},
    {"no-parse", 0, CLI_FLAG, NULL, "take control tokens that are written in the text as plain text"},
    {NULL},
};

static const struct cli_option detokenize_options[] = {
    {"gguf", 0, CLI_TEXT, "FILE", "work on a model file's vocabulary, without the daemon", "@file"},
    {"special", 0, CLI_FLAG, NULL, "write control tokens out"},
    {NULL},
};

static const struct cli_option template_options[] = {
    {"messages", 0, CLI_TEXT, "FILE", "the messages, a JSON array as in a chat request, or a whole request (- is standard input)", "@file"},
    {"tools", 0, CLI_TEXT, "FILE", "the tools, a JSON array as in a chat request (- is standard input)", "@file"},
    {"chat-template", 0, CLI_TEXT, "FILE|NAME", "render with it: a file, one of the model's, or a built-in one (chatml, ...)", "@file"},
    {"no-generation-prompt", 0, CLI_FLAG, NULL, "without what begins an answer"},
    {"continue", 0, CLI_FLAG, NULL, "the last message is the beginning of the answer"},
    KWARGS_OPTION,
    {"file", 0, CLI_TEXT, "FILE", "without MODEL: the template, a text file", "@file"},
    {NULL},
};

static const struct cli_option session_options[] = {
    {"cache-salt", 0, CLI_TEXT, "TEXT", "the cache_salt of the requests that the session is of, or is for"},
    {NULL},
};

static const struct cli_option inspect_options[] = {
    {"full", 'f', CLI_FLAG, NULL, "print arrays and long strings whole"},
    {"supported", 0, CLI_FLAG, NULL, "instead of a file: the architectures and weight types that this build computes"},
    {NULL},
};

static const struct cli_option verify_options[] = {
    {"device", 'd', CLI_TEXT, "NAME", "auto, cpu, or a part of a device's name (default: auto)"},
    {"positions", 'n', CLI_INTEGER, "N", "length of the prompt that is compared (default 64)", NULL, 2, 4096},
    {NULL},
};

static const struct cli_option quantize_options[] = {
    {"force", 'f', CLI_FLAG, NULL, "replace OUT if it exists"},
    {"threads", 't', CLI_INTEGER, "N", "threads that convert (default: one per CPU)", NULL, 1, 64},
    {NULL},
};

static const struct cli_option perplexity_options[] = {
    {"device", 'd', CLI_TEXT, "NAME", "auto, cpu, or a part of a device's name (default: auto)", "@device"},
    {"window", 'w', CLI_INTEGER, "TOKENS", "length of the windows that the text is cut into (default 512)", NULL, 4, 1048576},
    {"windows", 'n', CLI_INTEGER, "N", "only the first N windows (default: all)", NULL, 1, INT_LIMIT},
    {"parse", 0, CLI_FLAG, NULL, "take control tokens that are written in the text as such"},
    {NULL},
};

const struct cli_command cli_commands[] = {
    {"status", "", "the daemon, its models and devices at a glance", NULL, 0, 0, NULL, NULL, cmd_status},
    {"list", "", "the models that the daemon knows", NULL, 0, 0, list_options, NULL, cmd_list},
    {"discover", "", "search for models again: where, what was found, and what was left out and why",
     "An unchanged file's header is not read again.", 0, 0, discover_options, NULL, cmd_discover},
    {"devices", "", "the devices, and why one was chosen", NULL, 0, 0, NULL, NULL, cmd_devices},
    {"load", "MODEL", "load a model",
     "MODEL is a path if it ends in .gguf, begins with / or ., or has a slash and there is such a file; else a name as in\n"
     "`shimmyctl list`.",
     1, 1, load_options, "@model", cmd_load},
    {"unload", "MODEL", "finish a model's requests, and unload it", NULL, 1, 1, NULL, "@model", cmd_unload},
    {"generate", "MODEL [PROMPT]", "continue a prompt; stdout gets the continuation and nothing else",
     "The prompt is --prompt, else PROMPT, else standard input without its last line feed. The model is loaded first\n"
     "if need be. Timings go to stderr. Ctrl-C cancels.",
     1, 2, generate_options, "@model", cmd_generate},
    {"chat", "MODEL [MESSAGE]", "talk to a model; stdout gets its answers",
     "The message is MESSAGE, else standard input without its last line feed; on a terminal each line is a message of one\n"
     "conversation: /clear begins anew, Ctrl-C stops an answer, Ctrl-D ends. The model is loaded first if need be. Its own\n"
     "template renders the chat. Timings go to stderr.",
     1, 2, chat_options, "@model", cmd_chat},
    {"embed", "MODEL [TEXT...]", "texts to vectors of length 1, one line of numbers for each",
     "Without TEXT each line of standard input that is not empty is a text. The model is loaded first if need be.", 1,
     CLI_ARGUMENTS_MAX, embed_options, "@model", cmd_embed},
    {"cancel", "ID", "end a generation, whoever started it", "The id is in the first line of `shimmyctl generate --json`.", 1, 1,
     NULL, NULL, cmd_cancel},
    {"tokenize", "[MODEL] [TEXT]", "text to token ids",
     "TEXT is read from standard input if it is missing. With --gguf there is no MODEL. With --jsonl each line of\n"
     "standard input is {\"text\", \"add_special\", \"parse_special\"}, answered by {\"ids\"}, or {\"ids\", \"special\"},\n"
     "answered by {\"text\"}; a line that cannot be answered is answered by {\"error\"}.",
     0, 2, tokenize_options, "@model", cmd_tokenize},
    {"detokenize", "[MODEL] [ID...]", "token ids to text",
     "Ids are parted by spaces or commas, and read from standard input if there are none. With --gguf there is no MODEL.", 0,
     CLI_ARGUMENTS_MAX, detokenize_options, "@model", cmd_detokenize},
    {"template", "[MODEL]", "what a model would see of a chat",
     "MODEL --messages FILE: standard output gets the prompt exactly, or with --json one object that has its tokens, too, which\n"
     "template that is and why, and the forms of its tool calls and reasoning. Needs no daemon unless MODEL is a name.\n"
     "--file FILE --json, without MODEL: the template's variables are one JSON object on standard input (messages, tools,\n"
     "add_generation_prompt, bos_token, eos_token, any other name; now is the moment that strftime_now formats, such as\n"
     "2025-02-21T14:30:05). Standard output gets the text exactly. The exit status is 1 if the template refuses or fails.",
     0, 1, template_options, "@model", cmd_template},
    {"session", "ACTION [MODEL NAME]", "save, restore, list or remove what requests left in a model's cache",
     "save MODEL NAME: what the last request with the session NAME left is written to a file of the daemon's. restore MODEL NAME: the model is\n"
     "loaded if need be, and its cache gets that back. list: the saved sessions of all models. remove MODEL NAME: deletes the file.",
     1, 3, session_options, "save restore list remove", cmd_session},
    {"inspect", "[FILE]", "what is in a model file, and whether it would load; needs no daemon",
     "The exit status is 1 if the file would not load; the last line says why.", 0, 1, inspect_options, "@file", cmd_inspect},
    {"verify", "MODEL", "is a model computed right on a device of this machine?",
     "Five gates: the device's dequantisation of every type in the file; the tensors; each op against a scalar executor, from\n"
     "the same inputs; token by token and in chunks against the prompt as a whole; log-probabilities. Needs no daemon unless\n"
     "MODEL is a name. Loads the model twice, on the device and on the CPU.",
     1, 1, verify_options, "@model", cmd_verify},
    {"perplexity", "MODEL FILE", "how well a model predicts a text",
     "The text is cut into windows, and in each the tokens of its second half are predicted from all before them, as llama-perplexity\n"
     "does. FILE may be -, standard input. Needs no daemon unless MODEL is a name.",
     2, 2, perplexity_options, "@model", cmd_perplexity},
    {"quantize", "IN OUT TYPE", "a model file with smaller weights; needs no daemon",
     "IN has weights of F32, F16, BF16 or Q8_0. TYPE is F16, BF16, Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q5_1, Q5_0, Q4_K_M, Q4_K_S, Q4_1, Q4_0, IQ4_NL,\n"
     "IQ4_XS, Q3_K_L, Q3_K_M, Q3_K_S, IQ3_M, IQ3_S, IQ3_XS, IQ3_XXS, Q2_K, IQ2_M, MXFP4_MOE, TQ1_0, TQ2_0 or F32; Q5_K, Q4_K and Q3_K mean the\n"
     "_M mix. No importance matrix is used, so that IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S and Q2_K_S, which take one, cannot be made.",
     3, 3, quantize_options, "@file", cmd_quantize},
    {"help", "[COMMAND]", "show help", NULL, 0, 1, NULL, "@command", cmd_help},
    {"completion", "SHELL", "print the completion script for a shell (bash)", NULL, 1, 1, NULL, "bash", cmd_completion},
    {NULL},
};

static void print_options(const struct cli_option *options) {
    for (const struct cli_option *o = options; o && o->name; o++) {
        char left[64];
        snprintf(left, sizeof left, "%s%c%s --%s%s%s", o->letter ? "-" : " ", o->letter ? o->letter : ' ', o->letter ? "," : " ",
                 o->name, o->value ? " " : "", o->value ? o->value : "");
        printf("  %-28s %s\n", left, o->help);
    }
}

void cli_print_help(const struct cli_command *command) {
    if (command) {
        printf("usage: shimmyctl %s%s%s%s\n\n%s\n", command->name, command->options ? " [OPTION...]" : "",
               *command->arguments ? " " : "", command->arguments, command->summary);
        if (command->details) printf("\n%s\n", command->details);
        if (command->options) printf("\noptions:\n");
        print_options(command->options);
        printf("\noptions of every command:\n");
        print_options(cli_global_options);
        return;
    }
    printf("usage: shimmyctl [OPTION...] COMMAND [ARGUMENT...]\n\n"
           "The client of shimmyd, the inference daemon.\n\ncommands:\n");
    for (const struct cli_command *c = cli_commands; c->name; c++) {
        char left[64];
        snprintf(left, sizeof left, "%s %s", c->name, c->arguments);
        printf("  %-28s %s\n", left, c->summary);
    }
    printf("\noptions of every command:\n");
    print_options(cli_global_options);
    printf("\nThe socket is --socket, else $SHIMMY_SOCKET, else the user's ($XDG_RUNTIME_DIR/shimmy/control.sock),\n"
           "else the system's (/run/shimmy/control.sock). Exit status: 0 done, 1 refused or failed, 2 usage, 130 interrupted.\n"
           "`shimmyctl help COMMAND` shows a command's options; shimmyctl(1) says more.\n");
}

/* genmodel: writes a model file with seeded random weights. `genmodel --help` tells how. */
#include "tests/unit/genmodel.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

static const char usage[] =
    "usage: genmodel OUT.gguf [options]\n"
    "Writes a model with seeded random weights of sane scale, complete metadata and a working synthetic vocabulary.\n"
    "\n"
    "  --arch NAME        architecture: llama (default)\n"
    "  --name TEXT        general.name (default: generated)\n"
    "  --layers N         (2)        --embd D           (256)\n"
    "  --heads H          (4)        --kv-heads K       (2)\n"
    "  --head-dim HD      (embd / heads)\n"
    "  --ff F             (512)      --vocab V          (512; 260 to 262144)\n"
    "  --experts N        (0: dense) --experts-used N   each expert has width F\n"
    "  --context C        (256)      --rope-base B      (10000)\n"
    "  --type T           F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q4_K Q5_K Q6_K IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS\n"
    "                     IQ3_S IQ4_NL IQ4_XS MXFP4 TQ1_0 TQ2_0, or a mix: Q3_K_S Q3_K_M Q4_K_S Q4_K_M Q5_K_S Q5_K_M (default "
    "Q8_0)\n"
    "  --head-type T      of output.weight (default: Q6_K below 6 bits where embd is a multiple of 256, else --type)\n"
    "  --embd-type T      of token_embd.weight\n"
    "  --seed S           (1)\n"
    "  --tied             no output.weight: the embedding is the head\n"
    "  --bias             biases on attention q, k, v and output\n"
    "  --rope-freqs       a rope_freqs.weight tensor with the factors of Llama 3.1\n"
    "  --spm | --bpe      SentencePiece (default) or byte-level BPE vocabulary\n"
    "  --vocab-from FILE  the vocabulary of another GGUF file\n"
    "  --pieces           tokens of several characters, too: JSON's punctuation, digits, words, parts of UTF-8 sequences\n"
    "  --control TOKEN    a control token, such as <|im_end|>; may be repeated, like the next\n"
    "  --user-defined TOKEN\n"
    "  --eos TOKEN        the end token: one of the control tokens given (default: a token of its own)\n"
    "  --chat-template FILE            the model's chat template\n"
    "  --named-template NAME=FILE      a further one, e.g. tool_use; may be repeated\n"
    "  --shards N         OUT-00001-of-0000N.gguf and so on\n"
    "  --format 2|3       GGUF version (3)   --alignment A   a power of two, at least 8 (32)\n"
    "\n"
    "examples:\n"
    "  1.1B as TinyLlama: genmodel tl.gguf --layers 22 --embd 2048 --heads 32 --kv-heads 4 --ff 5632 --vocab 32000 --context "
    "2048 --type Q4_0\n"
    "  two real layers:   genmodel two.gguf --layers 2 --embd 2048 --heads 32 --kv-heads 4 --ff 5632 --vocab 128000 --context "
    "8192 --bpe "
    "--type Q4_K_M\n"
    "  a small one that chats: genmodel chat.gguf --embd 64 --heads 2 --kv-heads 1 --ff 128 --vocab 1500 --context 4096 --bpe "
    "--pieces\n"
    "                     --control '<|im_start|>' --control '<|im_end|>' --eos '<|im_end|>' --chat-template chatml.jinja\n";

enum option_id {
    OPT_ARCH = 256,
    OPT_NAME,
    OPT_LAYERS,
    OPT_EMBD,
    OPT_HEADS,
    OPT_KV_HEADS,
    OPT_HEAD_DIM,
    OPT_FF,
    OPT_VOCAB,
    OPT_EXPERTS,
    OPT_EXPERTS_USED,
    OPT_CONTEXT,
    OPT_ROPE_BASE,
    OPT_TYPE,
    OPT_HEAD_TYPE,
    OPT_EMBD_TYPE,
    OPT_SEED,
    OPT_TIED,
    OPT_BIAS,
    OPT_ROPE_FREQS,
    OPT_SPM,
    OPT_BPE,
    OPT_VOCAB_FROM,
    OPT_PIECES,
    OPT_CONTROL,
    OPT_USER_DEFINED,
    OPT_EOS,
    OPT_CHAT_TEMPLATE,
    OPT_NAMED_TEMPLATE,
    OPT_SHARDS,
    OPT_FORMAT,
    OPT_ALIGNMENT,
    OPT_HELP,
};
static const struct option options[] = {
    {"arch", 1, NULL, OPT_ARCH},
    {"name", 1, NULL, OPT_NAME},
    {"layers", 1, NULL, OPT_LAYERS},
    {"embd", 1, NULL, OPT_EMBD},
    {"heads", 1, NULL, OPT_HEADS},
    {"kv-heads", 1, NULL, OPT_KV_HEADS},
    {"head-dim", 1, NULL, OPT_HEAD_DIM},
    {"ff", 1, NULL, OPT_FF},
    {"vocab", 1, NULL, OPT_VOCAB},
    {"experts", 1, NULL, OPT_EXPERTS},
    {"experts-used", 1, NULL, OPT_EXPERTS_USED},
    {"context", 1, NULL, OPT_CONTEXT},
    {"rope-base", 1, NULL, OPT_ROPE_BASE},
    {"type", 1, NULL, OPT_TYPE},
    {"head-type", 1, NULL, OPT_HEAD_TYPE},
    {"embd-type", 1, NULL, OPT_EMBD_TYPE},
    {"seed", 1, NULL, OPT_SEED},
    {"tied", 0, NULL, OPT_TIED},
    {"bias", 0, NULL, OPT_BIAS},
    {"rope-freqs", 0, NULL, OPT_ROPE_FREQS},
    {"spm", 0, NULL, OPT_SPM},
    {"bpe", 0, NULL, OPT_BPE},
    {"vocab-from", 1, NULL, OPT_VOCAB_FROM},
    {"pieces", 0, NULL, OPT_PIECES},
    {"control", 1, NULL, OPT_CONTROL},
    {"user-defined", 1, NULL, OPT_USER_DEFINED},
    {"eos", 1, NULL, OPT_EOS},
    {"chat-template", 1, NULL, OPT_CHAT_TEMPLATE},
    {"named-template", 1, NULL, OPT_NAMED_TEMPLATE},
    {"shards", 1, NULL, OPT_SHARDS},
    {"format", 1, NULL, OPT_FORMAT},
    {"alignment", 1, NULL, OPT_ALIGNMENT},
    {"help", 0, NULL, OPT_HELP},
    {NULL, 0, NULL, 0},
};

_Noreturn static void wrong(const char *what, const char *value) {
    fprintf(stderr, "genmodel: %s: found '%s' (genmodel --help)\n", what, value);
    exit(2);
}

static uint64_t number(const char *what, uint64_t most) {
    char *end;
    errno = 0;
    const unsigned long long v = strtoull(optarg, &end, 10);
    if (errno != 0 || *end != '\0' || end == optarg || optarg[0] == '-' || v > most) wrong(what, optarg);
    return v;
}

enum { MOST_TOKENS = 1024, MOST_TEMPLATES = 16, MOST_TEXT = 1 << 20 };
static struct {
    const char *control[MOST_TOKENS], *user_defined[MOST_TOKENS];
    struct genmodel_template templates[MOST_TEMPLATES];
} given;

static void add_given(const char *what, const char **list, uint32_t *n) {
    if (*n == MOST_TOKENS || *optarg == '\0') wrong(what, optarg);
    list[(*n)++] = optarg;
}

static void add_template(struct genmodel_params *p, const char *name, const char *path) {
    char *text = malloc(MOST_TEXT);
    FILE *file = fopen(path, "r");
    if (p->n_templates == MOST_TEMPLATES || text == NULL || file == NULL) wrong("a template's file", path);
    const size_t length = fread(text, 1, MOST_TEXT, file);
    if (ferror(file) || length == MOST_TEXT) wrong("a template of less than 1 MiB", path);
    text[length] = '\0';
    fclose(file);
    given.templates[p->n_templates++] = (struct genmodel_template){name, text};
}

static void named_template(struct genmodel_params *p) {
    char *equals = strchr(optarg, '=');
    if (equals == NULL || equals == optarg) wrong("--named-template NAME=FILE", optarg);
    *equals = '\0';
    add_template(p, optarg, equals + 1);
}

static void free_templates(const struct genmodel_params *p) {
    for (uint32_t i = 0; i < p->n_templates; i++) free((char *)(uintptr_t)given.templates[i].text);
}

int main(int argc, char **argv) {
    struct genmodel_params p = genmodel_defaults();
    p.head_dim = 0;
    p.control = given.control;
    p.user_defined = given.user_defined;
    p.templates = given.templates;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (c) {
        case OPT_ARCH: p.arch = optarg; break;
        case OPT_NAME: p.name = optarg; break;
        case OPT_LAYERS: p.layers = (uint32_t)number("--layers", UINT32_MAX); break;
        case OPT_EMBD: p.embd = (uint32_t)number("--embd", UINT32_MAX); break;
        case OPT_HEADS: p.heads = (uint32_t)number("--heads", UINT32_MAX); break;
        case OPT_KV_HEADS: p.kv_heads = (uint32_t)number("--kv-heads", UINT32_MAX); break;
        case OPT_HEAD_DIM: p.head_dim = (uint32_t)number("--head-dim", UINT32_MAX); break;
        case OPT_FF: p.ff = (uint32_t)number("--ff", UINT32_MAX); break;
        case OPT_VOCAB: p.vocab = (uint32_t)number("--vocab", UINT32_MAX); break;
        case OPT_EXPERTS: p.experts = (uint32_t)number("--experts", UINT32_MAX); break;
        case OPT_EXPERTS_USED: p.experts_used = (uint32_t)number("--experts-used", UINT32_MAX); break;
        case OPT_CONTEXT: p.context = (uint32_t)number("--context", UINT32_MAX); break;
        case OPT_ROPE_BASE: {
            char *end;
            p.rope_base = strtof(optarg, &end);
            if (*end != '\0' || !(p.rope_base >= 1)) wrong("--rope-base", optarg);
            break;
        }
        case OPT_TYPE: p.type = optarg; break;
        case OPT_HEAD_TYPE: p.head_type = optarg; break;
        case OPT_EMBD_TYPE: p.embd_type = optarg; break;
        case OPT_SEED: p.seed = number("--seed", UINT64_MAX); break;
        case OPT_TIED: p.tied = true; break;
        case OPT_BIAS: p.bias = true; break;
        case OPT_ROPE_FREQS: p.rope_freqs = true; break;
        case OPT_SPM: p.vocab_kind = GENMODEL_SPM; break;
        case OPT_BPE: p.vocab_kind = GENMODEL_BPE; break;
        case OPT_VOCAB_FROM: p.vocab_from = optarg; break;
        case OPT_PIECES: p.pieces = true; break;
        case OPT_CONTROL: add_given("--control", given.control, &p.n_control); break;
        case OPT_USER_DEFINED: add_given("--user-defined", given.user_defined, &p.n_user_defined); break;
        case OPT_EOS: p.eos = optarg; break;
        case OPT_CHAT_TEMPLATE: add_template(&p, NULL, optarg); break;
        case OPT_NAMED_TEMPLATE: named_template(&p); break;
        case OPT_SHARDS: p.shards = (uint32_t)number("--shards", 512); break;
        case OPT_FORMAT: p.version = (uint32_t)number("--format", 3); break;
        case OPT_ALIGNMENT: p.alignment = (uint32_t)number("--alignment", 1 << 20); break;
        case OPT_HELP: fputs(usage, stdout); return 0;
        default: fputs("genmodel --help tells the options\n", stderr); return 2;
        }
    }
    if (optind + 1 != argc) {
        fputs(usage, stderr);
        return 2;
    }
    if (p.head_dim == 0 && p.heads > 0) p.head_dim = p.embd / p.heads;
    struct sh_error err;
    const enum sh_code code = genmodel_write(argv[optind], &p, &err);
    free_templates(&p);
    if (code != SH_OK) {
        fprintf(stderr, "genmodel: %s\n", err.message);
        return 1;
    }
    char first[4096];
    struct sh_file *file;
    struct sh_file_summary s;
    genmodel_shard_path(argv[optind], 0, p.shards, first, sizeof first);
    if (sh_file_open(first, &file, &err) != SH_OK) {
        fprintf(stderr, "genmodel: cannot read back what was written: %s\n", err.message);
        return 1;
    }
    sh_file_get_summary(file, &s);
    printf("%s: %.1f M parameters, %.1f MB, %s\n", first, (double)s.n_parameters / 1e6, (double)s.file_bytes / 1e6, s.type_name);
    sh_file_close(file);
    return 0;
}

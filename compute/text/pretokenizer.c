#include "compute/text/pretokenizer.h"

#include "compute/text/utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>

/* White space is Unicode's property, which differs from PCRE2's \s in U+180E. */
#define WS "\\p{wspace}"
#define NOT_WS "\\P{wspace}"

#define CONTRACTION "'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])"
#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" WS "\\p{L}\\p{N}]+|" WS "+(?!" NOT_WS ")|" WS "+"
#define SPACES "|" WS "*[\\r\\n]+|" WS "+(?!" NOT_WS ")|" WS "+"
#define POWER(n) "|" WS "{" n "}(?!" NOT_WS ")"
#define SYMBOLS " ?[^" WS "\\p{L}\\p{N}]+[\\r\\n]*"
/* GPT-4's expression; digits come in groups of 3 or alone */
#define CL100K(number) CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" number "|" SYMBOLS SPACES
/* GPT-4o's: words begin where capitals begin */
#define CAPITALS "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define SMALLS "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define CASED(capitals, smalls, contraction)                                                                                     \
    "[^\\r\\n\\p{L}\\p{N}]?" capitals "*" smalls "+" contraction "|[^\\r\\n\\p{L}\\p{N}]?" capitals "+" smalls "*" contraction
#define O200K(contraction, number)                                                                                               \
    CASED(CAPITALS, SMALLS, contraction) "|" number "| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n/]*" SPACES
#define DEEPSEEK3                                                                                                                \
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| "                        \
    "?[\\p{P}\\p{S}]+[\\r\\n]*" SPACES
#define CJK "[\\x{4E00}-\\x{9FA5}\\x{800}-\\x{4E00}\\x{AC00}-\\x{D7FF}]+"
/* Words of Kimi K2: GPT-4o's without Han. A class minus a script is the complement of all else and the script. */
#define KIMI_CAPITALS "[^\\p{Ll}\\p{N}\\p{P}\\p{S}\\p{Z}\\p{C}\\p{sc:Han}]"
#define KIMI_SMALLS "[^\\p{Lu}\\p{Lt}\\p{N}\\p{P}\\p{S}\\p{Z}\\p{C}\\p{sc:Han}]"
#define BLOOM " ?[^(" WS "|.,!?\\x{2026}\\x{3002}\\x{FF0C}\\x{3001}\\x{964}\\x{6D4}\\x{60C})]+"

/* The cased letters that DeepSeek's published tokenizer lists. */
#define DEEPSEEK_LETTERS                                                                                                         \
    "[A-Za-z\\x{B5}\\x{C0}-\\x{D6}\\x{D8}-\\x{F6}\\x{F8}-\\x{1BA}\\x{1BC}-\\x{1BF}\\x{1C4}-\\x{293}\\x{295}-\\x{2AF}"            \
    "\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37B}-\\x{37D}\\x{37F}\\x{386}\\x{388}-\\x{38A}\\x{38C}\\x{38E}-\\x{3A1}"               \
    "\\x{3A3}-\\x{3F5}\\x{3F7}-\\x{481}\\x{48A}-\\x{52F}\\x{531}-\\x{556}\\x{10A0}-\\x{10C5}\\x{13A0}-\\x{13F5}"                 \
    "\\x{13F8}-\\x{13FD}\\x{1C90}-\\x{1CBA}\\x{1CBD}-\\x{1CBF}\\x{1D00}-\\x{1D2B}\\x{1D6B}-\\x{1D77}\\x{1D79}-\\x{1D9A}"         \
    "\\x{1E00}-\\x{1F15}\\x{1F18}-\\x{1F1D}\\x{1F20}-\\x{1F45}\\x{1F48}-\\x{1F4D}\\x{1F50}-\\x{1F57}\\x{1F59}\\x{1F5B}"          \
    "\\x{1F5D}\\x{1F5F}-\\x{1F7D}\\x{1F80}-\\x{1FB4}\\x{1FB6}-\\x{1FBC}\\x{1FBE}\\x{1FC2}-\\x{1FC4}\\x{1FC6}-\\x{1FCC}"          \
    "\\x{1FD0}-\\x{1FD3}\\x{1FD6}-\\x{1FDB}\\x{1FE0}-\\x{1FEC}\\x{1FF2}-\\x{1FF4}\\x{1FF6}-\\x{1FFC}\\x{2102}\\x{2107}"          \
    "\\x{210A}-\\x{2113}\\x{2115}\\x{2119}-\\x{211D}\\x{2124}\\x{2126}\\x{2128}\\x{212A}-\\x{212D}\\x{212F}-\\x{2134}"           \
    "\\x{2139}\\x{213C}-\\x{213F}\\x{2145}-\\x{2149}\\x{214E}\\x{2183}\\x{2184}\\x{2C00}-\\x{2C7B}\\x{2C7E}-\\x{2CE4}"           \
    "\\x{2CEB}-\\x{2CEE}\\x{2CF2}\\x{2CF3}\\x{A640}-\\x{A66D}\\x{A680}-\\x{A69B}\\x{A722}-\\x{A76F}\\x{A771}-\\x{A787}"          \
    "\\x{A78B}-\\x{A78E}\\x{AB70}-\\x{ABBF}\\x{FB00}-\\x{FB06}\\x{FB13}-\\x{FB17}\\x{FF21}-\\x{FF3A}\\x{FF41}-\\x{FF5A}"         \
    "\\x{10400}-\\x{1044F}\\x{104B0}-\\x{104D3}\\x{104D8}-\\x{104FB}\\x{10C80}-\\x{10CB2}\\x{10CC0}-\\x{10CF2}"                  \
    "\\x{118A0}-\\x{118DF}\\x{1E900}-\\x{1E943}]"

enum { MAX_EXPRESSIONS = 6 };

enum rule {
    RULE_DEFAULT,
    RULE_GPT2,
    RULE_LLAMA3,
    RULE_QWEN2,
    RULE_QWEN35,
    RULE_DEEPSEEK_LLM,
    RULE_DEEPSEEK_CODER,
    RULE_DEEPSEEK3,
    RULE_FALCON,
    RULE_DIGITS_GPT2,
    RULE_GPT4O,
    RULE_TEKKEN,
    RULE_BLOOM,
    RULE_VIKING,
    RULE_SEED_CODER,
    RULE_BAILING,
    RULE_SUPERBPE,
    RULE_KIMI,
    RULE_YOUTU,
    RULE_TINY_AYA,
    RULE_JAIS2,
    RULE_EXAONE_MOE,
    RULE_CHAMELEON,
    RULE_AFMOE,
};

static const char *const expressions[][MAX_EXPRESSIONS] = {
    [RULE_DEFAULT] = {"[\\p{P}\\$\\+<=>\\^~\\|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"},
    [RULE_GPT2] = {GPT2},
    [RULE_LLAMA3] = {CL100K("\\p{N}{1,3}")},
    [RULE_QWEN2] = {CL100K("\\p{N}")},
    [RULE_QWEN35] = {CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^" WS "\\p{L}\\p{M}\\p{N}]+[\\r\\n]*" SPACES},
    /* the look-behind keeps "white space up to the end" linear; it matches what \s+$ would */
    [RULE_DEEPSEEK_LLM] = {"[\\r\\n]", WS "?" DEEPSEEK_LETTERS "+",
                           WS "?[!-/:-~\\x{FF01}-\\x{FF0F}\\x{FF1A}-\\x{FF5E}\\x{2018}-\\x{201F}\\x{3000}-\\x{3002}]+",
                           "(?<!" WS ")" WS "++\\z", CJK, "\\p{N}+"},
    [RULE_DEEPSEEK_CODER] = {"[\\r\\n]", WS "?\\p{L}+", WS "?\\p{P}+", CJK, "\\p{N}"},
    [RULE_DEEPSEEK3] = {"\\p{N}{1,3}", "[\\x{4E00}-\\x{9FA5}\\x{3040}-\\x{309F}\\x{30A0}-\\x{30FF}]+", DEEPSEEK3},
    [RULE_FALCON] = {"[\\p{P}\\$\\+<=>\\^~\\|`]+", GPT2, "[0-9][0-9][0-9]"},
    [RULE_DIGITS_GPT2] = {"\\p{N}", GPT2},
    [RULE_GPT4O] = {O200K("(?:" CONTRACTION ")?", "\\p{N}{1,3}")},
    [RULE_TEKKEN] = {O200K("", "\\p{N}")},
    [RULE_BLOOM] = {BLOOM},
    [RULE_VIKING] = {BLOOM, "\\p{N}"},
    [RULE_SEED_CODER] = {CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^" WS "\\p{L}\\p{N}\\r\\n]+" SPACES},
    [RULE_BAILING] = {"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}| ?[^" WS
                      "\\p{L}\\p{N}]++[\\r\\n]*|" WS "*[\\r\\n]|" WS "+(?!" NOT_WS ")|" WS "+"},
    [RULE_SUPERBPE] = {"\\p{N}+", "\\p{Nd}{3,}+"},
    [RULE_KIMI] = {"\\p{sc:Han}+|" CASED(KIMI_CAPITALS, KIMI_SMALLS, "(?:" CONTRACTION ")?") "|\\p{N}{1,3}|" SYMBOLS SPACES},
    [RULE_YOUTU] = {"[\\x{AC00}-\\x{D7A3}\\x{3131}-\\x{318E}]+|[\\x{FF01}\\x{2026}\\x{201C}\\x{201D}\\x{2018}\\x{2019}\\x{2014}"
                    "\\x{FF1A}\\x{FF1B}\\x{FF0C}\\x{3001}-\\x{303F}\\x{FE30}-\\x{FE4F}]+|[\\x{3105}-\\x{312F}]+|"
                    "[\\x{4E00}-\\x{9FA5}\\x{3040}-\\x{309F}\\x{30A0}-\\x{30FF}]+",
                    O200K("(?:" CONTRACTION ")?", "\\p{N}")},
    /* digits up to a word's end; the look-behind keeps it linear */
    [RULE_TINY_AYA] = {"(?<!\\p{Nd})\\p{Nd}++(?![\\p{L}\\p{M}\\p{Pc}])", O200K("(?:" CONTRACTION ")?", "\\p{N}{1,3}")},
    /* behind a space there is no line feed any more that the look for one has not found: the look-behind keeps it linear */
    [RULE_JAIS2] = {CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|" SYMBOLS "|(?<![^" NOT_WS "\\r\\n])" WS
                                "*[\\r\\n]+" POWER("512") POWER("256") POWER("128") POWER("64") POWER("32") POWER("16")
                                    POWER("8") POWER("4") POWER("1,2") "|" WS},
    /* letters with marks, and single spaces between them: words are not parted */
    [RULE_EXAONE_MOE] = {CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}(?:[\\p{L}\\p{M}]++| (?=\\p{L}))*+|\\p{N}| ?[^" WS
                         "\\p{L}\\p{N}]+[\\r\\n/]?|" WS "*[\\r\\n]|" WS "+(?!" NOT_WS ")|" WS "+"},
    /* digits; then runs of Han and Kana, Thai, Lao, Khmer, Burmese, Hangul */
    [RULE_AFMOE] = {"\\p{Nd}++",
                    "[\\x{4E00}-\\x{9FFF}\\x{3040}-\\x{309F}\\x{30A0}-\\x{30FF}\\x{3400}-\\x{4DBF}\\x{F900}-\\x{FAFF}"
                    "\\x{FF65}-\\x{FF9F}\\x{2F00}-\\x{2FDF}]+|[\\x{E00}-\\x{E7F}]+|[\\x{E80}-\\x{EFF}]+|[\\x{1780}-\\x{17FF}]+|"
                    "[\\x{1000}-\\x{109F}\\x{AA60}-\\x{AA7F}\\x{A9E0}-\\x{A9FF}]+|[\\x{AC00}-\\x{D7AF}\\x{1100}-\\x{11FF}]+",
                    DEEPSEEK3},
    [RULE_CHAMELEON] = {"<sentinel:[0-9]+>", "IMGIMG[A-I]{1,4}Z", "[\\t\\n]|    |  ", "\\p{N}", "[\\p{P}!-/:-@\\[-`{-~]", GPT2},
};

/* Whether matches of an expression are digits that are cut into groups of three, counted from their end. Isolated: what is around
 * them is cut off, too; else the text in front stays with an incomplete first group, and what follows with the last one. */
enum grouping { GROUPS_NONE, GROUPS_ISOLATED, GROUPS_JOINED };
static enum grouping grouping_of(enum rule rule, uint32_t expression) {
    if (rule == RULE_SUPERBPE && expression == 1) return GROUPS_JOINED;
    return (rule == RULE_TINY_AYA || rule == RULE_AFMOE) && expression == 0 ? GROUPS_ISOLATED : GROUPS_NONE;
}

enum { ADD_BOS = 1, IGNORE_MERGES = 2 };

static const struct {
    const char *name;
    enum rule rule;
    uint32_t flags;
} kinds[] = {
    {"default", RULE_DEFAULT, 0},
    {"llama3", RULE_LLAMA3, ADD_BOS | IGNORE_MERGES},
    {"llama-v3", RULE_LLAMA3, ADD_BOS | IGNORE_MERGES},
    {"llama-bpe", RULE_LLAMA3, ADD_BOS | IGNORE_MERGES},
    {"falcon3", RULE_LLAMA3, ADD_BOS | IGNORE_MERGES},
    {"falcon-h1", RULE_LLAMA3, ADD_BOS | IGNORE_MERGES},
    {"pixtral", RULE_LLAMA3, ADD_BOS | IGNORE_MERGES},
    {"lfm2", RULE_LLAMA3, ADD_BOS | IGNORE_MERGES},
    {"midm-2.0", RULE_LLAMA3, ADD_BOS | IGNORE_MERGES},
    {"jina-v5-nano", RULE_LLAMA3, ADD_BOS | IGNORE_MERGES},
    {"dbrx", RULE_LLAMA3, 0},
    {"smaug-bpe", RULE_LLAMA3, 0},
    {"glm4", RULE_LLAMA3, 0},
    {"chatglm-bpe", RULE_LLAMA3, 0},
    {"qwen2", RULE_QWEN2, 0},
    {"deepseek-r1-qwen", RULE_QWEN2, 0},
    {"megrez", RULE_QWEN2, 0},
    {"stablelm2", RULE_QWEN2, 0},
    {"hunyuan", RULE_QWEN2, 0},
    {"grok-2", RULE_QWEN2, 0},
    {"solar-open", RULE_QWEN2, 0},
    {"kormo", RULE_QWEN2, 0},
    {"f2llmv2", RULE_QWEN2, 0},
    {"qwen35", RULE_QWEN35, 0},
    {"deepseek-llm", RULE_DEEPSEEK_LLM, 0},
    {"deepseek-coder", RULE_DEEPSEEK_CODER, 0},
    {"deepseek-v3", RULE_DEEPSEEK3, 0},
    {"hunyuan-dense", RULE_DEEPSEEK3, 0},
    {"joyai-llm", RULE_DEEPSEEK3, 0},
    {"falcon", RULE_FALCON, 0},
    {"starcoder", RULE_DIGITS_GPT2, 0},
    {"refact", RULE_DIGITS_GPT2, 0},
    {"command-r", RULE_DIGITS_GPT2, 0},
    {"smollm", RULE_DIGITS_GPT2, 0},
    {"codeshell", RULE_DIGITS_GPT2, 0},
    {"exaone", RULE_DIGITS_GPT2, 0},
    {"minerva-7b", RULE_DIGITS_GPT2, 0},
    {"mellum2", RULE_DIGITS_GPT2, 0},
    {"gpt-2", RULE_GPT2, 0},
    {"mpt", RULE_GPT2, 0},
    {"olmo", RULE_GPT2, 0},
    {"jais", RULE_GPT2, 0},
    {"phi-2", RULE_GPT2, 0},
    {"gigachat", RULE_GPT2, 0},
    {"jina-es", RULE_GPT2, 0},
    {"jina-de", RULE_GPT2, 0},
    {"jina-v1-en", RULE_GPT2, 0},
    {"jina-v2-es", RULE_GPT2, 0},
    {"jina-v2-de", RULE_GPT2, 0},
    {"jina-v2-code", RULE_GPT2, 0},
    {"roberta-bpe", RULE_GPT2, 0},
    {"a.x-4.0", RULE_GPT2, 0},
    {"mellum", RULE_GPT2, 0},
    {"exaone4", RULE_GPT2, 0},
    {"trillion", RULE_GPT2, 0},
    {"granite-docling", RULE_GPT2, 0},
    {"modern-bert", RULE_GPT2, 0},
    {"gpt-4o", RULE_GPT4O, 0},
    {"llama4", RULE_GPT4O, 0},
    {"kanana2", RULE_GPT4O, 0},
    {"talkie", RULE_GPT4O, 0},
    {"minimax-m2", RULE_GPT4O, 0},
    {"tekken", RULE_TEKKEN, ADD_BOS | IGNORE_MERGES},
    {"poro-chat", RULE_BLOOM, 0},
    {"bloom", RULE_BLOOM, 0},
    {"gpt3-finnish", RULE_BLOOM, 0},
    {"viking", RULE_VIKING, 0},
    {"seed-coder", RULE_SEED_CODER, 0},
    {"bailingmoe", RULE_BAILING, 0},
    {"bailingmoe2", RULE_BAILING, 0},
    {"llada-moe", RULE_BAILING, 0},
    {"superbpe", RULE_SUPERBPE, 0},
    {"kimi-k2", RULE_KIMI, 0},
    {"youtu", RULE_YOUTU, IGNORE_MERGES},
    {"tiny_aya", RULE_TINY_AYA, 0},
    {"cohere2moe", RULE_TINY_AYA, 0},
    {"jais-2", RULE_JAIS2, 0},
    {"exaone-moe", RULE_EXAONE_MOE, 0},
    {"chameleon", RULE_CHAMELEON, ADD_BOS},
    {"afmoe", RULE_AFMOE, 0},
};

struct sh_pretokenizer {
    uint32_t count;
    pcre2_code *codes[MAX_EXPRESSIONS];
    enum grouping groupings[MAX_EXPRESSIONS];
};

enum sh_code sh_pretokenizer_create(const char *name, size_t length, struct sh_pretokenizer **out, struct sh_pre_rules *rules,
                                    struct sh_error *err) {
    *out = NULL;
    if (length == 0) {
        name = "default";
        length = strlen(name);
    }
    uint32_t kind = 0;
    while (kind < SH_COUNT(kinds) && (strlen(kinds[kind].name) != length || memcmp(kinds[kind].name, name, length) != 0)) kind++;
    if (kind == SH_COUNT(kinds)) {
        return sh_fail(err, SH_ERR_UNSUPPORTED, "the pre-tokenizer \"%.*s\" (tokenizer.ggml.pre) is not supported",
                       (int)sh_min_u64(length, 64), name);
    }
    *rules =
        (struct sh_pre_rules){kinds[kind].name, (kinds[kind].flags & ADD_BOS) != 0, (kinds[kind].flags & IGNORE_MERGES) != 0};
    struct sh_pretokenizer *p = sh_calloc(1, sizeof *p);
    if (p == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the pre-tokenizer");
    const char *const *list = expressions[kinds[kind].rule];
    for (; p->count < MAX_EXPRESSIONS && list[p->count] != NULL; p->count++) {
        int number;
        PCRE2_SIZE offset;
        pcre2_code *code =
            pcre2_compile((PCRE2_SPTR)list[p->count], PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &number, &offset, NULL);
        if (code == NULL) {
            PCRE2_UCHAR why[128];
            pcre2_get_error_message(number, why, sizeof why);
            sh_fail(err, SH_ERR_UNSUPPORTED, "the expression %u of pre-tokenizer \"%s\" is refused by this PCRE2 at %zu: %s",
                    p->count, kinds[kind].name, offset, (const char *)why);
            sh_pretokenizer_destroy(p);
            return SH_ERR_UNSUPPORTED;
        }
        pcre2_jit_compile(code, PCRE2_JIT_COMPLETE); /* where it is forbidden the interpreter does the same, slower */
        p->codes[p->count] = code;
        p->groupings[p->count] = grouping_of(kinds[kind].rule, p->count);
    }
    *out = p;
    return SH_OK;
}

void sh_pretokenizer_destroy(struct sh_pretokenizer *p) {
    if (p == NULL) return;
    for (uint32_t i = 0; i < p->count; i++) pcre2_code_free(p->codes[i]);
    free(p);
}

void sh_words_free(struct sh_words *words) {
    free(words->lengths);
    free(words->scratch);
    *words = (struct sh_words){0};
}

/* A copy in which ill-formed bytes are U+001A (one byte, neither letter, digit nor space); NULL in *copy where none is needed. */
static bool well_formed(const char *text, size_t length, char **copy) {
    *copy = NULL;
    size_t step;
    for (size_t i = 0; i < length; i += step) {
        if (sh_utf8_scan(text + i, length - i, &step, NULL) == SH_UTF8_OK) continue;
        if (*copy == NULL) {
            *copy = malloc(length);
            if (*copy == NULL) return false;
            memcpy(*copy, text, length);
        }
        memset(*copy + i, 0x1A, step);
    }
    return true;
}

static bool add_length(uint32_t **list, uint32_t *capacity, uint32_t *count, size_t length) {
    if (length == 0) return true;
    if (!sh_grow((void **)list, capacity, *count + 1, sizeof **list)) return false;
    (*list)[(*count)++] = (uint32_t)length;
    return true;
}

/* Where a piece is cut: lengths are told when the next place is known. */
struct cutter {
    struct sh_words *words;
    uint32_t made;
    size_t last;
    bool ok;
};
static void cut_at(struct cutter *c, size_t place) {
    c->ok = c->ok && add_length(&c->words->scratch, &c->words->scratch_capacity, &c->made, place - c->last);
    c->last = place;
}

static void cut_digits(struct cutter *c, const char *piece, size_t begin, size_t end, enum grouping grouping) {
    size_t digits = 0, step;
    for (size_t i = begin; i < end; i += step, digits++) sh_utf8_scan(piece + i, end - i, &step, NULL);
    if (grouping == GROUPS_ISOLATED) cut_at(c, begin);
    for (size_t i = begin; i < end; i += step, digits--) {
        if (digits % 3 == 0) cut_at(c, i);
        sh_utf8_scan(piece + i, end - i, &step, NULL);
    }
    if (grouping == GROUPS_ISOLATED) cut_at(c, end);
}

/* Cuts every piece of `words` by one expression. */
static enum sh_code cut(const pcre2_code *code, enum grouping grouping, const char *text, struct sh_words *words,
                        pcre2_match_data *data, pcre2_match_context *context, struct sh_error *err) {
    struct cutter cutter = {.words = words, .ok = true};
    size_t begin = 0;
    for (uint32_t i = 0; i < words->count; i++) {
        const size_t length = words->lengths[i];
        size_t done = 0;
        cutter.last = 0;
        while (done < length) {
            const int n =
                pcre2_match(code, (PCRE2_SPTR)text + begin, length, done, PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, data, context);
            if (n == PCRE2_ERROR_NOMATCH) break;
            if (n == PCRE2_ERROR_NOMEMORY) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory to cut the text into words");
            if (n < 0) {
                PCRE2_UCHAR why[128];
                pcre2_get_error_message(n, why, sizeof why);
                return sh_fail(err, SH_ERR_LIMIT,
                               "the text cannot be cut into words at byte %zu: %s; split it into shorter parts", begin + done,
                               (const char *)why);
            }
            const PCRE2_SIZE *at = pcre2_get_ovector_pointer(data);
            if (grouping == GROUPS_NONE) {
                cut_at(&cutter, at[0]);
                cut_at(&cutter, at[1]);
            } else {
                cut_digits(&cutter, text + begin, at[0], at[1], grouping);
            }
            done = at[1];
        }
        cut_at(&cutter, length);
        if (!cutter.ok) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory to cut the text into words");
        begin += length;
    }
    uint32_t *const list = words->scratch;
    const uint32_t capacity = words->scratch_capacity;
    words->scratch = words->lengths;
    words->scratch_capacity = words->capacity;
    words->lengths = list;
    words->capacity = capacity;
    words->count = cutter.made;
    return SH_OK;
}

enum sh_code sh_pretokenize(const struct sh_pretokenizer *p, const char *text, size_t length, struct sh_words *words,
                            struct sh_error *err) {
    words->count = 0;
    if (length > INT32_MAX) return sh_fail(err, SH_ERR_LIMIT, "the text is too long to tokenise: %zu bytes", length);
    char *copy;
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    pcre2_match_context *context = pcre2_match_context_create(NULL);
    /* The expressions backtrack over single-character repeats only, which need little. */
    pcre2_jit_stack *stack = pcre2_jit_stack_create(32 * 1024, 1024 * 1024, NULL);
    enum sh_code code;
    if (!well_formed(text, length, &copy) || data == NULL || context == NULL || stack == NULL ||
        !add_length(&words->lengths, &words->capacity, &words->count, length)) {
        code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory to cut the text into words");
    } else {
        pcre2_jit_stack_assign(context, NULL, stack);
        code = SH_OK;
        for (uint32_t i = 0; i < p->count && code == SH_OK; i++) {
            code = cut(p->codes[i], p->groupings[i], copy != NULL ? copy : text, words, data, context, err);
        }
    }
    free(copy);
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
    return code;
}

/*
 * chat_template.c - recognising a chat template.
 *
 * The template is cut into statements and outputs as Jinja cuts it (trim_blocks, lstrip_blocks, "-" at tags), and each is written
 * in one spelling: single quotes, x.y for x['y'], one blank between words; raw text and output tags are one chain of '+', in
 * which neighbouring strings are joined. The list of items must then equal one of the forms below.
 */
#include "compute/text/chat.h"

#include <ctype.h>
#include <stdlib.h>

/* ---- the forms ------------------------------------------------------------------------------------------------- */

/* clang-format off */
/* One item after the other, as in a template. */

/* In a form's items: */
#define ANY "\2"      /* as an item: any items, blocks complete, up to the next item of the form */
#define CAPTURE "\1"  /* inside of a string: any text, kept as the default system message */
#define CONTENT "\3"  /* message.content, trimmed or not */

#define TURN "= '<|im_start|>'+message.role+'\\n'+" CONTENT "+'<|im_end|>\\n'"
#define PROMPT "if add_generation_prompt", "= '<|im_start|>assistant\\n'", "endif"

static const char *const chatml[] = {"for message in messages", TURN, "endfor", PROMPT, NULL};
static const char *const chatml_bos[] = {"= bos_token", "for message in messages", TURN, "endfor", PROMPT, NULL};
static const char *const chatml_opened[] = {
    "if messages[0].role == 'user' or messages[0].role == 'system'", "= bos_token", "endif",
    "for message in messages", TURN, "endfor",
    "if add_generation_prompt", "= '<|im_start|>assistant\\n'", "elif messages[-1].role == 'assistant'", "= eos_token", "endif",
    NULL};
static const char *const chatml_default[] = {
    "for message in messages",
    "if loop.first and messages[0].role != 'system'", "= '<|im_start|>system\\n" CAPTURE "<|im_end|>\\n'", "endif",
    TURN, "endfor", PROMPT, NULL};
static const char *const chatml_open_last[] = {
    "for message in messages",
    "if loop.first and messages[0].role != 'system'", "= '<|im_start|>system\\n" CAPTURE "<|im_end|>\\n'", "endif",
    "= '<|im_start|>'+message.role+'\\n'+" CONTENT,
    "if(loop.last and add_generation_prompt)or not loop.last", "= '<|im_end|>\\n'", "endif",
    "endfor",
    "if add_generation_prompt and messages[-1].role != 'assistant'", "= '<|im_start|>assistant\\n'", "endif", NULL};
static const char *const chatml_tools[] = {
    "if tools", ANY, "else",
    "if messages[0].role == 'system'", "= '<|im_start|>system\\n'+messages[0].content+'<|im_end|>\\n'",
    "else", "= '<|im_start|>system\\n" CAPTURE "<|im_end|>\\n'", "endif",
    "endif",
    "for message in messages",
    "if(message.role == 'user')or(message.role == 'system' and not loop.first)or"
    "(message.role == 'assistant' and not message.tool_calls)",
    TURN, "elif message.role == 'assistant'", ANY, "endif",
    "endfor", PROMPT, NULL};
static const char *const chatml_media[] = {
    "set image_count = namespace(value = 0)", "set video_count = namespace(value = 0)",
    "for message in messages",
    "if loop.first and message.role != 'system'", "= '<|im_start|>system\\n" CAPTURE "<|im_end|>\\n'", "endif",
    "= '<|im_start|>'+message.role+'\\n'",
    "if message.content is string", "= message.content+'<|im_end|>\\n'", "else", ANY, "endif",
    "endfor", PROMPT, NULL};

#define LLAMA3_TURN \
    "set loop_messages = messages", "for message in loop_messages", \
    "set content = '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + " CONTENT " + '<|eot_id|>'", \
    "if loop.index0 == 0", "set content = bos_token + content", "endif", "= content", "endfor"
#define LLAMA3_PROMPT "= '<|start_header_id|>assistant<|end_header_id|>\\n\\n'"

static const char *const llama3[] = {LLAMA3_TURN, "if add_generation_prompt", LLAMA3_PROMPT, "endif", NULL};
static const char *const llama3_eos[] = {
    LLAMA3_TURN, "if add_generation_prompt", LLAMA3_PROMPT, "else", "= eos_token", "endif", NULL};
static const char *const llama3_always[] = {LLAMA3_TURN, LLAMA3_PROMPT, NULL};

#define LLAMA31_HEAD \
    "= bos_token", \
    "if custom_tools is defined", "set tools = custom_tools", "endif", \
    "if not tools_in_user_message is defined", "set tools_in_user_message = true", "endif"
#define LLAMA31_SYSTEM \
    "if not tools is defined", "set tools = none", "endif", \
    "if messages[0].role == 'system'", "set system_message = messages[0].content|trim", "set messages = messages[1:]", \
    "else", "set system_message = ''", "endif", \
    "= '<|start_header_id|>system<|end_header_id|>\\n\\n'"
#define LLAMA31_TAIL \
    "= 'Cutting Knowledge Date: December 2023\\nToday Date: '+date_string+'\\n\\n'", \
    "if tools is not none and not tools_in_user_message", ANY, "endif", \
    "= system_message+'<|eot_id|>'", \
    "if tools_in_user_message and not tools is none", ANY, "endif", \
    "for message in messages", \
    "if not(message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message)", \
    "= '<|start_header_id|>'+message.role+'<|end_header_id|>\\n\\n'+message.content|trim+'<|eot_id|>'", \
    "elif 'tool_calls' in message", ANY, "endif", \
    "endfor", \
    "if add_generation_prompt", LLAMA3_PROMPT, "endif"

static const char *const llama31[] = {
    LLAMA31_HEAD,
    "if not date_string is defined", "set date_string = '26 Jul 2024'", "endif",
    LLAMA31_SYSTEM,
    "if builtin_tools is defined or tools is not none", ANY, "endif",
    "if builtin_tools is defined", ANY, "endif",
    LLAMA31_TAIL, NULL};
static const char *const llama32[] = {
    LLAMA31_HEAD,
    "if not date_string is defined", "if strftime_now is defined", "set date_string = strftime_now('%d %b %Y')",
    "else", "set date_string = '26 Jul 2024'", "endif", "endif",
    LLAMA31_SYSTEM,
    "if tools is not none", ANY, "endif",
    LLAMA31_TAIL, NULL};

#define ALTERNATE \
    "if(message.role == 'user')!=(loop.index0 % 2 == 0)", \
    "= raise_exception('Conversation roles must alternate user/assistant/user/assistant/...')", "endif"
#define GEMMA_ROLE "if(message.role == 'assistant')", "set role = 'model'", "else", "set role = message.role", "endif"
#define GEMMA_PROMPT "if add_generation_prompt", "= '<start_of_turn>model\\n'", "endif"

static const char *const gemma[] = {
    "= bos_token", "if messages[0].role == 'system'", "= raise_exception('System role not supported')", "endif",
    "for message in messages", ALTERNATE, GEMMA_ROLE,
    "= '<start_of_turn>'+role+'\\n'+" CONTENT "+'<end_of_turn>\\n'",
    "endfor", GEMMA_PROMPT, NULL};
static const char *const gemma3[] = {
    "= bos_token",
    "if messages[0].role == 'system'",
    "if messages[0].content is string", "set first_user_prefix = messages[0].content + '\\n\\n'",
    "else", "set first_user_prefix = messages[0].content[0].text + '\\n\\n'", "endif",
    "set loop_messages = messages[1:]",
    "else", "set first_user_prefix = ''", "set loop_messages = messages", "endif",
    "for message in loop_messages", ALTERNATE, GEMMA_ROLE,
    "= '<start_of_turn>'+role+'\\n'+(first_user_prefix if loop.first else '')",
    "if message.content is string", "= " CONTENT, "elif message.content is iterable", ANY, "endif",
    "= '<end_of_turn>\\n'",
    "endfor", GEMMA_PROMPT, NULL};

static const char *const zephyr[] = {
    "for message in messages",
    "if message.role == 'user'", "= '<|user|>\\n'+message.content+eos_token+'\\n'",
    "elif message.role == 'system'", "= '<|system|>\\n'+message.content+eos_token+'\\n'",
    "elif message.role == 'assistant'", "= '<|assistant|>\\n'+message.content+eos_token+'\\n'", "endif",
    "if loop.last and add_generation_prompt", "= '<|assistant|>\\n'", "endif",
    "endfor", NULL};

#define LLAMA2_LOOP \
    "for message in loop_messages", ALTERNATE, \
    "if loop.index0 == 0 and system_message != false", \
    "set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message.content", \
    "else", "set content = message.content", "endif"
#define LLAMA2_FIRST \
    "if messages[0].role == 'system'", "set loop_messages = messages[1:]", "set system_message = messages[0].content"
#define LLAMA2_NONE "else", "set loop_messages = messages", "set system_message = false", "endif"

static const char *const llama2[] = {
    LLAMA2_FIRST,
    LLAMA2_NONE,
    LLAMA2_LOOP,
    "if message.role == 'user'", "= bos_token+'[INST] '+content.strip()+' [/INST]'",
    "elif message.role == 'assistant'", "= ' '+content.strip()+' '+eos_token", "endif",
    "endfor", NULL};
static const char *const llama2_trim[] = {
    LLAMA2_FIRST,
    LLAMA2_NONE,
    LLAMA2_LOOP,
    "if message.role == 'user'", "= bos_token+'[INST] '+content|trim+' [/INST]'",
    "elif message.role == 'assistant'", "= ' '+content|trim+' '+eos_token", "endif",
    "endfor", NULL};
static const char *const llama2_inner[] = {
    LLAMA2_FIRST,
    /* a default that only a caller's own variable switches on */
    "elif USE_DEFAULT_PROMPT == true and not '<<SYS>>' in messages[0].content", ANY,
    LLAMA2_NONE,
    LLAMA2_LOOP,
    "if message.role == 'user'", "= bos_token+'[INST] '+content.strip()+' [/INST]'",
    "elif message.role == 'system'", "= '<<SYS>>\\n'+content.strip()+'\\n<</SYS>>\\n\\n'",
    "elif message.role == 'assistant'", "= ' '+content.strip()+' '+eos_token", "endif",
    "endfor", NULL};

/* clang-format on */

static const struct {
    enum sh_chat_family family;
    uint32_t flags;
    const char *const *items;
} forms[] = {
    {SH_CHAT_CHATML, 0, chatml},
    {SH_CHAT_CHATML, SH_CHAT_BOS, chatml_bos},
    {SH_CHAT_CHATML, SH_CHAT_BOS_IF_OPENED | SH_CHAT_EOS_IF_ANSWERED, chatml_opened},
    {SH_CHAT_CHATML, 0, chatml_default},
    {SH_CHAT_CHATML, SH_CHAT_OPEN_LAST, chatml_open_last},
    {SH_CHAT_CHATML, 0, chatml_tools},
    {SH_CHAT_CHATML, 0, chatml_media},
    {SH_CHAT_LLAMA3, SH_CHAT_BOS, llama3},
    {SH_CHAT_LLAMA3, SH_CHAT_BOS | SH_CHAT_EOS_AT_END, llama3_eos},
    {SH_CHAT_LLAMA3, SH_CHAT_BOS | SH_CHAT_ALWAYS_PROMPT, llama3_always},
    {SH_CHAT_LLAMA3, SH_CHAT_BOS | SH_CHAT_TRIM | SH_CHAT_DATE_FIXED, llama31},
    {SH_CHAT_LLAMA3, SH_CHAT_BOS | SH_CHAT_TRIM | SH_CHAT_DATE_NOW, llama32},
    {SH_CHAT_GEMMA, SH_CHAT_BOS, gemma},
    {SH_CHAT_GEMMA, SH_CHAT_BOS | SH_CHAT_SYSTEM_TO_USER, gemma3},
    {SH_CHAT_ZEPHYR, 0, zephyr},
    {SH_CHAT_LLAMA2, 0, llama2},
    {SH_CHAT_LLAMA2, 0, llama2_trim},
    {SH_CHAT_LLAMA2, SH_CHAT_INNER_SYSTEM, llama2_inner},
};

/* ---- one spelling ---------------------------------------------------------------------------------------------- */

enum { MAX_ITEMS = 512, MAX_TOKENS = 512 }; /* no known form comes near; a longer template is none of them */

struct token {           /* of an expression or statement */
    char kind;           /* 'w' word or number, 's' string, 'o' operator */
    uint32_t at, length; /* in the template; of a string without its quotes */
};

struct canon {
    const char *text; /* the template, line ends normalised */
    char *out;        /* items, NUL-terminated each */
    uint32_t length, capacity;
    uint32_t items[MAX_ITEMS];
    uint32_t n_items;
    bool in_output, in_string;
    bool unknown, no_memory;
};

static void add(struct canon *c, const char *s, size_t n) {
    if (c->no_memory || !sh_grow((void **)&c->out, &c->capacity, c->length + (uint32_t)n + 2, 1)) {
        c->no_memory = true;
        return;
    }
    memcpy(c->out + c->length, s, n);
    c->length += (uint32_t)n;
}

static void begin_item(struct canon *c) {
    if (c->n_items == MAX_ITEMS) {
        c->unknown = true;
        return;
    }
    c->items[c->n_items++] = c->length;
}

static void end_item(struct canon *c) { add(c, "", 1); }

static void end_output(struct canon *c) {
    if (!c->in_output) return;
    if (c->in_string) add(c, "'", 1);
    end_item(c);
    c->in_output = c->in_string = false;
}

static void begin_part(struct canon *c) {
    if (!c->in_output) {
        begin_item(c);
        add(c, "= ", 2);
        c->in_output = true;
    } else {
        if (c->in_string) add(c, "'", 1);
        add(c, "+", 1);
    }
    c->in_string = false;
}

static void add_escaped(struct canon *c, char x) {
    if (x == '\n') {
        add(c, "\\n", 2);
    } else {
        if (x == '\'' || x == '\\') add(c, "\\", 1);
        add(c, &x, 1);
    }
}

/* A string of the template's language, decoded; raw text is taken as it is. */
static void add_string(struct canon *c, const char *s, size_t n, bool raw) {
    for (size_t i = 0; i < n; i++) {
        char x = s[i];
        if (!raw && x == '\\' && i + 1 < n) {
            x = s[++i];
            if (x == 'n') x = '\n';
            else if (x == 't') x = '\t';
            else if (x != '\\' && x != '\'' && x != '"') c->unknown = true; /* no known form has others */
        }
        add_escaped(c, x);
    }
}

static void output_string(struct canon *c, const char *s, size_t n, bool raw) {
    if (n == 0) return;
    if (!c->in_output || !c->in_string) {
        begin_part(c);
        add(c, "'", 1);
        c->in_string = true;
    }
    add_string(c, s, n, raw);
}

/* Cuts [at, end) into tokens. */
static uint32_t lex(struct canon *c, uint32_t at, uint32_t end, struct token *tokens) {
    uint32_t n = 0;
    while (at < end) {
        const char x = c->text[at];
        if (isspace((unsigned char)x)) {
            at++;
            continue;
        }
        if (n == MAX_TOKENS) {
            c->unknown = true;
            return n;
        }
        uint32_t to = at + 1;
        if (x == '\'' || x == '"') {
            while (to < end && c->text[to] != x) to += c->text[to] == '\\' ? 2 : 1;
            if (to >= end) {
                c->unknown = true;
                return n;
            }
            tokens[n++] = (struct token){'s', at + 1, to - at - 1};
            at = to + 1;
            continue;
        }
        char kind = 'o';
        if (isalnum((unsigned char)x) || x == '_') {
            kind = 'w';
            while (to < end && (isalnum((unsigned char)c->text[to]) || c->text[to] == '_')) to++;
        } else if (to < end && c->text[to] == '=' && strchr("=!<>", x) != NULL) {
            to++;
        }
        tokens[n++] = (struct token){kind, at, to - at};
        at = to;
    }
    return n;
}

static bool is_op(const struct canon *c, struct token t, const char *op) {
    return t.kind == 'o' && strlen(op) == t.length && memcmp(c->text + t.at, op, t.length) == 0;
}

static bool is_word(const struct canon *c, struct token t, const char *word) {
    return t.kind == 'w' && strlen(word) == t.length && memcmp(c->text + t.at, word, t.length) == 0;
}

static bool is_name(const char *s, size_t n) {
    if (n == 0 || isdigit((unsigned char)s[0])) return false;
    for (size_t i = 0; i < n; i++) {
        if (!isalnum((unsigned char)s[i]) && s[i] != '_') return false;
    }
    return true;
}

static bool is_tight(const struct canon *c, struct token t) { return t.kind == 'o' && strchr(".()[]|,:", c->text[t.at]) != NULL; }

static void add_tokens(struct canon *c, const struct token *t, uint32_t n) {
    bool tight = true; /* no blank behind what was written last */
    for (uint32_t i = 0; i < n; i++) {
        const bool subscript = i > 0 && i + 2 < n && is_op(c, t[i], "[") && t[i + 1].kind == 's' && is_op(c, t[i + 2], "]") &&
                               is_name(c->text + t[i + 1].at, t[i + 1].length) &&
                               (t[i - 1].kind == 'w' || is_op(c, t[i - 1], "]") || is_op(c, t[i - 1], ")"));
        if (subscript) {
            add(c, ".", 1);
            add(c, c->text + t[i + 1].at, t[i + 1].length);
            i += 2;
            tight = false;
            continue;
        }
        const bool sign = i > 0 && is_op(c, t[i - 1], "-") && (i == 1 || is_op(c, t[i - 2], "[")); /* messages[-1] */
        if (!tight && !sign && !is_tight(c, t[i])) add(c, " ", 1);
        tight = is_tight(c, t[i]);
        if (t[i].kind == 's') {
            add(c, "'", 1);
            add_string(c, c->text + t[i].at, t[i].length, false);
            add(c, "'", 1);
        } else {
            add(c, c->text + t[i].at, t[i].length);
        }
    }
}

/* {{ a + b + c }}: parts, unless something that binds less than '+' stands beside them. */
static void output_expression(struct canon *c, const struct token *t, uint32_t n) {
    static const char *const weak[] = {"if", "else", "or", "and", "not", "in", "is"};
    uint32_t depth = 0;
    bool chain = true;
    for (uint32_t i = 0; i < n; i++) {
        if (is_op(c, t[i], "(") || is_op(c, t[i], "[") || is_op(c, t[i], "{")) depth++;
        if ((is_op(c, t[i], ")") || is_op(c, t[i], "]") || is_op(c, t[i], "}")) && depth > 0) depth--;
        if (depth > 0) continue;
        for (uint32_t k = 0; k < SH_COUNT(weak); k++) chain &= !is_word(c, t[i], weak[k]);
        chain &= t[i].kind != 'o' || strchr("=!<>-*/%~", c->text[t[i].at]) == NULL;
    }
    uint32_t from = 0;
    depth = 0;
    for (uint32_t i = 0; i <= n; i++) {
        if (i < n) {
            if (is_op(c, t[i], "(") || is_op(c, t[i], "[") || is_op(c, t[i], "{")) depth++;
            if ((is_op(c, t[i], ")") || is_op(c, t[i], "]") || is_op(c, t[i], "}")) && depth > 0) depth--;
            if (!chain || depth > 0 || !is_op(c, t[i], "+")) continue;
        }
        if (i - from == 1 && t[from].kind == 's') {
            output_string(c, c->text + t[from].at, t[from].length, false);
        } else {
            begin_part(c);
            add_tokens(c, t + from, i - from);
        }
        from = i + 1;
    }
}

/* Where the tag that begins at `at` ends: the position of its closing mark; `end` if it has none. */
static uint32_t tag_end(const char *text, uint32_t at, uint32_t end, char kind) {
    const char close = kind == '{' ? '}' : kind;
    char quote = 0;
    for (uint32_t i = at + 2; i + 1 < end; i++) {
        if (quote != 0) {
            if (text[i] == '\\') i++;
            else if (text[i] == quote) quote = 0;
        } else if (kind != '#' && (text[i] == '\'' || text[i] == '"')) {
            quote = text[i];
        } else if (text[i] == close && text[i + 1] == '}') {
            return i;
        }
    }
    return end;
}

static void canonicalise(struct canon *c, uint32_t end) {
    if (end > 0 && c->text[end - 1] == '\n') end--; /* Jinja drops one line feed at the end */
    struct token *tokens = sh_calloc(MAX_TOKENS, sizeof *tokens);
    if (tokens == NULL) {
        c->no_memory = true;
        return;
    }
    uint32_t raw = 0; /* where the pending raw text begins */
    for (uint32_t at = 0; at <= end && !c->unknown && !c->no_memory;) {
        const char kind = at + 1 < end && c->text[at] == '{' ? c->text[at + 1] : 0;
        if (at < end && kind != '{' && kind != '%' && kind != '#') {
            at++;
            continue;
        }
        uint32_t raw_end = at;
        bool line_start = false;
        if (at < end) {
            const char mark = at + 2 < end ? c->text[at + 2] : 0;
            if (mark == '-') {
                while (raw_end > raw && isspace((unsigned char)c->text[raw_end - 1])) raw_end--;
            } else if (mark != '+' && kind != '{') { /* lstrip_blocks */
                uint32_t k = raw_end;
                while (k > raw && (c->text[k - 1] == ' ' || c->text[k - 1] == '\t')) k--;
                line_start = k == 0 || c->text[k - 1] == '\n';
                if (line_start) raw_end = k;
            }
        }
        output_string(c, c->text + raw, raw_end - raw, true);
        if (at == end) break;
        const uint32_t close = tag_end(c->text, at, end, kind);
        if (close == end) {
            c->unknown = true;
            break;
        }
        uint32_t from = at + 2, to = close;
        if (c->text[from] == '-' || c->text[from] == '+') from++;
        const bool strip = to > from && c->text[to - 1] == '-';
        const bool keep = to > from && c->text[to - 1] == '+';
        if (strip || keep) to--;
        if (kind == '{') {
            output_expression(c, tokens, lex(c, from, to, tokens));
        } else if (kind == '%') {
            end_output(c);
            begin_item(c);
            add_tokens(c, tokens, lex(c, from, to, tokens));
            end_item(c);
        }
        at = close + 2;
        if (strip) {
            while (at < end && isspace((unsigned char)c->text[at])) at++;
        } else if (kind != '{' && !keep && at < end && c->text[at] == '\n') { /* trim_blocks */
            at++;
        }
        raw = at;
    }
    end_output(c);
    free(tokens);
}

/* ---- comparing --------------------------------------------------------------------------------------------------- */

struct found {
    const char *system; /* CAPTURE, still escaped */
    uint32_t system_length;
    bool captured, trims, keeps; /* CONTENT with and without |trim */
};

static bool same_item(const char *item, const char *want, struct found *f) {
    for (; *want != '\0'; want++) {
        if (*want == CAPTURE[0]) {
            const char *rest = want + 1;
            const char *at = strstr(item, rest);
            if (at == NULL || at[strlen(rest)] != '\0') return false;
            for (const char *p = item; p < at; p++) {
                if (*p == '\\') p++;
                else if (*p == '\'') return false; /* the string ended before */
            }
            f->system = item;
            f->system_length = (uint32_t)(at - item);
            f->captured = true;
            return true;
        }
        if (*want == CONTENT[0]) {
            static const char content[] = "message.content", trim[] = "|trim";
            if (strncmp(item, content, sizeof content - 1) != 0) return false;
            item += sizeof content - 1;
            const bool trims = strncmp(item, trim, sizeof trim - 1) == 0;
            if (trims) item += sizeof trim - 1;
            f->trims |= trims;
            f->keeps |= !trims;
            continue;
        }
        if (*item++ != *want) return false;
    }
    return *item == '\0';
}

static bool opens(const char *item) {
    return strncmp(item, "if ", 3) == 0 || strncmp(item, "if(", 3) == 0 || strncmp(item, "for ", 4) == 0;
}

static bool closes(const char *item) { return strcmp(item, "endif") == 0 || strcmp(item, "endfor") == 0; }

static bool same_form(const struct canon *c, uint32_t first, const char *const *want, struct found *f) {
    uint32_t i = first;
    for (; *want != NULL; want++) {
        if (strcmp(*want, ANY) == 0) {
            uint32_t depth = 0;
            for (; i < c->n_items; i++) {
                const char *item = c->out + c->items[i];
                if (depth == 0 && same_item(item, want[1], f)) break;
                if (opens(item)) depth++;
                if (closes(item)) {
                    if (depth == 0) return false;
                    depth--;
                }
            }
            continue;
        }
        if (i == c->n_items || !same_item(c->out + c->items[i], *want, f)) return false;
        i++;
    }
    return i == c->n_items;
}

/* "if not x is defined, set x = false": it is defined, or undefined and false anyway. */
static bool begins_with_default(const struct canon *c) {
    return c->n_items > 3 && strcmp(c->out + c->items[0], "if not add_generation_prompt is defined") == 0 &&
           strcmp(c->out + c->items[1], "set add_generation_prompt = false") == 0 && strcmp(c->out + c->items[2], "endif") == 0;
}

static char *unescape(const char *s, uint32_t n) {
    char *out = malloc(n + 1);
    if (out == NULL) return NULL;
    uint32_t k = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (s[i] == '\\') {
            i++;
            out[k++] = s[i] == 'n' ? '\n' : s[i];
        } else {
            out[k++] = s[i];
        }
    }
    out[k] = '\0';
    return out;
}

static enum sh_code choose(const struct canon *c, struct sh_chat_form *out, struct sh_error *err) {
    const uint32_t first = begins_with_default(c) ? 3 : 0;
    for (uint32_t i = 0; i < SH_COUNT(forms); i++) {
        struct found f = {0};
        if (!same_form(c, first, forms[i].items, &f) || (f.trims && f.keeps)) continue;
        out->family = forms[i].family;
        out->flags = forms[i].flags | (f.trims ? (uint32_t)SH_CHAT_TRIM : 0);
        if (f.captured) {
            out->default_system = unescape(f.system, f.system_length);
            if (out->default_system == NULL) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the chat template");
        }
        return SH_OK;
    }
    return SH_OK;
}

enum sh_code sh_chat_recognise(const char *text, size_t length, struct sh_chat_form *out, struct sh_error *err) {
    *out = (struct sh_chat_form){.family = text == NULL ? SH_CHAT_PLAIN : SH_CHAT_UNKNOWN};
    if (text == NULL || length > 1 << 20 || memchr(text, '\0', length) != NULL) return SH_OK;
    struct canon *c = sh_calloc(1, sizeof *c);
    char *lines = malloc(length + 1);
    enum sh_code code = SH_OK;
    if (c != NULL && lines != NULL) {
        uint32_t n = 0;
        for (size_t i = 0; i < length; i++) {
            if (text[i] == '\r') {
                lines[n++] = '\n';
                if (i + 1 < length && text[i + 1] == '\n') i++;
            } else {
                lines[n++] = text[i];
            }
        }
        lines[n] = '\0';
        c->text = lines;
        canonicalise(c, n);
        if (!c->no_memory && !c->unknown) code = choose(c, out, err);
    }
    if (c == NULL || lines == NULL || c->no_memory) code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the chat template");
    free(lines);
    if (c != NULL) free(c->out);
    free(c);
    return code;
}

void sh_chat_form_free(struct sh_chat_form *form) {
    free(form->default_system);
    *form = (struct sh_chat_form){.family = SH_CHAT_UNKNOWN};
}

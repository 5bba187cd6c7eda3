/*
 * regex_property.c - \p{...}: general categories, scripts and a few binary properties, as PCRE2 knows them.
 *
 * PCRE2 has the tables but no list of a property's code points, so they are found by matching all of Unicode, which takes some 20 ms, and
 * kept.
 */
#include "compute/grammar/charset.h"

#include "compute/text/utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

/* ECMA-262 knows long names of general categories, PCRE2 only the short ones. */
static const char *const categories[][2] = {
    {"Letter", "L"},
    {"Cased_Letter", "L&"},
    {"LC", "L&"},
    {"Uppercase_Letter", "Lu"},
    {"Lowercase_Letter", "Ll"},
    {"Titlecase_Letter", "Lt"},
    {"Modifier_Letter", "Lm"},
    {"Other_Letter", "Lo"},
    {"Mark", "M"},
    {"Combining_Mark", "M"},
    {"Nonspacing_Mark", "Mn"},
    {"Spacing_Mark", "Mc"},
    {"Enclosing_Mark", "Me"},
    {"Number", "N"},
    {"Decimal_Number", "Nd"},
    {"digit", "Nd"},
    {"Letter_Number", "Nl"},
    {"Other_Number", "No"},
    {"Punctuation", "P"},
    {"punct", "P"},
    {"Connector_Punctuation", "Pc"},
    {"Dash_Punctuation", "Pd"},
    {"Open_Punctuation", "Ps"},
    {"Close_Punctuation", "Pe"},
    {"Initial_Punctuation", "Pi"},
    {"Final_Punctuation", "Pf"},
    {"Other_Punctuation", "Po"},
    {"Symbol", "S"},
    {"Math_Symbol", "Sm"},
    {"Currency_Symbol", "Sc"},
    {"Modifier_Symbol", "Sk"},
    {"Other_Symbol", "So"},
    {"Separator", "Z"},
    {"Space_Separator", "Zs"},
    {"Line_Separator", "Zl"},
    {"Paragraph_Separator", "Zp"},
    {"Other", "C"},
    {"Control", "Cc"},
    {"cntrl", "Cc"},
    {"Format", "Cf"},
    {"Private_Use", "Co"},
    {"Unassigned", "Cn"},
};
static const char *const short_categories =
    " L Lu Ll Lt Lm Lo M Mn Mc Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp C Cc Cf Co Cn ";
static const char *const scripts[] = {
    "Latin",  "Greek",    "Cyrillic", "Armenian",  "Hebrew",   "Arabic",   "Devanagari", "Bengali", "Gurmukhi", "Gujarati",
    "Tamil",  "Telugu",   "Kannada",  "Malayalam", "Sinhala",  "Thai",     "Lao",        "Tibetan", "Myanmar",  "Georgian",
    "Hangul", "Ethiopic", "Khmer",    "Mongolian", "Hiragana", "Katakana", "Bopomofo",   "Han",     "Common"};

/* PCRE2's name for it, as an expression; false: not one of ours. */
static bool translate(const char *name, char out[64]) {
    static const char *const ways[] = {"General_Category=", "gc="}, *const script_ways[] = {"Script=", "sc="};
    for (uint32_t i = 0; i < SH_COUNT(ways); i++) {
        const size_t n = strlen(ways[i]);
        if (strncmp(name, ways[i], n) == 0) {
            name += n;
            break;
        }
    }
    for (uint32_t i = 0; i < SH_COUNT(script_ways); i++) {
        const size_t n = strlen(script_ways[i]);
        for (uint32_t k = 0; strncmp(name, script_ways[i], n) == 0 && k < SH_COUNT(scripts); k++) {
            /* PCRE2 10.40 and later takes a bare name for the script's extensions. */
            if (strcmp(name + n, scripts[k]) == 0)
                return snprintf(out, 64, PCRE2_MAJOR > 10 || PCRE2_MINOR >= 40 ? "\\p{sc:%s}+" : "\\p{%s}+", scripts[k]) > 0;
        }
    }
    for (uint32_t i = 0; i < SH_COUNT(categories); i++) {
        if (strcmp(name, categories[i][0]) == 0) return snprintf(out, 64, "\\p{%s}+", categories[i][1]) > 0;
    }
    const size_t n = strlen(name);
    if (n == 0 || n > 2) return false;
    const char padded[] = {' ', name[0], n == 2 ? name[1] : ' ', n == 2 ? ' ' : 0, 0};
    return strstr(short_categories, padded) != NULL && snprintf(out, 64, "\\p{%s}+", name) > 0;
}

/* All code points but surrogates, in order; *n bytes. NULL: no memory. */
static char *all_of_unicode(size_t *n) {
    char *text = malloc(4 * (SH_MAX_CODE_POINT + 1));
    if (text == NULL) return NULL;
    *n = 0;
    for (uint32_t c = 0; c <= SH_MAX_CODE_POINT; c++) {
        if (c < 0xD800 || c > 0xDFFF) *n += sh_utf8_encode(c, text + *n);
    }
    return text;
}

/* The code points of a PCRE2 expression for one property, settled. */
static void find(const char *expression, struct sh_charset *set) {
    int number;
    PCRE2_SIZE offset;
    pcre2_code *re = pcre2_compile((PCRE2_SPTR)expression, PCRE2_ZERO_TERMINATED, PCRE2_UTF, &number, &offset, NULL);
    if (re == NULL) return;
    pcre2_jit_compile(re, PCRE2_JIT_COMPLETE); /* where it is forbidden the interpreter does the same, slower */
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    size_t n = 0;
    char *text = all_of_unicode(&n);
    set->failed = data == NULL || text == NULL;
    for (PCRE2_SIZE at = 0; !set->failed && pcre2_match(re, (PCRE2_SPTR)text, n, at, PCRE2_NO_UTF_CHECK, data, NULL) > 0;) {
        const PCRE2_SIZE *span = pcre2_get_ovector_pointer(data);
        uint32_t first = 0, last = 0;
        size_t bytes, back = span[1] - 1;
        while ((text[back] & 0xC0) == 0x80) back--;
        sh_utf8_scan(text + span[0], n - span[0], &bytes, &first);
        sh_utf8_scan(text + back, n - back, &bytes, &last);
        sh_charset_add(set, first, last);
        at = span[1];
    }
    sh_charset_settle(set);
    free(text);
    pcre2_match_data_free(data);
    pcre2_code_free(re);
}

bool sh_rx_property(const char *name, size_t length, struct sh_charset *set) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static struct known { /* as many as there are names that translate() knows, at most */
        char expression[64];
        struct sh_charset set;
    } known[SH_COUNT(categories) + SH_COUNT(scripts) + 40];
    static uint32_t n_known;
    char copy[48], expression[64];
    if (length >= sizeof copy) return false;
    memcpy(copy, name, length);
    copy[length] = 0;
    if (strlen(copy) != length) return false;
    if (strcmp(copy, "Any") == 0) return sh_charset_add(set, 0, SH_MAX_CODE_POINT), true;
    if (strcmp(copy, "ASCII") == 0) return sh_charset_add(set, 0, 0x7F), true;
    if (!translate(copy, expression)) return false;
    pthread_mutex_lock(&lock);
    uint32_t i = 0;
    while (i < n_known && strcmp(known[i].expression, expression) != 0) i++;
    if (i == n_known) {
        struct sh_charset found = {0};
        find(expression, &found);
        if (found.failed || found.n == 0 || n_known == SH_COUNT(known)) {
            pthread_mutex_unlock(&lock);
            set->failed |= found.failed;
            sh_charset_free(&found);
            return set->failed;
        }
        memcpy(known[i].expression, expression, sizeof expression);
        known[i].set = found;
        n_known++;
    }
    sh_charset_add_set(set, &known[i].set);
    pthread_mutex_unlock(&lock);
    return true;
}

#include "compute/text/unicode.h"

static uint32_t mapped(const struct sh_unicode_run *runs, uint32_t count, uint32_t c) {
    uint32_t low = 0, high = count; /* the last run that begins at or before c is low - 1 */
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (runs[middle].first <= c) low = middle + 1;
        else high = middle;
    }
    if (low == 0) return c;
    const struct sh_unicode_run *run = &runs[low - 1];
    const uint32_t distance = c - run->first, i = distance / run->step;
    return i < run->count && i * run->step == distance ? run->target + i * run->target_step : c;
}

enum sh_unicode_class sh_unicode_class_of(uint32_t c) {
    uint32_t low = 0, high = sh_unicode_ranges_count;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (sh_unicode_ranges[middle].first <= c) low = middle + 1;
        else high = middle;
    }
    return low > 0 && c <= sh_unicode_ranges[low - 1].last ? sh_unicode_ranges[low - 1].what : SH_UNICODE_OTHER;
}

uint32_t sh_unicode_lower(uint32_t c) {
    if (c < 0x80) return c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c;
    return mapped(sh_unicode_lower_runs, sh_unicode_lower_runs_count, c);
}

uint32_t sh_unicode_base(uint32_t c) {
    if (c < 0xC0) return c;
    if (c >= 0xAC00 && c <= 0xD7A3) return 0x1100 + (c - 0xAC00) / 588; /* Unicode 3.12: 21 vowels by 28 final consonants */
    return mapped(sh_unicode_base_runs, sh_unicode_base_runs_count, c);
}

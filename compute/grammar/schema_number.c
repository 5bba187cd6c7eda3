/*
 * schema_number.c - numbers between bounds as texts of digits.
 *
 * Integers are exact over all of int64. Other numbers are generated without an exponent, with at most SH_JSON_DIGITS digits before and
 * behind the point; where a bound is exclusive, with so few behind it that a double near the bound cannot round onto it.
 */
#include "compute/grammar/schema.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

bool sh_json_is_integer(const json_t *number) {
    return json_is_integer(number) || (json_is_real(number) && floor(json_real_value(number)) == json_real_value(number));
}

int sh_json_compare(const json_t *a, const json_t *b) {
    if (json_is_integer(a) && json_is_integer(b)) {
        return json_integer_value(a) < json_integer_value(b) ? -1 : json_integer_value(a) > json_integer_value(b);
    }
#if LDBL_MANT_DIG >= 64
    const long double x = json_is_integer(a) ? (long double)json_integer_value(a) : (long double)json_real_value(a);
    const long double y = json_is_integer(b) ? (long double)json_integer_value(b) : (long double)json_real_value(b);
#else
    const double x = json_number_value(a), y = json_number_value(b);
#endif
    return x < y ? -1 : x > y;
}

bool sh_json_equal(const json_t *a, const json_t *b) {
    if (json_is_number(a) && json_is_number(b)) return sh_json_compare(a, b) == 0;
    if (json_typeof(a) != json_typeof(b)) return false;
    if (json_is_array(a)) {
        if (json_array_size(a) != json_array_size(b)) return false;
        for (size_t i = 0; i < json_array_size(a); i++) {
            if (!sh_json_equal(json_array_get(a, i), json_array_get(b, i))) return false;
        }
        return true;
    }
    if (json_is_object(a)) {
        const char *key;
        json_t *value;
        if (json_object_size(a) != json_object_size(b)) return false;
        json_object_foreach((json_t *)a, key, value) {
            const json_t *other = json_object_get(b, key);
            if (other == NULL || !sh_json_equal(value, other)) return false;
        }
        return true;
    }
    return json_equal((json_t *)a, (json_t *)b);
}

/* ---- digits ------------------------------------------------------------------------------------------------------------- */

static sh_gr_expr digit_between(struct sh_gr *gr, uint32_t low, uint32_t high) {
    uint8_t set[32] = {0};
    for (uint32_t d = low; d <= high && d <= 9; d++) set[('0' + d) >> 3] |= (uint8_t)(1u << (('0' + d) & 7));
    return low <= high ? sh_gr_bytes(gr, set) : SH_GR_NEVER;
}

static uint64_t power(uint32_t digits) {
    uint64_t p = 1;
    while (digits-- > 0) p *= 10;
    return p;
}

/* Numbers of exactly n digits, leading zeros and all, from low to high. */
static sh_gr_expr fixed(struct sh_gr *gr, uint64_t low, uint64_t high, uint32_t n) {
    if (low > high) return SH_GR_NEVER;
    if (n == 0) return SH_GR_EMPTY;
    const uint64_t unit = power(n - 1);
    const uint32_t first = (uint32_t)(low / unit), last = (uint32_t)(high / unit);
    const uint64_t low_rest = low % unit, high_rest = high % unit;
    if (low_rest == 0 && high_rest == unit - 1)
        return sh_gr_pair(gr, digit_between(gr, first, last), sh_json_digits(gr, n - 1, n - 1));
    if (first == last) return sh_gr_pair(gr, digit_between(gr, first, first), fixed(gr, low_rest, high_rest, n - 1));
    sh_gr_expr all[3] = {sh_gr_pair(gr, digit_between(gr, first, first), fixed(gr, low_rest, unit - 1, n - 1)), SH_GR_NEVER,
                         sh_gr_pair(gr, digit_between(gr, last, last), fixed(gr, 0, high_rest, n - 1))};
    if (last - first > 1) all[1] = sh_gr_pair(gr, digit_between(gr, first + 1, last - 1), sh_json_digits(gr, n - 1, n - 1));
    return sh_gr_choice(gr, all, 3);
}

/* low to high without leading zeros. */
static sh_gr_expr magnitudes(struct sh_gr *gr, uint64_t low, uint64_t high) {
    sh_gr_expr all[20];
    uint32_t n = 0;
    if (low > high) return SH_GR_NEVER;
    for (uint32_t digits = 1; digits <= 19; digits++) {
        const uint64_t least = digits == 1 ? 0 : power(digits - 1),
                       most = digits == 19 ? 9999999999999999999u : power(digits) - 1;
        if (most < low || least > high) continue;
        all[n++] = fixed(gr, low > least ? low : least, high < most ? high : most, digits);
    }
    return sh_gr_choice(gr, all, n);
}

static sh_gr_expr minus(struct sh_gr *gr, sh_gr_expr magnitude) { return sh_gr_pair(gr, sh_gr_text(gr, "-", 1), magnitude); }

/* ---- integers ----------------------------------------------------------------------------------------------------------- */

/* The first integer that a lower bound allows (upper: the last); false: beyond int64, *beyond_up says on which side. */
static bool integer_bound(const struct sh_bound *bound, bool upper, int64_t *out, bool *beyond_up) {
    const int64_t inward = !bound->exclusive ? 0 : upper ? -1 : 1;
    if (json_is_integer(bound->number)) {
        *beyond_up = inward > 0;
        return !__builtin_add_overflow((int64_t)json_integer_value(bound->number), inward, out);
    }
    const double v = json_real_value(bound->number), whole = upper ? floor(v) : ceil(v);
    *beyond_up = v > 0;
    if (!(whole > -9.2e18 && whole < 9.2e18)) return false;
    *out = (int64_t)whole + (whole == v ? inward : 0);
    return true;
}

/* False: nothing lies between them. */
static bool integer_range(const struct sh_bound *min, const struct sh_bound *max, int64_t *low, int64_t *high) {
    const int64_t usual = (int64_t)power(SH_JSON_DIGITS) - 1;
    bool has_low = min->number != NULL, has_high = max->number != NULL, up;
    if (has_low && !integer_bound(min, false, low, &up)) {
        if (up) return false;
        has_low = false;
    }
    if (has_high && !integer_bound(max, true, high, &up)) {
        if (!up) return false;
        has_high = false;
    }
    if (!has_low) *low = has_high && *high < -usual ? INT64_MIN + 1 : -usual;
    if (!has_high) *high = has_low && *low > usual ? INT64_MAX : usual;
    return *low <= *high;
}

bool sh_json_no_integers(const struct sh_bound *min, const struct sh_bound *max) {
    int64_t low = 0, high = 0;
    return !integer_range(min, max, &low, &high);
}

sh_gr_expr sh_json_integers(struct sh_gr *gr, const struct sh_bound *min, const struct sh_bound *max) {
    int64_t low = 0, high = 0;
    if (!integer_range(min, max, &low, &high)) return SH_GR_NEVER;
    sh_gr_expr parts[2] = {SH_GR_NEVER, SH_GR_NEVER};
    if (low < 0) parts[0] = minus(gr, magnitudes(gr, high < 0 ? 0 - (uint64_t)high : 1, 0 - (uint64_t)low));
    if (high >= 0) parts[1] = magnitudes(gr, low > 0 ? (uint64_t)low : 0, (uint64_t)high);
    return sh_gr_choice(gr, parts, 2);
}

bool sh_json_is_multiple(const json_t *number, const json_t *factor) {
    if (factor == NULL) return true;
    if (json_is_integer(number) && json_is_integer(factor)) return json_integer_value(number) % json_integer_value(factor) == 0;
    return fmod(json_number_value(number), json_number_value(factor)) == 0;
}

int sh_json_multiples(struct sh_gr *gr, const struct sh_bound *min, const struct sh_bound *max, const json_t *const *factors,
                      uint32_t n, sh_gr_expr *out) {
    enum { MOST = 4096 };
    int64_t low = 0, high = 0, step = 1;
    for (uint32_t i = 0; i < n; i++) {
        if (!sh_json_is_integer(factors[i]) || json_number_value(factors[i]) > 1e15) return -1;
        const int64_t factor = (int64_t)json_number_value(factors[i]);
        int64_t a = step, b = factor;
        while (b != 0) {
            const int64_t rest = a % b;
            a = b;
            b = rest;
        }
        if (__builtin_mul_overflow(step / a, factor, &step)) return -1;
    }
    *out = SH_GR_NEVER;
    if (!integer_range(min, max, &low, &high)) return 0;
    if (step == 1) {
        *out = sh_json_integers(gr, min, max);
        return 1;
    }
    const int64_t exact = (int64_t)1 << 53; /* beyond it a reader's doubles would make another number of it */
    if (low < -exact || high > exact) return -1;
    const __int128 first = ((__int128)low - (low > 0 ? 1 - step : 0)) / step,
                   last = ((__int128)high - (high < 0 ? step - 1 : 0)) / step;
    if (last - first >= MOST) return -1;
    sh_gr_expr all[MOST];
    uint32_t n_all = 0;
    for (__int128 i = first; i <= last; i++) {
        char text[24];
        const int length = snprintf(text, sizeof text, "%lld", (long long)(i * step));
        all[n_all++] = sh_gr_text(gr, text, (size_t)length);
    }
    *out = sh_gr_choice(gr, all, n_all);
    return (int)n_all;
}

/* ---- other numbers ------------------------------------------------------------------------------------------------------ */

struct decimal { /* a bound's magnitude */
    bool negative;
    uint64_t whole;
    uint8_t digits[SH_JSON_DIGITS]; /* behind the point */
    bool exclusive;
};

/* False: it has more digits than SH_JSON_DIGITS before or behind the point. */
static bool read_decimal(const struct sh_bound *bound, struct decimal *out) {
    char text[400];
    const double v = fabs(json_number_value(bound->number));
    *out = (struct decimal){.negative = json_number_value(bound->number) < 0, .exclusive = bound->exclusive};
    if (!(v < 1e15)) return false;
    for (int precision = 15; precision <= 17; precision++) { /* the shortest that is this number */
        snprintf(text, sizeof text, "%.*e", precision - 1, v);
        if (strtod(text, NULL) == v) break;
    }
    const int exponent = (int)strtol(strchr(text, 'e') + 1, NULL, 10);
    int place = exponent; /* of the digit at hand: 0 units, -1 tenths */
    for (const char *p = text; *p != 'e'; p++) {
        if (*p < '0' || *p > '9') continue;
        if (place >= 0) out->whole += (uint64_t)(*p - '0') * power((uint32_t)place);
        else if (place >= -SH_JSON_DIGITS) out->digits[-place - 1] = (uint8_t)(*p - '0');
        else if (*p != '0') return false;
        place--;
    }
    return true;
}

struct fraction { /* what stands behind a point: at most n digits, from low to high (NULL: no such bound) */
    struct sh_gr *gr;
    const struct decimal *low, *high;
    uint32_t n;
};

static bool zeros(const struct decimal *d, uint32_t from) {
    while (from < SH_JSON_DIGITS && d->digits[from] == 0) from++;
    return from == SH_JSON_DIGITS;
}

/* The digits from place i on; at_low, at_high: those before are the bound's. */
static sh_gr_expr fraction_from(const struct fraction *f, uint32_t i, bool at_low, bool at_high) {
    struct sh_gr *gr = f->gr;
    if (!at_low && !at_high) return sh_json_digits(gr, i == 0 ? 1 : 0, f->n - i);
    sh_gr_expr all[4] = {SH_GR_NEVER, SH_GR_NEVER, SH_GR_NEVER, SH_GR_NEVER};
    const bool low_ok = !at_low || (zeros(f->low, i) && !f->low->exclusive);
    const bool high_ok = !at_high || !zeros(f->high, i) || !f->high->exclusive;
    if (i > 0 && low_ok && high_ok) all[0] = SH_GR_EMPTY;
    if (i < f->n) {
        const uint32_t low = at_low ? f->low->digits[i] : 0, high = at_high ? f->high->digits[i] : 9;
        uint32_t from = low, to = high + 1; /* digits strictly between the bounds' */
        if (at_low && at_high && low == high) {
            all[1] = sh_gr_pair(gr, digit_between(gr, low, low), fraction_from(f, i + 1, true, true));
            from = to;
        } else if (low <= high) {
            if (at_low) all[1] = sh_gr_pair(gr, digit_between(gr, low, low), fraction_from(f, i + 1, true, false)), from++;
            if (at_high) all[2] = sh_gr_pair(gr, digit_between(gr, high, high), fraction_from(f, i + 1, false, true)), to--;
        } else {
            from = to;
        }
        if (from < to) all[3] = sh_gr_pair(gr, digit_between(gr, from, to - 1), fraction_from(f, i + 1, false, false));
    }
    return sh_gr_choice(gr, all, 4);
}

/* A whole number, and perhaps a point and digits, so that the fraction lies between the bounds. */
static sh_gr_expr with_fraction(struct sh_gr *gr, sh_gr_expr whole, const struct decimal *low, const struct decimal *high,
                                uint32_t n) {
    const struct fraction f = {gr, low, high, n};
    const bool bare =
        (low == NULL || (zeros(low, 0) && !low->exclusive)) && (high == NULL || !zeros(high, 0) || !high->exclusive);
    const sh_gr_expr point =
        n > 0 ? sh_gr_pair(gr, sh_gr_text(gr, ".", 1), fraction_from(&f, 0, low != NULL, high != NULL)) : SH_GR_NEVER;
    return sh_gr_pair(gr, whole, bare ? sh_gr_optional(gr, point) : point);
}

/* Magnitudes from low to high (NULL: as far as digits go). */
static sh_gr_expr decimals(struct sh_gr *gr, const struct decimal *low, const struct decimal *high, uint32_t n) {
    const uint64_t first = low->whole, last = high != NULL ? high->whole : power(SH_JSON_DIGITS) - 1;
    if (first > last) return SH_GR_NEVER;
    if (high != NULL && first == last) return with_fraction(gr, magnitudes(gr, first, first), low, high, n);
    sh_gr_expr all[3] = {with_fraction(gr, magnitudes(gr, first, first), low, NULL, n), SH_GR_NEVER, SH_GR_NEVER};
    const uint64_t inner = high != NULL ? last - 1 : last;
    if (first < inner) all[1] = with_fraction(gr, magnitudes(gr, first + 1, inner), NULL, NULL, n);
    if (high != NULL) all[2] = with_fraction(gr, magnitudes(gr, last, last), NULL, high, n);
    return sh_gr_choice(gr, all, 3);
}

static uint32_t whole_digits(const struct decimal *d) {
    uint32_t n = 1;
    for (uint64_t v = d->whole; v >= 10; v /= 10) n++;
    return n;
}

bool sh_json_numbers(struct sh_gr *gr, const struct sh_bound *min, const struct sh_bound *max, sh_gr_expr *out) {
    if (min->number == NULL && max->number == NULL) {
        *out = sh_json_number(gr);
        return true;
    }
    struct decimal low, high;
    const bool has_low = min->number != NULL && json_number_value(min->number) > -1e15;
    const bool has_high = max->number != NULL && json_number_value(max->number) < 1e15;
    if ((has_low && !read_decimal(min, &low)) || (has_high && !read_decimal(max, &high))) return false;
    uint32_t n = SH_JSON_DIGITS;
    if (has_low && low.exclusive && SH_JSON_DIGITS - whole_digits(&low) < n) n = SH_JSON_DIGITS - whole_digits(&low);
    if (has_high && high.exclusive && SH_JSON_DIGITS - whole_digits(&high) < n) n = SH_JSON_DIGITS - whole_digits(&high);
    const struct decimal zero = {0}, above_zero = {.exclusive = true};
    sh_gr_expr parts[2] = {SH_GR_NEVER, SH_GR_NEVER};
    if (!has_low || low.negative) { /* below zero: magnitudes from the upper bound's to the lower one's */
        const struct decimal *least = has_high && high.negative ? &high : &above_zero;
        parts[0] = minus(gr, decimals(gr, least, has_low ? &low : NULL, n));
    }
    if (!has_high || !high.negative) parts[1] = decimals(gr, has_low && !low.negative ? &low : &zero, has_high ? &high : NULL, n);
    *out = sh_gr_choice(gr, parts, 2);
    return true;
}

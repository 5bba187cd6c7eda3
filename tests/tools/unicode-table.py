#!/usr/bin/env python3
"""Writes compute/text/unicode_table.c from Python's unicodedata: unicode-table.py > compute/text/unicode_table.c"""
import sys
import unicodedata as ucd


def scalars():
    return (cp for cp in range(0x110000) if not 0xD800 <= cp < 0xE000)


def runs(pairs):
    """Pairs (code point, target) as runs (first, count, step, target, target step)."""
    out, i = [], 0
    while i < len(pairs):
        best = (1, 1, 0)
        for step in (1, 2, 3, 4, 5, 8, 9, 16):
            for target_step in (0, 1, 2):
                k = 1
                while i + k < len(pairs) and pairs[i + k] == (pairs[i][0] + k * step, pairs[i][1] + k * target_step):
                    k += 1
                if k > best[0]:
                    best = (k, step, target_step)
        out.append((pairs[i][0],) + best[:2] + (pairs[i][1], best[2]))
        i += best[0]
    return out


def text_class(cp):
    char, category = chr(cp), ucd.category(chr(cp))
    if char.isspace() and not 0x1C <= cp <= 0x1F:
        return "SPACE"  # the property White_Space
    if category in ("Cc", "Cf", "Co"):
        return "CONTROL"
    return "PUNCTUATION" if category[0] == "P" else None


def ranges():
    out, last = [], None
    for cp in scalars():
        kind = text_class(cp)
        if kind is not None and kind == last and out[-1][1] == cp - 1:
            out[-1][1] = cp
        elif kind is not None:
            out.append([cp, cp, kind])
        last = kind
    return out


def table(kind, name, rows):
    print("const struct %s %s[] = {" % (kind, name))
    line = "   "
    for row in rows:
        if len(line) + len(row) + 2 > 130:
            print(line)
            line = "   "
        line += " " + row + ","
    print(line)
    print("};\nconst uint32_t %s_count = sizeof %s / sizeof *%s;" % (name, name, name))


decomposed = [(cp, ord(ucd.normalize("NFD", chr(cp))[0])) for cp in scalars() if not 0xAC00 <= cp <= 0xD7A3]
lower = [(cp, ord(chr(cp).lower()[0])) for cp in scalars()]
print("""/*
 * unicode_table.c - written by tests/tools/unicode-table.py; not to be edited. Data of the Unicode Character Database, version %s,
 * Copyright Unicode, Inc., under the Unicode License v3 (https://www.unicode.org/license.txt).
 */
#include "compute/text/unicode.h"
/* clang-format off */
""" % ucd.unidata_version)
table("sh_unicode_run", "sh_unicode_base_runs",
      ["{0x%X, %d, %d, %d, 0x%X}" % (f, n, s, ts, t) for f, n, s, t, ts in runs([p for p in decomposed if p[0] != p[1]])])
print()
table("sh_unicode_run", "sh_unicode_lower_runs",
      ["{0x%X, %d, %d, %d, 0x%X}" % (f, n, s, ts, t) for f, n, s, t, ts in runs([p for p in lower if p[0] != p[1]])])
print()
table("sh_unicode_range", "sh_unicode_ranges", ["{0x%X, 0x%X, SH_UNICODE_%s}" % tuple(r) for r in ranges()])
sys.stdout.flush()

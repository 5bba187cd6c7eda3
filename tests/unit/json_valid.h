/*
 * json_valid.h - a plain validator of JSON Schema for tests: what the words of the specification say, one value at a time. It shares
 * nothing with the engine; patterns are PCRE2's. Fails the running cmocka test on a keyword that it does not know.
 */
#ifndef SHIMMY_TESTS_JSON_VALID_H
#define SHIMMY_TESTS_JSON_VALID_H

#include <jansson.h>
#include <stdbool.h>

bool json_valid(const json_t *root, const json_t *schema, const json_t *value); /* root: where "#/..." leads */

#endif

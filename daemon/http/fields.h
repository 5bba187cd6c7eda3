/*
 * fields.h - single fields of a request's JSON: reading one into a plain value, and saying what is wrong with it. For params*.c.
 *
 * `param` is the field's name as errors give it. All functions that take an api_error return false after filling it. A field that is
 * null or absent means the default, which *out holds already. Pure functions, any thread.
 */
#ifndef SHIMMYD_HTTP_FIELDS_H
#define SHIMMYD_HTTP_FIELDS_H

#include "daemon/http/params.h"

/* "the string \"hot\"", "the integer 3", "an object": what stands there, short. Returns buf; 128 bytes are enough. */
const char *api_found(const json_t *value, char *buf, size_t cap);
bool api_no_memory(struct api_error *err);
bool api_wrong(struct api_error *err, const char *param, const json_t *value, const char *expected); /* of type; NULL: missing */
bool api_out_of_range(struct api_error *err, const char *param, const json_t *value, const char *expected);

const json_t *api_field(const json_t *body, const char *name); /* NULL: null or absent */
bool api_get_bool(const json_t *body, const char *name, bool *out, struct api_error *err);
bool api_read_integer(const json_t *value, const char *param, int64_t min, int64_t max, int64_t *out, struct api_error *err);
bool api_get_integer(const json_t *body, const char *name, int64_t min, int64_t max, int64_t *out, struct api_error *err);
bool api_get_count(const json_t *body, const char *name, uint32_t min, uint32_t max, uint32_t *out, struct api_error *err);
bool api_get_number(const json_t *body, const char *name, double min, double max, float *out, struct api_error *err);

/* Copies, malloc'd. api_copy_string refuses NULs, api_copy_text tells the length. */
bool api_copy_string(const json_t *value, const char *param, char **out, struct api_error *err);
bool api_copy_text(const json_t *value, const char *param, char **out, size_t *length, struct api_error *err);
bool api_copy_ids(const json_t *array, const char *param, int32_t **out, uint32_t *count, struct api_error *err);
/* A value as JSON text (json_exact); malloc'd and NUL-terminated. */
bool api_copy_json(const json_t *value, char **out, struct api_error *err);

/* ---- the parts of api_request_parse that are in files of their own ---- */

/* params_constraint.c: into out->constraint. Before api_chat_parse. */
bool api_constraint_parse(const json_t *body, struct api_request *out, struct api_error *err);
/* params_chat.c: into out->chat. */
bool api_chat_parse(const json_t *body, struct api_request *out, struct api_error *err);
void api_chat_finish(struct api_chat *chat);

#endif

/*
 * cache.h - how large the pages of a group are, how many of them a context can come to hold, and what one sequence takes at least.
 * Pure functions of a program's groups and of a context's parameters (defaults filled in).
 */
#ifndef SHIMMY_CACHE_H
#define SHIMMY_CACHE_H

#include "compute/program/executor.h"

#define SH_MAX_SNAPSHOTS 4 /* of a sequence */
#define SH_KEPT_STATES 4   /* of a recurrent group, per sequence of the context: what is kept for reuse at most */

static inline uint32_t sh_pages_of(uint32_t tokens) { return (tokens + SH_PAGE_TOKENS - 1) / SH_PAGE_TOKENS; }

/* What is not given in *given, which may be NULL, is filled in; SH_ERR_INVALID if a value is out of range. */
enum sh_code sh_context_params_complete(const struct sh_program *program, const struct sh_context_params *given,
                                        struct sh_context_params *out, struct sh_error *err);

/* Bytes of a page that holds n_layers of the group's layers. */
uint64_t sh_cache_page_bytes(const struct sh_state_group *group, uint32_t n_layers, enum sh_kv_type type);
/* Pages that n sequences with `tokens` tokens in all can come to hold of a group. */
uint64_t sh_cache_pages(const struct sh_state_group *group, const struct sh_context_params *params, uint64_t n, uint64_t tokens);
/* Pages of a group that are kept for reuse at most when no sequence holds them. */
uint64_t sh_cache_kept_pages(const struct sh_state_group *group, const struct sh_context_params *params);
/* How large the group's pool can get: what sequences can hold and what is kept beside that; PAGED: kv_tokens for both. */
uint64_t sh_cache_pool_pages(const struct sh_state_group *group, const struct sh_context_params *params);
/* The group whose pages the op writes, or SH_NONE. */
uint32_t sh_cache_op_group(const struct sh_op *op);
/* Bytes that the op's share of the cache takes for one sequence of full length; 0 if it writes none. */
uint64_t sh_cache_op_bytes(const struct sh_program *program, const struct sh_op *op, const struct sh_context_params *params);

#endif

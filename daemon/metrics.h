/*
 * metrics.h - counters, gauges and histograms, and their Prometheus text (exposition format 0.0.4).
 *
 * Families are declared once, in metrics.c's table (name, type, HELP, label names, buckets). A series is made on first use; label values
 * are copied; a family holds at most 1,000 series (beyond: the label value "other"). Thread-safety: all functions, any thread.
 */
#ifndef SHIMMYD_METRICS_H
#define SHIMMYD_METRICS_H

#include <stddef.h>
#include <stdint.h>

enum metric_id {
    METRIC_REQUESTS,              /* shimmy_requests_total{route,code} counter */
    METRIC_REQUESTS_RUNNING,      /* shimmy_requests_running gauge: generations now on a runner */
    METRIC_REQUESTS_QUEUED,       /* shimmy_requests_queued gauge */
    METRIC_REQUESTS_CANCELLED,    /* shimmy_requests_cancelled_total{reason} */
    METRIC_GENERATIONS_ACCEPTED,  /* shimmy_generations_accepted_total counter */
    METRIC_GENERATIONS_ENDED,     /* shimmy_generations_ended_total{result}: finished, failed, cancelled */
    METRIC_QUEUE_TIME,            /* shimmy_queue_time_seconds histogram */
    METRIC_BATCH_ROWS,            /* shimmy_batch_rows histogram */
    METRIC_REQUESTS_REFUSED,      /* shimmy_requests_refused_total{reason}: by a limit, before any work; the error's code */
    METRIC_CLIENT_REQUESTS,       /* shimmy_client_requests_total{client}: HTTP requests with an API key that has a name */
    METRIC_CLIENT_TOKENS,         /* shimmy_client_tokens_total{client,kind} kind: prompt, generated */
    METRIC_CONNECTIONS_CUT,       /* shimmy_connections_cut_total{reason} head, body, stalled, overload */
    METRIC_RESPONSE_CACHE_HITS,   /* shimmy_response_cache_hits_total */
    METRIC_RESPONSE_CACHE_MISSES, /* shimmy_response_cache_misses_total: of requests whose answer may be kept */
    METRIC_RESPONSE_CACHE_EVICTIONS, /* shimmy_response_cache_evictions_total{reason} room, age */
    METRIC_RESPONSE_CACHE_ENTRIES,   /* shimmy_response_cache_entries gauge */
    METRIC_RESPONSE_CACHE_BYTES,  /* shimmy_response_cache_bytes gauge */
    METRIC_TIME_TO_FIRST_TOKEN,   /* shimmy_time_to_first_token_seconds histogram */
    METRIC_TIME_PER_OUTPUT_TOKEN, /* shimmy_time_per_output_token_seconds histogram */
    METRIC_REQUEST_DURATION,      /* shimmy_request_duration_seconds{route} histogram */
    METRIC_PROMPT_TOKENS,         /* shimmy_prompt_tokens_total{model} */
    METRIC_GENERATED_TOKENS,      /* shimmy_generated_tokens_total{model} */
    METRIC_FORCED_TOKENS,         /* shimmy_forced_tokens_total{model} */
    METRIC_DRAFT_TOKENS,          /* shimmy_draft_tokens_total{model,source} */
    METRIC_DRAFT_ACCEPTED,        /* shimmy_draft_accepted_total{model,source} */
    METRIC_GRAMMAR_MASK,          /* shimmy_grammar_mask_seconds histogram */
    METRIC_REUSED_TOKENS,         /* shimmy_reused_tokens_total{model} */
    METRIC_PREEMPTIONS,           /* shimmy_preemptions_total{model} */
    METRIC_EMBEDDINGS,            /* shimmy_embeddings_total{model} */
    METRIC_KV_PAGES_USED,         /* shimmy_kv_pages_used{model} gauge */
    METRIC_KV_PAGES_KEPT,         /* shimmy_kv_pages_kept{model} gauge */
    METRIC_KV_PAGES_TOTAL,        /* shimmy_kv_pages_total{model} gauge */
    METRIC_RUNNER_STUCK,          /* shimmy_runner_stuck{model} gauge 0/1 */
    METRIC_LOADER_STUCK,          /* shimmy_loader_stuck gauge 0/1 */
    METRIC_MODEL_STATE,           /* shimmy_model_state{model,state} gauge 0/1 */
    METRIC_MODEL_LOAD_SECONDS,    /* shimmy_model_load_seconds{model} gauge */
    METRIC_MODEL_LOADS,           /* shimmy_model_loads_total{model,result} */
    METRIC_MODELS_EVICTED,        /* shimmy_models_evicted_total{model,reason} */
    METRIC_DEVICE_MEMORY,         /* shimmy_device_memory_bytes{device,kind} gauge */
    METRIC_HTTP_CONNECTIONS,      /* shimmy_http_connections gauge */
    METRIC_CONTROL_CONNECTIONS,   /* shimmy_control_connections gauge */
    METRIC_BUILD_INFO,            /* shimmy_build_info{version} gauge 1 */
    METRIC_COUNT
};

/* Label values in the family's order; NULL for a family without labels. */
void metric_add(enum metric_id id, const char *const *labels, double value); /* counters and gauges */
void metric_set(enum metric_id id, const char *const *labels, double value); /* gauges */
void metric_observe(enum metric_id id, const char *const *labels, double value); /* histograms */
void metric_remove(enum metric_id id, const char *const *labels); /* a gauge's series: the model is gone */
char *metrics_text(size_t *length); /* malloc'd, NULL: no memory */

#endif

/* health.c - GET /health and GET /metrics. */
#include "daemon/http/internal.h"

#include "compute/base.h"
#include "daemon/metrics.h"
#include "daemon/models.h"

#include <stdio.h>

struct counts {
    json_int_t by_state[MODEL_FAILED + 1], total;
    char stuck[512]; /* why the first one is that is; "" */
};

static void count(struct model *model, void *user) {
    struct counts *counts = user;
    struct model_view view;
    model_get_view(model, &view);
    counts->by_state[view.state]++;
    counts->total++;
    if (view.stuck && !counts->stuck[0]) snprintf(counts->stuck, sizeof counts->stuck, "%s", view.error);
    model_view_finish(&view);
}

enum http_step health_get(struct http_request *r) {
    struct counts counts = {0};
    models_each(count, &counts);
    struct sh_error why;
    if (!counts.stuck[0] && models_loader_stuck(&why)) snprintf(counts.stuck, sizeof counts.stuck, "%s", why.message);
    bool draining = atomic_load(&r->http->draining);
    json_t *models = json_pack("{s:I}", "total", counts.total);
    for (int state = 0; state <= MODEL_FAILED; state++)
        json_object_set_new(models, model_state_name((enum model_state)state), json_integer(counts.by_state[state]));
    uint32_t wanted, ready, failed;
    if (models_preload_state(&wanted, &ready, &failed) && wanted > 0)
        json_object_set_new(models, "preload", json_pack("{s:i,s:i,s:i}", "wanted", (int)wanted, "ready", (int)ready, "failed", (int)failed));
    const bool stuck = counts.stuck[0];
    return answer_json(r, draining || stuck ? 503 : 200,
                       json_pack("{s:s,s:s*,s:s,s:s,s:f,s:o}", "status", draining ? "draining" : stuck ? "stuck" : "ok", "reason",
                                 stuck ? counts.stuck : NULL, "service", "shimmyd", "version",
                                 SHIMMY_VERSION, "uptime_seconds", (double)((sh_now_ns() - r->http->started_ns) / 1000000) / 1000,
                                 "models", models));
}

enum http_step metrics_get(struct http_request *r) {
    size_t length = 0;
    models_refresh_metrics();
    char *text = metrics_text(&length);
    return answer_text(r, 200, "text/plain; version=0.0.4; charset=utf-8", text, length);
}

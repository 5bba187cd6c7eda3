/* embeddings.c - POST /v1/embeddings: texts or token ids in, one vector of length 1 for each out. */
#include "daemon/http/openai.h"

#include "compute/base.h"

#include <stdio.h>
#include <stdlib.h>

static bool prepare(struct api_job *job, struct api_error *err) { return api_prompts_ids(job, "input", err); }

/* Base64 (RFC 4648, section 4) of float32 numbers, least significant byte first. */
static void put_base64(FILE *out, const float *vector, uint32_t count) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint32_t bits = 0, n_bits = 0, written = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t word;
        memcpy(&word, &vector[i], sizeof(word));
        for (uint32_t byte = 0; byte < 4; byte++) {
            bits = (bits << 8 | (word >> 8 * byte & 0xff)) & 0xffffff;
            for (n_bits += 8; n_bits >= 6; n_bits -= 6, written++) fputc(digits[bits >> (n_bits - 6) & 63], out);
        }
    }
    if (n_bits > 0) {
        fputc(digits[bits << (6 - n_bits) & 63], out);
        written++;
    }
    while (written++ % 4 != 0) fputc('=', out);
}

/* As text and not as JSON values, of which millions would take many times the answer's memory. */
static char *answer(const struct api_job *job, size_t *length) {
    char *text = NULL, *model;
    FILE *out = open_memstream(&text, length);
    if (!out) return NULL;
    fputs("{\"object\":\"list\",\"data\":[", out);
    for (uint32_t p = 0; p < job->n_parts; p++) {
        const struct api_part *part = &job->parts[p];
        fprintf(out, "%s{\"object\":\"embedding\",\"index\":%u,\"embedding\":%s", p ? "," : "", p, job->q.base64 ? "\"" : "[");
        if (job->q.base64) put_base64(out, part->vector, part->n_vector);
        for (uint32_t i = 0; i < part->n_vector && !job->q.base64; i++)
            fprintf(out, i ? ",%.9g" : "%.9g", (double)part->vector[i]);
        fputs(job->q.base64 ? "\"}" : "]}", out);
    }
    json_t *id = json_bytes(job->model_id, strlen(job->model_id));
    model = id ? json_dumps(id, JSON_ENCODE_ANY) : NULL;
    fprintf(out, "],\"model\":%s,\"usage\":{\"prompt_tokens\":%u,\"total_tokens\":%u}}", model ? model : "null",
            job->usage.prompt_tokens, job->usage.prompt_tokens);
    json_decref(id);
    bool bad = !model || ferror(out) != 0;
    free(model);
    if (fclose(out) == 0 && !bad) return text;
    free(text);
    return NULL;
}

enum http_step embeddings_post(struct http_request *r) {
    static const struct api_family family = {
        .kind = API_EMBEDDINGS, .id_prefix = "embd-", .object = "list", .prepare = prepare, .answer = answer};
    return api_run(r, &family);
}

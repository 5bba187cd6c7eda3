#include "tests/unit/core.h"

#include "compute/cpu/kernels.h"
#include "tests/unit/genmodel.h"
#include "tests/unit/shared.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

void core_check_ok(enum sh_code code, const struct sh_error *err, const char *file, int line) {
    if (code == SH_OK) return;
    print_error("%s: %s\n", sh_code_name(code), err->message);
    _assert_int_equal((uintmax_t)code, SH_OK, file, line);
}

double core_cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

void core_write_small(char *path, size_t cap, const char *name) {
    struct genmodel_params p = genmodel_defaults();
    struct sh_error err;
    p.type = "F32";
    p.embd = 32;
    p.heads = 2;
    p.kv_heads = 1;
    p.head_dim = 16;
    p.ff = 32;
    p.vocab = 260;
    snprintf(path, cap, "%s", test_scratch(name));
    core_ok(genmodel_write(path, &p, &err), &err);
}

/* Every instruction set of the CPU executor that this machine has, the reference first. */
static void list_cpus(char *list, size_t cap) {
    list[0] = '\0';
    for (uint32_t i = sh_cpu_n_tables; i-- > 0;) {
        const size_t used = strlen(list);
        if (sh_cpu_tables[i]->available())
            snprintf(list + used, cap - used, "%scpu-%s", used > 0 ? "," : "", sh_cpu_tables[i]->tier);
    }
}

/* Every instruction set of the CPU, and the Vulkan device under test where there is one. */
static void default_devices(char *list, size_t cap) {
    list_cpus(list, cap);
    struct sh_error err = {0};
    struct sh_device_info infos[16];
    uint32_t count = 0, chosen = 0;
    core_ok(sh_device_enumerate(infos, 16, &count, &err), &err);
    const char *vulkan = getenv("SHIMMY_TEST_VULKAN");
    if (vulkan == NULL || vulkan[0] == '\0') vulkan = "llvmpipe";
    if (sh_device_select(infos, count, vulkan, &chosen, &err) == SH_OK) {
        const size_t used = strlen(list);
        snprintf(list + used, cap - used, ",%s", vulkan);
    } else {
        printf("SKIP Vulkan: %s\n", err.message);
        fflush(stdout);
    }
}

uint32_t core_devices(const char *names[CORE_MAX_DEVICES]) {
    static char all[512], list[512];
    const char *env = getenv("SHIMMY_TEST_DEVICES");
    if (env != NULL && env[0] != '\0') snprintf(all, sizeof all, "%s", env);
    else if (all[0] == '\0') default_devices(all, sizeof all);
    snprintf(list, sizeof list, "%s", all);
    uint32_t n = 0;
    char *state = NULL;
    for (char *name = strtok_r(list, ",", &state); name != NULL && n < CORE_MAX_DEVICES; name = strtok_r(NULL, ",", &state))
        names[n++] = name;
    return n;
}

struct sh_device *core_open_device(const char *name) {
    struct sh_error err = {0};
    struct sh_device_info infos[16];
    struct sh_device_params params = {.size = sizeof params};
    uint32_t count = 0, chosen = 0;
    const bool is_cpu = strncmp(name, "cpu", 3) == 0;
    if (is_cpu) {
        infos[0] = (struct sh_device_info){.kind = SH_DEVICE_CPU};
        if (name[3] == '-') params.tier = name + 4;
    } else {
        core_ok(sh_device_enumerate(infos, 16, &count, &err), &err);
        char device[256];
        snprintf(device, sizeof device, "%s", name);
        char *tier = strchr(device, ':');
        if (tier != NULL) *tier++ = '\0';
        static const char *const tiers[] = {"base", "intdot", "coopmat"};
        for (size_t t = 0; tier != NULL && t < sizeof tiers / sizeof tiers[0]; t++)
            if (strcmp(tier, tiers[t]) == 0) params.tier = tiers[t];
        if (tier != NULL && params.tier == NULL) fail_msg("%s: unknown tier", name);
        core_ok(sh_device_select(infos, count, device, &chosen, &err), &err);
    }
    params.info = &infos[chosen];
    struct sh_device *device = NULL;
    core_ok(sh_device_open(&params, &device, &err), &err);
    return device;
}

static void load(struct core_model *m, uint32_t n_devices, const struct sh_placement *placement, uint32_t n_placement,
                 const char *path, const struct sh_context_params *context) {
    struct sh_error err = {0};
    const struct sh_model_params params = {
        .size = sizeof params, .path = path, .placement = placement, .n_placement = n_placement};
    core_ok(sh_model_load(m->devices, n_devices, &params, &m->model, &err), &err);
    core_ok(sh_context_create(m->model, context, &m->context, &err), &err);
    struct sh_model_info info;
    sh_model_get_info(m->model, &info);
    m->n_vocab = info.n_vocab;
}

void core_load(struct core_model *m, const char *device, const char *path, const struct sh_context_params *context) {
    *m = (struct core_model){.devices = {core_open_device(device)}};
    load(m, 1, NULL, 0, path, context);
}

void core_load_split(struct core_model *m, const char *devices, const char *path, const struct sh_context_params *context) {
    *m = (struct core_model){0};
    char list[256];
    snprintf(list, sizeof list, "%s", devices);
    uint32_t n = 0;
    char *state = NULL;
    for (char *name = strtok_r(list, "+", &state); name != NULL && n < 4; name = strtok_r(NULL, "+", &state))
        m->devices[n++] = core_open_device(name);
    struct sh_file *file = NULL;
    struct sh_error err = {0};
    core_ok(sh_file_open(path, &file, &err), &err);
    uint32_t layers = 0;
    struct sh_file_value value;
    char text[32];
    for (uint64_t i = 0; sh_file_get_value(file, i, &value); i++) {
        if (strcmp(value.key, "llama.block_count") != 0) continue;
        sh_file_value_text(file, i, 0, text, sizeof text);
        layers = (uint32_t)atoi(text);
    }
    sh_file_close(file);
    struct sh_placement placement[4];
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t first = layers * i / n;
        placement[i] = (struct sh_placement){.first_layer = first, .n_layers = layers * (i + 1) / n - first, .device = i};
    }
    load(m, n, placement, n, path, context);
}

void core_unload(struct core_model *m) {
    sh_context_destroy(m->context);
    sh_model_unload(m->model);
    for (int i = 0; i < 4; i++) sh_device_close(m->devices[i]);
    *m = (struct core_model){0};
}

uint32_t core_sequence(struct core_model *m) {
    struct sh_error err = {0};
    uint32_t sequence = 0;
    core_ok(sh_sequence_create(m->context, &sequence, &err), &err);
    return sequence;
}

void core_prefill(struct core_model *m, uint32_t sequence, const int32_t *tokens, uint32_t n, uint32_t chunk, float *all_logits,
                  float *last_logits) {
    struct sh_error err = {0};
    if (chunk == 0) chunk = n;
    struct sh_row *rows = calloc(chunk, sizeof *rows);
    assert_non_null(rows);
    const uint32_t begin = sh_sequence_length(m->context, sequence);
    for (uint32_t at = 0; at < n; at += chunk) {
        const uint32_t count = n - at < chunk ? n - at : chunk;
        for (uint32_t i = 0; i < count; i++) {
            const bool last = at + i + 1 == n;
            rows[i] = (struct sh_row){.sequence = sequence, .token = tokens[at + i], .position = begin + at + i};
            const bool observed = all_logits != NULL && (m->observe == NULL || m->observe(rows[i].position));
            if (all_logits != NULL && !observed)
                memset(all_logits + (size_t)(at + i) * m->n_vocab, 0, m->n_vocab * sizeof *all_logits);
            if (observed || (last && last_logits != NULL)) rows[i].outputs = SH_OUT_LOGITS;
        }
        const struct sh_batch batch = {.rows = rows, .n_rows = count};
        sh_ticket ticket;
        struct sh_results results;
        core_ok(sh_submit(m->context, &batch, &ticket, &err), &err);
        core_ok(sh_wait(m->context, ticket, -1, &results, &err), &err);
        for (uint32_t i = 0; i < results.count; i++) {
            float *to = all_logits != NULL ? all_logits + (size_t)(at + results.items[i].row) * m->n_vocab : last_logits;
            memcpy(to, results.items[i].logits, m->n_vocab * sizeof *to);
        }
    }
    free(rows);
}

int32_t core_step(struct core_model *m, uint32_t sequence, int32_t token, enum sh_role role, float *logits) {
    struct sh_error err = {0};
    const struct sh_row row = {
        .sequence = sequence,
        .role = role,
        .token = token,
        .position = sh_sequence_length(m->context, sequence),
        .outputs = SH_OUT_SAMPLE | (logits != NULL ? SH_OUT_LOGITS : 0),
    };
    const struct sh_batch batch = {.rows = &row, .n_rows = 1};
    sh_ticket ticket;
    struct sh_results results;
    core_ok(sh_submit(m->context, &batch, &ticket, &err), &err);
    core_ok(sh_wait(m->context, ticket, -1, &results, &err), &err);
    assert_int_equal(results.count, 1);
    if (logits != NULL) memcpy(logits, results.items[0].logits, m->n_vocab * sizeof *logits);
    return results.items[0].token;
}

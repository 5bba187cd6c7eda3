/* Devices: listing, choosing, opening; the rest is the executors'. */
#include "compute/program/executor.h"

#include <ctype.h>
#include <stdio.h>

const char *sh_device_kind_name(enum sh_device_kind kind) {
    static const char *const names[] = {
        [SH_DEVICE_CPU] = "cpu",         [SH_DEVICE_DISCRETE] = "discrete", [SH_DEVICE_INTEGRATED] = "integrated",
        [SH_DEVICE_VIRTUAL] = "virtual", [SH_DEVICE_SOFTWARE] = "software",
    };
    return (size_t)kind < SH_COUNT(names) ? names[kind] : "unknown";
}

enum sh_code sh_device_enumerate(struct sh_device_info *infos, uint32_t max, uint32_t *count, struct sh_error *err) {
    *count = 0;
    if (max == 0) return SH_OK;
    memset(&infos[0], 0, sizeof infos[0]);
    sh_cpu_describe(&infos[0]);
    uint32_t n = 0;
    const enum sh_code code = sh_vulkan_enumerate(infos + 1, max - 1, &n, err);
    *count = 1 + (code == SH_OK ? n : 0);
    return code;
}

/* ---- choosing ---- */

static bool contains_ignoring_case(const char *text, const char *part) {
    const size_t length = strlen(part);
    for (; *text != '\0'; text++) {
        size_t i = 0;
        while (i < length && text[i] != '\0' && tolower((unsigned char)text[i]) == tolower((unsigned char)part[i])) i++;
        if (i == length) return true;
    }
    return false;
}

static bool equal_ignoring_case(const char *a, const char *b) { return strlen(a) == strlen(b) && contains_ignoring_case(a, b); }

/* Order of preference under auto; negative: never. */
static int preference(enum sh_device_kind kind) {
    switch (kind) {
    case SH_DEVICE_DISCRETE: return 3;
    case SH_DEVICE_INTEGRATED: return 2;
    case SH_DEVICE_VIRTUAL: return 1;
    case SH_DEVICE_CPU: return 0;
    case SH_DEVICE_SOFTWARE: return -1;
    }
    return -1;
}

/* An unusable device keeps the reason that enumeration gave. */
static void set_reason(struct sh_device_info *info, const char *reason) {
    if (info->usable || info->reason[0] == '\0') snprintf(info->reason, sizeof info->reason, "%s", reason);
}

static enum sh_code select_auto(struct sh_device_info *infos, uint32_t count, uint32_t *chosen, struct sh_error *err) {
    uint32_t best = SH_NONE;
    for (uint32_t i = 0; i < count; i++)
        if (infos[i].usable && preference(infos[i].kind) >= 0 &&
            (best == SH_NONE || preference(infos[i].kind) > preference(infos[best].kind)))
            best = i;
    if (best == SH_NONE) return sh_fail(err, SH_ERR_NOT_FOUND, "auto: none of %u devices is usable", count);
    char reason[128];
    for (uint32_t i = 0; i < count; i++) {
        if (i == best) continue;
        if (infos[i].kind == SH_DEVICE_SOFTWARE) {
            set_reason(&infos[i], "a software device is used only when it is asked for by name");
        } else {
            snprintf(reason, sizeof reason, "auto: a %s device comes first", sh_device_kind_name(infos[best].kind));
            set_reason(&infos[i], infos[i].kind == infos[best].kind ? "auto: the first of its kind is taken" : reason);
        }
    }
    snprintf(reason, sizeof reason, infos[best].kind == SH_DEVICE_CPU ? "auto: no usable GPU" : "auto: the first usable %s GPU",
             sh_device_kind_name(infos[best].kind));
    set_reason(&infos[best], reason);
    infos[best].selected = true;
    *chosen = best;
    return SH_OK;
}

/* Which device `want` names: "cpu" the CPU, a whole name before a part of one. */
static enum sh_code find_named(const struct sh_device_info *infos, uint32_t count, const char *want, uint32_t *chosen,
                               struct sh_error *err) {
    uint32_t found = SH_NONE, matches = 0, exact = SH_NONE, exact_matches = 0;
    char list[256] = "";
    size_t used = 0;
    for (uint32_t i = 0; i < count; i++) {
        const bool is_cpu = infos[i].kind == SH_DEVICE_CPU;
        if (equal_ignoring_case(want, "cpu") ? !is_cpu : !contains_ignoring_case(infos[i].name, want)) continue;
        found = i;
        matches++;
        if (equal_ignoring_case(infos[i].name, want)) {
            exact = i;
            exact_matches++;
        }
        if (used < sizeof list)
            used += (size_t)snprintf(list + used, sizeof list - used, "%s'%s'", used > 0 ? ", " : "", infos[i].name);
    }
    if (exact_matches == 1) {
        found = exact;
        matches = 1;
    }
    if (matches > 1)
        return sh_fail(err, SH_ERR_INVALID, "device '%s' is ambiguous: it fits %s; write more of the name", want, list);
    if (matches == 0) {
        for (uint32_t i = 0; i < count && used < sizeof list; i++)
            used += (size_t)snprintf(list + used, sizeof list - used, "%s'%s'", used > 0 ? ", " : "", infos[i].name);
        return sh_fail(err, SH_ERR_NOT_FOUND, "device '%s' is not among the devices: %s", want, list);
    }
    *chosen = found;
    return SH_OK;
}

enum sh_code sh_device_select(struct sh_device_info *infos, uint32_t count, const char *want, uint32_t *chosen,
                              struct sh_error *err) {
    for (uint32_t i = 0; i < count; i++) infos[i].selected = false;
    if (want == NULL || equal_ignoring_case(want, "auto")) return select_auto(infos, count, chosen, err);
    if (want[0] == '\0')
        return sh_fail(err, SH_ERR_INVALID, "an empty device name; expected auto, cpu or a part of a device's name");
    uint32_t found = 0;
    const enum sh_code code = find_named(infos, count, want, &found, err);
    if (code != SH_OK) return code;
    if (!infos[found].usable)
        return sh_fail(err, SH_ERR_UNSUPPORTED, "device '%s' cannot be used: %s", infos[found].name, infos[found].reason);
    char reason[256];
    for (uint32_t i = 0; i < count; i++) {
        snprintf(reason, sizeof reason, i == found ? "asked for by name: %s" : "%s was asked for", want);
        set_reason(&infos[i], reason);
    }
    infos[found].selected = true;
    *chosen = found;
    return SH_OK;
}

/* ---- opening ---- */

enum sh_code sh_device_open(const struct sh_device_params *params, struct sh_device **out, struct sh_error *err) {
    *out = NULL;
    struct sh_device_params p = {0};
    memcpy(&p, params, sh_min_u64(params->size, sizeof p));
    p.size = sizeof p;
    if (p.info == NULL) return sh_fail(err, SH_ERR_INVALID, "no device was named; take one from sh_device_enumerate");
    return p.info->kind == SH_DEVICE_CPU ? sh_cpu_open(&p, out, err) : sh_vulkan_open(&p, out, err);
}

void sh_device_close(struct sh_device *device) {
    if (device != NULL) device->executor->device_close(device);
}

const struct sh_device_info *sh_device_get_info(const struct sh_device *device) { return &device->info; }

void sh_device_get_memory(const struct sh_device *device, struct sh_device_memory *out) {
    *out = (struct sh_device_memory){0};
    device->executor->device_memory(device, out);
}

uint64_t sh_device_validation_count(const struct sh_device *device) { return device->executor->validation_count(device); }

#include "compute/cpu/topology.h"

#include <inttypes.h>
#include <linux/mempolicy.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A file's first line; false: there is none. */
static bool first_line(char *line, size_t cap, const char *fmt, ...) SH_PRINTF(3, 4);
static bool first_line(char *line, size_t cap, const char *fmt, ...) {
    char path[4500];
    va_list arguments;
    va_start(arguments, fmt);
    const int n = vsnprintf(path, sizeof path, fmt, arguments);
    va_end(arguments);
    FILE *f = n > 0 && (size_t)n < sizeof path ? fopen(path, "re") : NULL;
    if (f == NULL) return false;
    const bool found = fgets(line, (int)cap, f) != NULL;
    fclose(f);
    return found;
}

void sh_cpu_set_parse(const char *list, struct sh_cpu_set *out) {
    memset(out, 0, sizeof *out);
    for (;;) {
        char *end;
        const unsigned long from = strtoul(list, &end, 10);
        if (end == list) return;
        unsigned long to = from;
        if (*end == '-') {
            list = end + 1;
            to = strtoul(list, &end, 10);
            if (end == list) return;
        }
        for (unsigned long i = from; i <= to && i < SH_TOPOLOGY_MAX_CPUS; i++) out->bits[i / 64] |= UINT64_C(1) << (i % 64);
        if (*end != ',') return;
        list = end + 1;
    }
}

/* The first of a core's CPUs that may be used stands for it. */
static bool stands_for_core(const char *sys, const struct sh_cpu_set *allowed, uint32_t cpu) {
    char line[4096];
    struct sh_cpu_set siblings;
    if (!first_line(line, sizeof line, "%s/devices/system/cpu/cpu%u/topology/thread_siblings_list", sys, cpu)) return true;
    sh_cpu_set_parse(line, &siblings);
    for (uint32_t i = 0; i < cpu; i++)
        if (sh_cpu_set_has(&siblings, i) && sh_cpu_set_has(allowed, i)) return false;
    return true;
}

void sh_topology_read(const char *sys, const struct sh_cpu_set *allowed, struct sh_topology *out) {
    *out = (struct sh_topology){0};
    for (uint32_t cpu = 0; cpu < SH_TOPOLOGY_MAX_CPUS; cpu++) {
        if (!sh_cpu_set_has(allowed, cpu)) continue;
        out->n_cpus++;
        out->n_cores += stands_for_core(sys, allowed, cpu);
    }
    char line[4096];
    struct sh_cpu_set nodes;
    if (!first_line(line, sizeof line, "%s/devices/system/node/has_memory", sys)) return;
    sh_cpu_set_parse(line, &nodes);
    out->memory_nodes = nodes.bits[0];
}

/* ---- share of time ---- */

static uint32_t cpus_of(double quota, double period) {
    if (!(quota > 0) || !(period > 0)) return UINT32_MAX;
    const double cpus = quota / period;
    return cpus >= (double)UINT32_MAX ? UINT32_MAX : (uint32_t)cpus + (cpus > (double)(uint32_t)cpus);
}

/* The two kinds of control groups: one file with quota ("max": none) and period, or two files (-1: none). */
static uint32_t quota_of_group(const char *folder) {
    char line[128];
    double quota = 0, period = 0;
    if (first_line(line, sizeof line, "%s/cpu.max", folder)) {
        if (sscanf(line, "%lf %lf", &quota, &period) != 2) return UINT32_MAX;
    } else if (first_line(line, sizeof line, "%s/cpu.cfs_quota_us", folder)) {
        quota = strtod(line, NULL);
        if (!first_line(line, sizeof line, "%s/cpu.cfs_period_us", folder)) return UINT32_MAX;
        period = strtod(line, NULL);
    }
    return cpus_of(quota, period);
}

/* The group at `path` below `hierarchy`, and those above it. */
static uint32_t quota_upwards(const char *hierarchy, const char *path) {
    char folder[4300];
    if (snprintf(folder, sizeof folder, "%s%s", hierarchy, path) >= (int)sizeof folder) return UINT32_MAX;
    uint32_t least = UINT32_MAX;
    while (strlen(folder) >= strlen(hierarchy)) {
        const uint32_t here = quota_of_group(folder);
        if (here < least) least = here;
        *strrchr(folder, '/') = '\0';
    }
    return least;
}

uint32_t sh_topology_quota(const char *groups, const char *root) {
    FILE *f = fopen(groups, "re");
    if (f == NULL) return UINT32_MAX;
    char line[4200], hierarchy[4300];
    uint32_t least = UINT32_MAX;
    while (fgets(line, sizeof line, f) != NULL) { /* number:controllers:/path */
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':'), *path = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (path == NULL || path[1] != '/') continue;
        *path++ = '\0';
        controllers++;
        if (controllers[0] == '\0') snprintf(hierarchy, sizeof hierarchy, "%s", root);
        else if (strcmp(controllers, "cpu") == 0 || strcmp(controllers, "cpu,cpuacct") == 0 ||
                 strcmp(controllers, "cpuacct,cpu") == 0)
            snprintf(hierarchy, sizeof hierarchy, "%s/%s", root, controllers);
        else continue;
        const uint32_t here = quota_upwards(hierarchy, path);
        if (here < least) least = here;
    }
    fclose(f);
    return least;
}

uint32_t sh_topology_threads(uint32_t most) {
    struct sh_cpu_set allowed = {0};
    struct sh_topology topology = {0};
    if (sched_getaffinity(0, sizeof allowed, (cpu_set_t *)&allowed) == 0) sh_topology_read("/sys", &allowed, &topology);
    const uint32_t quota = sh_topology_quota("/proc/self/cgroup", "/sys/fs/cgroup");
    const uint64_t threads = sh_min_u64(sh_min_u64(topology.n_cores, quota), most);
    return threads > 0 ? (uint32_t)threads : 1;
}

/* ---- memory ---- */

uint64_t sh_topology_near(const char *sys, const struct sh_cpu_set *allowed, uint64_t nodes) {
    uint64_t near = 0;
    char line[4096];
    for (uint32_t node = 0; node < SH_TOPOLOGY_MAX_NODES; node++) {
        if (!(nodes >> node & 1)) continue;
        struct sh_cpu_set cpus;
        bool has_one = !first_line(line, sizeof line, "%s/devices/system/node/node%u/cpulist", sys, node);
        if (!has_one) sh_cpu_set_parse(line, &cpus);
        for (uint32_t cpu = 0; !has_one && cpu < SH_TOPOLOGY_MAX_CPUS; cpu++)
            has_one = sh_cpu_set_has(&cpus, cpu) && sh_cpu_set_has(allowed, cpu);
        if (has_one) near |= UINT64_C(1) << node;
    }
    return near;
}

uint64_t sh_topology_spread(const struct sh_topology *topology, uint64_t nodes_allowed, bool policy_is_default) {
    const uint64_t nodes = topology->memory_nodes & nodes_allowed;
    return policy_is_default && (nodes & (nodes - 1)) != 0 ? nodes : 0;
}

uint64_t sh_topology_spread_here(void) {
    const struct sh_cpu_set none = {0};
    struct sh_topology topology;
    sh_topology_read("/sys", &none, &topology);
    if (sh_topology_spread(&topology, UINT64_MAX, true) == 0) return 0;
    unsigned long allowed[16] = {0}; /* as many nodes as kernels are built for */
    int policy = MPOL_DEFAULT;
    if (syscall(SYS_get_mempolicy, NULL, allowed, 8 * sizeof allowed, NULL, MPOL_F_MEMS_ALLOWED) != 0) return 0;
    if (syscall(SYS_get_mempolicy, &policy, NULL, 0, NULL, 0) != 0) return 0;
    struct sh_cpu_set cpus = {0};
    if (sched_getaffinity(0, sizeof cpus, (cpu_set_t *)&cpus) != 0) return 0;
    return sh_topology_spread(&topology, sh_topology_near("/sys", &cpus, allowed[0]), policy == MPOL_DEFAULT);
}

bool sh_topology_interleave(void *data, uint64_t bytes, uint64_t nodes) {
    const unsigned long mask = nodes;
    return syscall(SYS_mbind, data, bytes, MPOL_INTERLEAVE, &mask, SH_TOPOLOGY_MAX_NODES + 1, 0) == 0;
}

#include "compute/cpu/cpu.h"
#include "compute/cpu/topology.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define HUGE_FROM (4u << 20) /* below this huge pages waste more than they save */

static uint64_t meminfo(const char *key, uint64_t unknown) {
    FILE *f = fopen("/proc/meminfo", "re");
    if (f == NULL) return unknown;
    char line[128];
    uint64_t kib = 0;
    bool found = false;
    const size_t length = strlen(key);
    while (!found && fgets(line, sizeof line, f) != NULL)
        found = strncmp(line, key, length) == 0 && sscanf(line + length, ": %" SCNu64, &kib) == 1;
    fclose(f);
    return found ? kib * 1024 : unknown;
}

uint64_t sh_cpu_memory_total(void) { return meminfo("MemTotal", 0); }
/* One number of a control group's file; with `key` that of the line which begins with it. "max" and missing files are `unknown`.
 */
static uint64_t group_value(const char *folder, const char *file, const char *key, uint64_t unknown) {
    char path[4352], line[256];
    snprintf(path, sizeof path, "%s/%s", folder, file);
    FILE *f = fopen(path, "re");
    if (f == NULL) return unknown;
    uint64_t value = unknown;
    const size_t length = strlen(key);
    while (fgets(line, sizeof line, f) != NULL)
        if (strncmp(line, key, length) == 0 && sscanf(line + length, "%" SCNu64, &value) == 1) break;
    fclose(f);
    return value;
}

/* The two kinds of control groups; in the older one each controller has a hierarchy of its own. */
struct group_kind {
    const char *mark; /* in the lines of /proc/self/cgroup, before the path */
    const char *root, *limit, *throttle, *used, *active, *inactive; /* beyond `throttle` the kernel slows a process until it stands still */
};
static const struct group_kind group_kinds[] = {
    {"0::", "/sys/fs/cgroup", "memory.max", "memory.high", "memory.current", "active_file ", "inactive_file "},
    {":memory:", "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_active_file ",
     "total_inactive_file "},
};

/* What the tightest limit of the group at `folder` and those above it leaves; its page cache counts as free. */
static uint64_t groups_available(const struct group_kind *kind, char *folder) {
    uint64_t least = UINT64_MAX;
    while (strlen(folder) >= strlen(kind->root)) {
        const uint64_t max = sh_min_u64(group_value(folder, kind->limit, "", UINT64_MAX), group_value(folder, kind->throttle, "", UINT64_MAX)),
                       used = group_value(folder, kind->used, "", 0);
        const uint64_t cached =
            group_value(folder, "memory.stat", kind->active, 0) + group_value(folder, "memory.stat", kind->inactive, 0);
        const uint64_t held = used > cached ? used - cached : 0;
        if (max != UINT64_MAX) least = sh_min_u64(least, max > held ? max - held : 0);
        *strrchr(folder, '/') = '\0';
    }
    return least;
}

static uint64_t group_available(void) {
    char line[4200], folder[4300];
    FILE *f = fopen("/proc/self/cgroup", "re");
    if (f == NULL) return UINT64_MAX;
    uint64_t least = UINT64_MAX;
    while (fgets(line, sizeof line, f) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        for (size_t i = 0; i < SH_COUNT(group_kinds); i++) {
            const char *mark = strstr(line, group_kinds[i].mark);
            if (mark == NULL || (i == 0 && mark != line)) continue;
            snprintf(folder, sizeof folder, "%s%s", group_kinds[i].root, mark + strlen(group_kinds[i].mark));
            least = sh_min_u64(least, groups_available(&group_kinds[i], folder));
        }
    }
    fclose(f);
    return least;
}

/* What RLIMIT_AS and RLIMIT_DATA leave of what this process may map. */
static uint64_t limits_leave(void) {
    uint64_t mapped = 0, data = 0, least = UINT64_MAX;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f == NULL) return least;
    const bool known = fscanf(f, "%" SCNu64 " %*u %*u %*u %*u %" SCNu64, &mapped, &data) == 2;
    fclose(f);
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    const struct {
        int resource;
        uint64_t used;
    } limits[] = {{RLIMIT_AS, mapped * page}, {RLIMIT_DATA, data * page}};
    for (size_t i = 0; known && i < SH_COUNT(limits); i++) {
        struct rlimit limit;
        if (getrlimit(limits[i].resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) continue;
        least = sh_min_u64(least, limit.rlim_cur > limits[i].used ? limit.rlim_cur - limits[i].used : 0);
    }
    return least;
}

uint64_t sh_cpu_memory_available(void) {
    return sh_min_u64(sh_min_u64(meminfo("MemAvailable", UINT64_MAX), group_available()), limits_leave());
}

enum sh_code sh_cpu_memory_check(uint64_t bytes, const char *what, struct sh_error *err) {
    const uint64_t available = sh_cpu_memory_available();
    if (bytes <= available) return SH_OK;
    return sh_fail(err, SH_ERR_NO_MEMORY,
                   "%s: needs %" PRIu64 " MiB of memory, %" PRIu64 " MiB are available; unload another model, or take "
                   "a smaller model, context or weight type",
                   what, bytes >> 20, available >> 20);
}

enum sh_code sh_cpu_block_alloc(struct sh_cpu_device *device, enum sh_cpu_memory_kind kind, uint64_t bytes, const char *what,
                                struct sh_cpu_block *out, struct sh_error *err) {
    *out = (struct sh_cpu_block){0};
    if (bytes == 0) bytes = 1;
    if (bytes > SIZE_MAX / 2)
        return sh_fail(err, SH_ERR_NO_MEMORY, "%s: %" PRIu64 " bytes are more than an address space", what, bytes);
    bytes = sh_align_up(bytes, 4096);
    void *data = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED)
        return sh_fail(err, SH_ERR_NO_MEMORY, "%s: needs %" PRIu64 " MiB of memory: %s", what, bytes >> 20, strerror(errno));
    if (bytes >= HUGE_FROM) madvise(data, (size_t)bytes, MADV_HUGEPAGE); /* a hint: refusal changes nothing but speed */
    if (device->spread_nodes != 0 && kind != SH_CPU_ACTIVATIONS) sh_topology_interleave(data, bytes, device->spread_nodes);
    atomic_fetch_add(&device->memory[kind], bytes);
    *out = (struct sh_cpu_block){data, bytes};
    return SH_OK;
}

void sh_cpu_block_free(struct sh_cpu_device *device, enum sh_cpu_memory_kind kind, struct sh_cpu_block *block) {
    if (block->data == NULL) return;
    munmap(block->data, (size_t)block->bytes);
    atomic_fetch_sub(&device->memory[kind], block->bytes);
    *block = (struct sh_cpu_block){0};
}

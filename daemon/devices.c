/* devices.c - see devices.h. */
#include "daemon/devices.h"

#include "compute/base.h"
#include "daemon/log.h"
#include "daemon/metrics.h"
#include "daemon/models.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

enum { DEVICES_MAX = 32, PROBE_TIMEOUT_MS = 15000, PROBE_OUTPUT_MAX = 1 << 18 };

static struct {
    pthread_mutex_t lock;
    pthread_cond_t done;
    pthread_t thread;
    bool started, finished;
    char *program;
    pid_t child; /* 0: none */
    bool abandon;
    void (*probed)(void *user);
    void *user;
    struct config *config;
    struct sh_device_info infos[DEVICES_MAX];
    uint32_t count;
    struct sh_error error;               /* of the configured device; code SH_OK if it can be used */
    struct sh_device *open[DEVICES_MAX]; /* by index, as are the next two */
    uint32_t users[DEVICES_MAX];
    bool lost[DEVICES_MAX];
    pthread_mutex_t opening; /* taken before `lock`, held while a device is opened, which takes long */
} devices = {.lock = PTHREAD_MUTEX_INITIALIZER, .done = PTHREAD_COND_INITIALIZER, .opening = PTHREAD_MUTEX_INITIALIZER};

/* ---- the child --------------------------------------------------------------------------------------- */

static void hex(const uint8_t *bytes, size_t count, char *out) {
    for (size_t i = 0; i < count; i++) sprintf(out + 2 * i, "%02x", bytes[i]);
}

int devices_probe_main(void) {
    static struct sh_device_info infos[DEVICES_MAX];
    uint32_t count = 0;
    struct sh_error err;
    if (sh_device_enumerate(infos, DEVICES_MAX, &count, &err) != SH_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    json_t *list = json_array();
    for (uint32_t i = 0; i < count; i++) {
        char uuid[2 * sizeof infos[i].uuid + 1];
        hex(infos[i].uuid, sizeof infos[i].uuid, uuid);
        json_array_append_new(list, json_pack("{si ss ss ss ss sI sI sb ss}", "kind", (int)infos[i].kind, "name", infos[i].name,
                                              "driver", infos[i].driver, "tier", infos[i].tier, "uuid", uuid, "memory_bytes",
                                              (json_int_t)infos[i].memory_bytes, "free_bytes", (json_int_t)infos[i].free_bytes,
                                              "usable", infos[i].usable, "reason", infos[i].reason));
    }
    bool ok = json_dumpf(list, stdout, JSON_COMPACT) == 0 && fflush(stdout) == 0;
    json_decref(list);
    return ok ? 0 : 1;
}

/* ---- the probe --------------------------------------------------------------------------------------- */

static bool read_info(json_t *object, struct sh_device_info *info) {
    int kind, usable;
    json_int_t memory_bytes, free_bytes;
    const char *name, *driver, *tier, *uuid, *reason;
    if (json_unpack(object, "{si ss ss ss ss sI sI sb ss}", "kind", &kind, "name", &name, "driver", &driver, "tier", &tier,
                    "uuid", &uuid, "memory_bytes", &memory_bytes, "free_bytes", &free_bytes, "usable", &usable, "reason",
                    &reason) != 0 ||
        strlen(uuid) != 2 * sizeof info->uuid)
        return false;
    *info = (struct sh_device_info){.kind = (enum sh_device_kind)kind,
                                    .memory_bytes = (uint64_t)memory_bytes,
                                    .free_bytes = (uint64_t)free_bytes,
                                    .usable = usable};
    snprintf(info->name, sizeof info->name, "%s", name);
    snprintf(info->driver, sizeof info->driver, "%s", driver);
    snprintf(info->tier, sizeof info->tier, "%s", tier);
    snprintf(info->reason, sizeof info->reason, "%s", reason);
    for (size_t i = 0; i < sizeof info->uuid; i++) {
        unsigned byte;
        if (sscanf(uuid + 2 * i, "%2x", &byte) != 1) return false;
        info->uuid[i] = (uint8_t)byte;
    }
    return true;
}

static bool read_infos(const char *text, size_t length, struct sh_device_info *infos, uint32_t *count) {
    json_t *list = json_loadb(text, length, 0, NULL);
    size_t n = json_array_size(list);
    bool ok = json_is_array(list) && n > 0 && n <= DEVICES_MAX;
    for (size_t i = 0; ok && i < n; i++) ok = read_info(json_array_get(list, i), &infos[i]);
    *count = ok ? (uint32_t)n : 0;
    json_decref(list);
    return ok;
}

/* The child's environment: ours, forced tiers, and in the second attempt a Vulkan loader that finds no drivers. */
static char **child_environment(const struct config *config, bool without_drivers) {
    uint32_t have = 0, n = 0;
    while (environ[have]) have++;
    char **out = sh_calloc(have + 6ull, sizeof *out);
    if (!out) return NULL;
    static const char *const dropped[] = {
        "SHIMMY_VULKAN=", "SHIMMY_CPU=", "VK_ICD_FILENAMES=", "VK_DRIVER_FILES=", "VK_ADD_DRIVER_FILES="};
    for (uint32_t i = 0; i < have; i++) {
        bool drop = false;
        for (uint32_t d = 0; d < SH_COUNT(dropped); d++)
            drop |= (d < 2 || without_drivers) && strncmp(environ[i], dropped[d], strlen(dropped[d])) == 0;
        if (!drop) out[n++] = strdup(environ[i]);
    }
    char line[200];
    snprintf(line, sizeof line, "SHIMMY_VULKAN=%s", config->vulkan_tier);
    if (*config->vulkan_tier) out[n++] = strdup(line);
    snprintf(line, sizeof line, "SHIMMY_CPU=%s", config->cpu_isa);
    if (*config->cpu_isa) out[n++] = strdup(line);
    if (without_drivers) {
        out[n++] = strdup("VK_ICD_FILENAMES=/dev/null");
        out[n++] = strdup("VK_DRIVER_FILES=/dev/null");
    }
    return out;
}

static void free_environment(char **env) {
    for (char **at = env; at && *at; at++) free(*at);
    free(env);
}

static pid_t spawn_child(int *out_fd, bool without_drivers) {
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0) return -1;
    pid_t pid = -1;
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, defaults;
    sigemptyset(&none);
    sigfillset(&defaults);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fds[1], STDOUT_FILENO);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &defaults);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    char *argv[] = {"shimmyd", "--probe-devices", NULL};
    char **env = child_environment(devices.config, without_drivers);
    if (!env || posix_spawn(&pid, devices.program, &actions, &attributes, argv, env) != 0) pid = -1;
    free_environment(env);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    close(fds[1]);
    if (pid < 0) close(fds[0]);
    else *out_fd = fds[0];
    return pid;
}

/* All that the child writes until it ends or its time is over. */
static size_t read_output(int fd, char *buffer, size_t cap, bool *timed_out) {
    size_t have = 0;
    uint64_t deadline = sh_now_ns() + PROBE_TIMEOUT_MS * 1000000ull;
    for (;;) {
        uint64_t now = sh_now_ns();
        struct pollfd p = {.fd = fd, .events = POLLIN};
        int ready = now < deadline ? poll(&p, 1, (int)((deadline - now) / 1000000) + 1) : 0;
        if (ready < 0 && errno == EINTR) continue;
        if (ready <= 0) {
            *timed_out = true;
            return have;
        }
        ssize_t n = read(fd, buffer + have, cap - have);
        if (n <= 0) return have;
        have += (size_t)n;
        if (have == cap) return have;
    }
}

/* Waits for the child, which has nothing more to say, and may hang in a driver's last breath. Under the lock, so that
 * devices_stop never signals a process that is not ours any more. */
static int reap(pid_t pid) {
    int status = 0;
    uint64_t patience = sh_now_ns() + 2000000000;
    for (;;) {
        pthread_mutex_lock(&devices.lock);
        pid_t got = waitpid(pid, &status, WNOHANG);
        if (got != 0) devices.child = 0;
        pthread_mutex_unlock(&devices.lock);
        if (got != 0) return status;
        if (sh_now_ns() > patience) kill(pid, SIGKILL);
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
}

/* One attempt; on failure `why` says how it failed. */
static bool probe_once(bool without_drivers, struct sh_device_info *infos, uint32_t *count, char *why, size_t why_cap) {
    int fd, status = 0;
    pthread_mutex_lock(&devices.lock);
    pid_t pid = devices.abandon ? -1 : spawn_child(&fd, without_drivers);
    devices.child = pid > 0 ? pid : 0;
    pthread_mutex_unlock(&devices.lock);
    if (pid <= 0) {
        snprintf(why, why_cap, "the probe cannot be started: %s", strerror(errno));
        return false;
    }
    char *output = malloc(PROBE_OUTPUT_MAX);
    bool timed_out = false;
    size_t length = output ? read_output(fd, output, PROBE_OUTPUT_MAX, &timed_out) : 0;
    close(fd);
    if (timed_out) kill(pid, SIGKILL);
    status = reap(pid);

    bool ok = false;
    if (timed_out) snprintf(why, why_cap, "the probe took longer than %d s: a graphics driver hangs", PROBE_TIMEOUT_MS / 1000);
    else if (WIFSIGNALED(status)) snprintf(why, why_cap, "a graphics driver crashed the probe (%s)", strsignal(WTERMSIG(status)));
    else if (WEXITSTATUS(status)) snprintf(why, why_cap, "the probe failed with status %d", WEXITSTATUS(status));
    else if (!output || !read_infos(output, length, infos, count)) snprintf(why, why_cap, "the probe's answer is not understood");
    else ok = true;
    free(output);
    return ok;
}

/* Marks what the configured device is; the lock is held. */
static void choose_configured(void) {
    uint32_t chosen;
    devices.error.code = SH_OK;
    if (sh_device_select(devices.infos, devices.count, devices.config->device, &chosen, &devices.error) != SH_OK) {
        log_error("device %s: %s", devices.config->device, devices.error.message);
        return;
    }
    devices.error.code = SH_OK;
    for (uint32_t i = 0; i < devices.count; i++)
        log_info("device %s (%s, %s): %s: %s", devices.infos[i].name, sh_device_kind_name(devices.infos[i].kind),
                 devices.infos[i].tier, i == chosen ? "taken" : "not taken", devices.infos[i].reason);
}

static void *probe_main(void *unused) {
    (void)unused;
    struct sh_device_info *infos = sh_calloc(DEVICES_MAX, sizeof *infos);
    uint32_t count = 0;
    char why[200];
    uint64_t start = sh_now_ns();
    bool ok = infos && probe_once(false, infos, &count, why, sizeof why);
    if (!ok) {
        log_error("%s; looking for the CPU alone", infos ? why : "no memory");
        ok = infos && probe_once(true, infos, &count, why, sizeof why);
        if (!ok) log_error("%s", why);
    }
    pthread_mutex_lock(&devices.lock);
    devices.count = ok ? count : 0;
    if (ok) memcpy(devices.infos, infos, count * sizeof *infos);
    log_debug("devices probed in %.1f ms", (double)(sh_now_ns() - start) / 1e6);
    choose_configured();
    devices.finished = true;
    pthread_cond_broadcast(&devices.done);
    void (*probed)(void *user) = devices.probed;
    pthread_mutex_unlock(&devices.lock);
    if (probed) probed(devices.user);
    free(infos);
    return NULL;
}

void devices_start(struct config *config, const char *program, void (*probed)(void *user), void *user) {
    pthread_mutex_lock(&devices.lock);
    devices.probed = probed;
    devices.user = user;
    devices.config = config_ref(config);
    devices.program = strdup(program ? program : "/proc/self/exe");
    devices.finished = devices.abandon = false;
    devices.started = devices.program && pthread_create(&devices.thread, NULL, probe_main, NULL) == 0;
    if (!devices.started) {
        log_error("devices cannot be probed: no thread can be made");
        devices.finished = true;
    }
    pthread_mutex_unlock(&devices.lock);
}

void devices_configure(struct config *config) {
    pthread_mutex_lock(&devices.lock);
    bool changed = strcmp(devices.config->device, config->device) != 0;
    config_unref(devices.config);
    devices.config = config_ref(config);
    if (devices.finished && changed) choose_configured();
    pthread_mutex_unlock(&devices.lock);
}

bool devices_probed(void) {
    pthread_mutex_lock(&devices.lock);
    bool finished = devices.finished;
    pthread_mutex_unlock(&devices.lock);
    return finished;
}

static void wait_for_probe(void) {
    while (!devices.finished) pthread_cond_wait(&devices.done, &devices.lock);
}

/* ---- opening ----------------------------------------------------------------------------------------- */

static enum sh_code open_device(const struct config *config, uint32_t index, const struct sh_device_info *info,
                                struct sh_error *err) {
    char cache[4096];
    if (!config_cache_directory(config, cache, sizeof cache)) {
        if (*cache) log_warning("cache_dir %s cannot be made (%s): pipelines are compiled anew at each start", cache, strerror(errno));
        *cache = 0;
    }
    const char *tier = info->kind == SH_DEVICE_CPU ? config->cpu_isa : config->vulkan_tier;
    struct sh_device_params params = {.size = sizeof params,
                                      .info = info,
                                      .cache_dir = *cache ? cache : NULL,
                                      .threads = config->threads,
                                      .tier = *tier ? tier : NULL,
                                      .validation = config->validation,
                                      .tune = strcmp(config->vulkan_tune, "on") == 0    ? SH_TUNE_ON
                                              : strcmp(config->vulkan_tune, "off") == 0 ? SH_TUNE_OFF
                                                                                        : SH_TUNE_AUTO};
    struct sh_device *device;
    enum sh_code code = sh_device_open(&params, &device, err);
    if (code) return code;
    log_info("device %s opened (%s): %s", info->name, sh_device_get_info(device)->tier, info->reason);
    pthread_mutex_lock(&devices.lock);
    devices.open[index] = device;
    pthread_mutex_unlock(&devices.lock);
    return SH_OK;
}

enum sh_code devices_acquire(const char *want, struct sh_device **out, struct sh_error *err) {
    enum sh_code code = SH_OK;
    uint32_t chosen = 0;
    pthread_mutex_lock(&devices.opening);
    pthread_mutex_lock(&devices.lock);
    wait_for_probe();
    struct config *config = config_ref(devices.config);
    uint32_t count = devices.count;
    /* A copy: what another device was refused for is not what Status tells about the configured one. */
    struct sh_device_info *infos = sh_calloc(count + 1ull, sizeof *infos);
    if (infos) memcpy(infos, devices.infos, count * sizeof *infos);
    pthread_mutex_unlock(&devices.lock);

    if (!infos) code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory");
    else if (count == 0) code = sh_fail(err, SH_ERR_DEVICE, "no device is known: the probe failed, the log says why");
    else code = sh_device_select(infos, count, want ? want : config->device, &chosen, err);
    if (code == SH_OK && devices.lost[chosen])
        code = sh_fail(err, SH_ERR_DEVICE_LOST, "device %s is lost, and models on it are still being unloaded: try again",
                       infos[chosen].name);
    if (code == SH_OK && !devices.open[chosen]) code = open_device(config, chosen, &infos[chosen], err);
    if (code == SH_OK) {
        *out = devices.open[chosen];
        devices.users[chosen]++;
    }
    pthread_mutex_unlock(&devices.opening);
    config_unref(config);
    free(infos);
    return code;
}

void devices_release(struct sh_device *device, bool lost) {
    if (!device) return;
    struct sh_device *closed = NULL;
    pthread_mutex_lock(&devices.opening);
    pthread_mutex_lock(&devices.lock);
    for (uint32_t i = 0; i < devices.count; i++) {
        if (devices.open[i] != device) continue;
        devices.lost[i] |= lost;
        if (--devices.users[i] == 0 && devices.lost[i]) {
            closed = device;
            devices.open[i] = NULL;
            devices.lost[i] = false;
        }
    }
    pthread_mutex_unlock(&devices.lock);
    sh_device_close(closed);
    pthread_mutex_unlock(&devices.opening);
}

char *devices_error(void) {
    pthread_mutex_lock(&devices.lock);
    wait_for_probe();
    char *error = devices.error.code ? strdup(devices.error.message) : NULL;
    pthread_mutex_unlock(&devices.lock);
    return error;
}

json_t *devices_json(void) {
    json_t *list = json_array();
    pthread_mutex_lock(&devices.lock);
    wait_for_probe();
    for (uint32_t i = 0; i < devices.count; i++) {
        const struct sh_device_info *info = &devices.infos[i];
        const struct sh_device *open = devices.open[i];
        json_t *object =
            json_pack("{ss ss ss ss sb sb ss sI sI sb}", "name", info->name, "kind", sh_device_kind_name(info->kind), "driver",
                      info->driver, "tier", open ? sh_device_get_info(open)->tier : info->tier, "usable", info->usable,
                      "selected", info->selected, "reason", info->reason, "memory_bytes", (json_int_t)info->memory_bytes,
                      "free_bytes", (json_int_t)info->free_bytes, "open", open != NULL);
        if (open) {
            struct sh_device_memory memory;
            sh_device_get_memory(open, &memory);
            json_object_set_new(object, "weights_bytes", json_integer((json_int_t)memory.weights_bytes));
            json_object_set_new(object, "cache_bytes", json_integer((json_int_t)memory.cache_bytes));
            json_object_set_new(object, "activation_bytes", json_integer((json_int_t)memory.activation_bytes));
            json_object_set_new(object, "staging_bytes", json_integer((json_int_t)memory.staging_bytes));
        }
        json_array_append_new(list, object);
    }
    pthread_mutex_unlock(&devices.lock);
    return list;
}

uint64_t devices_host_bytes(void) {
    uint64_t held = 0;
    pthread_mutex_lock(&devices.lock);
    for (uint32_t i = 0; i < devices.count; i++) {
        const enum sh_device_kind kind = devices.infos[i].kind;
        if (!devices.open[i] || kind == SH_DEVICE_DISCRETE || kind == SH_DEVICE_VIRTUAL) continue;
        struct sh_device_memory memory;
        sh_device_get_memory(devices.open[i], &memory);
        held += memory.weights_bytes + memory.cache_bytes + memory.activation_bytes + memory.staging_bytes;
    }
    pthread_mutex_unlock(&devices.lock);
    return held;
}

void devices_refresh_metrics(void) {
    pthread_mutex_lock(&devices.lock);
    for (uint32_t i = 0; i < devices.count; i++) {
        if (!devices.open[i]) continue;
        struct sh_device_memory memory;
        sh_device_get_memory(devices.open[i], &memory);
        const struct {
            const char *kind;
            uint64_t bytes;
        } rows[] = {{"weights", memory.weights_bytes},
                    {"cache", memory.cache_bytes},
                    {"activations", memory.activation_bytes},
                    {"staging", memory.staging_bytes}};
        for (uint32_t k = 0; k < SH_COUNT(rows); k++) {
            const char *const labels[] = {devices.infos[i].name, rows[k].kind};
            metric_set(METRIC_DEVICE_MEMORY, labels, (double)rows[k].bytes);
        }
    }
    pthread_mutex_unlock(&devices.lock);
}

void devices_stop(void) {
    pthread_mutex_lock(&devices.lock);
    devices.abandon = true;
    if (devices.child > 0) kill(devices.child, SIGKILL);
    bool started = devices.started;
    pthread_mutex_unlock(&devices.lock);
    if (started) pthread_join(devices.thread, NULL);
    for (uint32_t i = 0; i < devices.count; i++) {
        sh_device_close(devices.open[i]);
        devices.open[i] = NULL;
        devices.users[i] = 0;
        devices.lost[i] = false;
    }
    devices.count = 0;
    devices.started = false;
    free(devices.program);
    devices.program = NULL;
    config_unref(devices.config);
    devices.config = NULL;
}

/* daemon_room.c - see daemon_room.h. */
#include "tests/unit/daemon_room.h"

#include "compute/base.h"
#include "daemon/devices.h"
#include "daemon/log.h"
#include "tests/unit/genmodel.h"
#include "tests/unit/shared.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

bool daemon_room_main(int argc, char **argv, int *status) {
    if (argc > 1 && strcmp(argv[1], "--probe-devices") == 0) {
        *status = devices_probe_main();
        return true;
    }
    unsetenv("SHIMMY_DEVICE");
    return false;
}

static char *directories[16];
static uint32_t n_directories;

static void remove_directories(void) {
    char command[600];
    for (uint32_t i = 0; i < n_directories; i++) {
        snprintf(command, sizeof command, "rm -rf '%s'", directories[i]);
        if (system(command) != 0) return;
        free(directories[i]);
    }
}

const char *room_directory(const char *name) {
    char path[400];
    snprintf(path, sizeof path, "/tmp/shimmy-room-%d-%s", (int)getpid(), name);
    assert_true(n_directories < SH_COUNT(directories));
    if (n_directories == 0) atexit(remove_directories);
    mkdir(path, 0755);
    directories[n_directories] = strdup(path);
    assert_non_null(directories[n_directories]);
    return directories[n_directories++];
}

void room_model(const char *directory, const char *file, uint32_t layers, const char *general_name) {
    char path[600];
    struct sh_error err;
    struct genmodel_params params = genmodel_defaults();
    params.layers = layers;
    params.name = general_name;
    params.seed = 7;
    snprintf(path, sizeof path, "%s/%s", directory, file);
    if (genmodel_write(path, &params, &err) != SH_OK) fail_msg("%s", err.message);
}

static void report(void *user, enum sh_log_level level, const char *line) {
    (void)user;
    (void)level;
    print_message("%s\n", line);
}

/* Beside the programs: what compiled pipelines cost is paid once, and the user's own cache is left alone. */
static const char *cache_directory(void) {
    static char path[4200];
    const ssize_t n = readlink("/proc/self/exe", path, sizeof path - 20);
    assert_true(n > 0);
    path[n] = 0;
    strcpy(strrchr(path, '/'), "/cache");
    mkdir(path, 0755);
    return path;
}

struct config *room_config(const char *first, ...) {
    char *argv[40] = {"shimmyd",   "--config", "/dev/null",     "--cpu-isa",  "scalar",
                      "--threads", "1",        "--discover=no", "--cache-dir"};
    int argc = 9;
    argv[argc++] = (char *)(uintptr_t)cache_directory();
    va_list args;
    va_start(args, first);
    for (const char *arg = first; arg; arg = va_arg(args, const char *)) argv[argc++] = (char *)arg;
    va_end(args);
    struct config_command command;
    struct config *config = NULL;
    assert_true(config_parse_command(argc, argv, &command, report, NULL));
    assert_true(config_load(&command, &config, report, NULL));
    config_command_finish(&command);
    return config;
}

void room_start(struct config *config) {
    struct sh_error err;
    log_set_level(getenv("SHIMMY_TEST_LOG") ? SH_LOG_DEBUG : (enum sh_log_level)0);
    devices_start(config, NULL, NULL, NULL);
    assert_int_equal(models_start(config, &err), SH_OK);
}

void room_stop(void) {
    models_stop(1000000000);
    devices_stop();
}

struct waiter {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    bool done;
    enum sh_code code;
    struct model *model;
    struct sh_error err;
};

static void loaded(void *user, enum sh_code code, struct model *model, const struct sh_error *err) {
    struct waiter *waiter = user;
    pthread_mutex_lock(&waiter->lock);
    waiter->done = true;
    waiter->code = code;
    waiter->model = model;
    if (err) waiter->err = *err;
    pthread_cond_signal(&waiter->cond);
    pthread_mutex_unlock(&waiter->lock);
}

struct model *room_load(const char *name) {
    struct waiter waiter = {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
    struct model *model;
    struct sh_error err;
    if (models_resolve(name, &model, &err) != SH_OK) fail_msg("%s", err.message);
    struct load *load = model_load(model, NULL, loaded, NULL, &waiter);
    assert_non_null(load);
    pthread_mutex_lock(&waiter.lock);
    while (!waiter.done) pthread_cond_wait(&waiter.cond, &waiter.lock);
    pthread_mutex_unlock(&waiter.lock);
    load_release(load);
    model_unref(model);
    if (waiter.code) fail_msg("%s", waiter.err.message);
    return waiter.model;
}

enum model_state room_state(const char *name) {
    struct model *model;
    struct sh_error err;
    struct model_view view;
    if (models_resolve(name, &model, &err) != SH_OK) fail_msg("%s", err.message);
    model_get_view(model, &view);
    enum model_state state = view.state;
    model_view_finish(&view);
    model_unref(model);
    return state;
}

bool room_wait_state(const char *name, enum model_state state) {
    uint64_t limit = sh_now_ns() + 60000000000ull; /* under a sanitizer, and others at work */
    while (sh_now_ns() < limit) {
        if (room_state(name) == state) return true;
        usleep(2000);
    }
    return false;
}

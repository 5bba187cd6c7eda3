/*
 * main.c - shimmyd from start to end: options, log, signals, sockets, then one loop over epoll until a signal ends it.
 *
 * Threads: this one (control socket, signals, watchdog), libmicrohttpd's, the loader, one runner per loaded model, a few that
 * tokenise (work.h), and for a moment the device probe's. All signals are blocked in all of them and read here from a signalfd.
 */
#include "compute/base.h"
#include "daemon/config.h"
#include "daemon/control/control.h"
#include "daemon/devices.h"
#include "daemon/http/http.h"
#include "daemon/limits.h"
#include "daemon/log.h"
#include "daemon/metrics.h"
#include "daemon/models.h"
#include "daemon/response_cache.h"
#include "daemon/sessions.h"
#include "daemon/watchdog.h"
#include "daemon/work.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

enum { HTTP_SOCKETS_MAX = CONFIG_LISTEN_MAX };
/* How long answers may take to be written after everything else has ended. */
#define FAREWELL_NS 500000000ull

struct daemon {
    struct config_command command;
    struct config *config;       /* in force */
    struct config *first_config; /* HTTP's */
    struct control *control;
    struct http *http;
    int epoll, signals, watchdog;
    uint64_t tell_ns; /* how often systemd wants to hear from us; 0: it does not */
    uint32_t n_stuck; /* models and the loader, when last looked at */
    int control_fd; /* inherited, or -1 */
    int http_fds[HTTP_SOCKETS_MAX];
    uint32_t n_http_fds;
    bool stop, stop_again; /* a signal came; another one, which waits for nothing */
};

/* ---- options ----------------------------------------------------------------------------------------- */

static void report_to_stderr(void *user, enum sh_log_level level, const char *line) {
    (void)user;
    fprintf(stderr, "shimmyd: %s%s\n", level == SH_LOG_WARNING ? "warning: " : "", line);
}

static void report_to_log(void *user, enum sh_log_level level, const char *line) {
    (void)user;
    log_write(level, NULL, "%s", line);
}

/* The file of keys is read when the daemon starts and at a reload: what would be an error then is one now. */
static bool check_keys(const struct config *config) {
    const struct limits_rates none = {0};
    struct limits *limits = NULL;
    struct sh_error err = {0};
    const bool good = limits_create(&limits, &err) == SH_OK && limits_configure(limits, &none, config->api_key, config->api_key_file, &err) == SH_OK;
    if (!good) report_to_stderr(NULL, SH_LOG_ERROR, err.message);
    limits_destroy(limits);
    return good;
}

/* True: the command line asked for something else than serving, *status is how it went. */
static bool answer_command(const struct config_command *command, int *status) {
    *status = EXIT_SUCCESS;
    switch (command->action) {
    case CONFIG_RUN: return false;
    case CONFIG_HELP: config_print_help(stdout); return true;
    case CONFIG_SHOW_VERSION: printf("shimmyd %s\n", sh_version()); return true;
    case CONFIG_PRINT: config_print_sample(stdout); return true;
    case CONFIG_PROBE_DEVICES: *status = devices_probe_main(); return true;
    case CONFIG_CHECK: {
        struct config *config = NULL;
        if (!config_load(command, &config, report_to_stderr, NULL) || !check_keys(config)) *status = EXIT_FAILURE;
        config_unref(config);
        return true;
    }
    }
    return false;
}

static void open_log(const struct config *config) {
    enum sh_log_level level = SH_LOG_INFO;
    log_level_parse(config->log_level, &level);
    log_open(level);
}

/* ---- events ------------------------------------------------------------------------------------------ */

static bool watch(struct daemon *d, int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    return fd >= 0 && epoll_ctl(d->epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

/* Before any thread exists, so that all have the signals blocked. */
static bool open_loop(struct daemon *d) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    d->epoll = epoll_create1(EPOLL_CLOEXEC);
    d->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    d->watchdog = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    return d->epoll >= 0 && watch(d, d->signals) && watch(d, d->watchdog);
}

/* Sockets that systemd bound for us, by the names their units give them. */
static void take_sockets(struct daemon *d) {
    char **names = NULL;
    int count = sd_listen_fds_with_names(1, &names);
    for (int i = 0; i < count; i++) {
        int fd = SD_LISTEN_FDS_START + i;
        if (strcmp(names[i], "control") == 0 && d->control_fd < 0) {
            d->control_fd = fd;
        } else if (strcmp(names[i], "http") == 0 && d->n_http_fds < HTTP_SOCKETS_MAX) {
            d->http_fds[d->n_http_fds++] = fd;
        } else {
            log_warning("socket %s from systemd is not known: FileDescriptorName= is control or http", names[i]);
            close(fd);
        }
        free(names[i]);
    }
    free(names);
}

/* Looked at as often as the configured limit wants it, or systemd. */
static void set_watchdog(struct daemon *d) {
    uint64_t ns = watchdog_period_ns(d->config->watchdog_timeout_s * 1000000000ull);
    if (d->tell_ns > 0 && d->tell_ns < ns) ns = d->tell_ns;
    const struct timespec period = {(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
    timerfd_settime(d->watchdog, 0, &(struct itimerspec){period, period}, NULL);
}

/* systemd restarts us when we stop telling that we are alive: a step that never ends is not survived by waiting. A loader that hangs is no
 * reason: loaded models serve on, and a restart would end them to hang at the same disk again. */
static void look_after_runners(struct daemon *d) {
    uint64_t ticks;
    if (read(d->watchdog, &ticks, sizeof ticks) < 0) return;
    d->n_stuck = watchdog_look(d->config->watchdog_timeout_s * 1000000000ull);
    if (d->tell_ns > 0 && d->n_stuck <= (models_loader_stuck(NULL) ? 1u : 0u)) sd_notify(0, "WATCHDOG=1");
}

/* ---- reload ------------------------------------------------------------------------------------------ */

static void log_difference(void *user, const char *name, bool needs_restart) {
    (void)user;
    if (needs_restart) log_warning("option %s has changed: that takes a restart", name);
    else log_info("option %s has changed", name);
}

static void reload(struct daemon *d) {
    sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%llu", (unsigned long long)(sh_now_ns() / 1000));
    struct config *fresh;
    struct sh_error err;
    bool sound = config_load(&d->command, &fresh, report_to_log, NULL);
    if (sound && http_configure(d->http, fresh, &err) != SH_OK) {
        log_error("%s", err.message);
        config_unref(fresh);
        sound = false;
    }
    if (sound) {
        config_diff(d->config, fresh, log_difference, NULL);
        enum sh_log_level level;
        if (log_level_parse(fresh->log_level, &level)) log_set_level(level);
        control_configure(d->control, fresh);
        response_cache_configure(fresh);
        sessions_configure(fresh);
        models_configure(fresh);
        devices_configure(fresh);
        config_unref(d->config);
        d->config = fresh;
        set_watchdog(d);
        log_notice("configuration reloaded");
    } else {
        log_error("the configuration has errors: the old one stays in force");
    }
    sd_notify(0, "READY=1");
}

/* ---- start, serve, stop ------------------------------------------------------------------------------ */

static void raise_descriptor_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    limit.rlim_cur = limit.rlim_max < 65536 ? limit.rlim_max : 65536;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static bool start(struct daemon *d) {
    struct sh_error err;
    raise_descriptor_limit();
    take_sockets(d);
    if (http_start(d->config, d->http_fds, d->n_http_fds, &d->http, &err) != SH_OK) goto refused;
    struct control_params params = {
        .path = d->config->socket, .inherited_fd = d->control_fd, .http_addresses = d->http ? http_addresses(d->http) : NULL};
    if (control_start(&params, &d->control, &err) != SH_OK) goto refused;
    control_configure(d->control, d->config);
    response_cache_configure(d->config);
    sessions_configure(d->config);
    if (!watch(d, control_fd(d->control))) {
        sh_fail(&err, SH_ERR_IO, "epoll: %s", strerror(errno));
        goto refused;
    }
    devices_start(d->config, NULL, control_wake, d->control);
    models_on_settled(control_wake, d->control);
    if (models_start(d->config, &err) != SH_OK) goto refused;

    const char *const version[] = {sh_version()};
    metric_set(METRIC_BUILD_INFO, version, 1);
    log_info("control socket %s", control_path(d->control));
    for (const char *const *address = params.http_addresses; address && *address; address++)
        log_notice("listening on %s", *address);
    return true;
refused:
    log_error("%s", err.message);
    sd_notifyf(0, "STATUS=%s", err.message);
    return false;
}

static void take_signal(struct daemon *d) {
    struct signalfd_siginfo info;
    if (read(d->signals, &info, sizeof info) != (ssize_t)sizeof info) return;
    if (info.ssi_signo == SIGHUP) {
        reload(d);
        return;
    }
    if (d->stop) d->stop_again = true;
    else log_notice("%s: stopping", info.ssi_signo == SIGINT ? "interrupted" : "terminated");
    d->stop = true;
}

static void dispatch(struct daemon *d, int timeout_ms) {
    struct epoll_event events[8];
    int count = epoll_wait(d->epoll, events, SH_COUNT(events), timeout_ms);
    for (int i = 0; i < count; i++) {
        if (events[i].data.fd == d->signals) take_signal(d);
        else if (events[i].data.fd == d->watchdog) look_after_runners(d);
        else control_dispatch(d->control);
    }
}

static void *stop_models(void *user) {
    models_stop(*(const uint64_t *)user);
    return NULL;
}

/* Running requests may finish within drain_timeout, and their clients are served meanwhile; then everything ends in the reverse
 * order of start. */
static int stop(struct daemon *d) {
    uint64_t limit_ns = d->config->drain_timeout_s * 1000000000ull;
    sd_notifyf(0, "STOPPING=1\nSTATUS=waiting for running requests, at most %u s", d->config->drain_timeout_s);
    control_set_stopping(d->control);
    http_stop_accepting(d->http);
    models_stop_accepting();

    const uint64_t end = sh_now_ns() + limit_ns;
    pthread_t stopper;
    if (pthread_create(&stopper, NULL, stop_models, &limit_ns) != 0) return EXIT_FAILURE;
    while (pthread_tryjoin_np(stopper, NULL) != 0) {
        dispatch(d, 20);
        if (d->stop_again) {
            log_warning("a second signal: ending at once");
            return EXIT_FAILURE;
        }
        if (d->n_stuck > 0 && sh_now_ns() >= end) {
            log_error("%u models or loads are stuck and cannot be unloaded: ending without", d->n_stuck);
            return EXIT_FAILURE;
        }
    }
    uint64_t farewell = sh_now_ns() + FAREWELL_NS;
    while (!control_is_quiet(d->control) && sh_now_ns() < farewell) dispatch(d, 10);
    work_stop();
    http_stop(d->http);
    devices_stop(); /* before the control socket: the probe wakes it */
    control_stop(d->control);
    config_unref(d->config);
    config_unref(d->first_config);
    config_command_finish(&d->command);
    log_info("stopped");
    return EXIT_SUCCESS;
}

static bool is_preloaded(void) {
    uint32_t wanted, ready, failed;
    return models_preload_state(&wanted, &ready, &failed) && ready + failed == wanted;
}

int main(int argc, char **argv) {
    struct daemon d = {.control_fd = -1};
    int status;
    http_watch_json_memory();
    if (!config_parse_command(argc, argv, &d.command, report_to_stderr, NULL)) return 2;
    if (answer_command(&d.command, &status)) {
        config_command_finish(&d.command);
        return status;
    }
    if (!config_load(&d.command, &d.config, report_to_stderr, NULL)) return EXIT_FAILURE;
    d.first_config = config_ref(d.config);
    open_log(d.config);
    if (!open_loop(&d)) {
        log_error("the event loop cannot be made: %s", strerror(errno));
        return EXIT_FAILURE;
    }
    if (!start(&d)) return EXIT_FAILURE;
    uint64_t usec = 0;
    if (sd_watchdog_enabled(0, &usec) > 0) d.tell_ns = usec * 1000 / 2;
    set_watchdog(&d);
    while (!d.stop && d.config->preload_wait && *d.config->preload && !is_preloaded()) dispatch(&d, 50);
    sd_notify(0, "READY=1\nSTATUS=ready");
    while (!d.stop) dispatch(&d, -1);
    /* Not by return: after a second signal threads still run that use what exit handlers would take away. */
    status = stop(&d);
    fflush(NULL);
    _exit(status);
}

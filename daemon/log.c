/* log.c - see log.h. */
#include "daemon/log.h"

#include "compute/base.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <systemd/sd-journal.h>
#include <time.h>
#include <unistd.h>

static _Atomic int max_level = SH_LOG_INFO;
static bool to_journal;

static const char *level_name(enum sh_log_level level) {
    switch (level) {
    case SH_LOG_ERROR: return "error";
    case SH_LOG_WARNING: return "warning";
    case SH_LOG_NOTICE: return "notice";
    case SH_LOG_INFO: return "info";
    case SH_LOG_DEBUG: return "debug";
    }
    return "info";
}

bool log_level_parse(const char *name, enum sh_log_level *out) {
    for (int level = SH_LOG_ERROR; level <= SH_LOG_DEBUG; level++) {
        if (strcmp(name, level_name((enum sh_log_level)level)) == 0) {
            *out = (enum sh_log_level)level;
            return true;
        }
    }
    return false;
}

/* systemd names the journal's stream in JOURNAL_STREAM; if stderr is still that stream we may write fields instead of lines. */
static bool stderr_is_journal(void) {
    const char *stream = getenv("JOURNAL_STREAM");
    unsigned long long device, inode;
    struct stat st;
    return stream && sscanf(stream, "%llu:%llu", &device, &inode) == 2 && fstat(STDERR_FILENO, &st) == 0 &&
           st.st_dev == (dev_t)device && st.st_ino == (ino_t)inode;
}

/* Names of files and clients' texts are in it: nothing of them is to look like a line of ours, or to steer a terminal. */
static void make_one_line(const char *text, char *out, size_t cap) {
    size_t n = 0;
    for (; text[n] && n + 1 < cap; n++) out[n] = (unsigned char)text[n] < ' ' || text[n] == 0x7f ? ' ' : text[n];
    out[n] = 0;
}

static void write_line(enum sh_log_level level, const char *model, const char *text) {
    char line[1200], name[300];
    make_one_line(text, line, sizeof line);
    if (model) make_one_line(model, name, sizeof name);
    if (to_journal) {
        int rc = model ? sd_journal_send("PRIORITY=%i", level, "SHIMMY_MODEL=%s", model, "MESSAGE=%s", line, NULL)
                       : sd_journal_send("PRIORITY=%i", level, "MESSAGE=%s", line, NULL);
        if (rc >= 0) return; /* else the stream that stderr is may still reach it */
    }
    struct timespec now;
    struct tm tm;
    char stamp[32];
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &tm);
    /* One call, so that lines of several threads do not mix. */
    fprintf(stderr, "%s.%03ldZ %s: %s%s%s\n", stamp, now.tv_nsec / 1000000, level_name(level), model ? name : "",
            model ? ": " : "", line);
}

static void engine_line(void *user, enum sh_log_level level, const char *line) {
    (void)user;
    if ((int)level <= atomic_load_explicit(&max_level, memory_order_relaxed)) write_line(level, NULL, line);
}

void log_open(enum sh_log_level level) {
    to_journal = stderr_is_journal();
    log_set_level(level);
    /* The engine's own limit may be set only once; ours can change at a reload. */
    sh_set_log(engine_line, NULL, SH_LOG_DEBUG);
}

void log_set_level(enum sh_log_level level) { atomic_store_explicit(&max_level, level, memory_order_relaxed); }

void log_write(enum sh_log_level level, const char *model, const char *fmt, ...) {
    if ((int)level > atomic_load_explicit(&max_level, memory_order_relaxed)) return;
    char line[1200];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    write_line(level, model, line);
}

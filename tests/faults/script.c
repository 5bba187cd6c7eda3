/* script.c - see script.h. */
#include "tests/faults/script.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { TEXT_BYTES = 1024, RULES = 8, WORD = 64 };

struct rule {
    char call[WORD], what[WORD];
    unsigned long skip, count, seen;
};
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char text[TEXT_BYTES]; /* that the rules were read from */
static struct rule rules[RULES];
static size_t n_rules;

/* System calls by number: another fault library may stand in for read. */
static void read_text(const char *file, char *out) {
    out[0] = 0;
    const int fd = (int)syscall(SYS_openat, AT_FDCWD, file, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0) return;
    const long n = syscall(SYS_read, fd, out, TEXT_BYTES - 1);
    out[n > 0 ? n : 0] = 0;
    syscall(SYS_close, fd);
}

static const char *word(const char *at, char *out) {
    size_t n = 0;
    while (*at == ' ') at++;
    for (; *at && *at != ' ' && *at != '\n'; at++)
        if (n + 1 < WORD) out[n++] = *at;
    out[n] = 0;
    return at;
}

static void parse(void) {
    n_rules = 0;
    for (const char *line = text; *line && n_rules < RULES;) {
        struct rule *rule = &rules[n_rules];
        char number[WORD];
        const char *at = word(line, rule->call);
        at = word(at, number);
        rule->skip = strtoul(number, NULL, 10);
        at = word(at, number);
        rule->count = strtoul(number, NULL, 10);
        at = word(at, rule->what);
        rule->seen = 0;
        if (rule->call[0] && rule->what[0]) n_rules++;
        at = strchr(at, '\n');
        if (!at) break;
        line = at + 1;
    }
}

static void refresh(const char *file) {
    char fresh[TEXT_BYTES];
    read_text(file, fresh);
    if (strcmp(fresh, text) == 0) return;
    memcpy(text, fresh, sizeof text);
    parse();
}

static void tell(const char *file, const struct rule *rule) {
    char path[512], line[2 * WORD + 2];
    const int n = snprintf(path, sizeof path, "%s.hits", file), length = snprintf(line, sizeof line, "%s %s\n", rule->call, rule->what);
    if (n < 0 || (size_t)n >= sizeof path || length < 0) return;
    const int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0) return;
    if (syscall(SYS_write, fd, line, (size_t)length) < 0) abort();
    syscall(SYS_close, fd);
}

bool fault_due(const char *file, const char *call, char *what, size_t size) {
    bool due = false;
    if (!file) return false;
    pthread_mutex_lock(&lock);
    refresh(file);
    for (size_t i = 0; i < n_rules && !due; i++) {
        struct rule *rule = &rules[i];
        if (strcmp(rule->call, call) != 0) continue;
        const unsigned long n = rule->seen++;
        if (n < rule->skip || (rule->count && n >= rule->skip + rule->count)) continue;
        snprintf(what, size, "%s", rule->what);
        tell(file, rule);
        due = true;
    }
    pthread_mutex_unlock(&lock);
    return due;
}

bool fault_stands(const char *file, const char *call, const char *what) {
    bool stands = false;
    pthread_mutex_lock(&lock);
    refresh(file);
    for (size_t i = 0; i < n_rules; i++) stands |= strcmp(rules[i].call, call) == 0 && strcmp(rules[i].what, what) == 0;
    pthread_mutex_unlock(&lock);
    return stands;
}

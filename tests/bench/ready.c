/*
 * ready: how long a daemon takes from exec to READY=1 on its notify socket, and its resident memory half a second later. Usage:
 * ready COMMAND ARGS... Runs it three times, prints the median time and the largest memory: name, tab, value.
 */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define RUNS 3
#define LIMIT_MS 20000

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static long resident_kib(pid_t pid) {
    char path[64], line[128];
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    FILE *f = fopen(path, "r");
    long kib = 0;
    while (f != NULL && fgets(line, sizeof line, f) != NULL)
        if (sscanf(line, "VmRSS: %ld", &kib) == 1) break;
    if (f != NULL) fclose(f);
    return kib;
}

/* Waits for READY=1; false: the command ended or took too long. */
static int await_ready(int fd, pid_t pid) {
    const double until = now_ms() + LIMIT_MS;
    while (now_ms() < until) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, 100) == 1) {
            char message[4096];
            const ssize_t n = recv(fd, message, sizeof message - 1, 0);
            message[n > 0 ? n : 0] = '\0';
            if (strstr(message, "READY=1") != NULL) return 1;
        } else if (waitpid(pid, NULL, WNOHANG) == pid) {
            return 0;
        }
    }
    return 0;
}

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc < 2) return fputs("usage: ready COMMAND ARGS...\n", stderr), 2;
    char dir[] = "/tmp/ready.XXXXXX";
    if (mkdtemp(dir) == NULL) return perror("ready"), 1;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s/notify", dir);
    const int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) != 0) return perror("ready"), 1;
    setenv("NOTIFY_SOCKET", address.sun_path, 1);
    double times[RUNS];
    long most = 0;
    int good = 1;
    for (int run = 0; run < RUNS && good; run++) {
        const double begin = now_ms();
        const pid_t pid = fork();
        if (pid == 0) {
            execvp(argv[1], argv + 1);
            perror(argv[1]);
            _exit(127);
        }
        good = pid > 0 && await_ready(fd, pid);
        times[run] = now_ms() - begin;
        if (!good) break;
        usleep(500000); /* what still happens after READY counts, too */
        const long kib = resident_kib(pid);
        if (kib > most) most = kib;
        kill(pid, SIGTERM);
        waitpid(pid, NULL, 0);
        char rest[4096];
        while (recv(fd, rest, sizeof rest, MSG_DONTWAIT) > 0) {
        }
    }
    close(fd);
    unlink(address.sun_path);
    rmdir(dir);
    if (!good) return fprintf(stderr, "ready: %s did not become ready\n", argv[1]), 1;
    qsort(times, RUNS, sizeof *times, compare);
    printf("ready_milliseconds\t%.1f\nresident_kib\t%ld\n", times[RUNS / 2], most);
    return 0;
}

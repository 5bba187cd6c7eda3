/*
 * fuzz_varlink.c - any bytes on the control socket. First the framing alone: however the bytes are split, the same messages
 * come out. Then the whole service, over a real socket, without models.
 */
#include "compute/base.h"
#include "daemon/control/control.h"
#include "daemon/control/varlink.h"
#include "daemon/log.h"
#include "daemon/models.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A digest of all that comes out when the bytes go in `step` at a time. */
static uint64_t digest(const uint8_t *data, size_t size, size_t step) {
    struct frame_reader reader = {0};
    uint64_t hash = 14695981039346656037u;
    enum frame_result result = FRAME_NONE;
    for (size_t at = 0; at < size && result != FRAME_BAD; at += step) {
        SH_ASSERT(frame_reader_append(&reader, (const char *)data + at, size - at < step ? size - at : step));
        char *message;
        size_t length;
        const char *why = NULL;
        while ((result = frame_reader_next(&reader, &message, &length, &why)) == FRAME_MESSAGE) {
            SH_ASSERT(length >= 2 && message[0] == '{' && strlen(message) == length);
            for (size_t i = 0; i < length; i++) hash = (hash ^ (uint8_t)message[i]) * 1099511628211u;
            hash = (hash ^ 256) * 1099511628211u;
        }
        if (result == FRAME_BAD) {
            SH_ASSERT(why != NULL);
            hash = (hash ^ 512) * 1099511628211u;
        }
    }
    frame_reader_finish(&reader);
    return hash;
}

static struct control *control;
static struct sockaddr_un address = {.sun_family = AF_UNIX};

static void end(void) {
    control_stop(control);
    models_stop(0);
}

static void ignore(void *user, enum sh_log_level level, const char *line) {
    (void)user;
    (void)level;
    (void)line;
}

static void begin(void) {
    struct sh_error err;
    struct config *config;
    struct config_command command = {.file = "/dev/null"};
    snprintf(address.sun_path, sizeof address.sun_path, "/tmp/fuzz_varlink.%d", (int)getpid());
    struct control_params params = {.path = address.sun_path, .inherited_fd = -1};
    log_set_level(SH_LOG_ERROR);
    SH_ASSERT(config_load(&command, &config, ignore, NULL));
    SH_ASSERT(models_start(config, &err) == SH_OK);
    config_unref(config);
    SH_ASSERT(control_start(&params, &control, &err) == SH_OK);
    atexit(end);
}

static void talk(const uint8_t *data, size_t size) {
    char answer[4096];
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    SH_ASSERT(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    for (size_t at = 0; at < size;) {
        ssize_t n = send(fd, data + at, size - at, MSG_NOSIGNAL);
        if (n > 0) at += (size_t)n;
        control_dispatch(control);
        while (recv(fd, answer, sizeof answer, 0) > 0) {
        }
        if (n < 0) break; /* it was refused and closed, or reads no more while it answers */
    }
    shutdown(fd, SHUT_WR);
    struct pollfd p = {.fd = control_fd(control), .events = POLLIN};
    for (int i = 0; i < 1000 && poll(&p, 1, 0) > 0; i++) {
        control_dispatch(control);
        while (recv(fd, answer, sizeof answer, 0) > 0) {
        }
    }
    close(fd);
    control_dispatch(control);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint64_t whole = digest(data, size, size ? size : 1);
    SH_ASSERT(whole == digest(data, size, 1));
    SH_ASSERT(whole == digest(data, size, 7));
    if (!control) begin();
    talk(data, size);
    return 0;
}

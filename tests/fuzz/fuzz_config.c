/* fuzz_config.c - any bytes as shimmyd.conf: accepted, or refused with lines that name the file. */
#include "compute/base.h"
#include "daemon/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct said {
    uint32_t errors;
    char path[32];
};

static void listen_to(void *user, enum sh_log_level level, const char *line) {
    struct said *said = user;
    if (level != SH_LOG_ERROR) return;
    said->errors++;
    /* What no line is to blame for (two options that do not fit together) has no place. */
    SH_ASSERT(strncmp(line, said->path, strlen(said->path)) == 0 || strstr(line, " is more than "));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct said said = {0};
    struct config *config = NULL;
    int fd = memfd_create("conf", 0);
    SH_ASSERT(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    snprintf(said.path, sizeof said.path, "/proc/self/fd/%d", fd);
    struct config_command command = {.file = said.path};
    bool ok = config_load(&command, &config, listen_to, &said);
    SH_ASSERT(ok == (said.errors == 0) && ok == (config != NULL));
    if (ok) {
        SH_ASSERT(config->max_sequences >= 1 && config->prefill_chunk >= 1 && config->prefill_chunk <= config->max_batch_rows);
        config_diff(config, config, NULL, NULL); /* nothing differs from itself: the callback is not reached */
    }
    config_unref(config);
    close(fd);
    return 0;
}

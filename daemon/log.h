/*
 * log.h - log lines: to the journal with fields when systemd runs us, else to stderr with time and level.
 *
 * Fields in the journal: PRIORITY, and SHIMMY_MODEL where a line is about one model. The engine's lines come here too.
 * Thread-safety: log_write, log_set_level: any thread. log_open: main, before threads are started.
 */
#ifndef SHIMMYD_LOG_H
#define SHIMMYD_LOG_H

#include "compute/engine.h"

void log_open(enum sh_log_level level); /* and takes the engine's log */
void log_set_level(enum sh_log_level level);
bool log_level_parse(const char *name, enum sh_log_level *out); /* error, warning, notice, info, debug */

/* model: the id of the model that the line is about, or NULL. */
void log_write(enum sh_log_level level, const char *model, const char *fmt, ...) SH_PRINTF(3, 4);

#define log_error(...) log_write(SH_LOG_ERROR, NULL, __VA_ARGS__)
#define log_warning(...) log_write(SH_LOG_WARNING, NULL, __VA_ARGS__)
#define log_notice(...) log_write(SH_LOG_NOTICE, NULL, __VA_ARGS__)
#define log_info(...) log_write(SH_LOG_INFO, NULL, __VA_ARGS__)
#define log_debug(...) log_write(SH_LOG_DEBUG, NULL, __VA_ARGS__)

#endif

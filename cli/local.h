/* local.h - what verify and perplexity share, which run the engine in this process. Main thread. */
#ifndef SHIMMYCTL_LOCAL_H
#define SHIMMYCTL_LOCAL_H

#include "cli/commands.h"
#include "compute/engine.h"

/* The file behind MODEL, malloc'd: a path, or what the daemon knows by that name. NULL: it has said why. */
char *cli_model_path(struct cli *cli, const char *model);
/* want: as --device; tier: NULL is the best. sh_device_close ends it. */
enum sh_code cli_open_device(const char *want, const char *tier, struct sh_device **out, struct sh_error *err);

#endif

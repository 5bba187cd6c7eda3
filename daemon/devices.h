/*
 * devices.h - which devices there are and which one a model runs on.
 *
 * Devices are listed by a short-lived child (this program with --probe-devices), so that a driver that crashes costs nothing
 * and its memory goes with it; this process opens a device only for the first load that needs it, and keeps it for later ones.
 * If the child crashes or hangs, a second one lists the CPU alone.
 *
 * Thread-safety: devices_start, devices_stop: main. The others: any thread; those that need the list wait for the probe
 * (bounded by its time limit).
 */
#ifndef SHIMMYD_DEVICES_H
#define SHIMMYD_DEVICES_H

#include "daemon/config.h"

#include <jansson.h>

/* The child: prints what it finds as JSON on stdout and returns the exit status. */
int devices_probe_main(void);

/* Starts the probe and returns at once. program: the path to run, NULL for this executable (tests give another). probed (may be
 * NULL) is called when it is finished, from its thread. */
void devices_start(struct config *config, const char *program, void (*probed)(void *user), void *user);
void devices_configure(struct config *config); /* takes a reference */
bool devices_probed(void);                     /* the probe is finished */
/* The device that `want` names (NULL: the configured one), opened and shared, for one more model: devices_release when that is
 * unloaded. It stays open until devices_stop, unless it was lost. The error says why it was refused. */
enum sh_code devices_acquire(const char *want, struct sh_device **out, struct sh_error *err);
/* lost: it failed for good; it is closed when its last model is gone, and opened anew when it is wanted again. NULL is fine. */
void devices_release(struct sh_device *device, bool lost);
/* Why the configured device cannot be used, malloc'd, or NULL if it can. */
char *devices_error(void);
/* Bytes of the host's memory that this process holds through devices: the CPU, and those that have no memory of their own. */
uint64_t devices_host_bytes(void);
/* Sets the gauges of device memory. */
void devices_refresh_metrics(void);
/* Ends the probe if it still runs, closes all devices. No model may be loaded any more. */
void devices_stop(void);

#endif

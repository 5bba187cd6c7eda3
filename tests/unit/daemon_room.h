/*
 * daemon_room.h - for tests of the daemon's rooms: a registry over a directory of generated models, on the scalar CPU, in this
 * process.
 *
 * A program that uses it calls daemon_room_main first in main: the device probe runs this same program with --probe-devices.
 */
#ifndef SHIMMY_TESTS_DAEMON_ROOM_H
#define SHIMMY_TESTS_DAEMON_ROOM_H

#include "daemon/config.h"
#include "daemon/models.h"

/* True: this is the probe's child, *status is what to return. */
bool daemon_room_main(int argc, char **argv, int *status);

/* A new directory in the scratch folder; lent until the process ends. */
const char *room_directory(const char *name);
/* A small llama in it, seeded by its name; the same file for the same name, context 256. */
void room_model(const char *directory, const char *file, uint32_t layers, const char *general_name);

/* Flags as shimmyd takes them, NULL-terminated; fails the running test if they are refused. Before them stand such as keep the machine's own
 * models and caches out. */
struct config *room_config(const char *first, ...);
/* Devices and models over config, which stays the caller's. */
void room_start(struct config *config);
void room_stop(void);

/* Loads by name and waits; fails the running test on an error. A reference. */
struct model *room_load(const char *name);
enum model_state room_state(const char *name);
/* Waits at most 5 s until a model is in a state. */
bool room_wait_state(const char *name, enum model_state state);

#endif

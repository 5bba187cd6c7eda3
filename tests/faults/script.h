/*
 * script.h - the script of faults that a test writes and a fault library reads before each call that it watches.
 *
 * A line is a rule: CALL SKIP COUNT WHAT [IGNORED]: the first SKIP calls pass, the next COUNT (0: all) get WHAT. The script is read
 * anew at every call, so a fault begins when its file appears and ends when it goes; a changed text starts the counts again. Each
 * fault is told in SCRIPT.hits, a line each, so that a test knows that it happened.
 *
 * No function allocates: one of the users replaces malloc. Thread-safety: all functions, any thread.
 */
#ifndef SHIMMY_TESTS_FAULTS_SCRIPT_H
#define SHIMMY_TESTS_FAULTS_SCRIPT_H

#include <stdbool.h>
#include <stddef.h>

/* True: this call is to get `what`. `file` is the script's path or NULL. */
bool fault_due(const char *file, const char *call, char *what, size_t size);
/* Whether the script still has a rule of this call and this fault, whatever the counts. */
bool fault_stands(const char *file, const char *call, const char *what);

#endif

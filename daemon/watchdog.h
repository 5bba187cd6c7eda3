/*
 * watchdog.h - notices what is stuck: a runner whose step does not end, on a device that hangs or in a driver that waits for ever; and the loader,
 * at a file on a disk that does not answer, or in a driver.
 *
 * A runner that has something to do and finishes no step within the limit (option watchdog_timeout) is stuck; once it has shown what its steps take,
 * already within a hundred times the longest of them, but not before WATCHDOG_LEAST_NS. What it was doing is logged, its clients
 * get an error, new requests for its model are refused with the reason, /health and Status tell it, and systemd is not told any more that all is
 * well. Nothing can be done for the step itself: its memory is the device's. When it ends after all, the model serves on.
 *
 * The loader is stuck when nothing is heard of what it does for the whole limit: a load tells of itself with each piece of the weights. Then all who
 * wait for a load are ended with the reason and new ones refused, since one thread loads; models that are loaded serve on. When it goes on after all,
 * the load that nobody waits for any more stops.
 *
 * Thread-safety: one thread at a time.
 */
#ifndef SHIMMYD_WATCHDOG_H
#define SHIMMYD_WATCHDOG_H

#include <stdint.h>

#define WATCHDOG_LEAST_NS 30000000000ull

/* How often to look, for a limit. */
uint64_t watchdog_period_ns(uint64_t limit_ns);
/* Looks at all runners and the loader; how many are stuck. Time in which it was not called as often as it should counts for nobody: then this process stood
 * still, and not a runner. */
uint32_t watchdog_look(uint64_t limit_ns);

#endif

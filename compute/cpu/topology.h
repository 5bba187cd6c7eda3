/*
 * topology.h - what of this machine the process may use: logical CPUs, physical cores, memory nodes, and a share of time. From
 * the files in which the kernel tells it; every function takes the folder to look in, so that made-up trees show what it makes of
 * machines that are not at hand.
 *
 * Thread-safety: pure but for the files they read.
 */
#ifndef SHIMMY_CPU_TOPOLOGY_H
#define SHIMMY_CPU_TOPOLOGY_H

#include "compute/base.h"

#define SH_TOPOLOGY_MAX_CPUS 8192u /* beyond what any kernel is built for */
#define SH_TOPOLOGY_MAX_NODES 64u  /* those with higher numbers are left out */

struct sh_cpu_set {
    uint64_t bits[SH_TOPOLOGY_MAX_CPUS / 64];
};
static inline bool sh_cpu_set_has(const struct sh_cpu_set *set, uint32_t cpu) {
    return cpu < SH_TOPOLOGY_MAX_CPUS && (set->bits[cpu / 64] >> (cpu % 64) & 1);
}

/* A list as the kernel writes them, "0-3,8,10-11\n"; what is beyond the set's size, or no list, is left out. */
void sh_cpu_set_parse(const char *list, struct sh_cpu_set *out);

struct sh_topology {
    uint32_t n_cpus;       /* logical CPUs that may be used */
    uint32_t n_cores;      /* physical cores with at least one of them; where siblings are not told each CPU is one */
    uint64_t memory_nodes; /* bit n: node n has memory; 0: the kernel does not tell of nodes */
};
/* `sys`: "/sys". `allowed`: the CPUs that this process may run on. */
void sh_topology_read(const char *sys, const struct sh_cpu_set *allowed, struct sh_topology *out);

/* How many CPUs' worth of time the control groups of a process leave it, rounded up: the least of its group's and those above;
 * UINT32_MAX: no limit. `groups`: "/proc/self/cgroup"; `root`: "/sys/fs/cgroup". */
uint32_t sh_topology_quota(const char *groups, const char *root);

/* This process: threads that compute at the same time without being in each other's way, one for each physical core that it may
 * run on, and no more than its groups' quota; 1..most. */
uint32_t sh_topology_threads(uint32_t most);

/* Those of the nodes in the mask that have a CPU of the set: not a graphics card's memory or another slow kind, which are nodes without
 * CPUs, nor nodes far from all CPUs that the process may run on. A node whose CPUs the kernel does not tell stays. */
uint64_t sh_topology_near(const char *sys, const struct sh_cpu_set *allowed, uint64_t nodes);

/* The nodes among which memory that all threads read is to be spread, as a mask; 0: leave it where it comes. So where there is
 * one node, and where whoever started the process has chosen (numactl). */
uint64_t sh_topology_spread(const struct sh_topology *topology, uint64_t nodes_allowed, bool policy_is_default);
/* That of this process. */
uint64_t sh_topology_spread_here(void);
/* Asks the kernel to spread the pages of a mapping that are not there yet over the nodes of the mask, in turn. False where it
 * refuses: a hint, without which only speed differs. */
bool sh_topology_interleave(void *data, uint64_t bytes, uint64_t nodes);

#endif

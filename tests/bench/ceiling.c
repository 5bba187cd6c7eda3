/*
 * ceiling: what the CPUs of this machine can do at most, on one thread per physical core (or --threads N): read, and multiply.
 * What a decode step can reach at most is the read rate divided by the weight bytes that it reads. Prints one line per kernel
 * (lib/ceilings.h) and the best of each kind: name, tab, 10^9 bytes or multiply-adds a second.
 */
#include "tests/bench/lib/ceilings.h"

#include "compute/cpu/pool.h"
#include "compute/cpu/topology.h"

#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    uint32_t threads = sh_topology_threads(SH_POOL_MAX_WORKERS);
    if (argc == 3 && strcmp(argv[1], "--threads") == 0) threads = (uint32_t)atoi(argv[2]);
    else if (argc != 1) return fputs("usage: ceiling [--threads N]\n", stderr), 2;
    struct sh_error err = {0};
    struct ceiling ceilings[CEILINGS_MAX];
    uint32_t n = 0;
    if (ceilings_measure(threads, ~0u, ceilings, &n, &err) != SH_OK) return fprintf(stderr, "ceiling: %s\n", err.message), 1;
    for (uint32_t i = 0; i < n; i++) printf("%s\t%.1f\n", ceilings[i].name, ceilings[i].rate);
    printf("ceiling\t%.1f\n", ceilings_best(ceilings, n, CEILING_READ, NULL));
    printf("float_products\t%.1f\n", ceilings_best(ceilings, n, CEILING_FLOAT, NULL));
    printf("int8_products\t%.1f\n", ceilings_best(ceilings, n, CEILING_INT8, NULL));
    return 0;
}

/*
 * ceilings.h - what this machine's CPUs can do at most, measured: bytes read a second, and multiply-adds a second, each with
 * several ways of doing it of which those run that the CPU has. What a step is held against.
 *
 * Read kernels sum a buffer far beyond the caches. Product kernels keep everything in registers: float chains of fused
 * multiply-adds, and 8-bit products into 32-bit (or, as AVX2 has it, 16-bit) sums. All threads work at once; the best of
 * several rounds counts.
 */
#ifndef SHIMMY_BENCH_CEILINGS_H
#define SHIMMY_BENCH_CEILINGS_H

#include "compute/base.h"

enum ceiling_kind { CEILING_READ /* 10^9 bytes/s */, CEILING_FLOAT /* 10^9 multiply-adds/s */, CEILING_INT8 /* the same */ };

struct ceiling {
    enum ceiling_kind kind;
    const char *name; /* "avx2_prefetch_4k", "fma_avx512", "int8_avx512" */
    const char *tier; /* the kernel table of the CPU executor that computes this way, and those after it in speed; "": any */
    double rate;
};
#define CEILINGS_MAX 16

/* Measures those of the kinds asked for (bit 1 << kind); *count of them. SH_ERR_NO_MEMORY. */
enum sh_code ceilings_measure(uint32_t threads, uint32_t kinds, struct ceiling out[CEILINGS_MAX], uint32_t *count,
                              struct sh_error *err);

/* The best of a kind; tier: of those that a kernel table of that name can use, NULL: of all. 0: there is none. */
double ceilings_best(const struct ceiling *ceilings, uint32_t count, enum ceiling_kind kind, const char *tier);

#endif

/*
 * ceiling: the read bandwidth of this machine: the best of several kernels that sum a buffer, on one thread per physical core (or
 * --threads N). What a decode step can reach at most is this divided by the weight bytes that it reads. Prints one line per
 * kernel and the best: name, tab, GB/s.
 */
#include "compute/cpu/pool.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define BYTES (UINT64_C(512) << 20) /* beyond any cache but the largest servers' */
#define ROUNDS 5

typedef uint64_t read_fn(const uint8_t *at, uint64_t bytes);

static uint64_t read_words(const uint8_t *at, uint64_t bytes) {
    uint64_t sum[4] = {0};
    for (uint64_t i = 0; i < bytes; i += 32)
        for (int j = 0; j < 4; j++) {
            uint64_t w;
            memcpy(&w, at + i + 8 * j, sizeof w);
            sum[j] += w;
        }
    return sum[0] + sum[1] + sum[2] + sum[3];
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static inline uint64_t read_avx2_ahead(const uint8_t *at, uint64_t bytes, uint64_t ahead) {
    __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (uint64_t i = 0; i < bytes; i += 128) {
        if (ahead > 0) {
            _mm_prefetch((const char *)at + i + ahead, _MM_HINT_T0);
            _mm_prefetch((const char *)at + i + ahead + 64, _MM_HINT_T0);
        }
        for (int j = 0; j < 4; j++) sum[j] = _mm256_add_epi64(sum[j], _mm256_loadu_si256((const void *)(at + i + 32 * j)));
    }
    uint64_t words[4];
    _mm256_storeu_si256((void *)words, _mm256_add_epi64(_mm256_add_epi64(sum[0], sum[1]), _mm256_add_epi64(sum[2], sum[3])));
    return words[0] + words[1] + words[2] + words[3];
}
__attribute__((target("avx2"))) static uint64_t read_avx2(const uint8_t *at, uint64_t bytes) {
    return read_avx2_ahead(at, bytes, 0);
}
__attribute__((target("avx2"))) static uint64_t read_avx2_near(const uint8_t *at, uint64_t bytes) {
    return read_avx2_ahead(at, bytes, 1024);
}
__attribute__((target("avx2"))) static uint64_t read_avx2_far(const uint8_t *at, uint64_t bytes) {
    return read_avx2_ahead(at, bytes, 4096);
}
#endif

struct job {
    read_fn *fn;
    const uint8_t *data;
    uint64_t sums[SH_POOL_MAX_WORKERS]; /* so that the reads are not optimised away */
};

#define CHUNK (UINT64_C(1) << 20)
static void work(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    struct job *job = arg;
    job->sums[worker] += job->fn(job->data + begin * CHUNK, (end - begin) * CHUNK);
}

int main(int argc, char **argv) {
    uint32_t threads = sh_pool_physical_cores();
    if (argc == 3 && strcmp(argv[1], "--threads") == 0) threads = (uint32_t)atoi(argv[2]);
    else if (argc != 1) return fputs("usage: ceiling [--threads N]\n", stderr), 2;
    struct sh_error err = {0};
    struct sh_pool *pool;
    if (sh_pool_acquire(threads, &pool, &err) != SH_OK) return fprintf(stderr, "ceiling: %s\n", err.message), 1;
    uint8_t *data = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return fputs("ceiling: no memory\n", stderr), 1;
    madvise(data, BYTES, MADV_HUGEPAGE);
    memset(data, 1, BYTES);
    struct {
        const char *name;
        read_fn *fn;
        bool usable;
    } const kernels[] = {
        {"words", read_words, true},
#if defined(__x86_64__)
        {"avx2", read_avx2, __builtin_cpu_supports("avx2")},
        {"avx2_prefetch_1k", read_avx2_near, __builtin_cpu_supports("avx2")},
        {"avx2_prefetch_4k", read_avx2_far, __builtin_cpu_supports("avx2")},
#endif
    };
    double best = 0;
    uint64_t check = 0;
    sh_pool_enter(pool, SH_POOL_STEP);
    for (size_t k = 0; k < SH_COUNT(kernels); k++) {
        if (!kernels[k].usable) continue;
        double top = 0;
        for (int round = 0; round < ROUNDS; round++) {
            struct job job = {.fn = kernels[k].fn, .data = data};
            const uint64_t begin = sh_now_ns();
            sh_pool_run(pool, threads, BYTES / CHUNK, 4, work, &job);
            const double rate = (double)BYTES / (double)(sh_now_ns() - begin);
            for (uint32_t w = 0; w < threads; w++) check += job.sums[w];
            if (rate > top) top = rate;
        }
        printf("%s\t%.1f\n", kernels[k].name, top);
        if (top > best) best = top;
    }
    sh_pool_leave(pool);
    sh_pool_release(pool);
    munmap(data, BYTES);
    printf("ceiling\t%.1f\n", best);
    return check == 0; /* the buffer is not zero */
}

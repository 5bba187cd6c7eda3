#include "tests/bench/lib/ceilings.h"

#include "compute/cpu/pool.h"

#include <sys/mman.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define BYTES (UINT64_C(512) << 20) /* beyond any cache but the largest servers' */
#define CHUNK (UINT64_C(1) << 20)
#define READ_ROUNDS 5
#define PRODUCT_ROUNDS 5
#define LOOPS 1000000u /* of a product kernel: some milliseconds */

/* ---- reading ---- */

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

/* ---- multiplying: each returns the multiply-adds that it made ---- */

typedef uint64_t product_fn(uint32_t loops);

#if defined(__x86_64__)
#define TARGET(set) __attribute__((target(set)))

TARGET("avx2") static inline uint64_t read_avx2_ahead(const uint8_t *at, uint64_t bytes, uint64_t ahead) {
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
TARGET("avx2") static uint64_t read_avx2(const uint8_t *at, uint64_t bytes) { return read_avx2_ahead(at, bytes, 0); }
TARGET("avx2") static uint64_t read_avx2_near(const uint8_t *at, uint64_t bytes) { return read_avx2_ahead(at, bytes, 1024); }
TARGET("avx2") static uint64_t read_avx2_far(const uint8_t *at, uint64_t bytes) { return read_avx2_ahead(at, bytes, 4096); }

TARGET("avx512f") static uint64_t read_avx512_far(const uint8_t *at, uint64_t bytes) {
    __m512i sum[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
    for (uint64_t i = 0; i < bytes; i += 256)
        for (int j = 0; j < 4; j++) {
            _mm_prefetch((const char *)at + i + 64 * j + 4096, _MM_HINT_T0);
            sum[j] = _mm512_add_epi64(sum[j], _mm512_loadu_si512(at + i + 64 * j));
        }
    return (uint64_t)_mm512_reduce_add_epi64(
        _mm512_add_epi64(_mm512_add_epi64(sum[0], sum[1]), _mm512_add_epi64(sum[2], sum[3])));
}

/*
 * Twelve chains: two units, results after four or five cycles. The empty assembler statements keep the compiler from seeing
 * that the operands stay the same, and that nobody wants the sum.
 */
#define CHAINS 12
#define KERNEL(name, set, vector, zero, start, operation, sum, per_loop)                                                         \
    TARGET(set) static uint64_t name(uint32_t loops) {                                                                           \
        vector acc[CHAINS], x = start;                                                                                           \
        _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++) acc[i] = zero;                                                 \
        for (uint32_t l = 0; l < loops; l++) {                                                                                   \
            __asm__ volatile("" : "+v"(x));                                                                                      \
            _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++) acc[i] = operation;                                        \
        }                                                                                                                        \
        _Pragma("GCC unroll 12") for (int i = 1; i < CHAINS; i++) acc[0] = sum;                                                  \
        __asm__ volatile("" : : "v"(acc[0]));                                                                                    \
        return (uint64_t)loops * CHAINS * (per_loop);                                                                            \
    }

KERNEL(fma_avx2, "avx2,fma", __m256, _mm256_setzero_ps(), _mm256_set1_ps(0.5f), _mm256_fmadd_ps(x, x, acc[i]),
       _mm256_add_ps(acc[0], acc[i]), 8)
KERNEL(fma_avx512, "avx512f", __m512, _mm512_setzero_ps(), _mm512_set1_ps(0.5f), _mm512_fmadd_ps(x, x, acc[i]),
       _mm512_add_ps(acc[0], acc[i]), 16)
KERNEL(int8_avx2, "avx2", __m256i, _mm256_setzero_si256(), _mm256_set1_epi8(1),
       _mm256_add_epi16(acc[i], _mm256_maddubs_epi16(x, acc[i])), _mm256_add_epi16(acc[0], acc[i]), 32)
KERNEL(int8_avxvnni, "avx2,avxvnni", __m256i, _mm256_setzero_si256(), _mm256_set1_epi8(1), _mm256_dpbusd_avx_epi32(acc[i], x, x),
       _mm256_add_epi32(acc[0], acc[i]), 32)
KERNEL(int8_avx512, "avx512f,avx512vnni", __m512i, _mm512_setzero_si512(), _mm512_set1_epi8(1), _mm512_dpbusd_epi32(acc[i], x, x),
       _mm512_add_epi32(acc[0], acc[i]), 64)
#else
static uint64_t fma_scalar(uint32_t loops) {
    float acc[16] = {0}, x = 0.5f;
    for (uint32_t l = 0; l < loops; l++) {
        __asm__ volatile("" : "+m"(x));
        for (int i = 0; i < 16; i++) acc[i] += x * x;
    }
    for (int i = 1; i < 16; i++) acc[0] += acc[i];
    __asm__ volatile("" : : "m"(acc));
    return (uint64_t)loops * 16;
}
#endif

/* ---- measuring ---- */

/* __builtin_cpu_supports of gcc 12 does not know AVX-VNNI. */
static bool has_avxvnni(void) {
#if defined(__x86_64__)
    uint32_t a = 7, b, c = 1, d;
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return __builtin_cpu_supports("avx2") && (a & 1u << 4) != 0;
#else
    return false;
#endif
}

struct job {
    read_fn *read;
    product_fn *product;
    const uint8_t *data;
    uint64_t done[SH_POOL_MAX_WORKERS]; /* sums that were read, so that the reads are not optimised away; or multiply-adds */
};
static void read_part(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    struct job *job = arg;
    job->done[worker] += job->read(job->data + begin * CHUNK, (end - begin) * CHUNK);
}
static void multiply(void *arg, uint32_t worker, uint64_t begin, uint64_t end) {
    struct job *job = arg;
    for (; begin < end; begin++) job->done[worker] += job->product(LOOPS);
}

static double read_rate(struct sh_pool *pool, uint32_t threads, read_fn *fn, const uint8_t *data) {
    double best = 0;
    for (int round = 0; round < READ_ROUNDS; round++) {
        struct job job = {.read = fn, .data = data};
        const uint64_t begin = sh_now_ns();
        sh_pool_run(pool, threads, BYTES / CHUNK, 4, read_part, &job);
        const double rate = (double)BYTES / (double)(sh_now_ns() - begin);
        if (rate > best) best = rate;
    }
    return best;
}

static double product_rate(struct sh_pool *pool, uint32_t threads, product_fn *fn) {
    double best = 0;
    for (int round = 0; round < PRODUCT_ROUNDS; round++) {
        struct job job = {.product = fn};
        const uint64_t begin = sh_now_ns();
        sh_pool_run(pool, threads, threads * 8ull, 1, multiply, &job);
        const double seconds = (double)(sh_now_ns() - begin);
        uint64_t macs = 0;
        for (uint32_t w = 0; w < threads; w++) macs += job.done[w];
        if ((double)macs / seconds > best) best = (double)macs / seconds;
    }
    return best;
}

enum sh_code ceilings_measure(uint32_t threads, uint32_t kinds, struct ceiling out[CEILINGS_MAX], uint32_t *count,
                              struct sh_error *err) {
    const struct {
        enum ceiling_kind kind;
        const char *name, *tier;
        read_fn *read;
        product_fn *product;
        bool usable;
    } all[] = {
        {CEILING_READ, "words", "", read_words, NULL, true},
#if defined(__x86_64__)
        {CEILING_READ, "avx2", "", read_avx2, NULL, __builtin_cpu_supports("avx2")},
        {CEILING_READ, "avx2_prefetch_1k", "", read_avx2_near, NULL, __builtin_cpu_supports("avx2")},
        {CEILING_READ, "avx2_prefetch_4k", "", read_avx2_far, NULL, __builtin_cpu_supports("avx2")},
        {CEILING_READ, "avx512_prefetch_4k", "", read_avx512_far, NULL, __builtin_cpu_supports("avx512f")},
        {CEILING_FLOAT, "fma_avx2", "avx2", NULL, fma_avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
        {CEILING_FLOAT, "fma_avx512", "avx512", NULL, fma_avx512, __builtin_cpu_supports("avx512f")},
        {CEILING_INT8, "int8_avx2", "avx2", NULL, int8_avx2, __builtin_cpu_supports("avx2")},
        {CEILING_INT8, "int8_avxvnni", "avxvnni", NULL, int8_avxvnni, has_avxvnni()},
        {CEILING_INT8, "int8_avx512", "avx512", NULL, int8_avx512, __builtin_cpu_supports("avx512vnni")},
#else
        {CEILING_FLOAT, "fma", "", NULL, fma_scalar, true},
#endif
    };
    _Static_assert(SH_COUNT(all) <= CEILINGS_MAX, "room for all");
    *count = 0;
    struct sh_pool *pool;
    const enum sh_code code = sh_pool_acquire(threads, &pool, err);
    if (code != SH_OK) return code;
    uint8_t *data = MAP_FAILED;
    if (kinds & 1u << CEILING_READ) {
        data = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (data == MAP_FAILED) {
            sh_pool_release(pool);
            return sh_fail(err, SH_ERR_NO_MEMORY, "no memory to read");
        }
        madvise(data, BYTES, MADV_HUGEPAGE);
        memset(data, 1, BYTES);
    }
    sh_pool_enter(pool, SH_POOL_STEP);
    for (size_t i = 0; i < SH_COUNT(all); i++) {
        if (!all[i].usable || !(kinds & 1u << all[i].kind)) continue;
        out[(*count)++] = (struct ceiling){.kind = all[i].kind,
                                           .name = all[i].name,
                                           .tier = all[i].tier,
                                           .rate = all[i].read != NULL ? read_rate(pool, threads, all[i].read, data)
                                                                       : product_rate(pool, threads, all[i].product)};
    }
    sh_pool_leave(pool);
    sh_pool_release(pool);
    if (data != MAP_FAILED) munmap(data, BYTES);
    return SH_OK;
}

/* Tables in the order of their instruction sets: each can do what those before it do. */
static int rank(const char *tier) {
    static const char *const order[] = {"", "scalar", "avx2", "avxvnni", "avx512"};
    for (int i = 0; i < (int)SH_COUNT(order); i++)
        if (strcmp(order[i], tier) == 0) return i;
    return (int)SH_COUNT(order);
}

double ceilings_best(const struct ceiling *ceilings, uint32_t count, enum ceiling_kind kind, const char *tier) {
    double best = 0;
    for (uint32_t i = 0; i < count; i++)
        if (ceilings[i].kind == kind && (tier == NULL || rank(ceilings[i].tier) <= rank(tier)) && ceilings[i].rate > best)
            best = ceilings[i].rate;
    return best;
}

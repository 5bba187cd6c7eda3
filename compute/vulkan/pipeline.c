/*
 * pipeline.c - the device's compute pipelines, made when first asked for or many at once by several threads, and their cache on disk.
 *
 * A driver's compiler takes milliseconds to a second for a kernel and works on one core, so what a context will need is made by as many
 * threads as there are cores. The lock is not held meanwhile: a kernel in the making is marked, and who wants the same one waits for it.
 * The driver's cache object locks inside (it is not created as externally synchronised).
 *
 * The cache file is <cache_dir>/pipelines-<driver UUID>-<hash of all SPIR-V>.bin: a header of ours with the length and a hash of
 * the rest, because a driver may trust what it is given, then the driver's data. It is replaced by rename, so readers see a whole
 * one.
 */
#include "compute/vulkan/shapes.h"

#include "compute/glsl/params.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define CACHE_MAGIC 0x31434b56u /* "VKC1" */
#define CACHE_MAX_BYTES (64u << 20)
#define MAX_THREADS 16u /* of one call; a driver that has threads of its own gains nothing from more */

struct sh_vk_pipelines {
    pthread_mutex_t lock; /* of made, making, n_made, n_saved */
    pthread_cond_t changed;
    VkPipelineLayout layout;
    VkPipelineCache cache;
    char path[512]; /* "" without a cache directory */
    VkPipeline made[SH_KERNEL_COUNT];
    bool making[SH_KERNEL_COUNT];
    _Atomic uint8_t shape[SH_KERNEL_COUNT]; /* which of its shapes a kernel has */
    uint32_t n_made, n_saved;
};

struct cache_header {
    uint32_t magic, bytes;
    uint64_t hash;
};

static uint64_t fnv1a(uint64_t hash, const void *data, size_t bytes) {
    const uint8_t *p = data;
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ p[i]) * 0x100000001b3ull;
    return hash;
}
#define FNV_START 0xcbf29ce484222325ull

static void cache_path(struct sh_vulkan *vk, const char *dir, char *path, size_t cap) {
    VkPhysicalDeviceIDProperties id = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ID_PROPERTIES};
    VkPhysicalDeviceProperties2 properties = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, .pNext = &id};
    vk->instance.GetPhysicalDeviceProperties2(vk->physical, &properties);
    uint64_t hash = fnv1a(FNV_START, id.deviceUUID, sizeof id.deviceUUID);
    for (uint32_t k = 0; k < SH_KERNEL_COUNT; k++) hash = fnv1a(hash, sh_kernel_codes[k].packed, sh_kernel_codes[k].packed_bytes);
    char uuid[33];
    for (int i = 0; i < 16; i++) snprintf(uuid + 2 * i, 3, "%02x", id.driverUUID[i]);
    const int n = snprintf(path, cap, "%s/pipelines-%s-%016llx.bin", dir, uuid, (unsigned long long)hash);
    if (n < 0 || (size_t)n >= cap - 8) path[0] = 0; /* room for ".tmp" */
}

/* The driver's data of a sound cache file, malloc'd; NULL where there is none. */
static void *read_cache(const char *path, size_t *bytes) {
    *bytes = 0;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return NULL;
    struct cache_header header;
    void *data = NULL;
    if (read(fd, &header, sizeof header) == (ssize_t)sizeof header && header.magic == CACHE_MAGIC && header.bytes > 0 &&
        header.bytes <= CACHE_MAX_BYTES)
        data = malloc(header.bytes);
    if (data && (read(fd, data, header.bytes) != (ssize_t)header.bytes || fnv1a(FNV_START, data, header.bytes) != header.hash)) {
        sh_log(SH_LOG_NOTICE, "%s is damaged; pipelines are compiled anew", path);
        free(data);
        data = NULL;
    }
    close(fd);
    if (data) *bytes = header.bytes;
    return data;
}

enum sh_code sh_vk_pipelines_create(struct sh_vulkan *vk, const char *cache_dir, struct sh_vk_pipelines **out,
                                    struct sh_error *err) {
    struct sh_vk_pipelines *p = calloc(1, sizeof *p);
    *out = p;
    if (!p) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for pipelines");
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, NULL);
    for (uint32_t k = 0; k < SH_KERNEL_COUNT; k++) atomic_init(&p->shape[k], (uint8_t)sh_vk_shape_of_table(vk, k));
    const VkPushConstantRange range = {.stageFlags = VK_SHADER_STAGE_COMPUTE_BIT, .size = 128};
    const VkPipelineLayoutCreateInfo layout = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO, .pushConstantRangeCount = 1, .pPushConstantRanges = &range};
    VkResult result = vk->CreatePipelineLayout(vk->device, &layout, NULL, &p->layout);
    if (result != VK_SUCCESS) {
        p->layout = VK_NULL_HANDLE;
        return sh_vk_fail(vk, result, "vkCreatePipelineLayout", err);
    }
    size_t bytes = 0;
    void *data = NULL;
    if (cache_dir) {
        cache_path(vk, cache_dir, p->path, sizeof p->path);
        data = p->path[0] ? read_cache(p->path, &bytes) : NULL;
    }
    const VkPipelineCacheCreateInfo cache = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO, .initialDataSize = bytes, .pInitialData = data};
    result = vk->CreatePipelineCache(vk->device, &cache, NULL, &p->cache);
    free(data);
    if (result != VK_SUCCESS) {
        p->cache = VK_NULL_HANDLE;
        return sh_vk_fail(vk, result, "vkCreatePipelineCache", err);
    }
    return SH_OK;
}

void sh_vk_pipelines_save(struct sh_vulkan *vk) {
    struct sh_vk_pipelines *p = vk->pipelines;
    if (!p->path[0]) return;
    pthread_mutex_lock(&p->lock);
    size_t bytes = 0;
    uint8_t *data = NULL;
    if (p->n_saved == p->n_made || vk->GetPipelineCacheData(vk->device, p->cache, &bytes, NULL) != VK_SUCCESS || bytes == 0 ||
        bytes > CACHE_MAX_BYTES || !(data = malloc(bytes)) ||
        vk->GetPipelineCacheData(vk->device, p->cache, &bytes, data) != VK_SUCCESS)
        goto done;
    char tmp[sizeof p->path + 8];
    snprintf(tmp, sizeof tmp, "%s.tmp", p->path);
    const struct cache_header header = {CACHE_MAGIC, (uint32_t)bytes, fnv1a(FNV_START, data, bytes)};
    const int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool ok = fd >= 0 && write(fd, &header, sizeof header) == (ssize_t)sizeof header && write(fd, data, bytes) == (ssize_t)bytes;
    if (fd >= 0 && close(fd) != 0) ok = false;
    if (ok && rename(tmp, p->path) == 0) {
        p->n_saved = p->n_made;
    } else {
        sh_log(SH_LOG_NOTICE, "%s: the pipeline cache cannot be written: %s", p->path, strerror(errno));
        unlink(tmp);
    }
done:
    free(data);
    pthread_mutex_unlock(&p->lock);
}

void sh_vk_pipelines_destroy(struct sh_vulkan *vk) {
    struct sh_vk_pipelines *p = vk->pipelines;
    if (!p) return;
    for (uint32_t k = 0; k < SH_KERNEL_COUNT; k++)
        if (p->made[k]) vk->DestroyPipeline(vk->device, p->made[k], NULL);
    if (p->cache) vk->DestroyPipelineCache(vk->device, p->cache, NULL);
    if (p->layout) vk->DestroyPipelineLayout(vk->device, p->layout, NULL);
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->lock);
    free(p);
    vk->pipelines = NULL;
}

uint32_t sh_vk_pipelines_made_for_test(struct sh_vulkan *vk) {
    pthread_mutex_lock(&vk->pipelines->lock);
    const uint32_t n = vk->pipelines->n_made;
    pthread_mutex_unlock(&vk->pipelines->lock);
    return n;
}

VkPipelineLayout sh_vk_pipeline_layout(const struct sh_vulkan *vk) { return vk->pipelines->layout; }

const struct sh_vk_shape *sh_vk_shape(const struct sh_vulkan *vk, uint32_t kernel) {
    uint32_t n;
    const struct sh_vk_shape *shapes = sh_vk_shapes(kernel, &n);
    const uint32_t i = atomic_load(&vk->pipelines->shape[kernel]);
    SH_ASSERT(i < n);
    return &shapes[i];
}

void sh_vk_shapes_for_test(struct sh_vulkan *vk, uint32_t index) {
    for (uint32_t k = 0; k < SH_KERNEL_COUNT; k++) {
        uint32_t n;
        if (sh_vk_shapes(k, &n)) atomic_store(&vk->pipelines->shape[k], (uint8_t)sh_min_u64(index, n - 1));
    }
}

/* What kernels are specialised by: those of coop.comp, then SH_SPEC_*; a kernel takes those that it has. */
struct constants {
    struct sh_vk_coop coop;
    uint32_t threads, across;
};

static enum sh_code compile(struct sh_vulkan *vk, uint32_t kernel, const struct sh_vk_shape *shape, VkPipeline *out,
                            struct sh_error *err) {
    const struct sh_kernel_code *code = &sh_kernel_codes[kernel];
    uint32_t *words = sh_kernel_words(code);
    if (!words) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the kernel %s", code->name);
    const VkShaderModuleCreateInfo create = {
        .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO, .codeSize = code->bytes, .pCode = words};
    VkShaderModule module;
    VkResult result = vk->CreateShaderModule(vk->device, &create, NULL, &module);
    free(words);
    if (result != VK_SUCCESS) return sh_vk_fail(vk, result, code->name, err);
    static const VkSpecializationMapEntry entries[] = {{SH_SPEC_THREADS, offsetof(struct constants, threads), 4},
                                                       {SH_SPEC_ACROSS, offsetof(struct constants, across), 4},
                                                       {0, offsetof(struct constants, coop.m), 4},
                                                       {1, offsetof(struct constants, coop.n), 4},
                                                       {2, offsetof(struct constants, coop.k), 4}};
    const struct constants constants = {vk->coop, shape ? shape->threads : 0, shape ? shape->across : 0};
    const VkSpecializationInfo sizes = {.mapEntryCount = vk->tier == SH_TIER_COOPMAT ? 5 : 2,
                                        .pMapEntries = entries,
                                        .dataSize = sizeof constants,
                                        .pData = &constants};
    const VkComputePipelineCreateInfo pipeline = {
        .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
        .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                  .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                  .module = module,
                  .pName = "main",
                  .pSpecializationInfo = shape ? &sizes : NULL},
        .layout = vk->pipelines->layout,
    };
    result = vk->CreateComputePipelines(vk->device, vk->pipelines->cache, 1, &pipeline, NULL, out);
    vk->DestroyShaderModule(vk->device, module, NULL);
    if (result != VK_SUCCESS) {
        *out = VK_NULL_HANDLE;
        return sh_vk_fail(vk, result, code->name, err);
    }
    sh_vk_name(vk, VK_OBJECT_TYPE_PIPELINE, (uint64_t)(uintptr_t)*out, "%s", code->name);
    return SH_OK;
}

enum sh_code sh_vk_pipeline(struct sh_vulkan *vk, uint32_t kernel, VkPipeline *out, struct sh_error *err) {
    struct sh_vk_pipelines *p = vk->pipelines;
    enum sh_code code = SH_OK;
    pthread_mutex_lock(&p->lock);
    while (p->making[kernel]) pthread_cond_wait(&p->changed, &p->lock);
    if (!p->made[kernel]) {
        VkPipeline made;
        p->making[kernel] = true;
        pthread_mutex_unlock(&p->lock);
        uint32_t n;
        code = compile(vk, kernel, sh_vk_shapes(kernel, &n) ? sh_vk_shape(vk, kernel) : NULL, &made, err);
        pthread_mutex_lock(&p->lock);
        p->making[kernel] = false;
        if (code == SH_OK) {
            p->made[kernel] = made;
            p->n_made++;
        }
        pthread_cond_broadcast(&p->changed);
    }
    *out = p->made[kernel];
    pthread_mutex_unlock(&p->lock);
    return code;
}

/* ---- many at once ---- */

struct making {
    struct sh_vulkan *vk;
    uint32_t kernels[SH_KERNEL_COUNT], n;
    _Atomic uint32_t next;
    _Atomic bool failed;
    pthread_mutex_t lock; /* of code and err: the first failure's */
    enum sh_code code;
    struct sh_error *err;
};

static void *make_some(void *arg) {
    struct making *m = arg;
    while (!atomic_load(&m->failed)) {
        const uint32_t i = atomic_fetch_add(&m->next, 1);
        if (i >= m->n) break;
        VkPipeline made;
        struct sh_error err = {0};
        const enum sh_code code = sh_vk_pipeline(m->vk, m->kernels[i], &made, &err);
        if (code == SH_OK) continue;
        pthread_mutex_lock(&m->lock);
        if (!atomic_load(&m->failed)) {
            m->code = code;
            if (m->err) *m->err = err;
        }
        atomic_store(&m->failed, true);
        pthread_mutex_unlock(&m->lock);
    }
    return NULL;
}

enum sh_code sh_vk_pipelines_make(struct sh_vulkan *vk, const bool wanted[], struct sh_error *err) {
    struct sh_vk_pipelines *p = vk->pipelines;
    struct making m = {.vk = vk, .code = SH_OK, .err = err};
    pthread_mutex_lock(&p->lock);
    for (uint32_t k = 0; k < SH_KERNEL_COUNT; k++)
        if (wanted[k] && !p->made[k]) m.kernels[m.n++] = k;
    pthread_mutex_unlock(&p->lock);
    if (m.n == 0) return SH_OK;
    cpu_set_t cores;
    uint32_t n = sched_getaffinity(0, sizeof cores, &cores) == 0 ? (uint32_t)CPU_COUNT(&cores) : 1;
    n = (uint32_t)sh_min_u64(sh_min_u64(n, MAX_THREADS), m.n);
    pthread_t threads[MAX_THREADS];
    uint32_t started = 0;
    pthread_mutex_init(&m.lock, NULL);
    while (started + 1 < n && pthread_create(&threads[started], NULL, make_some, &m) == 0) started++;
    make_some(&m); /* this thread is one of them, and the only one where none can be started */
    for (uint32_t i = 0; i < started; i++) pthread_join(threads[i], NULL);
    pthread_mutex_destroy(&m.lock);
    return m.code;
}

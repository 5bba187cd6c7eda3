/*
 * pipeline.c - the device's compute pipelines, made when first asked for or many at once by several threads, and their cache on disk.
 *
 * A driver's compiler takes milliseconds to a second for a kernel and works on one core, so what a context will need is made by as many
 * threads as there are cores. The lock is not held meanwhile: a kernel in the making is marked, and who wants the same one waits for it.
 * The driver's cache object locks inside (it is not created as externally synchronised).
 *
 * The cache file <cache_dir>/pipelines-*.bin (cachefile.h) holds the driver's data.
 */
#include "compute/vulkan/cachefile.h"
#include "compute/vulkan/shapes.h"
#include "compute/vulkan/tune.h"

#include "compute/glsl/params.h"

#include <sched.h>
#include <stdlib.h>

#define CACHE_MAGIC 0x31434b56u /* "VKC1" */
#define MAX_THREADS 16u /* of one call; a driver that has threads of its own gains nothing from more */

struct sh_vk_pipelines {
    pthread_mutex_t lock; /* of made, making, n_made, n_saved */
    pthread_cond_t changed;
    VkPipelineLayout layout;
    VkPipelineCache cache;
    char path[SH_VK_CACHE_PATH]; /* "" without a cache directory */
    VkPipeline made[SH_KERNEL_COUNT];
    bool making[SH_KERNEL_COUNT];
    _Atomic uint8_t shape[SH_KERNEL_COUNT]; /* which of its shapes a kernel has */
    uint32_t n_made, n_saved;
};

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
        sh_vk_cache_path(vk, cache_dir, "pipelines", p->path);
        data = p->path[0] ? sh_vk_cache_read(p->path, CACHE_MAGIC, &bytes) : NULL;
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
    if (p->n_saved != p->n_made && vk->GetPipelineCacheData(vk->device, p->cache, &bytes, NULL) == VK_SUCCESS && bytes > 0 &&
        (data = malloc(bytes)) != NULL && vk->GetPipelineCacheData(vk->device, p->cache, &bytes, data) == VK_SUCCESS &&
        sh_vk_cache_write(p->path, CACHE_MAGIC, data, bytes))
        p->n_saved = p->n_made;
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

bool sh_vk_shape_set(struct sh_vulkan *vk, uint32_t kernel, uint32_t index) {
    struct sh_vk_pipelines *p = vk->pipelines;
    pthread_mutex_lock(&p->lock);
    const bool open = !p->made[kernel] && !p->making[kernel];
    if (open) atomic_store(&p->shape[kernel], (uint8_t)index);
    pthread_mutex_unlock(&p->lock);
    return open;
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

enum sh_code sh_vk_pipeline_in_shape(struct sh_vulkan *vk, uint32_t kernel, const struct sh_vk_shape *shape, VkPipeline *out,
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
        code = sh_vk_pipeline_in_shape(vk, kernel, sh_vk_shapes(kernel, &n) ? sh_vk_shape(vk, kernel) : NULL, &made, err);
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
    if (vk->tuner) sh_vk_tune(vk, wanted);
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

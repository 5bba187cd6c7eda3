/*
 * device.c - which Vulkan devices there are, which tiers they can run, and opening one.
 *
 * Needed: Vulkan 1.2, bufferDeviceAddress, timelineSemaphore, 8- and 16-bit storage, a compute queue, 128 bytes of push
 * constants, workgroups of 256, 18 KiB of shared memory. Anything missing makes the device unusable and is named in its reason.
 */
#include "compute/vulkan/exec.h"
#include "compute/vulkan/layouts.h"
#include "compute/vulkan/tune.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct probe { /* what one physical device told */
    struct sh_device_info info;
    VkPhysicalDeviceProperties properties;
    VkPhysicalDeviceMemoryProperties memory;
    uint64_t max_allocation_bytes;
    uint32_t subgroup_size;
    uint32_t queue_family;
    bool has_budget;
    bool has_dots; /* integer dot products of four signed bytes, whatever they cost */
    struct sh_vk_coop coop;
    enum sh_vk_tier tier; /* that the device gets unless another is asked for */
};

static const char *const tier_names[] = {[SH_TIER_BASE] = "base", [SH_TIER_INTDOT] = "intdot",
                                         [SH_TIER_COOPMAT] = "coopmat"};

static bool device_extension(const struct sh_vk_instance *in, VkPhysicalDevice physical, const char *name) {
    uint32_t n = 0;
    if (in->EnumerateDeviceExtensionProperties(physical, NULL, &n, NULL) != VK_SUCCESS || !n) return false;
    VkExtensionProperties *list = sh_calloc(n, sizeof *list);
    bool found = false;
    if (list && in->EnumerateDeviceExtensionProperties(physical, NULL, &n, list) >= 0)
        for (uint32_t i = 0; i < n; i++) found |= strcmp(list[i].extensionName, name) == 0;
    free(list);
    return found;
}

static enum sh_device_kind kind_of(VkPhysicalDeviceType type) {
    switch (type) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU: return SH_DEVICE_DISCRETE;
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU: return SH_DEVICE_INTEGRATED;
    case VK_PHYSICAL_DEVICE_TYPE_CPU: return SH_DEVICE_SOFTWARE;
    default: return SH_DEVICE_VIRTUAL;
    }
}

/* A compute queue; one without graphics if there is, so that a desktop's work and ours do not wait for each other. */
static bool find_queue(const struct sh_vk_instance *in, VkPhysicalDevice physical, uint32_t *family) {
    VkQueueFamilyProperties families[32];
    uint32_t n = SH_COUNT(families);
    in->GetPhysicalDeviceQueueFamilyProperties(physical, &n, families);
    bool found = false;
    for (uint32_t i = 0; i < n; i++) {
        if (!(families[i].queueFlags & VK_QUEUE_COMPUTE_BIT) || !families[i].queueCount) continue;
        bool alone = !(families[i].queueFlags & VK_QUEUE_GRAPHICS_BIT);
        if (found && !alone) continue;
        found = true;
        *family = i;
        if (alone) break;
    }
    return found;
}

static void missing(struct probe *p, const char *what) {
    size_t used = strlen(p->info.reason);
    snprintf(p->info.reason + used, sizeof p->info.reason - used, "%s%s", used ? ", " : "missing: ", what);
    p->info.usable = false;
}

/* Integer dot products: by default where they are the hardware's own, as they are not on a software device. There the products of eight-bit
 * numbers take a third of the instructions of float ones, and activations a quarter of the memory's bandwidth. */
static void probe_dots(const struct sh_vk_instance *in, VkPhysicalDevice physical, struct probe *p) {
    if (!device_extension(in, physical, VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME)) return;
    VkPhysicalDeviceShaderIntegerDotProductFeatures dots = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES};
    VkPhysicalDeviceFeatures2 features = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, .pNext = &dots};
    in->GetPhysicalDeviceFeatures2(physical, &features);
    VkPhysicalDeviceShaderIntegerDotProductProperties speed = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_PROPERTIES};
    VkPhysicalDeviceProperties2 properties = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, .pNext = &speed};
    in->GetPhysicalDeviceProperties2(physical, &properties);
    p->has_dots = dots.shaderIntegerDotProduct;
    if (p->has_dots && speed.integerDotProduct4x8BitPackedSignedAccelerated && p->info.kind != SH_DEVICE_SOFTWARE)
        p->tier = SH_TIER_INTDOT;
}

/* Is there a size of float32 sums as large as this one's? coop.comp scales in such matrices. */
static bool has_float_sums(const VkCooperativeMatrixPropertiesKHR *all, uint32_t n, const VkCooperativeMatrixPropertiesKHR *like) {
    for (uint32_t i = 0; i < n; i++)
        if (all[i].scope == VK_SCOPE_SUBGROUP_KHR && all[i].CType == VK_COMPONENT_TYPE_FLOAT32_KHR && all[i].MSize == like->MSize &&
            all[i].NSize == like->NSize)
            return true;
    return false;
}

/* Cooperative matrices of int8 in a size that coop.comp can use; the largest. Never a device's own tier: no GPU has been measured with it. */
static void probe_coop(const struct sh_vk_instance *in, VkPhysicalDevice physical, struct probe *p) {
    const PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR get = (PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR)
        in->GetInstanceProcAddr(in->handle, "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR");
    if (!p->has_dots || !p->subgroup_size || !get || !device_extension(in, physical, VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME)) return;
    VkPhysicalDeviceCooperativeMatrixFeaturesKHR coop = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR};
    VkPhysicalDeviceVulkan12Features v12 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES, .pNext = &coop};
    VkPhysicalDeviceFeatures2 features = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, .pNext = &v12};
    in->GetPhysicalDeviceFeatures2(physical, &features);
    /* glslang compiles GL_KHR_memory_scope_semantics to the Vulkan memory model, in workgroup scope. */
    if (!coop.cooperativeMatrix || !v12.shaderInt8 || !v12.vulkanMemoryModel) return;
    VkCooperativeMatrixPropertiesKHR sizes[64];
    uint32_t n = SH_COUNT(sizes);
    for (uint32_t i = 0; i < n; i++)
        sizes[i] = (VkCooperativeMatrixPropertiesKHR){.sType = VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR};
    if (get(physical, &n, sizes) < 0) return;
    for (uint32_t i = 0; i < n; i++) {
        const VkCooperativeMatrixPropertiesKHR *s = &sizes[i];
        if (s->scope != VK_SCOPE_SUBGROUP_KHR || s->AType != VK_COMPONENT_TYPE_SINT8_KHR || s->BType != VK_COMPONENT_TYPE_SINT8_KHR ||
            s->CType != VK_COMPONENT_TYPE_SINT32_KHR || s->ResultType != VK_COMPONENT_TYPE_SINT32_KHR || s->saturatingAccumulation ||
            !has_float_sums(sizes, n, s))
            continue;
        const bool fits = 64 % s->MSize == 0 && 64 % s->NSize == 0 && s->MSize * s->NSize <= 256 && 32 % s->KSize == 0 &&
                          64 / s->MSize * (64 / s->NSize) <= 4 * (256 / p->subgroup_size);
        if (fits && s->MSize * s->NSize * s->KSize > p->coop.m * p->coop.n * p->coop.k)
            p->coop = (struct sh_vk_coop){s->MSize, s->NSize, s->KSize};
    }
}

static void probe_device(const struct sh_vk_instance *in, VkPhysicalDevice physical, struct probe *p) {
    *p = (struct probe){0};
    in->GetPhysicalDeviceProperties(physical, &p->properties);
    p->info.usable = true;
    p->info.kind = kind_of(p->properties.deviceType);
    snprintf(p->info.name, sizeof p->info.name, "%s", p->properties.deviceName);
    snprintf(p->info.tier, sizeof p->info.tier, "base");
    bool current = p->properties.apiVersion >= VK_API_VERSION_1_2;
    if (!current) {
        char text[64];
        snprintf(text, sizeof text, "Vulkan 1.2 (the driver has %u.%u)", VK_API_VERSION_MAJOR(p->properties.apiVersion),
                 VK_API_VERSION_MINOR(p->properties.apiVersion));
        missing(p, text);
    }
    if (p->properties.apiVersion < VK_API_VERSION_1_1) return; /* the queries below would be invalid */

    VkPhysicalDeviceDriverProperties driver = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES};
    VkPhysicalDeviceSubgroupProperties subgroup = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES,
                                                   .pNext = current ? &driver : NULL};
    VkPhysicalDeviceMaintenance3Properties maintenance = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES,
                                                          .pNext = &subgroup};
    VkPhysicalDeviceIDProperties id = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ID_PROPERTIES, .pNext = &maintenance};
    VkPhysicalDeviceProperties2 properties = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, .pNext = &id};
    in->GetPhysicalDeviceProperties2(physical, &properties);
    memcpy(p->info.uuid, id.deviceUUID, sizeof p->info.uuid);
    p->subgroup_size = subgroup.subgroupSize;
    p->max_allocation_bytes = maintenance.maxMemoryAllocationSize;
    snprintf(p->info.driver, sizeof p->info.driver, "%.60s%s%.60s", driver.driverName, driver.driverInfo[0] ? " " : "",
             driver.driverInfo);

    p->has_budget = device_extension(in, physical, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME);
    VkPhysicalDeviceMemoryBudgetPropertiesEXT budget = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT};
    VkPhysicalDeviceMemoryProperties2 memory = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2,
                                                .pNext = p->has_budget ? &budget : NULL};
    in->GetPhysicalDeviceMemoryProperties2(physical, &memory);
    p->memory = memory.memoryProperties;
    for (uint32_t i = 0; i < p->memory.memoryHeapCount; i++) {
        if (!(p->memory.memoryHeaps[i].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) ||
            p->memory.memoryHeaps[i].size <= p->info.memory_bytes)
            continue;
        p->info.memory_bytes = p->memory.memoryHeaps[i].size;
        if (p->has_budget)
            p->info.free_bytes = budget.heapBudget[i] > budget.heapUsage[i] ? budget.heapBudget[i] - budget.heapUsage[i] : 0;
    }
    if (p->info.kind == SH_DEVICE_SOFTWARE) { /* its heap is a nominal size; what it really has is this machine's memory */
        uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
        p->info.memory_bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * page;
        p->info.free_bytes = (uint64_t)sysconf(_SC_AVPHYS_PAGES) * page;
    }
    if (!find_queue(in, physical, &p->queue_family)) missing(p, "a compute queue");
    if (!current) return;

    VkPhysicalDeviceVulkan12Features v12 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES};
    VkPhysicalDeviceVulkan11Features v11 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES, .pNext = &v12};
    VkPhysicalDeviceFeatures2 features = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, .pNext = &v11};
    in->GetPhysicalDeviceFeatures2(physical, &features);
    if (!v12.bufferDeviceAddress) missing(p, "bufferDeviceAddress");
    if (!v12.timelineSemaphore) missing(p, "timelineSemaphore");
    if (!v12.storageBuffer8BitAccess) missing(p, "storageBuffer8BitAccess");
    if (!v11.storageBuffer16BitAccess) missing(p, "storageBuffer16BitAccess");
    if (p->properties.limits.maxPushConstantsSize < 128) missing(p, "128 bytes of push constants");
    if (p->properties.limits.maxComputeWorkGroupInvocations < 256) missing(p, "workgroups of 256 invocations");
    if (p->properties.limits.maxComputeSharedMemorySize < 18432) missing(p, "18 KiB of shared memory");
    probe_dots(in, physical, p);
    probe_coop(in, physical, p);
    snprintf(p->info.tier, sizeof p->info.tier, "%s", tier_names[p->tier]);
}

enum sh_code sh_vulkan_enumerate(struct sh_device_info *infos, uint32_t max, uint32_t *count, struct sh_error *err) {
    struct sh_vk_instance in;
    struct sh_error why;
    enum sh_code code = sh_vk_instance_init(&in, false, &why);
    if (code != SH_OK) {
        sh_log(SH_LOG_INFO, "no Vulkan devices: %s", why.message);
        return SH_OK;
    }
    VkPhysicalDevice *devices;
    uint32_t n;
    code = sh_vk_physical_devices(&in, &devices, &n, err);
    if (code == SH_OK && !n) sh_log(SH_LOG_INFO, "no Vulkan devices: the installed drivers found none");
    for (uint32_t i = 0; code == SH_OK && i < n && *count < max; i++) {
        struct probe p;
        probe_device(&in, devices[i], &p);
        infos[(*count)++] = p.info;
    }
    free(devices);
    sh_vk_instance_finish(&in);
    return code;
}

enum sh_code sh_vk_fail(struct sh_vulkan *vk, VkResult result, const char *what, struct sh_error *err) {
    switch (result) {
    case VK_ERROR_OUT_OF_HOST_MEMORY: return sh_fail(err, SH_ERR_NO_MEMORY, "%s: %s: no host memory", vk->base.info.name, what);
    case VK_ERROR_OUT_OF_DEVICE_MEMORY:
        return sh_fail(err, SH_ERR_NO_DEVICE_MEMORY, "%s: %s: no device memory", vk->base.info.name, what);
    case VK_ERROR_DEVICE_LOST:
        atomic_store(&vk->lost, true);
        return sh_fail(err, SH_ERR_DEVICE_LOST, "%s: %s: the device is lost (reset, hang or unplugged)", vk->base.info.name,
                       what);
    default: return sh_fail(err, SH_ERR_DEVICE, "%s: %s: %s", vk->base.info.name, what, sh_vk_result_name(result));
    }
}

enum sh_code sh_vk_queue_commands(struct sh_vulkan *vk, const VkCommandBuffer *commands, uint32_t n, VkSemaphore semaphore, uint64_t value,
                                  struct sh_error *err) {
    const VkTimelineSemaphoreSubmitInfo timeline = {.sType = VK_STRUCTURE_TYPE_TIMELINE_SEMAPHORE_SUBMIT_INFO,
                                                    .signalSemaphoreValueCount = 1,
                                                    .pSignalSemaphoreValues = &value};
    VkSubmitInfo submits[SH_VK_MAX_CUTS];
    for (uint32_t i = 0; i < n; i++)
        submits[i] =
            (VkSubmitInfo){.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = 1, .pCommandBuffers = &commands[i]};
    submits[n - 1].pNext = &timeline;
    submits[n - 1].signalSemaphoreCount = 1;
    submits[n - 1].pSignalSemaphores = &semaphore;
    pthread_mutex_lock(&vk->queue_lock);
    const VkResult result = vk->QueueSubmit(vk->queue, n, submits, VK_NULL_HANDLE);
    pthread_mutex_unlock(&vk->queue_lock);
    return result == VK_SUCCESS ? SH_OK : sh_vk_fail(vk, result, "vkQueueSubmit", err);
}

VkResult sh_vk_wait_value(struct sh_vulkan *vk, VkSemaphore semaphore, uint64_t value, uint64_t timeout_ns) {
    const VkSemaphoreWaitInfo wait = {
        .sType = VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO, .semaphoreCount = 1, .pSemaphores = &semaphore, .pValues = &value};
    VkResult result = vk->WaitSemaphores(vk->device, &wait, timeout_ns);
    if (result == VK_SUCCESS || result == VK_TIMEOUT || result == VK_ERROR_DEVICE_LOST) return result;
    pthread_mutex_lock(&vk->queue_lock); /* no queue may be used meanwhile */
    result = vk->DeviceWaitIdle(vk->device);
    pthread_mutex_unlock(&vk->queue_lock);
    if (result == VK_SUCCESS) return VK_SUCCESS;
    atomic_store(&vk->lost, true);
    return VK_ERROR_DEVICE_LOST;
}

enum sh_code sh_vk_alive(struct sh_vulkan *vk, struct sh_error *err) {
    return atomic_load(&vk->lost) ? sh_vk_fail(vk, VK_ERROR_DEVICE_LOST, "submit", err) : SH_OK;
}

void sh_vk_name(struct sh_vulkan *vk, VkObjectType type, uint64_t handle, const char *fmt, ...) {
    if (!vk->instance.SetDebugUtilsObjectNameEXT) return;
    char name[96];
    va_list args;
    va_start(args, fmt);
    vsnprintf(name, sizeof name, fmt, args);
    va_end(args);
    VkDebugUtilsObjectNameInfoEXT info = {.sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_OBJECT_NAME_INFO_EXT,
                                          .objectType = type,
                                          .objectHandle = handle,
                                          .pObjectName = name};
    vk->instance.SetDebugUtilsObjectNameEXT(vk->device, &info);
}

/* The tier that is asked for by name, else the device's own. One that the device or this build has not is refused rather than replaced. */
static enum sh_code choose_tier(const struct sh_device_params *params, struct probe *p, struct sh_error *err) {
    const char *tier = params->tier ? params->tier : getenv("SHIMMY_VULKAN"), *device = p->info.name;
    if (tier && *tier) {
        if (strcmp(tier, "fp16") == 0)
            return sh_fail(err, SH_ERR_UNSUPPORTED, "%s: Vulkan tier fp16: no build has it yet; take base, intdot or coopmat", device);
        uint32_t found = 0;
        while (found < SH_COUNT(tier_names) && strcmp(tier, tier_names[found]) != 0) found++;
        if (found == SH_COUNT(tier_names))
            return sh_fail(err, SH_ERR_INVALID, "%s: unknown Vulkan tier '%s', expected base, intdot or coopmat", device, tier);
        p->tier = (enum sh_vk_tier)found;
        if (p->tier >= SH_TIER_INTDOT && !p->has_dots)
            return sh_fail(err, SH_ERR_UNSUPPORTED, "%s: Vulkan tier %s: the driver has no integer dot products of four bytes; take base",
                           device, tier);
        if (p->tier == SH_TIER_COOPMAT && !sh_kernel_codes[SH_KERNEL_coop_q8_0].packed)
            return sh_fail(err, SH_ERR_UNSUPPORTED, "%s: Vulkan tier coopmat: the glslc of this build has no cooperative matrices; take "
                                                    "intdot, whose results are the same", device);
        if (p->tier == SH_TIER_COOPMAT && !p->coop.m)
            return sh_fail(err, SH_ERR_UNSUPPORTED, "%s: Vulkan tier coopmat: the driver has no cooperative matrices of int8 in a size that the "
                                                    "kernels take; take intdot, whose results are the same", device);
    }
    snprintf(p->info.tier, sizeof p->info.tier, "%s", tier_names[p->tier]);
    return SH_OK;
}

static enum sh_code find_physical(struct sh_vulkan *vk, const struct sh_device_info *want, struct probe *p,
                                  struct sh_error *err) {
    VkPhysicalDevice *devices;
    uint32_t n;
    enum sh_code code = sh_vk_physical_devices(&vk->instance, &devices, &n, err);
    if (code != SH_OK) return code;
    bool found = false;
    for (uint32_t i = 0; i < n && !found; i++) {
        probe_device(&vk->instance, devices[i], p);
        found = p->info.kind == want->kind && memcmp(p->info.uuid, want->uuid, sizeof want->uuid) == 0 &&
                strcmp(p->info.name, want->name) == 0;
        if (found) vk->physical = devices[i];
    }
    free(devices);
    if (!found) return sh_fail(err, SH_ERR_NOT_FOUND, "%s: the Vulkan device is gone since it was listed", want->name);
    if (!p->info.usable) return sh_fail(err, SH_ERR_UNSUPPORTED, "%s: %s", want->name, p->info.reason);
    return SH_OK;
}

static enum sh_code create_device(struct sh_vulkan *vk, const struct probe *p, struct sh_error *err) {
    VkPhysicalDeviceVulkan12Features v12 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES,
                                            .bufferDeviceAddress = VK_TRUE,
                                            .timelineSemaphore = VK_TRUE,
                                            .storageBuffer8BitAccess = VK_TRUE};
    VkPhysicalDeviceVulkan11Features v11 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES, .pNext = &v12, .storageBuffer16BitAccess = VK_TRUE};
    VkPhysicalDeviceShaderIntegerDotProductFeatures dots = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES, .shaderIntegerDotProduct = VK_TRUE};
    VkPhysicalDeviceCooperativeMatrixFeaturesKHR coop = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR,
                                                         .cooperativeMatrix = VK_TRUE};
    const bool with_dots = p->tier >= SH_TIER_INTDOT, with_coop = p->tier == SH_TIER_COOPMAT;
    if (with_dots) v12.pNext = &dots;
    if (with_coop) {
        dots.pNext = &coop;
        v12.shaderInt8 = VK_TRUE;
        v12.vulkanMemoryModel = VK_TRUE;
    }
    VkPhysicalDeviceFeatures2 features = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, .pNext = &v11};
    float priority = 0.5f;
    VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                     .queueFamilyIndex = p->queue_family,
                                     .queueCount = 1,
                                     .pQueuePriorities = &priority};
    const char *extensions[3];
    uint32_t n_extensions = 0;
    if (p->has_budget) extensions[n_extensions++] = VK_EXT_MEMORY_BUDGET_EXTENSION_NAME;
    if (with_dots) extensions[n_extensions++] = VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME;
    if (with_coop) extensions[n_extensions++] = VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME;
    VkDeviceCreateInfo create = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                                 .pNext = &features,
                                 .queueCreateInfoCount = 1,
                                 .pQueueCreateInfos = &queue,
                                 .enabledExtensionCount = n_extensions,
                                 .ppEnabledExtensionNames = extensions};
    VkResult result = vk->instance.CreateDevice(vk->physical, &create, NULL, &vk->device);
    if (result != VK_SUCCESS) {
        vk->device = VK_NULL_HANDLE;
        return sh_vk_fail(vk, result, "vkCreateDevice", err);
    }
#define X(fn)                                                                                                                    \
    vk->fn = (PFN_vk##fn)vk->instance.GetDeviceProcAddr(vk->device, "vk" #fn);                                                   \
    if (!vk->fn) return sh_fail(err, SH_ERR_UNSUPPORTED, "%s: the driver has no vk" #fn, vk->base.info.name);
    SH_VK_DEVICE_FUNCTIONS(X)
#undef X
    vk->GetDeviceQueue(vk->device, p->queue_family, 0, &vk->queue);
    sh_vk_name(vk, VK_OBJECT_TYPE_QUEUE, (uint64_t)(uintptr_t)vk->queue, "shimmy queue");
    return SH_OK;
}

static void device_close(struct sh_device *device) {
    struct sh_vulkan *vk = sh_vulkan_of(device);
    sh_vk_tuner_destroy(vk);
    if (vk->pipelines) {
        sh_vk_pipelines_save(vk);
        sh_vk_pipelines_destroy(vk);
    }
    if (vk->device && vk->DestroyDevice) vk->DestroyDevice(vk->device, NULL);
    sh_vk_instance_finish(&vk->instance);
    pthread_mutex_destroy(&vk->queue_lock);
    free(vk);
}

enum sh_code sh_vulkan_open(const struct sh_device_params *params, struct sh_device **out, struct sh_error *err) {
    *out = NULL;
    struct sh_vulkan *vk = calloc(1, sizeof *vk);
    if (!vk) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a device");
    pthread_mutex_init(&vk->queue_lock, NULL);
    vk->base.executor = &sh_vulkan_executor;
    vk->base.info = *params->info;
    struct probe p;
    enum sh_code code = sh_vk_instance_init(&vk->instance, params->validation, err);
    if (code == SH_OK) code = find_physical(vk, params->info, &p, err);
    if (code == SH_OK) code = choose_tier(params, &p, err);
    if (code == SH_OK) {
        vk->tier = p.tier;
        vk->coop = p.coop;
        vk->queue_family = p.queue_family;
        vk->memory = p.memory;
        vk->limits = p.properties.limits;
        vk->max_allocation_bytes = p.max_allocation_bytes;
        vk->subgroup_size = p.subgroup_size;
        vk->vendor_id = p.properties.vendorID;
        vk->has_budget = p.has_budget;
        vk->unified = p.info.kind == SH_DEVICE_SOFTWARE || p.info.kind == SH_DEVICE_INTEGRATED;
        vk->base.info = p.info;
        vk->base.info.selected = params->info->selected;
        memcpy(vk->base.info.reason, params->info->reason, sizeof vk->base.info.reason);
        code = create_device(vk, &p, err);
    }
    if (code == SH_OK) code = sh_vk_pipelines_create(vk, params->cache_dir, &vk->pipelines, err);
    if (code == SH_OK && (params->tune == SH_TUNE_ON || (params->tune == SH_TUNE_AUTO && vk->base.info.kind != SH_DEVICE_SOFTWARE)))
        sh_vk_tuner_create(vk, params->cache_dir);
    if (code != SH_OK) {
        device_close(&vk->base);
        return code;
    }
    *out = &vk->base;
    return SH_OK;
}

static void device_memory(const struct sh_device *device, struct sh_device_memory *out) {
    struct sh_vulkan *vk = sh_vulkan_of((struct sh_device *)(uintptr_t)device);
    *out = (struct sh_device_memory){
        .weights_bytes = atomic_load(&vk->bytes[SH_USE_WEIGHTS]),
        .cache_bytes = atomic_load(&vk->bytes[SH_USE_CACHE]),
        .activation_bytes = atomic_load(&vk->bytes[SH_USE_ACTIVATION]),
        .staging_bytes = atomic_load(&vk->bytes[SH_USE_STAGING]),
    };
    const uint64_t available = sh_vk_free_bytes(vk);
    /* A software device's heap is a nominal size; its memory is this machine's. */
    if (available != UINT64_MAX && vk->base.info.kind != SH_DEVICE_SOFTWARE) out->free_bytes = available;
}

static uint64_t weight_bytes(const struct sh_device *device, const struct sh_weight *w, enum sh_op_kind use) {
    (void)device;
    const bool matrix = use == SH_OP_EMBED || use == SH_OP_MATMUL || use == SH_OP_EXPERT_MATMUL;
    struct sh_layout layout;
    if (matrix && sh_layout_describe(w->type, w->cols, &layout)) return layout.row_bytes_all * w->rows;
    return w->cols * w->rows * sizeof(float);
}

static uint64_t validation_count(const struct sh_device *device) {
    return atomic_load(sh_vulkan_of((struct sh_device *)(uintptr_t)device)->instance.validation_count);
}

const struct sh_executor sh_vulkan_executor = {
    .name = "vulkan",
    .device_sampling = true,
    .device_close = device_close,
    .device_memory = device_memory,
    .validation_count = validation_count,
    .weight_bytes = weight_bytes,
    .model_create = sh_vk_model_create,
    .weight_rows = sh_vk_weight_rows,
    .model_finish = sh_vk_model_finish,
    .model_bytes = sh_vk_model_bytes,
    .model_destroy = sh_vk_model_destroy,
    .context_create = sh_vk_context_create,
    .context_destroy = sh_vk_context_destroy,
    .pool_reserve = sh_vk_pool_reserve,
    .pool_bytes = sh_vk_pool_bytes,
    .page_copy = sh_vk_page_copy,
    .page_bytes = sh_vk_page_bytes,
    .page_read = sh_vk_page_read,
    .page_write = sh_vk_page_write,
    .submit = sh_vk_submit,
    .wait = sh_vk_wait,
};

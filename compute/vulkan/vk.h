/*
 * vk.h - what the files of compute/vulkan share: the function table, the device, buffers. No Vk* type leaves this folder.
 *
 * libvulkan is opened with dlopen, so a machine without a loader runs the same binary. Functions are called through the device's
 * own table (`vk->CmdDispatch(...)`), which also saves the loader's trampoline.
 *
 * Threads: struct sh_vulkan is shared by models and contexts; the queue, the pipelines and the memory counters lock inside.
 */
#ifndef SHIMMY_VK_H
#define SHIMMY_VK_H

#include "compute/program/executor.h"

#define VK_NO_PROTOTYPES
#include <pthread.h>
#include <stdatomic.h>
#include <vulkan/vulkan.h>

#define SH_VK_GLOBAL_FUNCTIONS(X) \
    X(CreateInstance) X(EnumerateInstanceVersion) X(EnumerateInstanceLayerProperties) X(EnumerateInstanceExtensionProperties)

#define SH_VK_INSTANCE_FUNCTIONS(X) \
    X(DestroyInstance) X(EnumeratePhysicalDevices) X(GetPhysicalDeviceProperties) X(GetPhysicalDeviceProperties2) \
    X(GetPhysicalDeviceFeatures2) X(GetPhysicalDeviceMemoryProperties2) X(GetPhysicalDeviceQueueFamilyProperties) \
    X(EnumerateDeviceExtensionProperties) X(CreateDevice) X(GetDeviceProcAddr)

/* Absent without VK_EXT_debug_utils. */
#define SH_VK_DEBUG_FUNCTIONS(X) X(CreateDebugUtilsMessengerEXT) X(DestroyDebugUtilsMessengerEXT) X(SetDebugUtilsObjectNameEXT)

#define SH_VK_DEVICE_FUNCTIONS(X) \
    X(DestroyDevice) X(DeviceWaitIdle) X(GetDeviceQueue) X(QueueSubmit) \
    X(CreateBuffer) X(DestroyBuffer) X(GetBufferMemoryRequirements) X(GetBufferDeviceAddress) \
    X(AllocateMemory) X(FreeMemory) X(BindBufferMemory) X(MapMemory) X(UnmapMemory) \
    X(CreateShaderModule) X(DestroyShaderModule) X(CreatePipelineLayout) X(DestroyPipelineLayout) \
    X(CreatePipelineCache) X(DestroyPipelineCache) X(GetPipelineCacheData) X(CreateComputePipelines) X(DestroyPipeline) \
    X(CreateCommandPool) X(DestroyCommandPool) X(AllocateCommandBuffers) X(FreeCommandBuffers) X(BeginCommandBuffer) \
    X(EndCommandBuffer) X(CmdBindPipeline) X(CmdPushConstants) X(CmdDispatch) X(CmdDispatchIndirect) X(CmdPipelineBarrier) \
    X(CmdCopyBuffer) X(CmdResetQueryPool) X(CmdWriteTimestamp) X(CreateQueryPool) X(DestroyQueryPool) X(GetQueryPoolResults) \
    X(CreateSemaphore) X(DestroySemaphore) X(WaitSemaphores) X(GetSemaphoreCounterValue)

/* An instance with its library. Zeroed is a valid argument of sh_vk_instance_finish. */
struct sh_vk_instance {
    void *library;
    VkInstance handle;
    VkDebugUtilsMessengerEXT messenger;
    _Atomic uint64_t *validation_count; /* malloc'd: the messenger's user data must not move */
    PFN_vkGetInstanceProcAddr GetInstanceProcAddr;
#define X(name) PFN_vk##name name;
    SH_VK_GLOBAL_FUNCTIONS(X)
    SH_VK_INSTANCE_FUNCTIONS(X)
    SH_VK_DEBUG_FUNCTIONS(X)
#undef X
};

/* Opens libvulkan.so.1 and makes an instance. SH_ERR_NOT_FOUND: no loader, or no driver at all. `validation` asks for
 * VK_LAYER_KHRONOS_validation; its absence is SH_ERR_UNSUPPORTED. */
enum sh_code sh_vk_instance_init(struct sh_vk_instance *in, bool validation, struct sh_error *err);
void sh_vk_instance_finish(struct sh_vk_instance *in);

/* Physical devices; *devices malloc'd. */
enum sh_code sh_vk_physical_devices(const struct sh_vk_instance *in, VkPhysicalDevice **devices, uint32_t *count, struct sh_error *err);

enum sh_vk_use { SH_USE_WEIGHTS, SH_USE_CACHE, SH_USE_ACTIVATION, SH_USE_STAGING, SH_USE_COUNT };

struct sh_vulkan {
    struct sh_device base; /* first: sh_device * is cast to it */
    struct sh_vk_instance instance;
    VkPhysicalDevice physical;
    VkDevice device;
    VkQueue queue;
    uint32_t queue_family;
    pthread_mutex_t queue_lock;
    VkPhysicalDeviceMemoryProperties memory;
    VkPhysicalDeviceLimits limits;
    uint64_t max_allocation_bytes;
    uint32_t subgroup_size;
    bool unified;       /* device memory is host memory: weights are written in place */
    bool has_budget;    /* VK_EXT_memory_budget */
    _Atomic bool lost;  /* VK_ERROR_DEVICE_LOST was seen; everything fails from then on */
    _Atomic uint64_t bytes[SH_USE_COUNT];
    struct sh_vk_pipelines *pipelines;
#define X(name) PFN_vk##name name;
    SH_VK_DEVICE_FUNCTIONS(X)
#undef X
};
static inline struct sh_vulkan *sh_vulkan_of(struct sh_device *device) { return (struct sh_vulkan *)device; }

/* A Vulkan result as an error: out of memory, device lost (which marks the device), or the driver's failure, with the call's name. */
enum sh_code sh_vk_fail(struct sh_vulkan *vk, VkResult result, const char *what, struct sh_error *err);
const char *sh_vk_result_name(VkResult result);
/* SH_ERR_DEVICE_LOST if it was lost before. */
enum sh_code sh_vk_alive(struct sh_vulkan *vk, struct sh_error *err);

/* Names an object for debuggers and validation messages; does nothing without VK_EXT_debug_utils. */
void sh_vk_name(struct sh_vulkan *vk, VkObjectType type, uint64_t handle, const char *fmt, ...) SH_PRINTF(4, 5);

extern const struct sh_executor sh_vulkan_executor;

#endif

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

#ifndef VK_KHR_cooperative_matrix /* not in Debian 12's headers; the registry's values and members */
#define VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME "VK_KHR_cooperative_matrix"
#define VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR ((VkStructureType)1000506000)
#define VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR ((VkStructureType)1000506001)
typedef enum { VK_SCOPE_SUBGROUP_KHR = 3 } VkScopeKHR;
typedef enum { VK_COMPONENT_TYPE_FLOAT32_KHR = 1, VK_COMPONENT_TYPE_SINT8_KHR = 3, VK_COMPONENT_TYPE_SINT32_KHR = 5 } VkComponentTypeKHR;
typedef struct {
    VkStructureType sType;
    void *pNext;
    VkBool32 cooperativeMatrix, cooperativeMatrixRobustBufferAccess;
} VkPhysicalDeviceCooperativeMatrixFeaturesKHR;
typedef struct {
    VkStructureType sType;
    void *pNext;
    uint32_t MSize, NSize, KSize;
    VkComponentTypeKHR AType, BType, CType, ResultType;
    VkBool32 saturatingAccumulation;
    VkScopeKHR scope;
} VkCooperativeMatrixPropertiesKHR;
typedef VkResult(VKAPI_PTR *PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR)(VkPhysicalDevice, uint32_t *,
                                                                                   VkCooperativeMatrixPropertiesKHR *);
#endif

/* clang-format off */
#define SH_VK_GLOBAL_FUNCTIONS(X) \
    X(CreateInstance) X(EnumerateInstanceVersion) X(EnumerateInstanceLayerProperties) X(EnumerateInstanceExtensionProperties)

#define SH_VK_INSTANCE_FUNCTIONS(X) \
    X(DestroyInstance) X(EnumeratePhysicalDevices) X(GetPhysicalDeviceProperties) X(GetPhysicalDeviceProperties2) \
    X(GetPhysicalDeviceFeatures2) X(GetPhysicalDeviceMemoryProperties2) X(GetPhysicalDeviceQueueFamilyProperties) \
    X(EnumerateDeviceExtensionProperties) X(CreateDevice) X(GetDeviceProcAddr)

/* Absent without VK_EXT_debug_utils. */
#define SH_VK_DEBUG_FUNCTIONS(X) \
    X(CreateDebugUtilsMessengerEXT) X(DestroyDebugUtilsMessengerEXT) X(SetDebugUtilsObjectNameEXT)

#define SH_VK_DEVICE_FUNCTIONS(X) \
    X(DestroyDevice) X(DeviceWaitIdle) X(GetDeviceQueue) X(QueueSubmit) \
    X(CreateBuffer) X(DestroyBuffer) X(GetBufferMemoryRequirements) X(GetBufferDeviceAddress) \
    X(AllocateMemory) X(FreeMemory) X(BindBufferMemory) X(MapMemory) \
    X(CreateShaderModule) X(DestroyShaderModule) X(CreatePipelineLayout) X(DestroyPipelineLayout) \
    X(CreatePipelineCache) X(DestroyPipelineCache) X(GetPipelineCacheData) X(CreateComputePipelines) X(DestroyPipeline) \
    X(CreateCommandPool) X(DestroyCommandPool) X(AllocateCommandBuffers) X(FreeCommandBuffers) X(BeginCommandBuffer) \
    X(EndCommandBuffer) X(CmdBindPipeline) X(CmdPushConstants) X(CmdDispatch) X(CmdDispatchIndirect) X(CmdFillBuffer) X(CmdPipelineBarrier) X(CmdCopyBuffer) \
    X(CmdResetQueryPool) X(CmdWriteTimestamp) X(CreateQueryPool) X(DestroyQueryPool) X(GetQueryPoolResults) \
    X(CreateSemaphore) X(DestroySemaphore) X(WaitSemaphores) X(GetSemaphoreCounterValue)
/* clang-format on */

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
enum sh_code sh_vk_physical_devices(const struct sh_vk_instance *in, VkPhysicalDevice **devices, uint32_t *count,
                                    struct sh_error *err);

enum sh_vk_use { SH_USE_WEIGHTS, SH_USE_CACHE, SH_USE_ACTIVATION, SH_USE_STAGING, SH_USE_COUNT };

enum sh_vk_tier {
    SH_TIER_BASE,   /* float activations everywhere */
    SH_TIER_INTDOT, /* quantised weights meet activations of 8 bits */
    SH_TIER_COOPMAT, /* the bits of intdot; products of many rows by cooperative matrices */
};
struct sh_vk_coop { /* size of cooperative matrices of int8 */
    uint32_t m, n, k; /* 0: the device has none that coop.comp can use */
};

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
    uint32_t vendor_id;
    enum sh_vk_tier tier;
    struct sh_vk_coop coop;
    bool unified;      /* device memory is host memory: weights are written in place */
    bool has_budget;   /* VK_EXT_memory_budget */
    _Atomic bool lost; /* VK_ERROR_DEVICE_LOST was seen; everything fails from then on */
    _Atomic uint64_t bytes[SH_USE_COUNT];
    struct sh_vk_pipelines *pipelines;
    struct sh_vk_tuner *tuner; /* tune.h; NULL: the shapes of kernels are those of the table */
    bool stage_always; /* tests: weights go through the staging ring even where memory is unified */
    bool like_gpu;     /* tests: kernels are chosen as for a GPU, whatever the device is */
    bool poison;       /* tests: fresh memory is filled with NaN, guards between allocations are checked when they are freed */
    _Atomic uint64_t guard_errors; /* with poison: allocations beyond whose end somebody wrote */
#define X(name) PFN_vk##name name;
    SH_VK_DEVICE_FUNCTIONS(X)
#undef X
};
static inline struct sh_vulkan *sh_vulkan_of(struct sh_device *device) { return (struct sh_vulkan *)device; }

/* A Vulkan result as an error: out of memory, device lost (which marks the device), or the driver's failure, with the call's
 * name. */
enum sh_code sh_vk_fail(struct sh_vulkan *vk, VkResult result, const char *what, struct sh_error *err);
const char *sh_vk_result_name(VkResult result);
/* Submits n command buffers, each on its own: that is what a driver's watchdog times. Behind the last one the timeline semaphore has the value. */
enum { SH_VK_MAX_CUTS = 64 }; /* n at most */
enum sh_code sh_vk_queue_commands(struct sh_vulkan *vk, const VkCommandBuffer *commands, uint32_t n, VkSemaphore semaphore, uint64_t value,
                                  struct sh_error *err);
/* Waits until a timeline semaphore has reached a value. VK_TIMEOUT leaves things as they are. Any other failure to wait says nothing
 * about the device, which may still be at work: then all of its work is waited for, without a limit, so that after VK_SUCCESS the
 * value is reached; and where even that fails the device counts as lost. */
VkResult sh_vk_wait_value(struct sh_vulkan *vk, VkSemaphore semaphore, uint64_t value, uint64_t timeout_ns);

/* SH_ERR_DEVICE_LOST if it was lost before. */
enum sh_code sh_vk_alive(struct sh_vulkan *vk, struct sh_error *err);

/* Names an object for debuggers and validation messages; does nothing without VK_EXT_debug_utils. */
void sh_vk_name(struct sh_vulkan *vk, VkObjectType type, uint64_t handle, const char *fmt, ...) SH_PRINTF(4, 5);

/* ---- memory (memory.c) ---- */

enum sh_vk_place {
    SH_PLACE_DEVICE,   /* device-local; also mapped where memory is unified */
    SH_PLACE_UPLOAD,   /* written by the host once per step, read by the device; device-local where the driver offers it */
    SH_PLACE_READBACK, /* written by the device, read by the host; cached where the driver offers it */
};
struct sh_vk_buffer { /* one VkBuffer with memory of its own; zeroed is empty */
    VkBuffer handle;
    VkDeviceMemory memory;
    VkDeviceAddress address;
    uint8_t *mapped; /* NULL: not visible to the host. Always coherent */
    uint64_t bytes;
    enum sh_vk_use use;
};
enum sh_code sh_vk_buffer_create(struct sh_vulkan *vk, enum sh_vk_place place, enum sh_vk_use use, uint64_t bytes,
                                 const char *name, struct sh_vk_buffer *out, struct sh_error *err);
void sh_vk_buffer_destroy(struct sh_vulkan *vk, struct sh_vk_buffer *buffer);

struct sh_vk_span { /* a piece of a buffer, 256-byte aligned */
    VkBuffer buffer;
    uint64_t offset, bytes;
    VkDeviceAddress address;
    uint8_t *mapped;
};
/* Takes pieces from large buffers and gives everything back at once. One thread. */
struct sh_vk_arena {
    struct sh_vulkan *vk;
    enum sh_vk_place place;
    enum sh_vk_use use;
    uint64_t chunk_bytes; /* size of a new buffer unless a piece is larger */
    const char *name;
    struct sh_vk_buffer *buffers;
    uint32_t n_buffers, cap_buffers;
    uint64_t used; /* of the last buffer */
    struct sh_vk_span *spans;
    uint32_t n_spans, cap_spans;
};
void sh_vk_arena_init(struct sh_vk_arena *arena, struct sh_vulkan *vk, enum sh_vk_place place, enum sh_vk_use use,
                      uint64_t chunk_bytes, const char *name);
enum sh_code sh_vk_arena_take(struct sh_vk_arena *arena, uint64_t bytes, struct sh_vk_span *out, struct sh_error *err);
uint64_t sh_vk_arena_bytes(const struct sh_vk_arena *arena);
void sh_vk_arena_finish(struct sh_vk_arena *arena);

/* What the driver says is free of the device's memory now; UINT64_MAX where it does not tell. */
uint64_t sh_vk_free_bytes(struct sh_vulkan *vk);

/* ---- pipelines (pipeline.c) ---- */

struct sh_vk_pipelines;
/* cache_dir may be NULL. A cache that cannot be read or written is logged, not an error. */
enum sh_code sh_vk_pipelines_create(struct sh_vulkan *vk, const char *cache_dir, struct sh_vk_pipelines **out,
                                    struct sh_error *err);
void sh_vk_pipelines_save(struct sh_vulkan *vk);
void sh_vk_pipelines_destroy(struct sh_vulkan *vk);
/* Makes those of the kernels [SH_KERNEL_COUNT] that are wanted and not there yet, with as many threads as this one may use cores, 16 at
 * most, this one among them. After the first failure no other kernel is begun; what was made stays. Any thread, several at once. */
enum sh_code sh_vk_pipelines_make(struct sh_vulkan *vk, const bool wanted[], struct sh_error *err);
/* The pipeline of a kernel (enum sh_kernel), made at the first call; who comes while another thread makes it waits. Any thread. */
enum sh_code sh_vk_pipeline(struct sh_vulkan *vk, uint32_t kernel, VkPipeline *out, struct sh_error *err);
uint32_t sh_vk_pipelines_made_for_test(struct sh_vulkan *vk); /* so far */
VkPipelineLayout sh_vk_pipeline_layout(const struct sh_vulkan *vk); /* 128 bytes of push constants, no descriptors */

extern const struct sh_executor sh_vulkan_executor;

#endif

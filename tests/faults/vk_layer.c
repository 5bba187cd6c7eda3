/*
 * vk_layer.c - a Vulkan layer that fails calls by a script (script.h; its path is in SHIMMY_VK_FAULTS), so that a program meets a full
 * or lost device without a line of its own for it.
 *
 * WHAT is the name of a result (VK_ERROR_OUT_OF_DEVICE_MEMORY, VK_ERROR_OUT_OF_HOST_MEMORY, VK_ERROR_DEVICE_LOST), or, of vkWaitSemaphores,
 * HOLD: the work stays unfinished, for timeouts too, until the rule goes. Watched: vkAllocateMemory, vkQueueSubmit,
 * vkWaitSemaphores, vkDeviceWaitIdle, vkCreateDevice. VK_LAYER_PATH is to hold the manifest, VK_INSTANCE_LAYERS its name.
 */
#include "tests/faults/script.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <vulkan/vk_layer.h>
#include <vulkan/vulkan.h>

enum { DEVICES = 16 };

struct instance {
    void *key;
    PFN_vkGetInstanceProcAddr next;
    /* Asked for at creation: later the loader would answer with the top of the chain. */
    PFN_vkDestroyInstance DestroyInstance;
    PFN_vkCreateDevice CreateDevice;
};
struct device {
    void *key;
    VkDevice handle;
    PFN_vkGetDeviceProcAddr next;
    PFN_vkDestroyDevice DestroyDevice;
    PFN_vkAllocateMemory AllocateMemory;
    PFN_vkQueueSubmit QueueSubmit;
    PFN_vkWaitSemaphores WaitSemaphores;
    PFN_vkDeviceWaitIdle DeviceWaitIdle;
};
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct instance instances[DEVICES];
static struct device devices[DEVICES];

/* All handles of an instance or a device begin with the loader's pointer to its table, which is the same for all of one. */
static void *key_of(void *handle) { return *(void **)handle; }

static const char *script(void) { return getenv("SHIMMY_VK_FAULTS"); }

static struct device device_of(void *handle) {
    struct device found = {0};
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < DEVICES; i++)
        if (devices[i].key == key_of(handle)) found = devices[i];
    pthread_mutex_unlock(&lock);
    return found;
}

/* `of` is the device or its queue. A device that is lost computes no more, so what this one has to do is done first. */
static bool fails(const char *call, void *of, VkResult *result) {
    static const struct {
        const char *name;
        VkResult result;
    } results[] = {
        {"VK_ERROR_OUT_OF_DEVICE_MEMORY", VK_ERROR_OUT_OF_DEVICE_MEMORY},
        {"VK_ERROR_OUT_OF_HOST_MEMORY", VK_ERROR_OUT_OF_HOST_MEMORY},
        {"VK_ERROR_DEVICE_LOST", VK_ERROR_DEVICE_LOST},
        {"VK_ERROR_INITIALIZATION_FAILED", VK_ERROR_INITIALIZATION_FAILED},
    };
    char what[64];
    if (!fault_due(script(), call, what, sizeof what)) return false;
    for (size_t i = 0; i < sizeof results / sizeof results[0]; i++) {
        if (strcmp(what, results[i].name) != 0) continue;
        *result = results[i].result;
        const struct device device = of ? device_of(of) : (struct device){0};
        if (*result == VK_ERROR_DEVICE_LOST && device.handle) device.DeviceWaitIdle(device.handle);
        return true;
    }
    return false;
}

static struct instance instance_of(void *handle) {
    struct instance found = {0};
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < DEVICES; i++)
        if (instances[i].key == key_of(handle)) found = instances[i];
    pthread_mutex_unlock(&lock);
    return found;
}

/* ---- watched calls ---- */

static VKAPI_ATTR VkResult VKAPI_CALL allocate_memory(VkDevice device, const VkMemoryAllocateInfo *info, const VkAllocationCallbacks *callbacks,
                                                      VkDeviceMemory *memory) {
    VkResult result;
    if (fails("vkAllocateMemory", device, &result)) return result;
    return device_of(device).AllocateMemory(device, info, callbacks, memory);
}

static VKAPI_ATTR VkResult VKAPI_CALL queue_submit(VkQueue queue, uint32_t n, const VkSubmitInfo *submits, VkFence fence) {
    VkResult result;
    if (fails("vkQueueSubmit", queue, &result)) return result;
    return device_of(queue).QueueSubmit(queue, n, submits, fence);
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static VKAPI_ATTR VkResult VKAPI_CALL wait_semaphores(VkDevice device, const VkSemaphoreWaitInfo *info, uint64_t timeout) {
    const struct timespec nap = {0, 2000000};
    const uint64_t start = now_ns();
    char what[64];
    VkResult result;
    if (fault_stands(script(), "vkWaitSemaphores", "HOLD")) {
        fault_due(script(), "vkWaitSemaphores", what, sizeof what); /* so that it is told */
        while (fault_stands(script(), "vkWaitSemaphores", "HOLD")) {
            if (now_ns() - start >= timeout) return VK_TIMEOUT;
            nanosleep(&nap, NULL);
        }
    } else if (fails("vkWaitSemaphores", device, &result)) {
        return result;
    }
    return device_of(device).WaitSemaphores(device, info, timeout);
}

static VKAPI_ATTR VkResult VKAPI_CALL device_wait_idle(VkDevice device) {
    VkResult result;
    if (fails("vkDeviceWaitIdle", device, &result)) return result;
    return device_of(device).DeviceWaitIdle(device);
}

/* ---- the chain of layers ---- */

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL device_proc(VkDevice device, const char *name);
static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL instance_proc(VkInstance instance, const char *name);

static VKAPI_ATTR VkResult VKAPI_CALL create_instance(const VkInstanceCreateInfo *info, const VkAllocationCallbacks *callbacks,
                                                      VkInstance *out) {
    VkLayerInstanceCreateInfo *link = (VkLayerInstanceCreateInfo *)info->pNext;
    while (link && (link->sType != VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO || link->function != VK_LAYER_LINK_INFO))
        link = (VkLayerInstanceCreateInfo *)link->pNext;
    if (!link) return VK_ERROR_INITIALIZATION_FAILED;
    const PFN_vkGetInstanceProcAddr next = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;
    const PFN_vkCreateInstance create = (PFN_vkCreateInstance)next(VK_NULL_HANDLE, "vkCreateInstance");
    const VkResult result = create(info, callbacks, out);
    if (result != VK_SUCCESS) return result;
    bool kept = false;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < DEVICES && !kept; i++) {
        if (instances[i].key) continue;
        instances[i] = (struct instance){.key = key_of(*out), .next = next};
        instances[i].DestroyInstance = (PFN_vkDestroyInstance)next(*out, "vkDestroyInstance");
        instances[i].CreateDevice = (PFN_vkCreateDevice)next(*out, "vkCreateDevice");
        kept = true;
    }
    pthread_mutex_unlock(&lock);
    return kept ? VK_SUCCESS : VK_ERROR_OUT_OF_HOST_MEMORY;
}

static VKAPI_ATTR void VKAPI_CALL destroy_instance(VkInstance handle, const VkAllocationCallbacks *callbacks) {
    if (!handle) return;
    const struct instance instance = instance_of(handle);
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < DEVICES; i++)
        if (instances[i].key == instance.key) instances[i] = (struct instance){0};
    pthread_mutex_unlock(&lock);
    instance.DestroyInstance(handle, callbacks);
}

static VKAPI_ATTR VkResult VKAPI_CALL create_device(VkPhysicalDevice physical, const VkDeviceCreateInfo *info,
                                                    const VkAllocationCallbacks *callbacks, VkDevice *out) {
    VkLayerDeviceCreateInfo *link = (VkLayerDeviceCreateInfo *)info->pNext;
    while (link && (link->sType != VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO || link->function != VK_LAYER_LINK_INFO))
        link = (VkLayerDeviceCreateInfo *)link->pNext;
    if (!link) return VK_ERROR_INITIALIZATION_FAILED;
    const PFN_vkGetDeviceProcAddr next_device = link->u.pLayerInfo->pfnNextGetDeviceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;
    VkResult result;
    if (fails("vkCreateDevice", NULL, &result)) return result;
    result = instance_of(physical).CreateDevice(physical, info, callbacks, out);
    if (result != VK_SUCCESS) return result;
    struct device device = {.key = key_of(*out), .handle = *out, .next = next_device};
#define FIND(name) device.name = (PFN_vk##name)next_device(*out, "vk" #name)
    FIND(DestroyDevice);
    FIND(AllocateMemory);
    FIND(QueueSubmit);
    FIND(WaitSemaphores);
    FIND(DeviceWaitIdle);
#undef FIND
    bool kept = false;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < DEVICES && !kept; i++) {
        if (devices[i].key) continue;
        devices[i] = device;
        kept = true;
    }
    pthread_mutex_unlock(&lock);
    return kept ? VK_SUCCESS : VK_ERROR_OUT_OF_HOST_MEMORY;
}

static VKAPI_ATTR void VKAPI_CALL destroy_device(VkDevice handle, const VkAllocationCallbacks *callbacks) {
    if (!handle) return;
    const struct device device = device_of(handle);
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < DEVICES; i++)
        if (devices[i].key == device.key) devices[i] = (struct device){0};
    pthread_mutex_unlock(&lock);
    device.DestroyDevice(handle, callbacks);
}

static PFN_vkVoidFunction watched(const char *name, bool of_device) {
    static const struct {
        const char *name;
        PFN_vkVoidFunction function;
        bool of_device;
    } functions[] = {
        {"vkGetInstanceProcAddr", (PFN_vkVoidFunction)instance_proc, false},
        {"vkCreateInstance", (PFN_vkVoidFunction)create_instance, false},
        {"vkDestroyInstance", (PFN_vkVoidFunction)destroy_instance, false},
        {"vkCreateDevice", (PFN_vkVoidFunction)create_device, false},
        {"vkGetDeviceProcAddr", (PFN_vkVoidFunction)device_proc, true},
        {"vkDestroyDevice", (PFN_vkVoidFunction)destroy_device, true},
        {"vkAllocateMemory", (PFN_vkVoidFunction)allocate_memory, true},
        {"vkQueueSubmit", (PFN_vkVoidFunction)queue_submit, true},
        {"vkWaitSemaphores", (PFN_vkVoidFunction)wait_semaphores, true},
        {"vkDeviceWaitIdle", (PFN_vkVoidFunction)device_wait_idle, true},
    };
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++)
        if (strcmp(functions[i].name, name) == 0 && (functions[i].of_device || !of_device)) return functions[i].function;
    return NULL;
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL device_proc(VkDevice device, const char *name) {
    const PFN_vkVoidFunction own = watched(name, true);
    return own ? own : device_of(device).next(device, name);
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL instance_proc(VkInstance instance, const char *name) {
    const PFN_vkVoidFunction own = watched(name, false);
    if (own || !instance) return own;
    return instance_of(instance).next(instance, name);
}

VK_LAYER_EXPORT VkResult vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *negotiate);
__attribute__((visibility("default"))) VkResult vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *negotiate) {
    if (negotiate->loaderLayerInterfaceVersion < 2) return VK_ERROR_INITIALIZATION_FAILED;
    negotiate->loaderLayerInterfaceVersion = 2;
    negotiate->pfnGetInstanceProcAddr = instance_proc;
    negotiate->pfnGetDeviceProcAddr = device_proc;
    negotiate->pfnGetPhysicalDeviceProcAddr = NULL;
    return VK_SUCCESS;
}

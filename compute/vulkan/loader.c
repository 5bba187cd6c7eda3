/* loader.c - libvulkan through dlopen, the instance, the validation layer and its messages. */
#include "compute/vulkan/vk.h"

#include <dlfcn.h>
#include <stdlib.h>

const char *sh_vk_result_name(VkResult result) {
    switch (result) {
#define C(name)                                                                                                                  \
    case name: return #name;
        C(VK_SUCCESS)
        C(VK_NOT_READY) C(VK_TIMEOUT) C(VK_INCOMPLETE) C(VK_ERROR_OUT_OF_HOST_MEMORY) C(VK_ERROR_OUT_OF_DEVICE_MEMORY)
            C(VK_ERROR_INITIALIZATION_FAILED) C(VK_ERROR_DEVICE_LOST) C(VK_ERROR_MEMORY_MAP_FAILED) C(VK_ERROR_LAYER_NOT_PRESENT)
                C(VK_ERROR_EXTENSION_NOT_PRESENT) C(VK_ERROR_FEATURE_NOT_PRESENT) C(VK_ERROR_INCOMPATIBLE_DRIVER)
                    C(VK_ERROR_TOO_MANY_OBJECTS) C(VK_ERROR_FRAGMENTED_POOL) C(VK_ERROR_INVALID_OPAQUE_CAPTURE_ADDRESS)
#undef C
                        default : return "an unnamed VkResult";
    }
}

static VKAPI_ATTR VkBool32 VKAPI_CALL on_message(VkDebugUtilsMessageSeverityFlagBitsEXT severity,
                                                 VkDebugUtilsMessageTypeFlagsEXT types,
                                                 const VkDebugUtilsMessengerCallbackDataEXT *data, void *user) {
    (void)types;
    atomic_fetch_add((_Atomic uint64_t *)user, 1);
    sh_log(severity >= VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT ? SH_LOG_ERROR : SH_LOG_WARNING, "vulkan validation: %s",
           data->pMessage);
    return VK_FALSE;
}

static bool has_layer(const struct sh_vk_instance *in, const char *name) {
    uint32_t n = 0;
    if (in->EnumerateInstanceLayerProperties(&n, NULL) != VK_SUCCESS || !n) return false;
    VkLayerProperties *layers = sh_calloc(n, sizeof *layers);
    bool found = false;
    if (layers && in->EnumerateInstanceLayerProperties(&n, layers) >= 0)
        for (uint32_t i = 0; i < n; i++) found |= strcmp(layers[i].layerName, name) == 0;
    free(layers);
    return found;
}

static bool has_extension(const struct sh_vk_instance *in, const char *layer, const char *name) {
    uint32_t n = 0;
    if (in->EnumerateInstanceExtensionProperties(layer, &n, NULL) != VK_SUCCESS || !n) return false;
    VkExtensionProperties *list = sh_calloc(n, sizeof *list);
    bool found = false;
    if (list && in->EnumerateInstanceExtensionProperties(layer, &n, list) >= 0)
        for (uint32_t i = 0; i < n; i++) found |= strcmp(list[i].extensionName, name) == 0;
    free(list);
    return found;
}

enum sh_code sh_vk_instance_init(struct sh_vk_instance *in, bool validation, struct sh_error *err) {
    static const char *const layer = "VK_LAYER_KHRONOS_validation";
    *in = (struct sh_vk_instance){0};
    in->library = dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!in->library) return sh_fail(err, SH_ERR_NOT_FOUND, "no Vulkan loader: %s", dlerror());
    *(void **)&in->GetInstanceProcAddr = dlsym(in->library, "vkGetInstanceProcAddr");
    enum sh_code code = SH_ERR_UNSUPPORTED;
    if (!in->GetInstanceProcAddr) {
        sh_fail(err, code, "libvulkan.so.1 has no vkGetInstanceProcAddr");
        goto fail;
    }
#define X(name) in->name = (PFN_vk##name)in->GetInstanceProcAddr(NULL, "vk" #name);
    SH_VK_GLOBAL_FUNCTIONS(X)
#undef X
    if (!in->CreateInstance || !in->EnumerateInstanceVersion || !in->EnumerateInstanceLayerProperties ||
        !in->EnumerateInstanceExtensionProperties) {
        sh_fail(err, code, "the Vulkan loader is older than Vulkan 1.1; 1.2 is needed");
        goto fail;
    }
    if (validation && !has_layer(in, layer)) {
        sh_fail(err, code, "validation was asked for, but %s is not installed", layer);
        goto fail;
    }
    in->validation_count = calloc(1, sizeof *in->validation_count);
    if (!in->validation_count) {
        code = sh_fail(err, SH_ERR_NO_MEMORY, "no memory for a Vulkan instance");
        goto fail;
    }
    bool debug = has_extension(in, NULL, VK_EXT_DEBUG_UTILS_EXTENSION_NAME) ||
                 (validation && has_extension(in, layer, VK_EXT_DEBUG_UTILS_EXTENSION_NAME));
    const char *const extensions[] = {VK_EXT_DEBUG_UTILS_EXTENSION_NAME};
    VkDebugUtilsMessengerCreateInfoEXT messages = {
        .sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT,
        .messageSeverity = VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT,
        .messageType = VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_TYPE_PERFORMANCE_BIT_EXT,
        .pfnUserCallback = on_message,
        .pUserData = in->validation_count,
    };
    VkApplicationInfo app = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
                             .pApplicationName = "shimmyd",
                             .pEngineName = "libshimmy",
                             .apiVersion = VK_API_VERSION_1_2};
    VkInstanceCreateInfo create = {
        .sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
        .pNext = validation && debug ? &messages : NULL,
        .pApplicationInfo = &app,
        .enabledLayerCount = validation ? 1 : 0,
        .ppEnabledLayerNames = &layer,
        .enabledExtensionCount = debug ? 1 : 0,
        .ppEnabledExtensionNames = extensions,
    };
    VkResult result = in->CreateInstance(&create, NULL, &in->handle);
    if (result != VK_SUCCESS) {
        in->handle = VK_NULL_HANDLE;
        code = result == VK_ERROR_INCOMPATIBLE_DRIVER ? SH_ERR_NOT_FOUND : SH_ERR_DEVICE;
        sh_fail(err, code, "vkCreateInstance: %s%s", sh_vk_result_name(result),
                result == VK_ERROR_INCOMPATIBLE_DRIVER ? ": no Vulkan driver is installed" : "");
        goto fail;
    }
#define X(name) in->name = (PFN_vk##name)in->GetInstanceProcAddr(in->handle, "vk" #name);
    SH_VK_INSTANCE_FUNCTIONS(X)
#undef X
#define X(name)                                                                                                                  \
    if (!in->name) {                                                                                                             \
        code = sh_fail(err, SH_ERR_UNSUPPORTED, "the Vulkan loader has no vk" #name);                                            \
        goto fail;                                                                                                               \
    }
    SH_VK_INSTANCE_FUNCTIONS(X)
#undef X
    if (debug) {
#define X(name) in->name = (PFN_vk##name)in->GetInstanceProcAddr(in->handle, "vk" #name);
        SH_VK_DEBUG_FUNCTIONS(X)
#undef X
        if (validation && in->CreateDebugUtilsMessengerEXT)
            in->CreateDebugUtilsMessengerEXT(in->handle, &messages, NULL, &in->messenger);
    }
    return SH_OK;
fail:
    sh_vk_instance_finish(in);
    return code;
}

void sh_vk_instance_finish(struct sh_vk_instance *in) {
    if (in->handle) {
        if (in->messenger) in->DestroyDebugUtilsMessengerEXT(in->handle, in->messenger, NULL);
        in->DestroyInstance(in->handle, NULL);
    }
    free((void *)in->validation_count);
    if (in->library) dlclose(in->library);
    *in = (struct sh_vk_instance){0};
}

enum sh_code sh_vk_physical_devices(const struct sh_vk_instance *in, VkPhysicalDevice **devices, uint32_t *count,
                                    struct sh_error *err) {
    *devices = NULL;
    *count = 0;
    uint32_t n = 0;
    VkResult result = in->EnumeratePhysicalDevices(in->handle, &n, NULL);
    if (result == VK_SUCCESS && n) {
        *devices = sh_calloc(n, sizeof **devices);
        if (!*devices) return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for %u Vulkan devices", n);
        result = in->EnumeratePhysicalDevices(in->handle, &n, *devices);
    }
    if (result < 0) {
        free(*devices);
        *devices = NULL;
        return sh_fail(err, SH_ERR_DEVICE, "vkEnumeratePhysicalDevices: %s", sh_vk_result_name(result));
    }
    *count = n;
    return SH_OK;
}

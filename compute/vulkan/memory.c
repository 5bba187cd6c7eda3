/* memory.c - buffers with device addresses, and arenas that cut them into pieces. */
#include "compute/vulkan/vk.h"

#include <stdlib.h>

#define SPAN_ALIGN 256u
#define GUARD_BYTES 256u
#define POISON 0xff /* as float32: NaN; as an index: far out of every limit */

/* The first memory type with all of `need`, none of `avoid`, among `bits`; -1: none. */
static int find_type(const struct sh_vulkan *vk, uint32_t bits, VkMemoryPropertyFlags need, VkMemoryPropertyFlags avoid) {
    for (uint32_t i = 0; i < vk->memory.memoryTypeCount; i++) {
        const VkMemoryPropertyFlags have = vk->memory.memoryTypes[i].propertyFlags;
        if ((bits >> i & 1) && (have & need) == need && !(have & avoid)) return (int)i;
    }
    return -1;
}

/* Memory types in order of preference; returns how many. */
static uint32_t choose_types(const struct sh_vulkan *vk, uint32_t bits, enum sh_vk_place place, uint32_t types[4]) {
    const VkMemoryPropertyFlags local = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, cached = VK_MEMORY_PROPERTY_HOST_CACHED_BIT,
                                host = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT,
                                never = VK_MEMORY_PROPERTY_LAZILY_ALLOCATED_BIT | VK_MEMORY_PROPERTY_PROTECTED_BIT;
    struct {
        VkMemoryPropertyFlags need, avoid;
    } wish[4];
    uint32_t n = 0, found = 0;
    switch (place) {
    case SH_PLACE_DEVICE:
        if (vk->unified) wish[n].need = local | host, wish[n++].avoid = never;
        wish[n].need = local, wish[n++].avoid = never | VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT;
        wish[n].need = local, wish[n++].avoid = never;
        break;
    case SH_PLACE_UPLOAD:
        wish[n].need = host | local, wish[n++].avoid = never;
        wish[n].need = host, wish[n++].avoid = never;
        break;
    case SH_PLACE_READBACK:
        wish[n].need = host | cached, wish[n++].avoid = never;
        wish[n].need = host, wish[n++].avoid = never;
        break;
    }
    for (uint32_t i = 0; i < n; i++) {
        const int type = find_type(vk, bits, wish[i].need, wish[i].avoid);
        if (type >= 0 && (found == 0 || types[found - 1] != (uint32_t)type)) types[found++] = (uint32_t)type;
    }
    return found;
}

enum sh_code sh_vk_buffer_create(struct sh_vulkan *vk, enum sh_vk_place place, enum sh_vk_use use, uint64_t bytes,
                                 const char *name, struct sh_vk_buffer *out, struct sh_error *err) {
    *out = (struct sh_vk_buffer){.bytes = bytes, .use = use};
    enum sh_code code = sh_vk_alive(vk, err);
    if (code != SH_OK) return code;
    if (bytes > vk->max_allocation_bytes)
        return sh_fail(err, SH_ERR_NO_DEVICE_MEMORY, "%s: %s needs %llu bytes in one piece, the driver allows %llu",
                       vk->base.info.name, name, (unsigned long long)bytes, (unsigned long long)vk->max_allocation_bytes);
    const VkBufferCreateInfo create = {
        .sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
        .size = bytes,
        .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT |
                 VK_BUFFER_USAGE_INDIRECT_BUFFER_BIT | VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT,
    };
    VkResult result = vk->CreateBuffer(vk->device, &create, NULL, &out->handle);
    if (result != VK_SUCCESS) {
        out->handle = VK_NULL_HANDLE;
        return sh_vk_fail(vk, result, "vkCreateBuffer", err);
    }
    VkMemoryRequirements need;
    vk->GetBufferMemoryRequirements(vk->device, out->handle, &need);
    uint32_t types[4], n_types = choose_types(vk, need.memoryTypeBits, place, types);
    result = VK_ERROR_OUT_OF_DEVICE_MEMORY;
    uint32_t type = 0;
    for (uint32_t i = 0; i < n_types && result == VK_ERROR_OUT_OF_DEVICE_MEMORY; i++) {
        type = types[i];
        const VkMemoryAllocateFlagsInfo flags = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO,
                                                 .flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT};
        const VkMemoryAllocateInfo allocate = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                               .pNext = &flags,
                                               .allocationSize = need.size,
                                               .memoryTypeIndex = type};
        result = vk->AllocateMemory(vk->device, &allocate, NULL, &out->memory);
    }
    if (result != VK_SUCCESS) {
        out->memory = VK_NULL_HANDLE;
        vk->DestroyBuffer(vk->device, out->handle, NULL);
        out->handle = VK_NULL_HANDLE;
        if (result != VK_ERROR_OUT_OF_DEVICE_MEMORY) return sh_vk_fail(vk, result, "vkAllocateMemory", err);
        return sh_fail(err, SH_ERR_NO_DEVICE_MEMORY, "%s: no device memory for %llu bytes of %s", vk->base.info.name,
                       (unsigned long long)bytes, name);
    }
    atomic_fetch_add(&vk->bytes[use], bytes);
    result = vk->BindBufferMemory(vk->device, out->handle, out->memory, 0);
    const bool host = vk->memory.memoryTypes[type].propertyFlags & VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
    if (result == VK_SUCCESS && host && (place != SH_PLACE_DEVICE || vk->unified))
        result = vk->MapMemory(vk->device, out->memory, 0, VK_WHOLE_SIZE, 0, (void **)&out->mapped);
    if (result != VK_SUCCESS) {
        out->mapped = NULL;
        sh_vk_buffer_destroy(vk, out);
        return sh_vk_fail(vk, result, "binding and mapping memory", err);
    }
    const VkBufferDeviceAddressInfo address = {.sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO, .buffer = out->handle};
    out->address = vk->GetBufferDeviceAddress(vk->device, &address);
    sh_vk_name(vk, VK_OBJECT_TYPE_BUFFER, (uint64_t)(uintptr_t)out->handle, "%s", name);
    sh_vk_name(vk, VK_OBJECT_TYPE_DEVICE_MEMORY, (uint64_t)(uintptr_t)out->memory, "%s", name);
    if (vk->poison && out->mapped) memset(out->mapped, POISON, bytes);
    return SH_OK;
}

void sh_vk_buffer_destroy(struct sh_vulkan *vk, struct sh_vk_buffer *buffer) {
    if (!buffer->handle) return;
    vk->DestroyBuffer(vk->device, buffer->handle, NULL);
    vk->FreeMemory(vk->device, buffer->memory, NULL); /* unmaps it too */
    atomic_fetch_sub(&vk->bytes[buffer->use], buffer->bytes);
    *buffer = (struct sh_vk_buffer){0};
}

void sh_vk_arena_init(struct sh_vk_arena *arena, struct sh_vulkan *vk, enum sh_vk_place place, enum sh_vk_use use,
                      uint64_t chunk_bytes, const char *name) {
    *arena = (struct sh_vk_arena){.vk = vk, .place = place, .use = use, .chunk_bytes = chunk_bytes, .name = name};
}

enum sh_code sh_vk_arena_take(struct sh_vk_arena *arena, uint64_t bytes, struct sh_vk_span *out, struct sh_error *err) {
    struct sh_vulkan *vk = arena->vk;
    const uint64_t need = sh_align_up(sh_max_u64(bytes, 4), SPAN_ALIGN) + (vk->poison ? GUARD_BYTES : 0);
    if (!sh_grow((void **)&arena->spans, &arena->cap_spans, arena->n_spans + 1, sizeof *arena->spans) ||
        !sh_grow((void **)&arena->buffers, &arena->cap_buffers, arena->n_buffers + 1, sizeof *arena->buffers))
        return sh_fail(err, SH_ERR_NO_MEMORY, "no memory for the list of %s", arena->name);
    if (arena->n_buffers == 0 || arena->buffers[arena->n_buffers - 1].bytes - arena->used < need) {
        const enum sh_code code = sh_vk_buffer_create(vk, arena->place, arena->use, sh_max_u64(need, arena->chunk_bytes),
                                                      arena->name, &arena->buffers[arena->n_buffers], err);
        if (code != SH_OK) return code;
        arena->n_buffers++;
        arena->used = 0;
    }
    const struct sh_vk_buffer *buffer = &arena->buffers[arena->n_buffers - 1];
    *out = (struct sh_vk_span){.buffer = buffer->handle,
                               .offset = arena->used,
                               .bytes = bytes,
                               .address = buffer->address + arena->used,
                               .mapped = buffer->mapped ? buffer->mapped + arena->used : NULL};
    arena->used += need;
    arena->spans[arena->n_spans++] = *out;
    return SH_OK;
}

uint64_t sh_vk_arena_bytes(const struct sh_vk_arena *arena) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < arena->n_buffers; i++) sum += arena->buffers[i].bytes;
    return sum;
}

/* Counts the pieces whose guard, up to the next piece, was written. */
static void check_guards(const struct sh_vk_arena *arena) {
    for (uint32_t i = 0; i < arena->n_spans; i++) {
        const struct sh_vk_span *span = &arena->spans[i];
        if (!span->mapped) continue;
        const uint64_t end = sh_align_up(sh_max_u64(span->bytes, 4), SPAN_ALIGN) + GUARD_BYTES;
        for (uint64_t b = sh_max_u64(span->bytes, 4); b < end; b++) {
            if (span->mapped[b] == POISON) continue;
            atomic_fetch_add(&arena->vk->guard_errors, 1);
            sh_log(SH_LOG_ERROR, "%s: piece %u of %llu bytes: byte %llu behind it was written", arena->name, i,
                   (unsigned long long)span->bytes, (unsigned long long)(b - span->bytes));
            break;
        }
    }
}

void sh_vk_arena_finish(struct sh_vk_arena *arena) {
    if (!arena->vk) return;
    if (arena->vk->poison) check_guards(arena);
    for (uint32_t i = 0; i < arena->n_buffers; i++) sh_vk_buffer_destroy(arena->vk, &arena->buffers[i]);
    free(arena->buffers);
    free(arena->spans);
    *arena = (struct sh_vk_arena){0};
}

uint64_t sh_vk_free_bytes(struct sh_vulkan *vk) {
    if (!vk->has_budget) return UINT64_MAX;
    VkPhysicalDeviceMemoryBudgetPropertiesEXT budget = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT};
    VkPhysicalDeviceMemoryProperties2 memory = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2, .pNext = &budget};
    vk->instance.GetPhysicalDeviceMemoryProperties2(vk->physical, &memory);
    uint64_t best = 0;
    for (uint32_t i = 0; i < memory.memoryProperties.memoryHeapCount; i++)
        if (memory.memoryProperties.memoryHeaps[i].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT &&
            budget.heapBudget[i] > budget.heapUsage[i])
            best = sh_max_u64(best, budget.heapBudget[i] - budget.heapUsage[i]);
    return best;
}

#include "compute/gguf/gguf.h"

#include <pthread.h>
#include <stdio.h>

/* Every element type of the file format, with its block. Numbers 4, 5, 31 to 33 and 36 to 38 belonged to types that were
 * removed. */
static const struct sh_type_info types[] = {
    [0] = {"F32", 1, 4, true},         [1] = {"F16", 1, 2, true},         [2] = {"Q4_0", 32, 18, true},
    [3] = {"Q4_1", 32, 20, true},      [6] = {"Q5_0", 32, 22, true},      [7] = {"Q5_1", 32, 24, true},
    [8] = {"Q8_0", 32, 34, true},      [9] = {"Q8_1", 32, 36, false},     [10] = {"Q2_K", 256, 84, true},
    [11] = {"Q3_K", 256, 110, true},   [12] = {"Q4_K", 256, 144, true},   [13] = {"Q5_K", 256, 176, true},
    [14] = {"Q6_K", 256, 210, true},   [15] = {"Q8_K", 256, 292, false},  [16] = {"IQ2_XXS", 256, 66, true},
    [17] = {"IQ2_XS", 256, 74, true},  [18] = {"IQ3_XXS", 256, 98, true}, [19] = {"IQ1_S", 256, 50, true},
    [20] = {"IQ4_NL", 32, 18, true},   [21] = {"IQ3_S", 256, 110, true},  [22] = {"IQ2_S", 256, 82, true},
    [23] = {"IQ4_XS", 256, 136, true}, [24] = {"I8", 1, 1, false},        [25] = {"I16", 1, 2, false},
    [26] = {"I32", 1, 4, false},       [27] = {"I64", 1, 8, false},       [28] = {"F64", 1, 8, false},
    [29] = {"IQ1_M", 256, 56, true},   [30] = {"BF16", 1, 2, true},       [34] = {"TQ1_0", 256, 54, true},
    [35] = {"TQ2_0", 256, 66, true},   [39] = {"MXFP4", 32, 17, true},
};

const struct sh_type_info *sh_type_info(uint32_t type) {
    return type < SH_COUNT(types) && types[type].name != NULL ? &types[type] : NULL;
}

static char computable[256];
static void list_computable(void) {
    size_t n = 0;
    for (uint32_t i = 0; i < SH_COUNT(types); i++)
        if (types[i].computable)
            n += (size_t)snprintf(computable + n, sizeof computable - n, "%s%s", n == 0 ? "" : ", ", types[i].name);
    SH_ASSERT(n < sizeof computable);
}

const char *sh_computable_types(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, list_computable);
    return computable;
}

uint64_t sh_type_row_bytes(uint32_t type, uint64_t cols) {
    const struct sh_type_info *info = sh_type_info(type);
    uint64_t bytes;
    if (info == NULL || cols % info->block_elements != 0) return 0;
    return sh_mul_u64(cols / info->block_elements, info->block_bytes, &bytes) ? bytes : 0;
}

const char *sh_value_type_name(enum sh_value_type type) {
    static const char *const names[] = {
        [SH_VALUE_U8] = "u8",      [SH_VALUE_I8] = "i8",     [SH_VALUE_U16] = "u16", [SH_VALUE_I16] = "i16",
        [SH_VALUE_U32] = "u32",    [SH_VALUE_I32] = "i32",   [SH_VALUE_F32] = "f32", [SH_VALUE_BOOL] = "bool",
        [SH_VALUE_STRING] = "str", [SH_VALUE_ARRAY] = "arr", [SH_VALUE_U64] = "u64", [SH_VALUE_I64] = "i64",
        [SH_VALUE_F64] = "f64",
    };
    return (size_t)type < SH_COUNT(names) ? names[type] : "unknown";
}

/*
 * The files of ../shared/parity against the reference values beside them, on every executor, with an f32 cache: each position's ten
 * best log-probs and the log-prob of the token that follows, all logits after the prompt, and the greedy continuation; of
 * embedding models both poolings. One file per family and per type of weights; all of them under SHIMMY_TEST_FULL=1.
 * SHIMMY_TEST_MODELS="gemma bloom" takes only those whose names hold one of the words; SHIMMY_TEST_FIGURES=1 prints how far each was.
 */
#include "tests/unit/parity.h"
#include "tests/unit/shared.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static bool is_chosen(const struct parity_entry *entry) {
    const char *words = getenv("SHIMMY_TEST_MODELS");
    if (words == NULL || words[0] == '\0') return parity_wanted(entry);
    char list[256], *state = NULL;
    snprintf(list, sizeof list, "%s", words);
    for (char *word = strtok_r(list, " ", &state); word != NULL; word = strtok_r(NULL, " ", &state))
        if (strstr(entry->name, word) != NULL) return true;
    return false;
}

/* A software Vulkan device takes a second for the longest prompt. In a short run it gets the two shorter ones, and the shortest alone of
 * files that are there for their type of weights. */
static uint32_t prompts_of(const struct parity_entry *entry, const struct sh_device *device) {
    if (sh_device_get_info(device)->kind != SH_DEVICE_SOFTWARE || parity_full()) return 3;
    return strncmp(entry->name, "llama-", 6) == 0 ? 1 : 2;
}

/* Every file on one device, or those that are there for their type of weights; how many of them are wrong, or are not computed. */
static uint32_t check_device(const char *name, bool types_alone) {
    uint32_t ran = 0, left_out = 0, wrong = 0;
    const double begin = core_cpu_seconds();
    struct sh_device *device = core_open_device(name);
    for (uint32_t i = 0; i < parity_count; i++) {
        if (!is_chosen(&parity_table[i]) || (types_alone && strncmp(parity_table[i].name, "llama-", 6) != 0)) {
            left_out++;
            continue;
        }
        struct parity p;
        struct core_model m;
        struct sh_error err = {0};
        parity_open(&p, parity_table[i].name);
        char why[256];
        const enum sh_code code = parity_load(&p, device, &m, &err);
        if (code != SH_OK || !parity_check(&p, &m, name, prompts_of(&parity_table[i], device), why)) {
            print_error("%s on %s: %s\n", p.name, name, code != SH_OK ? err.message : why);
            wrong++;
        }
        if (code == SH_OK) parity_unload(&m);
        ran++;
        parity_close(&p);
    }
    sh_device_close(device);
    print_message("RAN %u of %u reference models on %s, %.0f s of a core%s\n", ran, ran + left_out, name, core_cpu_seconds() - begin,
                  left_out > 0 ? "; SHIMMY_TEST_FULL=1 runs them all" : "");
    return wrong;
}

static void files_agree(void **state) {
    (void)state;
    const char *names[CORE_MAX_DEVICES];
    const uint32_t n = core_devices(names);
    uint32_t wrong = 0;
    for (uint32_t d = 0; d < n; d++) wrong += check_device(names[d], false);
    assert_int_equal(wrong, 0);
}

/* Files of quantised weights, where the Vulkan device under test has integer dot products in whatever speed. */
static void integer_dots_agree(void **state) {
    (void)state;
    const char *names[CORE_MAX_DEVICES];
    const uint32_t n = core_devices(names);
    if (n == 0 || strncmp(names[n - 1], "cpu", 3) == 0 || strchr(names[n - 1], ':') != NULL)
        test_skip(__func__, "no Vulkan device is tested, or in a tier by name");
    char name[300];
    snprintf(name, sizeof name, "%s:intdot", names[n - 1]);
    assert_int_equal(check_device(name, true), 0);
}

static void the_table_names_every_file(void **state) {
    (void)state;
    DIR *dir = opendir(TEST_SHARED("parity"));
    assert_non_null(dir);
    uint32_t found = 0;
    for (struct dirent *e; (e = readdir(dir)) != NULL;) {
        const size_t length = strlen(e->d_name);
        if (length < 5 || strcmp(e->d_name + length - 5, ".json") != 0) continue;
        bool known = false;
        for (uint32_t i = 0; i < parity_count && !known; i++)
            known = strlen(parity_table[i].name) == length - 5 && strncmp(parity_table[i].name, e->d_name, length - 5) == 0;
        if (!known) fail_msg("%s is not in the table", e->d_name);
        found++;
    }
    closedir(dir);
    assert_int_equal(found, parity_count);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files_agree),
        cmocka_unit_test(integer_dots_agree),
        cmocka_unit_test(the_table_names_every_file),
    };
    return cmocka_run_group_tests_name("core_parity", tests, NULL, NULL);
}

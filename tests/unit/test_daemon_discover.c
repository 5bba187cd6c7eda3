/* test_daemon_discover.c - the search for models: directories, Hugging Face's cache, Ollama's store, links between them, hostile contents. */
#include "compute/base.h"
#include "daemon/discover.h"
#include "tests/unit/daemon_room.h"
#include "tests/unit/shared.h"

#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- trees ------------------------------------------------------------------------------------------- */

static const char *in(const char *root, const char *relative) {
    static char paths[8][PATH_MAX];
    static uint32_t next;
    char *path = paths[next++ % SH_COUNT(paths)];
    snprintf(path, PATH_MAX, "%s/%s", root, relative);
    return path;
}

static void make_parents(const char *path) {
    char copy[PATH_MAX];
    snprintf(copy, sizeof copy, "%s", path);
    for (char *slash = strchr(copy + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(copy, 0755);
        *slash = '/';
    }
}

static void put(const char *root, const char *relative, const char *text) {
    const char *path = in(root, relative);
    make_parents(path);
    test_write_file(path, text, strlen(text));
}

static void point(const char *root, const char *relative, const char *target) {
    const char *path = in(root, relative);
    make_parents(path);
    assert_int_equal(symlink(target, path), 0);
}

static void directory(const char *root, const char *relative) {
    const char *path = in(root, relative);
    make_parents(path);
    assert_int_equal(mkdir(path, 0755), 0);
}

static struct found_list found_in(const char *root) {
    struct found_list list = {0};
    struct sh_error err;
    if (discover_directory(root, true, &list, &err) != SH_OK) fail_msg("%s", err.message);
    return list;
}

static const struct found_model *found(const struct found_list *list, const char *id) {
    for (uint32_t i = 0; i < list->count; i++)
        if (strcmp(list->items[i].id, id) == 0) return &list->items[i];
    return NULL;
}

static bool is_called(const struct found_list *list, const char *id, const char *name) {
    const struct found_model *model = found(list, id);
    for (uint32_t i = 0; model && i < model->n_names; i++)
        if (strcmp(model->names[i], name) == 0) return true;
    return false;
}

static void assert_left_out(const struct found_list *list, const char *path_end, const char *reason) {
    const size_t length = strlen(path_end);
    for (uint32_t i = 0; i < list->n_left_out; i++) {
        const char *path = list->left_out[i].path;
        if (strlen(path) < length || strcmp(path + strlen(path) - length, path_end) != 0) continue;
        if (!strstr(list->left_out[i].reason, reason))
            fail_msg("%s is left out since '%s', expected '%s'", path_end, list->left_out[i].reason, reason);
        return;
    }
    fail_msg("%s is not among the %u left out", path_end, list->n_left_out);
}

/* ---- directories ------------------------------------------------------------------------------------- */

static void test_what_is_passed_over_is_told(void **state) {
    (void)state;
    const char *root = room_directory("walk");
    put(root, "good.gguf", "x");
    put(root, "half.gguf.part", "x");
    put(root, "half.gguf.incomplete", "x");
    put(root, "notes.txt.part", "x");
    put(root, "weights.safetensors", "x");
    put(root, "sub/.hidden/quiet.gguf", "x");
    point(root, "gone.gguf", "/nonexistent/target.gguf");
    point(root, "unmounted", "/nonexistent/disk");
    point(root, "sub/up", "..");
    point(root, "sub/side", "../other");
    put(root, "other/o.gguf", "x");
    directory(root, "folder.gguf");
    put(root, "folder.gguf/inside.gguf", "x");
    assert_int_equal(mkfifo(in(root, "pipe.gguf"), 0644), 0);
    put(root, "1/2/3/4/5/6/7/eight.gguf", "x");
    put(root, "1/2/3/4/5/6/7/8/nine.gguf", "x");

    struct found_list list = found_in(root);
    assert_int_equal(list.count, 4);
    assert_non_null(found(&list, "good"));
    assert_non_null(found(&list, "o"));
    assert_non_null(found(&list, "inside"));
    assert_non_null(found(&list, "eight"));
    assert_left_out(&list, "/half.gguf.part", "not ended");
    assert_left_out(&list, "/half.gguf.incomplete", "not ended");
    assert_left_out(&list, "/gone.gguf", "/nonexistent/target.gguf: No such file");
    assert_left_out(&list, "/unmounted", "/nonexistent/disk");
    assert_left_out(&list, "/sub/up", "in which it lies");
    assert_left_out(&list, "/pipe.gguf", "not a regular file");
    assert_left_out(&list, "/7/8", "deeper than 8 levels");
    assert_int_equal(list.n_left_out, 7); /* a link aside is in order, and so are files that are no models */
    assert_int_equal(list.n_roots, 1);
    found_list_finish(&list);

    /* What was too deep from one root is reached from a nearer one; nothing is found twice. */
    struct sh_error err;
    list = found_in(root);
    assert_int_equal(discover_directory(in(root, "1/2/3"), true, &list, &err), SH_OK);
    assert_int_equal(list.count, 5);
    assert_int_equal(found(&list, "nine")->root, 1);
    assert_int_equal(found(&list, "eight")->root, 0);
    found_list_finish(&list);

    list = (struct found_list){0};
    assert_int_equal(discover_directory(in(root, "good.gguf"), true, &list, &err), SH_ERR_INVALID);
    assert_int_equal(discover_directory(in(root, "none"), true, &list, &err), SH_ERR_NOT_FOUND);
    assert_int_equal(list.n_roots, 0);
    found_list_finish(&list);
}

static void test_directories_that_cannot_be_read(void **state) {
    (void)state;
    if (geteuid() == 0) TEST_SKIP("root reads every directory");
    const char *root = room_directory("locked");
    put(root, "inner/closed.gguf", "x");
    assert_int_equal(chmod(in(root, "inner"), 0), 0);
    struct found_list list = found_in(root);
    struct sh_error err;
    assert_int_equal(list.count, 0);
    assert_left_out(&list, "/inner", "Permission denied");
    assert_int_equal(discover_directory(in(root, "inner"), true, &list, &err), SH_ERR_IO);
    found_list_finish(&list);
    chmod(in(root, "inner"), 0755);
}

static void test_parts_of_a_model_are_one(void **state) {
    (void)state;
    const char *root = room_directory("parts");
    put(root, "a-00001-of-00003.gguf", "1");
    put(root, "a-00002-of-00003.gguf", "22");
    put(root, "a-00003-of-00003.gguf", "333");
    put(root, "a-00001-of-00002.gguf", "4444"); /* another model of the same name */
    put(root, "a.gguf", "55555");
    put(root, "late-00007-of-00512.gguf", "x");
    put(root, "many-00007-of-99999.gguf", "x");
    put(root, "zero-00000-of-00002.gguf", "x");
    put(root, "more-00003-of-00002.gguf", "x");
    struct found_list list = found_in(root);
    uint32_t called_a = 0;
    uint64_t sizes = 0;
    for (uint32_t i = 0; i < list.count; i++) {
        if (strcmp(list.items[i].id, "a") != 0) continue;
        called_a++;
        sizes = sizes * 10 + list.items[i].size_bytes;
    }
    assert_int_equal(called_a, 3);
    assert_true(sizes == 546 || sizes == 564 || sizes == 456 || sizes == 465 || sizes == 645 || sizes == 654);
    assert_non_null(found(&list, "late"));
    assert_non_null(found(&list, "zero-00000-of-00002")); /* not how parts are numbered */
    assert_non_null(found(&list, "more-00003-of-00002"));
    assert_non_null(found(&list, "many-00007-of-99999")); /* nor are there so many: nobody looks for them */
    assert_int_equal(list.count, 7);
    found_list_finish(&list);

    /* A part that changes changes the model, although its first part is as it was. */
    struct found_model before, after;
    struct sh_error err;
    assert_int_equal(discover_file(in(root, "a-00001-of-00003.gguf"), &before, &err), SH_OK);
    put(root, "a-00002-of-00003.gguf", "zz");
    const struct timespec times[] = {{100, 0}, {100, 0}};
    assert_int_equal(utimensat(AT_FDCWD, in(root, "a-00002-of-00003.gguf"), times, 0), 0);
    assert_int_equal(discover_file(in(root, "a-00003-of-00003.gguf"), &after, &err), SH_OK);
    assert_string_equal(before.path, after.path);
    assert_true(identity_equal(&before.identity, &after.identity));
    assert_int_equal(before.size_bytes, after.size_bytes);
    assert_true(before.parts != after.parts);
    list = found_in(root);
    bool same = false;
    for (uint32_t i = 0; i < list.count; i++) same |= strcmp(list.items[i].path, after.path) == 0 && list.items[i].parts == after.parts;
    assert_true(same); /* both ways of looking at it agree */
    found_list_finish(&list);
    found_model_finish(&before);
    found_model_finish(&after);
}

static void test_many_files(void **state) {
    (void)state;
    const char *root = room_directory("many");
    char name[100];
    for (uint32_t i = 0; i < DISCOVER_MAX_MODELS + 5; i++) {
        snprintf(name, sizeof name, "%02u/model-%05u.gguf", i % 50, i);
        put(root, name, "x");
    }
    struct found_list list = found_in(root);
    assert_int_equal(list.count, DISCOVER_MAX_MODELS);
    assert_int_equal(list.n_left_out, 1);
    assert_non_null(strstr(list.left_out[0].reason, "10000 models"));
    found_list_finish(&list);
    for (uint32_t i = 0; i < DISCOVER_MAX_LEFT_OUT + 5; i++) {
        snprintf(name, sizeof name, "part/%05u.gguf.part", i);
        put(root, name, "x");
    }
    list = found_in(in(root, "part"));
    assert_int_equal(list.n_left_out, DISCOVER_MAX_LEFT_OUT);
    assert_non_null(strstr(list.left_out[DISCOVER_MAX_LEFT_OUT - 1].reason, "and more"));
    found_list_finish(&list);
}

/* ---- Hugging Face's cache ---------------------------------------------------------------------------- */

#define REPO "models--org--Name-GGUF/"

static void test_hub(void **state) {
    (void)state;
    const char *root = room_directory("hub");
    put(root, REPO "blobs/b1", "1");
    put(root, REPO "blobs/b2", "22");
    put(root, REPO "blobs/b3", "333");
    put(root, REPO "blobs/b4.incomplete", "4");
    put(root, REPO "blobs/s1", "s");
    put(root, REPO "blobs/s2", "ss");
    put(root, REPO "refs/main", "2222\n");
    point(root, REPO "snapshots/1111/Name-Q4_0.gguf", "../../blobs/b1");
    point(root, REPO "snapshots/1111/Old-Q4_0.gguf", "../../blobs/b3");
    point(root, REPO "snapshots/1111/config.json", "../../blobs/none");
    point(root, REPO "snapshots/2222/Name-Q4_0.gguf", "../../blobs/b2");
    point(root, REPO "snapshots/2222/sub/Name-Q8_0-00001-of-00002.gguf", "../../../blobs/s1");
    point(root, REPO "snapshots/2222/sub/Name-Q8_0-00002-of-00002.gguf", "../../../blobs/s2");
    point(root, REPO "snapshots/2222/Lost.gguf", "../../blobs/none");
    point(root, REPO "snapshots/3333/Name-Q4_0.gguf", "../../blobs/b2"); /* the same file in a later commit */
    put(root, "models--empty/refs/main", "x");
    put(root, "models--org--Bare/snapshots/ab/Bare.gguf", "bare"); /* without refs, without links */
    put(root, "datasets--org--Data/snapshots/ab/notes.txt", "x");
    put(root, ".locks/" REPO "b1.lock", "");

    struct found_list list = found_in(root);
    const struct found_model *name = found(&list, "Name-Q4_0"), *split = found(&list, "Name-Q8_0");
    assert_non_null(name);
    assert_non_null(strstr(name->path, "/snapshots/2222/Name-Q4_0.gguf"));
    assert_int_equal(name->size_bytes, 2);
    assert_false(name->store_name);
    assert_non_null(split);
    assert_int_equal(split->size_bytes, 3);
    assert_non_null(strstr(split->path, "/sub/Name-Q8_0-00001-of-00002.gguf"));
    assert_non_null(found(&list, "Old-Q4_0")); /* only another commit has it */
    assert_non_null(found(&list, "Bare"));
    assert_int_equal(list.count, 4);
    assert_left_out(&list, "/1111/Name-Q4_0.gguf", "/snapshots/2222/Name-Q4_0.gguf");
    assert_left_out(&list, "/b4.incomplete", "not ended");
    assert_left_out(&list, "/Lost.gguf", "No such file");
    assert_left_out(&list, "/config.json", "No such file");
    assert_int_equal(list.n_left_out, 4);
    found_list_finish(&list);

    /* The reference moves on, and what it names counts; it may name nothing that there is. */
    put(root, REPO "refs/main", "1111");
    list = found_in(root);
    assert_non_null(strstr(found(&list, "Name-Q4_0")->path, "/1111/"));
    found_list_finish(&list);
    static const char *const odd[] = {"", "../../../../etc", "4444", "\n\n", "2222 1111"};
    for (uint32_t i = 0; i < SH_COUNT(odd); i++) {
        put(root, REPO "refs/main", odd[i]);
        const struct timespec times[] = {{1000, 0}, {1000, 0}};
        assert_int_equal(utimensat(AT_FDCWD, in(root, REPO "snapshots/1111"), times, 0), 0);
        list = found_in(root);
        assert_int_equal(list.count, 4);
        assert_null(strstr(found(&list, "Name-Q4_0")->path, "/1111/")); /* the newest counts, which is not this */
        found_list_finish(&list);
    }
    /* The cache may also be given as one repository, or lie anywhere below a root. */
    list = found_in(in(root, "models--org--Name-GGUF"));
    assert_int_equal(list.count, 3);
    found_list_finish(&list);
}

/* ---- Ollama's store ---------------------------------------------------------------------------------- */

#define HEX_A "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define HEX_B "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
#define HEX_C "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"
#define HEX_D "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"
#define MODEL_LAYER "application/vnd.ollama.image.model"
#define LIBRARY "manifests/registry.ollama.ai/library/"

static void manifest(const char *root, const char *relative, const char *digest, int size) {
    char text[1000];
    snprintf(text, sizeof text,
             "{\"schemaVersion\":2,\"mediaType\":\"application/vnd.docker.distribution.manifest.v2+json\",\"config\":{\"digest\":"
             "\"sha256:" HEX_D "\"},\"layers\":[{\"mediaType\":\"application/vnd.ollama.image.template\",\"digest\":\"sha256:" HEX_D
             "\"},{\"mediaType\":\"" MODEL_LAYER "\",\"digest\":\"%s\",\"size\":%d}]}",
             digest, size);
    put(root, relative, text);
}

static void test_ollama(void **state) {
    (void)state;
    const char *root = room_directory("ollama");
    put(root, "blobs/sha256-" HEX_A, "a");
    put(root, "blobs/sha256-" HEX_B, "bb");
    put(root, "blobs/sha256:" HEX_C, "ccc"); /* how old versions wrote it */
    put(root, "blobs/sha256-" HEX_D "-partial", "d");
    put(root, "blobs/sha256-" HEX_D "-partial-0", "{}");
    put(root, "blobs/stray.gguf", "x");
    manifest(root, LIBRARY "llama3.2/1b", "sha256:" HEX_A, 1);
    manifest(root, LIBRARY "llama3.2/latest", "sha256:" HEX_A, 1);
    manifest(root, LIBRARY "llama3.2/1b-instruct-q4_K_M", "sha256-" HEX_A, 1);
    manifest(root, "manifests/registry.ollama.ai/someone/mine/q8", "sha256:" HEX_B, 2);
    manifest(root, "manifests/hf.co/org/Name-GGUF/Q4_K_M", "sha256:" HEX_C, 3);
    put(root, LIBRARY "llama3.2/.DS_Store", "x");

    struct found_list list = found_in(root);
    const struct found_model *tiny = found(&list, "llama3.2:1b");
    assert_non_null(tiny);
    assert_true(tiny->store_name);
    assert_int_equal(tiny->size_bytes, 1);
    assert_non_null(strstr(tiny->path, "/blobs/sha256-" HEX_A));
    assert_true(is_called(&list, "llama3.2:1b", "llama3.2:latest"));
    assert_true(is_called(&list, "llama3.2:1b", "llama3.2:1b-instruct-q4_K_M"));
    assert_non_null(found(&list, "someone/mine:q8"));
    assert_non_null(found(&list, "hf.co/org/Name-GGUF:Q4_K_M"));
    assert_int_equal(list.count, 3);
    assert_left_out(&list, "-partial", "not ended");
    assert_int_equal(list.n_left_out, 1);
    found_list_finish(&list);
}

static void test_hostile_manifests(void **state) {
    (void)state;
    const char *root = room_directory("hostile");
    static const struct {
        const char *tag, *text, *reason;
    } cases[] = {
        {"empty", "", "no manifest"},
        {"nojson", "GGUF", "no manifest"},
        {"array", "[]", "no array 'layers'"},
        {"number", "7", "no manifest"},
        {"nolayers", "{}", "no array 'layers'"},
        {"object", "{\"layers\":{\"mediaType\":\"" MODEL_LAYER "\"}}", "no array 'layers'"},
        {"none", "{\"layers\":[]}", "0 layers"},
        {"strings", "{\"layers\":[\"" MODEL_LAYER "\",3,null,[],{}]}", "0 layers"},
        {"kind", "{\"layers\":[{\"mediaType\":7,\"digest\":\"sha256:" HEX_A "\"}]}", "0 layers"},
        {"nodigest", "{\"layers\":[{\"mediaType\":\"" MODEL_LAYER "\"}]}", "no text"},
        {"numdigest", "{\"layers\":[{\"mediaType\":\"" MODEL_LAYER "\",\"digest\":5}]}", "no text"},
        {"up", "{\"layers\":[{\"mediaType\":\"" MODEL_LAYER "\",\"digest\":\"sha256:../../../secret.gguf\"}]}", "hexadecimal"},
        {"up2", "{\"layers\":[{\"mediaType\":\"" MODEL_LAYER "\",\"digest\":\"../secret.gguf\"}]}", "hexadecimal"},
        {"slash", "{\"layers\":[{\"mediaType\":\"" MODEL_LAYER "\",\"digest\":\"sha256:" HEX_A "/../../secret.gguf\"}]}", "hexadecimal"},
        {"long", "{\"layers\":[{\"mediaType\":\"" MODEL_LAYER "\",\"digest\":\"sha256:" HEX_A "a\"}]}", "hexadecimal"},
        {"short", "{\"layers\":[{\"mediaType\":\"" MODEL_LAYER "\",\"digest\":\"sha256:aa\"}]}", "hexadecimal"},
        {"upper", "{\"layers\":[{\"mediaType\":\"" MODEL_LAYER "\",\"digest\":\"SHA256:" HEX_A "\"}]}", "hexadecimal"},
        {"nul", "{\"layers\":[{\"mediaType\":\"" MODEL_LAYER "\",\"digest\":\"sha256:" HEX_A "\\u0000/x\"}]}", "no manifest"},
        {"missing", "{\"layers\":[{\"mediaType\":\"" MODEL_LAYER "\",\"digest\":\"sha256:" HEX_B "\"}]}", "No such file"},
        {"cut", "{\"layers\":[{\"mediaType\":\"" MODEL_LAYER "\",\"digest\":\"sha256:" HEX_A "\",\"size\":900}]}", "has 1 bytes, expected 900"},
        {"folder", "{\"layers\":[{\"mediaType\":\"" MODEL_LAYER "\",\"digest\":\"sha256:" HEX_C "\"}]}", "not a regular file"},
        {"two", "{\"layers\":[{\"mediaType\":\"" MODEL_LAYER "\",\"digest\":\"sha256:" HEX_A "\"},{\"mediaType\":\"" MODEL_LAYER "\"}]}",
         "2 layers"},
        {"adapter",
         "{\"layers\":[{\"mediaType\":\"" MODEL_LAYER "\",\"digest\":\"sha256:" HEX_A
         "\"},{\"mediaType\":\"application/vnd.ollama.image.adapter\"}]}",
         "adapter"},
    };
    put(root, "secret.gguf.txt", "s");
    put(root, "store/blobs/sha256-" HEX_A, "a");
    directory(root, "store/blobs/sha256-" HEX_C);
    for (uint32_t i = 0; i < SH_COUNT(cases); i++) {
        char relative[200];
        snprintf(relative, sizeof relative, "store/" LIBRARY "m/%s", cases[i].tag);
        put(root, relative, cases[i].text);
    }
    /* As large as a model, as deep as a parser's stack, a folder, a pipe, a link that leads nowhere, files where folders belong. */
    static char big[300 << 10];
    memset(big, '[', sizeof big - 1);
    put(root, "store/" LIBRARY "m/huge", big);
    big[200 << 10] = 0;
    put(root, "store/" LIBRARY "m/deep", big);
    directory(root, "store/" LIBRARY "m/dir");
    assert_int_equal(mkfifo(in(root, "store/" LIBRARY "m/pipe"), 0644), 0);
    point(root, "store/" LIBRARY "m/link", "/nonexistent");
    put(root, "store/manifests/file", "x");
    put(root, "store/manifests/registry.ollama.ai/file", "x");

    struct found_list list = found_in(root);
    assert_int_equal(list.count, 0);
    for (uint32_t i = 0; i < SH_COUNT(cases); i++) {
        char end[100];
        snprintf(end, sizeof end, "/m/%s", cases[i].tag);
        assert_left_out(&list, end, cases[i].reason);
    }
    assert_left_out(&list, "/m/huge", "larger than");
    assert_left_out(&list, "/m/deep", "no manifest");
    assert_left_out(&list, "/m/dir", "not a regular file");
    assert_left_out(&list, "/m/pipe", "not a regular file");
    assert_left_out(&list, "/m/link", "No such file");
    assert_left_out(&list, "/manifests/file", "no manifest");
    assert_int_equal(list.n_left_out, SH_COUNT(cases) + 7);
    found_list_finish(&list);
}

static void test_one_file_in_several_stores(void **state) {
    (void)state;
    const char *root = room_directory("several");
    put(root, "ollama/blobs/sha256-" HEX_A, "a");
    manifest(root, "ollama/" LIBRARY "tiny/latest", "sha256:" HEX_A, 1);
    directory(root, "lm");
    assert_int_equal(link(in(root, "ollama/blobs/sha256-" HEX_A), in(root, "lm/Tiny-1B-Q4_0.gguf")), 0);
    point(root, "own/my tiny.gguf", in(root, "lm/Tiny-1B-Q4_0.gguf"));
    static const char *const orders[][3] = {{"own", "lm", "ollama"}, {"ollama", "lm", "own"}, {"lm", "ollama", "own"}};
    static const char *const ids[] = {"my tiny", "tiny:latest", "Tiny-1B-Q4_0"};
    for (uint32_t o = 0; o < SH_COUNT(orders); o++) {
        struct found_list list = {0};
        struct sh_error err;
        for (uint32_t i = 0; i < 3; i++) assert_int_equal(discover_directory(in(root, orders[o][i]), true, &list, &err), SH_OK);
        assert_int_equal(list.count, 1);
        assert_string_equal(list.items[0].id, ids[o]);
        assert_int_equal(list.items[0].n_names, 2);
        for (uint32_t i = 0; i < SH_COUNT(ids); i++) assert_true(i == o || is_called(&list, ids[o], ids[i]));
        assert_int_equal(list.items[0].store_name, o == 1);
        assert_int_equal(list.n_left_out, 0);
        found_list_finish(&list);
    }
    /* Names have an end, too. */
    for (uint32_t i = 0; i < DISCOVER_MAX_NAMES + 10; i++) {
        char name[100];
        snprintf(name, sizeof name, "links/n%03u.gguf", i);
        point(root, name, in(root, "lm/Tiny-1B-Q4_0.gguf"));
    }
    struct found_list list = found_in(in(root, "links"));
    assert_int_equal(list.count, 1);
    assert_int_equal(list.items[0].n_names, DISCOVER_MAX_NAMES);
    found_list_finish(&list);
}

/* ---- places ------------------------------------------------------------------------------------------ */

static const char *const variables[] = {"HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "OLLAMA_MODELS"};

static struct found_list search_all(const char *first, ...) {
    char *flags[6] = {0};
    va_list args;
    va_start(args, first);
    const char *arg = first;
    for (uint32_t i = 0; arg && i < SH_COUNT(flags); arg = va_arg(args, const char *)) flags[i++] = (char *)(uintptr_t)arg;
    va_end(args);
    struct config *config = room_config("--discover=yes", flags[0], flags[1], flags[2], flags[3], flags[4], flags[5], NULL);
    struct found_list list = {0};
    discover_all(config, &list);
    config_unref(config);
    return list;
}

/* The roots below `root`, without that part of their paths, in their order; others are the machine's. */
static void assert_roots(const struct found_list *list, const char *root, const char *expected) {
    char text[1000] = "";
    for (uint32_t i = 0; i < list->n_roots; i++) {
        if (strncmp(list->roots[i].path, root, strlen(root)) != 0) continue;
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%s ", list->roots[i].path + strlen(root),
                 list->roots[i].error ? "!" : "");
    }
    assert_string_equal(text, expected);
}

static void test_places(void **state) {
    (void)state;
    char *root = realpath(room_directory("places"), NULL), *before = getcwd(NULL, 0);
    assert_true(root && before);
    for (uint32_t i = 0; i < SH_COUNT(variables); i++) unsetenv(variables[i]);
    put(root, "work/models/here.gguf", "1");
    put(root, "home/.cache/huggingface/hub/models--a--b/snapshots/1/hub.gguf", "2");
    put(root, "home/.ollama/models/blobs/sha256-" HEX_A, "3");
    manifest(root, "home/.ollama/models/" LIBRARY "o/latest", "sha256:" HEX_A, 1);
    put(root, "home/.lmstudio/models/p/r/lm.gguf", "4");
    put(root, "home/.cache/lm-studio/models/p/r/old.gguf", "5");
    put(root, "home/models/home.gguf", "6");
    put(root, "home/.local/share/shimmy/models/own.gguf", "7");
    put(root, "set/a.gguf", "8");
    put(root, "set2/b.gguf", "9");
    put(root, "one/file.gguf", "0");
    put(root, "hf/hub/models--a--b/snapshots/1/hf.gguf", "a");
    put(root, "cache/models--a--b/snapshots/1/cached.gguf", "b");
    put(root, "xdg/huggingface/hub/models--a--b/snapshots/1/xdg.gguf", "c");
    put(root, "store/blobs/sha256-" HEX_B, "d");
    manifest(root, "store/" LIBRARY "s/latest", "sha256:" HEX_B, 1);
    assert_int_equal(chdir(in(root, "work")), 0);

    char sets[2 * PATH_MAX], file[PATH_MAX];
    snprintf(sets, sizeof sets, "%s/set:%s/none;%s/set2:%s/home/models", root, root, root, root);
    snprintf(file, sizeof file, "%s/one/file.gguf", root);
    setenv("HOME", in(root, "home"), 1);
    struct found_list list = search_all("--model-dir", sets, "--base-gguf", file, NULL);
    assert_roots(&list, root,
                 "/one/file.gguf /set /none! /set2 /home/models /work/models /home/.cache/huggingface/hub /home/.ollama/models "
                 "/home/.lmstudio/models /home/.cache/lm-studio/models /home/.local/share/shimmy/models ");
    static const char *const all[] = {"file", "a", "b", "home", "here", "hub", "o:latest", "lm", "old", "own"};
    for (uint32_t i = 0; i < SH_COUNT(all); i++)
        if (!found(&list, all[i])) fail_msg("%s is not found", all[i]);
    for (uint32_t i = 0; i < list.n_roots; i++)
        if (list.roots[i].error && strncmp(list.roots[i].path, root, strlen(root)) == 0)
            assert_string_equal(list.roots[i].error, "No such file or directory");
    found_list_finish(&list);

    /* Only what is configured. */
    list = search_all("--discover=no", "--model-dir", in(root, "set"), NULL);
    assert_roots(&list, root, "/set ");
    assert_int_equal(list.count, 1);
    assert_int_equal(list.n_roots, 1);
    found_list_finish(&list);

    /* What the environment names takes the usual one's place, and is told of if it is not there. */
    setenv("HF_HOME", in(root, "hf"), 1);
    setenv("OLLAMA_MODELS", in(root, "store"), 1);
    setenv("XDG_CACHE_HOME", in(root, "xdg"), 1);
    list = search_all(NULL);
    assert_non_null(found(&list, "hf"));
    assert_non_null(found(&list, "s:latest"));
    assert_null(found(&list, "hub"));
    assert_null(found(&list, "xdg"));
    assert_null(found(&list, "o:latest"));
    found_list_finish(&list);
    setenv("HF_HUB_CACHE", in(root, "cache"), 1);
    setenv("OLLAMA_MODELS", in(root, "nostore"), 1);
    list = search_all(NULL);
    assert_non_null(found(&list, "cached"));
    assert_null(found(&list, "hf"));
    assert_roots(&list, root,
                 "/work/models /cache /nostore! /home/.lmstudio/models /home/.cache/lm-studio/models /home/models "
                 "/home/.local/share/shimmy/models ");
    found_list_finish(&list);

    /* As a service: no home, or / for one. */
    for (uint32_t i = 0; i < SH_COUNT(variables); i++) unsetenv(variables[i]);
    assert_int_equal(chdir("/"), 0);
    static const char *const homes[] = {NULL, "", "/"};
    for (uint32_t i = 0; i < SH_COUNT(homes); i++) {
        if (homes[i]) setenv("HOME", homes[i], 1);
        list = search_all("--model-dir", in(root, "set"), NULL);
        assert_roots(&list, root, "/set ");
        for (uint32_t j = 0; j < list.n_roots; j++) assert_null(strstr(list.roots[j].path, ".lmstudio"));
        found_list_finish(&list);
    }
    assert_int_equal(chdir(before), 0);
    free(before);
    free(root);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_passed_over_is_told),
        cmocka_unit_test(test_directories_that_cannot_be_read),
        cmocka_unit_test(test_parts_of_a_model_are_one),
        cmocka_unit_test(test_many_files),
        cmocka_unit_test(test_hub),
        cmocka_unit_test(test_ollama),
        cmocka_unit_test(test_hostile_manifests),
        cmocka_unit_test(test_one_file_in_several_stores),
        cmocka_unit_test(test_places),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Cores, nodes and quotas of machines that are made up as trees of files: servers with hyperthreads and two nodes, containers
 * with a few CPUs or a share of time, a desktop with cores of two kinds, kernels that tell nothing. */
#include "compute/cpu/cpu.h"
#include "compute/cpu/topology.h"
#include "tests/unit/shared.h"

#include <errno.h>
#include <ftw.h>
#include <linux/mempolicy.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

static char root[64];

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *where) {
    (void)info;
    (void)kind;
    (void)where;
    return remove(path);
}

static int make_root(void **state) {
    (void)state;
    snprintf(root, sizeof root, "/tmp/shimmy-topology.XXXXXX");
    return mkdtemp(root) == NULL;
}
static int remove_root(void **state) {
    (void)state;
    return nftw(root, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static void put(const char *text, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void put(const char *text, const char *fmt, ...) {
    char path[512];
    int n = snprintf(path, sizeof path, "%s/", root);
    va_list arguments;
    va_start(arguments, fmt);
    vsnprintf(path + n, sizeof path - (size_t)n, fmt, arguments);
    va_end(arguments);
    for (char *at = strchr(path + n, '/'); at != NULL; at = strchr(at + 1, '/')) {
        *at = '\0';
        if (mkdir(path, 0700) != 0) assert_int_equal(errno, EEXIST);
        *at = '/';
    }
    test_write_file(path, text, strlen(text));
}

static struct sh_topology read_tree(const char *allowed) {
    struct sh_cpu_set set;
    struct sh_topology topology;
    sh_cpu_set_parse(allowed, &set);
    sh_topology_read(root, &set, &topology);
    return topology;
}

static void check_set(const char *list, uint32_t count, uint32_t lowest, uint32_t highest) {
    struct sh_cpu_set set;
    sh_cpu_set_parse(list, &set);
    uint32_t n = 0, low = UINT32_MAX, high = 0;
    for (uint32_t cpu = 0; cpu < SH_TOPOLOGY_MAX_CPUS; cpu++) {
        if (!sh_cpu_set_has(&set, cpu)) continue;
        n++;
        if (low == UINT32_MAX) low = cpu;
        high = cpu;
    }
    if (n != count || (n > 0 && (low != lowest || high != highest)))
        fail_msg("\"%s\": found %u from %u to %u, expected %u from %u to %u", list, n, low, high, count, lowest, highest);
}

static void test_topology_lists(void **state) {
    (void)state;
    check_set("0-3,8,10-11\n", 7, 0, 11);
    check_set("5", 1, 5, 5);
    check_set("0,64,128-130\n", 5, 0, 130);
    check_set("", 0, 0, 0);
    check_set("\n", 0, 0, 0);
    check_set("none", 0, 0, 0);
    check_set("3-", 0, 0, 0);
    check_set("4,", 1, 4, 4);
    check_set("8190-9000\n", 2, 8190, 8191);
    check_set("0-99999999999999999999\n", SH_TOPOLOGY_MAX_CPUS, 0, SH_TOPOLOGY_MAX_CPUS - 1);
}

/* Two packages of 4 cores with two threads each: CPUs 0-7 are the first threads, 8-15 the second; a node for each package. */
static void make_server(void) {
    for (int cpu = 0; cpu < 16; cpu++) {
        char siblings[32];
        snprintf(siblings, sizeof siblings, "%d,%d\n", cpu % 8, cpu % 8 + 8);
        put(siblings, "devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    }
    put("0-1\n", "devices/system/node/has_memory");
}

static void test_topology_server(void **state) {
    (void)state;
    make_server();
    struct sh_topology t = read_tree("0-15");
    assert_int_equal(t.n_cpus, 16);
    assert_int_equal(t.n_cores, 8);
    assert_int_equal(t.memory_nodes, 3);
    t = read_tree("8-15"); /* only the second threads: each stands for its core */
    assert_int_equal(t.n_cpus, 8);
    assert_int_equal(t.n_cores, 8);
    t = read_tree("0,8,1"); /* a container's share */
    assert_int_equal(t.n_cpus, 3);
    assert_int_equal(t.n_cores, 2);
}

/* Two fast cores with two threads each, whose numbers follow each other, and four without. */
static void test_topology_two_kinds(void **state) {
    (void)state;
    static const char *const siblings[8] = {"0-1\n", "0-1\n", "2-3\n", "2-3\n", "4\n", "5\n", "6\n", "7\n"};
    for (int cpu = 0; cpu < 8; cpu++) put(siblings[cpu], "devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    put("0\n", "devices/system/node/has_memory");
    const struct sh_topology t = read_tree("0-7");
    assert_int_equal(t.n_cores, 6);
    assert_int_equal(t.memory_nodes, 1);
}

/* No files at all: each CPU counts, and nodes are not known. Numbers beyond 1,024, which a cpu_set_t cannot hold. */
static void test_topology_untold(void **state) {
    (void)state;
    const struct sh_topology t = read_tree("0-2,1500-1502");
    assert_int_equal(t.n_cpus, 6);
    assert_int_equal(t.n_cores, 6);
    assert_int_equal(t.memory_nodes, 0);
    put("5,70\n", "devices/system/node/has_memory"); /* 70 is beyond the mask */
    assert_int_equal(read_tree("0").memory_nodes, 1u << 5);
}

/* A server of two nodes with CPUs, a third that is a graphics card's memory, and a fourth of which nothing is told. */
static void test_topology_near(void **state) {
    (void)state;
    put("0-7\n", "devices/system/node/node0/cpulist");
    put("8-15\n", "devices/system/node/node1/cpulist");
    put("\n", "devices/system/node/node2/cpulist");
    struct sh_cpu_set set;
    sh_cpu_set_parse("0-15", &set);
    assert_int_equal(sh_topology_near(root, &set, 7), 3);
    assert_int_equal(sh_topology_near(root, &set, 6), 2);
    assert_int_equal(sh_topology_near(root, &set, 15), 11);
    sh_cpu_set_parse("9", &set); /* bound to one CPU: memory stays with it */
    assert_int_equal(sh_topology_near(root, &set, 7), 2);
}

static uint32_t quota(const char *groups) {
    char list[128], tree[128];
    put(groups, "cgroup");
    snprintf(list, sizeof list, "%s/cgroup", root);
    snprintf(tree, sizeof tree, "%s/fs", root);
    return sh_topology_quota(list, tree);
}

static void test_topology_quota(void **state) {
    (void)state;
    assert_int_equal(quota("0::/system.slice/shimmyd.service\n"), UINT32_MAX);
    put("max 100000\n", "fs/system.slice/shimmyd.service/cpu.max");
    assert_int_equal(quota("0::/system.slice/shimmyd.service\n"), UINT32_MAX);
    put("350000 100000\n", "fs/system.slice/cpu.max"); /* above the service's own: three and a half */
    assert_int_equal(quota("0::/system.slice/shimmyd.service\n"), 4);
    put("50000 100000\n", "fs/system.slice/shimmyd.service/cpu.max");
    assert_int_equal(quota("0::/system.slice/shimmyd.service\n"), 1);
    put("200000 100000\n", "fs/cpu.max"); /* of a container, which sees its own group as the root */
    assert_int_equal(quota("0::/\n"), 2);
    assert_int_equal(quota("0::/../other\n"), 2);
    put("nonsense\n", "fs/cpu.max");
    assert_int_equal(quota("0::/\n"), UINT32_MAX);
    assert_int_equal(sh_topology_quota("/nowhere/cgroup", root), UINT32_MAX);
}

static void test_topology_quota_of_old_groups(void **state) {
    (void)state;
    static const char groups[] = "12:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n1:name=systemd:/docker/1\nno line of the kind\n";
    assert_int_equal(quota(groups), UINT32_MAX);
    put("-1\n", "fs/cpu,cpuacct/docker/1/cpu.cfs_quota_us");
    put("100000\n", "fs/cpu,cpuacct/docker/1/cpu.cfs_period_us");
    assert_int_equal(quota(groups), UINT32_MAX);
    put("600000\n", "fs/cpu,cpuacct/docker/1/cpu.cfs_quota_us");
    assert_int_equal(quota(groups), 6);
    put("100000\n", "fs/memory/docker/1/cpu.cfs_quota_us"); /* not a hierarchy of CPU time */
    put("100000\n", "fs/memory/docker/1/cpu.cfs_period_us");
    assert_int_equal(quota(groups), 6);
    put("250000\n", "fs/cpu,cpuacct/docker/cpu.cfs_quota_us");
    put("100000\n", "fs/cpu,cpuacct/docker/cpu.cfs_period_us");
    assert_int_equal(quota(groups), 3);
}

static void test_topology_spread(void **state) {
    (void)state;
    struct sh_topology t = {.memory_nodes = 0};
    assert_int_equal(sh_topology_spread(&t, UINT64_MAX, true), 0);
    t.memory_nodes = 1;
    assert_int_equal(sh_topology_spread(&t, UINT64_MAX, true), 0);
    t.memory_nodes = 11;
    assert_int_equal(sh_topology_spread(&t, UINT64_MAX, true), 11);
    assert_int_equal(sh_topology_spread(&t, 9, true), 9);
    assert_int_equal(sh_topology_spread(&t, 8, true), 0); /* one is left: nothing to spread */
    assert_int_equal(sh_topology_spread(&t, UINT64_MAX, false), 0);
}

static void test_topology_here(void **state) {
    (void)state;
    assert_in_range(sh_topology_threads(SH_POOL_MAX_WORKERS), 1, sysconf(_SC_NPROCESSORS_CONF));
    assert_int_equal(sh_topology_threads(1), 1);
    struct sh_topology t;
    sh_topology_read("/sys", &(struct sh_cpu_set){0}, &t);
    const uint64_t spread = sh_topology_spread_here();
    assert_int_equal(spread & ~t.memory_nodes, 0);
    if ((t.memory_nodes & (t.memory_nodes - 1)) == 0) assert_int_equal(spread, 0);
}

/* The kernel takes the mask, here of the first node with memory alone, and a block of weights of a device that spreads asks for
 * it. */
static void test_topology_interleave(void **state) {
    (void)state;
    struct sh_topology t;
    sh_topology_read("/sys", &(struct sh_cpu_set){0}, &t);
    if (t.memory_nodes == 0) TEST_SKIP("the kernel tells of no memory nodes");
    const uint64_t first = t.memory_nodes & -t.memory_nodes;
    struct sh_cpu_device device = {.spread_nodes = first};
    struct sh_error err = {0};
    struct sh_cpu_block block;
    assert_int_equal(sh_cpu_block_alloc(&device, SH_CPU_ACTIVATIONS, 1 << 16, "a block", &block, &err), SH_OK);
    if (!sh_topology_interleave(block.data, block.bytes, first)) TEST_SKIP("mbind is not permitted here: %s", strerror(errno));
    sh_cpu_block_free(&device, SH_CPU_ACTIVATIONS, &block);
    for (uint32_t kind = 0; kind < SH_CPU_MEMORY_KINDS; kind++) {
        int policy = -1;
        unsigned long nodes[16] = {0};
        assert_int_equal(sh_cpu_block_alloc(&device, kind, 1 << 16, "a block", &block, &err), SH_OK);
        if (syscall(SYS_get_mempolicy, &policy, nodes, 8 * sizeof nodes, block.data, MPOL_F_ADDR) != 0)
            TEST_SKIP("get_mempolicy is not permitted here: %s", strerror(errno));
        assert_int_equal(policy, kind == SH_CPU_ACTIVATIONS ? MPOL_DEFAULT : MPOL_INTERLEAVE);
        if (kind != SH_CPU_ACTIVATIONS) assert_int_equal(nodes[0], first);
        memset(block.data, 1, block.bytes);
        sh_cpu_block_free(&device, kind, &block);
    }
}

#define IN_TREE(test) cmocka_unit_test_setup_teardown(test, make_root, remove_root)
int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_topology_lists),
        IN_TREE(test_topology_server),
        IN_TREE(test_topology_two_kinds),
        IN_TREE(test_topology_untold),
        IN_TREE(test_topology_near),
        IN_TREE(test_topology_quota),
        IN_TREE(test_topology_quota_of_old_groups),
        cmocka_unit_test(test_topology_spread),
        cmocka_unit_test(test_topology_here),
        cmocka_unit_test(test_topology_interleave),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

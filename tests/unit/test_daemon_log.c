/* test_daemon_log.c - a message is one line, whatever is in it. */
#include "daemon/log.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static void test_one_line(void **state) {
    (void)state;
    char text[400] = "";
    FILE *file = tmpfile();
    assert_non_null(file);
    fflush(stderr);
    const int kept = dup(STDERR_FILENO);
    assert_true(kept >= 0 && dup2(fileno(file), STDERR_FILENO) >= 0);
    log_open(SH_LOG_INFO);
    log_write(SH_LOG_NOTICE, "m\nn", "left out: %s", "a\n2026-01-01T00:00:00.000Z error: forged\x1b[2J\x7f.gguf");
    log_write(SH_LOG_DEBUG, "m", "not this one");
    fflush(stderr);
    dup2(kept, STDERR_FILENO);
    close(kept);
    rewind(file);
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    assert_non_null(strstr(text, "notice: m n: left out: a 2026-01-01T00:00:00.000Z error: forged [2J .gguf\n"));
    assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_one_line)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

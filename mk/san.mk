# Data races: `make tsan` builds with the thread sanitizer in a folder of its own, and runs the unit tests that have threads and the serving
# end-to-end tests (TSAN_TESTS, TSAN_E2E) on the CPU. The first report fails a test. Nothing of ours is suppressed; the libraries that are not built with the
# sanitizer order their accesses by means it does not see, so it does not look at what only they touch (tests/tsan.supp, ignore_noninstrumented_modules).
# Threads that are left are not reported: after a second signal the daemon waits for none.
# Address randomisation is switched off: the sanitizer of gcc 12 does not find its place in the address space of newer kernels
# otherwise. setarch -R is inherited by the daemons that the tests start.
# Not those that compute much and share little between threads: they take ten minutes and more under the sanitizer.
TSAN_TESTS ?= cpu_pool core_failure daemon_budget daemon_control daemon_embedding daemon_generation daemon_limits daemon_models daemon_overlap \
              daemon_response daemon_runner daemon_scheduler daemon_scan daemon_sessions daemon_speculate http_
TSAN_E2E   ?= $(addprefix tests/e2e/,faults-clients.test.mjs faults-signals.test.mjs clients.test.mjs models.test.mjs budget.test.mjs concurrent.test.mjs openai.test.mjs soak.test.mjs)
TSAN_OPTIONS_ALL = halt_on_error=1 second_deadlock_stack=1 ignore_noninstrumented_modules=1 report_thread_leaks=0 suppressions=$(CURDIR)/tests/tsan.supp $(TSAN_OPTIONS)
.PHONY: tsan check-tsan e2e-tsan
tsan:
	$(Q)$(MAKE) --no-print-directory $(parallel) B=$(B)-tsan WERROR=0 OPT='-O1 -g' SAN='-fsanitize=thread' TESTS='$(TSAN_TESTS)' check-tsan

check-tsan: $(check_items:make:%=) $(B)/shimmyd $(B)/shimmyctl $(B)/tests/tools/genmodel
	$(Q)TSAN_OPTIONS='$(TSAN_OPTIONS_ALL)' MAKE='$(MAKE)' setarch -R scripts/run-tests -o $(B)/check -t $(shell expr $(CHECK_TIMEOUT) \* 5) \
	  $(filter-out make:%,$(check_items)) make:e2e-tsan

e2e-tsan: $(e2e_modules)
	$(Q)$(e2e_run) $(TSAN_E2E)

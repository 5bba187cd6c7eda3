# Data races: the unit tests that run threads, under the thread sanitizer, in a build folder of their own. Address
# randomisation is switched off for them: the sanitizer of gcc 12 does not find its place in the address space of newer
# kernels otherwise.
SAN_THREAD_TESTS ?= cpu_pool cpu_executor core_golden core_failure
.PHONY: san-thread
san-thread:
	$(Q)$(MAKE) --no-print-directory $(parallel) B=$(B)-tsan WERROR=0 OPT='-O1 -g' SAN='-fsanitize=thread' \
	  TESTS='$(SAN_THREAD_TESTS)' check-thread

.PHONY: check-thread
check-thread: $(check_items:make:%=)
	$(Q)TSAN_OPTIONS="$${TSAN_OPTIONS:-halt_on_error=1}" setarch -R scripts/run-tests -o $(B)/check \
	  -t $(shell expr $(CHECK_TIMEOUT) \* 10) $(filter-out make:%,$(check_items))

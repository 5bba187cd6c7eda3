# make check: every unit test program, then the targets that other rooms append to CHECK_TARGETS (end-to-end tests, replay of
# fuzz inputs). A target in CHECK_TARGETS prints cmocka's or node's totals, or counts as one test by its exit status; one that cannot run
# here prints "SKIP name: why" and succeeds. What they need built goes to CHECK_BUILD. TESTS='gguf cli' runs only the programs and
# targets whose names hold one of these words.
CHECK_TARGETS ?=
CHECK_BUILD   ?=
CHECK_TIMEOUT ?= 600
TESTS         ?=

# Targets come from .mk files that are read after this one: expand late.
check_all   = $(UNIT) $(addprefix make:,$(CHECK_TARGETS))
check_items = $(if $(TESTS),$(foreach i,$(check_all),$(if $(strip $(foreach w,$(TESTS),$(findstring $(w),$(i)))),$(i))),$(check_all))
parallel    = $(if $(findstring -j,$(MAKEFLAGS)),,-j$(shell nproc))

.PHONY: check check-full check-build check-unit check-san san
check:
	$(Q)$(MAKE) --no-print-directory $(parallel) all check-build
	$(Q)MAKE='$(MAKE)' B='$(B)' scripts/run-tests -o $(B)/check -t $(CHECK_TIMEOUT) $(check_items)

check-build: $(UNIT)
	$(if $(strip $(CHECK_BUILD)),$(Q)$(MAKE) --no-print-directory $(CHECK_BUILD))

# Unit and end-to-end tests under the address, leak and undefined-behaviour sanitizers, in a build folder of their own. (With them gcc warns of conversions that
# it sees through without them.)
san:
	$(Q)$(MAKE) --no-print-directory $(parallel) B=$(B)-san WERROR=0 OPT='-O1 -g' SAN='-fsanitize=address,undefined -fno-sanitize-recover=all' check-san

check-unit: $(UNIT)
	$(Q)ASAN_OPTIONS="$${ASAN_OPTIONS:-detect_leaks=1}" scripts/run-tests -o $(B)/check -t $(shell expr $(CHECK_TIMEOUT) \* 2) $(filter-out make:%,$(check_items))
check-san: $(UNIT)
	$(Q)ASAN_OPTIONS="$${ASAN_OPTIONS:-detect_leaks=1}" MAKE='$(MAKE)' scripts/run-tests -o $(B)/check -t $(shell expr $(CHECK_TIMEOUT) \* 2) \
	  $(filter-out make:%,$(check_items)) $(filter make:e2e,$(check_items))

# Everything, in an hour on two cores that do nothing else: each part is a target of its own (PARTS says which run), every part runs whatever the ones
# before it said, and what each took stands at the end.
#   check-long   all tests, with all reference models and real dimensions on every device (TESTS='core_contract' runs some)
#   check-isa    machine code of the kernels for RDNA2 and RDNA3 (mk/glsl.mk)
#   san          address, leak and undefined-behaviour sanitizers
#   tsan         the thread sanitizer (mk/san.mk)
PARTS ?= check-long check-isa san tsan
.PHONY: check-long
check-long:
	$(Q)SHIMMY_TEST_FULL=1 $(MAKE) --no-print-directory check CHECK_TIMEOUT=3600
check-full:
	$(Q)MAKE='$(MAKE)' scripts/check-full $(PARTS)

# For a machine with nothing on it scripts/demo works, too; it installs what is missing first.
.PHONY: demo
demo:
	$(Q)B=$(B) scripts/demo

# The rules of the house that a machine can see; and the documentation against the programs.
.PHONY: lint format check-docs
lint:
	$(Q)scripts/lint
check-docs: all
	$(Q)B=$(B) scripts/check-docs
format:
	clang-format -i $(wildcard compute/*.[ch] compute/*/*.[ch] daemon/*.[ch] daemon/*/*.[ch] cli/*.[ch] tests/unit/*.[ch] tests/tools/*.[ch])
CHECK_TARGETS += lint check-docs

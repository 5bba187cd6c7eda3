# Fuzz targets: tests/fuzz/fuzz_NAME.c, each with LLVMFuzzerTestOneInput, linked with the engine and the daemon's rooms without main.
# Inputs to start from, and those that once found something, lie in tests/fuzz/corpus/NAME; words in tests/fuzz/fuzz_NAME.dict.
#
#   make fuzz          builds with clang under the address and undefined-behaviour sanitizers, runs each target FUZZ_SECONDS (60);
#                      FUZZ='gguf json' only those. What it learns stays in build-fuzz/corpus; an input that crashes is left in
#                      build-fuzz/found: fix the cause, then keep the input in the corpus.
#   make fuzz-replay   runs the corpus through plain builds; part of `make check`

FUZZ_CC      ?= clang
FUZZ_SECONDS ?= 60
FUZZ_NAMES   := $(patsubst tests/fuzz/fuzz_%.c,%,$(sort $(wildcard tests/fuzz/fuzz_*.c)))
FUZZ         ?= $(FUZZ_NAMES)
FUZZ_PROGRAMS = $(FUZZ:%=$(B)/tests/fuzz/fuzz_%)
# FUZZER=1 is set by `make fuzz` for its own build folder: libFuzzer brings main.
fuzz_main    := $(if $(filter 1,$(FUZZER)),,$(B)/tests/fuzz/replay_main.o)
fuzz_link    := $(if $(filter 1,$(FUZZER)),-fsanitize=fuzzer)

.PHONY: fuzz fuzz-run fuzz-build fuzz-replay
fuzz:
	@command -v $(FUZZ_CC) >/dev/null || { echo 'make fuzz needs $(FUZZ_CC) with libFuzzer (FUZZ_CC=...)' >&2; exit 1; }
	$(Q)$(MAKE) --no-print-directory B=$(B)-fuzz CC='$(FUZZ_CC)' FUZZER=1 WERROR=0 OPT='-O1 -g' CFLAGS=-Wno-format-nonliteral \
	  SAN='-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined' fuzz-build
	$(Q)$(MAKE) --no-print-directory B=$(B)-fuzz CC='$(FUZZ_CC)' FUZZER=1 fuzz-run

fuzz-build: $(FUZZ_PROGRAMS)

fuzz-run:
	$(Q)mkdir -p $(B)/found; status=0; for name in $(FUZZ); do \
	  mkdir -p $(B)/corpus/$$name; dict=tests/fuzz/fuzz_$$name.dict; \
	  echo "  FUZZ    $$name, $(FUZZ_SECONDS) s"; \
	  $(B)/tests/fuzz/fuzz_$$name -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 \
	    -artifact_prefix=$(B)/found/$$name- $$(test -f $$dict && echo -dict=$$dict) \
	    $(B)/corpus/$$name $$(test -d tests/fuzz/corpus/$$name && echo tests/fuzz/corpus/$$name) >$(B)/found/$$name.log 2>&1 \
	    || { status=1; echo "  FOUND   $$name: see $(B)/found/$$name.log" >&2; }; \
	  sed -n 's/^stat::number_of_executed_units: */          inputs tried: /p' $(B)/found/$$name.log; \
	done; exit $$status

fuzz-replay: fuzz-build
	$(Q)for name in $(FUZZ); do $(B)/tests/fuzz/fuzz_$$name tests/fuzz/corpus/$$name || exit 1; done

$(B)/tests/fuzz/fuzz_%: $(B)/tests/fuzz/fuzz_%.o $(fuzz_main) $(filter-out $(B)/daemon/main.o,$(DAEMON_OBJ)) $(DAEMON_EXTRA_OBJ) $(B)/libshimmy.a
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS_ALL) $(fuzz_link) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(LIBS_DAEMON) $(LIBS_ENGINE)

-include $(patsubst %,$(B)/tests/fuzz/fuzz_%.d,$(FUZZ_NAMES))

CHECK_BUILD += fuzz-build
CHECK_TARGETS += fuzz-replay

# The model generator is a tool and a helper of unit tests: one source.
$(B)/tests/tools/genmodel: $(B)/tests/unit/genmodel.o

# make bench: the numbers of this build (scripts/bench says which), on generated models or MODELS='a.gguf b.gguf', with their share of what
# the machine can do, and, with PEER_ROOT set to a root that has llama.cpp, next to the peer's from the same run. BENCH_QUICK=1: less of it.
# make bench-compare: the last run next to the last result that is committed (tests/bench/results).
BENCH_DEVICE ?= cpu
BENCH        := $(patsubst tests/bench/%.c,$(B)/tests/bench/%,$(wildcard tests/bench/*.c))
MODELS       ?=

# What the bench programs share.
BENCH_LIB := $(patsubst %.c,$(B)/%.o,$(wildcard tests/bench/lib/*.c))
$(B)/tests/bench/%: $(B)/tests/bench/%.o $(BENCH_LIB) $(B)/libshimmy.a
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS_ENGINE)

.PHONY: bench bench-compare
bench:
	$(Q)$(MAKE) --no-print-directory $(parallel) all $(BENCH) $(B)/tests/tools/genmodel
	$(Q)B='$(B)' BENCH_DEVICE='$(BENCH_DEVICE)' scripts/bench $(MODELS)
bench-compare:
	$(Q)B='$(B)' scripts/bench compare $(BEFORE) $(AFTER)

-include $(BENCH:=.d) $(BENCH_LIB:.o=.d)

# make bench: speed on generated models of 1.1 thousand million weights (or MODELS='a.gguf b.gguf'), start-up, memory, size,
# next to the machine's read bandwidth, and, with PEER_ROOT set to a root that has llama-bench, the peer's figures from the
# same run.
BENCH_DEVICE ?= cpu
BENCH        := $(patsubst tests/bench/%.c,$(B)/tests/bench/%,$(wildcard tests/bench/*.c))
MODELS       ?=

# What the bench programs share.
BENCH_LIB := $(patsubst %.c,$(B)/%.o,$(wildcard tests/bench/lib/*.c))
$(B)/tests/bench/%: $(B)/tests/bench/%.o $(BENCH_LIB) $(B)/libshimmy.a
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS_ENGINE)

.PHONY: bench
bench:
	$(Q)$(MAKE) --no-print-directory $(parallel) all $(BENCH) $(B)/tests/tools/genmodel
	$(Q)B='$(B)' BENCH_DEVICE='$(BENCH_DEVICE)' scripts/bench $(MODELS)

-include $(BENCH:=.d) $(BENCH_LIB:.o=.d)

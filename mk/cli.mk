# The tests of shimmyctl link its rooms instead of the daemon's.
CLI_PARTS := $(filter-out $(B)/cli/main.o,$(CLI_OBJ))

$(B)/libcli.a: $(CLI_PARTS)
	$(call say,AR,$@)
	$(Q)rm -f $@; ar rcs $@ $^

$(B)/tests/unit/test_cli_%: $(B)/tests/unit/test_cli_%.o $(B)/tests/unit/shared.o $(B)/libcli.a $(B)/libshimmy.a
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^ $(shell pkg-config --libs $(PKGS_TEST)) $(LIBS_ENGINE)

# The completion is kept in the tree, so that installing runs nothing; a test holds it against the tables.
.PHONY: completions
completions: $(B)/shimmyctl
	$(Q)$(B)/shimmyctl completion bash > completions/shimmyctl

# make soak: 10,000 mixed requests against one daemon, and whether anything is left of them (tests/e2e/soak.mjs says what is looked at).
# SOAK_REQUESTS, SOAK_MINUTES, SOAK_CLIENTS. A short form is one of the end-to-end tests.
.PHONY: soak
soak:
	$(Q)$(MAKE) --no-print-directory $(parallel) all $(B)/tests/tools/genmodel $(FAULT_LIBS)
	$(Q)B='$(B)' node tests/e2e/soak.mjs

# End-to-end tests: the real daemon, real clients (node:test; npm packages pinned by tests/e2e/package-lock.json).
#
#   make e2e                              everything on the CPU
#   make e2e-vulkan                       the openai client's tests and reference values on llvmpipe, skipped where there is none
#   make e2e SHIMMY_E2E_DEVICE=NAME E2E='tests/e2e/openai.test.mjs'   another device, only some files
#
# npm is asked only when the lock file changed since the last time.
CHECK_TARGETS += e2e e2e-vulkan
E2E           ?= $(sort $(wildcard tests/e2e/*.test.mjs))
e2e_modules   := tests/e2e/node_modules/.package-lock.json
e2e_node      := $(shell command -v node)
e2e_npm       := $(shell command -v npm)
e2e_run       := B='$(B)' node --test --test-reporter=tap

.PHONY: e2e e2e-vulkan
ifneq ($(and $(e2e_node),$(e2e_npm)),)
e2e: $(B)/shimmyd $(B)/shimmyctl $(B)/tests/tools/genmodel models $(e2e_modules)
	$(Q)$(e2e_run) $(E2E)

e2e-vulkan: $(B)/shimmyd $(B)/shimmyctl models $(e2e_modules)
	$(Q)if $(B)/shimmyd --probe-devices 2>/dev/null | grep -q llvmpipe; then \
	  SHIMMY_E2E_DEVICE=llvmpipe $(e2e_run) tests/e2e/openai.test.mjs tests/e2e/parity.test.mjs tests/e2e/house.test.mjs; \
	else echo 'SKIP e2e-vulkan: there is no llvmpipe (package mesa-vulkan-drivers)'; fi
else
e2e e2e-vulkan:
	@echo 'SKIP $@: node and npm (packages nodejs, npm) are not installed'
endif

$(e2e_modules): tests/e2e/package.json tests/e2e/package-lock.json
	$(call say,NPM,tests/e2e)
	$(Q)cd tests/e2e && npm ci --prefer-offline --no-audit --no-fund >/dev/null && touch node_modules/.package-lock.json

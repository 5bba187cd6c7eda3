# Libraries that make a program's calls fail by a test's script: a Vulkan layer and two for LD_PRELOAD (tests/faults). Not installed. They are
# loaded into programs of any build, so they are built without sanitizers.
FAULT_LIBS   := $(B)/tests/faults/vk_layer.so $(B)/tests/faults/reads.so $(B)/tests/faults/memory.so $(B)/tests/faults/vk_layer.json
FAULT_CFLAGS := -std=c11 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -I. $(WARN) $(if $(filter 1,$(WERROR)),-Werror) -O1 -g -fPIC -fvisibility=hidden -pthread

$(B)/tests/faults/%.so: tests/faults/%.c tests/faults/script.c tests/faults/script.h
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(CC) $(FAULT_CFLAGS) -shared -Wl,-z,relro,-z,now -o $@ $(filter %.c,$^)

$(B)/tests/faults/vk_layer.json: tests/faults/vk_layer.json
	@mkdir -p $(@D)
	$(Q)cp $< $@

CHECK_BUILD += $(FAULT_LIBS)
$(B)/tests/unit/test_vulkan_faults: | $(FAULT_LIBS)
e2e e2e-vulkan: $(FAULT_LIBS)

# The Vulkan kernels: compute/glsl/*.comp, one SPIR-V module per line of manifest.def, as C arrays in one object of libshimmy.a.
# glslc -> spirv-opt -O -> spirv-val; any message fails the build.
GLSLC     ?= glslc
SPIRV_OPT ?= spirv-opt
SPIRV_VAL ?= spirv-val
GLSL_ENV  := vulkan1.2
GLSL_OUT  := $(B)/glsl
GLSL_MANIFEST := compute/glsl/manifest.def

glsl_line = s/^KERNEL.\([a-z0-9_]*\), *\([a-z0-9_]*\), *\(.*\).$$/$(1)/p
GLSL_KERNELS := $(shell sed -n '$(call glsl_line,\1)' $(GLSL_MANIFEST))
glsl_source   = compute/glsl/$(shell sed -n '/^KERNEL.$(1),/$(call glsl_line,\2)' $(GLSL_MANIFEST)).comp
glsl_defines  = $(shell sed -n '/^KERNEL.$(1),/$(call glsl_line,\3)' $(GLSL_MANIFEST))

GLSL_SPV := $(GLSL_KERNELS:%=$(GLSL_OUT)/%.spv)
ENGINE_EXTRA_OBJ += $(GLSL_OUT)/kernels.o

define glsl_rule
$(GLSL_OUT)/$(1).spv: $(call glsl_source,$(1)) $(GLSL_MANIFEST) mk/glsl.mk scripts/glsl-build
	@mkdir -p $$(@D)
	$$(call say,GLSLC,$(1))
	$$(Q)scripts/glsl-build '$(GLSLC)' '$(SPIRV_OPT)' '$(SPIRV_VAL)' $(GLSL_ENV) $$< $$@ $(call glsl_defines,$(1))
endef
$(foreach k,$(GLSL_KERNELS),$(eval $(call glsl_rule,$(k))))

$(GLSL_OUT)/kernels.c: $(GLSL_SPV) $(GLSL_MANIFEST)
	$(call say,GEN,$@)
	$(Q){ echo '#include "compute/vulkan/kernels.h"'; \
	  for k in $(GLSL_KERNELS); do \
	    echo "static const uint32_t spv_$$k[] = {"; od -An -v -tx4 $(GLSL_OUT)/$$k.spv | sed 's/ \([0-9a-f]\{8\}\)/0x\1,/g'; echo '};'; \
	  done; \
	  echo 'const struct sh_kernel_code sh_kernel_codes[SH_KERNEL_COUNT] = {'; \
	  for k in $(GLSL_KERNELS); do echo "    {\"$$k\", spv_$$k, sizeof spv_$$k},"; done; echo '};'; } > $@

$(GLSL_OUT)/kernels.o: $(GLSL_OUT)/kernels.c compute/vulkan/kernels.h $(B)/flags
	$(call say,CC,$<)
	$(Q)$(CC) $(CFLAGS_ALL) -c $< -o $@

-include $(GLSL_SPV:.spv=.d)

# Machine code of every kernel for RDNA2 and RDNA3 on RADV's null device: registers, spills (an error), load widths.
.PHONY: isa
isa: $(B)/tests/tools/isa
	$(Q)scripts/isa-table $< tests/isa/table.md

# The Vulkan kernels: compute/glsl/*.comp, one SPIR-V module per kernel of manifest.def, packed by gzip, in one object of libshimmy.a.
# glslc -> spirv-opt -O -> spirv-val; any message fails the build.
GLSLC     ?= glslc
SPIRV_OPT ?= spirv-opt
SPIRV_VAL ?= spirv-val
GLSL_ENV  := vulkan1.2
GLSL_OUT  := $(B)/glsl
GLSL_MANIFEST := compute/glsl/manifest.def

# One word for each kernel: name|source|defines, the defines joined by commas. A kernel is made anew when its own word changes.
GLSL_LINES   := $(shell $(CC) -E -P -x c '-DKERNEL(n,s,d)=n|s|d@' $(GLSL_MANIFEST) | tr '\n@' ' \n' | \
                  sed 's/^ *//; s/ *$$//; s/ *| */|/g; s/  */,/g')
glsl_field    = $(word $(1),$(subst |, ,$(2)))
GLSL_KERNELS := $(foreach l,$(GLSL_LINES),$(call glsl_field,1,$l))

# Kernels of cooperative matrices are built where glslc knows them (Debian 12's does not), and are absent elsewhere: a name without code.
glsl_hash     := \#
GLSL_HAS_COOP := $(shell printf '%s\n' '$(glsl_hash)version 450' '$(glsl_hash)extension GL_KHR_cooperative_matrix : require' 'void main() {}' | \
                   $(GLSLC) -fshader-stage=compute -o - - >/dev/null 2>&1 && echo 1)
GLSL_BUILT := $(if $(GLSL_HAS_COOP),$(GLSL_KERNELS),$(filter-out coop_%,$(GLSL_KERNELS)))

GLSL_SPV := $(GLSL_BUILT:%=$(GLSL_OUT)/%.spv)
ENGINE_EXTRA_OBJ += $(GLSL_OUT)/kernels.o

glsl_comma   := ,
glsl_word     = $(GLSL_OUT)/$(call glsl_field,1,$(1)).word
define glsl_rule
$(GLSL_OUT)/$(call glsl_field,1,$(1)).spv: compute/glsl/$(call glsl_field,2,$(1)).comp $(call glsl_word,$(1)) mk/glsl.mk scripts/glsl-build
	$$(call say,GLSLC,$(call glsl_field,1,$(1)))
	$$(Q)scripts/glsl-build '$(GLSLC)' '$(SPIRV_OPT)' '$(SPIRV_VAL)' $(GLSL_ENV) $$< $$@ $(subst $(glsl_comma), ,$(call glsl_field,3,$(1)))
endef
$(shell mkdir -p $(GLSL_OUT))
$(foreach l,$(GLSL_LINES),$(if $(filter $l,$(file <$(call glsl_word,$l))),,$(file >$(call glsl_word,$l),$l))$(eval $(call glsl_rule,$l)))

# The assembler reads the modules: as numbers in C they would take the compiler longer than the rest of the engine.
$(GLSL_OUT)/%.spv.gz: $(GLSL_OUT)/%.spv
	$(Q)gzip -9nc $< > $@

$(GLSL_OUT)/kernels.c: $(GLSL_SPV:=.gz) $(GLSL_MANIFEST) mk/glsl.mk
	$(call say,GEN,$@)
	$(Q){ echo '#include "compute/vulkan/kernels.h"'; \
	  for k in $(GLSL_BUILT); do \
	    printf '__asm__(".section .rodata; spv_%s: .incbin \\"%s\\"; .previous");\n' $$k $(GLSL_OUT)/$$k.spv.gz; \
	    echo "extern const uint8_t spv_$$k[];"; \
	  done; \
	  for k in $(filter-out $(GLSL_BUILT),$(GLSL_KERNELS)); do echo "#define spv_$$k NULL"; done; \
	  echo 'const struct sh_kernel_code sh_kernel_codes[SH_KERNEL_COUNT] = {'; \
	  for k in $(GLSL_KERNELS); do \
	    case ' $(GLSL_BUILT) ' in *" $$k "*) packed=$$(stat -c %s $(GLSL_OUT)/$$k.spv.gz) bytes=$$(stat -c %s $(GLSL_OUT)/$$k.spv) ;; \
	    *) packed=0 bytes=0 ;; esac; \
	    echo "    {\"$$k\", spv_$$k, $$packed, $$bytes},"; done; echo '};'; } > $@

$(GLSL_OUT)/kernels.o: $(GLSL_OUT)/kernels.c compute/vulkan/kernels.h $(B)/flags
	$(call say,CC,$<)
	$(Q)$(CC) $(CFLAGS_ALL) -c $< -o $@

-include $(GLSL_SPV:.spv=.d)
# A file that is gone but named in the list of an earlier build: what was made of it is made anew.
compute/glsl/%: ;

# Machine code of every kernel for RDNA2 and RDNA3 on RADV's null device: what scripts/isa-table says fails, and a table of the rest. check-isa
# leaves the table in the tree alone; check-full asks for it.
.PHONY: isa check-isa
isa: $(B)/tests/tools/isa
	$(Q)scripts/isa-table $< tests/isa/table.md
check-isa: $(B)/tests/tools/isa
	$(Q)if [ -e "$${RADV_ICD:-/usr/share/vulkan/icd.d/radeon_icd.x86_64.json}" ]; then scripts/isa-table $< $(B)/isa.md >/dev/null; \
	else echo 'SKIP check-isa: there is no RADV (package mesa-vulkan-drivers)'; fi

# The model that the project ships (tests/models), in the types that the tests measure: made of it by shimmyctl quantize.
HOUSE       := tests/models/shimmy-tiny
HOUSE_TYPES := F16 Q6_K Q5_K_M Q5_0 Q4_K_M Q4_1 Q4_0 IQ4_NL IQ3_M IQ3_XXS Q3_K_M Q2_K IQ2_M
HOUSE_MADE  := $(HOUSE_TYPES:%=$(B)/models/shimmy-tiny-%.gguf)

.PHONY: models models-types
models: $(HOUSE_MADE)
models-types:
	@echo $(HOUSE_TYPES)

$(B)/models/shimmy-tiny-%.gguf: $(HOUSE).gguf $(B)/shimmyctl
	$(call say,QUANT,$*)
	$(Q)mkdir -p $(@D); $(B)/shimmyctl quantize -q --force $< $@ $*

# The model generator is a tool and a helper of unit tests: one source.
$(B)/tests/tools/genmodel: $(B)/tests/unit/genmodel.o

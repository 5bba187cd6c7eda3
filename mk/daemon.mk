# What the daemon is built with besides its .c files: where its configuration lies, and its interface description as a string.
$(B)/gen/paths.h: FORCE
	@mkdir -p $(@D); printf '#define SHIMMY_SYSCONFDIR "%s"\n' '$(sysconfdir)' | cmp -s - $@ || \
	  printf '#define SHIMMY_SYSCONFDIR "%s"\n' '$(sysconfdir)' > $@

$(B)/daemon/config.o: $(B)/gen/paths.h

$(B)/gen/interface.inc: daemon/control/io.shimmy.Daemon.varlink
	@mkdir -p $(@D)
	$(Q)sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/^.*$$/"&\\n"/' $< > $@

$(B)/daemon/control/service.o: $(B)/gen/interface.inc

# What the daemon is built with besides its .c files: where its configuration lies, and its interface description as a string.
$(B)/gen/paths.h: FORCE
	@mkdir -p $(@D); printf '#define SHIMMY_SYSCONFDIR "%s"\n#define SHIMMY_DATADIR "%s"\n' '$(sysconfdir)' '$(datadir)' | cmp -s - $@ || \
	  printf '#define SHIMMY_SYSCONFDIR "%s"\n#define SHIMMY_DATADIR "%s"\n' '$(sysconfdir)' '$(datadir)' > $@

$(B)/daemon/config.o $(B)/daemon/discover_places.o: $(B)/gen/paths.h

$(B)/gen/interface.inc: daemon/control/io.shimmy.Daemon.varlink
	@mkdir -p $(@D)
	$(Q)sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/^.*$$/"&\\n"/' $< > $@

$(B)/daemon/control/service.o: $(B)/gen/interface.inc

# The units as systemd reads them, with the programs of this build in their place. Manual pages are looked at by check-docs.
CHECK_TARGETS += check-units
.PHONY: check-units
check-units: $(B)/shimmyd
	$(Q)command -v systemd-analyze >/dev/null || { echo 'SKIP check-units: there is no systemd-analyze here'; exit 0; }; \
	for scope in system user; do \
	  dir=$(B)/units/$$scope; mkdir -p $$dir; cp systemd/$$scope/*.socket $$dir; \
	  sed -e 's|@bindir@|$(abspath $(B))|g' -e 's|@datadir@|/usr/share|g' systemd/$$scope/shimmyd.service.in > $$dir/shimmyd.service; \
	  said=$$(cd $$dir && XDG_RUNTIME_DIR=/tmp systemd-analyze --$$scope --man=no verify ./*.service ./*.socket 2>&1) && [ -z "$$said" ] || \
	    { printf '%s\n' "$$said"; exit 1; }; \
	done

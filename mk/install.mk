# install, uninstall: DESTDIR and PREFIX as usual; PREFIX=/usr puts the configuration into /etc. Files named *.in have @bindir@,
# @sysconfdir@, @datadir@ and @libexecdir@ replaced. What is installed is listed once, as "mode:source:destination", and uninstalled from
# the same list. An existing configuration file is kept by install, and left by
# uninstall if it was changed.
systemddir  := $(PREFIX)/lib/systemd
sysusersdir := $(PREFIX)/lib/sysusers.d
mandir      := $(datadir)/man

subst_paths = sed -e 's|@bindir@|$(bindir)|g' -e 's|@sysconfdir@|$(sysconfdir)|g' -e 's|@datadir@|$(datadir)|g'

# Generated from *.in into build/installed/.
INSTALL_IN  := $(wildcard systemd/*.in systemd/*/*.in conf/*.in man/*.in)
INSTALL_GEN := $(INSTALL_IN:%.in=$(B)/installed/%)

# $(call install_entry,mode,files,folder): one entry per file.
install_entry = $(foreach f,$(2),$(1):$(f):$(3)/$(notdir $(f)))
unit_files    = $(filter %.service %.socket %.target,$(wildcard systemd/$(1)/*) $(filter $(B)/installed/systemd/$(1)/%,$(INSTALL_GEN)))
man_files     = $(filter %.$(1),$(wildcard man/*) $(filter $(B)/installed/man/%,$(INSTALL_GEN)))

INSTALL_LIST = \
    $(call install_entry,755,$(B)/shimmyd $(B)/shimmyctl,$(bindir)) \
    $(foreach s,1 5 7 8,$(call install_entry,644,$(call man_files,$(s)),$(mandir)/man$(s))) \
    $(call install_entry,644,$(wildcard completions/*),$(datadir)/bash-completion/completions) \
    $(call install_entry,644,$(call unit_files,system),$(systemddir)/system) \
    $(call install_entry,644,$(call unit_files,user),$(systemddir)/user) \
    $(foreach f,$(wildcard systemd/*.sysusers),644:$(f):$(sysusersdir)/$(basename $(notdir $(f))).conf) \
    $(call install_entry,644,$(wildcard daemon/control/*.varlink),$(datadir)/varlink/interfaces) \
    $(call install_entry,644,tests/models/shimmy-tiny.gguf tests/models/README.md,$(datadir)/shimmy/models) \
    $(call install_entry,644,README.md CHANGELOG.md LICENSE,$(datadir)/doc/shimmy)
INSTALL_CONF = $(wildcard conf/shimmyd.conf)

STRIP ?= strip

$(B)/installed/%: %.in FORCE
	@mkdir -p $(@D)
	$(Q)$(subst_paths) $< > $@

.PHONY: install uninstall
install: all $(INSTALL_GEN)
	$(Q)set -e; for entry in $(INSTALL_LIST); do \
	  mode=$${entry%%:*}; rest=$${entry#*:}; from=$${rest%%:*}; to='$(DESTDIR)'$${rest#*:}; \
	  echo "  INSTALL $$to"; install -D -m $$mode "$$from" "$$to"; \
	done
	$(Q)$(STRIP) '$(DESTDIR)$(bindir)/shimmyd' '$(DESTDIR)$(bindir)/shimmyctl'
	$(if $(INSTALL_CONF),$(Q)to='$(DESTDIR)$(sysconfdir)/shimmy/shimmyd.conf'; if [ -e "$$to" ]; then echo "  KEEP    $$to"; else \
	  echo "  INSTALL $$to"; install -D -m 644 $(INSTALL_CONF) "$$to"; fi)

uninstall: $(INSTALL_GEN)
	$(Q)for entry in $(INSTALL_LIST); do \
	  to='$(DESTDIR)'$${entry##*:}; [ ! -e "$$to" ] || { echo "  REMOVE  $$to"; rm -f "$$to"; }; \
	done
	$(if $(INSTALL_CONF),$(Q)to='$(DESTDIR)$(sysconfdir)/shimmy/shimmyd.conf'; if cmp -s $(INSTALL_CONF) "$$to"; then echo "  REMOVE  $$to"; \
	  rm -f "$$to"; elif [ -e "$$to" ]; then echo "  KEEP    $$to (changed)"; fi)
	$(Q)rmdir '$(DESTDIR)$(datadir)/shimmy/models' '$(DESTDIR)$(datadir)/shimmy' '$(DESTDIR)$(datadir)/doc/shimmy' '$(DESTDIR)$(sysconfdir)/shimmy' 2>/dev/null || :

.PHONY: check-install
check-install: all
	$(Q)B=$(B) MAKE='$(MAKE)' scripts/check-install
CHECK_TARGETS += check-install

# shimmyd. `make help` lists the targets. Everything that is built lies under build/ (B=dir to change).

VERSION := 0.1.0
PREFIX  ?= /usr/local
B       ?= build
CC      ?= gcc
V       ?= 0
# Warnings are errors on Debian 12 (the floor that CI runs on); elsewhere they warn. WERROR=0|1 overrides.
WERROR  ?= $(shell . /etc/os-release 2>/dev/null && [ "$$VERSION_ID" = 12 ] && echo 1 || echo 0)

MAKEFLAGS += --no-builtin-rules
.SUFFIXES:
.DELETE_ON_ERROR:
Q := $(if $(filter 1,$(V)),,@)
say = @printf '  %-7s %s\n' $(1) '$(2)'

bindir     := $(PREFIX)/bin
datadir    := $(PREFIX)/share
sysconfdir := $(if $(filter /usr,$(PREFIX)),/etc,$(PREFIX)/etc)

PKGS_ENGINE := libpcre2-8 jansson zlib
PKGS_DAEMON := jansson libmicrohttpd libsystemd inih
PKGS_CLI    := jansson
PKGS_TEST   := cmocka jansson

WARN := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wconversion -Wno-sign-conversion -Wvla -Wundef \
        -Wpointer-arith -Wformat=2 -Wno-missing-field-initializers
OPT  ?= -O2 -g
SAN  ?=
# -ffp-contract=off: the numerics contract decides where a multiply-add is fused, the compiler does not.
CFLAGS_ALL := -std=c11 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -DSHIMMY_VERSION='"$(VERSION)"' -I. -I$(B)/gen $(WARN) \
              $(if $(filter 1,$(WERROR)),-Werror) $(OPT) $(SAN) -fvisibility=hidden -fno-math-errno -ffp-contract=off \
              -fstack-protector-strong -pthread -fPIE -MMD -MP $(shell pkg-config --cflags $(PKGS_ENGINE) $(PKGS_DAEMON)) $(CFLAGS)
LDFLAGS_ALL := -pthread -pie -Wl,-z,relro,-z,now -Wl,--as-needed $(SAN) $(LDFLAGS)
LIBS_ENGINE := $(shell pkg-config --libs $(PKGS_ENGINE)) -lm -ldl
LIBS_DAEMON := $(shell pkg-config --libs $(PKGS_DAEMON))

ENGINE_SRC := $(sort $(wildcard compute/*.c compute/*/*.c))
DAEMON_SRC := $(sort $(wildcard daemon/*.c daemon/*/*.c))
CLI_SRC    := $(sort $(wildcard cli/*.c))
ENGINE_OBJ := $(ENGINE_SRC:%.c=$(B)/%.o)
DAEMON_OBJ := $(DAEMON_SRC:%.c=$(B)/%.o)
CLI_OBJ    := $(CLI_SRC:%.c=$(B)/%.o)
UNIT_SRC   := $(sort $(wildcard tests/unit/test_*.c))
UNIT       := $(UNIT_SRC:%.c=$(B)/%)
UNIT_LIB   := $(patsubst %.c,$(B)/%.o,$(filter-out $(UNIT_SRC),$(wildcard tests/unit/*.c)))
TOOLS      := $(patsubst %.c,$(B)/%,$(wildcard tests/tools/*.c))

.PHONY: all clean help FORCE
all: $(B)/shimmyd $(B)/shimmyctl

include $(sort $(wildcard mk/*.mk))

help:
	@echo 'all check check-full soak tsan demo bench isa san fuzz lint format install uninstall clean'

# The flags stamp: objects are rebuilt when compiler or flags change.
$(B)/flags: FORCE
	@mkdir -p $(B); printf '%s\n' '$(CC) $(subst ','"'"',$(CFLAGS_ALL)) $(LDFLAGS_ALL)' | cmp -s - $@ || \
	  printf '%s\n' '$(CC) $(subst ','"'"',$(CFLAGS_ALL)) $(LDFLAGS_ALL)' > $@
FORCE:

# Kernels of one instruction set get their own -m flags: compute/cpu/kernels_avx2.c and so on.
FLAGS_compute/cpu/kernels_avx2.c := -mavx2 -mfma -mf16c

$(B)/%.o: %.c $(B)/flags
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(CC) $(CFLAGS_ALL) $(FLAGS_$<) -c $< -o $@

$(B)/libshimmy.a: $(ENGINE_OBJ) $(ENGINE_EXTRA_OBJ)
	$(call say,AR,$@)
	$(Q)rm -f $@; ar rcs $@ $^

$(B)/shimmyd: $(DAEMON_OBJ) $(DAEMON_EXTRA_OBJ) $(B)/libshimmy.a
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS_DAEMON) $(LIBS_ENGINE)

$(B)/shimmyctl: $(CLI_OBJ) $(B)/libshimmy.a
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^ $(shell pkg-config --libs $(PKGS_CLI)) $(LIBS_ENGINE)

# Unit tests see the engine's insides and the daemon's rooms without main.
$(B)/tests/unit/test_%: $(B)/tests/unit/test_%.o $(UNIT_LIB) $(filter-out $(B)/daemon/main.o,$(DAEMON_OBJ)) $(DAEMON_EXTRA_OBJ) $(B)/libshimmy.a
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^ -Wl,--as-needed $(shell pkg-config --libs $(PKGS_TEST)) $(LIBS_DAEMON) $(LIBS_ENGINE)

$(B)/tests/tools/%: $(B)/tests/tools/%.o $(B)/libshimmy.a
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(LIBS_ENGINE)

clean:
	rm -rf $(B)

-include $(patsubst %.o,%.d,$(ENGINE_OBJ) $(ENGINE_EXTRA_OBJ) $(DAEMON_OBJ) $(CLI_OBJ) $(UNIT:=.d) $(TOOLS:=.d) $(UNIT_LIB))
.SECONDARY:

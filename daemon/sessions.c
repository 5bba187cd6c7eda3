/* sessions.c - see sessions.h. */
#include "daemon/sessions.h"

#include "compute/base.h"

static const char name_bytes[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.";

enum sh_code session_name_check(const char *name, struct sh_error *err) {
    const size_t length = strlen(name), fine = strspn(name, name_bytes);
    if (length == 0 || length >= SESSION_NAME_BYTES)
        return sh_fail(err, SH_ERR_INVALID, "found a name of %zu bytes, expected 1 to %d", length, SESSION_NAME_BYTES - 1);
    if (fine < length)
        return sh_fail(err, SH_ERR_INVALID, "found the byte 0x%02x in the name, expected letters, digits, _ - .", (unsigned char)name[fine]);
    if (*name == '.') return sh_fail(err, SH_ERR_INVALID, "found a name that begins with a dot, expected none");
    return SH_OK;
}

/*
 * headers.c - see headers.h.
 *
 * The file: a line "shimmyd headers 1 BUILD", a line for each entry (numbers parted by spaces, then texts, each after a tab, in which
 * tab, line feed and backslash are escaped), and a line "end HASH" with the FNV-1a hash of all before it.
 */
#include "daemon/headers.h"

#include "compute/base.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TEXTS = 6, ENTRIES_MAX = 2 * DISCOVER_MAX_MODELS, FILE_MAX_BYTES = 64 << 20 };

struct entry {
    char *path;
    struct file_identity identity;
    uint64_t parts;
    struct header header;
    bool seen; /* asked for, or put, in this run */
};
struct headers {
    char *path;
    struct entry *entries;
    uint32_t count, capacity;
    struct hash_index by_path;
    bool changed;
};

static char **texts_of(struct header *header, uint32_t i) {
    char **const texts[TEXTS] = {&header->arch, &header->type, &header->name, &header->base, &header->other, &header->error};
    return texts[i];
}

void header_finish(struct header *header) {
    for (uint32_t i = 0; i < TEXTS; i++) free(*texts_of(header, i));
    *header = (struct header){0};
}

/* ---- reading a model file ---------------------------------------------------------------------------- */

bool header_read(const char *path, struct header *out) {
    struct sh_file *file = NULL;
    struct sh_error err = {0};
    struct sh_file_summary summary = {0};
    enum sh_code code = sh_file_open(path, &file, &err);
    if (code == SH_OK) {
        sh_file_get_summary(file, &summary);
        code = sh_file_check(file, &err);
    }
    const bool open = summary.architecture != NULL;
    *out = (struct header){
        .arch = strdup(open ? summary.architecture : ""),
        .type = strdup(open ? summary.type_name : ""),
        .name = strdup(open ? summary.name : ""),
        .base = strdup(open ? summary.base : ""),
        .other = strdup(open ? summary.other : ""),
        .error = strdup(code ? err.message : ""),
        .adapter = summary.adapter,
        .size_bytes = summary.file_bytes,
        .passing = code == SH_ERR_IO || code == SH_ERR_NOT_FOUND || code == SH_ERR_NO_MEMORY,
    };
    sh_file_close(file);
    for (uint32_t i = 0; i < TEXTS; i++) {
        if (*texts_of(out, i)) continue;
        header_finish(out);
        return false;
    }
    return true;
}

/* ---- entries ----------------------------------------------------------------------------------------- */

static struct entry *find(const struct headers *headers, const char *path) {
    uint32_t at = 0, i;
    while (hash_next(&headers->by_path, hash_text(path), &at, &i))
        if (strcmp(headers->entries[i].path, path) == 0) return &headers->entries[i];
    return NULL;
}

/* Takes path and header over, or neither. */
static bool add(struct headers *headers, struct entry *entry) {
    if (!sh_grow((void **)&headers->entries, &headers->capacity, headers->count + 1, sizeof *headers->entries) ||
        !hash_put(&headers->by_path, hash_text(entry->path), headers->count))
        return false;
    headers->entries[headers->count++] = *entry;
    return true;
}

const struct header *headers_find(struct headers *headers, const char *path, const struct file_identity *identity, uint64_t parts) {
    struct entry *entry = find(headers, path);
    if (!entry) return NULL;
    entry->seen = true;
    return identity_equal(&entry->identity, identity) && entry->parts == parts ? &entry->header : NULL;
}

void headers_put(struct headers *headers, const char *path, const struct file_identity *identity, uint64_t parts, struct header *header) {
    if (header->passing) return;
    struct entry *known = find(headers, path);
    if (known) {
        header_finish(&known->header);
        known->identity = *identity;
        known->parts = parts;
        known->header = *header;
        known->seen = true;
    } else {
        struct entry entry = {strdup(path), *identity, parts, *header, true};
        if (!entry.path || !add(headers, &entry)) {
            free(entry.path);
            return;
        }
    }
    *header = (struct header){0};
    headers->changed = true;
}

/* ---- the file ---------------------------------------------------------------------------------------- */

/* Which program this is: its file, so that each build reads headers itself. */
static void first_line(char *out, size_t cap) {
    struct file_identity own = {0};
    identity_of("/proc/self/exe", &own);
    snprintf(out, cap, "shimmyd headers 1 %s-%" PRIx64 "-%" PRIx64 "-%" PRIx64 "\n", sh_version(), (uint64_t)own.inode, own.size_bytes,
             (uint64_t)own.mtime_ns);
}

static void write_text(FILE *file, const char *text) {
    putc('\t', file);
    for (; *text; text++) {
        if (*text == '\t' || *text == '\n' || *text == '\\') putc('\\', file);
        putc(*text == '\t' ? 't' : *text == '\n' ? 'n' : *text, file);
    }
}

/* The next text of a line, unescaped in place; NULL: there is none. */
static char *read_text(char **at) {
    char *const begin = *at;
    char *to = begin, *from = begin;
    if (!begin) return NULL;
    for (; *from && *from != '\t'; from++) {
        if (*from == '\\' && from[1]) {
            from++;
            *to++ = (char)(*from == 't' ? '\t' : *from == 'n' ? '\n' : *from);
        } else {
            *to++ = *from;
        }
    }
    *at = *from ? from + 1 : NULL;
    *to = 0;
    return begin;
}

static bool read_entry(struct headers *headers, char *line) {
    struct entry entry = {0};
    uint64_t numbers[7];
    char *at = line;
    for (uint32_t i = 0; i < SH_COUNT(numbers); i++) {
        char *end;
        numbers[i] = strtoull(at, &end, 10);
        if (end == at) return false;
        at = end;
    }
    if (*at++ != '\t') return false;
    entry.identity = (struct file_identity){(dev_t)numbers[0], (ino_t)numbers[1], numbers[2], (int64_t)numbers[3]};
    entry.parts = numbers[4];
    entry.header.size_bytes = numbers[5];
    entry.header.adapter = numbers[6] != 0;
    const char *path = read_text(&at);
    entry.path = path ? strdup(path) : NULL;
    bool ok = entry.path != NULL;
    for (uint32_t i = 0; i < TEXTS && ok; i++) {
        const char *text = read_text(&at);
        ok = text && (*texts_of(&entry.header, i) = strdup(text));
    }
    if (ok && !find(headers, entry.path) && headers->count < ENTRIES_MAX && add(headers, &entry)) return true;
    header_finish(&entry.header);
    free(entry.path);
    return false;
}

/* The text of the file without its last line, malloc'd; NULL: it is not one of ours, or not as it was written. */
static char *read_whole(const char *path) {
    struct stat st;
    char *text = NULL;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return NULL;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0 && st.st_size <= FILE_MAX_BYTES &&
        (text = malloc((size_t)st.st_size + 1))) {
        size_t have = 0;
        for (ssize_t n; have < (size_t)st.st_size && (n = read(fd, text + have, (size_t)st.st_size - have)) > 0;) have += (size_t)n;
        text[have] = 0;
        char *last = have > 1 && text[have - 1] == '\n' && strlen(text) == have ? memrchr(text, '\n', have - 1) : NULL;
        uint64_t hash = 0;
        if (!last || sscanf(last + 1, "end %" SCNx64, &hash) != 1 ||
            hash_bytes(HASH_BEGIN, text, (size_t)(last + 1 - text)) != hash) {
            free(text);
            text = NULL;
        } else {
            last[1] = 0;
        }
    }
    close(fd);
    return text;
}

struct headers *headers_open(const char *path) {
    struct headers *headers = sh_calloc(1, sizeof *headers);
    if (!headers || (path && !(headers->path = strdup(path)))) {
        free(headers);
        return NULL;
    }
    char *text = path ? read_whole(path) : NULL, first[200];
    first_line(first, sizeof first);
    if (text && strncmp(text, first, strlen(first)) == 0) {
        for (char *line = text + strlen(first), *end; (end = strchr(line, '\n')); line = end + 1) {
            *end = 0;
            if (!read_entry(headers, line)) break;
        }
    }
    free(text);
    return headers;
}

void headers_close(struct headers *headers) {
    if (!headers) return;
    for (uint32_t i = 0; i < headers->count; i++) {
        header_finish(&headers->entries[i].header);
        free(headers->entries[i].path);
    }
    free(headers->entries);
    hash_finish(&headers->by_path);
    free(headers->path);
    free(headers);
}

static void write_entries(struct headers *headers, FILE *file) {
    char first[200];
    first_line(first, sizeof first);
    fputs(first, file);
    const bool all = headers->count <= ENTRIES_MAX; /* another daemon's entries stay as long as there is room */
    for (uint32_t i = 0, n = 0; i < headers->count && n < ENTRIES_MAX; i++) {
        struct entry *entry = &headers->entries[i];
        if (!all && !entry->seen) continue;
        fprintf(file, "%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRId64 " %" PRIu64 " %" PRIu64 " %d", (uint64_t)entry->identity.device,
                (uint64_t)entry->identity.inode, entry->identity.size_bytes, entry->identity.mtime_ns, entry->parts,
                entry->header.size_bytes, entry->header.adapter);
        write_text(file, entry->path);
        for (uint32_t t = 0; t < TEXTS; t++) write_text(file, *texts_of(&entry->header, t));
        putc('\n', file);
        n++;
    }
}

/* The file that is written before it takes the other's place: always the same name, so that one which a crash left is written over. Locked as
 * long as it is open, for another daemon may have the same cache; NULL: that one is just writing, or it cannot be made (errno). */
static FILE *open_fresh(const char *path) {
    struct stat own, there;
    for (uint32_t attempt = 0; attempt < 3; attempt++) {
        const int fd = open(path, O_WRONLY | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);
        if (fd < 0) return NULL;
        const bool locked = flock(fd, LOCK_EX | LOCK_NB) == 0;
        const bool same = fstat(fd, &own) == 0 && stat(path, &there) == 0 && own.st_dev == there.st_dev && own.st_ino == there.st_ino;
        FILE *file = locked && same && ftruncate(fd, 0) == 0 ? fdopen(fd, "w") : NULL;
        if (file) return file;
        const int why = errno;
        close(fd);
        errno = why;
        if (!locked || same) return NULL; /* else it has got its name meanwhile: that is another file now */
    }
    return NULL;
}

bool headers_save(struct headers *headers) {
    if (!headers->path || !headers->changed) return true;
    headers->changed = false; /* what cannot be written now cannot be the next time: no new attempt until there is more */
    char fresh[PATH_MAX + 40], *text = NULL;
    size_t length = 0;
    FILE *memory = open_memstream(&text, &length);
    if (!memory) return false;
    write_entries(headers, memory);
    if (fclose(memory) != 0) {
        free(text);
        errno = ENOMEM;
        return false;
    }
    snprintf(fresh, sizeof fresh, "%s.new", headers->path);
    FILE *file = open_fresh(fresh);
    bool ok = file != NULL;
    if (file) {
        ok = fwrite(text, 1, length, file) == length && fprintf(file, "end %" PRIx64 "\n", hash_bytes(HASH_BEGIN, text, length)) > 0 &&
             fflush(file) == 0 && rename(fresh, headers->path) == 0;
        const int why = errno;
        if (!ok) unlink(fresh); /* as long as nobody else can have it */
        fclose(file);
        errno = why;
    }
    free(text);
    return ok;
}

/* sessions.c - see sessions.h. */
#include "daemon/sessions.h"

#include "compute/base.h"
#include "daemon/text.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    MODEL_BYTES = 120,      /* of a model's id in a file's name, as it is written there */
    HEAD_BYTES = 4096,      /* of the first line, at most */
    STALE_SECONDS = 3600,   /* what a crash left half-written goes after this */
};
static const char name_bytes[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.";
static const char suffix[] = ".session", temporary[] = ".tmp", magic[] = "shimmyd-session 1 ";

static pthread_mutex_t rename_lock = PTHREAD_MUTEX_INITIALIZER; /* one file after the other gets its name, so that each sees those before it */
static struct {
    pthread_mutex_t lock;
    char directory[4096]; /* "": by environment */
    uint64_t most_bytes;
} store = {.lock = PTHREAD_MUTEX_INITIALIZER};

void sessions_configure(const struct config *config) {
    pthread_mutex_lock(&store.lock);
    snprintf(store.directory, sizeof store.directory, "%s", config->session_dir);
    store.most_bytes = config->session_bytes;
    pthread_mutex_unlock(&store.lock);
}

enum sh_code session_name_check(const char *name, struct sh_error *err) {
    const size_t length = strlen(name), fine = strspn(name, name_bytes);
    if (length == 0 || length >= SESSION_NAME_BYTES)
        return sh_fail(err, SH_ERR_INVALID, "found a name of %zu bytes, expected 1 to %d", length, SESSION_NAME_BYTES - 1);
    if (fine < length)
        return sh_fail(err, SH_ERR_INVALID, "found the byte 0x%02x in the name, expected letters, digits, _ - .", (unsigned char)name[fine]);
    if (*name == '.') return sh_fail(err, SH_ERR_INVALID, "found a name that begins with a dot, expected none");
    return SH_OK;
}

/* ---- paths ------------------------------------------------------------------------------------------- */

static enum sh_code find_directory(char *out, size_t cap, uint64_t *most_bytes, struct sh_error *err) {
    const char *state = getenv("STATE_DIRECTORY"), *xdg = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    int length = -1;
    pthread_mutex_lock(&store.lock);
    *most_bytes = store.most_bytes;
    if (*store.directory) length = snprintf(out, cap, "%s", store.directory);
    else if (state && *state) length = snprintf(out, cap, "%.*s/sessions", (int)strcspn(state, ":"), state);
    else if (xdg && *xdg) length = snprintf(out, cap, "%s/shimmy/sessions", xdg);
    else if (home && *home) length = snprintf(out, cap, "%s/.local/state/shimmy/sessions", home);
    pthread_mutex_unlock(&store.lock);
    if (length < 0) return sh_fail(err, SH_ERR_INVALID, "no place for sessions: set the option session_dir");
    if ((size_t)length >= cap) return sh_fail(err, SH_ERR_INVALID, "the path of session_dir is too long");
    return SH_OK;
}

static enum sh_code make_directory(const char *directory, struct sh_error *err) {
    char path[4096];
    snprintf(path, sizeof path, "%s", directory);
    for (char *at = path + 1;; at++) {
        if (*at && *at != '/') continue;
        const char end = *at;
        *at = 0;
        if (mkdir(path, 0700) != 0 && errno != EEXIST)
            return sh_fail(err, SH_ERR_IO, "session_dir %s cannot be made: %s", path, strerror(errno));
        if (!end) return SH_OK;
        *at = end;
    }
}

/* The id with what may not stand in a file's name, or part its words, as %XX. */
static void encode(const char *id, char *out, size_t cap) {
    size_t n = 0;
    for (const char *at = id; *at && n + 4 < cap; at++)
        n += (size_t)(strchr(name_bytes, *at) ? snprintf(out + n, cap - n, "%c", *at)
                                              : snprintf(out + n, cap - n, "%%%02X", (unsigned)(unsigned char)*at));
    out[n] = 0;
}

static void decode(char *text) {
    char *to = text;
    for (const char *at = text; *at; at++) {
        unsigned byte;
        if (*at == '%' && sscanf(at + 1, "%2x", &byte) == 1 && at[1] && at[2]) {
            *to++ = (char)byte;
            at += 2;
        } else {
            *to++ = *at;
        }
    }
    *to = 0;
}

static enum sh_code path_of(const char *directory, const char *model, const char *name, char *out, size_t cap, struct sh_error *err) {
    char encoded[HEAD_BYTES], hash[24] = "";
    const enum sh_code code = session_name_check(name, err);
    if (code) return code;
    encode(model, encoded, sizeof encoded);
    if (strlen(encoded) > MODEL_BYTES) {
        snprintf(hash, sizeof hash, "~%016llx", (unsigned long long)text_hash(model, strlen(model)));
        encoded[MODEL_BYTES] = 0;
    }
    const int length = snprintf(out, cap, "%s/%s@%s%s%s", directory, name, encoded, hash, suffix);
    if (length < 0 || (size_t)length >= cap) return sh_fail(err, SH_ERR_INVALID, "the path of session_dir is too long");
    return SH_OK;
}

static bool ends_with(const char *text, const char *end) {
    const size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* What the files take together, `but` not counted; and what a crash left goes. */
static uint64_t total_bytes(const char *directory, const char *but) {
    uint64_t total = 0;
    DIR *dir = opendir(directory);
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        char path[4400];
        struct stat st;
        snprintf(path, sizeof path, "%s/%s", directory, entry->d_name);
        if (lstat(path, &st) != 0 || !S_ISREG(st.st_mode)) continue;
        if (entry->d_name[0] == '.' && ends_with(entry->d_name, temporary) && time(NULL) > st.st_mtime + STALE_SECONDS) (void)unlink(path);
        else if (ends_with(entry->d_name, suffix) && strcmp(path, but) != 0) total += (uint64_t)st.st_size;
    }
    if (dir) closedir(dir);
    return total;
}

/* ---- the first line ---------------------------------------------------------------------------------- */

static enum sh_code write_head(int fd, const char *model, uint32_t tokens, struct sh_error *err) {
    char encoded[HEAD_BYTES - 64], head[HEAD_BYTES];
    encode(model, encoded, sizeof encoded);
    const int length = snprintf(head, sizeof head, "%s%010u %s\n", magic, tokens, encoded);
    if (pwrite(fd, head, (size_t)length, 0) != length || lseek(fd, 0, SEEK_END) < 0)
        return sh_fail(err, SH_ERR_IO, "the session's file cannot be written: %s", strerror(errno));
    return SH_OK;
}

/* Leaves the position behind it. model: HEAD_BYTES. */
static bool read_head(int fd, uint32_t *tokens, char *model) {
    char head[HEAD_BYTES];
    const ssize_t got = pread(fd, head, sizeof head - 1, 0);
    const size_t begin = sizeof magic - 1;
    const char *end = got > 0 ? memchr(head, '\n', (size_t)got) : NULL;
    if (!end || (size_t)(end - head) < begin + 12 || memcmp(head, magic, begin) != 0 || head[begin + 10] != ' ') return false;
    head[end - head] = 0;
    *tokens = (uint32_t)strtoul(head + begin, NULL, 10);
    snprintf(model, HEAD_BYTES, "%s", head + begin + 11);
    decode(model);
    return lseek(fd, end + 1 - head, SEEK_SET) > 0;
}

/* ---- save, restore, remove, list --------------------------------------------------------------------- */

static enum sh_code write_file(int fd, const char *model, session_io_fn write, void *user, uint32_t *tokens, struct sh_error *err) {
    enum sh_code code = write_head(fd, model, 0, err); /* its length is the same with the number */
    if (code == SH_OK) code = write(user, fd, tokens, err);
    if (code == SH_OK) code = write_head(fd, model, *tokens, err);
    if (code == SH_OK && fsync(fd) != 0) code = sh_fail(err, SH_ERR_IO, "the session's file cannot be synced: %s", strerror(errno));
    return code;
}

static void sync_directory(const char *directory) {
    const int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    (void)fsync(fd);
    close(fd);
}

/* Gives a whole file its name, if there is room for it among those that have theirs now. */
static enum sh_code publish(const char *directory, const char *partial, uint64_t most, const struct session_file *file, struct sh_error *err) {
    enum sh_code code = SH_OK;
    pthread_mutex_lock(&rename_lock);
    const uint64_t others = most ? total_bytes(directory, file->path) : 0;
    if (most && (others > most || file->bytes > most - others))
        code = sh_fail(err, SH_ERR_LIMIT, "the session has %llu bytes and others %llu, expected at most %llu together (session_bytes)",
                       (unsigned long long)file->bytes, (unsigned long long)others, (unsigned long long)most);
    else if (rename(partial, file->path) != 0) code = sh_fail(err, SH_ERR_IO, "%s: %s", file->path, strerror(errno));
    pthread_mutex_unlock(&rename_lock);
    return code;
}

enum sh_code session_save(const char *model, const char *name, session_io_fn write, void *user, struct session_file *out, struct sh_error *err) {
    static atomic_uint numbers;
    char directory[4000], partial[4400];
    uint64_t most;
    struct stat st;
    enum sh_code code = find_directory(directory, sizeof directory, &most, err);
    if (code == SH_OK) code = path_of(directory, model, name, out->path, sizeof out->path, err);
    if (code == SH_OK) code = make_directory(directory, err);
    if (code) return code;
    const uint64_t others = total_bytes(directory, out->path);
    if (most && others >= most)
        return sh_fail(err, SH_ERR_LIMIT, "saved sessions have %llu bytes, all that session_bytes allows: remove one first", (unsigned long long)others);
    snprintf(partial, sizeof partial, "%s/.%s-%d-%u%s", directory, name, (int)getpid(), atomic_fetch_add(&numbers, 1), temporary);
    const int fd = open(partial, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) return sh_fail(err, SH_ERR_IO, "%s cannot be made: %s", partial, strerror(errno));
    code = write_file(fd, model, write, user, &out->tokens, err);
    if (code == SH_OK && fstat(fd, &st) != 0) code = sh_fail(err, SH_ERR_IO, "%s: %s", partial, strerror(errno));
    out->bytes = code ? 0 : (uint64_t)st.st_size;
    if (close(fd) != 0 && code == SH_OK) code = sh_fail(err, SH_ERR_IO, "%s: %s", partial, strerror(errno));
    if (code == SH_OK) code = publish(directory, partial, most, out, err);
    if (code) (void)unlink(partial);
    else sync_directory(directory);
    return code;
}

static enum sh_code no_such(const char *model, const char *name, struct sh_error *err) {
    return sh_fail(err, SH_ERR_NOT_FOUND, "no session '%s' of %s is saved", name, model);
}

enum sh_code session_restore(const char *model, const char *name, session_io_fn read, void *user, struct session_file *out,
                             struct sh_error *err) {
    char directory[4000], of[HEAD_BYTES];
    uint64_t most;
    struct stat st;
    enum sh_code code = find_directory(directory, sizeof directory, &most, err);
    if (code == SH_OK) code = path_of(directory, model, name, out->path, sizeof out->path, err);
    if (code) return code;
    const int fd = open(out->path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT) return no_such(model, name, err);
    if (fd < 0) return sh_fail(err, SH_ERR_IO, "%s: %s", out->path, strerror(errno));
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || !read_head(fd, &out->tokens, of))
        code = sh_fail(err, SH_ERR_FORMAT, "%s is not a session that shimmyd saved", out->path);
    else if (strcmp(of, model) != 0)
        code = sh_fail(err, SH_ERR_FORMAT, "%s is a session of %.200s, expected one of %.200s", out->path, of, model);
    else code = read(user, fd, &out->tokens, err);
    out->bytes = code ? 0 : (uint64_t)st.st_size;
    close(fd);
    return code;
}

enum sh_code session_remove(const char *model, const char *name, struct sh_error *err) {
    char directory[4000], path[4400];
    uint64_t most;
    enum sh_code code = find_directory(directory, sizeof directory, &most, err);
    if (code == SH_OK) code = path_of(directory, model, name, path, sizeof path, err);
    if (code) return code;
    if (unlink(path) == 0) return SH_OK;
    return errno == ENOENT ? no_such(model, name, err) : sh_fail(err, SH_ERR_IO, "%s: %s", path, strerror(errno));
}

static json_t *describe(int dir, const char *file) {
    char model[HEAD_BYTES];
    uint32_t tokens;
    struct stat st;
    json_t *out = NULL;
    const int fd = openat(dir, file, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return NULL;
    const size_t length = strcspn(file, "@");
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && read_head(fd, &tokens, model))
        out = json_pack("{so so sI sI sI}", "session", json_bytes(file, length), "model", json_bytes(model, strlen(model)), "tokens",
                        (json_int_t)tokens, "bytes", (json_int_t)st.st_size, "saved", (json_int_t)st.st_mtime);
    close(fd);
    return out;
}

json_t *sessions_list(struct sh_error *err) {
    char directory[4000];
    uint64_t most;
    if (find_directory(directory, sizeof directory, &most, err)) return NULL;
    struct dirent **entries = NULL;
    json_t *list = json_array();
    const int count = scandir(directory, &entries, NULL, alphasort), why = errno;
    const int dir = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (int i = 0; i < count; i++) {
        json_t *one = entries[i]->d_name[0] != '.' && ends_with(entries[i]->d_name, suffix) ? describe(dir, entries[i]->d_name) : NULL;
        if (one) json_array_append_new(list, one);
        free(entries[i]);
    }
    free(entries);
    if (dir >= 0) close(dir);
    if (count >= 0 || why == ENOENT) return list;
    json_decref(list);
    sh_fail(err, SH_ERR_IO, "%s: %s", directory, strerror(why));
    return NULL;
}

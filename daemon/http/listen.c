/* listen.c - listening sockets: bound once, kept, and handed to libmicrohttpd; never probed and bound again. */
#include "daemon/http/internal.h"

#include "compute/base.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum { AUTO_FIRST = 11435, AUTO_LAST = 11535, BACKLOG = 1024 };

enum sh_code http_listen_adopt(int fd, struct http_socket *out, struct sh_error *err) {
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } address;
    socklen_t length = sizeof(address), flag_length = sizeof(int);
    char host[INET6_ADDRSTRLEN];
    int listening = 0;
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &flag_length) != 0 || !listening ||
        getsockname(fd, &address.any, &length) != 0)
        return sh_fail(err, SH_ERR_INVALID, "descriptor %d is no listening socket", fd);
    out->fd = fd;
    if (address.any.sa_family == AF_INET) {
        inet_ntop(AF_INET, &address.v4.sin_addr, host, sizeof(host));
        snprintf(out->address, sizeof(out->address), "http://%s:%u", host, ntohs(address.v4.sin_port));
        out->loopback = (ntohl(address.v4.sin_addr.s_addr) >> 24) == 127;
    } else if (address.any.sa_family == AF_INET6) {
        inet_ntop(AF_INET6, &address.v6.sin6_addr, host, sizeof(host));
        snprintf(out->address, sizeof(out->address), "http://[%s]:%u", host, ntohs(address.v6.sin6_port));
        out->loopback = IN6_IS_ADDR_LOOPBACK(&address.v6.sin6_addr);
    } else {
        return sh_fail(err, SH_ERR_INVALID, "descriptor %d is no TCP socket", fd);
    }
    return SH_OK;
}

/* SH_ERR_BUSY: the address is taken. */
static enum sh_code bind_one(const struct addrinfo *info, const char *entry, struct http_socket *out, struct sh_error *err) {
    const int yes = 1;
    int fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return sh_fail(err, SH_ERR_IO, "listen %s: no socket: %s", entry, strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    if (info->ai_family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &yes, sizeof(yes));
    if (bind(fd, info->ai_addr, info->ai_addrlen) != 0 || listen(fd, BACKLOG) != 0) {
        int reason = errno;
        close(fd);
        return sh_fail(err, reason == EADDRINUSE ? SH_ERR_BUSY : SH_ERR_IO, "listen %s: cannot bind: %s%s", entry,
                       strerror(reason), reason == EADDRINUSE ? "; choose another port, port 0 for any, or \"auto\"" : "");
    }
    enum sh_code code = http_listen_adopt(fd, out, err);
    if (code) close(fd);
    return code;
}

static enum sh_code bind_entry(const char *entry, struct http_socket *out, struct sh_error *err) {
    char host[256];
    const char *colon = strrchr(entry, ':');
    char *end;
    long port = colon && colon[1] >= '0' && colon[1] <= '9' ? strtol(colon + 1, &end, 10) : -1;
    size_t n = colon ? (size_t)(colon - entry) : 0;
    bool bracketed = n > 2 && entry[0] == '[' && entry[n - 1] == ']';
    if (port < 0 || port > 65535 || *end || !n || n >= sizeof(host) || (!bracketed && memchr(entry, ':', n)))
        return sh_fail(err, SH_ERR_INVALID,
                       "listen: found \"%s\", expected HOST:PORT with a port from 0 to 65535 (IPv6 as [::1]:PORT)", entry);
    memcpy(host, entry + bracketed, n - 2 * bracketed);
    host[n - 2 * bracketed] = 0;

    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV}, *infos;
    int failed = getaddrinfo(host, colon + 1, &hints, &infos);
    if (failed &&
        strcmp(host, "localhost") == 0) /* a system without /etc/hosts: RFC 6761 has it mean the loopback all the same */
        failed = getaddrinfo("127.0.0.1", colon + 1, &hints, &infos);
    if (failed) return sh_fail(err, SH_ERR_INVALID, "listen %s: %s", entry, gai_strerror(failed));
    enum sh_code code = SH_ERR_IO;
    for (const struct addrinfo *info = infos; info && code; info = info->ai_next) code = bind_one(info, entry, out, err);
    freeaddrinfo(infos);
    return code;
}

static enum sh_code bind_auto(struct http_socket *out, struct sh_error *err) {
    enum sh_code code = SH_ERR_BUSY;
    for (int port = AUTO_FIRST; port <= AUTO_LAST && code == SH_ERR_BUSY; port++) {
        char entry[32];
        snprintf(entry, sizeof(entry), "127.0.0.1:%d", port);
        code = bind_entry(entry, out, err);
    }
    if (code == SH_ERR_BUSY)
        return sh_fail(err, SH_ERR_BUSY, "listen auto: the ports %d to %d of 127.0.0.1 are all taken; set listen to HOST:PORT",
                       AUTO_FIRST, AUTO_LAST);
    return code;
}

enum sh_code http_listen_open(const char *listen, struct http_socket *sockets, uint32_t *count, struct sh_error *err) {
    *count = 0;
    if (strcmp(listen, "auto") == 0) {
        enum sh_code code = bind_auto(&sockets[0], err);
        *count = code ? 0 : 1;
        return code;
    }
    char *copy = strdup(listen), *rest = copy, *entry;
    enum sh_code code = copy ? SH_OK : sh_fail(err, SH_ERR_NO_MEMORY, "listen: no memory");
    while (!code && (entry = strsep(&rest, ",")) != NULL) {
        entry += strspn(entry, " \t");
        entry[strcspn(entry, " \t")] = 0;
        if (*count == CONFIG_LISTEN_MAX) code = sh_fail(err, SH_ERR_INVALID, "listen: more than %d addresses", CONFIG_LISTEN_MAX);
        else if (!(code = bind_entry(entry, &sockets[*count], err))) ++*count;
    }
    free(copy);
    while (code && *count) close(sockets[--*count].fd);
    return code;
}

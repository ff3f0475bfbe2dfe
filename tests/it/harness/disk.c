/* Stands between the server and its disk (LD_PRELOAD): writes down, in order, what is done to the files below one
 * directory, and fails on command. Built and steered by disk.rs; the form of the log is described there.
 *
 * What was done is written down after it was done and before the caller goes on, all under one lock: so the log
 * is complete and in order. The index in shared memory (-shm) can fail, but is not written down: a power cut takes
 * it away in any case.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CREATE = 1, WRITE, TRUNCATE, UNLINK, RENAME, MKDIR, SYNC, SYNC_DIR, SYNC_FAILED };

/* Descriptors that can be followed; the server's limit of open files is not below it on any machine that we know,
 * but its files are opened first. */
#define FDS 65536
#define PATH_BYTES 4096

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static char root[PATH_BYTES];
static int log_fd = -1, control_fd = -1;

/* class: 0 not ours, d database, w log, j journal, s index, o other, / directory. */
static struct {
    char class;
    uint64_t inode;
    char *path;
} files[FDS];

static void fail_loudly(const char *what) {
    dprintf(2, "disk.c: %s\n", what);
    abort();
}

static void set_up(void) {
    const char *path = getenv("DISK_ROOT"), *log = getenv("DISK_LOG"), *control = getenv("DISK_CONTROL");
    if (!path || !log || !control || strlen(path) >= PATH_BYTES) fail_loudly("not told what to watch");
    strcpy(root, path);
    log_fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    control_fd = syscall(SYS_openat, AT_FDCWD, control, O_RDONLY | O_CLOEXEC, 0);
    if (log_fd < 0 || control_fd < 0) fail_loudly("no log or no control file");
}

static void enter(void) {
    pthread_once(&once, set_up);
    pthread_mutex_lock(&lock);
}

static void leave(void) {
    int kept = errno;
    pthread_mutex_unlock(&lock);
    errno = kept;
}

/* The part of a path below the root; NULL when it is somewhere else. */
static const char *below(const char *path) {
    size_t len = strlen(root);
    if (strncmp(path, root, len)) return NULL;
    return path[len] == '/' ? path + len + 1 : path[len] ? NULL : path + len;
}

static char class_of(const char *path) {
    size_t len = strlen(path);
    if (len > 4 && !strcmp(path + len - 4, "-wal")) return 'w';
    if (len > 4 && !strcmp(path + len - 4, "-shm")) return 's';
    if (len > 8 && !strcmp(path + len - 8, "-journal")) return 'j';
    if (len > 3 && !strcmp(path + len - 3, ".db")) return 'd';
    return 'o';
}

static int is_ours(int fd) {
    return fd >= 0 && fd < FDS && files[fd].class;
}

static void note(uint32_t kind, uint64_t inode, uint64_t at, const void *data, uint32_t bytes) {
    struct { uint32_t kind, bytes; uint64_t inode, at; } head = { kind, bytes, inode, at };
    struct iovec parts[2] = { { &head, sizeof head }, { (void *)data, bytes } };
    int kept = errno;
    if (syscall(SYS_writev, log_fd, parts, 2) != (long)(sizeof head + bytes)) fail_loudly("log not written");
    errno = kept;
}

/* The error that this operation shall end with, 0 for none. The control file holds
 * "number operations classes errno skip times torn"; a new number starts the counts anew. */
static int ordered(char operation, char class) {
    static long number = -1;
    static int skipped, failed;
    char text[128] = { 0 }, operations[16], classes[16];
    long now;
    int error, skip, times, torn;
    if (syscall(SYS_pread64, control_fd, text, sizeof text - 1, 0L) <= 0) return 0;
    if (sscanf(text, "%ld %15s %15s %d %d %d %d", &now, operations, classes, &error, &skip, &times, &torn) != 7)
        return 0;
    if (now != number) {
        number = now;
        skipped = failed = 0;
    }
    if (!strchr(operations, operation) || !strchr(classes, class)) return 0;
    if (skipped < skip) {
        skipped++;
        return 0;
    }
    if (failed >= times) return 0;
    failed++;
    /* Every other one of a torn row does half of its work first, as a disk that becomes full does. */
    return torn && failed % 2 ? -1 : error;
}

static int refuse(int error) {
    errno = error;
    return -1;
}

static int open_file(const char *path, int flags, mode_t mode) {
    enter();
    const char *name = below(path);
    int fd;
    if (!name) {
        fd = syscall(SYS_openat, AT_FDCWD, path, flags, mode);
        leave();
        return fd;
    }
    struct stat found;
    int is_new = stat(path, &found) != 0;
    int error = (flags & O_ACCMODE) != O_RDONLY ? ordered('o', class_of(name)) : 0;
    fd = error ? refuse(abs(error)) : (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    if (fd >= FDS) fail_loudly("too many open files");
    if (fd >= 0 && fstat(fd, &found) == 0) {
        files[fd].class = S_ISDIR(found.st_mode) ? '/' : class_of(name);
        files[fd].inode = found.st_ino;
        files[fd].path = S_ISDIR(found.st_mode) ? strdup(name) : NULL;
        if (files[fd].class != 's' && files[fd].class != '/') {
            if (is_new) note(CREATE, found.st_ino, 0, name, strlen(name));
            else if (flags & O_TRUNC) note(TRUNCATE, found.st_ino, 0, NULL, 0);
        }
    }
    leave();
    return fd;
}

#define OPEN(function)                                        \
    int function(const char *path, int flags, ...) {          \
        va_list rest;                                         \
        va_start(rest, flags);                                \
        mode_t mode = flags & O_CREAT ? va_arg(rest, int) : 0; \
        va_end(rest);                                         \
        return open_file(path, flags, mode);                  \
    }
OPEN(open)
OPEN(open64)

int close(int fd) {
    enter();
    if (is_ours(fd)) {
        files[fd].class = 0;
        free(files[fd].path);
        files[fd].path = NULL;
    }
    int done = syscall(SYS_close, fd);
    leave();
    return done;
}

/* at < 0: at the place of the descriptor. */
static ssize_t write_at(int fd, const void *data, size_t bytes, off_t at) {
    if (!is_ours(fd)) return at < 0 ? syscall(SYS_write, fd, data, bytes) : syscall(SYS_pwrite64, fd, data, bytes, at);
    enter();
    ssize_t done;
    int error = ordered('w', files[fd].class);
    if (error == -1 && bytes > 1) bytes /= 2;
    if (error > 0 || (error && bytes <= 1)) {
        done = refuse(abs(error));
    } else {
        off_t place = at < 0 ? syscall(SYS_lseek, fd, 0L, SEEK_CUR) : at;
        done = at < 0 ? syscall(SYS_write, fd, data, bytes) : syscall(SYS_pwrite64, fd, data, bytes, at);
        if (done > 0 && files[fd].class != 's') note(WRITE, files[fd].inode, place, data, done);
    }
    leave();
    return done;
}

ssize_t write(int fd, const void *data, size_t bytes) { return write_at(fd, data, bytes, -1); }
ssize_t pwrite(int fd, const void *data, size_t bytes, off_t at) { return write_at(fd, data, bytes, at); }
ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t at) { return write_at(fd, data, bytes, at); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (is_ours(fd)) fail_loudly("writev is not followed");
    return syscall(SYS_writev, fd, parts, count);
}

int ftruncate64(int fd, off64_t size) {
    if (!is_ours(fd)) return syscall(SYS_ftruncate, fd, size);
    enter();
    int error = ordered('t', files[fd].class);
    int done = error ? refuse(abs(error)) : (int)syscall(SYS_ftruncate, fd, size);
    if (done == 0 && files[fd].class != 's') note(TRUNCATE, files[fd].inode, size, NULL, 0);
    leave();
    return done;
}

int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

static int sync_file(int fd, long call) {
    if (!is_ours(fd)) return syscall(call, fd);
    enter();
    int error = ordered('s', files[fd].class);
    int done = error ? refuse(abs(error)) : (int)syscall(call, fd);
    if (files[fd].class == '/') {
        if (done == 0) note(SYNC_DIR, 0, 0, files[fd].path, strlen(files[fd].path));
    } else if (files[fd].class != 's') {
        note(done == 0 ? SYNC : SYNC_FAILED, files[fd].inode, 0, NULL, 0);
    }
    leave();
    return done;
}

int fsync(int fd) { return sync_file(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_file(fd, SYS_fdatasync); }

int unlink(const char *path) {
    enter();
    const char *name = below(path);
    int error = name ? ordered('u', class_of(name)) : 0;
    int done = error ? refuse(abs(error)) : (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    if (done == 0 && name && class_of(name) != 's') note(UNLINK, 0, 0, name, strlen(name));
    leave();
    return done;
}

int rename(const char *from, const char *to) {
    enter();
    const char *old = below(from), *new = below(to);
    if (!old != !new) fail_loudly("a rename across the root is not followed");
    int done = syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
    if (done == 0 && old) {
        char names[2 * PATH_BYTES];
        int bytes = snprintf(names, sizeof names, "%s\n%s", old, new);
        note(RENAME, 0, 0, names, bytes);
    }
    leave();
    return done;
}

int mkdir(const char *path, mode_t mode) {
    enter();
    const char *name = below(path);
    int done = syscall(SYS_mkdirat, AT_FDCWD, path, mode);
    if (done == 0 && name) note(MKDIR, 0, 0, name, strlen(name));
    leave();
    return done;
}

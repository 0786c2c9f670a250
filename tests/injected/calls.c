// The functions of libc through which a program calls the system. Each asks `strike` first, by one
// name for all functions of a kind.
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "inject.h"

// Files by name.

#define OPEN(name, at, declared, given)                            \
  int name declared {                                               \
    REAL(name);                                                      \
    va_list rest;                                                    \
    va_start(rest, flags);                                           \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest);                                                    \
    return strike("open", path, at) == FAIL ? -1 : real given;       \
  }
OPEN(open, -1, (const char* path, int flags, ...), (path, flags, mode))
OPEN(open64, -1, (const char* path, int flags, ...), (path, flags, mode))
OPEN(openat, at, (int at, const char* path, int flags, ...), (at, path, flags, mode))
OPEN(openat64, at, (int at, const char* path, int flags, ...), (at, path, flags, mode))

#define CALL(type, failed, name, function, path, fd, declared, given) \
  type name declared {                                                \
    REAL(name);                                                       \
    return strike(function, path, fd) == FAIL ? failed : real given;  \
  }
#define BY_NAME(name, function, declared, given) \
  CALL(int, -1, name, function, path, -1, declared, given)
#define BY_NAME_AT(name, function, declared, given) \
  CALL(int, -1, name, function, path, at, declared, given)
#define BY_FD(name, function, declared, given) \
  CALL(int, -1, name, function, NULL, fd, declared, given)

CALL(DIR*, NULL, opendir, "opendir", path, -1, (const char* path), (path))
CALL(DIR*, NULL, fdopendir, "opendir", NULL, fd, (int fd), (fd))
CALL(struct dirent64*, NULL, readdir64, "readdir", NULL, dirfd(d), (DIR* d), (d))
CALL(struct dirent*, NULL, readdir, "readdir", NULL, dirfd(d), (DIR* d), (d))
BY_NAME(rename, "rename", (const char* path, const char* to), (path, to))
BY_NAME_AT(renameat, "rename", (int at, const char* path, int other, const char* to),
        (at, path, other, to))
BY_NAME_AT(renameat2, "rename",
        (int at, const char* path, int other, const char* to, unsigned flags),
        (at, path, other, to, flags))
BY_NAME(link, "link", (const char* path, const char* to), (path, to))
BY_NAME_AT(linkat, "link", (int at, const char* path, int other, const char* to, int flags),
        (at, path, other, to, flags))
BY_NAME(symlink, "link", (const char* path, const char* to), (path, to))
BY_NAME_AT(symlinkat, "link", (const char* to, int at, const char* path), (to, at, path))
BY_NAME(mkdir, "mkdir", (const char* path, mode_t mode), (path, mode))
BY_NAME_AT(mkdirat, "mkdir", (int at, const char* path, mode_t mode), (at, path, mode))
BY_NAME(unlink, "unlink", (const char* path), (path))
BY_NAME_AT(unlinkat, "unlink", (int at, const char* path, int flags), (at, path, flags))
BY_NAME(rmdir, "unlink", (const char* path), (path))
BY_NAME(stat64, "stat", (const char* path, struct stat64* to), (path, to))
BY_NAME(lstat64, "stat", (const char* path, struct stat64* to), (path, to))
BY_NAME_AT(fstatat64, "stat", (int at, const char* path, struct stat64* to, int flags),
        (at, path, to, flags))
BY_FD(fstat64, "stat", (int fd, struct stat64* to), (fd, to))
BY_NAME(statvfs, "statfs", (const char* path, struct statvfs* to), (path, to))
BY_NAME(statvfs64, "statfs", (const char* path, struct statvfs64* to), (path, to))
BY_NAME(statfs, "statfs", (const char* path, struct statfs* to), (path, to))
BY_NAME(statfs64, "statfs", (const char* path, struct statfs64* to), (path, to))
BY_FD(fstatvfs, "statfs", (int fd, struct statvfs* to), (fd, to))
BY_FD(fstatvfs64, "statfs", (int fd, struct statvfs64* to), (fd, to))
BY_FD(fstatfs, "statfs", (int fd, struct statfs* to), (fd, to))
BY_FD(fstatfs64, "statfs", (int fd, struct statfs64* to), (fd, to))
BY_NAME(chmod, "chmod", (const char* path, mode_t mode), (path, mode))
BY_FD(fchmod, "chmod", (int fd, mode_t mode), (fd, mode))
BY_NAME(chdir, "chdir", (const char* path), (path))
CALL(ssize_t, -1, readlink, "readlink", path, -1, (const char* path, char* to, size_t n),
     (path, to, n))
CALL(char*, NULL, realpath, "realpath", path, -1, (const char* path, char* to), (path, to))
CALL(char*, NULL, getcwd, "getcwd", "-", -1, (char* to, size_t n), (to, n))

int statx(int at, const char* path, int flags, unsigned mask, struct statx* to) {
  REAL(statx);
  const char* volatile given = path;  // Rust asks with none whether there is such a call.
  if (given && strike("stat", *path ? path : NULL, at) == FAIL) return -1;
  return real(at, path, flags, mask, to);
}

// Descriptors.

#define MOVE(name, function, declared, part, whole)         \
  ssize_t name declared {                                  \
    REAL(name);                                             \
    switch (strike(function, NULL, fd)) {                   \
      case FAIL: return -1;                                 \
      case END: return 0;                                   \
      case SHORT: return real part;                         \
      default: return real whole;                           \
    }                                                       \
  }
#define HALF(n) ((n) - (n) / 2)
MOVE(read, "read", (int fd, void* to, size_t n), (fd, to, HALF(n)), (fd, to, n))
MOVE(pread, "read", (int fd, void* to, size_t n, off_t at), (fd, to, HALF(n), at), (fd, to, n, at))
MOVE(pread64, "read", (int fd, void* to, size_t n, off64_t at), (fd, to, HALF(n), at),
     (fd, to, n, at))
MOVE(readv, "read", (int fd, const struct iovec* to, int n), (fd, to, HALF(n)), (fd, to, n))
MOVE(write, "write", (int fd, const void* from, size_t n), (fd, from, HALF(n)), (fd, from, n))
MOVE(pwrite, "write", (int fd, const void* from, size_t n, off_t at), (fd, from, HALF(n), at),
     (fd, from, n, at))
MOVE(pwrite64, "write", (int fd, const void* from, size_t n, off64_t at), (fd, from, HALF(n), at),
     (fd, from, n, at))
MOVE(writev, "write", (int fd, const struct iovec* from, int n), (fd, from, HALF(n)),
     (fd, from, n))
MOVE(copy_file_range, "copy",
     (int fd, off64_t* at, int to, off64_t* to_at, size_t n, unsigned flags),
     (fd, at, to, to_at, HALF(n), flags), (fd, at, to, to_at, n, flags))
MOVE(sendfile64, "copy", (int to, int fd, off64_t* at, size_t n), (to, fd, at, HALF(n)),
     (to, fd, at, n))
BY_FD(fsync, "fsync", (int fd), (fd))
BY_FD(fdatasync, "fsync", (int fd), (fd))
BY_FD(syncfs, "fsync", (int fd), (fd))
BY_FD(ftruncate, "truncate", (int fd, off_t n), (fd, n))
BY_FD(ftruncate64, "truncate", (int fd, off64_t n), (fd, n))
BY_FD(fallocate, "allocate", (int fd, int mode, off_t at, off_t n), (fd, mode, at, n))
BY_FD(fallocate64, "allocate", (int fd, int mode, off64_t at, off64_t n), (fd, mode, at, n))
BY_FD(flock, "flock", (int fd, int how), (fd, how))
BY_FD(dup, "dup", (int fd), (fd))
BY_FD(dup2, "dup", (int fd, int to), (fd, to))
CALL(off64_t, -1, lseek64, "seek", NULL, fd, (int fd, off64_t at, int from), (fd, at, from))
CALL(void*, MAP_FAILED, mmap, "mmap", NULL, fd,
     (void* at, size_t n, int may, int how, int fd, off_t from), (at, n, may, how, fd, from))
CALL(void*, MAP_FAILED, mmap64, "mmap", NULL, fd,
     (void* at, size_t n, int may, int how, int fd, off64_t from), (at, n, may, how, fd, from))
CALL(int, -1, pipe2, "pipe", "-", -1, (int to[2], int flags), (to, flags))
CALL(int, -1, socketpair, "pipe", "-", -1, (int family, int type, int how, int to[2]),
     (family, type, how, to))

// A descriptor is closed even where closing it fails.
int close(int fd) {
  REAL(close);
  int failed = strike("close", NULL, fd) == FAIL;
  int error = errno;
  int code = real(fd);
  if (failed) errno = error;
  return failed ? -1 : code;
}

int fcntl(int fd, int command, ...) {
  REAL(fcntl);
  va_list rest;
  va_start(rest, command);
  void* argument = va_arg(rest, void*);
  va_end(rest);
  if (command != F_GETFD && command != F_GETFL && strike("fcntl", NULL, fd) == FAIL) return -1;
  return real(fd, command, argument);
}

int pthread_create(pthread_t* to, const pthread_attr_t* how, void* (*body)(void*), void* with) {
  REAL(pthread_create);
  int error = errno;
  if (strike("thread", "-", -1) != FAIL) return real(to, how, body, with);
  int code = errno;
  errno = error;
  return code;
}

// Calls without a function of their own.
long syscall(long number, ...) {
  va_list rest;
  va_start(rest, number);
  long a[6];
  for (int i = 0; i < 6; i++) a[i] = va_arg(rest, long);
  va_end(rest);
  static long (*real)(long, ...);
  if (!real) real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
  int verdict = PASS;
  if (number == SYS_renameat2) verdict = strike("rename", (const char*)a[1], (int)a[0]);
  if (number == SYS_openat2) verdict = strike("open", (const char*)a[1], (int)a[0]);
  if (number == SYS_statx) verdict = strike("stat", (const char*)a[1], (int)a[0]);
  if (number == SYS_copy_file_range) verdict = strike("copy", NULL, (int)a[0]);
  return verdict == FAIL ? -1 : real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

// The clock of the day.

static long jump(void) {
  strike("clock", "-", -1);
  return jumped();
}

int clock_gettime(clockid_t clock, struct timespec* at) {
  REAL(clock_gettime);
  int code = real(clock, at);
  if (clock == CLOCK_REALTIME && code == 0) at->tv_sec += jump();
  return code;
}

int gettimeofday(struct timeval* at, void* zone) {
  REAL(gettimeofday);
  int code = real(at, zone);
  if (code == 0) at->tv_sec += jump();
  return code;
}

time_t time(time_t* at) {
  REAL(time);
  time_t now = real(NULL) + jump();
  if (at) *at = now;
  return now;
}

// A library put before libc (LD_PRELOAD): it numbers the calls that a program makes of the system
// after its `main` begins, and has one of them fail.
//
//   FAULT_LOG=FILE    appends a line for every call: function, call site, path, return addresses
//   FAULT=FUNCTION:SITE:NUMBER[+]:EFFECT
//                     call NUMBER (from 1) of FUNCTION at SITE, or of all at all sites (*), has
//                     EFFECT; with + all later ones too. FAULT_LOG gets these calls only
//   FAULT_WITHIN=DIR  only files inside are cut
//
// EFFECT is the number of an error, or
//   short             half of the bytes are read or written
//   end               a read finds the end of the file
//   cut, empty        the file is cut to a half, or to nothing, before the call
//   kill, term        the process gets SIGKILL or SIGTERM before the call
//   +N, -N            for `clock`: the clock of the day jumps by N seconds, and stays there
//
// A call site is a hash of the return addresses inside the program, so it is the same in every run
// of the same binary. Calls that libc makes itself are not seen.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <unwind.h>

#include "inject.h"

enum { MOST_FRAMES = 48 };

static struct {
  char function[16], site[20], effect[16];
  long number;
  int lasting;
} fault;
static const char* within;
static int log_fd = -1, active;
static long calls, seconds;
static uintptr_t program, program_end;
static __thread int inside __attribute__((tls_model("initial-exec")));

static long plain(long n, long a, long b, long c, long d) {
  static long (*real)(long, ...);
  if (!real) real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
  return real(n, a, b, c, d);
}

struct frames {
  uintptr_t at[MOST_FRAMES];
  int n;
};

static _Unwind_Reason_Code add_frame(struct _Unwind_Context* context, void* to) {
  struct frames* frames = to;
  uintptr_t at = _Unwind_GetIP(context);
  if (at >= program && at < program_end) frames->at[frames->n++] = at - program;
  return frames->n < MOST_FRAMES ? _URC_NO_REASON : _URC_END_OF_STACK;
}

static uint64_t hash(const struct frames* frames) {
  uint64_t h = 14695981039346656037u;
  for (int i = 0; i < frames->n; i++) h = (h ^ frames->at[i]) * 1099511628211u;
  return h ^ h >> 29;
}

// The path of a descriptor, or its name.
static void path_of(int fd, char* path, size_t room) {
  static const char* const standard[] = {"<stdin>", "<stdout>", "<stderr>"};
  char link[40];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  long n = fd < 3 ? 0 : plain(SYS_readlinkat, AT_FDCWD, (long)link, (long)path, room - 1);
  if (n > 0) path[n] = 0;
  else snprintf(path, room, "%s", fd >= 0 && fd < 3 ? standard[fd] : "-");
}

static void tell(const char* function, uint64_t site, const char* path, const struct frames* f) {
  char line[6000];
  int n = snprintf(line, 4600, "%s\t%016llx\t%s\t", function, (unsigned long long)site, path);
  if (n > 4500) n = 4500;
  for (int i = 0; i < f->n; i++) n += snprintf(line + n, 24, "%s%lx", i ? " " : "", f->at[i]);
  line[n++] = '\n';
  plain(SYS_write, log_fd, (long)line, n, 0);
}

static void cut(const char* path, int to_nothing) {
  struct stat64 now;
  size_t n = within ? strlen(within) : 0;
  if (n == 0 || strncmp(path, within, n) != 0 || path[n] != '/') return;
  static int (*status)(const char*, struct stat64*);
  if (!status) status = (int (*)(const char*, struct stat64*))dlsym(RTLD_NEXT, "stat64");
  if (status(path, &now) != 0 || !S_ISREG(now.st_mode)) return;
  plain(SYS_truncate, (long)path, to_nothing ? 0 : now.st_size / 2, 0, 0);
}

static int effect_on(const char* path) {
  const char* effect = fault.effect;
  if (!strcmp(effect, "short")) return SHORT;
  if (!strcmp(effect, "end")) return END;
  if (!strcmp(effect, "cut") || !strcmp(effect, "empty")) {
    cut(path, effect[0] == 'e');
    return PASS;
  }
  if (!strcmp(effect, "kill") || !strcmp(effect, "term")) {
    plain(SYS_kill, getpid(), effect[0] == 'k' ? SIGKILL : SIGTERM, 0, 0);
    return PASS;
  }
  if (effect[0] == '+' || effect[0] == '-') {
    __atomic_store_n(&seconds, atol(effect), __ATOMIC_SEQ_CST);
    return PASS;
  }
  errno = atoi(effect);
  return FAIL;
}

int strike(const char* function, const char* path, int fd) {
  if (!active || inside) return PASS;
  int error = errno;
  int verdict = PASS;
  inside = 1;
  if (!fault.number || fault.function[0] == '*' || !strcmp(fault.function, function)) {
    struct frames frames = {.n = 0};
    char name[4200], site[20];
    _Unwind_Backtrace(add_frame, &frames);
    uint64_t h = hash(&frames);
    snprintf(site, sizeof site, "%016llx", (unsigned long long)h);
    int meant = !fault.number;
    if (fault.number && (fault.site[0] == '*' || !strcmp(site, fault.site))) {
      long n = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
      meant = n == fault.number || (fault.lasting && n > fault.number);
    }
    if (meant) {
      size_t n = 0;
      if (!path || (path[0] != '/' && fd >= 0)) {
        path_of(fd, name, sizeof name);
        n = strlen(name);
      }
      if (path) snprintf(name + n, sizeof name - n, "%s%s", n ? "/" : "", path);
      if (log_fd >= 0) tell(function, h, name, &frames);
      if (fault.number) {
        errno = error;
        verdict = effect_on(name);
        error = errno;
      }
    }
  }
  inside = 0;
  errno = error;
  return verdict;
}

long jumped(void) {
  return __atomic_load_n(&seconds, __ATOMIC_SEQ_CST);
}

// What begins before `main`.

static int find_program(struct dl_phdr_info* info, size_t size, void* unused) {
  (void)size, (void)unused;
  program = info->dlpi_addr;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr)* part = &info->dlpi_phdr[i];
    uintptr_t end = info->dlpi_addr + part->p_vaddr + part->p_memsz;
    if (part->p_type == PT_LOAD && end > program_end) program_end = end;
  }
  return 1;  // The program itself comes first.
}

static void read_fault(const char* text) {
  char number[24] = "";
  int n = sscanf(text, "%15[^:]:%19[^:]:%23[^:]:%15s", fault.function, fault.site, number,
                 fault.effect);
  fault.number = n == 4 ? atol(number) : 0;
  fault.lasting = strchr(number, '+') != NULL;
  if (fault.number > 0) return;
  dprintf(2, "FAULT is FUNCTION:SITE:NUMBER:EFFECT, not %s\n", text);
  _exit(1);
}

static int (*program_main)(int, char**, char**);

static int counted_main(int argc, char** argv, char** envp) {
  const char* log = getenv("FAULT_LOG");
  const char* text = getenv("FAULT");
  within = getenv("FAULT_WITHIN");
  dl_iterate_phdr(find_program, NULL);
  if (text) read_fault(text);
  if (log) {
    long flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC;
    int fd = (int)plain(SYS_openat, AT_FDCWD, (long)log, flags, 0644);
    log_fd = (int)plain(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 700, 0);
    plain(SYS_close, fd, 0, 0, 0);
  }
  struct frames frames = {.n = 0};
  _Unwind_Backtrace(add_frame, &frames);  // What it loads is loaded now.
  active = log || text;
  int code = program_main(argc, argv, envp);
  active = 0;
  return code;
}

int __libc_start_main(int (*main)(int, char**, char**), int argc, char** argv, void (*init)(void),
                      void (*fini)(void), void (*rtld_fini)(void), void* stack_end) {
  __typeof__(&__libc_start_main) real =
      (__typeof__(&__libc_start_main))dlsym(RTLD_NEXT, "__libc_start_main");
  program_main = main;
  return real(counted_main, argc, argv, init, fini, rtld_fini, stack_end);
}

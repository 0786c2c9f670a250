// What the functions of `calls.c` ask of `inject.c`.
#pragma once

// The next library's function of this name, which is libc's.
#define REAL(name)                                      \
  static __typeof__(&name) real;                        \
  if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

enum { PASS, FAIL, SHORT, END };

// Counts a call by the program, and says what becomes of it. It is about the descriptor `fd`, or
// about `path`, which may be relative to the directory `fd`. Sets `errno` where the call fails.
__attribute__((visibility("hidden")))
int strike(const char* function, const char* path, int fd);

// Seconds by which the clock of the day has jumped.
__attribute__((visibility("hidden")))
long jumped(void);

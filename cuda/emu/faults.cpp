// Wild addresses in kernels: the signal becomes the error of the launch. Sanitizers have handlers
// of their own, so this is for plain builds only.
#include <csignal>
#include <cstdio>

#include "emu/runtime.hpp"

namespace emu {

#if defined(EMU_ASAN) || defined(EMU_TSAN)
void catch_faults() {}
#else

namespace {

struct sigaction previous;

void on_fault(int signal, siginfo_t* info, void* context) {
  if (Thread* me = self()) {
    char text[64];
    // Without an address the processor has refused an access that is not aligned.
    if (info->si_code == SI_KERNEL)
      snprintf(text, sizeof text, "an address that is not aligned, or none at all");
    else
      snprintf(text, sizeof text, "illegal address %p", info->si_addr);
    me->machine->fail(text);  // leaves the handler for good, as longjmp would
  }
  // Not ours. Back to what was there before; the instruction faults again if that does nothing.
  if (previous.sa_flags & SA_SIGINFO)
    previous.sa_sigaction(signal, info, context);
  else
    sigaction(SIGSEGV, &previous, nullptr);
}

}  // namespace

void catch_faults() {
  struct sigaction action {};
  action.sa_sigaction = on_fault;
  // NODEFER, since the handler does not return; ONSTACK, where the host thread has such a stack,
  // since the fiber's may be what overflowed.
  action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &previous);
}

#endif

}  // namespace emu

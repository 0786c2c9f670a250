//! The wish to stop: SIGTERM, or SIGINT (Ctrl-C). The first one is noted, and the run stops where it can
//! be resumed: before the iteration it is in, which is dropped, or after it, where weights have changed in
//! it. The second ends the process at once. Both with exit code 75.
//!
//! The handlers are two lines over `libc`, which is there already.

use std::sync::atomic::{AtomicI32, Ordering};

/// The signal that came, or 0.
static CAME: AtomicI32 = AtomicI32::new(0);

/// Begins to listen.
pub(super) fn listen() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: a zeroed sigaction is a valid one (no flags, an empty mask); the handler does only
        // what handlers may do: it swaps an atomic, and it may call _exit.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = came as extern "C" fn(libc::c_int) as libc::sighandler_t;
            // Reads and writes under way go on.
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

extern "C" fn came(signal: libc::c_int) {
    if CAME.swap(signal, Ordering::SeqCst) != 0 {
        // SAFETY: _exit may be called from a handler; nothing of this process runs any more.
        unsafe { libc::_exit(75) };
    }
}

/// Whether a signal asked to stop.
pub(super) fn is_asked() -> bool {
    CAME.load(Ordering::SeqCst) != 0
}

/// What asked to stop.
pub(super) fn name() -> &'static str {
    match CAME.load(Ordering::SeqCst) {
        0 => "a signal to another rank",
        libc::SIGINT => "SIGINT",
        _ => "SIGTERM",
    }
}

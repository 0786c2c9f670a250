//! The wish to stop: SIGTERM, or SIGINT (Ctrl-C). The first one is noted, and the run stops where
//! it can be resumed: before the iteration it is in, which is dropped, or after it, where weights
//! have changed in it. The second ends the process at once. Both with exit code 75.
//!
//! The handler is two lines.

use crate::base::on_stop;
use std::sync::atomic::{AtomicI32, Ordering};

/// The signal that came, or 0.
static CAME: AtomicI32 = AtomicI32::new(0);

/// Begins to listen.
pub(super) fn listen() {
    // SAFETY: the handler changes an atomic and calls `_exit`.
    unsafe { on_stop(came) };
}

extern "C" fn came(signal: libc::c_int) {
    if CAME.swap(signal, Ordering::SeqCst) != 0 {
        // SAFETY: _exit may be called from a handler; nothing of this process runs any more.
        unsafe { libc::_exit(75) };
    }
}

/// True if a signal asked to stop.
pub(super) fn stop_requested() -> bool {
    CAME.load(Ordering::SeqCst) != 0
}

/// Returns the name of the signal that asked to stop.
pub(super) fn name() -> &'static str {
    match CAME.load(Ordering::SeqCst) {
        0 => "a signal to another rank",
        libc::SIGINT => "SIGINT",
        _ => "SIGTERM",
    }
}

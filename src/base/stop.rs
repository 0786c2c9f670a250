//! The wish to stop: SIGTERM, SIGINT (Ctrl-C), or SIGHUP (the terminal is gone). The first signal
//! is noted. Work that can be repeated asks between any two of its parts, and ends with an error.
//! Where it does not ask, as within a library or in a read that waits, the process ends half a
//! second later. Work that must be finished says so, and ends in its own way. The second signal
//! ends the process at once. All with exit code 75.

use super::error::{Error, Result};
use super::system::{on_signal, on_stop, write_at_once};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

/// How long the work may take to ask, and to end.
const PATIENCE: libc::itimerval = libc::itimerval {
    it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
    it_value: libc::timeval { tv_sec: 0, tv_usec: 500_000 },
};

/// The signal that came, or 0.
static CAME: AtomicI32 = AtomicI32::new(0);

/// The pieces of work under way that are to be finished.
static FINISHING: AtomicUsize = AtomicUsize::new(0);

/// Begins to listen.
pub fn listen_for_stop() {
    // SAFETY: the handlers change atomics and call `setitimer`, `poll`, `write` and `_exit`.
    unsafe {
        on_signal(libc::SIGALRM, too_late);
        on_stop(came);
    }
}

extern "C" fn came(signal: libc::c_int) {
    // SAFETY: both are calls of the system alone, with a value that is there for good; nothing of
    // this process runs after _exit.
    unsafe {
        if CAME.swap(signal, Ordering::SeqCst) != 0 {
            libc::_exit(75);
        }
        libc::setitimer(libc::ITIMER_REAL, &PATIENCE, std::ptr::null_mut());
    }
}

/// Nobody has asked.
extern "C" fn too_late(_: libc::c_int) {
    if FINISHING.load(Ordering::SeqCst) == 0 {
        let line = ["duplex: stopped by ", stop_signal(), WAY_OUT, "\n"];
        line.into_iter().for_each(|part| write_at_once(part.as_bytes()));
        // SAFETY: _exit may be called from a handler; nothing of this process runs any more.
        unsafe { libc::_exit(75) };
    }
}

/// The meaning of a stop where nothing has to be finished.
const WAY_OUT: &str = " during preparation; the same command begins again, or resumes from the \
                       last checkpoint";

/// True if a signal asked to stop.
pub fn stop_requested() -> bool {
    CAME.load(Ordering::SeqCst) != 0
}

/// Returns the name of the signal that asked to stop.
pub fn stop_signal() -> &'static str {
    match CAME.load(Ordering::SeqCst) {
        0 => "a signal to another rank",
        libc::SIGINT => "SIGINT",
        libc::SIGHUP => "SIGHUP",
        _ => "SIGTERM",
    }
}

/// For work that can be repeated to ask, often: it costs two loads.
///
/// # Errors
/// A signal asked to stop, and no work under way is to be finished.
pub fn check_stop() -> Result<()> {
    match stop_requested() && FINISHING.load(Ordering::SeqCst) == 0 {
        true => Err(Error::stopped(format!("stopped by {}{WAY_OUT}", stop_signal()))),
        false => Ok(()),
    }
}

/// Work that is to be finished, or ends in its own way when a signal asks to stop. As long as this
/// lives, [`check_stop`] finds nothing, on any thread.
#[derive(Debug)]
pub struct Finishing(());

/// Begins such work.
#[must_use]
pub fn finish_first() -> Finishing {
    FINISHING.fetch_add(1, Ordering::SeqCst);
    Finishing(())
}

/// For a process whose work is done: it ends as it would have without a signal.
pub fn finish_for_good() {
    std::mem::forget(finish_first());
}

impl Drop for Finishing {
    fn drop(&mut self) {
        FINISHING.fetch_sub(1, Ordering::SeqCst);
    }
}

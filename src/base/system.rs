//! The name of this machine, the signals of the process, and standard error without waiting.

/// The name of this machine; empty where the system does not say.
pub fn machine_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().into()
}

/// Installs `handler` for the signals that ask the process to stop: SIGTERM, SIGINT (Ctrl-C), and
/// SIGHUP, unless that is ignored, as under `nohup`. In a handler only little is allowed, such as
/// changing an atomic or calling `_exit`.
///
/// # Safety
/// The handler does only such things, whenever it is called and on whatever thread.
pub unsafe fn on_stop(handler: extern "C" fn(libc::c_int)) {
    let signals = [Some(libc::SIGTERM), Some(libc::SIGINT), heard(libc::SIGHUP)];
    for signal in signals.into_iter().flatten() {
        // SAFETY: the contract of this function.
        unsafe { on_signal(signal, handler) };
    }
}

/// The signal, unless this process ignores it.
fn heard(signal: libc::c_int) -> Option<libc::c_int> {
    // SAFETY: a zeroed sigaction is a valid one to be filled.
    let now = unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut now);
        now
    };
    (now.sa_sigaction != libc::SIG_IGN).then_some(signal)
}

/// Installs `handler` for a signal.
///
/// # Safety
/// As of [`on_stop`].
pub(super) unsafe fn on_signal(signal: libc::c_int, handler: extern "C" fn(libc::c_int)) {
    // SAFETY: a zeroed sigaction is a valid one (no flags, an empty mask), and by the contract of
    // this function the handler does what handlers may.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        // Reads and writes under way go on.
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(signal, &action, std::ptr::null_mut());
    }
}

/// Lets a write beyond the limit of file sizes (`ulimit -f`) fail, where SIGXFSZ would end the
/// process without a word.
pub fn tell_of_file_size_limits() {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Writes to standard error as much of `bytes` as it takes without waiting, by nothing but system
/// calls: handlers may call this.
pub fn write_at_once(bytes: &[u8]) {
    let mut ready = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
    // One by one: a terminal that is ready may still have less room than there are bytes.
    for byte in bytes {
        // SAFETY: one descriptor to look at and one byte to write, which live as long as the calls.
        unsafe {
            if libc::poll(&mut ready, 1, 0) != 1 || ready.revents & libc::POLLOUT == 0 {
                return;
            }
            libc::write(libc::STDERR_FILENO, std::ptr::from_ref(byte).cast(), 1);
        }
    }
}

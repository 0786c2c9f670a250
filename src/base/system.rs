//! The name of this machine, and the signals that ask the process to stop.

/// The name of this machine; empty where the system does not say.
pub fn machine_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().into()
}

/// Installs `handler` for SIGTERM and SIGINT (Ctrl-C), which ask the process to stop. In a
/// handler only little is allowed, such as changing an atomic or calling `_exit`.
///
/// # Safety
/// The handler does only such things, whenever it is called and on whatever thread.
pub unsafe fn on_stop(handler: extern "C" fn(libc::c_int)) {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: a zeroed sigaction is a valid one (no flags, an empty mask), and by the
        // contract of this function the handler does what handlers may.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as libc::sighandler_t;
            // Reads and writes under way go on.
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

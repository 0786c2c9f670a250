//! The one error type. Its kind decides the exit code; its message is one line that names the
//! thing at fault (file, row, key, tensor) and the way out.

use super::text::printable;
use std::fmt;
use std::io::ErrorKind;
use std::path::Path;

/// The kind of an error, which decides the program's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The user's input or configuration: exit code 2.
    User,
    /// A resource is missing (disk, memory, device): exit code 3.
    Resource,
    /// There is no memory for what was asked for: exit code 3, but less of it may fit.
    Memory,
    /// Training has made numbers that are not finite: exit code 2.
    Diverged,
    /// Stopped, but resumable (signal, dead rank, preemption): exit code 75.
    Stopped,
    /// A broken invariant of ours: exit code 1, please report.
    Internal,
}

/// An error with one line of explanation.
#[derive(Clone, Debug)]
pub struct Error {
    kind: Kind,
    message: String,
}

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The user's input or configuration is wrong. Exit code 2.
    pub fn user(message: impl Into<String>) -> Error {
        Error { kind: Kind::User, message: message.into() }
    }

    /// A resource is missing. Exit code 3.
    pub fn resource(message: impl Into<String>) -> Error {
        Error { kind: Kind::Resource, message: message.into() }
    }

    /// There is no memory for something. Exit code 3.
    pub fn memory(message: impl Into<String>) -> Error {
        Error { kind: Kind::Memory, message: message.into() }
    }

    /// Training has made numbers that are not finite. Exit code 2.
    pub fn diverged(message: impl Into<String>) -> Error {
        Error { kind: Kind::Diverged, message: message.into() }
    }

    /// The run was stopped and can be resumed. Exit code 75.
    pub fn stopped(message: impl Into<String>) -> Error {
        Error { kind: Kind::Stopped, message: message.into() }
    }

    /// One of our own invariants is broken. Exit code 1.
    pub fn internal(message: impl Into<String>) -> Error {
        Error { kind: Kind::Internal, message: message.into() }
    }

    /// An I/O error while doing `action` ("read", "write", ...) on `path`: of kind `User` where the
    /// path is wrong, else a missing resource.
    pub fn io(action: &str, path: &Path, e: &std::io::Error) -> Error {
        let message = format!("cannot {action} {}: {e}", path.display());
        match e.kind() {
            _ if is_of_the_path(e) => Error::user(message),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Error::resource(format!(
                "{message}; free some space and run the same command again"
            )),
            ErrorKind::FileTooLarge => Error::resource(format!(
                "{message}; raise the limit of file sizes (ulimit -f) and run the same command \
                 again"
            )),
            _ => Error::resource(message),
        }
    }

    /// The kind of this error.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The process exit code for this error.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Internal => 1,
            Kind::User | Kind::Diverged => 2,
            Kind::Resource | Kind::Memory => 3,
            Kind::Stopped => 75,
        }
    }

    /// Puts `place: ` before the message where training has diverged there; other errors stay.
    pub fn diverged_in(self, place: &str) -> Error {
        if self.kind == Kind::Diverged { self.context(place) } else { self }
    }

    /// Puts `context: ` before the message, keeping the kind.
    pub fn context(self, context: impl fmt::Display) -> Error {
        Error { kind: self.kind, message: format!("{context}: {}", self.message) }
    }
}

/// True for errors by which the system says that a path, or the file there, is not the right one.
/// All others come from the machine: its disk, its network, its limits.
fn is_of_the_path(e: &std::io::Error) -> bool {
    matches!(
        e.kind(),
        ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory
            | ErrorKind::AlreadyExists
            | ErrorKind::DirectoryNotEmpty
            | ErrorKind::InvalidFilename
            | ErrorKind::InvalidInput
            | ErrorKind::InvalidData
    ) || matches!(e.raw_os_error(), Some(libc::ELOOP | libc::ENXIO | libc::ENODEV))
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One line, and nothing that drives a terminal, whatever a file or a library put into it.
        f.write_str(&printable(&self.message))
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_follow_the_kind() {
        assert_eq!(Error::user("x").exit_code(), 2);
        assert_eq!(Error::diverged("x").exit_code(), 2);
        assert_eq!(Error::resource("x").exit_code(), 3);
        assert_eq!(Error::memory("x").exit_code(), 3);
        assert_eq!(Error::stopped("x").exit_code(), 75);
        assert_eq!(Error::internal("x").exit_code(), 1);
        for code in [libc::ENOSPC, libc::EIO, libc::EROFS, libc::ESTALE, libc::EMFILE] {
            let e = std::io::Error::from_raw_os_error(code);
            assert_eq!(Error::io("write", Path::new("/x"), &e).exit_code(), 3, "{e}");
        }
        for code in [libc::ENOENT, libc::EACCES, libc::ENOTDIR, libc::ELOOP, libc::ENAMETOOLONG] {
            let e = std::io::Error::from_raw_os_error(code);
            assert_eq!(Error::io("read", Path::new("/x"), &e).exit_code(), 2, "{e}");
        }
    }

    #[test]
    fn messages_are_one_line() {
        let e = Error::user("a\nb\x1b[2J").context("f.json");
        assert_eq!(e.to_string(), r"f.json: a b\u{1b}[2J");
    }
}

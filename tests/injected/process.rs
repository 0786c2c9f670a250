//! A command of the binary under test, with a fault.

use crate::library::library;
use crate::trace::{self, Call};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The binary under test.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("DUPLEX_BINARY").unwrap_or(env!("CARGO_BIN_EXE_duplex").into()).into()
}

/// How a command ended.
pub(crate) struct Outcome {
    /// None if it did not end in time.
    pub(crate) status: Option<ExitStatus>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// The calls that failed, or all of them if none was to fail.
    pub(crate) struck: Vec<Call>,
}

impl Outcome {
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.and_then(|s| s.code())
    }

    /// The last line on standard error.
    pub(crate) fn last(&self) -> &str {
        self.stderr.lines().last().unwrap_or_default()
    }
}

/// Runs a command in `dir`, which holds its log and its output too. Without a `fault`, all of its
/// calls are written down.
pub(crate) fn run<S: AsRef<std::ffi::OsStr>>(
    words: &[S],
    dir: &Path,
    fault: Option<&str>,
    longest: Duration,
) -> Outcome {
    std::fs::create_dir_all(dir).unwrap();
    let [log, stdout, stderr] = ["calls", "stdout", "stderr"].map(|name| dir.join(name));
    let _ = std::fs::remove_file(&log);
    let mut child = Command::new(binary())
        .args(words)
        .current_dir(dir)
        .env("LD_PRELOAD", library())
        .env("FAULT_LOG", &log)
        .env("FAULT_WITHIN", dir)
        .envs(fault.map(|fault| ("FAULT", fault)))
        .stdin(Stdio::null())
        .stdout(File::create(&stdout).unwrap())
        .stderr(File::create(&stderr).unwrap())
        .spawn()
        .unwrap();
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if started.elapsed() > longest {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let [stdout, stderr] = [stdout, stderr]
        .map(|file| String::from_utf8_lossy(&std::fs::read(file).unwrap()).into_owned());
    Outcome { status, stdout, stderr, struck: trace::read(&log) }
}

//! Runs a compiler over many sources side by side, each only if it or a header it includes has
//! changed.

use crate::Result;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::SystemTime;
use std::{fs, thread};

/// One call of a compiler: `words` is the whole command but for the output and its list of
/// dependencies.
pub(crate) struct Unit {
    pub(crate) source: PathBuf,
    pub(crate) output: PathBuf,
    pub(crate) words: Vec<String>,
}

impl Unit {
    /// Returns the compiler's messages, also those of an earlier build that made the output. Fails
    /// if the log cannot be read.
    pub(crate) fn messages(&self) -> Result<String> {
        let path = self.beside("log");
        fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))
    }

    fn beside(&self, extension: &str) -> PathBuf {
        self.output.with_extension(extension)
    }

    /// True if the same command made the output after the last change of every file it depends on.
    /// The stamp is written before the compiler starts, so an edit during the compilation counts as
    /// a change.
    fn is_fresh(&self, stamp: &str) -> bool {
        let made = modified(&self.beside("stamp"));
        let same = fs::read_to_string(self.beside("stamp")).is_ok_and(|old| old == stamp);
        let list = fs::read_to_string(self.beside("d")).unwrap_or_default();
        let sources = dependencies(&list);
        same && self.output.exists()
            && !sources.is_empty()
            && sources.iter().all(|path| modified(path).is_some() && modified(path) < made)
    }

    fn compile(&self, stamp: &str) -> Result<()> {
        let said = |e: std::io::Error| format!("{}: {}: {e}", self.source.display(), self.words[0]);
        let _ = fs::remove_file(&self.output);
        fs::write(self.beside("stamp"), stamp).map_err(said)?;
        let run = Command::new(&self.words[0])
            .args(&self.words[1..])
            .args(["-MMD".as_ref(), "-MF".as_ref(), self.beside("d").as_os_str()])
            .args(["-o".as_ref(), self.output.as_os_str(), self.source.as_os_str()])
            .stdin(Stdio::null())
            .output()
            .map_err(said)?;
        let text = [run.stdout, run.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        if !run.status.success() {
            let _ = fs::remove_file(&self.output);
            return Err(format!("{}: {} failed\n{text}", self.source.display(), self.words[0]));
        }
        fs::write(self.beside("log"), text.as_bytes()).map_err(said)
    }
}

/// Brings all outputs up to date with as many compilers at a time as cargo allows. All errors are
/// collected.
pub(crate) fn all(units: &[Unit], version: &str) -> Result<()> {
    let jobs = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let todo = Mutex::new(units.iter());
    let errors = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..units.len().min(jobs) {
            scope.spawn(|| {
                loop {
                    // Apart from the `if let`, which would hold the lock until the compiler is
                    // done.
                    let next = todo.lock().expect("a worker panicked").next();
                    let Some(unit) = next else { break };
                    let stamp = format!("{version}\n{}", unit.words.join("\n"));
                    if !unit.is_fresh(&stamp)
                        && let Err(error) = unit.compile(&stamp)
                    {
                        errors.lock().expect("a worker panicked").push(error);
                    }
                }
            });
        }
    });
    let errors = errors.into_inner().expect("a worker panicked");
    if errors.is_empty() { Ok(()) } else { Err(errors.join("\n")) }
}

/// Returns the output of `program --version`. It is part of every stamp, so that another compiler
/// compiles everything again.
pub(crate) fn version(program: &str) -> Result<String> {
    let run = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    let run = run.map_err(|e| format!("{program}: {e}"))?;
    Ok(String::from_utf8_lossy(&run.stdout).trim().to_string())
}

/// The sources of `folder` with an extension, by name; none if there is no such folder.
pub(crate) fn sources(folder: &str, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == extension));
    paths.sort();
    paths
}

/// The file name of a path without its extension.
pub(crate) fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Makes a folder that a build writes into.
pub(crate) fn folder(path: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(path)
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|m| m.modified()).ok()
}

/// The prerequisites in a rule written by a compiler: `out: a.cu \` and so on, spaces in names as
/// `\ `.
fn dependencies(rule: &str) -> Vec<PathBuf> {
    let list = rule.split_once(": ").map_or("", |(_, list)| list);
    let list = list.replace("\\\n", " ").replace("\\ ", "\0");
    list.split_whitespace().map(|name| name.replace('\0', " ").into()).collect()
}

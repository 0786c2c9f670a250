//! The right end of a run after a fault, and wrong ones.

use crate::faults::Fault;
use crate::process::Outcome;
use crate::scene::Scene;
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

const EACCES: i32 = 13;
const EINTR: i32 = 4;
const ENOENT: i32 = 2;
const ENOMEM: i32 = 12;

/// How a run with a fault is found to be wrong: a class, and what was seen.
pub(crate) type Wrong = (&'static str, String);

/// All files below `dir` with their bytes, by the path inside.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(at) = dirs.pop() {
        let Ok(entries) = std::fs::read_dir(&at) else { continue };
        for path in entries.map(|e| e.unwrap().path()) {
            if path.is_dir() {
                dirs.push(path);
            } else {
                let bytes = std::fs::read(&path).unwrap_or_default();
                found.insert(path.strip_prefix(dir).unwrap().to_path_buf(), bytes);
            }
        }
    }
    found
}

/// The weights of all final models of a run.
pub(crate) fn weights(run: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = files(run);
    files.retain(|path, _| !path.starts_with("checkpoints") && path.ends_with("model.safetensors"));
    files
}

/// The names of files that a run that ends should not leave.
pub(crate) fn litter(run: &Path) -> Vec<String> {
    let names = files(run).into_keys().map(|p| p.display().to_string());
    let marks = [".tmp", ".partial", ".old", ".draft"];
    names.filter(|n| marks.iter().any(|mark| n.contains(mark))).collect()
}

/// Another run beside the one under test.
pub(crate) struct Neighbour {
    dir: PathBuf,
    before: BTreeMap<PathBuf, Vec<u8>>,
}

impl Neighbour {
    pub(crate) fn new(dir: PathBuf) -> Neighbour {
        let names = ["config.toml", "duplex.lock", "metrics.jsonl", "sft/model.safetensors"];
        let inner = ["checkpoints/sft-00000002/manifest.json", ".sft.old/model.safetensors"];
        for name in names.iter().chain(&inner) {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name).unwrap();
        }
        Neighbour { before: files(&dir), dir }
    }

    fn is_untouched(&self) -> bool {
        files(&self.dir) == self.before
    }
}

/// Judges the end of a command with a fault by its code and its lines.
pub(crate) fn end(fault: &Fault, out: &Outcome) -> Result<(), Wrong> {
    let last = out.last().to_string();
    let Some(status) = out.status else { return Err(("hang", last)) };
    if fault.is_signal() && (status.signal().is_some() || status.code() == Some(75)) {
        return Ok(());
    }
    let Some(code) = status.code() else { return Err(("signal", format!("{status}: {last}"))) };
    if out.stderr.contains("panicked") || out.stderr.contains("internal error") {
        return Err(("panic", out.stderr.clone()));
    }
    if ![0, 2, 3, 75].contains(&code) {
        return Err(("code", format!("{code}: {last}")));
    }
    if code == 0 {
        return Ok(());
    }
    let untold = out.struck.iter().any(|c| c.path == "<stderr>");
    let passes = fault.errno().is_none_or(|e| e == EINTR);
    if passes {
        return Err(("gave up", format!("{code}: {last}")));
    }
    if untold {
        return Ok(());
    }
    let errors: Vec<&str> = out.stderr.lines().filter(|l| l.starts_with("duplex: ")).collect();
    if errors != [last.as_str()] {
        return Err(("lines", out.stderr.clone()));
    }
    if code != 75 && !names(&last, fault, out) {
        return Err(("untrue", last));
    }
    let own = fault.errno().is_some_and(|e| [EACCES, ENOENT].contains(&e));
    if code == 2 && !own {
        return Err(("blame", last));
    }
    Ok(())
}

/// True if the line says what failed: it has the error's text and a name of a path that failed, or
/// of the resource.
fn names(line: &str, fault: &Fault, out: &Outcome) -> bool {
    let error = std::io::Error::from_raw_os_error(fault.errno().unwrap_or(0)).to_string();
    let error = error.split(" (os error").next().unwrap_or_default();
    match fault.function() {
        "thread" => return line.contains("thread"),
        "mmap" if fault.errno() == Some(ENOMEM) => return line.contains("memory"),
        _ => {}
    }
    let path = |p: &str| p == "-" || parts(p).any(|part| line.contains(part));
    line.contains(error) && out.struck.iter().any(|call| path(&call.path))
}

/// The names that stand for a path: its file, without what marks a draft of it, and the directory
/// that this is in, for a tree that is removed as a whole.
fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.rsplit('/').take(2).map(undrafted).filter(|part| !part.is_empty())
}

/// The name that a draft will have: that of `.tmp-PID-NAME` is `NAME`.
fn undrafted(name: &str) -> &str {
    let Some(draft) = name.strip_prefix(".tmp-") else { return name };
    draft.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start_matches('-')
}

/// Judges a run with a fault and the next one, which has none. What is worst comes first.
pub(crate) fn run(
    scene: &Scene,
    dir: &str,
    fault: &Fault,
    whole: &BTreeMap<PathBuf, Vec<u8>>,
) -> (Outcome, Vec<Wrong>) {
    let run = scene.path(dir).join("run");
    let neighbour = Neighbour::new(scene.path(dir).join("other"));
    let out = scene.train(dir, Some(fault));
    let again = (out.code() != Some(0)).then(|| scene.train(dir, None));
    let mut wrong = vec![];
    if !neighbour.is_untouched() {
        wrong.push(("foreign files", String::new()));
    }
    match again.filter(|again| again.code() != Some(0)) {
        // It was killed when all was done.
        Some(again) if fault.is_signal() && again.last().contains("exists already") => {
            if weights(&run) != *whole {
                wrong.push(("other bytes", "finished".into()));
            }
        }
        Some(again) => {
            wrong.push(("no resume", format!("{:?}: {}", again.code(), again.last())));
        }
        // A micro-batch without memory is halved, and its sums are those of halves.
        None if weights(&run) != *whole && !out.stderr.contains("it is halved") => {
            wrong.push(("other bytes", format!("exit {:?}", out.code())));
        }
        None => {}
    }
    wrong.extend(end(fault, &out).err());
    let mut left = litter(&run);
    if !left.is_empty() && out.code() == Some(0) {
        // The run went on without removing it, so the next start is one that trains it further.
        let further = scene.train_further(dir);
        if further.code() != Some(0) {
            wrong.push(("no extension", format!("{:?}: {}", further.code(), further.last())));
        }
        left = litter(&run);
    }
    if !left.is_empty() {
        wrong.push(("litter", left.join(" ")));
    }
    (out, wrong)
}

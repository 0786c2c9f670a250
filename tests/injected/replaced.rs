//! Every file that a command reads or looks for, replaced by something that is no file, or cut
//! while it is read.

use crate::checkpoint;
use crate::process::{self, Outcome};
use crate::scene::{self, copy};
use crate::trace::Call;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest that a command may take; undisturbed it takes a tenth of a second.
const LONGEST: Duration = Duration::from_secs(5);

/// The commands, in the folder that [`Place::new`] fills.
const COMMANDS: [&str; 18] = [
    "inspect model",
    "inspect sharded",
    "inspect bin",
    "inspect bin_sharded",
    "inspect adapter",
    "verify model",
    "verify sharded",
    "verify adapter",
    "verify done",
    "chat model --prompt Hi --max-new-tokens 2",
    "chat adapter --prompt Hi --max-new-tokens 2",
    "eval model --reward-model judge --data-path data.jsonl --prompts 2 --max-new-tokens 2 \
     --max-prompt-seq-len 40",
    "sft --config short.toml --actor-model model --data-path data.jsonl --output-dir new",
    "sft --config short.toml --actor-model adapter --data-path data.jsonl --output-dir new",
    "reward --config short.toml --actor-model sharded --data-path data.jsonl --output-dir new",
    "ppo --config short.toml --actor-model model --reward-model judge --data-path data.jsonl \
     --output-dir new",
    "dpo --config short.toml --actor-model model --data-path data.jsonl --output-dir new",
    "sft --config short.toml --actor-model model --data-path data.jsonl --output-dir done --extend \
     --max-steps 6",
];

/// Files without which there is no model to describe.
const WEIGHTS: [&str; 6] = [
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "adapter_config.json",
    "adapter_model.safetensors",
];

/// Files that are used where they exist.
const USED: [&str; 6] = [
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "adapter_config.json",
];

fn words(command: &str) -> Vec<&str> {
    command.split_whitespace().collect()
}

/// A folder with models of all kinds, data and a finished run.
struct Place {
    tmp: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let tmp = scene::folder();
        let place = Place { tmp };
        let dir = place.path("whole");
        scene::inputs(&dir);
        checkpoint::write_wide(&dir.join("wide"), 96, 256, 4);
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        copy(&golden.join("gpt2_bin"), &dir.join("bin"));
        copy(&golden.join("gpt2_bin_sharded"), &dir.join("bin_sharded"));
        let sft = "sft --config short.toml --actor-model model --data-path data.jsonl";
        let lora = "--actor-lora-dim 2 --lora-module-name q_proj";
        for more in ["done", "lora", "many"] {
            let (model, flags) = match more {
                "lora" => ("model", lora),
                "many" => ("wide", "--max-shard-size 1MB"),
                _ => ("model", ""),
            };
            let sft = sft.replace("-model model", &format!("-model {model}"));
            place.must(&format!("{sft} --output-dir {more} {flags}"));
        }
        place.must(&format!("{} --output-dir scores", sft.replacen("sft", "reward", 1)));
        let out = |from: &str, to: &str| std::fs::rename(dir.join(from), dir.join(to)).unwrap();
        out("many/sft", "sharded");
        out("scores/reward", "judge");
        out("lora/sft/adapter", "adapter");
        // Copies of the folder have models of their own.
        let config = dir.join("adapter/adapter_config.json");
        let text = std::fs::read_to_string(&config).unwrap();
        let absolute = format!("{}/", dir.canonicalize().unwrap().display());
        std::fs::write(config, text.replace(&absolute, "")).unwrap();
        for name in ["lora", "many", "scores", "wide"] {
            std::fs::remove_dir_all(dir.join(name)).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.tmp.path().join(name)
    }

    fn must(&self, command: &str) {
        let out = process::run(&words(command), &self.path("whole"), None, 4 * LONGEST);
        assert_eq!(out.code(), Some(0), "{command}: {}", out.stderr);
    }

    /// Runs a command in a copy of the folder after `change`.
    fn run(
        &self,
        name: &str,
        command: &str,
        fault: Option<&str>,
        change: impl Fn(&Path),
    ) -> Outcome {
        let dir = self.path(name);
        copy(&self.path("whole"), &dir);
        change(&dir);
        let out = process::run(&words(command), &dir, fault, LONGEST);
        std::fs::remove_dir_all(&dir).unwrap();
        out
    }
}

/// The things that take the place of a file.
const KINDS: [&str; 9] = [
    "fifo",
    "/dev/zero",
    "/dev/null",
    "/dev/full",
    "terminal",
    "directory",
    "loop",
    "broken",
    "socket",
];

/// A terminal that nobody reads or writes; it is there as long as its other side.
struct Terminal {
    _other: OwnedFd,
    path: PathBuf,
}

impl Terminal {
    fn new() -> Terminal {
        let mut name = [0; 64];
        // SAFETY: the descriptor is ours, and the name's buffer as long as is said.
        let (other, named) = unsafe {
            let fd = libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY);
            assert!(fd >= 0 && libc::grantpt(fd) == 0 && libc::unlockpt(fd) == 0);
            (OwnedFd::from_raw_fd(fd), libc::ptsname_r(fd, name.as_mut_ptr(), name.len()))
        };
        assert_eq!(named, 0);
        let path =
            name.iter().take_while(|c| **c != 0).map(|c| char::from(*c as u8)).collect::<String>();
        Terminal { _other: other, path: path.into() }
    }
}

/// Puts something of this kind where `path` is, or could be.
fn replace(path: &Path, kind: &str, terminal: &Terminal) {
    if path.is_dir() {
        std::fs::remove_dir_all(path).unwrap();
    } else if path.exists() {
        std::fs::remove_file(path).unwrap();
    }
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    match kind {
        "fifo" => {
            let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
            // SAFETY: the name ends with a zero.
            assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o644) }, 0);
        }
        "terminal" => symlink(&terminal.path, path).unwrap(),
        "directory" => std::fs::create_dir(path).unwrap(),
        "loop" => symlink(path.file_name().unwrap(), path).unwrap(),
        "broken" => symlink("nothing-is-here", path).unwrap(),
        // It stays after its listener is gone.
        "socket" => drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
        device => symlink(device, path).unwrap(),
    }
}

/// The files that a command asks for in its copy `at` of the folder `whole`: those that are there,
/// or could be. What it makes itself is left out.
fn asked(whole: &Path, at: &Path, calls: &[Call]) -> BTreeSet<PathBuf> {
    let names = calls.iter().filter(|c| ["open", "stat"].contains(&c.function.as_str()));
    let inside = names.filter_map(|c| {
        let path = at.join(&c.path);
        let path = path.strip_prefix(at).ok()?.to_path_buf();
        let of_run = ["new", "stdout", "stderr", "calls"].iter().any(|name| path.starts_with(name));
        let draft = path.to_string_lossy().contains(".tmp");
        let plain = path.components().all(|c| matches!(c, std::path::Component::Normal(_)));
        (plain && !of_run && !draft && !whole.join(&path).is_dir()).then_some(path)
    });
    inside.filter(|path| !path.as_os_str().is_empty()).collect()
}

/// True if it is right that a command did not care.
fn may_pass(whole: &Path, command: &str, path: &Path) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    // An adapter has a tokenizer of its own; that of its model is only looked for. A model can be
    // described without one.
    let other = command.contains("adapter") && path.starts_with("model");
    if (other || command.starts_with("inspect")) && !WEIGHTS.contains(&name) {
        return true;
    }
    if path.starts_with("done") {
        // A log, a report, a model to be replaced.
        return !path.starts_with("done/checkpoints");
    }
    name == "README.md" || !(whole.join(path).exists() || USED.contains(&name))
}

/// The fault in the end of a command that has such a file.
fn wrong(whole: &Path, command: &str, path: &Path, out: &Outcome) -> Option<String> {
    let name = path.file_name().unwrap().to_str().unwrap();
    let last = out.last();
    // `verify` tells of each file on a line of standard output.
    let told = last.contains(name) || out.stdout.lines().any(|l| l.contains(name));
    let problem = match out.code() {
        None if out.status.is_none() => "hangs",
        None => "killed by a signal",
        Some(0) if may_pass(whole, command, path) => return None,
        Some(0) => "taken as if it were right",
        Some(2 | 3) if out.stderr.contains("panicked") => "panics",
        Some(2) if out.stderr.lines().filter(|l| l.starts_with("duplex: ")).count() != 1 => "lines",
        Some(2) if !told => "does not name the file",
        Some(2) => return None,
        Some(3) if path.starts_with("done") => return None,
        Some(_) => "another code",
    };
    Some(format!("{problem}: {:?} {last}", out.code()))
}

/// All pairs of commands and files.
fn pairs(place: &Place) -> Vec<(&'static str, PathBuf)> {
    let mut pairs = vec![];
    for command in COMMANDS {
        let dir = place.path("asked");
        copy(&place.path("whole"), &dir);
        let out = process::run(&words(command), &dir, None, 4 * LONGEST);
        assert_eq!(out.code(), Some(0), "{command}: {}", out.stderr);
        let files = asked(&place.path("whole"), &dir, &out.struck);
        assert!(!files.is_empty(), "{command}");
        pairs.extend(files.into_iter().map(|file| (command, file)));
        std::fs::remove_dir_all(dir).unwrap();
    }
    pairs
}

#[test]
fn what_is_no_file_is_refused_in_one_line_wherever_a_file_is_read() {
    let place = Place::new();
    let terminal = Terminal::new();
    let whole = place.path("whole");
    let mut cases = vec![];
    for (i, (command, path)) in pairs(&place).into_iter().enumerate() {
        let all = KINDS.iter().enumerate();
        // A sample has each file with two kinds, in turn.
        let kinds = all.filter(|(k, _)| crate::sweep::all_are_asked() || (i + k) % 5 == 0);
        cases.extend(kinds.map(|(_, kind)| (command, path.clone(), *kind)));
    }
    let found = crate::sweep::in_parallel(&cases, |i, (command, path, kind)| {
        let change = |dir: &Path| replace(&dir.join(path), kind, &terminal);
        let out = place.run(&i.to_string(), command, None, change);
        let wrong = wrong(&whole, command, path, &out);
        wrong.map(|wrong| format!("{kind}\t{}\t{command}\t{wrong}", path.display()))
    });
    crate::sweep::report("replaced", cases.len(), found);
}

/// A read of a file, while which the file is cut.
struct Cut {
    command: &'static str,
    path: PathBuf,
    /// By the library's name.
    fault: String,
    /// It is the first read since the file's size was asked for, so less than that is found.
    first: bool,
}

/// The reads of a command that ran in `at`.
fn cuts(command: &'static str, calls: &[Call], at: &Path) -> Vec<Cut> {
    let mut turns: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let (mut cuts, mut known) = (vec![], BTreeSet::new());
    for call in calls {
        let turn = turns.entry((&call.function, &call.site)).or_default();
        *turn += 1;
        let Ok(path) = Path::new(&call.path).strip_prefix(at) else { continue };
        if ["read", "mmap"].contains(&call.function.as_str()) && !path.starts_with("new") {
            let first = known.insert(path);
            cuts.extend(["cut", "empty"].map(|how| Cut {
                command,
                path: path.to_path_buf(),
                fault: format!("{}:{}:{turn}:{how}", call.function, call.site),
                first,
            }));
        }
    }
    cuts
}

/// True if a command ended well although the file was cut.
fn is_right(cut: &Cut, out: &Outcome) -> bool {
    let name = cut.path.file_name().unwrap().to_str().unwrap();
    let name = name.split('.').next().unwrap();
    // A template has no name of a file once it is read.
    let names = [name, &name.replace('_', " ")];
    let told = names.iter().any(|name| out.last().contains(*name) || out.stdout.contains(*name));
    let judges =
        cut.command.starts_with("verify") || cut.path.extension().is_some_and(|e| e == "bin");
    match out.code() {
        // It was read to its end before.
        Some(0) => true,
        // It is opened once more, and is now a file that is cut; or its format says so first.
        Some(2) => told && (judges || !cut.first),
        Some(3) => told && !out.stderr.contains("panicked"),
        _ => false,
    }
}

#[test]
fn a_file_that_is_cut_while_it_is_read_ends_in_one_line() {
    let place = Place::new();
    let mut cases = vec![];
    for command in COMMANDS {
        let dir = place.path("asked");
        copy(&place.path("whole"), &dir);
        let out = process::run(&words(command), &dir, None, 4 * LONGEST);
        cases.extend(cuts(command, &out.struck, &dir));
        std::fs::remove_dir_all(dir).unwrap();
    }
    // A sample has the first reads, and some of the others.
    let mut i = 0;
    cases.retain(|cut| {
        i += 1;
        crate::sweep::all_are_asked() || i % if cut.first { 2 } else { 29 } == 0
    });
    let found = crate::sweep::in_parallel(&cases, |i, cut| {
        let out = place.run(&i.to_string(), cut.command, Some(&cut.fault), |_| {});
        let Cut { command, path, fault, .. } = cut;
        let seen = || format!("{:?} {}", out.status, out.last());
        let told = || format!("{fault}\t{}\t{command}\t{}", path.display(), seen());
        (!is_right(cut, &out)).then(told)
    });
    crate::sweep::report("cut", cases.len(), found);
}

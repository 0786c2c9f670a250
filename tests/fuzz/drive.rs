//! Starts the process of a parser, watches it, starts it again behind an input that ended it, and
//! tells what was found.

use crate::child::{Task, input};
use crate::mutate::Mutator;
use crate::parsers::PARSERS;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Inputs for each seed where none are asked for.
const FEW: u64 = 1000;
/// The seed that stays.
const FIXED: u64 = 20;
/// An input that takes so long on the clock hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// Inputs that may end their process before the test gives up.
const MOST_ENDS: usize = 20;
/// How a process ends that asked for more memory than [`duplex::base::bounded`] gives: by a line,
/// as it should.
const REFUSED: i32 = 2;

/// The results of one seed.
#[derive(Default)]
struct Seen {
    executions: u64,
    /// Inputs that the parser took.
    taken: u64,
    /// Inputs that asked for memory without end and were refused it.
    refused: u64,
    /// Number of the input, and what happened.
    failures: Vec<(u64, String)>,
    /// Most bytes for one input.
    memory: u64,
    micros: u64,
    /// Largest resident memory of a process, in bytes.
    resident: u64,
}

/// Fuzzes the parser called `name` and fails where it does.
pub(crate) fn fuzz(name: &str) {
    let number = |key: &str| std::env::var(key).ok().map(|v| v.parse::<u64>().expect("a number"));
    let executions = number("DUPLEX_FUZZ_EXECUTIONS");
    let fresh = || std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 % 1_000_000_007;
    let seeds = match (number("DUPLEX_FUZZ_SEED"), executions) {
        (Some(seed), _) => vec![seed],
        (None, Some(_)) => vec![fresh()],
        (None, None) => vec![FIXED, fresh()],
    };
    let mut lines = vec![];
    for seed in seeds {
        let clock = Instant::now();
        let seen = watch(name, seed, executions.unwrap_or(FEW));
        println!(
            "{name}: seed {seed}: {} executions in {:.0} s, {} taken, {} refused for memory, {} \
             failures, at most {} KiB and {:.1} ms an input, process {} MiB",
            seen.executions,
            clock.elapsed().as_secs_f64(),
            seen.taken,
            seen.refused,
            seen.failures.len(),
            seen.memory >> 10,
            seen.micros as f64 / 1e3,
            seen.resident >> 20
        );
        for (i, what) in &seen.failures {
            let file = keep(name, seed, *i);
            lines.push(format!("{name}: seed {seed}, input {i} ({}): {what}", file.display()));
        }
    }
    assert!(lines.is_empty(), "\n{}\n", lines.join("\n"));
}

/// Writes a failing input where it can be looked at.
fn keep(name: &str, seed: u64, i: u64) -> PathBuf {
    let parser = PARSERS.iter().find(|p| p.name == name).expect("a parser's name");
    let corpus = (parser.corpus)();
    let bytes = input(&Mutator { corpus: &corpus, words: parser.words }, seed, i);
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}-{seed}-{i}"));
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Runs inputs `0..executions` of a seed.
fn watch(name: &str, seed: u64, executions: u64) -> Seen {
    let mut seen = Seen::default();
    let mut first = 0;
    let mut ends = 0;
    while ends < MOST_ENDS && first < executions {
        // In memory where there is such a file system: a file is written for each input.
        let memory = Path::new("/dev/shm");
        let tmp = match tempfile::tempdir_in(memory) {
            Ok(tmp) => tmp,
            Err(_) => tempfile::tempdir().unwrap(),
        };
        let place = tmp.path().join("place");
        std::fs::create_dir(&place).unwrap();
        let task = Task { parser: name.into(), seed, first, end: executions, place };
        let Some((at, what)) = process(&task, &mut seen) else { return seen };
        // Go on behind the input that ended the process.
        first = at + 1;
        seen.executions = first;
        match what {
            Some(what) => {
                ends += 1;
                seen.failures.push((at, what));
            }
            None => seen.refused += 1,
        }
    }
    seen
}

/// Runs one process to its end. None where that was a regular one, else the input it stopped at,
/// and what is wrong with that, if anything.
fn process(task: &Task, seen: &mut Seen) -> Option<(u64, Option<String>)> {
    let (key, value) = task.variable();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child_process", "--nocapture", "--test-threads=1"])
        .env(key, value)
        .env("HF_HUB_CACHE", task.place.join("hub"))
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = lines_of(&mut child);
    let hung = read_lines(task, &lines, seen);
    if hung == Some(true) {
        // Only the process started above.
        let _ = child.kill();
    }
    let status = child.wait().unwrap();
    match hung {
        Some(true) => {
            Some((at(task), Some(format!("hangs: nothing for {} s", PATIENCE.as_secs()))))
        }
        None if status.code() == Some(REFUSED) => Some((at(task), None)),
        None => Some((at(task), Some(format!("the process ended: {status}")))),
        Some(false) => None,
    }
}

fn lines_of(child: &mut Child) -> Receiver<String> {
    let out = BufReader::new(child.stdout.take().unwrap());
    let (send, lines) = channel();
    std::thread::spawn(move || {
        for line in out.lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Reads the lines of the process into `seen`. Returns true if it hung, false after its last line,
/// and None if it ended without one.
fn read_lines(task: &Task, lines: &Receiver<String>, seen: &mut Seen) -> Option<bool> {
    let (mut last, mut since) = (u64::MAX, Instant::now());
    loop {
        match lines.recv_timeout(Duration::from_millis(200)) {
            Ok(line) => {
                // The harness writes its own line before ours without an end of line.
                let Some((kind, rest)) =
                    line.find("FAIL ").or(line.find("DONE ")).map(|i| line[i..].split_at(5))
                else {
                    continue;
                };
                let mut words = rest.splitn(if kind == "FAIL " { 2 } else { 5 }, ' ');
                let mut next = || words.next().and_then(|w| w.parse::<u64>().ok()).unwrap_or(0);
                if kind == "FAIL " {
                    let i = next();
                    seen.failures.push((i, words.next().unwrap_or("").to_string()));
                    continue;
                }
                seen.executions = next();
                seen.taken += next();
                (seen.memory, seen.micros) = (seen.memory.max(next()), seen.micros.max(next()));
                seen.resident = seen.resident.max(next());
                return Some(false);
            }
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => {
                let now = at(task);
                if now != last {
                    (last, since) = (now, Instant::now());
                } else if since.elapsed() > PATIENCE {
                    return Some(true);
                }
            }
        }
    }
}

/// The input under way.
fn at(task: &Task) -> u64 {
    let bytes = std::fs::read(task.progress()).unwrap_or_default();
    bytes.first_chunk().map_or(task.first, |b| u64::from_le_bytes(*b))
}

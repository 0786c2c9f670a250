//! The process that runs one parser on many inputs. Where it stands is in a file that outlives it;
//! what it finds are lines on its standard output.

use crate::memory;
use crate::mutate::Mutator;
use crate::parsers::{PARSERS, Parser};
use duplex::base::{Rng, catches_panic};
use memmap2::MmapMut;
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Failures after which a process gives up.
const MOST_FAILURES: usize = 20;
/// Processor time that one input may take.
const LONGEST: Duration = Duration::from_secs(1);
/// Bytes that a parser may hold for each byte of its input: a JSON value takes up to 80, a vector
/// that grows three times what it holds.
const PER_BYTE: usize = 256;

/// The task of a process, which its parent puts in the environment.
pub(crate) struct Task {
    pub(crate) parser: String,
    pub(crate) seed: u64,
    pub(crate) first: u64,
    pub(crate) end: u64,
    /// An empty directory for the parser's files, with room beside it for the progress file.
    pub(crate) place: PathBuf,
}

impl Task {
    const VARIABLE: &str = "DUPLEX_FUZZ_CHILD";

    /// The variable that carries it.
    pub(crate) fn variable(&self) -> (&'static str, String) {
        let Task { parser, seed, first, end, place } = self;
        (Task::VARIABLE, format!("{parser} {seed} {first} {end} {}", place.display()))
    }

    fn of_environment() -> Option<Task> {
        let text = std::env::var(Task::VARIABLE).ok()?;
        let mut words = text.splitn(5, ' ');
        let parser = words.next()?.to_string();
        let mut number = || words.next()?.parse().ok();
        let (seed, first, end) = (number()?, number()?, number()?);
        Some(Task { parser, seed, first, end, place: words.next()?.into() })
    }

    /// The file that holds the number of the input under way.
    pub(crate) fn progress(&self) -> PathBuf {
        self.place.with_extension("progress")
    }
}

/// Input number `i`.
pub(crate) fn input(mutator: &Mutator<'_>, seed: u64, i: u64) -> Vec<u8> {
    mutator.input(&mut Rng::new(seed, i))
}

pub(crate) fn run() {
    // Started by hand it has nothing to do.
    let Some(task) = Task::of_environment() else { return };
    let parser = PARSERS.iter().find(|p| p.name == task.parser).expect("a parser's name");
    let corpus = (parser.corpus)();
    let mutator = Mutator { corpus: &corpus, words: parser.words };
    (parser.prepare)(&task.place);
    std::panic::set_hook(Box::new(|info| {
        if !catches_panic() {
            let place =
                info.location().map_or(String::new(), |l| format!("{}:{}", l.file(), l.line()));
            let message = info.payload_as_str().unwrap_or("no message");
            PANIC.set(format!("panic at {place}: {message}"));
        }
    }));
    let mut progress = open_progress(&task.progress());
    let (mut failures, mut most, mut longest, mut taken) = (0, 0, Duration::ZERO, 0u64);
    let mut done = task.first;
    while done < task.end && failures < MOST_FAILURES {
        progress[..8].copy_from_slice(&done.to_le_bytes());
        let input = input(&mutator, task.seed, done);
        let outcome = one(parser, &task.place, &input);
        (most, longest) = (most.max(outcome.memory), longest.max(outcome.time));
        taken += u64::from(outcome.taken);
        if let Some(failure) = outcome.failure {
            failures += 1;
            println!("FAIL {done} {}", failure.replace('\n', " "));
        }
        done += 1;
    }
    println!("DONE {done} {taken} {most} {} {}", longest.as_micros(), peak_resident());
}

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

struct Outcome {
    failure: Option<String>,
    taken: bool,
    memory: usize,
    time: Duration,
}

/// Runs the parser on one input and judges it.
fn one(parser: &Parser, place: &Path, input: &[u8]) -> Outcome {
    memory::reset();
    let start = processor_time();
    let result = std::panic::catch_unwind(|| (parser.run)(place, input));
    let time = processor_time().saturating_sub(start);
    let memory = memory::peak();
    let allowed = PER_BYTE * input.len() + parser.overhead;
    let failure = match &result {
        Err(_) => Some(PANIC.take()),
        Ok(_) if memory > allowed => Some(format!(
            "memory: {memory} bytes for an input of {}, {allowed} allowed",
            input.len()
        )),
        Ok(_) if time > LONGEST => Some(format!("time: {} ms", time.as_millis())),
        Ok(_) => None,
    };
    Outcome { failure, taken: matches!(result, Ok(true)), memory, time }
}

/// Processor time of this thread: another process must not make a parser look slow.
fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a local.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn open_progress(path: &Path) -> MmapMut {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap();
    file.set_len(8).unwrap();
    // SAFETY: the parent only reads it, and a number half written is of no harm.
    unsafe { MmapMut::map_mut(&file) }.unwrap()
}

/// Largest resident memory of this process, in bytes.
fn peak_resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0) << 10
}

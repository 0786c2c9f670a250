//! Makes the runs, a few at a time, and judges each: how it ended, and what it has saved.

use crate::checkpoint;
use crate::draw::{Settings, settings};
use crate::place::Place;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Runs where none are asked for.
const FEW: u64 = 60;
/// The seed where none is given.
const FIXED: u64 = 18;
/// A run that takes longer is stopped by SIGTERM: a billion steps are no fault.
const LONG: Duration = Duration::from_secs(4);
/// A run that goes on for so long after that hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// Runs at a time.
const WORKERS: usize = 2;

/// How a run ended that is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// All iterations were done.
    Trained,
    /// It was stopped after some iterations.
    StoppedTraining,
    /// It was stopped before the first one was done.
    StoppedBefore,
    /// Refused by the range of a key.
    OutOfRange,
    /// Refused before training, for another reason.
    Refused,
    /// Ended by an error after some iterations.
    Diverged,
    /// A resource was missing.
    NoResource,
}

/// Makes as many runs as are asked for and fails where one is not as it should be, or too few
/// train.
pub(crate) fn sweep() {
    let number = |key: &str| std::env::var(key).ok().map(|v| v.parse::<u64>().expect("a number"));
    let runs = number("DUPLEX_SWEEP_RUNS").unwrap_or(FEW);
    let seed = number("DUPLEX_SWEEP_SEED").unwrap_or(FIXED);
    let place = place();
    let next = AtomicU64::new(0);
    let found = Mutex::new((BTreeMap::<End, u64>::new(), vec![]));
    let clock = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= runs {
                        return;
                    }
                    let drawn = settings(seed, i);
                    let judged = judge(&place, i, &drawn);
                    let mut found = found.lock().unwrap();
                    match judged {
                        Ok(end) => *found.0.entry(end).or_default() += 1,
                        Err(what) => {
                            let (stage, ends) = (drawn.of.name, &drawn.ends);
                            let line = format!("seed {seed}, run {i}: {stage} {ends:?}: {what}");
                            println!("{line}");
                            found.1.push(line);
                        }
                    }
                }
            });
        }
    });
    let (ends, failures) = found.into_inner().unwrap();
    let seconds = clock.elapsed().as_secs();
    println!("seed {seed}: {runs} runs in {seconds} s: {ends:?}, {} failures", failures.len());
    assert!(failures.is_empty(), "\n{}\n", failures.join("\n"));
    let trained = [End::Trained, End::StoppedTraining].iter().filter_map(|end| ends.get(end));
    assert!(trained.sum::<u64>() * 2 >= runs, "fewer than half train: {ends:?}");
}

/// A place with a tiny model, a few rows, plain text and a reward model.
fn place() -> Place {
    let place = Place::new("llama");
    checkpoint::write_rows(&place.path("data.jsonl"), &checkpoint::pairs(10));
    std::fs::write(place.path("text.txt"), "The sea is blue. The grass is green.\n\n".repeat(9))
        .unwrap();
    let made = place.run("reward", "made", &["--reward-model", "model"]);
    std::fs::rename(made.join("reward"), place.path("scorer")).unwrap();
    place
}

/// Makes a run and removes it again. An error says what is wrong with it.
fn judge(place: &Place, i: u64, drawn: &Settings) -> Result<End, String> {
    let (file, to) = (format!("{i}.toml"), format!("run-{i}"));
    std::fs::write(place.path(&file), &drawn.toml).unwrap();
    let words = ["train", "--config", &file, "--output-dir", &to, "--quiet", "true"];
    let child = Command::new(env!("CARGO_BIN_EXE_duplex"))
        .args(words)
        .current_dir(place.path(""))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(place.path(&format!("{i}.err"))).unwrap())
        .spawn()
        .unwrap();
    let code = ended(child)?;
    let told = std::fs::read_to_string(place.path(&format!("{i}.err"))).unwrap();
    let run = place.path(&to);
    let iterations = iterations(&run, drawn.of.name);
    let end = end(code, &told, iterations);
    if run.exists() && holds_something(&run) {
        let verified = place.command(&["verify", &to], "");
        if verified.status.code() != Some(0) {
            let lines = String::from_utf8_lossy(&verified.stdout).into_owned();
            let bad = lines.lines().find(|l| !l.contains(": whole")).unwrap_or_default();
            return Err(format!("{end:?}, but {bad} ({told})"));
        }
    }
    if end.is_ok() {
        let _ = std::fs::remove_dir_all(run);
        let _ = std::fs::remove_file(place.path(&format!("{i}.err")));
        let _ = std::fs::remove_file(place.path(&file));
    }
    end
}

/// Waits for a run; asks it to stop where it takes long.
fn ended(mut child: Child) -> Result<Option<i32>, String> {
    let started = Instant::now();
    let mut asked = false;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Ok(status.code());
        }
        if started.elapsed() > LONG && !asked {
            asked = true;
            // SAFETY: it is our child, and has not been waited for.
            unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
        }
        if started.elapsed() > LONG + PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            return Err(format!("still runs {PATIENCE:?} after SIGTERM"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns how a run ended, from its exit code, standard error and iterations.
fn end(code: Option<i32>, told: &str, iterations: usize) -> Result<End, String> {
    let errors: Vec<&str> = told.lines().filter(|l| l.starts_with("duplex: ")).collect();
    let bad = ["panicked", "internal error"].iter().any(|word| told.contains(word));
    let one = if code == Some(0) { errors.is_empty() } else { errors.len() == 1 };
    if bad || !one {
        return Err(format!("exit {code:?}: {told}"));
    }
    let begun = iterations > 0;
    match code {
        Some(0) => Ok(End::Trained),
        Some(75) if begun => Ok(End::StoppedTraining),
        Some(75) => Ok(End::StoppedBefore),
        Some(2) if errors[0].contains(" must be ") => Ok(End::OutOfRange),
        Some(2) if begun => Ok(End::Diverged),
        Some(2) => Ok(End::Refused),
        Some(3) => Ok(End::NoResource),
        _ => Err(format!("exit {code:?}: {told}")),
    }
}

/// Iterations in the log of a run.
fn iterations(run: &Path, stage: &str) -> usize {
    let log = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let is = |line: &&str| line.contains("\"event\":\"metrics\"") && line.contains(stage);
    log.lines().filter(is).count()
}

/// True if there is a checkpoint or a model to verify.
fn holds_something(run: &Path) -> bool {
    let any = |dir: &str| std::fs::read_dir(run.join(dir)).is_ok_and(|mut d| d.next().is_some());
    any("checkpoints")
}

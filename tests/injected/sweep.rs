//! Many faults, one after the other, on all cores.

use crate::faults::{self, Fault};
use crate::judge::{self, Wrong};
use crate::scene::{Outcome, Scene, binary};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Faults of each stage that `cargo test` tries.
const SAMPLE: usize = 100;
/// Failures that a test shows; all of them are in its report.
const SHOWN: usize = 20;

/// The faults that are asked for: a number of them, all, or one by `STAGE:` and its name.
fn chosen(stage: &str, all: Vec<Fault>) -> Vec<Fault> {
    let asked = std::env::var("DUPLEX_FAULTS").unwrap_or(SAMPLE.to_string());
    if asked == "all" {
        return all;
    }
    if let Ok(n) = asked.parse() {
        return all.into_iter().take(n).collect();
    }
    let (of, name) =
        asked.split_once(':').expect("COUNT, all or STAGE:FUNCTION:SITE:NUMBER:EFFECT");
    if of == stage { vec![Fault(name.into())] } else { vec![] }
}

/// What was seen.
#[derive(Default)]
struct Found {
    /// By function: by verdict, how often.
    counts: BTreeMap<String, BTreeMap<&'static str, usize>>,
    /// Lines of the report.
    wrong: Vec<String>,
}

impl Found {
    fn add(&mut self, stage: &str, fault: &Fault, out: &Outcome, wrong: Vec<Wrong>) {
        let class = match wrong.first() {
            _ if out.struck.is_empty() => "not made",
            Some((class, _)) => class,
            None => "right",
        };
        let name = fault.function().to_string() + if fault.lasts() { "+" } else { "" };
        *self.counts.entry(name).or_default().entry(class).or_default() += 1;
        let Some((class, _)) = wrong.first() else { return };
        let seen: Vec<String> =
            wrong.iter().map(|(class, seen)| format!("{class}: {seen}")).collect();
        let seen = seen.join("; ").replace('\n', " | ");
        let call = out.struck.first().map(|c| format!("{}\t{}", c.path, c.frames));
        let call = call.unwrap_or("\t".into());
        self.wrong.push(format!("{class}\t{stage}:{}\t{seen}\t{call}", fault.0));
    }

    fn table(&self, stage: &str) -> String {
        let mut text = String::new();
        for (function, verdicts) in &self.counts {
            let tried: usize = verdicts.values().sum();
            write!(text, "{stage} {function}: {tried} tried").unwrap();
            for (verdict, n) in verdicts {
                write!(text, ", {n} {verdict}").unwrap();
            }
            text.push('\n');
        }
        text
    }
}

/// Records a run of the stage, and repeats it with faults.
pub(crate) fn sweep(stage: &str) {
    let scene = Scene::new(stage);
    let calls = scene.record("whole");
    let whole = judge::weights(&scene.path("whole/run"));
    assert!(!whole.is_empty());
    let all = faults::all(&calls);
    let (made, possible) = (calls.len(), all.len());
    let faults = chosen(stage, all);
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Found::default());
    let try_all = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(fault) = faults.get(i) else { break };
            let dir = i.to_string();
            let (out, wrong) = judge::run(&scene, &dir, fault, &whole);
            std::fs::remove_dir_all(scene.path(&dir)).unwrap();
            found.lock().unwrap().add(stage, fault, &out, wrong);
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..cores).for_each(|_| drop(scope.spawn(try_all))));
    let found = found.into_inner().unwrap();
    let report = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("faults-{stage}.tsv"));
    std::fs::write(&report, found.wrong.join("\n") + "\n").unwrap();
    println!(
        "{stage}: {made} calls, {possible} faults, {} tried with {}",
        faults.len(),
        binary().display()
    );
    print!("{}", found.table(stage));
    let shown: Vec<String> = found
        .wrong
        .iter()
        .take(SHOWN)
        .map(|line| {
            let name = line.split('\t').nth(1).unwrap_or_default();
            format!("{line}\n  again: tools/faults '{name}'")
        })
        .collect();
    assert!(
        shown.is_empty(),
        "{} wrong, all in {}:\n{}",
        found.wrong.len(),
        report.display(),
        shown.join("\n")
    );
}

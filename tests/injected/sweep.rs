//! Many faults, one after the other, on all cores.

use crate::faults::{self, Fault};
use crate::judge::{self, Wrong};
use crate::process::{Outcome, binary};
use crate::scene::Scene;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Faults of each stage that `cargo test` tries.
const SAMPLE: usize = 60;
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

/// The line or files that were seen.
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
        let again = format!("{stage}:{}", fault.0);
        self.wrong.push(format!("{class}\t{again}\t{seen}\t{call}"));
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

/// True if the sample is not enough.
pub(crate) fn all_are_asked() -> bool {
    std::env::var("DUPLEX_FAULTS").is_ok_and(|asked| asked == "all")
}

/// Does `each` of the cases on all cores; returns what it has to say, in the order of the cases.
pub(crate) fn in_parallel<C: Sync, F: Send>(
    cases: &[C],
    each: impl Fn(usize, &C) -> Option<F> + Sync,
) -> Vec<F> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(BTreeMap::new());
    let work = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(case) = cases.get(i) else { break };
            if let Some(one) = each(i, case) {
                found.lock().unwrap().insert(i, one);
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..cores).for_each(|_| drop(scope.spawn(work))));
    found.into_inner().unwrap().into_values().collect()
}

/// Writes what is wrong to a file, and fails with the first lines of it.
pub(crate) fn report(name: &str, tried: usize, wrong: Vec<String>) {
    let report = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("faults-{name}.tsv"));
    std::fs::write(&report, wrong.join("\n") + "\n").unwrap();
    println!("{name}: {tried} tried with {}, {} wrong", binary().display(), wrong.len());
    let shown = &wrong[..wrong.len().min(SHOWN)];
    let (n, shown) = (wrong.len(), shown.join("\n"));
    assert!(wrong.is_empty(), "{n} wrong, all in {}:\n{shown}", report.display());
}

/// Records a run of the stage, and repeats it with faults.
pub(crate) fn sweep(name: &str, stage: &str, more: &[&str]) {
    sweep_of(name, &Scene::new(stage, more));
}

/// The same for a run that was stopped, and goes on.
pub(crate) fn sweep_resumed(name: &str, stage: &str) {
    let mut scene = Scene::new(stage, &[]);
    scene.begin();
    sweep_of(name, &scene);
}

/// Faults are told by the `name` of the sweep.
fn sweep_of(name: &str, scene: &Scene) {
    let calls = scene.record("whole");
    let whole = judge::weights(&scene.path("whole/run"));
    assert!(!whole.is_empty());
    let all = faults::all(&calls);
    println!("{name}: {} calls, {} faults", calls.len(), all.len());
    let faults = chosen(name, all);
    let ends = in_parallel(&faults, |i, fault| {
        let dir = i.to_string();
        let (out, wrong) = judge::run(scene, &dir, fault, &whole);
        std::fs::remove_dir_all(scene.path(&dir)).unwrap();
        Some((out, wrong))
    });
    let mut found = Found::default();
    for (fault, (out, wrong)) in faults.iter().zip(ends) {
        found.add(name, fault, &out, wrong);
    }
    print!("{}", found.table(name));
    report(name, faults.len(), found.wrong);
}

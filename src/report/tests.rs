//! The sinks as a reader of their output sees them, on made-up runs.

use super::*;
use crate::base::{Error, Result, Rng};
use crate::formats::OutDir;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Fresh numbers in each test run; the seed is in the panic message of a failing test.
struct Numbers(Rng);

impl Numbers {
    fn fresh() -> Numbers {
        let now = std::time::SystemTime::now();
        let seed = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
        println!("seed {seed}");
        Numbers(Rng::new(seed, 0))
    }

    fn unit(&mut self) -> f64 {
        f64::from(self.0.uniform())
    }

    /// Roughly normal.
    fn noise(&mut self) -> f64 {
        (0..6).map(|_| self.unit()).sum::<f64>() - 3.0
    }
}

/// A buffer that can be read while a sink owns it.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Keeps what it is told.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<Event>>>);

impl Recorder {
    fn warnings(&self) -> Vec<String> {
        let events = self.0.lock().unwrap();
        let text = |e: &Event| match e {
            Event::Warning { text } => Some(text.clone()),
            _ => None,
        };
        events.iter().filter_map(text).collect()
    }
}

impl Sink for Recorder {
    fn name(&self) -> &str {
        "the recorder"
    }

    fn write(&mut self, _time: f64, event: &Event) -> Result<()> {
        self.0.lock().unwrap().push(event.clone());
        Ok(())
    }
}

/// Declared as algorithms do.
fn declared() -> Vec<Declared> {
    let shown = |name: &str| Declared { name: name.into(), shown: true, ..Declared::default() };
    vec![
        shown("loss"),
        shown("eval_loss"),
        Declared { percent: true, ..shown("accuracy") },
        Declared { percent: true, headline: true, ..shown("eval_accuracy") },
        shown("reward"),
        Declared { price: true, ..shown("kl") },
        Declared { unit: Some("tok/s".into()), ..shown("tokens_per_s") },
    ]
}

fn step_start(step: &str, title: &str, total: u64) -> Event {
    let (unit, metrics) = ("batches".into(), declared());
    Event::StepStart { step: step.into(), title: title.into(), total, unit, metrics }
}

fn run_start(dir: &Path) -> Event {
    let summary = [
        ("Model", "OPT-125M"),
        ("Parameters", "125.2 M"),
        ("Reward model", "OPT-125M + scalar head"),
        ("Device", "CPU, 16 threads"),
        ("Dtype", "bf16, float32 accumulation"),
        ("Seed", "1234"),
        ("Data", "helpful-pairs, 12,480 rows"),
        ("LoRA", "rank 8, α 16"),
    ];
    let summary = summary.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec();
    Event::RunStart { name: "opt-125m-helpful".into(), run_dir: dir.to_owned(), summary }
}

/// A plausible run of three steps.
fn whole_run(dir: &Path) -> Vec<Event> {
    let mut n = Numbers::fresh();
    let mut events = vec![run_start(dir), Event::note("LoRA on attention and MLP, base frozen")];
    events.push(step_start("sft", "Supervised fine-tuning", 400));
    for i in 1..=400u64 {
        let trend = 2.1 + 1.3 * (-(i as f64) / 70.0).exp();
        let lr = 9.65e-6 * (i as f64 / 40.0).min(1.0) * (1.0 - i as f64 / 420.0);
        let mut values = vec![
            ("loss", trend + 0.12 * n.noise()),
            ("lr", lr),
            ("grad_norm", 1.1 + 0.2 * n.noise().abs()),
            ("tokens_per_s", 41_200.0 + 900.0 * n.noise()),
        ];
        if i % 50 == 0 {
            values.push(("eval_loss", trend + 0.06));
        }
        events.push(Event::metrics("sft", i, &values));
    }
    let results = [("loss_first", 3.412), ("loss_last", 2.113), ("eval_perplexity", 8.74)];
    events.push(Event::step_end("sft", 754.0, &results));
    events.push(step_start("reward", "Reward model", 300));
    for i in 1..=300u64 {
        let done = 1.0 - (-(i as f64) / 90.0).exp();
        let accuracy = (0.5 + 0.24 * done + 0.06 * n.noise()).clamp(0.0, 1.0);
        let loss = 0.693 - 0.2 * done + 0.05 * n.noise();
        let mut values = vec![("loss", loss), ("accuracy", accuracy), ("margin", 1.1 * done)];
        if i % 30 == 0 {
            values.push(("eval_accuracy", 0.5 + 0.21 * done));
        }
        events.push(Event::metrics("reward", i, &values));
    }
    events.push(Event::step_end("reward", 431.0, &[("eval_accuracy", 0.7134)]));
    events.push(step_start("ppo", "PPO", 40));
    events.push(Event::warning("iteration 17: loss is not finite, step skipped (1 so far)"));
    for i in 1..=40u64 {
        let t = i as f64 / 40.0;
        let values = [
            ("reward", -0.4 + 1.5 * t + 0.15 * n.noise()),
            ("kl", 0.03 * t + 0.002 * n.noise().abs()),
            ("actor_loss", if i == 17 { f64::NAN } else { -0.01 * t + 0.004 * n.noise() }),
            ("critic_loss", 0.3 * (-3.0 * t).exp() + 0.01 * n.noise().abs()),
            ("answer_length", 88.0 + 20.0 * t + 4.0 * n.noise()),
            ("tokens_per_s", 1412.0 + 60.0 * n.noise()),
        ];
        events.push(Event::metrics("ppo", i, &values));
    }
    for (prompt, before, after, a, b) in TALK {
        events.push(Event::Sample(Sample {
            step: "ppo".into(),
            iteration: 40,
            prompt: prompt.into(),
            answer: after.into(),
            baseline: Some(before.into()),
            score: Some(b),
            baseline_score: Some(a),
        }));
    }
    let results = [("reward_before", -0.412), ("reward_after", 1.087), ("kl", 0.0312)];
    events.push(Event::step_end("ppo", 1893.0, &results));
    events.push(Event::RunEnd { seconds: 3090.0 });
    events
}

const TALK: [(&str, &str, &str, f64, f64); 3] = [
    (
        "How do I keep basil alive indoors?",
        "Basil is a plant. You can keep basil in a pot. Basil is a plant that likes water and \
         basil is a plant that likes water.",
        "Put it by a south-facing window, water when the top of the soil is dry, and pinch off \
         the tips every week so that it grows bushy instead of tall.",
        -0.62,
        1.41,
    ),
    (
        "Write a haiku about the sea.",
        "The sea is blue and the sea is big\nand the sea",
        "Grey waves fold and fall\nsalt wind combs the empty beach\ngulls write and erase",
        0.11,
        0.93,
    ),
    ("What is 17 × 6?", "17 × 6 is 102.", "It is 104.", 0.55, 0.31),
];

#[test]
fn jsonl_holds_what_was_emitted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    let events = whole_run(dir.path());
    // In two sittings, with a crash in the middle of a line between them.
    let (early, late) = events.split_at(events.len() / 3);
    for part in [early, late] {
        let mut reporter = Reporter::silent();
        reporter.add(Jsonl::append(&OutDir::open(dir.path()).unwrap(), "metrics.jsonl").unwrap());
        part.iter().for_each(|e| reporter.emit(e.clone()));
        drop(reporter);
        let mut file = fs::File::options().append(true).open(&path).unwrap();
        file.write_all(b"{\"time\":17").unwrap();
    }
    let mut back = Vec::new();
    jsonl::replay(&path, |time, event| {
        assert!(time > 1.7e9);
        back.push(event);
    })
    .unwrap();
    assert_eq!(back.len(), events.len());
    for (got, want) in back.into_iter().zip(events) {
        assert_eq!(printed(got), printed(want));
    }
}

/// An event as text. Reading JSON may change the last bit of a number, and NaN is not equal to
/// itself, so events are compared by this.
fn printed(mut event: Event) -> String {
    if let Event::Metrics { values, .. } = &mut event {
        values.iter_mut().for_each(|v| v.1 = format!("{:.9e}", v.1).parse().unwrap());
    }
    format!("{event:?}")
}

#[test]
fn jsonl_writes_null_for_what_json_cannot_hold() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    let values = [("a", f64::NAN), ("b", f64::INFINITY), ("c", 0.5)];
    Jsonl::append(&OutDir::open(dir.path()).unwrap(), "metrics.jsonl")
        .unwrap()
        .write(1.0, &Event::metrics("ppo", 3, &values))
        .unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        line,
        serde_json::json!({"time": 1.0, "event": "metrics", "step": "ppo", "iteration": 3,
            "values": {"a": null, "b": null, "c": 0.5}})
    );
    assert!(text.ends_with('\n'));
}

#[test]
fn a_sink_that_fails_warns_once_and_the_others_go_on() {
    struct Full(PathBuf);
    impl Sink for Full {
        fn name(&self) -> &str {
            "the full one"
        }
        fn write(&mut self, _time: f64, _event: &Event) -> Result<()> {
            let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
            Err(Error::io("write", &self.0, &full))
        }
    }
    let recorder = Recorder::default();
    let mut reporter = Reporter::silent();
    reporter.add(Full("/runs/a".into()));
    reporter.add(recorder.clone());
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    reporter.add(Jsonl::new(full, "/dev/full".into()));
    for i in 1..=20 {
        reporter.emit(Event::metrics("sft", i, &[("loss", 1.0)]));
    }
    let warnings = recorder.warnings();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings.iter().any(|w| w.contains("/runs/a")), "{warnings:?}");
    assert!(warnings.iter().any(|w| w.contains("/dev/full")), "{warnings:?}");
    assert_eq!(recorder.0.lock().unwrap().len(), 22);
}

#[test]
fn a_run_directory_that_disappears_does_not_stop_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    fs::create_dir(&run).unwrap();
    let recorder = Recorder::default();
    let mut reporter = Reporter::silent();
    let held = OutDir::open(&run).unwrap();
    reporter.add(Jsonl::append(&held, "metrics.jsonl").unwrap());
    reporter.add(TensorBoard::create(&held.sub("tensorboard").unwrap()).unwrap());
    reporter.add(Html::new(&held, "report.html"));
    reporter.add(recorder.clone());
    let events = whole_run(&run);
    reporter.emit(events[0].clone());
    assert!(run.join("report.html").exists());
    fs::remove_dir_all(&run).unwrap();
    events[1..].iter().for_each(|e| reporter.emit(e.clone()));
    let warnings = recorder.warnings();
    let ours: Vec<_> = warnings.iter().filter(|w| w.contains("report.html")).collect();
    assert_eq!(ours.len(), 1, "{warnings:?}");
}

#[test]
fn a_resumed_run_keeps_its_history_and_replaces_what_it_repeats() {
    let dir = tempfile::tempdir().unwrap();
    for (range, loss) in [(1..=8, 0.25), (5..=9, 0.125)] {
        let mut reporter = Reporter::open(&OutDir::open(dir.path()).unwrap(), true, true).unwrap();
        reporter.emit(run_start(dir.path()));
        reporter.emit(step_start("sft", "Supervised fine-tuning", 9));
        for i in range {
            reporter.emit(Event::metrics("sft", i, &[("loss", loss)]));
        }
    }
    let mut html = Html::new(&OutDir::open(dir.path()).unwrap(), "again.html");
    jsonl::replay(&dir.path().join("metrics.jsonl"), |t, e| html.absorb(t, &e)).unwrap();
    html.write(0.0, &Event::step_end("sft", 3.0, &[])).unwrap();
    let text = fs::read_to_string(dir.path().join("again.html")).unwrap();
    // Nine points: a start and eight lines.
    let path = text.split("class=\"line\" d=\"").nth(1).unwrap().split('"').next().unwrap();
    assert_eq!((path.matches('M').count(), path.matches('L').count()), (1, 8), "{path}");
    assert_eq!(fs::read_dir(dir.path().join("tensorboard")).unwrap().count(), 2);
}

#[test]
fn a_whole_run_makes_a_page() {
    let dir = tempfile::tempdir().unwrap();
    // Set to look at the page.
    let to = std::env::var_os("DUPLEX_REPORT_DEMO");
    let to = to.map_or(dir.path().to_path_buf(), PathBuf::from);
    let path = to.join("report.html");
    let mut reporter = Reporter::silent();
    reporter.add(Html::new(&OutDir::open(&to).unwrap(), "report.html"));
    whole_run(Path::new("runs/opt-125m-helpful")).into_iter().for_each(|e| reporter.emit(e));
    let page = fs::read_to_string(&path).unwrap();
    for part in ["Finished in 51m30s", "3.41", "2.11", "71.3%", "\u{2212}0.412", "1.09", "0.0312"] {
        assert!(page.contains(part), "{part} is missing");
    }
    // One chart a metric, held-out values on top of their counterpart's: 4, 3 and 6.
    assert_eq!(page.matches("<figure ").count(), 13);
    assert_eq!(page.matches("class=\"held\" d=").count(), 2);
    for part in ["NaN", "inf,", "<script", "http://", "https://", "src="] {
        assert!(!page.contains(part), "{part} is there");
    }
    for tag in ["svg", "div", "table", "tr", "td", "span", "section", "figure", "dl", "details"] {
        let open = page.matches(&format!("<{tag}>")).count();
        let open = open + page.matches(&format!("<{tag} ")).count();
        assert_eq!(open, page.matches(&format!("</{tag}>")).count(), "<{tag}>");
    }
}

#[test]
fn the_page_escapes_everything_that_comes_from_outside() {
    let evil = "<script>alert('x')</script>\"><img src=x onerror=y>&amp;\u{1b}[2J";
    let s = || evil.to_owned();
    let mut reporter = Reporter::silent();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report.html");
    reporter.add(Html::new(&OutDir::open(dir.path()).unwrap(), "report.html"));
    let summary = vec![(s(), s())];
    reporter.emit(Event::RunStart { name: s(), run_dir: evil.into(), summary });
    let metrics =
        vec![Declared { name: s(), label: Some(s()), shown: true, ..Declared::default() }];
    reporter.emit(Event::StepStart { step: s(), title: s(), total: 1, unit: s(), metrics });
    for i in 1..3 {
        reporter.emit(Event::metrics(evil, i, &[(evil, 1.0)]));
    }
    let sample = Sample {
        step: s(),
        prompt: s(),
        answer: s(),
        baseline: Some(s()),
        score: Some(f64::NAN),
        ..Sample::default()
    };
    reporter.emit(Event::Sample(sample));
    reporter.emit(Event::note(evil));
    reporter.emit(Event::warning(evil));
    let before_after = [format!("{evil}_before"), format!("{evil}_after")];
    let results = [(&*before_after[0], 0.0), (&*before_after[1], 1.0)];
    reporter.emit(Event::step_end(evil, 1.0, &results));
    let page = fs::read_to_string(&path).unwrap();
    assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot;&gt;&lt;img"));
    for part in ["<script", "<img", "\u{1b}", "onerror=y>"] {
        assert!(!page.contains(part), "{part}");
    }
}

#[test]
fn tensorboard_files_name_every_metric() {
    let dir = tempfile::tempdir().unwrap();
    let mut reporter = Reporter::silent();
    reporter.add(TensorBoard::create(&OutDir::open(dir.path()).unwrap()).unwrap());
    whole_run(dir.path()).into_iter().for_each(|e| reporter.emit(e));
    let file = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    let bytes = fs::read(file).unwrap();
    for tag in ["sft/loss", "sft/eval_loss", "reward/accuracy", "ppo/kl", "ppo/sample_3"] {
        assert!(bytes.windows(tag.len()).any(|w| w == tag.as_bytes()), "{tag}");
    }
}

#[test]
fn plain_lines_are_few_and_say_the_key_numbers() {
    let out = Shared::default();
    let mut reporter = Reporter::silent();
    reporter.add(Terminal::plain(out.clone(), false));
    whole_run(Path::new("runs/a")).into_iter().for_each(|e| reporter.emit(e));
    let text = out.text();
    println!("{text}");
    let of = |step: &str| text.lines().filter(|l| l.starts_with(step) && l.contains('/')).count();
    // The first, every twentieth part, the last, and eight held-out ones in between.
    assert!((20..=30).contains(&of("sft")), "{}", of("sft"));
    assert!((20..=21).contains(&of("ppo")), "{}", of("ppo"));
    let last = text.lines().find(|l| l.starts_with("ppo  40/40")).unwrap();
    assert!(["reward ", "kl ", " tok/s"].iter().all(|part| last.contains(part)), "{last}");
    assert!(!last.contains("eta"));
    assert!(text.contains("eval_accuracy                 71.3%"), "{text}");
}

#[test]
fn quiet_shows_warnings_only_and_text_cannot_drive_the_terminal() {
    let out = Shared::default();
    let mut reporter = Reporter::silent();
    reporter.add(Terminal::plain(out.clone(), true));
    reporter.emit(run_start(Path::new("runs/a")));
    reporter.emit(Event::note("hello"));
    reporter.emit(Event::warning("a\u{1b}[2J\rb"));
    assert_eq!(out.text(), "warning: a\\u{1b}[2J\\u{d}b\n");
}

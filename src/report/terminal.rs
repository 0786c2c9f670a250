//! The run on stderr, so that stdout stays free for results: a progress bar per step on a terminal,
//! plain lines at sensible intervals anywhere else.

use super::bar::StepBar;
use super::declared::{Declared, Names};
use super::number::{duration, significant};
use super::{Event, Sample, Sink};
use crate::base::{Error, Result, advance_bar, printable, say, show_bar, speaks_to_terminal};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// Samples shown of one iteration.
const SAMPLES: u64 = 2;

/// Takes whole lines.
type Lines = Box<dyn FnMut(&str) -> std::io::Result<()> + Send>;

/// Writes for a person to follow.
pub struct Terminal {
    /// Writes whole lines.
    out: Lines,
    quiet: bool,
    bars: bool,
    step: Option<Current>,
    /// Iteration of the last sample, and how many of it were shown.
    samples: (u64, u64),
}

/// The step under way.
struct Current {
    key: String,
    /// How its metrics are shown.
    names: Names,
    total: u64,
    began: Instant,
    /// Iterations done before this program began; more than zero when resumed.
    before: Option<u64>,
    /// Iteration and moment of the last plain line.
    printed: Option<(u64, Instant)>,
}

impl Terminal {
    /// On stderr; bars if that is a terminal. With `quiet` only warnings are shown.
    pub fn new(quiet: bool) -> Terminal {
        let out = Box::new(|text: &str| {
            say(text);
            Ok(())
        });
        let bars = speaks_to_terminal() && !quiet;
        Terminal { out, quiet, bars, step: None, samples: (0, 0) }
    }

    /// Plain lines to `out`.
    pub fn plain(mut out: impl Write + Send + 'static, quiet: bool) -> Terminal {
        let out = Box::new(move |text: &str| writeln!(out, "{text}").and_then(|()| out.flush()));
        Terminal { out, quiet, bars: false, step: None, samples: (0, 0) }
    }

    /// Writes whole lines.
    fn say(&mut self, text: &str) -> Result<()> {
        (self.out)(text).map_err(|e| Error::io("write to", Path::new("the terminal"), &e))
    }

    /// Ends the step, and takes its bar away.
    fn leave_step(&mut self) -> Option<Current> {
        let step = self.step.take()?;
        if self.bars {
            show_bar(None);
        }
        Some(step)
    }

    fn step_start(
        &mut self,
        key: &str,
        title: &str,
        total: u64,
        unit: &str,
        names: Names,
    ) -> Result<()> {
        self.leave_step();
        self.say(&format!("\n{}  {total} {}", printable(title), printable(unit)))?;
        let (key, began) = (printable(key).into_owned(), Instant::now());
        if self.bars {
            show_bar(Some(Box::new(StepBar::new(&key, total))));
        }
        self.step = Some(Current { key, names, total, began, before: None, printed: None });
        Ok(())
    }

    fn metrics(&mut self, key: &str, iteration: u64, values: &[(String, f64)]) -> Result<()> {
        let Some(step) = self.step.as_mut().filter(|s| s.key == key) else { return Ok(()) };
        let (numbers, left) = (numbers(&step.names, values), step.left(iteration));
        if self.bars {
            // The time left first: a narrow terminal cuts the end.
            let message = left.into_iter().chain(numbers).collect::<Vec<_>>().join("  ");
            advance_bar(iteration, message);
            return Ok(());
        }
        let held_out = values.iter().any(|v| v.0.starts_with("eval_"));
        if !held_out && !step.due(iteration) {
            return Ok(());
        }
        step.printed = Some((iteration, Instant::now()));
        let count = format!("{iteration:>width$}", width = step.total.to_string().len());
        let line = numbers.into_iter().chain(left).collect::<Vec<_>>().join("  ");
        let text = format!("{}  {count}/{}  {line}", step.key, step.total);
        self.say(&text)
    }

    fn step_end(&mut self, key: &str, seconds: f64, summary: &[(String, f64)]) -> Result<()> {
        let names = self.leave_step().map_or_else(Names::default, |s| s.names);
        let mut text = format!("{}  done in {}", printable(key), duration(seconds));
        for (name, value) in summary {
            text.push_str(&format!("\n  {name:<24} {:>10}", names.show(name, *value, 4)));
        }
        self.say(&text)
    }

    fn sample(&mut self, sample: &Sample) -> Result<()> {
        let (iteration, shown) = &mut self.samples;
        if *iteration != sample.iteration {
            (*iteration, *shown) = (sample.iteration, 0);
        }
        *shown += 1;
        if *shown > SAMPLES {
            return Ok(());
        }
        let score =
            |s: Option<f64>| s.map_or(String::new(), |s| format!("  [{}]", significant(s, 3)));
        let mut text = format!("  prompt  {}", excerpt(&sample.prompt));
        if let Some(baseline) = &sample.baseline {
            let score = score(sample.baseline_score);
            text.push_str(&format!("\n  before  {}{score}", excerpt(baseline)));
        }
        text.push_str(&format!("\n  answer  {}{}", excerpt(&sample.answer), score(sample.score)));
        self.say(&text)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.leave_step();
    }
}

impl Sink for Terminal {
    fn name(&self) -> &str {
        "the terminal"
    }

    fn write(&mut self, _time: f64, event: &Event) -> Result<()> {
        if let Event::Warning { text } = event {
            return self.say(&format!("warning: {}", printable(text)));
        }
        if self.quiet {
            return Ok(());
        }
        match event {
            Event::RunStart { name, run_dir, summary } => {
                let width = summary.iter().map(|s| s.0.chars().count()).max().unwrap_or(0);
                let mut text =
                    format!("{}  {}", printable(name), printable(&run_dir.to_string_lossy()));
                for (key, value) in summary {
                    text.push_str(&format!("\n  {:<width$}  {}", printable(key), printable(value)));
                }
                self.say(&text)
            }
            Event::StepStart { step, title, total, unit, metrics } => {
                self.step_start(step, title, *total, unit, Names(metrics.clone()))
            }
            Event::Metrics { step, iteration, values } => self.metrics(step, *iteration, values),
            Event::Sample(sample) => self.sample(sample),
            Event::Note { text } => self.say(&printable(text)),
            Event::Warning { .. } => Ok(()),
            Event::StepEnd { step, seconds, summary } => self.step_end(step, *seconds, summary),
            Event::RunEnd { seconds } => self.say(&format!("\ndone in {}", duration(*seconds))),
        }
    }
}

impl Current {
    /// The time left, once it can be told.
    fn left(&mut self, iteration: u64) -> Option<String> {
        let before = *self.before.get_or_insert(iteration.saturating_sub(1));
        let done = iteration.checked_sub(before).filter(|n| *n > 0)?;
        let left = self.total.checked_sub(iteration).filter(|n| *n > 0)?;
        let each = self.began.elapsed().as_secs_f64() / done as f64;
        Some(format!("eta {}", duration(each * left as f64)))
    }

    /// True if a plain line is due: the first, the last, every 5%, or after ten seconds. In long
    /// steps the pause is a hundredth of the time so far, which bounds the length of logs.
    fn due(&self, iteration: u64) -> bool {
        let Some((last, at)) = self.printed else { return true };
        let pause = Duration::from_secs(10).max(self.began.elapsed() / 100);
        iteration >= self.total
            || iteration.saturating_sub(last) >= self.total.div_ceil(20)
            || at.elapsed() >= pause
    }
}

/// The metrics that are shown while a stage runs; those with a unit are whole numbers of it.
fn numbers(names: &Names, values: &[(String, f64)]) -> Vec<String> {
    let shown = |x: f64, d: &Declared| match &d.unit {
        Some(unit) => x.is_finite().then(|| format!("{x:.0} {unit}")),
        None => Some(format!("{} {}", d.name, names.show(&d.name, x, 3))),
    };
    let value = |name: &str| values.iter().find(|v| v.0 == name).map(|v| v.1);
    names.shown().filter_map(|d| shown(value(&d.name)?, d)).collect()
}

/// The beginning of `text`, cleaned.
fn excerpt(text: &str) -> String {
    let text = printable(text.trim());
    match text.char_indices().nth(96) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into_owned(),
    }
}

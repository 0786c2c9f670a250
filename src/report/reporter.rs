//! Hands each event to every sink. Telling about a run must never end it: a sink that fails is
//! warned about once and tried again at the next event.

use super::sink::Sink;
use super::{Event, Html, Jsonl, TensorBoard, Terminal, jsonl};
use crate::base::Result;
use crate::formats::OutDir;
use std::time::{SystemTime, UNIX_EPOCH};

/// The sinks of a run.
#[derive(Default)]
pub struct Reporter {
    sinks: Vec<Slot>,
    repeats: bool,
}

struct Slot {
    sink: Box<dyn Sink>,
    failed: bool,
    /// Holds what it was told by an earlier program too.
    remembers: bool,
}

impl Reporter {
    /// A reporter that tells nobody, as on every rank but the first.
    pub fn silent() -> Reporter {
        Reporter::default()
    }

    /// Terminal, `metrics.jsonl`, `report.html` and, with `tensorboard`, event files in
    /// `tensorboard/`, all in `run_dir`. What an earlier, interrupted run left
    /// there is continued. With `quiet` the terminal shows warnings only.
    ///
    /// # Errors
    /// A file cannot be opened: found out here, before any work, and not after it.
    pub fn open(run_dir: &OutDir, quiet: bool, tensorboard: bool) -> Result<Reporter> {
        let metrics = run_dir.path().join("metrics.jsonl");
        let mut html = Html::new(run_dir, "report.html");
        jsonl::replay(&metrics, |time, event| html.absorb(time, &event))?;
        let mut reporter = Reporter::silent();
        reporter.add(Terminal::new(quiet));
        reporter.add(Jsonl::append(run_dir, "metrics.jsonl")?);
        if tensorboard {
            reporter.add(TensorBoard::create(&run_dir.sub("tensorboard")?)?);
        }
        reporter.add(html);
        reporter.sinks.iter_mut().skip(1).for_each(|slot| slot.remembers = true);
        Ok(reporter)
    }

    /// Adds a sink; it sees the events from here on.
    pub fn add(&mut self, sink: impl Sink + 'static) {
        self.sinks.push(Slot { sink: Box::new(sink), failed: false, remembers: false });
    }

    /// From here on tells the terminal alone, or everyone again; returns what was so before. A
    /// resumed run says on its way to where it goes on what its files know already.
    pub fn repeat(&mut self, repeats: bool) -> bool {
        std::mem::replace(&mut self.repeats, repeats)
    }

    /// Tells every sink. A sink's first error becomes a warning to all of them.
    pub fn emit(&mut self, event: Event) {
        self.deliver(wall_time(), &event);
    }

    fn deliver(&mut self, time: f64, event: &Event) {
        let mut warnings = Vec::new();
        let repeats = self.repeats;
        for slot in self.sinks.iter_mut().filter(|s| !(repeats && s.remembers)) {
            if let Err(e) = slot.sink.write(time, event)
                && !slot.failed
            {
                slot.failed = true;
                let name = slot.sink.name();
                warnings
                    .push(format!("{e}; the run continues, {name} may miss lines (reported once)"));
            }
        }
        // Ends: every sink warns once at most.
        for text in warnings {
            self.deliver(time, &Event::Warning { text });
        }
    }
}

/// Seconds since 1970. Only ever shown, never used for durations.
fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

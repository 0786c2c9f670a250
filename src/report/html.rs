//! `report.html`, rewritten whole as the run goes on. What stands on the page is in `page`.

use super::run::Run;
use super::{Event, Sink, page};
use crate::base::{Error, Result};
use crate::formats::write_atomic;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Between two writes in the middle of a step.
const PAUSE: Duration = Duration::from_secs(20);

/// Gathers the run and writes its page at the ends of steps, and in between now and then.
pub struct Html {
    path: PathBuf,
    run: Run,
    written: Option<Instant>,
}

impl Html {
    /// A report to be written to `path`.
    pub fn new(path: &Path) -> Html {
        Html { path: path.to_owned(), run: Run::default(), written: None }
    }

    /// Takes in an event of earlier, without writing.
    pub fn absorb(&mut self, time: f64, event: &Event) {
        self.run.absorb(time, event);
    }
}

impl Sink for Html {
    fn name(&self) -> &str {
        "report.html"
    }

    fn write(&mut self, time: f64, event: &Event) -> Result<()> {
        self.run.absorb(time, event);
        let now = match event {
            Event::RunStart { .. } | Event::StepEnd { .. } | Event::RunEnd { .. } => true,
            _ => self.written.is_none_or(|then| then.elapsed() >= PAUSE),
        };
        if !now {
            return Ok(());
        }
        // Set first: a write that fails is not tried again at every event.
        self.written = Some(Instant::now());
        let text = page::page(&self.run);
        write_atomic(&self.path, |out| {
            out.write_all(text.as_bytes()).map_err(|e| Error::io("write", &self.path, &e))
        })
    }
}

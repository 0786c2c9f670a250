//! `report.html`, rewritten whole as the run goes on. What stands on the page is in `page`.

use super::run::Run;
use super::{Event, Sink, page};
use crate::base::Result;
use crate::formats::OutDir;
use std::time::{Duration, Instant};

/// Between two writes in the middle of a step.
const PAUSE: Duration = Duration::from_secs(20);

/// Gathers the run and writes its page at the ends of steps, and in between now and then.
pub struct Html {
    dir: OutDir,
    name: String,
    run: Run,
    written: Option<Instant>,
}

impl Html {
    /// A report to be written into `dir` as the file of this name.
    pub fn new(dir: &OutDir, name: &str) -> Html {
        Html { dir: dir.clone(), name: name.to_owned(), run: Run::default(), written: None }
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
        self.dir.write_bytes(&self.name, page::page(&self.run).as_bytes())
    }
}

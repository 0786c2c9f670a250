//! The run for TensorBoard: scalars named `step/metric`, and the run's facts and the samples as
//! texts.

use super::{Event, Sample, Sink};
use crate::base::Result;
use crate::formats::{EventWriter, OutDir};

/// Writes one event file.
pub struct TensorBoard {
    out: EventWriter,
    /// Step and iteration of the last sample, and how many samples it has had so far.
    last_sample: (String, u64, u64),
}

impl TensorBoard {
    /// A new event file in `dir`.
    pub fn create(dir: &OutDir) -> Result<TensorBoard> {
        Ok(TensorBoard { out: EventWriter::create(dir)?, last_sample: Default::default() })
    }

    fn sample(&mut self, sample: &Sample) -> Result<()> {
        let (step, iteration, count) = &mut self.last_sample;
        if (step.as_str(), *iteration) != (sample.step.as_str(), sample.iteration) {
            (*step, *iteration, *count) = (sample.step.clone(), sample.iteration, 0);
        }
        *count += 1;
        let tag = format!("{}/sample_{count}", sample.step);
        self.out.text(sample.iteration, &tag, &markdown(sample))
    }
}

impl Sink for TensorBoard {
    fn name(&self) -> &str {
        "TensorBoard"
    }

    fn write(&mut self, _time: f64, event: &Event) -> Result<()> {
        match event {
            Event::RunStart { summary, .. } => {
                let rows: String = summary.iter().map(|(k, v)| format!("    {k}: {v}\n")).collect();
                self.out.text(0, "run/summary", &rows)?;
            }
            Event::Metrics { step, iteration, values } => {
                for (name, value) in values {
                    self.out.scalar(*iteration, &format!("{step}/{name}"), *value as f32)?;
                }
            }
            Event::StepEnd { step, summary, .. } => {
                for (name, value) in summary {
                    self.out.scalar(0, &format!("{step}/result/{name}"), *value as f32)?;
                }
            }
            Event::Sample(sample) => self.sample(sample)?,
            _ => return Ok(()),
        }
        self.out.flush()
    }
}

/// A sample as Markdown. Model text goes in indented blocks, where no markup counts.
fn markdown(sample: &Sample) -> String {
    let mut text = String::new();
    let mut block = |head: &str, body: &str, score: Option<f64>| {
        let score = score.map_or(String::new(), |s| format!(" ({s:.4})"));
        text.push_str(&format!("**{head}**{score}\n\n"));
        for line in body.lines() {
            text.push_str(&format!("    {line}\n"));
        }
        text.push('\n');
    };
    block("Prompt", &sample.prompt, None);
    if let Some(baseline) = &sample.baseline {
        block("Before", baseline, sample.baseline_score);
    }
    block("Answer", &sample.answer, sample.score);
    text
}

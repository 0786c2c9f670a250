//! The driver of steps that learn from rows alone: data in, a model directory out.

use super::card::Card;
use super::config::{OptimizerSection, RunConfig};
use super::datasets::Examples;
use super::run::Run;
use super::settings;
use super::sources::Source;
use super::stage::Stage;
use crate::base::Result;
use crate::engine::Engine;
use crate::formats::Draft;
use crate::model::{Head, LoraConfig};
use crate::report::Event;
use crate::rlhf::{Offline, StepConfig};
use crate::train::AdamWConfig;
use std::path::Path;
use std::time::Instant;

/// A step and its parts.
pub(super) struct Step<'s, T: Offline> {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    /// The name of its model in messages.
    pub(super) role: &'static str,
    pub(super) head: Head,
    pub(super) lora: Option<LoraConfig>,
    pub(super) adamw: AdamWConfig,
    pub(super) section: &'s OptimizerSection,
    pub(super) examples: fn(&mut Run<'_>, &Source) -> Result<Examples<T::Example>>,
    /// The longest row of so many tokens a sequence, to plan with.
    pub(super) longest: fn(usize) -> T::Example,
    /// Sequences of a row.
    pub(super) sequences: usize,
    pub(super) trainer: Box<dyn Fn(Engine, StepConfig) -> T + 's>,
    pub(super) card: fn(&RunConfig, u64) -> Result<Card>,
}

/// Runs a step that starts from `model` and saves its result to `dir`. Returns it with its number
/// of iterations.
pub(super) fn run<T: Offline>(
    run: &mut Run<'_>,
    step: Step<'_, T>,
    model: &str,
    dir: &Path,
) -> Result<(Stage, u64)> {
    let cfg = run.cfg;
    let source = run.source(model)?;
    let data = (step.examples)(run, &source)?;
    let (stage, from) = run.enter(step.name, &[&source])?;
    let options = run.trained(&source, step.head, step.lora, false)?;
    let model = source.load(&options, &mut run.reporter)?;
    run.describe(step.role, &model);
    let s = step.section;
    let batches = data.batches(s.rows_per_step(), s.num_train_epochs, s.max_steps, cfg.seed);
    let total = batches.len() as u64;
    let keep = settings::keep(cfg.gradient_checkpointing);
    let engine = Engine::trained(model, step.adamw, keep)?;
    let mut trainer = (step.trainer)(engine, settings::step(cfg, s, total));
    run.start(&stage, step.title, total, "batches")?;
    let held_out = data.held_out(s.eval_batches * s.rows_per_step());
    let judge = |trainer: &T, run: &mut Run<'_>| match held_out.is_empty() {
        true => Ok(vec![]),
        false => trainer.judge(&mut run.ws, &held_out),
    };
    let headline =
        |metrics: &[(&str, f64)]| metrics.iter().find(|m| m.0 == T::HEADLINE).map(|m| m.1);
    let mut told = match from {
        Some(from) => {
            trainer.restore(&from)?;
            let before = from.find(&before_of::<T>())?;
            Told { before, first: from.get("loss_first")?, last: from.get("loss_last")? }
        }
        None => {
            let metrics = run.droppable(|run| judge(&trainer, run))?;
            Told { before: headline(&metrics), first: f32::NAN, last: f32::NAN }
        }
    };
    for (i, batch) in batches.iter().enumerate().skip(stage.done) {
        let clock = Instant::now();
        let rows: Vec<&T::Example> = batch.rows.iter().map(|&i| &data.train[i]).collect();
        let trained = run.droppable(|run| trainer.iterate(&mut run.ws, &rows));
        let iteration =
            run.unless_dropped(trained, &stage, i as u64, &|draft| told.save(&trainer, draft))?;
        let skipped = run.skipped(step.name, iteration.skipped.as_slice())?;
        let mut values = iteration.metrics;
        told.last = values.iter().find(|m| m.0 == "loss").map_or(f32::NAN, |m| m.1 as f32);
        if i == 0 {
            told.first = told.last;
        }
        values.push(("tokens_per_s", iteration.tokens as f64 / clock.elapsed().as_secs_f64()));
        values.extend(skipped);
        if evaluates(s.eval_interval, i + 1, batch.ends_epoch) {
            values.extend(judge(&trainer, run)?);
        }
        let done = i as u64 + 1;
        run.reporter.emit(Event::metrics(step.name, done, &values));
        run.boundary(&stage, done, &values, &|draft| told.save(&trainer, draft))?;
    }
    let after = headline(&judge(&trainer, run)?);
    let card = (step.card)(cfg, total)?;
    source.save(&trainer.engine().model, dir, &settings::save_as(cfg)?, None, &card)?;
    let (name_before, name_after) = (before_of::<T>(), format!("{}_after", T::HEADLINE));
    let mut summary =
        vec![("loss_first", f64::from(told.first)), ("loss_last", f64::from(told.last))];
    summary.extend(told.before.map(|value| (name_before.as_str(), value)));
    summary.extend(after.map(|value| (name_after.as_str(), value)));
    run.finish(&stage, &summary, dir, trainer.engine().memory());
    Ok((stage, total))
}

fn before_of<T: Offline>() -> String {
    format!("{}_before", T::HEADLINE)
}

/// The numbers that sum a step up.
struct Told {
    /// The headline of the evaluation before the first iteration, if rows were held out.
    before: Option<f64>,
    /// The losses of the first and of the last iteration.
    first: f32,
    last: f32,
}

impl Told {
    /// Adds them and the trainer to a checkpoint.
    fn save<'d, T: Offline>(&self, trainer: &'d T, draft: &mut Draft<'d>) -> Result<()> {
        draft.set("loss_first", self.first);
        draft.set("loss_last", self.last);
        self.before.iter().for_each(|value| draft.set(&before_of::<T>(), value));
        trainer.save(draft)
    }
}

/// True if an evaluation is due after `done` batches: every `interval` batches, or if that is 0,
/// after each epoch.
fn evaluates(interval: usize, done: usize, ends_epoch: bool) -> bool {
    if interval == 0 { ends_epoch } else { done.is_multiple_of(interval) }
}

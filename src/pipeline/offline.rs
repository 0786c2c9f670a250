//! The driver of stages that learn from rows alone: data in, a model directory out.

use super::card::Card;
use super::config::RunConfig;
use super::datasets::{self, Examples, Offline};
use super::models::Models;
use super::run::Run;
use super::settings;
use super::stage::Stage;
use crate::algo::{Algorithm, Objective, OfflineTrainer, OptimizerSection, Outcome, Reference};
use crate::base::Result;
use crate::engine::Engine;
use crate::formats::SnapshotBuilder;
use crate::model::Head;
use crate::report::Event;
use std::time::Instant;

/// An algorithm as it is configured.
pub(super) struct Setting<R> {
    pub(super) of: &'static Algorithm,
    pub(super) optimizer: OptimizerSection,
    pub(super) objective: Box<dyn Objective<R>>,
}

impl<R: Offline> Setting<R> {
    /// The setting of an algorithm whose loss `objective` makes.
    pub(super) fn new(
        cfg: &RunConfig,
        of: &'static Algorithm,
        objective: crate::algo::ObjectiveOf<R>,
    ) -> Result<Setting<R>> {
        let optimizer = cfg.optimizer(of)?;
        Ok(Setting { of, optimizer, objective: objective(&cfg.sections, of.name)? })
    }
}

/// Runs a stage and saves its result. Returns it with its number of iterations.
pub(super) fn run<R: Offline>(run: &mut Run<'_>, setting: Setting<R>) -> Result<(Stage, u64)> {
    let (cfg, of) = (run.cfg, setting.of);
    let dir = run.dir.model(of);
    let source = run.source(&Models::of(cfg, &run.dir).start(of)?)?;
    let data: Examples<R> = datasets::examples(run, of, &source)?;
    let (mut stage, from) = run.enter(of, &[&source])?;
    let lora = settings::lora_of(cfg, of.head);
    let with_lora = lora.is_some();
    let options = run.trained(&source, of.head, lora, false)?;
    let model = source.load(&options, &mut run.reporter)?;
    run.describe(role(of.head), &model);
    let s = &setting.optimizer;
    let mut batches = data.batches(s.rows_per_step(), s.num_train_epochs, s.max_steps, cfg.seed);
    let total = batches.total();
    let checkpointing = cfg.gradient_checkpointing;
    let engine = Engine::trained(model, settings::adamw(cfg, s, of.head), checkpointing)?;
    let reference = Reference::asked(setting.objective.asks_reference(), with_lora, || {
        run.asked(&source, of.head, "reference")
    })?;
    let step = settings::step(cfg, s, total);
    let mut trainer = OfflineTrainer::new(engine, reference, setting.objective, step)?;
    run.start(&mut stage, total, "batches")?;
    let held_out = data.held_out(s.eval_batches * s.rows_per_step());
    let evaluate = |trainer: &OfflineTrainer<R>, run: &mut Run<'_>| match held_out.is_empty() {
        true => Ok(vec![]),
        false => Ok(evaluated(of, &trainer.evaluate(&mut run.ws, &held_out)?)),
    };
    let mut told = match from {
        Some(from) => {
            trainer.restore(&from)?;
            let before = from.find(&before_of(of))?;
            Told { before, first: from.get("loss_first")?, last: from.get("loss_last")? }
        }
        None => {
            let metrics = run.droppable(|run| evaluate(&trainer, run))?;
            Told { before: of.headline_of(&metrics), first: f32::NAN, last: f32::NAN }
        }
    };
    for i in stage.done..total as usize {
        let batch = batches.get(i as u64);
        let clock = Instant::now();
        let rows: Vec<&R> = batch.rows.iter().map(|&i| &data.train[i]).collect();
        let trained = run.droppable(|run| trainer.train(&mut run.ws, &rows));
        let outcome = run.unless_dropped(trained, &stage, i as u64, &|builder| {
            told.save(of, &trainer, builder)
        })?;
        let skipped = run.skipped(of, outcome.skipped.as_slice())?;
        told.last = outcome.loss;
        if i == 0 {
            told.first = told.last;
        }
        let mut values = vec![("loss", f64::from(outcome.loss))];
        values.extend(outcome.metrics);
        values.push(("grad_norm", f64::from(outcome.grad_norm)));
        values.push(("tokens_per_s", outcome.tokens as f64 / clock.elapsed().as_secs_f64()));
        values.extend(skipped);
        if evaluates(s.eval_interval, i + 1, batch.ends_epoch) {
            values.extend(evaluate(&trainer, run)?);
        }
        let done = i as u64 + 1;
        run.reporter.emit(Event::metrics(of.name, done, &values));
        run.boundary(&stage, done, &values, &|builder| told.save(of, &trainer, builder))?;
    }
    let after = of.headline_of(&evaluate(&trainer, run)?);
    let card = Card::offline(cfg, of, s, total)?;
    let place = run.dir.place(of, None);
    source.save(&trainer.engine.model, place, &settings::save_as(cfg)?, None, &card)?;
    let name_before = before_of(of);
    let name_after = name_before.replace("_before", "_after");
    let mut summary =
        vec![("loss_first", f64::from(told.first)), ("loss_last", f64::from(told.last))];
    summary.extend(told.before.map(|value| (name_before.as_str(), value)));
    summary.extend(after.map(|value| (name_after.as_str(), value)));
    run.finish(&stage, &summary, &dir, trainer.engine.memory());
    Ok((stage, total))
}

/// A trained model's name in messages.
fn role(head: Head) -> &'static str {
    match head {
        Head::Lm => "actor",
        Head::Score => "reward",
    }
}

/// An evaluation by the names that the algorithm declares: `eval_x` for what training calls `x`.
fn evaluated(of: &Algorithm, outcome: &Outcome) -> Vec<(&'static str, f64)> {
    let loss = ("loss", f64::from(outcome.loss));
    let all = std::iter::once(&loss).chain(&outcome.metrics);
    let declared = |(name, value): &(&str, f64)| {
        let held_out = of.metrics().find(|m| m.name.strip_prefix("eval_") == Some(name))?;
        Some((held_out.name, *value))
    };
    all.filter_map(declared).collect()
}

fn before_of(of: &Algorithm) -> String {
    format!("{}_before", of.headline().unwrap_or("eval_loss"))
}

/// The numbers that sum a stage up.
struct Told {
    /// The headline of the evaluation before the first iteration, if rows were held out.
    before: Option<f64>,
    /// The losses of the first and of the last iteration.
    first: f32,
    last: f32,
}

impl Told {
    /// Adds them and the trainer to a checkpoint.
    fn save<'d, R>(
        &self,
        of: &Algorithm,
        trainer: &'d OfflineTrainer<R>,
        builder: &mut SnapshotBuilder<'d>,
    ) -> Result<()> {
        builder.set("loss_first", self.first);
        builder.set("loss_last", self.last);
        self.before.iter().for_each(|value| builder.set(&before_of(of), value));
        trainer.save(builder)
    }
}

/// True if an evaluation is due after `done` batches: every `interval` batches, or if that is 0,
/// after each epoch.
fn evaluates(interval: usize, done: usize, ends_epoch: bool) -> bool {
    if interval == 0 { ends_epoch } else { done.is_multiple_of(interval) }
}

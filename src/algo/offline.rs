//! Learning from rows alone: one trainer, whose loss is a value.

use super::metric::Metrics;
use super::micro_batches::MicroBatches;
use super::objective::Objective;
use super::reference::Reference;
use super::sums::{add, over_ranks};
use crate::base::{Error, Result};
use crate::engine::Engine;
use crate::formats::{Snapshot, SnapshotBuilder};
use crate::tape::Workspace;
use crate::train::{Schedule, StepStats};

/// Settings that every loss takes.
#[derive(Clone, Debug)]
pub struct StepConfig {
    /// Learning rate over the run.
    pub schedule: Schedule,
    /// Upper bound of packed tokens in a micro-batch; memory may bound them further.
    pub micro_batch_tokens: usize,
    /// Seed of LoRA dropout.
    pub seed: u64,
}

/// Loss and metrics of rows; all zeros where they have nothing to learn.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The loss.
    pub loss: f32,
    /// Metrics beside it.
    pub metrics: Metrics,
    /// Tokens run through the model.
    pub tokens: usize,
    /// Gradient norm before clipping; 0 in an evaluation.
    pub grad_norm: f32,
    /// The reason for a step that was skipped: loss or gradients were not finite.
    pub skipped: Option<String>,
}

impl Outcome {
    /// The metric of this name; 0 where there is none.
    pub fn get(&self, name: &str) -> f64 {
        self.metrics.iter().find(|m| m.0 == name).map_or(0.0, |m| m.1)
    }
}

/// Trains a model on rows of type `R`.
pub struct OfflineTrainer<R> {
    /// The model being trained.
    pub engine: Engine,
    /// The frozen model that the loss compares with.
    reference: Reference,
    objective: Box<dyn Objective<R>>,
    config: StepConfig,
    steps: u64,
}

impl<R> OfflineTrainer<R> {
    /// A trainer at step 0.
    ///
    /// # Errors
    /// The loss asks for a reference, and there is none.
    pub fn new(
        engine: Engine,
        reference: Reference,
        objective: Box<dyn Objective<R>>,
        config: StepConfig,
    ) -> Result<OfflineTrainer<R>> {
        let missing = match reference {
            Reference::Model(_) => false,
            Reference::Adapters => engine.model.lora.is_none(),
            Reference::None => objective.asks_reference(),
        };
        if missing {
            return Err(Error::internal("the loss needs a reference model"));
        }
        Ok(OfflineTrainer { engine, reference, objective, config, steps: 0 })
    }

    /// One optimizer step over `rows`; none, and all zeros, where they have nothing to learn. On an
    /// error before the step everything is as it was.
    pub fn train(&mut self, ws: &mut Workspace, rows: &[&R]) -> Result<Outcome> {
        let weight = self.objective.weight(rows);
        if weight == 0.0 {
            return Ok(Outcome::default());
        }
        let compared = self.compared(ws, rows)?;
        let dropout = Some(self.config.seed ^ (self.steps << 20));
        let (name, loss) = (self.objective.name(), self.objective.loss(weight));
        let (mut sums, mut tokens) = (vec![], 0);
        let accumulated = self.rows(&self.engine, rows, &compared).each(ws, &mut |ws, batch| {
            add(&mut sums, self.engine.accumulate(ws, name, batch, dropout, &*loss)?);
            tokens += batch.tokens();
            Ok(())
        });
        if accumulated.is_err() {
            self.engine.model.store.reset_grads();
        }
        accumulated?;
        let outcome = self.outcome(sums, tokens, rows.len())?;
        let factor = self.config.schedule.factor(self.steps);
        let StepStats { grad_norm, skipped, .. } = self.engine.step(ws, factor, outcome.loss)?;
        self.steps += 1;
        Ok(Outcome { grad_norm, skipped, ..outcome })
    }

    /// Loss and metrics of rows that are not learned.
    pub fn evaluate(&self, ws: &mut Workspace, rows: &[&R]) -> Result<Outcome> {
        self.engine.check()?;
        let weight = self.objective.weight(rows);
        if weight == 0.0 {
            return Ok(Outcome::default());
        }
        let compared = self.compared(ws, rows)?;
        let (name, loss) = (self.objective.name(), self.objective.loss(weight));
        let (mut sums, mut tokens) = (vec![], 0);
        self.rows(&self.engine, rows, &compared).each(ws, &mut |ws, batch| {
            add(&mut sums, self.engine.evaluate(ws, name, batch, &*loss)?);
            tokens += batch.tokens();
            Ok(())
        })?;
        self.outcome(sums, tokens, rows.len())
    }

    /// The frozen model beside the one being trained, where there is one.
    pub fn reference(&self) -> Option<&Engine> {
        self.reference.engine()
    }

    /// Adds all that training has changed to `out`.
    pub fn save<'a>(&'a self, out: &mut SnapshotBuilder<'a>) -> Result<()> {
        out.set("steps", self.steps);
        self.engine.save("model", out)
    }

    /// Resumes from a snapshot of a trainer with the same models and settings.
    pub fn restore(&mut self, from: &Snapshot) -> Result<()> {
        self.steps = from.get("steps")?;
        self.engine.restore("model", from)
    }

    /// Rows for passes over `engine`'s model.
    fn rows<'r>(
        &'r self,
        engine: &Engine,
        rows: &'r [&R],
        compared: &'r [Vec<f32>],
    ) -> MicroBatches<'r> {
        let lengths = rows.iter().map(|row| self.objective.tokens(row)).collect();
        let pack = move |picked: &[usize]| {
            let reference = picked.iter().filter_map(|&i| compared.get(i));
            let reference: Vec<&[f32]> = reference.map(Vec::as_slice).collect();
            let picked: Vec<&R> = picked.iter().map(|&i| rows[i]).collect();
            self.objective.batch(&picked, &reference)
        };
        MicroBatches::new(lengths, self.config.micro_batch_tokens, &engine.model.store, pack)
    }

    /// For each row the log-probs under the reference of what its batch selects.
    fn compared(&self, ws: &mut Workspace, rows: &[&R]) -> Result<Vec<Vec<f32>>> {
        let Some((model, adapters)) = self.reference.of(&self.engine) else { return Ok(vec![]) };
        let selected = |row: &&R| vec![0.0; self.objective.batch(&[row], &[]).select.len()];
        let mut compared: Vec<Vec<f32>> = rows.iter().map(selected).collect();
        let mut logprobs = vec![];
        self.rows(model, rows, &compared).each(ws, &mut |ws, batch| {
            logprobs.extend(model.logprobs(ws, batch, 1.0, adapters)?);
            Ok(())
        })?;
        let logprobs = self.engine.comm().concat(&logprobs)?;
        let mut rest = logprobs.as_slice();
        for row in &mut compared {
            let (own, others) = rest.split_at(row.len());
            row.copy_from_slice(own);
            rest = others;
        }
        Ok(compared)
    }

    /// The sums of this rank made those of all, and told.
    fn outcome(&self, sums: Vec<Vec<f32>>, tokens: usize, rows: usize) -> Result<Outcome> {
        let comm = self.engine.comm();
        let sums = over_ranks(comm, sums)?;
        let tokens = comm.concat(&[tokens as u64])?.iter().sum::<u64>() as usize;
        let losses = sums.iter().take(self.objective.losses());
        let loss = losses.map(|terms| terms[0]).sum();
        let metrics = self.objective.metrics(&sums, rows);
        Ok(Outcome { loss, metrics, tokens, ..Outcome::default() })
    }
}

//! Supervised finetuning: cross-entropy of the answer's tokens, averaged over all of them in the
//! optimizer step, so that the split into micro-batches does not matter.

use crate::base::Result;
use crate::data::SftExample;
use crate::engine::{Engine, Terms};
use crate::formats::{Draft, Snapshot};
use crate::pool::Store;
use crate::rlhf::rows::Rows;
use crate::rlhf::{StepConfig, add, optimize, over_ranks};
use crate::tape::Workspace;
use crate::train::Batch;
use std::ops::Range;

/// Settings of supervised finetuning.
#[derive(Clone, Debug)]
pub struct SftConfig {
    /// Schedule, micro-batch size, seed.
    pub step: StepConfig,
    /// Also learn to predict the prompt.
    pub loss_on_prompt: bool,
}

/// What one step reports.
#[derive(Clone, Debug)]
pub struct SftStats {
    /// Mean negative log-likelihood per predicted token, in nats.
    pub loss: f32,
    /// Gradient norm before clipping.
    pub grad_norm: f32,
    /// Why the step was skipped, where it was: loss or gradients were not finite.
    pub skipped: Option<String>,
    /// Tokens run through the model.
    pub tokens: usize,
}

/// Trains a language model on examples.
#[derive(Debug)]
pub struct SftTrainer {
    /// The model being trained.
    pub engine: Engine,
    config: SftConfig,
    steps: u64,
}

impl SftTrainer {
    /// A trainer at step 0.
    pub fn new(engine: Engine, config: SftConfig) -> SftTrainer {
        SftTrainer { engine, config, steps: 0 }
    }

    /// One optimizer step over `examples`; none, and a loss of 0, if they predict no token.
    pub fn train(&mut self, ws: &mut Workspace, examples: &[&SftExample]) -> Result<SftStats> {
        let predicted = self.predicted(examples);
        if predicted == 0 {
            return Ok(SftStats { loss: 0.0, grad_norm: 0.0, skipped: None, tokens: 0 });
        }
        let rows = rows(&self.config, &self.engine.model.store, examples);
        let loss = nll(-1.0 / predicted as f32);
        let (sums, tokens, step) =
            optimize(&mut self.engine, ws, "sft", &rows, &self.config.step, self.steps, &loss)?;
        self.steps += 1;
        Ok(SftStats { loss: sums[0][0], grad_norm: step.grad_norm, skipped: step.skipped, tokens })
    }

    /// Adds all that training has changed to `out`.
    pub fn save<'a>(&'a self, out: &mut Draft<'a>) -> Result<()> {
        out.set("steps", self.steps);
        self.engine.save("model", out)
    }

    /// Goes on from a snapshot of a trainer with the same model and settings.
    pub fn restore(&mut self, from: &Snapshot) -> Result<()> {
        self.steps = from.get("steps")?;
        self.engine.restore("model", from)
    }

    /// Mean negative log-likelihood per predicted token of `examples`; 0 if they predict none.
    pub fn evaluate(&self, ws: &mut Workspace, examples: &[&SftExample]) -> Result<f32> {
        let loss = nll(-1.0 / self.predicted(examples).max(1) as f32);
        let mut sums = vec![];
        let comm = self.engine.comm();
        rows(&self.config, &self.engine.model.store, examples).each(ws, &mut |ws, batch| {
            add(&mut sums, self.engine.evaluate(ws, "sft", batch, &loss)?);
            Ok(())
        })?;
        let sums = over_ranks(comm, sums)?;
        Ok(sums.first().map_or(0.0, |s| s[0]))
    }

    /// Tokens of `examples` that are predicted.
    fn predicted(&self, examples: &[&SftExample]) -> usize {
        examples.iter().map(|e| predicted(&self.config, e).len()).sum()
    }
}

/// The positions of an example at which the next token is predicted. None where its prompt was cut at the length
/// limit.
fn predicted(config: &SftConfig, e: &SftExample) -> Range<usize> {
    let first = if config.loss_on_prompt { 0 } else { e.prompt_len.max(1) - 1 };
    first..e.ids.len().saturating_sub(1).max(first)
}

fn rows<'r>(config: &SftConfig, store: &Store, examples: &[&'r SftExample]) -> Rows<'r> {
    let texts = examples.iter().map(|e| (e.ids.as_slice(), predicted(config, e))).collect();
    text_rows(texts, config.step.micro_batch_tokens, store)
}

/// Rows of text, each with the positions at which the next token is predicted; the column is of weights, all 1.
pub(super) fn text_rows<'r>(
    texts: Vec<(&'r [i32], Range<usize>)>,
    max_tokens: usize,
    store: &Store,
) -> Rows<'r> {
    let lengths = texts.iter().map(|t| t.0.len()).collect();
    let pack = move |rows: &[usize]| {
        let mut batch = Batch::new(&rows.iter().map(|&i| texts[i].clone()).collect::<Vec<_>>());
        batch.columns = vec![vec![1.0; batch.select.len()]];
        batch
    };
    Rows::new(lengths, max_tokens, store, pack)
}

/// `scale` times the sum of weighted log-probabilities; the weights are the batch's first column.
pub(super) fn nll(
    scale: f32,
) -> impl for<'a> Fn(
    &mut crate::tape::Tape<'a>,
    &'a crate::model::Model,
    &Batch,
    crate::tensor::Tensor,
    crate::tensor::Tensor,
) -> Result<Terms> {
    move |tape, model, batch, hidden, select| {
        let targets = tape.input_i32(&batch.targets)?;
        let weights = tape.input_f32(&batch.columns[0])?;
        let loss = model.nll(tape, hidden, select, targets, weights, scale)?;
        Ok(Terms { losses: vec![loss], stats: vec![] })
    }
}

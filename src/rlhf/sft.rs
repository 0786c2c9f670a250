//! Supervised finetuning: cross-entropy of the answer's tokens, averaged by their weights over all
//! of them in the optimizer step, so that the split into micro-batches does not matter.

use crate::base::Result;
use crate::data::SftExample;
use crate::engine::{Engine, Terms};
use crate::formats::{Draft, Snapshot};
use crate::pool::Store;
use crate::rlhf::offline::{Iteration, Metrics, Offline};
use crate::rlhf::rows::Rows;
use crate::rlhf::{StepConfig, add, optimize, over_ranks};
use crate::tape::Workspace;
use crate::train::Batch;

/// Settings of supervised finetuning.
#[derive(Clone, Debug)]
pub struct SftConfig {
    /// Schedule, micro-batch size, seed.
    pub step: StepConfig,
    /// Also learn to predict the prompt.
    pub loss_on_prompt: bool,
}

/// Statistics of one step.
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
        let weight = self.weight(examples);
        if weight == 0.0 {
            return Ok(SftStats { loss: 0.0, grad_norm: 0.0, skipped: None, tokens: 0 });
        }
        let rows = rows(&self.config, &self.engine.model.store, examples);
        let loss = nll(-1.0 / weight);
        let (sums, tokens, step) =
            optimize(&mut self.engine, ws, "sft", &rows, &self.config.step, self.steps, &loss)?;
        self.steps += 1;
        Ok(SftStats { loss: sums[0][0], grad_norm: step.grad_norm, skipped: step.skipped, tokens })
    }

    /// Mean negative log-likelihood per predicted token of `examples`; 0 if they predict none.
    pub fn evaluate(&self, ws: &mut Workspace, examples: &[&SftExample]) -> Result<f32> {
        let weight = self.weight(examples);
        let loss = nll(if weight > 0.0 { -1.0 / weight } else { -1.0 });
        let mut sums = vec![];
        let comm = self.engine.comm();
        rows(&self.config, &self.engine.model.store, examples).each(ws, &mut |ws, batch| {
            add(&mut sums, self.engine.evaluate(ws, "sft", batch, &loss)?);
            Ok(())
        })?;
        let sums = over_ranks(comm, sums)?;
        Ok(sums.first().map_or(0.0, |s| s[0]))
    }

    /// The weight of all tokens of `examples` that are predicted: their number, where each weighs
    /// 1.
    fn weight(&self, examples: &[&SftExample]) -> f32 {
        let weights = examples.iter().flat_map(|e| predicted(&self.config, e));
        weights.map(|(_, weight)| f64::from(weight)).sum::<f64>() as f32
    }
}

impl Offline for SftTrainer {
    type Example = SftExample;
    const HEADLINE: &'static str = "eval_loss";

    fn iterate(&mut self, ws: &mut Workspace, rows: &[&SftExample]) -> Result<Iteration> {
        let SftStats { loss, grad_norm, skipped, tokens } = self.train(ws, rows)?;
        let metrics = vec![("loss", f64::from(loss)), ("grad_norm", f64::from(grad_norm))];
        Ok(Iteration { metrics, skipped, tokens })
    }

    fn judge(&self, ws: &mut Workspace, rows: &[&SftExample]) -> Result<Metrics> {
        Ok(vec![("eval_loss", f64::from(self.evaluate(ws, rows)?))])
    }

    fn engine(&self) -> &Engine {
        &self.engine
    }

    fn save<'a>(&'a self, out: &mut Draft<'a>) -> Result<()> {
        out.set("steps", self.steps);
        self.engine.save("model", out)
    }

    fn restore(&mut self, from: &Snapshot) -> Result<()> {
        self.steps = from.get("steps")?;
        self.engine.restore("model", from)
    }
}

/// The positions of an example at which the next token is predicted, with its weight. None where
/// its prompt was cut at the length limit.
fn predicted(config: &SftConfig, e: &SftExample) -> impl Iterator<Item = (usize, f32)> {
    let all = config.loss_on_prompt;
    let weight = move |t: usize| (t - 1, if all { 1.0 } else { e.weight(t) });
    (1..e.ids.len()).map(weight).filter(|(_, weight)| *weight > 0.0)
}

fn rows<'r>(config: &SftConfig, store: &Store, examples: &[&'r SftExample]) -> Rows<'r> {
    let text = |e: &&'r SftExample| (e.ids.as_slice(), predicted(config, e).collect());
    text_rows(examples.iter().map(text).collect(), config.step.micro_batch_tokens, store)
}

/// Positions at which the next token is predicted, each with its weight.
type Predicted = Vec<(usize, f32)>;

/// Rows of text, each with the positions at which the next token is predicted and the weights of
/// these, which are the column.
pub(super) fn text_rows<'r>(
    texts: Vec<(&'r [i32], Predicted)>,
    max_tokens: usize,
    store: &Store,
) -> Rows<'r> {
    let lengths = texts.iter().map(|t| t.0.len()).collect();
    let pack = move |rows: &[usize]| {
        let row = |&i: &usize| (texts[i].0, texts[i].1.iter().map(|p| p.0));
        let mut batch = Batch::new(&rows.iter().map(row).collect::<Vec<_>>());
        let weights = rows.iter().flat_map(|&i| texts[i].1.iter().map(|p| p.1));
        batch.columns = vec![weights.collect()];
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

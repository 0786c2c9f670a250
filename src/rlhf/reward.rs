//! The reward model: a score per token, trained on pairs so that the preferred answer scores higher
//! (Bradley-Terry, as in Ouyang et al. 2022 eq. 1). The default compares the scores at the last
//! tokens; DeepSpeed-Chat's variant averages over all positions from the first differing token on.

use crate::base::Result;
use crate::data::PairExample;
use crate::engine::{Engine, LossFn, Terms};
use crate::formats::{Draft, Snapshot};
use crate::op::gather::gather;
use crate::op::pairwise::{Pairwise, pairwise};
use crate::pool::Store;
use crate::rlhf::offline::{Iteration, Metrics, Offline};
use crate::rlhf::rows::Rows;
use crate::rlhf::{StepConfig, add, optimize, over_ranks};
use crate::tape::Workspace;
use crate::tensor::Desc;
use crate::train::Batch;

/// Which scores are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RewardLoss {
    /// Those at the last token of each answer.
    End,
    /// Those at every position from the first difference to the end of the longer answer, the
    /// shorter one standing at its last token (DeepSpeed-Chat compares padding there).
    TokenWise,
}

/// Settings of reward-model training.
#[derive(Clone, Debug)]
pub struct RewardConfig {
    /// Schedule, micro-batch size, seed.
    pub step: StepConfig,
    /// Which scores are compared.
    pub loss: RewardLoss,
}

/// Statistics of one step or evaluation.
#[derive(Clone, Debug, Default)]
pub struct RewardStats {
    /// Mean of -log sigmoid(chosen - rejected).
    pub loss: f32,
    /// Share of pairs whose chosen answer ends with the higher score; ties count as wrong.
    pub accuracy: f32,
    /// Mean difference of the end scores.
    pub margin: f32,
    /// Gradient norm before clipping (0 in evaluation).
    pub grad_norm: f32,
    /// Why the step was skipped, where it was: loss or gradients were not finite.
    pub skipped: Option<String>,
    /// Tokens run through the model.
    pub tokens: usize,
}

/// Trains a scoring model on pairs.
#[derive(Debug)]
pub struct RewardTrainer {
    /// The model being trained.
    pub engine: Engine,
    config: RewardConfig,
    steps: u64,
}

impl RewardTrainer {
    /// A trainer at step 0.
    pub fn new(engine: Engine, config: RewardConfig) -> RewardTrainer {
        RewardTrainer { engine, config, steps: 0 }
    }

    /// One optimizer step over `pairs`; none, and all zeros, without pairs.
    pub fn train(&mut self, ws: &mut Workspace, pairs: &[&PairExample]) -> Result<RewardStats> {
        if pairs.is_empty() {
            return Ok(RewardStats::default());
        }
        let loss = pair_loss(1.0 / pairs.len() as f32);
        let rows = rows(&self.config, &self.engine.model.store, pairs);
        let config = &self.config.step;
        let (sums, tokens, step) =
            optimize(&mut self.engine, ws, "reward", &rows, config, self.steps, &*loss)?;
        self.steps += 1;
        let stats = report(&sums, tokens, pairs.len());
        Ok(RewardStats { grad_norm: step.grad_norm, skipped: step.skipped, ..stats })
    }

    /// Loss and accuracy on `pairs`; all zeros without pairs.
    pub fn evaluate(&self, ws: &mut Workspace, pairs: &[&PairExample]) -> Result<RewardStats> {
        if pairs.is_empty() {
            return Ok(RewardStats::default());
        }
        let loss = pair_loss(1.0 / pairs.len() as f32);
        let (mut sums, mut tokens) = (vec![], 0);
        let comm = self.engine.comm();
        rows(&self.config, &self.engine.model.store, pairs).each(ws, &mut |ws, batch| {
            add(&mut sums, self.engine.evaluate(ws, "reward", batch, &*loss)?);
            tokens += batch.tokens();
            Ok(())
        })?;
        let tokens = comm.concat(&[tokens as u64])?.iter().sum::<u64>() as usize;
        Ok(report(&over_ranks(comm, sums)?, tokens, pairs.len()))
    }
}

impl Offline for RewardTrainer {
    type Example = PairExample;
    const HEADLINE: &'static str = "eval_accuracy";

    fn iterate(&mut self, ws: &mut Workspace, rows: &[&PairExample]) -> Result<Iteration> {
        let RewardStats { loss, accuracy, margin, grad_norm, skipped, tokens } =
            self.train(ws, rows)?;
        let values = [loss, accuracy, margin, grad_norm].map(f64::from);
        let metrics = ["loss", "accuracy", "margin", "grad_norm"].into_iter().zip(values).collect();
        Ok(Iteration { metrics, skipped, tokens })
    }

    fn judge(&self, ws: &mut Workspace, rows: &[&PairExample]) -> Result<Metrics> {
        let RewardStats { loss, accuracy, .. } = self.evaluate(ws, rows)?;
        Ok(vec![("eval_loss", f64::from(loss)), ("eval_accuracy", f64::from(accuracy))])
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

/// A pair is a row: both of its answers are in one micro-batch.
fn rows<'r>(config: &'r RewardConfig, store: &Store, pairs: &'r [&'r PairExample]) -> Rows<'r> {
    let pack =
        |rows: &[usize]| config.loss.batch(&rows.iter().map(|&i| pairs[i]).collect::<Vec<_>>());
    let lengths = pairs.iter().map(|p| p.chosen.len() + p.rejected.len()).collect();
    Rows::new(lengths, config.step.micro_batch_tokens, store, pack)
}

impl RewardLoss {
    /// Sequences alternate chosen, rejected. Selected are the compared positions of all chosen,
    /// then of all rejected, then the end positions in the same order; columns are the weights of
    /// the comparisons and those of the pairs.
    fn batch(self, pairs: &[&PairExample]) -> Batch {
        let rows: Vec<(&[i32], std::ops::Range<usize>)> = pairs
            .iter()
            .flat_map(|p| [(p.chosen.as_slice(), 0..0), (p.rejected.as_slice(), 0..0)])
            .collect();
        let mut batch = Batch::new(&rows);
        let (mut chosen, mut rejected, mut weights) = (vec![], vec![], vec![]);
        let (mut chosen_end, mut rejected_end) = (vec![], vec![]);
        for (i, p) in pairs.iter().enumerate() {
            let (c0, r0) = (batch.packed.cu_seqlens[2 * i], batch.packed.cu_seqlens[2 * i + 1]);
            let (c_last, r_last) = (p.chosen.len() - 1, p.rejected.len() - 1);
            chosen_end.push(c0 + c_last as i32);
            rejected_end.push(r0 + r_last as i32);
            let range = match self {
                RewardLoss::End => usize::MAX - 1..usize::MAX,
                RewardLoss::TokenWise => {
                    let same = p.chosen.iter().zip(&p.rejected).take_while(|(a, b)| a == b).count();
                    let end = p.chosen.len().max(p.rejected.len());
                    same.min(end - 1)..end
                }
            };
            let weight = 1.0 / range.len() as f32;
            for t in range {
                chosen.push(c0 + t.min(c_last) as i32);
                rejected.push(r0 + t.min(r_last) as i32);
                weights.push(weight);
            }
        }
        batch.select = [chosen, rejected, chosen_end, rejected_end].concat();
        batch.targets = vec![0; batch.select.len()];
        batch.columns = vec![weights, vec![1.0; pairs.len()]];
        batch
    }
}

/// Compares the first half of the comparisons with the second; see `RewardLoss::batch`.
fn pair_loss(scale: f32) -> Box<LossFn<'static>> {
    Box::new(move |tape, model, batch, hidden, select| {
        let scores = model.scores(tape, hidden, select)?;
        let n = batch.select.len();
        let (compared, pairs) = (batch.columns[0].len(), batch.columns[1].len());
        let mut column = scores;
        column.desc = Desc::new(&[n, 1], scores.desc.dtype);
        let part = |tape: &mut crate::tape::Tape<'_>, first: usize, len: usize| {
            let index: Vec<i32> = (first..first + len).map(|i| i as i32).collect();
            let index = tape.input_i32(&index)?;
            let mut t = gather(tape, column, index)?;
            t.desc = Desc::new(&[len], t.desc.dtype);
            Ok::<_, crate::base::Error>(t)
        };
        let (c, r) = (part(tape, 0, compared)?, part(tape, compared, compared)?);
        let ends = (part(tape, 2 * compared, pairs)?, part(tape, 2 * compared + pairs, pairs)?);
        let weights = tape.input_f32(&batch.columns[0])?;
        let ones = tape.input_f32(&batch.columns[1])?;
        let (loss, _) = pairwise(tape, Pairwise { scale }, c, r, weights)?;
        let (_, stats) = pairwise(tape, Pairwise { scale }, ends.0, ends.1, ones)?;
        Ok(Terms { losses: vec![loss], stats: vec![stats] })
    })
}

fn report(sums: &[Vec<f32>], tokens: usize, pairs: usize) -> RewardStats {
    let n = pairs as f32;
    let (loss, accuracy, margin) = (sums[0][0], sums[1][0] / n, sums[1][1] / n);
    RewardStats { loss, accuracy, margin, grad_norm: 0.0, skipped: None, tokens }
}

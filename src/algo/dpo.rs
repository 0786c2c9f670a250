//! Direct Preference Optimization (Rafailov et al. 2023, equation 7): the policy is its own reward
//! model. The reward of an answer is beta times the log-ratio of policy and reference, summed over
//! its tokens; that of the preferred answer is to be higher, by the loss of the reward model.

use super::algorithm::{Algorithm, FromRows, Learns, Start};
use super::anomaly::LOSS_SPIKE;
use super::metric::{Metric, Metrics};
use super::micro_batches::ends_of_selected;
use super::objective::Objective;
use super::optimizer::OptimizerSection;
use crate::base::Result;
use crate::config::{Kind, SectionOf, Sections, section};
use crate::data::PairExample;
use crate::engine::{LossFn, LossOutput};
use crate::model::Head;
use crate::op::bradley_terry::{BradleyTerry, bradley_terry};
use crate::op::gather::gather;
use crate::op::sequence_sum::{SequenceSum, sequence_sum};
use crate::op::weighted_sum::{WeightedSum, weighted_sum};
use crate::tape::Tape;
use crate::tensor::{Desc, Tensor};
use crate::train::Batch;

/// Direct Preference Optimization.
pub(super) static DPO: Algorithm = Algorithm {
    name: "dpo",
    title: "DPO",
    about: "DPO: learn from preferred and rejected answers, without a reward model",
    source: "Rafailov et al. 2023, equation 7",
    tag: "dpo",
    head: Head::Lm,
    start: Start::Policy,
    section: SectionOf::new::<DpoSection>(),
    demo: "learning_rate = 2e-4\n\
           beta = 2.0\n\
           num_warmup_steps = 50\n\
           per_device_train_batch_size = 32",
    metrics: &[&[
        Metric::new("loss").falls().shown(),
        Metric::new("eval_loss").falls().shown(),
        Metric::new("rewards/accuracies").labelled("Accuracy").rises().percent().shown(),
        Metric::new("eval_rewards/accuracies").rises().percent().shown().headline(),
        Metric::new("rewards/margins").labelled("Margin of rewards").rises(),
        Metric::new("eval_rewards/margins").rises(),
        Metric::new("rewards/chosen").labelled("Reward of chosen").rises(),
        Metric::new("eval_rewards/chosen").rises(),
        Metric::new("rewards/rejected").labelled("Reward of rejected").falls(),
        Metric::new("eval_rewards/rejected").falls(),
        Metric::new("grad_norm").labelled("Gradient norm"),
    ]],
    anomalies: &[LOSS_SPIKE],
    learns: Learns::Pairs(FromRows { objective }),
};

section! {
    /// Keys of Direct Preference Optimization.
    pub struct DpoSection [optimizer: OptimizerSection = OptimizerSection::with(1e-6, 0.0)] {
        beta: f64 = 0.1, Kind::above_zero(100.0),
            "weight of the log-ratio to the reference; a higher value stays closer to it";
        label_smoothing: f64 = 0.0, Kind::below(0.5),
            "assumed share of pairs with swapped labels";
    }
}

fn objective(sections: &Sections, name: &str) -> Result<Box<dyn Objective<PairExample>>> {
    let section: DpoSection = sections.get(name)?;
    let (beta, label_smoothing) = (section.beta as f32, section.label_smoothing as f32);
    Ok(Box::new(Dpo { beta, label_smoothing }))
}

/// The loss: the mean over pairs of -log sigmoid(chosen - rejected), which are the rewards of the
/// two answers. With label smoothing e it is (1 - e) of that and e of the loss the other way round
/// (Mitchell 2023).
#[derive(Clone, Copy, Debug)]
pub struct Dpo {
    /// Multiplies log-ratios.
    pub beta: f32,
    /// Share of wrong labels, below 0.5.
    pub label_smoothing: f32,
}

/// Sequences alternate chosen, rejected. Selected are all states before a token of an answer;
/// columns are the log-prob of each such token under the reference, and for each pair a 1.
impl Objective<PairExample> for Dpo {
    fn name(&self) -> &'static str {
        "dpo"
    }

    fn tokens(&self, row: &PairExample) -> usize {
        row.chosen.len() + row.rejected.len()
    }

    fn weight(&self, rows: &[&PairExample]) -> f32 {
        rows.len() as f32
    }

    fn asks_reference(&self) -> bool {
        true
    }

    fn batch(&self, rows: &[&PairExample], reference: &[&[f32]]) -> Batch {
        let answers = |p: &&'_ PairExample| [answer(p, &p.chosen), answer(p, &p.rejected)];
        let spans: Vec<std::ops::Range<usize>> = rows.iter().flat_map(answers).collect();
        let texts = rows.iter().flat_map(|p| [p.chosen.as_slice(), p.rejected.as_slice()]);
        let mut batch = Batch::new(&texts.zip(spans.iter().cloned()).collect::<Vec<_>>());
        let offsets = match reference {
            [] => vec![0.0; batch.select.len()],
            _ => reference.concat(),
        };
        batch.columns = vec![offsets, vec![1.0; rows.len()]];
        batch
    }

    fn losses(&self) -> usize {
        1 + usize::from(self.label_smoothing > 0.0)
    }

    fn loss(&self, weight: f32) -> Box<LossFn<'static>> {
        let Dpo { beta, label_smoothing: e } = *self;
        Box::new(move |tape, model, batch, hidden, select| {
            let targets = tape.input_i32(&batch.targets)?;
            let (logprobs, _) = model.logprobs(tape, hidden, select, targets, 1.0)?;
            let lengths = tape.input_i32(&ends_of_selected(batch))?;
            let offsets = tape.input_f32(&batch.columns[0])?;
            let ones = tape.input_f32(&batch.columns[1])?;
            let rewards =
                sequence_sum(tape, SequenceSum { scale: beta }, logprobs, lengths, offsets)?;
            let pairs = batch.columns[1].len();
            let chosen = every_other(tape, rewards, 0, pairs)?;
            let rejected = every_other(tape, rewards, 1, pairs)?;
            let op = |share: f32| BradleyTerry { scale: share / weight };
            let (loss, compared) = bradley_terry(tape, op(1.0 - e), chosen, rejected, ones)?;
            let mut losses = vec![loss];
            if e > 0.0 {
                losses.push(bradley_terry(tape, op(e), rejected, chosen, ones)?.0);
            }
            let sum = WeightedSum { scale: 1.0 };
            let sums =
                [weighted_sum(tape, sum, chosen, ones)?, weighted_sum(tape, sum, rejected, ones)?];
            Ok(LossOutput { losses, stats: vec![compared, sums[0], sums[1]] })
        })
    }

    fn metrics(&self, sums: &[Vec<f32>], rows: usize) -> Metrics {
        let [.., compared, chosen, rejected] = sums else { return vec![] };
        let mean = |sum: f32| f64::from(sum / rows as f32);
        vec![
            ("rewards/accuracies", mean(compared[0])),
            ("rewards/margins", mean(compared[1])),
            ("rewards/chosen", mean(chosen[0])),
            ("rewards/rejected", mean(rejected[0])),
        ]
    }
}

/// The states before the tokens of an answer.
fn answer(pair: &PairExample, ids: &[i32]) -> std::ops::Range<usize> {
    pair.prompt_len.max(1) - 1..ids.len() - 1
}

/// Elements `first`, `first + 2`, ... of `x`, `n` of them.
fn every_other(tape: &mut Tape<'_>, x: Tensor, first: usize, n: usize) -> Result<Tensor> {
    let index: Vec<i32> = (0..n).map(|i| (first + 2 * i) as i32).collect();
    let index = tape.input_i32(&index)?;
    let mut column = x;
    column.desc = Desc::new(&[2 * n, 1], x.desc.dtype);
    let mut picked = gather(tape, column, index)?;
    picked.desc = Desc::new(&[n], picked.desc.dtype);
    Ok(picked)
}

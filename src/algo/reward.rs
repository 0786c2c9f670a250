//! The reward model: a score per token, trained on pairs so that the preferred answer scores higher
//! (Bradley-Terry, as in Ouyang et al. 2022 eq. 1). The default compares the scores at the last
//! tokens; DeepSpeed-Chat's variant averages over all positions from the first differing token on.

use super::algorithm::{Algorithm, FromRows, Learns, Start};
use super::anomaly::LOSS_SPIKE;
use super::metric::{Metric, Metrics};
use super::objective::Objective;
use super::optimizer::OptimizerSection;
use crate::base::{Error, Result};
use crate::config::{Kind, SectionOf, Sections, section};
use crate::data::PairExample;
use crate::engine::{LossFn, LossOutput};
use crate::model::Head;
use crate::op::bradley_terry::{BradleyTerry, bradley_terry};
use crate::op::gather::gather;
use crate::tape::Tape;
use crate::tensor::Desc;
use crate::train::Batch;
use serde::{Deserialize, Serialize};

/// The reward model.
pub(super) static REWARD: Algorithm = Algorithm {
    name: "reward",
    title: "Reward model",
    about: "Reward model: learn to score preferred answers higher",
    source: "Ouyang et al. 2022, equation 1",
    tag: "reward-model",
    head: Head::Score,
    start: Start::Pretrained,
    section: SectionOf::new::<RewardSection>(),
    demo: "learning_rate = 1e-3\n\
           num_train_epochs = 4\n\
           num_warmup_steps = 50\n\
           per_device_train_batch_size = 32",
    metrics: &[&[
        Metric::new("loss").falls().shown(),
        Metric::new("eval_loss").falls().shown(),
        Metric::new("accuracy").rises().percent().shown(),
        Metric::new("eval_accuracy").rises().percent().shown().headline(),
        Metric::new("margin").rises(),
        Metric::new("eval_margin").rises(),
        Metric::new("grad_norm").labelled("Gradient norm"),
    ]],
    anomalies: &[LOSS_SPIKE],
    learns: Learns::Pairs(FromRows { objective }),
};

section! {
    /// Keys of the reward model.
    pub struct RewardSection [optimizer: OptimizerSection = OptimizerSection::with(5e-5, 0.1)] {
        loss: RewardLoss = RewardLoss::End, Kind::Choice(&["end", "token_wise"]),
            "where to compare scores: at the ends of the responses, or at every token from their \
             first difference";
    }
}

/// Which scores are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardLoss {
    /// Those at the last token of each answer.
    End,
    /// Those at every position from the first difference to the end of the longer answer, the
    /// shorter one standing at its last token (DeepSpeed-Chat compares padding there).
    TokenWise,
}

fn objective(sections: &Sections, name: &str) -> Result<Box<dyn Objective<PairExample>>> {
    let section: RewardSection = sections.get(name)?;
    Ok(Box::new(RewardModel { loss: section.loss }))
}

/// The loss: the mean of -log sigmoid(chosen - rejected). Its metrics are the share of pairs whose
/// chosen answer ends with the higher score, ties being wrong, and the mean difference of the end
/// scores.
#[derive(Clone, Copy, Debug)]
pub struct RewardModel {
    /// Which scores are compared.
    pub loss: RewardLoss,
}

/// A pair is a row: both of its answers are in one micro-batch.
impl Objective<PairExample> for RewardModel {
    fn name(&self) -> &'static str {
        "reward"
    }

    fn tokens(&self, row: &PairExample) -> usize {
        row.chosen.len() + row.rejected.len()
    }

    fn weight(&self, rows: &[&PairExample]) -> f32 {
        rows.len() as f32
    }

    fn batch(&self, rows: &[&PairExample], _: &[&[f32]]) -> Batch {
        self.loss.batch(rows)
    }

    fn loss(&self, weight: f32) -> Box<LossFn<'static>> {
        pair_loss(1.0 / weight)
    }

    fn metrics(&self, sums: &[Vec<f32>], rows: usize) -> Metrics {
        let Some(ends) = sums.get(1) else { return vec![] };
        let mean = |sum: f32| f64::from(sum / rows as f32);
        vec![("accuracy", mean(ends[0])), ("margin", mean(ends[1]))]
    }
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
        let part = |tape: &mut Tape<'_>, first: usize, len: usize| {
            let index: Vec<i32> = (first..first + len).map(|i| i as i32).collect();
            let index = tape.input_i32(&index)?;
            let mut t = gather(tape, column, index)?;
            t.desc = Desc::new(&[len], t.desc.dtype);
            Ok::<_, Error>(t)
        };
        let (c, r) = (part(tape, 0, compared)?, part(tape, compared, compared)?);
        let ends = (part(tape, 2 * compared, pairs)?, part(tape, 2 * compared + pairs, pairs)?);
        let weights = tape.input_f32(&batch.columns[0])?;
        let ones = tape.input_f32(&batch.columns[1])?;
        let (loss, _) = bradley_terry(tape, BradleyTerry { scale }, c, r, weights)?;
        let (_, stats) = bradley_terry(tape, BradleyTerry { scale }, ends.0, ends.1, ones)?;
        Ok(LossOutput { losses: vec![loss], stats: vec![stats] })
    })
}

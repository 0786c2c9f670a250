//! Supervised finetuning: cross-entropy of the answer's tokens, averaged by their weights over all
//! of them in the optimizer step, so that the split into micro-batches does not matter.

use super::algorithm::{Algorithm, FromRows, Learns, Start, Texts};
use super::anomaly::LOSS_SPIKE;
use super::metric::{Metric, Metrics};
use super::objective::Objective;
use super::optimizer::OptimizerSection;
use crate::base::Result;
use crate::config::{Kind, SectionOf, Sections, section};
use crate::data::SftExample;
use crate::engine::{LossFn, LossOutput};
use crate::model::{Head, Model};
use crate::tape::Tape;
use crate::tensor::Tensor;
use crate::train::Batch;

/// Supervised finetuning.
pub(super) static SFT: Algorithm = Algorithm {
    name: "sft",
    title: "Supervised finetuning",
    about: "Supervised finetuning: learn the answers of examples",
    source: "Ouyang et al. 2022, section 3.5",
    tag: "sft",
    head: Head::Lm,
    start: Start::Pretrained,
    section: SectionOf::new::<SftSection>(),
    demo: "learning_rate = 3e-3\n\
           num_train_epochs = 3\n\
           num_warmup_steps = 50\n\
           per_device_train_batch_size = 32",
    metrics: &[&[
        Metric::new("loss").falls().shown(),
        Metric::new("eval_loss").falls().shown().headline(),
        Metric::new("grad_norm").labelled("Gradient norm"),
    ]],
    anomalies: &[LOSS_SPIKE],
    learns: Learns::Texts(FromRows { objective }, texts),
};

section! {
    /// Keys of supervised finetuning.
    pub struct SftSection [optimizer: OptimizerSection = OptimizerSection::with(1e-5, 0.0)] {
        assistant_only_loss: bool = false, Kind::Bool,
            "train on every assistant turn of a conversation, not only the last one";
        loss_on_prompt: bool = false, Kind::Bool,
            "also train on the prompt, as DeepSpeed-Chat does";
    }
}

fn objective(sections: &Sections, name: &str) -> Result<Box<dyn Objective<SftExample>>> {
    let section: SftSection = sections.get(name)?;
    Ok(Box::new(Sft { loss_on_prompt: section.loss_on_prompt }))
}

fn texts(sections: &Sections, name: &str) -> Result<Texts> {
    let section: SftSection = sections.get(name)?;
    Ok(Texts { all_turns: section.assistant_only_loss, prompts: section.loss_on_prompt })
}

/// The loss: negative log-likelihood per predicted token, in nats.
#[derive(Clone, Copy, Debug)]
pub struct Sft {
    /// Also learn to predict the prompt.
    pub loss_on_prompt: bool,
}

impl Objective<SftExample> for Sft {
    fn name(&self) -> &'static str {
        "sft"
    }

    fn tokens(&self, row: &SftExample) -> usize {
        row.ids.len()
    }

    /// The weight of all tokens that are predicted: their number, where each weighs 1.
    fn weight(&self, rows: &[&SftExample]) -> f32 {
        let weights = rows.iter().copied().flat_map(|row| predicted(self, row));
        weights.map(|(_, weight)| f64::from(weight)).sum::<f64>() as f32
    }

    fn batch(&self, rows: &[&SftExample], _: &[&[f32]]) -> Batch {
        let texts: Vec<Text> =
            rows.iter().map(|row| (row.ids.as_slice(), predicted(self, row).collect())).collect();
        text_batch(&texts.iter().collect::<Vec<_>>())
    }

    fn loss(&self, weight: f32) -> Box<LossFn<'static>> {
        Box::new(cross_entropy(-1.0 / weight))
    }

    fn metrics(&self, _: &[Vec<f32>], _: usize) -> Metrics {
        vec![]
    }
}

/// The positions of an example at which the next token is predicted, with its weight. None where
/// its prompt was cut at the length limit.
fn predicted<'e>(config: &Sft, e: &'e SftExample) -> impl Iterator<Item = (usize, f32)> + use<'e> {
    let all = config.loss_on_prompt;
    let weight = move |t: usize| (t - 1, if all { 1.0 } else { e.weight(t) });
    (1..e.ids.len()).map(weight).filter(|(_, weight)| *weight > 0.0)
}

/// A text, and the positions at which the next token is predicted, each with its weight.
pub(super) type Text<'t> = (&'t [i32], Vec<(usize, f32)>);

/// Texts as a batch whose column are the weights.
pub(super) fn text_batch(texts: &[&Text<'_>]) -> Batch {
    let positions = |t: &Text<'_>| t.1.iter().map(|p| p.0).collect::<Vec<_>>();
    let mut batch = Batch::new(&texts.iter().map(|t| (t.0, positions(t))).collect::<Vec<_>>());
    batch.columns = vec![texts.iter().flat_map(|t| t.1.iter().map(|p| p.1)).collect()];
    batch
}

/// `scale` times the sum of weighted log-probabilities; the weights are the batch's first column.
pub(super) fn cross_entropy(
    scale: f32,
) -> impl for<'a> Fn(&mut Tape<'a>, &'a Model, &Batch, Tensor, Tensor) -> Result<LossOutput> {
    move |tape, model, batch, hidden, select| {
        let targets = tape.input_i32(&batch.targets)?;
        let weights = tape.input_f32(&batch.columns[0])?;
        let loss = model.cross_entropy(tape, hidden, select, targets, weights, scale)?;
        Ok(LossOutput { losses: vec![loss], stats: vec![] })
    }
}

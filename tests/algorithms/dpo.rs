//! DPO against a naive f64 version, with a reference of its own and with adapters off.

use crate::common::*;
use crate::pairs::pairs;
use crate::setup::*;
use duplex::algo::{Dpo, OfflineTrainer, Reference};
use duplex::base::{DType, Rng};
use duplex::data::PairExample;
use duplex::engine::Engine;
use duplex::model::Head;
use duplex::op::exact::softplus;
use duplex::tape::{ActivationCheckpointing, Workspace};

const LOSSES: [Dpo; 2] =
    [Dpo { beta: 0.1, label_smoothing: 0.0 }, Dpo { beta: 0.7, label_smoothing: 0.2 }];

struct Setup {
    trainer: OfflineTrainer<PairExample>,
    /// A copy of the reference.
    reference: Engine,
}

impl Setup {
    fn new(family: &str, loss: Dpo, micro: usize, learning_rate: f32) -> Setup {
        let frozen = || Engine::frozen(model(family, Head::Lm, DType::F32, false, None, 9));
        let policy = model(family, Head::Lm, DType::F32, true, None, 4);
        let engine =
            Engine::trained(policy, adamw(learning_rate), ActivationCheckpointing::None).unwrap();
        let (reference, step) = (Reference::model(frozen()), step_config(micro));
        let trainer = OfflineTrainer::new(engine, reference, Box::new(loss), step).unwrap();
        Setup { trainer, reference: frozen() }
    }

    /// Loss, accuracy, margin, rewards of chosen and rejected.
    fn naive(&self, ws: &mut Workspace, loss: Dpo, pairs: &[PairExample]) -> [f64; 5] {
        let (beta, e) = (f64::from(loss.beta), f64::from(loss.label_smoothing));
        let mut sums = [0f64; 5];
        for p in pairs {
            let mut reward = |ids: &[i32]| {
                let sum = |ws: &mut Workspace, engine: &Engine| {
                    logprobs(ws, engine, ids, p.prompt_len, 1.0).iter().sum::<f64>()
                };
                beta * (sum(ws, &self.trainer.engine) - sum(ws, &self.reference))
            };
            let (c, r) = (reward(&p.chosen), reward(&p.rejected));
            sums[0] += (1.0 - e) * softplus(r - c) + e * softplus(c - r);
            sums[1] += f64::from(u8::from(c > r));
            sums[2] += c - r;
            sums[3] += c;
            sums[4] += r;
        }
        sums.map(|s| s / pairs.len() as f64)
    }
}

#[test]
fn loss_and_metrics_follow_their_definitions() {
    for family in FAMILIES {
        for loss in LOSSES {
            let mut ws = workspace();
            let pairs = pairs(7, 15);
            let rows: Vec<&PairExample> = pairs.iter().collect();
            for micro in [1, 100, 100_000] {
                let mut setup = Setup::new(family, loss, micro, 0.0);
                let want = setup.naive(&mut ws, loss, &pairs);
                let eval = setup.trainer.evaluate(&mut ws, &rows).unwrap();
                let train = setup.trainer.train(&mut ws, &rows).unwrap();
                for s in [eval, train] {
                    let names = ["accuracies", "margins", "chosen", "rejected"];
                    close(f64::from(s.loss), want[0], 1e-5);
                    for (name, want) in names.iter().zip(&want[1..]) {
                        close(s.get(&format!("rewards/{name}")), *want, 1e-4);
                    }
                    let tokens = pairs.iter().map(|p| p.chosen.len() + p.rejected.len());
                    assert_eq!(s.tokens, tokens.sum::<usize>());
                }
                assert!(want[1] > 0.0 && want[1] < 1.0);
            }
        }
    }
}

#[test]
fn gradients_are_those_of_the_loss() {
    for loss in LOSSES {
        let mut ws = workspace();
        let pairs = pairs(8, 10);
        let rows: Vec<&PairExample> = pairs.iter().collect();
        let mut setup = Setup::new("llama", loss, 120, 0.0);
        let stats = setup.trainer.train(&mut ws, &rows).unwrap();
        let model = &setup.trainer.engine.model;
        close(f64::from(stats.grad_norm), norm(&gradients(model)), 1e-4);
        let share = slope_share(model, 3e-4, || setup.naive(&mut ws, loss, &pairs)[0]);
        assert!((share - 1.0).abs() < 0.01, "{loss:?} {share}");
    }
}

#[test]
fn with_adapters_the_model_without_them_is_the_reference() {
    let mut ws = workspace();
    let policy = model("llama", Head::Lm, DType::F32, true, Some(&lora("llama")), 4);
    let engine = Engine::trained(policy, adamw(1e-2), ActivationCheckpointing::None).unwrap();
    let loss = Box::new(LOSSES[0]);
    let mut trainer =
        OfflineTrainer::new(engine, Reference::Adapters, loss, step_config(90)).unwrap();
    let pairs = pairs(5, 8);
    let rows: Vec<&PairExample> = pairs.iter().collect();
    let before = trainer.evaluate(&mut ws, &rows).unwrap();
    for _ in 0..5 {
        trainer.train(&mut ws, &rows).unwrap();
    }
    let after = trainer.evaluate(&mut ws, &rows).unwrap();
    assert!(after.loss < before.loss, "{} {}", before.loss, after.loss);
    assert!(after.get("rewards/margins") > before.get("rewards/margins"));
    let policy = model("llama", Head::Lm, DType::F32, true, None, 4);
    let engine = Engine::trained(policy, adamw(1e-2), ActivationCheckpointing::None).unwrap();
    let (loss, step) = (Box::new(LOSSES[0]), step_config(90));
    let alone = OfflineTrainer::<PairExample>::new(engine, Reference::Adapters, loss, step);
    assert!(alone.is_err(), "no adapters to switch off");
}

/// The same log-probs, whatever they are packed with, have the distance 0.
#[test]
fn a_policy_that_is_its_reference_has_rewards_of_exactly_zero() {
    let mut ws = workspace();
    let pairs = pairs(6, 9);
    let rows: Vec<&PairExample> = pairs.iter().collect();
    for dtype in [DType::F32, DType::Bf16] {
        for micro in [1, 90, 100_000] {
            let policy = model("llama", Head::Lm, dtype, true, None, 9);
            let engine =
                Engine::trained(policy, adamw(0.0), ActivationCheckpointing::None).unwrap();
            let reference = Engine::frozen(model("llama", Head::Lm, dtype, false, None, 9));
            let (loss, step) = (Box::new(LOSSES[0]), step_config(micro));
            let mut trainer =
                OfflineTrainer::new(engine, Reference::model(reference), loss, step).unwrap();
            for s in [trainer.evaluate(&mut ws, &rows), trainer.train(&mut ws, &rows)] {
                let s = s.unwrap();
                assert!(s.metrics.iter().all(|m| m.1 == 0.0), "{:?}", s.metrics);
                close(f64::from(s.loss), f64::ln(2.0), 1e-6);
            }
        }
    }
}

#[test]
fn no_pairs_give_zeros_and_no_step() {
    let mut ws = workspace();
    let mut setup = Setup::new("gpt2", LOSSES[0], 100, 1e-2);
    let before = weights(&setup.trainer.engine.model);
    for s in [setup.trainer.evaluate(&mut ws, &[]), setup.trainer.train(&mut ws, &[])] {
        let s = s.unwrap();
        assert_eq!(([s.loss, s.grad_norm], s.tokens, s.skipped), ([0.0; 2], 0, None));
    }
    assert_eq!(before, weights(&setup.trainer.engine.model));
}

#[test]
fn training_learns_to_prefer() {
    let mut ws = workspace();
    // Preferred is the answer that ends with an even token.
    let mut rng = Rng::new(12, 0);
    let pairs: Vec<PairExample> = (0..80)
        .map(|_| {
            let prompt = random_ids(&mut rng, 5);
            let end = rng.below(40) as i32 * 2;
            let with = |e: i32| [prompt.clone(), vec![1, e]].concat();
            let (chosen, rejected) = (with(end), with(end + 1));
            PairExample { prompt_len: 5, chosen, rejected, ..PairExample::default() }
        })
        .collect();
    let rows: Vec<&PairExample> = pairs.iter().collect();
    let mut setup = Setup::new("gpt2", LOSSES[0], 500, 3e-3);
    let before = setup.trainer.evaluate(&mut ws, &rows[60..]).unwrap();
    for i in 0..90 {
        setup.trainer.train(&mut ws, &rows[i % 3 * 20..][..20]).unwrap();
    }
    let after = setup.trainer.evaluate(&mut ws, &rows[60..]).unwrap();
    let accuracy = after.get("rewards/accuracies");
    assert!(accuracy >= 0.8 && after.loss < before.loss, "{before:?} {after:?}");
}

//! Steps on rows of random unequal length, under vocabularies of real models: logits go through in
//! several shares, whose number and size change from micro-batch to micro-batch.

use crate::common::*;
use crate::setup::*;
use duplex::algo::*;
use duplex::base::{DType, Rng};
use duplex::data::{PairExample, SftExample};
use duplex::device::Device;
use duplex::engine::Engine;
use duplex::model::{Head, LoadOptions};
use duplex::rollout::Sampling;
use duplex::tape::{ActivationCheckpointing, Workspace};

/// The size of a run: on the emulated device one step of few tokens, under a larger vocabulary.
struct Work {
    device: Device,
    vocab: usize,
    longest: usize,
    rows: usize,
    steps: usize,
}

fn work() -> Work {
    match device() {
        Device::Emulated => emulated(),
        device => Work { device, vocab: 50_257, longest: 400, rows: 4, steps: 3 },
    }
}

fn emulated() -> Work {
    Work { device: Device::Emulated, vocab: 151_936, longest: 7, rows: 2, steps: 1 }
}

impl Work {
    fn workspace(&self) -> Workspace {
        Workspace::new(self.device, usize::MAX).unwrap()
    }

    fn engine(&self, head: Head, train: bool, seed: u64) -> Engine {
        let options = LoadOptions { train, seed, ..LoadOptions::frozen(head, DType::F32) };
        let config = config_of("llama", self.vocab, 512);
        let model = model_of(&config, &options.on(self.device));
        if train {
            Engine::trained(model, adamw(1e-3), ActivationCheckpointing::None).unwrap()
        } else {
            Engine::frozen(model)
        }
    }

    fn row(&self, rng: &mut Rng) -> Vec<i32> {
        row(rng, self.vocab, 5, self.longest)
    }

    /// Micro-batches of one row up to all.
    fn step(&self) -> StepConfig {
        step_config(self.longest * self.rows / 2)
    }

    fn sft(&self) {
        let (mut rng, mut ws) = (fresh_rng(), self.workspace());
        let mut trainer = sft_trainer(self.engine(Head::Lm, true, 1), self.step(), true);
        for _ in 0..self.steps {
            let example = |ids: Vec<i32>| SftExample::new(ids, 2);
            let examples: Vec<SftExample> =
                (0..self.rows).map(|_| example(self.row(&mut rng))).collect();
            let rows: Vec<&SftExample> = examples.iter().collect();
            let before = trainer.evaluate(&mut ws, &rows).unwrap();
            let stats = trainer.train(&mut ws, &rows).unwrap();
            close(f64::from(stats.loss), f64::from(before.loss), 1e-5);
            assert!(stats.skipped.is_none() && stats.grad_norm > 0.0);
            // Random tokens are about as likely as any.
            let before = before.loss;
            assert!((f64::from(before) - (self.vocab as f64).ln()).abs() < 2.0, "{before}");
        }
        assert_eq!(ws.misfits(), 0);
    }

    fn reward(&self) {
        let (mut rng, mut ws) = (fresh_rng(), self.workspace());
        let engine = self.engine(Head::Score, true, 2);
        let mut trainer = reward_trainer(engine, self.step(), RewardLoss::End);
        for _ in 0..self.steps {
            let mut pair = || PairExample {
                prompt_len: 0,
                chosen: self.row(&mut rng),
                rejected: self.row(&mut rng),
                ..PairExample::default()
            };
            let pairs: Vec<PairExample> = (0..self.rows).map(|_| pair()).collect();
            let rows: Vec<&PairExample> = pairs.iter().collect();
            let before = trainer.evaluate(&mut ws, &rows).unwrap();
            let stats = trainer.train(&mut ws, &rows).unwrap();
            close(f64::from(stats.loss), f64::from(before.loss), 1e-5);
            assert!(stats.skipped.is_none() && stats.grad_norm > 0.0);
        }
        assert_eq!(ws.misfits(), 0);
    }

    fn ppo(&self) {
        let (mut rng, mut ws) = (fresh_rng(), self.workspace());
        let engines = OnlineModels {
            actor: self.engine(Head::Lm, true, 3),
            reference: Reference::model(self.engine(Head::Lm, false, 3)),
            critic: Some(self.engine(Head::Score, true, 4)),
            reward: rule(Noise),
        };
        // As many end tokens as kernels take: an answer in forty has one.
        let eos = (0..self.vocab as i32).step_by(self.vocab.div_ceil(64)).collect();
        let greedy = Sampling::greedy(self.longest.min(40), eos);
        let sampling = Sampling { temperature: 1.0, seed: 9, ..greedy };
        let config = OnlineConfig { sampling, unsup_coef: 0.3, minibatch: 3, ..ppo_config() };
        let micro_batch_tokens = self.step().micro_batch_tokens;
        let config = OnlineConfig { micro_batch_tokens, ..config };
        let mut trainer = OnlineTrainer::new(engines, config).unwrap();
        for _ in 0..self.steps {
            let prompts: Vec<Vec<i32>> = (0..self.rows).map(|_| self.row(&mut rng)).collect();
            let experience = experience(&mut trainer, &mut ws, &prompts);
            let text = [self.row(&mut rng), self.row(&mut rng)];
            let text: Vec<&[i32]> = text.iter().map(Vec::as_slice).collect();
            let stats = trainer.train_rlhf(&mut ws, &experience, &text).unwrap();
            assert_eq!(stats.first_ratio_deviation, 0.0);
            assert!(stats.skipped.is_empty(), "{:?}", stats.skipped);
        }
        assert_eq!(ws.misfits(), 0);
    }
}

#[test]
fn finetuning_on_unequal_rows_under_a_large_vocabulary() {
    work().sft();
}

#[test]
fn a_reward_model_on_unequal_pairs_under_a_large_vocabulary() {
    work().reward();
}

#[test]
fn ppo_on_unequal_rows_under_a_large_vocabulary() {
    work().ppo();
}

#[cfg(feature = "emulator")]
#[test]
fn a_step_of_each_kind_under_a_large_vocabulary_on_the_emulated_device() {
    emulated().sft();
    emulated().reward();
    emulated().ppo();
}

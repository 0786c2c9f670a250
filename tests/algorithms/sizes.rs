//! Programs that were planned for the largest sizes met run with all smaller ones: every program of
//! every step, with vocabularies and micro-batches of real models, on devices and among ranks that
//! are fake, where a plan is made and held to but nothing is computed.

use crate::common::*;
use crate::setup::*;
use duplex::algo::*;
use duplex::base::{DType, Rng};
use duplex::comm::Comm;
use duplex::data::{PairExample, SftExample};
use duplex::device::{Device, FakeDevice};
use duplex::engine::Engine;
use duplex::model::{Head, LoadOptions, LoraConfig, Model};
use duplex::pool::{Partition, Zero};
use duplex::rollout::Sampling;
use duplex::tape::{ActivationCheckpointing, Workspace};
use duplex::train::{AdamWConfig, AdamWState};

/// Random shapes; `DUPLEX_SHAPES` asks for more.
fn shapes() -> usize {
    std::env::var("DUPLEX_SHAPES").ok().and_then(|n| n.parse().ok()).unwrap_or(2000)
}

/// Shapes of one model.
const EACH: usize = 40;
/// Tokens of a micro-batch at most.
const TOKENS: usize = 100_000;
/// Vocabularies of models that are in use, and the largest.
const VOCABULARIES: [usize; 8] = [97, 32_000, 49_152, 50_257, 128_256, 151_936, 256_000, 262_144];

/// Settings that decide on programs and plans, apart from the sizes of a batch.
#[derive(Clone, Debug)]
struct Setup {
    family: &'static str,
    vocab: usize,
    device: FakeDevice,
    dtype: DType,
    state: AdamWState,
    checkpointing: ActivationCheckpointing,
    lora: Option<LoraConfig>,
    ranks: usize,
    stage: Zero,
    blocks: usize,
    offload: bool,
}

fn one_of<T: Clone>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.below(of.len() as u32) as usize].clone()
}

/// A number from 1 to `most`, of every order of magnitude alike.
fn size(rng: &mut Rng, most: usize) -> usize {
    let top = 1 << rng.below(most.ilog2() + 1);
    (top + rng.below(top as u32) as usize).min(most)
}

impl Setup {
    fn random(rng: &mut Rng) -> Setup {
        let family = one_of(rng, &ALL_FAMILIES);
        let kinds = [
            (DType::F32, AdamWState::Full),
            (DType::Bf16, AdamWState::Full),
            (DType::Bf16, AdamWState::Compact),
        ];
        let (dtype, state) = one_of(rng, &kinds);
        let ways = [
            (1, Zero::Nothing, 1),
            (1, Zero::Nothing, 1),
            (2, Zero::Gradients, 1),
            (4, Zero::Weights, 1),
            (2, Zero::Weights, 2),
            (4, Zero::Weights, 2),
        ];
        let (ranks, stage, mut blocks) = one_of(rng, &ways);
        if state == AdamWState::Compact {
            blocks = 1;
        }
        let adapters = LoraConfig { dropout: one_of(rng, &[0.0, 0.1]), ..lora(family) };
        Setup {
            family,
            vocab: one_of(rng, &VOCABULARIES) - rng.below(90) as usize,
            device: one_of(rng, &[FakeDevice::Cpu, FakeDevice::Cuda]),
            dtype,
            state,
            checkpointing: one_of(rng, &CHECKPOINTINGS),
            lora: one_of(rng, &[None, None, Some(adapters)]),
            ranks,
            stage,
            blocks,
            offload: ranks == 1 && rng.below(4) == 0,
        }
    }

    fn model(&self, head: Head, train: bool, lora: Option<LoraConfig>, generates: bool) -> Model {
        let [comm, slice, tensor] =
            [self.ranks, self.ranks / self.blocks, self.blocks].map(Comm::fake);
        let partition = Partition { comm, stage: self.stage, blocks: self.blocks, slice, tensor };
        let partition = if self.ranks == 1 { Partition::alone() } else { partition };
        let grads = if train { self.state.grads() } else { DType::F32 };
        let frozen = LoadOptions::frozen(head, self.dtype).on(Device::Fake(self.device));
        let offload = self.offload && !train && !generates;
        let options = LoadOptions { train, grads, partition, lora, offload, ..frozen };
        Model::empty(&config_of(self.family, self.vocab, 2 * TOKENS), &options).unwrap()
    }

    fn trained(&self, head: Head) -> Engine {
        let adamw = AdamWConfig { state: self.state, ..adamw(1e-4) };
        Engine::trained(self.model(head, true, self.lora.clone(), true), adamw, self.checkpointing)
            .unwrap()
    }

    fn frozen(&self, head: Head) -> Engine {
        Engine::frozen(self.model(head, false, None, false))
    }
}

/// Rows of up to `tokens` tokens in all.
fn lengths(rng: &mut Rng, tokens: usize) -> Vec<usize> {
    let most = size(rng, tokens);
    let (mut left, mut all) = (size(rng, tokens), vec![]);
    while left > 1 && all.len() < 2000 {
        let n = size(rng, most.min(left)).max(2);
        left = left.saturating_sub(n);
        all.push(n);
    }
    if all.is_empty() { vec![2] } else { all }
}

fn ids(n: usize) -> Vec<i32> {
    vec![1; n]
}

/// A step of supervised finetuning, and an evaluation.
fn sft(trainer: &mut SftTrainer, ws: &mut Workspace, rng: &mut Rng) -> Vec<usize> {
    let lengths = lengths(rng, TOKENS);
    let example = |n: &usize| SftExample::new(ids(*n), rng.below(*n as u32) as usize);
    let examples: Vec<SftExample> = lengths.iter().map(example).collect();
    let rows: Vec<&SftExample> = examples.iter().collect();
    trainer.train(ws, &rows).unwrap();
    trainer.evaluate(ws, &rows).unwrap();
    lengths
}

/// A step of a reward model, and an evaluation.
fn reward(trainer: &mut RewardTrainer, ws: &mut Workspace, rng: &mut Rng) -> Vec<usize> {
    let lengths = lengths(rng, TOKENS / 2);
    let pair = |n: &usize| {
        let prompt_len = rng.below(*n as u32) as usize;
        let rejected = [ids(prompt_len), vec![2; size(rng, *n)]].concat();
        PairExample { prompt_len, chosen: ids(*n), rejected, ..PairExample::default() }
    };
    let pairs: Vec<PairExample> = lengths.iter().map(pair).collect();
    let rows: Vec<&PairExample> = pairs.iter().collect();
    trainer.train(ws, &rows).unwrap();
    trainer.evaluate(ws, &rows).unwrap();
    lengths
}

/// Generation and scoring, then steps on answers of other lengths, with a mixture loss.
fn ppo(trainer: &mut OnlineTrainer, ws: &mut Workspace, rng: &mut Rng) -> Vec<usize> {
    let mut lengths = lengths(rng, TOKENS / 4);
    lengths.truncate(300);
    let ranks = trainer.models.actor.comm().size();
    if ranks > 1 {
        // Fake ranks have prompts and answers like this one's.
        lengths = vec![lengths[0]; ranks * lengths.len()];
    }
    let prompts: Vec<Vec<i32>> = lengths.iter().map(|n| ids(*n)).collect();
    trainer.config.sampling.max_new_tokens = 1 + size(rng, 1000);
    let mut experience = trainer.generate_experience(ws, &refs(&asked(&prompts))).unwrap();
    for r in &mut experience.rollouts {
        let n = size(rng, r.logprobs.len());
        r.ids.truncate(r.prompt_len + n);
        let columns = [&mut r.logprobs, &mut r.ref_logprobs, &mut r.values];
        columns.into_iter().for_each(|c| c.truncate(n));
        [&mut r.advantages, &mut r.returns].into_iter().for_each(|c| c.truncate(n));
    }
    let text: Vec<Vec<i32>> = (0..rng.below(5)).map(|_| ids(1 + size(rng, 5000))).collect();
    let text: Vec<&[i32]> = text.iter().map(Vec::as_slice).collect();
    trainer.train_rlhf(ws, &experience, &text).unwrap();
    lengths
}

fn ppo_trainer(setup: &Setup) -> OnlineTrainer {
    let engines = OnlineModels {
        actor: setup.trained(Head::Lm),
        reference: match setup.lora {
            Some(_) => Reference::Adapters,
            None => Reference::model(setup.frozen(Head::Lm)),
        },
        critic: Some(setup.trained(Head::Score)),
        reward: model_reward(setup.frozen(Head::Score)),
    };
    let sampling = Sampling { temperature: 1.0, ..Sampling::greedy(20, vec![]) };
    let (minibatch, micro_batch_tokens) = (1000, TOKENS);
    let more = OnlineConfig { entropy_coef: 0.01, unsup_coef: 0.5, ..ppo_config() };
    let config = OnlineConfig { sampling, minibatch, micro_batch_tokens, ..more };
    OnlineTrainer::new(engines, config).unwrap()
}

#[test]
fn programs_planned_for_the_largest_sizes_run_with_all_smaller_ones() {
    let mut rng = fresh_rng();
    let started = std::time::Instant::now();
    for _ in 0..shapes().div_ceil(EACH) {
        let setup = Setup::random(&mut rng);
        let mut ws = Workspace::new(Device::Fake(setup.device), usize::MAX).unwrap();
        let loss = one_of(&mut rng, &[RewardLoss::End, RewardLoss::TokenWise]);
        let on_prompt = rng.below(2) == 0;
        let mut sft_trainer = sft_trainer(setup.trained(Head::Lm), step_config(TOKENS), on_prompt);
        let mut reward_trainer =
            reward_trainer(setup.trained(Head::Score), step_config(TOKENS), loss);
        let mut ppo_trainer = ppo_trainer(&setup);
        for shape in 0..EACH {
            let lengths = match shape % 3 {
                0 => sft(&mut sft_trainer, &mut ws, &mut rng),
                1 => reward(&mut reward_trainer, &mut ws, &mut rng),
                _ => ppo(&mut ppo_trainer, &mut ws, &mut rng),
            };
            assert_eq!(ws.misfits(), 0, "{setup:?}, rows of {lengths:?}");
        }
    }
    println!("{:.1} s", started.elapsed().as_secs_f64());
}

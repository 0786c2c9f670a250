//! Engines, settings and naive helpers for the tests of the algorithms.

use crate::common::*;
use duplex::algo::*;
use duplex::base::{DType, Result, Rng};
use duplex::data::{PairExample, PromptExample, SftExample};
use duplex::engine::Engine;
use duplex::model::{Head, LoadOptions, Model};
use duplex::pool::{ParamId, Partition};
use duplex::rollout::Sampling;
use duplex::tape::{ActivationCheckpointing, Workspace};
use duplex::train::{AdamWConfig, Batch};
use std::sync::Arc;

/// A score of no meaning that every answer's tokens change, within -6..6.
pub(crate) struct Noise;

pub(crate) fn noise(answer: &[i32]) -> f32 {
    let sum: i64 = answer.iter().enumerate().map(|(i, t)| i64::from(*t) * (i as i64 + 3)).sum();
    (sum % 121) as f32 / 10.0 - 6.0
}

impl RewardRule for Noise {
    fn name(&self) -> &str {
        "noise"
    }
    fn score(&self, answers: &[Answered<'_>]) -> Result<Vec<Option<f32>>> {
        Ok(answers.iter().map(|a| Some(noise(&tokens(a.answer)))).collect())
    }
}

/// Four times the share of one token in the answer.
pub(crate) struct Likes(pub(crate) i32);

impl RewardRule for Likes {
    fn name(&self) -> &str {
        "likes"
    }
    fn score(&self, answers: &[Answered<'_>]) -> Result<Vec<Option<f32>>> {
        let score = |a: &Answered<'_>| {
            let tokens = tokens(a.answer);
            let liked = tokens.iter().filter(|t| **t == self.0).count();
            Some(4.0 * liked as f32 / tokens.len() as f32)
        };
        Ok(answers.iter().map(score).collect())
    }
}

/// Token ids as text, and back.
pub(crate) fn decode(ids: &[i32]) -> String {
    ids.iter().map(i32::to_string).collect::<Vec<_>>().join(" ")
}

pub(crate) fn tokens(text: &str) -> Vec<i32> {
    text.split(' ').map(|t| t.parse().unwrap()).collect()
}

pub(crate) fn rule(rule: impl RewardRule + 'static) -> Box<dyn RewardSource> {
    Box::new(RuleReward { rule: Arc::new(rule), decode: Box::new(|ids| Ok(decode(ids))) })
}

pub(crate) fn model_reward(engine: Engine) -> Box<dyn RewardSource> {
    Box::new(ModelReward { engine, retokenise: None })
}

/// The critic of models that have one.
pub(crate) fn critic(models: &OnlineModels) -> &Engine {
    models.critic.as_ref().unwrap()
}

/// PPO.
pub(crate) fn method() -> Method {
    Method {
        num_generations: 1,
        kl: Some(KlPenalty { coef: 0.3, adaptive: None }),
        advantage: Advantage::Gae { gamma: 0.97, lambda: 0.9 },
        whiten_advantages: true,
        policy_loss: PolicyLoss::Token { clip: 0.25 },
        epochs: 1,
    }
}

/// About a sixth of the tokens end an answer, so that some answers are finished and some are not.
pub(crate) fn ppo_config() -> OnlineConfig {
    OnlineConfig {
        method: method(),
        sampling: Sampling {
            temperature: 0.9,
            top_k: 0,
            top_p: 1.0,
            min_new_tokens: 1,
            max_new_tokens: 9,
            eos: (0..VOCAB as i32).step_by(6).collect(),
            seed: 11,
        },
        clip_reward_value: 2.5,
        reward_scaling: RewardScaling::None,
        missing_eos_penalty: 0.75,
        cliprange_value: 0.15,
        entropy_coef: 0.0,
        unsup_coef: 0.0,
        minibatch: 100,
        micro_batch_tokens: 120,
        actor_schedule: constant(),
        critic_schedule: constant(),
    }
}

/// f32 engines whose reference is another model than the actor, under the rule [`Noise`].
pub(crate) fn engines(family: &str, learning_rate: f32) -> OnlineModels {
    engines_as(family, DType::F32, adamw(learning_rate))
}

/// The same in `dtype`, with gradients of the type that goes with the optimizer's state.
pub(crate) fn engines_as(family: &str, dtype: DType, config: AdamWConfig) -> OnlineModels {
    let alone = Partition::alone();
    engines_among(family, dtype, config, [&alone, &alone])
}

/// The same for the ranks among which the actor, and the other models, are shared out.
pub(crate) fn engines_among(
    family: &str,
    dtype: DType,
    config: AdamWConfig,
    [of_actor, of_others]: [&Partition; 2],
) -> OnlineModels {
    let options = |head, seed, partition: &Partition| {
        let frozen = LoadOptions::frozen(head, dtype).on(device());
        LoadOptions { seed, partition: partition.clone(), ..frozen }
    };
    let trained = |head, seed, partition: &Partition| {
        let grads = config.state.grads();
        let options = LoadOptions { train: true, grads, ..options(head, seed, partition) };
        let m = model_as(family, &options);
        Engine::trained(m, config.clone(), ActivationCheckpointing::None).unwrap()
    };
    let reference = Engine::frozen(model_as(family, &options(Head::Lm, 3, of_others)));
    OnlineModels {
        actor: trained(Head::Lm, 1, of_actor),
        reference: Reference::model(reference),
        critic: Some(trained(Head::Score, 2, of_others)),
        reward: rule(Noise),
    }
}

/// A trainer whose critic has gradients in memory of its own, so that the actor's are still there
/// after the critic's step.
pub(crate) fn unshared(family: &str, learning_rate: f32, config: OnlineConfig) -> OnlineTrainer {
    let mut trainer = OnlineTrainer::new(engines(family, learning_rate), config).unwrap();
    trainer.models.critic = engines(family, learning_rate).critic;
    trainer
}

pub(crate) fn workspace() -> Workspace {
    Workspace::new(device(), usize::MAX).unwrap()
}

pub(crate) fn step_config(micro_batch_tokens: usize) -> StepConfig {
    StepConfig { schedule: constant(), micro_batch_tokens, seed: 3 }
}

pub(crate) fn experience(
    trainer: &mut OnlineTrainer,
    ws: &mut Workspace,
    prompts: &[Vec<i32>],
) -> Experience {
    let rows = asked(prompts);
    trainer.generate_experience(ws, &refs(&rows)).unwrap()
}

/// Prompts as examples of no file.
pub(crate) fn asked(prompts: &[Vec<i32>]) -> Vec<PromptExample> {
    prompts.iter().cloned().map(PromptExample::new).collect()
}

pub(crate) fn refs<T>(all: &[T]) -> Vec<&T> {
    all.iter().collect()
}

/// Log-probabilities of `ids[first..]`, from a row of its own.
pub(crate) fn logprobs(
    ws: &mut Workspace,
    engine: &Engine,
    ids: &[i32],
    first: usize,
    temperature: f32,
) -> Vec<f64> {
    let batch = Batch::new(&[(ids, first - 1..ids.len() - 1)]);
    let all = engine.logprobs(ws, &batch, temperature, true).unwrap();
    all.into_iter().map(f64::from).collect()
}

/// Log-probabilities of the whole vocabulary after `ids`.
pub(crate) fn distribution(
    ws: &mut Workspace,
    engine: &Engine,
    ids: &[i32],
    temperature: f32,
) -> Vec<f64> {
    let mut batch = Batch::new(&[(ids, 0..0)]);
    batch.select = vec![ids.len() as i32 - 1; VOCAB];
    batch.targets = (0..VOCAB as i32).collect();
    let all = engine.logprobs(ws, &batch, temperature, true).unwrap();
    all.into_iter().map(f64::from).collect()
}

/// Scores at every position of `ids`, from a row of its own.
pub(crate) fn scores(ws: &mut Workspace, engine: &Engine, ids: &[i32]) -> Vec<f64> {
    let all = engine.scores(ws, &Batch::new(&[(ids, 0..ids.len())])).unwrap();
    all.into_iter().map(f64::from).collect()
}

/// All weights of a model.
pub(crate) fn weights(model: &Model) -> Vec<Vec<f32>> {
    (0..model.store.params().len()).map(|i| model.store.read_f32(ParamId(i)).unwrap()).collect()
}

/// The gradients of the last optimizer step (a step forgets gradients but does not wipe them).
pub(crate) fn gradients(model: &Model) -> Vec<f64> {
    let n = model.store.params().len();
    let all = (0..n).filter_map(|i| model.store.read_grad(ParamId(i)).ok());
    all.flatten().map(f64::from).collect()
}

/// Sets the weights to `start + step * direction`, for a model all of whose parameters are trained.
pub(crate) fn shift(model: &Model, start: &[Vec<f32>], direction: &[f64], step: f64) {
    let mut at = 0;
    for (i, w) in start.iter().enumerate() {
        let moved: Vec<f32> = w
            .iter()
            .zip(&direction[at..])
            .map(|(w, d)| (f64::from(*w) + step * d) as f32)
            .collect();
        model.store.write_f32(ParamId(i), &moved).unwrap();
        at += w.len();
    }
}

/// Differences of `loss` along the last step's gradient, from `h` before the weights to `h` behind
/// them, as a share of the gradient's norm: 1 where it is the gradient of that loss.
pub(crate) fn slope_share(model: &Model, h: f64, mut loss: impl FnMut() -> f64) -> f64 {
    let (start, g) = (weights(model), gradients(model));
    let unit: Vec<f64> = g.iter().map(|x| x / norm(&g)).collect();
    let mut at = |step: f64| {
        shift(model, &start, &unit, step);
        loss()
    };
    (at(h) - at(-h)) / (2.0 * h) / norm(&g)
}

pub(crate) fn norm(x: &[f64]) -> f64 {
    x.iter().map(|v| v * v).sum::<f64>().sqrt()
}

pub(crate) fn relative(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let diff: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    norm(&diff) / norm(b).max(1e-12)
}

pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

#[track_caller]
pub(crate) fn close(a: f64, b: f64, tolerance: f64) {
    assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{a} is not {b}");
}

pub(crate) fn random_ids(rng: &mut Rng, n: usize) -> Vec<i32> {
    (0..n).map(|_| rng.below(VOCAB as u32) as i32).collect()
}

pub(crate) type SftTrainer = OfflineTrainer<SftExample>;
pub(crate) type RewardTrainer = OfflineTrainer<PairExample>;

pub(crate) fn sft_trainer(engine: Engine, step: StepConfig, loss_on_prompt: bool) -> SftTrainer {
    OfflineTrainer::new(engine, Reference::None, Box::new(Sft { loss_on_prompt }), step).unwrap()
}

pub(crate) fn reward_trainer(engine: Engine, step: StepConfig, loss: RewardLoss) -> RewardTrainer {
    OfflineTrainer::new(engine, Reference::None, Box::new(RewardModel { loss }), step).unwrap()
}

//! Law 2: on the first minibatch the policy that trains is, bit for bit, the policy that sampled.

pub mod common;

use common::*;
use duplex::algo::{
    Advantage, KlPenalty, Method, ModelReward, OnlineConfig, OnlineModels, OnlineTrainer,
    PolicyLoss, Reference, RewardScaling, RewardSource,
};
use duplex::base::DType;
use duplex::data::PromptExample;
use duplex::device::Device;
use duplex::engine::Engine;
use duplex::model::{Head, LoadOptions};
use duplex::rollout::Sampling;
use duplex::tape::{ActivationCheckpointing, Workspace};
use duplex::train::Batch;

fn ppo_config(temperature: f32) -> OnlineConfig {
    OnlineConfig {
        method: Method {
            num_generations: 1,
            kl: Some(KlPenalty { coef: 0.1, adaptive: None }),
            advantage: Advantage::Gae { gamma: 1.0, lambda: 0.95 },
            whiten_advantages: true,
            policy_loss: PolicyLoss::Token { clip: 0.2 },
            epochs: 2,
        },
        sampling: Sampling {
            temperature,
            top_k: 20,
            top_p: 0.95,
            min_new_tokens: 2,
            max_new_tokens: 24,
            eos: vec![3],
            seed: 5,
        },
        clip_reward_value: 5.0,
        reward_scaling: RewardScaling::Running,
        missing_eos_penalty: 0.5,
        cliprange_value: 0.2,
        entropy_coef: 0.01,
        unsup_coef: 0.0,
        minibatch: 4,
        micro_batch_tokens: 150,
        actor_schedule: constant(),
        critic_schedule: constant(),
    }
}

fn model_reward(engine: Engine) -> Box<dyn RewardSource> {
    Box::new(ModelReward { engine, retokenise: None })
}

fn engines(
    family: &str,
    dtype: DType,
    with_lora: bool,
    keep: ActivationCheckpointing,
) -> OnlineModels {
    let lora = with_lora.then(|| lora(family));
    let actor = model(family, Head::Lm, dtype, true, lora.as_ref(), 1);
    let reference = match with_lora {
        true => Reference::Adapters,
        false => Reference::model(Engine::frozen(model(family, Head::Lm, dtype, false, None, 1))),
    };
    let critic = model(family, Head::Score, dtype, true, None, 2);
    let reward = model(family, Head::Score, dtype, false, None, 2);
    OnlineModels {
        actor: Engine::trained(actor, adamw(1e-3), keep).unwrap(),
        reference,
        critic: Some(Engine::trained(critic, adamw(1e-3), keep).unwrap()),
        reward: model_reward(Engine::frozen(reward)),
    }
}

#[test]
fn first_minibatch_is_exact_for_every_family_dtype_and_lora() {
    for family in ALL_FAMILIES {
        for dtype in [DType::F32, DType::Bf16] {
            for with_lora in [false, true] {
                // The emulated device is slow: there the pairs alternate.
                let settings = match (device() == Device::Emulated, with_lora) {
                    (false, _) => &[
                        (1.0, ActivationCheckpointing::None),
                        (0.7, ActivationCheckpointing::Full),
                    ][..],
                    (true, false) => &[(0.7, ActivationCheckpointing::Full)],
                    (true, true) => &[(1.0, ActivationCheckpointing::None)],
                };
                for &(temperature, keep) in settings {
                    let what =
                        format!("{family} {dtype} lora {with_lora} temperature {temperature}");
                    let mut ws = Workspace::new(device(), usize::MAX).unwrap();
                    let engines = engines(family, dtype, with_lora, keep);
                    let mut trainer = OnlineTrainer::new(engines, ppo_config(temperature)).unwrap();
                    let prompts = prompts(9, 7);
                    let prompts: Vec<_> = prompts.into_iter().map(PromptExample::new).collect();
                    let prompts: Vec<&PromptExample> = prompts.iter().collect();
                    let experience = trainer.generate_experience(&mut ws, &prompts).unwrap();
                    for (i, r) in experience.rollouts.iter().enumerate() {
                        assert!(!r.logprobs.is_empty());
                        assert_eq!(
                            bits(&r.logprobs),
                            bits(&r.ref_logprobs),
                            "{what} row {i}: reference"
                        );
                        // Alone, and recomputed by the training forward.
                        let rows = [(r.ids.as_slice(), r.prompt_len - 1..r.ids.len() - 1)];
                        let actor = &trainer.models.actor;
                        let again =
                            actor.logprobs(&mut ws, &Batch::new(&rows), temperature, true).unwrap();
                        assert_eq!(bits(&r.logprobs), bits(&again), "{what} row {i}: recomputed");
                    }
                    let stats = trainer.train_rlhf(&mut ws, &experience, &[]).unwrap();
                    assert_eq!(stats.first_ratio_deviation, 0.0, "{what}");
                    assert_eq!(stats.first_approx_kl, 0.0, "{what}");
                    // Later minibatches see a changed policy, or the test would prove nothing.
                    assert!(stats.approx_kl > 0.0, "{what}");
                    assert!(stats.skipped.is_empty());
                }
            }
        }
    }
}

/// Prompts and answers of random unequal length under the vocabulary of a real model, whose logits
/// go through in shares of one size where they are scored and of another where they are trained on.
#[test]
fn first_minibatches_are_exact_under_a_large_vocabulary() {
    let (mut rng, emulated) = (fresh_rng(), device() == Device::Emulated);
    let (vocab, longest, count) = if emulated { (151_936, 9, 2) } else { (50_257, 300, 6) };
    let iterations = if emulated { 1 } else { 3 };
    let dtypes = if emulated { &[DType::Bf16][..] } else { &[DType::F32, DType::Bf16] };
    for dtype in dtypes.iter().copied() {
        let mut ws = Workspace::new(device(), usize::MAX).unwrap();
        let engine = |head, train, seed| {
            let frozen = LoadOptions::frozen(head, dtype).on(device());
            let options = LoadOptions { train, seed, ..frozen };
            let model = model_of(&config_of("llama", vocab, 512), &options);
            match train {
                true => {
                    Engine::trained(model, adamw(1e-3), ActivationCheckpointing::Selective).unwrap()
                }
                false => Engine::frozen(model),
            }
        };
        let engines = OnlineModels {
            actor: engine(Head::Lm, true, 1),
            reference: Reference::model(engine(Head::Lm, false, 1)),
            critic: Some(engine(Head::Score, true, 2)),
            reward: model_reward(engine(Head::Score, false, 2)),
        };
        let mut config = ppo_config(0.8);
        config.micro_batch_tokens = longest * count / 2;
        config.sampling.max_new_tokens = if emulated { 4 } else { 24 };
        config.sampling.eos = (0..vocab as i32).step_by(vocab.div_ceil(64)).collect();
        let mut trainer = OnlineTrainer::new(engines, config).unwrap();
        for iteration in 0..iterations {
            let prompt = |_| PromptExample::new(row(&mut rng, vocab, 5, longest));
            let prompts: Vec<PromptExample> = (0..count).map(prompt).collect();
            let prompts: Vec<&PromptExample> = prompts.iter().collect();
            let experience = trainer.generate_experience(&mut ws, &prompts).unwrap();
            for r in experience.rollouts.iter().filter(|_| iteration == 0) {
                assert_eq!(bits(&r.logprobs), bits(&r.ref_logprobs), "{dtype}: reference");
            }
            let stats = trainer.train_rlhf(&mut ws, &experience, &[]).unwrap();
            assert_eq!(stats.first_ratio_deviation, 0.0, "{dtype}");
            assert!(stats.approx_kl > 0.0 && stats.skipped.is_empty(), "{dtype} {stats:?}");
        }
        assert_eq!(ws.misfits(), 0);
    }
}

#[test]
fn the_answer_does_not_depend_on_its_batch() {
    for dtype in [DType::F32, DType::Bf16] {
        for family in ALL_FAMILIES {
            let mut ws = Workspace::new(device(), usize::MAX).unwrap();
            let mut engine = Engine::frozen(model(family, Head::Lm, dtype, false, None, 3));
            let prompts = prompts(4, 6);
            let prompts: Vec<&[i32]> = prompts.iter().map(Vec::as_slice).collect();
            let sampling = ppo_config(1.0).sampling;
            let ids: Vec<u64> = (100..106).collect();
            let all = engine.generate(&mut ws, &prompts, &ids, &sampling, &mut |_, _| {}).unwrap();
            for i in [0, 3, 5] {
                let alone = engine
                    .generate(&mut ws, &prompts[i..=i], &ids[i..=i], &sampling, &mut |_, _| {})
                    .unwrap();
                assert_eq!(alone[0], all[i], "{family} {dtype} row {i}");
            }
            // The whole batch again, in another order.
            let reversed: Vec<&[i32]> = prompts.iter().rev().copied().collect();
            let ids: Vec<u64> = ids.into_iter().rev().collect();
            let back =
                engine.generate(&mut ws, &reversed, &ids, &sampling, &mut |_, _| {}).unwrap();
            assert!(back.iter().rev().eq(&all), "{family} {dtype}");
        }
    }
}

fn bits(xs: &[f32]) -> Vec<u32> {
    xs.iter().map(|x| x.to_bits()).collect()
}

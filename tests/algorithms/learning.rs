//! PPO learns: with a rule for a reward, the mean reward rises.

use crate::common::*;
use crate::setup::*;
use duplex::algo::{
    Advantage, KlPenalty, Method, OnlineConfig, OnlineModels, OnlineTrainer, Reference,
};
use duplex::base::DType;
use duplex::engine::Engine;
use duplex::model::{Head, LoadOptions, Model};
use duplex::rollout::Sampling;
use duplex::tape::ActivationCheckpointing;

fn learn(family: &str, seed: u64, with_lora: bool) -> (f32, f32) {
    let mut ws = workspace();
    let lora = lora(family);
    let random = |head, train| {
        let options = LoadOptions { train, seed, ..LoadOptions::frozen(head, DType::F32) };
        Model::random(&config(family), &options.on(device())).unwrap()
    };
    // With a frozen head adapters can do something only where its rows are of some length.
    let actor = match with_lora {
        true => model(family, Head::Lm, DType::F32, true, Some(&lora), seed),
        false => random(Head::Lm, true),
    };
    let engines = OnlineModels {
        actor: Engine::trained(
            actor,
            adamw(if with_lora { 2e-2 } else { 5e-3 }),
            ActivationCheckpointing::None,
        )
        .unwrap(),
        reference: match with_lora {
            true => Reference::Adapters,
            false => Reference::model(Engine::frozen(random(Head::Lm, false))),
        },
        critic: Some(
            Engine::trained(random(Head::Score, true), adamw(5e-3), ActivationCheckpointing::None)
                .unwrap(),
        ),
        reward: rule(Likes(23)),
    };
    let config = OnlineConfig {
        sampling: Sampling {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_new_tokens: 0,
            max_new_tokens: 8,
            eos: vec![1],
            seed,
        },
        method: Method {
            kl: Some(KlPenalty { coef: 0.02, adaptive: None }),
            advantage: Advantage::Gae { gamma: 1.0, lambda: 0.95 },
            epochs: 2,
            ..method()
        },
        clip_reward_value: 5.0,
        missing_eos_penalty: 0.0,
        minibatch: 16,
        micro_batch_tokens: 2000,
        ..ppo_config()
    };
    let mut trainer = OnlineTrainer::new(engines, config).unwrap();
    let mut rewards = vec![];
    for i in 0..30 {
        let rows: Vec<Vec<i32>> = prompts(seed * 1000 + i, 32)
            .into_iter()
            .map(|p| p[..p.len().min(6)].to_vec())
            .collect();
        let experience = experience(&mut trainer, &mut ws, &rows);
        rewards.push(experience.rollouts.iter().map(|r| r.score).sum::<f32>() / 32.0);
        let stats = trainer.train_rlhf(&mut ws, &experience, &[]).unwrap();
        assert!(stats.first_ratio_deviation == 0.0 && stats.skipped.is_empty());
    }
    let mean = |x: &[f32]| x.iter().sum::<f32>() / x.len() as f32;
    (mean(&rewards[..3]), mean(&rewards[27..]))
}

#[test]
fn the_reward_rises() {
    for (family, seed, with_lora) in [("gpt2", 1, false), ("llama", 2, false), ("opt", 3, true)] {
        let (first, last) = learn(family, seed, with_lora);
        assert!(first < 0.5 && last > first + 0.8, "{family} {first} {last}");
    }
}

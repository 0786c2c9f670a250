//! Several ranks do what one does: the same losses, up to the order of sums, and on all of them the same weights, bit
//! for bit.

use crate::common::device::device;
use crate::common::*;
use crate::pairs::pairs;
use crate::setup::*;
use crate::sft::examples;
use duplex::base::{DType, Result};
use duplex::comm::run_ranks;
use duplex::data::{PairExample, SftExample};
use duplex::device::Device;
use duplex::engine::Engine;
use duplex::model::{Head, LoadOptions};
use duplex::pool::{ParamId, Partition, Zero};
use duplex::rlhf::{
    PpoConfig, PpoTrainer, RewardConfig, RewardLoss, RewardSource, RewardTrainer, SftConfig,
    SftTrainer,
};
use duplex::tape::Keep;
use duplex::train::{AdamWConfig, AdamWState};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// What a rank tells of a run: numbers that are everybody's, and the weights.
type Told = (Vec<f64>, Vec<Vec<f32>>);

/// How ranks share the work: the stage of ZeRO, and the ranks of tensor parallelism.
#[derive(Clone, Copy, Debug)]
struct How {
    ranks: usize,
    stage: Zero,
    tensor: usize,
}

/// Every stage at each number of ranks.
fn stages(ranks: &[usize]) -> Vec<How> {
    let all = |&ranks: &usize| Zero::ALL.map(|stage| How { ranks, stage, tensor: 1 });
    ranks.iter().flat_map(all).collect()
}

/// Runs `body` on one rank and in each of the ways given, and compares.
fn same_as_one(what: &str, ways: &[How], body: impl Fn(&Partition) -> Result<Told> + Sync) {
    let (one, _) = body(&Partition::alone()).unwrap();
    // The kernels' sums have other orders for other numbers of rows, and AdamW's first steps are of signs.
    let near = if device() == Device::Cpu { 1e-5 } else { 1e-4 };
    for how in ways {
        let all =
            run_ranks(how.ranks, SOON, |comm| body(&Partition::new(comm, how.stage, how.tensor)?));
        let all = all.unwrap();
        for (r, (numbers, weights)) in all.iter().enumerate() {
            assert_eq!(numbers, &all[0].0, "{what}: rank {r}, {how:?}");
            assert!(*weights == all[0].1, "{what}: weights of rank {r}, {how:?}");
        }
        assert_eq!(one.len(), all[0].0.len());
        for (i, (a, b)) in one.iter().zip(&all[0].0).enumerate() {
            assert!((a - b).abs() <= near * a.abs().max(1.0), "{what}: {how:?}, {i}: {a}, {b}");
        }
    }
}

/// A trained model of `partition`.
fn engine(
    family: &str,
    head: Head,
    dtype: DType,
    config: AdamWConfig,
    partition: &Partition,
) -> Result<Engine> {
    let options = LoadOptions {
        train: true,
        seed: 5,
        grads: config.state.grads(),
        partition: partition.clone(),
        ..LoadOptions::frozen(head, dtype).on(device())
    };
    Engine::trained(model_as(family, &options), config, Keep::All)
}

fn sft(
    family: &str,
    dtype: DType,
    config: AdamWConfig,
    steps: u64,
    partition: &Partition,
) -> Result<Told> {
    let mut ws = workspace();
    let step = SftConfig { step: step_config(60), loss_on_prompt: false };
    let mut trainer = SftTrainer::new(engine(family, Head::Lm, dtype, config, partition)?, step);
    trainer.engine.enable_ema(&mut ws, 0.9)?;
    let mut numbers = vec![];
    for step in 0..steps {
        // As few rows as ranks, and fewer.
        let examples = examples(step, 1 + step as usize * 3 % 8);
        let rows: Vec<&SftExample> = examples.iter().collect();
        let stats = trainer.train(&mut ws, &rows)?;
        assert_eq!(stats.tokens, examples.iter().map(|e| e.ids.len()).sum::<usize>());
        numbers.extend([stats.loss, stats.grad_norm, trainer.evaluate(&mut ws, &rows)?]);
    }
    let model = &trainer.engine.model;
    let mut all = weights(model);
    let ema = trainer.engine.ema().expect("enabled");
    for id in 0..model.store.params().len() {
        all.extend(ema.read(model, ParamId(id))?);
    }
    Ok((numbers.into_iter().map(f64::from).collect(), all))
}

#[test]
fn supervised_finetuning_on_several_ranks() {
    for family in FAMILIES {
        same_as_one(family, &stages(&[1, 2, 3, 4]), |p| {
            sft(family, DType::F32, adamw(1e-3), 20, p)
        });
    }
    for family in ALL_FAMILIES {
        same_as_one(family, &stages(&[2]), |p| sft(family, DType::F32, adamw(1e-3), 4, p));
    }
}

/// Alike on all ranks and at every stage, though not near those of one: a rounding may go either way.
#[test]
fn bf16_on_several_ranks() {
    for state in [AdamWState::Full, AdamWState::Compact] {
        let config = AdamWConfig { state, ..adamw(1e-3) };
        let mut first = None;
        for stage in Zero::ALL {
            let run = |comm| {
                let partition = Partition::new(comm, stage, 1)?;
                sft("llama", DType::Bf16, config.clone(), 5, &partition)
            };
            for told in run_ranks(3, SOON, run).unwrap() {
                let losses = told.0.clone();
                let expected: &Vec<f64> = first.get_or_insert(losses);
                let near = |(a, b): (&f64, &f64)| (a - b).abs() < 2e-2 * b.abs();
                assert!(
                    told.0.iter().zip(expected).all(near),
                    "{stage}: {:?} {expected:?}",
                    told.0
                );
            }
        }
    }
}

#[test]
fn the_reward_model_on_several_ranks() {
    for loss in [RewardLoss::End, RewardLoss::TokenWise] {
        same_as_one("reward", &stages(&[2, 3, 4]), |p| {
            let mut ws = workspace();
            let config = RewardConfig { step: step_config(90), loss };
            let engine = engine("opt", Head::Score, DType::F32, adamw(1e-4), p)?;
            let mut trainer = RewardTrainer::new(engine, config);
            let mut numbers = vec![];
            for step in 0..10 {
                let pairs = pairs(step, 2 + step as usize % 5);
                let rows: Vec<&PairExample> = pairs.iter().collect();
                let (stats, eval) =
                    (trainer.train(&mut ws, &rows)?, trainer.evaluate(&mut ws, &rows)?);
                for s in [stats, eval] {
                    numbers.extend([s.loss, s.accuracy, s.margin, s.grad_norm, s.tokens as f32]);
                }
            }
            Ok((numbers.into_iter().map(f64::from).collect(), weights(&trainer.engine.model)))
        });
    }
}

fn ppo(family: &str, count: usize, partition: &Partition) -> Result<Told> {
    let mut ws = workspace();
    // Only the actor generates.
    let others = Partition::new(partition.comm.clone(), partition.stage, 1)?;
    let mut engines = engines_among(family, DType::F32, adamw(1e-3), [partition, &others]);
    let options = LoadOptions {
        seed: 7,
        partition: others,
        ..LoadOptions::frozen(Head::Score, DType::F32).on(device())
    };
    engines.reward = RewardSource::Model(Box::new(Engine::frozen(model_as(family, &options))));
    let config = PpoConfig {
        minibatch: 3,
        ppo_epochs: 2,
        unsup_coef: 0.5,
        entropy_coef: 0.01,
        reward_scaling: true,
        ..ppo_config()
    };
    let mut trainer = PpoTrainer::new(engines, config)?;
    let mut numbers = vec![];
    for i in 0..5 {
        let asked = prompts(i, count);
        let asked: Vec<&[i32]> = asked.iter().map(Vec::as_slice).collect();
        let experience = trainer.generate_experience(&mut ws, &asked)?;
        for r in &experience.rollouts {
            numbers.extend([r.score, r.kl(), r.ids.len() as f32, r.advantages[0], r.values[0]]);
        }
        let stats = trainer.train_rlhf(&mut ws, &experience, &asked[..count / 2])?;
        assert_eq!(stats.first_ratio_deviation, 0.0);
        numbers.extend([stats.policy_loss, stats.value_loss, stats.entropy, stats.approx_kl]);
        numbers.extend([stats.clip_fraction, stats.actor_grad_norm, stats.critic_grad_norm]);
        numbers.extend(stats.unsup_loss);
    }
    let mut all = weights(&trainer.engines.actor.model);
    all.extend(weights(&trainer.engines.critic.model));
    Ok((numbers.into_iter().map(f64::from).collect(), all))
}

#[test]
fn ppo_on_several_ranks() {
    for family in FAMILIES {
        same_as_one(family, &stages(&[2, 3, 4]), |p| ppo(family, 7, p));
    }
    // Fewer prompts than ranks.
    same_as_one("few", &stages(&[4]), |p| ppo("llama", 2, p));
    for family in ALL_FAMILIES {
        same_as_one(family, &stages(&[2]), |p| ppo(family, 3, p));
    }
}

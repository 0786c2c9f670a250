//! Several ranks do what one does: the same losses, up to the order of sums, and on all of them the same weights, bit
//! for bit.

use crate::common::device::device;
use crate::common::*;
use crate::pairs::pairs;
use crate::setup::*;
use crate::sft::examples;
use duplex::base::{DType, Result};
use duplex::comm::{Comm, run_ranks};
use duplex::data::{PairExample, SftExample};
use duplex::device::Device;
use duplex::engine::Engine;
use duplex::model::{Head, Model};
use duplex::rlhf::{
    PpoConfig, PpoEngines, PpoTrainer, RewardConfig, RewardLoss, RewardTrainer, SftConfig,
    SftTrainer,
};
use duplex::tape::Keep;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// What a rank tells of a run: numbers that are everybody's, and the weights.
type Told = (Vec<f64>, Vec<Vec<f32>>);

/// Runs `body` on one rank and on each number of `ranks`, and compares.
fn same_as_one(what: &str, ranks: &[usize], body: impl Fn(Comm) -> Result<Told> + Sync) {
    let (one, _) = body(Comm::alone()).unwrap();
    // The kernels' sums have other orders for other numbers of rows, and AdamW's first steps are of signs.
    let near = if device() == Device::Cpu { 1e-5 } else { 1e-4 };
    for &n in ranks {
        let all = run_ranks(n, SOON, &body).unwrap();
        for (r, (numbers, weights)) in all.iter().enumerate() {
            assert_eq!(numbers, &all[0].0, "{what}: rank {r} of {n}");
            assert!(*weights == all[0].1, "{what}: weights of rank {r} of {n}");
        }
        assert_eq!(one.len(), all[0].0.len());
        for (i, (a, b)) in one.iter().zip(&all[0].0).enumerate() {
            assert!((a - b).abs() <= near * a.abs().max(1.0), "{what}: {n} ranks, {i}: {a}, {b}");
        }
    }
}

fn engine(family: &str, head: Head, dtype: DType, rate: f32, comm: &Comm) -> Result<Engine> {
    let model: Model = model(family, head, dtype, true, None, 5);
    Engine::trained(model, adamw(rate), Keep::All)?.with_comm(comm.clone())
}

fn sft(family: &str, dtype: DType, steps: u64, comm: &Comm) -> Result<Told> {
    let mut ws = workspace();
    let config = SftConfig { step: step_config(60), loss_on_prompt: false };
    let mut trainer = SftTrainer::new(engine(family, Head::Lm, dtype, 1e-3, comm)?, config);
    let mut numbers = vec![];
    for step in 0..steps {
        // As few rows as ranks, and fewer.
        let examples = examples(step, 1 + step as usize * 3 % 8);
        let rows: Vec<&SftExample> = examples.iter().collect();
        let stats = trainer.train(&mut ws, &rows)?;
        assert_eq!(stats.tokens, examples.iter().map(|e| e.ids.len()).sum::<usize>());
        numbers.extend([stats.loss, stats.grad_norm, trainer.evaluate(&mut ws, &rows)?]);
    }
    Ok((numbers.into_iter().map(f64::from).collect(), weights(&trainer.engine.model)))
}

#[test]
fn supervised_finetuning_on_several_ranks() {
    for family in FAMILIES {
        same_as_one(family, &[1, 2, 3, 4], |comm| sft(family, DType::F32, 20, &comm));
    }
    for family in ALL_FAMILIES {
        same_as_one(family, &[2], |comm| sft(family, DType::F32, 4, &comm));
    }
    // Alike on all ranks, though not near those of one: a rounding may go either way.
    let all = run_ranks(3, SOON, |comm| sft("llama", DType::Bf16, 5, &comm)).unwrap();
    assert!(all.iter().all(|told| *told == all[0]));
}

#[test]
fn the_reward_model_on_several_ranks() {
    for loss in [RewardLoss::End, RewardLoss::TokenWise] {
        same_as_one("reward", &[2, 3, 4], |comm| {
            let mut ws = workspace();
            let config = RewardConfig { step: step_config(90), loss };
            let mut trainer =
                RewardTrainer::new(engine("opt", Head::Score, DType::F32, 1e-4, &comm)?, config);
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

fn ppo(family: &str, count: usize, comm: &Comm) -> Result<Told> {
    let mut ws = workspace();
    let PpoEngines { actor, reference, critic, reward } = engines(family, 1e-3);
    let join = |engine: Engine| engine.with_comm(comm.clone());
    let reference = reference.map(join).transpose()?;
    let engines = PpoEngines { actor: join(actor)?, reference, critic: join(critic)?, reward };
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
        same_as_one(family, &[2, 3, 4], |comm| ppo(family, 7, &comm));
    }
    // Fewer prompts than ranks.
    same_as_one("few", &[4], |comm| ppo("llama", 2, &comm));
    for family in ALL_FAMILIES {
        same_as_one(family, &[2], |comm| ppo(family, 3, &comm));
    }
}

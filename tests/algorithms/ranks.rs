//! Several ranks do what one does: the same losses, up to the order of sums, and on all of them the
//! same weights, bit for bit.

use crate::common::device::device;
use crate::common::*;
use crate::pairs::pairs;
use crate::setup::*;
use crate::sft::examples;
use duplex::algo::{
    Advantage, Answered, Method, OnlineConfig, OnlineModels, OnlineTrainer, PolicyLoss, RewardLoss,
    RewardRule, RewardScaling,
};
use duplex::base::{DType, Result};
use duplex::comm::run_ranks;
use duplex::data::{PairExample, SftExample};
use duplex::device::Device;
use duplex::engine::Engine;
use duplex::model::LoraConfig;
use duplex::model::{Head, LoadOptions};
use duplex::pool::{Param, ParamId, Partition, Zero};
use duplex::rollout::Sampling;
use duplex::tape::ActivationCheckpointing;
use duplex::train::{AdamWConfig, AdamWState};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// The result of a run on one rank: numbers that all ranks share, and the weights.
type Told = (Vec<f64>, Vec<Vec<f32>>);

/// How ranks share the work: the stage of ZeRO, and the ranks of tensor parallelism.
#[derive(Clone, Copy, Debug)]
struct How {
    ranks: usize,
    stage: Zero,
    tensor: usize,
}

/// The cases on the CPU, and the few that there is time for on a device that is emulated.
fn cases<T: Clone>(all: &[T], few: &[T]) -> Vec<T> {
    if device() == Device::Cpu { all.to_vec() } else { few.to_vec() }
}

/// Every stage at each number of ranks.
fn stages(ranks: &[usize]) -> Vec<How> {
    let all = |&ranks: &usize| Zero::ALL.map(|stage| How { ranks, stage, tensor: 1 });
    cases(&ranks.iter().flat_map(all).collect::<Vec<_>>(), &[all(&2)[2], all(&2)[3]])
}

/// Weights shared out among `ranks`, of which `tensor` compute together.
fn tensor(ways: &[(usize, usize)]) -> Vec<How> {
    let how = |&(ranks, tensor): &(usize, usize)| How { ranks, stage: Zero::Weights, tensor };
    ways.iter().take(cases(&[ways.len()], &[1])[0]).map(how).collect()
}

/// Runs `body` on one rank and in each of the ways given, and compares.
fn same_as_one(what: &str, ways: &[How], body: impl Fn(&Partition) -> Result<Told> + Sync) {
    let (one, _) = body(&Partition::alone()).unwrap();
    // The kernels' sums have other orders for other numbers of rows, and AdamW's first steps are of
    // signs.
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
    Engine::trained(model_as(family, &options), config, ActivationCheckpointing::None)
}

fn sft(
    family: &str,
    dtype: DType,
    config: AdamWConfig,
    steps: u64,
    partition: &Partition,
) -> Result<Told> {
    let mut ws = workspace();
    let engine = engine(family, Head::Lm, dtype, config, partition)?;
    let mut trainer = sft_trainer(engine, step_config(60), false);
    trainer.engine.enable_ema(&mut ws, 0.9)?;
    let mut numbers = vec![];
    for step in 0..steps {
        // As few rows as ranks, and fewer.
        let examples = examples(step, 1 + step as usize * 3 % 8);
        let rows: Vec<&SftExample> = examples.iter().collect();
        let stats = trainer.train(&mut ws, &rows)?;
        assert_eq!(stats.tokens, examples.iter().map(|e| e.ids.len()).sum::<usize>());
        numbers.extend([stats.loss, stats.grad_norm, trainer.evaluate(&mut ws, &rows)?.loss]);
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

#[test]
fn weights_cut_for_tensor_parallelism_are_trained_alike() {
    let ways = tensor(&[(2, 2), (3, 3), (4, 2), (4, 4)]);
    for family in cases(&ALL_FAMILIES, &["llama", "bloom"]) {
        same_as_one(family, &ways, |p| sft(family, DType::F32, adamw(1e-3), 3, p));
    }
}

#[test]
fn adapters_cut_for_tensor_parallelism_are_trained_alike() {
    for family in cases(&ALL_FAMILIES, &["llama"]) {
        same_as_one(family, &tensor(&[(2, 2), (4, 4)]), |p| {
            let mut ws = workspace();
            let lora = LoraConfig { dropout: 0.2, ..lora(family) };
            let options = LoadOptions {
                train: true,
                lora: Some(lora),
                seed: 5,
                partition: p.clone(),
                ..LoadOptions::frozen(Head::Lm, DType::F32).on(device())
            };
            let engine = Engine::trained(
                model_as(family, &options),
                adamw(1e-2),
                ActivationCheckpointing::None,
            )?;
            let mut trainer = sft_trainer(engine, step_config(60), false);
            let mut numbers = vec![];
            for step in 0..4 {
                let examples = examples(step, 5);
                let rows: Vec<&SftExample> = examples.iter().collect();
                let stats = trainer.train(&mut ws, &rows)?;
                numbers.extend([stats.loss, stats.grad_norm].map(f64::from));
            }
            Ok((numbers, weights(&trainer.engine.model)))
        });
    }
}

/// On the CPU the state is there anyway; on another device steps of the host must be those of its
/// kernels.
#[test]
fn steps_of_the_host_are_those_of_the_device() {
    for state in [AdamWState::Full, AdamWState::Compact] {
        let config = AdamWConfig { state, ..adamw(1e-3) };
        let alone = Partition::alone();
        let run = |offload| {
            let config = AdamWConfig { offload, ..config.clone() };
            sft("llama", DType::Bf16, config, 3, &alone).unwrap()
        };
        let (here, there) = (run(false), run(true));
        let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-3 * b.abs();
        assert!(here.0.iter().zip(&there.0).all(near), "{:?} {:?}", here.0, there.0);
        // A weight may be rounded otherwise, by one part in 256.
        let close = |(a, b): &(&f32, &f32)| (*a - *b).abs() <= 0.01 * b.abs().max(0.01);
        let pairs = || here.1.iter().flatten().zip(there.1.iter().flatten());
        assert!(pairs().filter(|p| !close(p)).count() * 1000 < pairs().count());
    }
}

/// Alike on all ranks and at every stage, though not near those of one: a rounding may go either
/// way.
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
    for loss in cases(&[RewardLoss::End, RewardLoss::TokenWise], &[RewardLoss::End]) {
        same_as_one("reward", &stages(&[2, 3, 4]), |p| {
            let mut ws = workspace();
            let engine = engine("opt", Head::Score, DType::F32, adamw(1e-4), p)?;
            let mut trainer = reward_trainer(engine, step_config(90), loss);
            let mut numbers = vec![];
            for step in 0..cases(&[10], &[3])[0] {
                let pairs = pairs(step, 2 + step as usize % 5);
                let rows: Vec<&PairExample> = pairs.iter().collect();
                let (stats, eval) =
                    (trainer.train(&mut ws, &rows)?, trainer.evaluate(&mut ws, &rows)?);
                for s in [stats, eval] {
                    numbers.extend([s.loss, s.grad_norm, s.tokens as f32].map(f64::from));
                    numbers.extend(["accuracy", "margin"].map(|name| s.get(name)));
                }
            }
            Ok((numbers, weights(&trainer.engine.model)))
        });
    }
}

fn ppo(family: &str, count: usize, partition: &Partition) -> Result<Told> {
    let mut ws = workspace();
    // Only the actor generates.
    let others = Partition::new(partition.comm.clone(), partition.stage, 1)?;
    let mut engines = engines_among(family, DType::F32, adamw(2e-4), [partition, &others]);
    let options = LoadOptions {
        seed: 7,
        partition: others,
        ..LoadOptions::frozen(Head::Score, DType::F32).on(device())
    };
    engines.reward = model_reward(Engine::frozen(model_as(family, &options)));
    let config = OnlineConfig {
        minibatch: 3,
        method: Method { epochs: 2, ..method() },
        unsup_coef: 0.5,
        entropy_coef: 0.01,
        reward_scaling: RewardScaling::Running,
        ..ppo_config()
    };
    let mut trainer = OnlineTrainer::new(engines, config)?;
    let mut numbers = vec![];
    for i in 0..cases(&[5], &[2])[0] {
        let rows = prompts(i, count);
        let experience = trainer.generate_experience(&mut ws, &refs(&asked(&rows)))?;
        let texts: Vec<&[i32]> = rows.iter().map(Vec::as_slice).collect();
        for r in &experience.rollouts {
            numbers.extend([r.score, r.kl(), r.ids.len() as f32, r.advantages[0], r.values[0]]);
        }
        let stats = trainer.train_rlhf(&mut ws, &experience, &texts[..count / 2])?;
        assert_eq!(stats.first_ratio_deviation, 0.0);
        numbers.extend([stats.policy_loss, stats.value_loss, stats.entropy, stats.approx_kl]);
        numbers.extend([stats.clip_fraction, stats.actor_grad_norm, stats.critic_grad_norm]);
        numbers.extend(stats.ptx_loss);
    }
    let mut all = weights(&trainer.models.actor.model);
    all.extend(weights(&critic(&trainer.models).model));
    Ok((numbers.into_iter().map(f64::from).collect(), all))
}

#[test]
fn ppo_on_several_ranks() {
    for family in cases(&FAMILIES, &["llama"]) {
        same_as_one(family, &stages(&[2, 3, 4]), |p| ppo(family, 7, p));
    }
    // Fewer prompts than ranks.
    same_as_one("few", &[stages(&[4]), tensor(&[(4, 2)])].concat(), |p| ppo("llama", 2, p));
    for family in cases(&ALL_FAMILIES, &[]) {
        same_as_one(family, &stages(&[2]), |p| ppo(family, 3, p));
    }
}

/// Judges about two answers in three.
struct Some2Of3;

impl RewardRule for Some2Of3 {
    fn name(&self) -> &str {
        "some"
    }
    fn score(&self, answers: &[Answered<'_>]) -> Result<Vec<Option<f32>>> {
        let sum = |a: &Answered<'_>| tokens(a.answer).iter().sum::<i32>();
        let score = |a| (sum(a) % 3 > 0).then(|| noise(&tokens(a.answer)));
        Ok(answers.iter().map(score).collect())
    }
}

/// Without a critic, two completions of each prompt, of which some are not judged.
fn critic_free(family: &str, count: usize, partition: &Partition) -> Result<Told> {
    let mut ws = workspace();
    let others = Partition::new(partition.comm.clone(), partition.stage, 1)?;
    let models = engines_among(family, DType::F32, adamw(2e-4), [partition, &others]);
    let models = OnlineModels { critic: None, reward: rule(Some2Of3), ..models };
    let method = Method {
        num_generations: 3,
        advantage: Advantage::LeaveOneOut,
        policy_loss: PolicyLoss::Sequence { clip: 0.2 },
        epochs: 2,
        ..method()
    };
    let config = OnlineConfig { method, minibatch: 4, ..ppo_config() };
    let mut trainer = OnlineTrainer::new(models, config)?;
    let mut numbers = vec![];
    for i in 0..cases(&[4], &[2])[0] {
        let rows = prompts(i, count);
        let experience = trainer.generate_experience(&mut ws, &refs(&asked(&rows)))?;
        numbers.push(experience.unjudged as f32);
        for r in &experience.rollouts {
            numbers.extend([r.score, r.kl(), r.ids.len() as f32, r.advantages[0]]);
        }
        let stats = trainer.train_rlhf(&mut ws, &experience, &[])?;
        assert_eq!(stats.first_ratio_deviation, 0.0);
        numbers.extend([stats.policy_loss, stats.entropy, stats.approx_kl, stats.actor_grad_norm]);
    }
    let all = weights(&trainer.models.actor.model);
    Ok((numbers.into_iter().map(f64::from).collect(), all))
}

#[test]
fn learning_without_a_critic_on_several_ranks() {
    for family in cases(&FAMILIES, &["llama"]) {
        same_as_one(family, &stages(&[2, 3]), |p| critic_free(family, 5, p));
    }
    // Fewer completions than ranks.
    same_as_one("few", &stages(&[4]), |p| critic_free("llama", 1, p));
}

/// The ratio of the first minibatch is 1, the losses are those of one rank.
#[test]
fn ppo_with_tensor_parallel_generation() {
    for family in cases(&ALL_FAMILIES, &["llama"]) {
        same_as_one(family, &tensor(&[(2, 2), (3, 3), (4, 2), (4, 4)]), |p| ppo(family, 5, p));
    }
}

/// Beginning generation sends and copies only the parts of its block that a rank lacks; returning
/// to training sends nothing.
#[test]
fn the_switch_moves_what_a_rank_lacks_of_its_block_and_no_more() {
    for (ranks, tensor) in [(2, 2), (4, 4), (4, 2), (4, 1), (3, 3)] {
        run_ranks(ranks, SOON, |comm| {
            let partition = Partition::new(comm.clone(), Zero::Weights, tensor)?;
            let mut actor = engine("llama", Head::Lm, DType::Bf16, adamw(1e-3), &partition)?;
            let store = &mut actor.model.store;
            let held = store.bytes().0;
            let before = comm.sent();
            store.enter_tp()?;
            let (sent, gathered) = (comm.sent() - before, store.tp_bytes() as u64);
            store.exit_tp();
            assert_eq!(comm.sent() - before, sent, "nothing is sent to go back");
            // Of a block each rank has one part of `ranks / tensor`.
            let others = (ranks / tensor - 1) as u64;
            assert_eq!(sent, others * held as u64);
            assert_eq!(gathered, if others == 0 { 0 } else { (others + 1) * held as u64 });
            Ok(())
        })
        .unwrap();
    }
}

/// Weights, gradients and optimizer state of a rank are its part of those of one rank, and at most
/// 64 elements a bucket that are padding; where they are also cut into blocks, copies and padding
/// of the cut come in addition.
#[test]
fn a_rank_keeps_its_part_and_a_stated_constant() {
    let memory = |family: &str, partition: &Partition| {
        let engine = engine(family, Head::Lm, DType::F32, adamw(1e-3), partition).unwrap();
        let store = &engine.model.store;
        let of_cut =
            |p: &Param| p.slice_len() * partition.blocks - p.spec.shape.iter().product::<usize>();
        let more: usize = store.params().iter().map(of_cut).sum();
        let (buckets, params) = (store.buckets().len(), store.params().len());
        (engine.memory()[..3].iter().sum::<usize>(), [buckets, params], more)
    };
    // Weight, gradient, both moments.
    const BYTES: usize = 16;
    for family in ALL_FAMILIES {
        let (total, [buckets, params], _) = memory(family, &Partition::alone());
        for ranks in 2..=4 {
            for tensor in (1..=ranks).filter(|t| ranks % t == 0) {
                let run = |comm| {
                    let partition = Partition::new(comm, Zero::Weights, tensor)?;
                    Ok(memory(family, &partition))
                };
                for (kept, _, more) in run_ranks(ranks, SOON, run).unwrap() {
                    // A parameter begins at a multiple of 64 in each block.
                    let gaps = BYTES * 64 * if tensor > 1 { buckets + params } else { buckets };
                    let most = (total + BYTES * more) / ranks + gaps;
                    assert!(kept <= most, "{family}, {tensor} of {ranks}: {kept}, at most {most}");
                    assert!(kept >= total / ranks - gaps, "{family}: {kept} of {total}");
                }
            }
        }
    }
}

#[test]
fn tensor_parallel_generation_is_that_of_one_rank() {
    let sampling = Sampling { min_new_tokens: 12, ..Sampling::greedy(12, vec![0]) };
    for family in cases(&ALL_FAMILIES, &["opt_350m", "gemma2"]) {
        for (temperature, top_k) in cases(&[(0.0, 0), (0.8, 0), (1.1, 9)], &[(0.8, 0)]) {
            let sampling = Sampling { temperature, top_k, seed: 3, ..sampling.clone() };
            let generate = |partition: &Partition| {
                let mut ws = workspace();
                let mut actor = engine(family, Head::Lm, DType::F32, adamw(1e-3), partition)?;
                let asked = prompts(2, 5);
                let asked: Vec<&[i32]> = asked.iter().map(Vec::as_slice).collect();
                let numbers: Vec<u64> = (0..5).collect();
                actor.generate(&mut ws, &asked, &numbers, &sampling, &mut |_, _| {})
            };
            let one = generate(&Partition::alone()).unwrap();
            for ranks in cases(&[2, 3, 4], &[4]) {
                let run = |comm| generate(&Partition::new(comm, Zero::Weights, ranks)?);
                for answers in run_ranks(ranks, SOON, run).unwrap() {
                    for (a, b) in answers.iter().zip(&one) {
                        assert_eq!(a.tokens, b.tokens, "{family}, {ranks} ranks");
                        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5;
                        assert!(a.logprobs.iter().zip(&b.logprobs).all(near), "{family}");
                    }
                }
            }
        }
    }
}

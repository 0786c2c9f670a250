//! Learning without a critic: several completions of a prompt, each compared with the others.

use crate::common::*;
use crate::setup::*;
use duplex::algo::*;
use duplex::base::{DType, Result, Rng};
use duplex::data::PromptExample;
use duplex::engine::Engine;
use duplex::model::Head;
use duplex::tape::{ActivationCheckpointing, Workspace};
use std::sync::Arc;

fn leave_one_out(num_generations: usize) -> Method {
    Method {
        num_generations,
        kl: Some(KlPenalty { coef: 0.3, adaptive: None }),
        advantage: Advantage::LeaveOneOut,
        whiten_advantages: false,
        policy_loss: PolicyLoss::Sequence { clip: 0.25 },
        epochs: 1,
    }
}

fn config(method: Method) -> OnlineConfig {
    OnlineConfig { method, ..ppo_config() }
}

fn trainer(family: &str, learning_rate: f32, config: OnlineConfig) -> OnlineTrainer {
    let models = OnlineModels { critic: None, ..engines(family, learning_rate) };
    OnlineTrainer::new(models, config).unwrap()
}

/// The reward of a completion: clipped score, penalties for a missing end and for the KL.
fn reward(r: &Rollout, c: &OnlineConfig) -> f64 {
    let limit = f64::from(c.clip_reward_value);
    let missing = if r.finished { 0.0 } else { f64::from(c.missing_eos_penalty) };
    let kl: f64 = wide(&r.logprobs).iter().zip(wide(&r.ref_logprobs)).map(|(a, b)| a - b).sum();
    let coef = c.method.kl.map_or(0.0, |kl| f64::from(kl.coef));
    f64::from(r.score).clamp(-limit, limit) - missing - if coef > 0.0 { coef * kl } else { 0.0 }
}

#[test]
fn advantages_compare_with_the_other_completions_of_the_prompt() {
    for (family, number) in [("gpt2", 2), ("llama", 5)] {
        let mut ws = workspace();
        let config = config(leave_one_out(number));
        let mut trainer = trainer(family, 0.0, config.clone());
        let asked = prompts(15, 6);
        let experience = experience(&mut trainer, &mut ws, &asked);
        assert_eq!((experience.rollouts.len(), experience.unjudged), (6 * number, 0));
        for (i, group) in experience.rollouts.chunks(number).enumerate() {
            let rewards: Vec<f64> = group.iter().map(|r| reward(r, &config)).collect();
            let all: f64 = rewards.iter().sum();
            for (r, own) in group.iter().zip(&rewards) {
                assert_eq!((r.prompt, &r.ids[..r.prompt_len]), (i, &asked[i][..]));
                let expected = own - (all - own) / (number - 1) as f64;
                assert_eq!(r.advantages.len(), r.logprobs.len());
                r.advantages.iter().for_each(|a| close(f64::from(*a), expected, 1e-5));
                assert!(r.values.is_empty() && r.returns.is_empty());
            }
            assert!(group.iter().any(|r| r.ids != group[0].ids), "all completions are the same");
        }
    }
}

/// Policy loss over whole completions, and the clipped share of them.
fn naive(
    ws: &mut Workspace,
    actor: &Engine,
    c: &OnlineConfig,
    experience: &Experience,
) -> [f64; 2] {
    let PolicyLoss::Sequence { clip } = c.method.policy_loss else { panic!("not over sequences") };
    let (clip, n) = (f64::from(clip), experience.rollouts.len() as f64);
    let mut sums = [0f64; 2];
    for r in &experience.rollouts {
        let new = logprobs(ws, actor, &r.ids, r.prompt_len, c.sampling.temperature);
        let ratio = (new.iter().sum::<f64>() - wide(&r.logprobs).iter().sum::<f64>()).exp();
        let a = f64::from(r.advantages[0]);
        let (plain, held) = (-a * ratio, -a * ratio.clamp(1.0 - clip, 1.0 + clip));
        sums[0] += plain.max(held) / n;
        sums[1] += f64::from(u8::from(held > plain)) / n;
    }
    sums
}

/// An experience as if of another policy, so that ratios fall inside and outside the clip range.
fn foreign(trainer: &mut OnlineTrainer, ws: &mut Workspace, seed: u64, n: usize) -> Experience {
    let mut experience = experience(trainer, ws, &prompts(seed, n));
    let mut rng = Rng::new(seed, 8);
    for r in &mut experience.rollouts {
        r.logprobs.iter_mut().for_each(|l| *l += 0.25 * rng.normal());
    }
    experience
}

#[test]
fn loss_and_gradient_are_those_of_the_ratio_of_whole_completions() {
    for family in FAMILIES {
        let mut ws = workspace();
        let config = OnlineConfig { micro_batch_tokens: 90, ..config(leave_one_out(3)) };
        let mut trainer = trainer(family, 0.0, config.clone());
        let experience = foreign(&mut trainer, &mut ws, 21, 8);
        let stats = trainer.train_rlhf(&mut ws, &experience, &[]).unwrap();
        let actor = &trainer.models.actor;
        let [loss, clipped] = naive(&mut ws, actor, &config, &experience);
        close(f64::from(stats.policy_loss), loss, 1e-5);
        close(f64::from(stats.clip_fraction), clipped, 1e-5);
        assert!(clipped > 0.0 && clipped < 1.0, "{clipped}");
        close(f64::from(stats.actor_grad_norm), norm(&gradients(&actor.model)), 1e-4);
        let loss = || naive(&mut ws, actor, &config, &experience)[0];
        let share = slope_share(&actor.model, 3e-4, loss);
        assert!((share - 1.0).abs() < 0.01, "{family} {share}");
    }
}

#[test]
fn the_first_ratio_is_one_whatever_the_packing() {
    for dtype in [DType::F32, DType::Bf16] {
        for micro_batch_tokens in [1, 70, 10_000] {
            let mut ws = workspace();
            let models = engines_as("llama", dtype, adamw(1e-3));
            let models = OnlineModels { critic: None, ..models };
            let config = OnlineConfig { micro_batch_tokens, ..config(leave_one_out(3)) };
            let mut trainer = OnlineTrainer::new(models, config).unwrap();
            let experience = experience(&mut trainer, &mut ws, &prompts(31, 5));
            let stats = trainer.train_rlhf(&mut ws, &experience, &[]).unwrap();
            assert_eq!((stats.first_ratio_deviation, stats.first_approx_kl), (0.0, 0.0));
            assert!(stats.skipped.is_empty() && stats.actor_grad_norm > 0.0);
        }
    }
}

#[test]
fn without_a_penalty_there_is_no_reference() {
    let mut ws = workspace();
    let config = config(Method { kl: None, ..leave_one_out(2) });
    let models = engines("gpt2", 1e-2);
    let models = OnlineModels { critic: None, reference: Reference::None, ..models };
    let mut trainer = OnlineTrainer::new(models, config.clone()).unwrap();
    for _ in 0..2 {
        let experience = experience(&mut trainer, &mut ws, &prompts(41, 4));
        for group in experience.rollouts.chunks(2) {
            let [a, b] = [0, 1].map(|i| reward(&group[i], &config));
            close(f64::from(group[0].advantages[0]), a - b, 1e-5);
            assert!(group[0].ref_logprobs.is_empty() && group[0].kl() == 0.0);
        }
        let stats = trainer.train_rlhf(&mut ws, &experience, &[]).unwrap();
        assert_eq!(stats.first_ratio_deviation, 0.0);
        let metrics = trainer.metrics(&experience, &stats);
        assert!(metrics.iter().all(|m| !["kl", "kl_coef", "value_loss"].contains(&m.0)));
    }
}

/// Judges the completions whose prompt has a column that says so, and counts them.
struct Columns;

impl RewardRule for Columns {
    fn name(&self) -> &str {
        "columns"
    }
    fn asks_columns(&self) -> bool {
        true
    }
    fn score(&self, answers: &[Answered<'_>]) -> Result<Vec<Option<f32>>> {
        let score = |a: &Answered<'_>| Some(a.columns.get("worth")?.as_f64()? as f32);
        Ok(answers.iter().map(score).collect())
    }
}

#[test]
fn a_reward_sees_the_row_and_need_not_judge_it() {
    let mut ws = workspace();
    let models = engines("gpt2", 1e-2);
    let models = OnlineModels { critic: None, reward: rule(Columns), ..models };
    let mut trainer = OnlineTrainer::new(models, config(leave_one_out(2))).unwrap();
    let asked = |worth: &[Option<f64>]| -> Vec<PromptExample> {
        let row = |worth: &Option<f64>| {
            let columns = serde_json::json!({"worth": worth, "other": "text"});
            let columns = Arc::new(columns.as_object().unwrap().clone());
            PromptExample { columns, ..PromptExample::new(vec![5, 9, 7]) }
        };
        worth.iter().map(row).collect()
    };
    let rows = asked(&[Some(1.5), None, Some(-2.0)]);
    let experience = trainer.generate_experience(&mut ws, &refs(&rows)).unwrap();
    let judged: Vec<(usize, f32)> =
        experience.rollouts.iter().map(|r| (r.prompt, r.score)).collect();
    assert_eq!(judged, [(0, 1.5), (0, 1.5), (2, -2.0), (2, -2.0)]);
    assert_eq!(experience.unjudged, 2);
    let stats = trainer.train_rlhf(&mut ws, &experience, &[]).unwrap();
    let metrics = trainer.metrics(&experience, &stats);
    let unjudged = metrics.iter().find(|m| m.0 == "unjudged_rate").unwrap().1;
    close(unjudged, 2.0 / 6.0, 1e-9);

    // Where nothing is judged, nothing is learned, and it is told.
    let before = weights(&trainer.models.actor.model);
    let rows = asked(&[None, None]);
    let experience = trainer.generate_experience(&mut ws, &refs(&rows)).unwrap();
    assert_eq!((experience.rollouts.len(), experience.unjudged), (0, 4));
    let stats = trainer.train_rlhf(&mut ws, &experience, &[]).unwrap();
    assert!(stats.skipped[0].contains("judged no completion"), "{:?}", stats.skipped);
    assert!(before == weights(&trainer.models.actor.model));
    let told: Vec<_> = trainer.metrics(&experience, &stats).iter().map(|m| m.0).collect();
    assert_eq!(told, ["unjudged_rate", "kl_coef"]);

    // Where one completion of a prompt alone is judged, nothing is better than it.
    let rows = asked(&[Some(1.0)]);
    let config = config(Method { num_generations: 2, ..leave_one_out(2) });
    let models = OnlineModels { critic: None, reward: rule(First), ..engines("gpt2", 1e-2) };
    let mut trainer = OnlineTrainer::new(models, config).unwrap();
    let experience = trainer.generate_experience(&mut ws, &refs(&rows)).unwrap();
    assert_eq!((experience.rollouts.len(), experience.unjudged), (1, 1));
    assert!(experience.rollouts[0].advantages.iter().all(|a| *a == 0.0));
}

/// Judges the first completion of all only.
struct First;

impl RewardRule for First {
    fn name(&self) -> &str {
        "first"
    }
    fn score(&self, answers: &[Answered<'_>]) -> Result<Vec<Option<f32>>> {
        Ok((0..answers.len()).map(|i| (i == 0).then_some(2.0)).collect())
    }
}

/// (x - mean) / deviation over completions, however long each of them is.
#[test]
fn whitened_advantages_of_completions_have_mean_0_and_variance_1() {
    let mut ws = workspace();
    let method = Method { whiten_advantages: true, ..leave_one_out(3) };
    let mut trainer = trainer("llama", 0.0, config(method));
    let experience = foreign(&mut trainer, &mut ws, 61, 6);
    let stats = trainer.train_rlhf(&mut ws, &experience, &[]).unwrap();
    let all: Vec<f64> = experience.rollouts.iter().map(|r| f64::from(r.advantages[0])).collect();
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    let var = all.iter().map(|a| (a - mean).powi(2)).sum::<f64>() / all.len() as f64;
    let mut white = experience.clone();
    for r in &mut white.rollouts {
        r.advantages.iter_mut().for_each(|a| *a = ((f64::from(*a) - mean) / var.sqrt()) as f32);
    }
    let [loss, _] = naive(&mut ws, &trainer.models.actor, &trainer.config, &white);
    close(f64::from(stats.policy_loss), loss, 1e-4);
}

/// Gives too few scores.
struct Short;

impl RewardRule for Short {
    fn name(&self) -> &str {
        "short"
    }
    fn score(&self, _: &[Answered<'_>]) -> Result<Vec<Option<f32>>> {
        Ok(vec![Some(1.0)])
    }
}

#[test]
fn a_reward_that_gives_too_few_scores_is_an_error() {
    let mut ws = workspace();
    let models = OnlineModels { critic: None, reward: rule(Short), ..engines("gpt2", 0.0) };
    let mut trainer = OnlineTrainer::new(models, config(leave_one_out(2))).unwrap();
    let rows = [PromptExample::new(vec![5]), PromptExample::new(vec![6])];
    let e = trainer.generate_experience(&mut ws, &refs(&rows)).unwrap_err().to_string();
    assert!(e.contains("short gave 1 scores for 4 completions"), "{e}");
}

#[test]
fn the_reward_rises_without_a_critic() {
    let mut ws = workspace();
    let actor = duplex::model::Model::random(
        &crate::common::config("llama"),
        &duplex::model::LoadOptions {
            train: true,
            seed: 2,
            ..duplex::model::LoadOptions::frozen(Head::Lm, DType::F32).on(device())
        },
    );
    let models = OnlineModels {
        actor: Engine::trained(actor.unwrap(), adamw(5e-3), ActivationCheckpointing::None).unwrap(),
        reference: Reference::None,
        critic: None,
        reward: rule(Likes(23)),
    };
    let mut config = config(Method { kl: None, epochs: 2, ..leave_one_out(4) });
    config.sampling.max_new_tokens = 8;
    config.sampling.temperature = 1.0;
    config.sampling.eos = vec![1];
    config.sampling.min_new_tokens = 0;
    (config.clip_reward_value, config.missing_eos_penalty) = (5.0, 0.0);
    (config.minibatch, config.micro_batch_tokens) = (16, 2000);
    let mut trainer = OnlineTrainer::new(models, config).unwrap();
    let mut rewards = vec![];
    for i in 0..30 {
        let rows: Vec<Vec<i32>> =
            prompts(2000 + i, 8).into_iter().map(|p| p[..p.len().min(6)].to_vec()).collect();
        let experience = experience(&mut trainer, &mut ws, &rows);
        rewards.push(experience.rollouts.iter().map(|r| r.score).sum::<f32>() / 32.0);
        let stats = trainer.train_rlhf(&mut ws, &experience, &[]).unwrap();
        assert!(stats.first_ratio_deviation == 0.0 && stats.skipped.is_empty());
    }
    let mean = |x: &[f32]| x.iter().sum::<f32>() / x.len() as f32;
    let (first, last) = (mean(&rewards[..3]), mean(&rewards[27..]));
    assert!(first < 0.5 && last > first + 0.8, "{first} {last}");
}

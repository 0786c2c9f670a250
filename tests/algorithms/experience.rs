//! Results of `generate_experience`: log-probs, values, rewards, advantages, the KL coefficient.

use crate::common::*;
use crate::setup::*;
use duplex::algo::{
    Adaptive, Advantage, Answered, Experience, KlPenalty, Method, OnlineConfig, OnlineTrainer,
    Reference, RewardRule, RewardScaling, Rollout,
};
use duplex::base::{DType, Result};
use duplex::engine::Engine;
use duplex::model::Head;
use duplex::tape::{ActivationCheckpointing, Workspace};

/// Checks advantages and returns against their definition: A_t is the sum of (gamma lambda)^l
/// delta_{t+l}, with rewards made of KL, clipped score and penalty.
fn check_advantages(experience: &Experience, c: &OnlineConfig, kl_coef: f32, std: f64) {
    let Advantage::Gae { gamma, lambda } = c.method.advantage else { panic!("not GAE") };
    let (gamma, lam, kl_coef) = (f64::from(gamma), f64::from(lambda), f64::from(kl_coef));
    for r in &experience.rollouts {
        let n = r.logprobs.len();
        assert_eq!([r.ref_logprobs.len(), r.values.len(), r.ids.len() - r.prompt_len], [n; 3]);
        let v = |t: usize| r.values.get(t).map_or(0.0, |v| f64::from(*v));
        let reward = |t: usize| {
            let kl = f64::from(r.logprobs[t]) - f64::from(r.ref_logprobs[t]);
            let limit = f64::from(c.clip_reward_value);
            let score = (f64::from(r.score) / std).max(-limit).min(limit);
            let penalty = if r.finished { 0.0 } else { f64::from(c.missing_eos_penalty) };
            -kl_coef * kl + if t == n - 1 { score - penalty } else { 0.0 }
        };
        for t in 0..n {
            let delta = |k: usize| reward(k) + gamma * v(k + 1) - v(k);
            let a: f64 = (t..n).map(|k| (gamma * lam).powi((k - t) as i32) * delta(k)).sum();
            close(f64::from(r.advantages[t]), a, 1e-5);
            close(f64::from(r.returns[t]), a + v(t), 1e-5);
        }
    }
}

/// PPO with a KL coefficient that moves.
fn adapting(adaptive: Option<Adaptive>) -> OnlineConfig {
    let method = Method { kl: Some(KlPenalty { coef: 0.3, adaptive }), ..method() };
    OnlineConfig { method, ..ppo_config() }
}

fn coef(c: &OnlineConfig) -> f32 {
    c.method.kl.unwrap().coef
}

fn recompute(ws: &mut Workspace, trainer: &OnlineTrainer, experience: &Experience) {
    let temperature = trainer.config.sampling.temperature;
    let reference = trainer.models.reference.engine().unwrap();
    for r in &experience.rollouts {
        let ours = logprobs(ws, &trainer.models.actor, &r.ids, r.prompt_len, temperature);
        assert_eq!(wide(&r.logprobs), ours);
        assert_eq!(
            wide(&r.ref_logprobs),
            logprobs(ws, reference, &r.ids, r.prompt_len, temperature)
        );
        // The value before an answer token is that of the position before it.
        let values = scores(ws, critic(&trainer.models), &r.ids);
        assert_eq!(wide(&r.values), values[r.prompt_len - 1..r.ids.len() - 1]);
        let score = match trainer.models.reward.engine() {
            None => f64::from(noise(&r.ids[r.prompt_len..])),
            Some(m) => *scores(ws, m, &r.ids).last().unwrap(),
        };
        assert_eq!(f64::from(r.score), score);
        let kl: f64 =
            wide(&r.logprobs).iter().zip(&wide(&r.ref_logprobs)).map(|(a, b)| a - b).sum();
        close(f64::from(r.kl()), kl, 1e-5);
    }
}

#[test]
fn rewards_values_and_advantages_follow_their_definitions() {
    for (family, gamma, lam, clip, penalty) in
        [("gpt2", 0.97, 0.9, 2.5, 0.75), ("llama", 1.0, 1.0, 3.5, 0.0), ("opt", 0.8, 0.0, 0.3, 2.0)]
    {
        let mut ws = workspace();
        let mut config = ppo_config();
        config.method.advantage = Advantage::Gae { gamma, lambda: lam };
        (config.clip_reward_value, config.missing_eos_penalty) = (clip, penalty);
        let mut engines = engines(family, 0.0);
        if family == "opt" {
            let reward = model(family, Head::Score, DType::F32, false, None, 8);
            engines.reward = model_reward(Engine::frozen(reward));
        }
        let mut trainer = OnlineTrainer::new(engines, config.clone()).unwrap();
        let experience = experience(&mut trainer, &mut ws, &prompts(5, 16));
        let r = &experience.rollouts;
        assert!(r.iter().any(|r| r.finished) && r.iter().any(|r| !r.finished));
        assert!(r.iter().any(|r| r.score.abs() > clip) && r.iter().any(|r| r.kl().abs() > 0.1));
        recompute(&mut ws, &trainer, &experience);
        check_advantages(&experience, &config, coef(&config), 1.0);
        assert_eq!(trainer.kl_coef, coef(&config));
    }
}

#[test]
fn scores_are_scaled_by_the_running_deviation_of_all_scores() {
    let mut ws = workspace();
    let config = OnlineConfig {
        reward_scaling: RewardScaling::Running,
        clip_reward_value: 1.2,
        ..ppo_config()
    };
    let mut trainer = OnlineTrainer::new(engines("llama", 0.0), config.clone()).unwrap();
    let mut all: Vec<f64> = vec![];
    for i in 0..4 {
        // One answer alone has no deviation.
        let n = if i == 0 { 1 } else { 3 + i };
        let experience = experience(&mut trainer, &mut ws, &prompts(20 + i as u64, n));
        all.extend(experience.rollouts.iter().map(|r| f64::from(r.score)));
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        let squares = all.iter().map(|s| (s - mean).powi(2)).sum::<f64>();
        let std = if i == 0 { 1.0 } else { (squares / (all.len() - 1) as f64).sqrt() };
        check_advantages(&experience, &config, coef(&config), std);
    }
}

#[test]
fn the_kl_coefficient_follows_the_proportional_controller() {
    let measure = |adaptive: Option<Adaptive>| {
        let mut ws = workspace();
        let config = adapting(adaptive);
        let mut trainer = OnlineTrainer::new(engines("gpt2", 0.0), config.clone()).unwrap();
        let mut steps = vec![];
        for i in 0..3 {
            let before = trainer.kl_coef;
            let experience = experience(&mut trainer, &mut ws, &prompts(40 + i, 10));
            // The coefficient of the rewards is the one from before.
            check_advantages(&experience, &config, before, 1.0);
            let kl: f64 = experience
                .rollouts
                .iter()
                .flat_map(|r| r.logprobs.iter().zip(&r.ref_logprobs))
                .map(|(a, b)| f64::from(*a) - f64::from(*b))
                .sum();
            steps.push((kl / 10.0, f64::from(trainer.kl_coef) / f64::from(before)));
        }
        steps
    };
    let fixed = measure(None);
    assert!(fixed.iter().all(|(kl, factor)| *kl > 0.0 && *factor == 1.0));
    // Targets far below, far above, and close to the KL of the first answers.
    let horizon = 300.0;
    for target in [fixed[0].0 * 0.1, fixed[0].0 * 9.0, fixed[0].0 * 1.1] {
        let control = Some(Adaptive { target: target as f32, horizon });
        for (i, (kl, factor)) in measure(control).into_iter().enumerate() {
            let error = (kl / target - 1.0).clamp(-0.2, 0.2);
            close(factor, 1.0 + error * 10.0 / f64::from(horizon), 1e-6);
            let clipped = error.abs() == 0.2;
            assert!(clipped || target > fixed[0].0, "{i}");
        }
    }
}

/// However short the horizon and however often the KL is far from its target, the coefficient is
/// a number above 0 that the key could have.
#[test]
fn the_kl_coefficient_stays_usable() {
    for (target, factor, end) in [(1e-20, 1.2, 100.0), (1e4, 0.8, f32::MIN_POSITIVE)] {
        let control = Some(Adaptive { target, horizon: 1.0 });
        let mut ws = workspace();
        let mut trainer = OnlineTrainer::new(engines("gpt2", 1e-3), adapting(control)).unwrap();
        let before = trainer.kl_coef;
        experience(&mut trainer, &mut ws, &prompts(4, 3));
        close(f64::from(trainer.kl_coef / before), factor, 1e-6);
        trainer.kl_coef = end;
        experience(&mut trainer, &mut ws, &prompts(4, 3));
        assert_eq!(trainer.kl_coef, end);
    }
}

#[test]
fn answers_for_evaluation_repeat_and_change_nothing() {
    let mut ws = workspace();
    let mut rows = prompts(9, 5);
    rows.push(rows[0].clone());
    let asked = asked(&rows);
    let adaptive = adapting(Some(Adaptive { target: 1.0, horizon: 50.0 }));
    let config = OnlineConfig { reward_scaling: RewardScaling::Running, ..adaptive };
    let ids = |rs: &[Rollout]| rs.iter().map(|r| r.ids.clone()).collect::<Vec<_>>();
    let run = |ws: &mut Workspace, evaluate: bool| {
        let mut trainer = OnlineTrainer::new(engines("gpt2", 1e-3), config.clone()).unwrap();
        let (mut seen, mut answers) = (vec![], vec![]);
        for _ in 0..3 {
            if evaluate {
                answers.push(ids(&trainer.answer(ws, &refs(&asked)).unwrap()));
            }
            seen.push(ids(&experience(&mut trainer, ws, &rows).rollouts));
        }
        (seen, answers, trainer.kl_coef, trainer.reward_stats)
    };
    let (seen, _, kl_coef, stats) = run(&mut ws, false);
    let (again, answers, same_coef, same_stats) = run(&mut ws, true);
    assert_eq!((&seen, kl_coef, stats), (&again, same_coef, same_stats));
    assert!(answers.iter().all(|a| *a == answers[0]));
    // New draws in every iteration, and for equal prompts.
    assert!(seen[0] != seen[1] && seen[1] != seen[2] && answers[0] != seen[0]);
    assert!(seen[0][0] != seen[0][5]);
}

/// Answers with a score that is not a number.
struct Undefined;

impl RewardRule for Undefined {
    fn name(&self) -> &str {
        "undefined"
    }
    fn score(&self, answers: &[Answered<'_>]) -> Result<Vec<Option<f32>>> {
        Ok(vec![Some(f32::NAN); answers.len()])
    }
}

#[test]
fn settings_and_scores_without_meaning_are_refused() {
    let new = |change: &dyn Fn(&mut OnlineConfig)| {
        let mut config = ppo_config();
        change(&mut config);
        OnlineTrainer::new(engines("gpt2", 0.0), config)
    };
    let adaptive = |c: &mut OnlineConfig, target, horizon| {
        c.method.kl = Some(KlPenalty { coef: 0.3, adaptive: Some(Adaptive { target, horizon }) });
    };
    let bad: [&dyn Fn(&mut OnlineConfig); 8] = [
        &|c| c.sampling.max_new_tokens = 0,
        &|c| c.minibatch = 0,
        &|c| c.method.epochs = 0,
        &|c| c.method.num_generations = 0,
        // The critic has no use, and one completion has no others.
        &|c| {
            c.method = Method { num_generations: 2, advantage: Advantage::LeaveOneOut, ..c.method }
        },
        &|c| c.method.advantage = Advantage::LeaveOneOut,
        &|c| adaptive(c, 0.0, 100.0),
        &|c| adaptive(c, 1.0, f32::NAN),
    ];
    assert!(bad.iter().all(|b| new(b).is_err()));
    let mut ws = workspace();
    let mut trainer = new(&|_| ()).unwrap();
    assert!(trainer.generate_experience(&mut ws, &[]).is_err());
    for bad in [vec![vec![5], vec![]], vec![vec![5; 125]]] {
        assert!(trainer.generate_experience(&mut ws, &refs(&asked(&bad))).is_err());
    }
    trainer.models.reward = rule(Undefined);
    let error = trainer.generate_experience(&mut ws, &refs(&asked(&[vec![5]]))).unwrap_err();
    assert!(error.to_string().contains("NaN"), "{error}");
}

#[test]
fn with_lora_the_reference_is_the_untouched_base() {
    for family in FAMILIES {
        let mut ws = workspace();
        let mut engines = engines(family, 0.0);
        let actor = model(family, Head::Lm, DType::F32, true, Some(&lora(family)), 6);
        let base = model(family, Head::Lm, DType::F32, false, None, 6);
        base.store.copy_from(&actor.store).unwrap();
        let base = Engine::frozen(base);
        engines.actor = Engine::trained(actor, adamw(2e-2), ActivationCheckpointing::None).unwrap();
        engines.reference = Reference::Adapters;
        let mut trainer = OnlineTrainer::new(engines, ppo_config()).unwrap();
        let before = weights(&trainer.models.actor.model);
        let rows = prompts(31, 12);
        let mut kl = vec![];
        for _ in 0..4 {
            let experience = experience(&mut trainer, &mut ws, &rows);
            for r in &experience.rollouts {
                assert_eq!(
                    wide(&r.ref_logprobs),
                    logprobs(&mut ws, &base, &r.ids, r.prompt_len, 0.9),
                    "{family}"
                );
            }
            // exp(-d) - 1 + d >= 0 is an estimate of the KL divergence of less variance.
            let d = experience.rollouts.iter().flat_map(|r| {
                r.logprobs.iter().zip(&r.ref_logprobs).map(|(a, b)| f64::from(a - b))
            });
            kl.push(d.map(|d| (-d).exp_m1() + d).sum::<f64>());
            trainer.train_rlhf(&mut ws, &experience, &[]).unwrap();
        }
        assert!(kl[0] == 0.0 && kl[1..].iter().all(|k| *k > 1e-4), "{family} {kl:?}");
        let store = &trainer.models.actor.model.store;
        for (i, (was, is)) in before.iter().zip(weights(&trainer.models.actor.model)).enumerate() {
            let p = &store.params()[i].spec;
            let adapter = p.name.contains(".lora.");
            assert_eq!(adapter, p.trained, "{family} {}", p.name);
            assert_eq!(*was != is, adapter, "{family} {}", p.name);
        }
    }
}

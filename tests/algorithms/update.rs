//! Effects of `train_rlhf` on an experience: losses, gradients, number of steps, mixture, EMA.

use crate::common::*;
use crate::setup::*;
use duplex::algo::{
    Adaptive, Experience, KlPenalty, Method, OnlineConfig, OnlineModels, OnlineTrainer, PolicyLoss,
};
use duplex::base::{DType, Rng};
use duplex::engine::{Engine, LossOutput};
use duplex::model::{Head, LoraConfig};
use duplex::op::weighted_sum::{WeightedSum, weighted_sum};
use duplex::pool::ParamId;
use duplex::tape::{ActivationCheckpointing, Workspace};
use duplex::train::{AdamWConfig, Batch, Schedule, ScheduleKind};

/// An experience whose recorded log-probs and values are as if from other models, so that ratios
/// and values fall inside and outside of the clip ranges.
fn foreign(trainer: &mut OnlineTrainer, ws: &mut Workspace, seed: u64, n: usize) -> Experience {
    let mut experience = experience(trainer, ws, &prompts(seed, n));
    let mut rng = Rng::new(seed, 8);
    for r in &mut experience.rollouts {
        r.logprobs.iter_mut().for_each(|l| *l += 0.3 * rng.normal());
        r.values.iter_mut().for_each(|v| *v += 0.3 * rng.normal());
    }
    experience
}

/// Policy loss, value loss, entropy, KL estimate and clipped share over all tokens of `experience`.
fn naive(
    ws: &mut Workspace,
    engines: &OnlineModels,
    c: &OnlineConfig,
    experience: &Experience,
    white: &dyn Fn(f64) -> f64,
) -> [f64; 5] {
    let (mut sums, mut n) = ([0f64; 5], 0.0);
    let PolicyLoss::Token { clip } = c.method.policy_loss else { panic!("not over tokens") };
    let (clip, clip_value) = (f64::from(clip), f64::from(c.cliprange_value));
    for r in &experience.rollouts {
        let new = logprobs(ws, &engines.actor, &r.ids, r.prompt_len, c.sampling.temperature);
        let values = scores(ws, critic(engines), &r.ids);
        for (t, new) in new.iter().enumerate() {
            let ratio = (new - f64::from(r.logprobs[t])).exp();
            let a = white(f64::from(r.advantages[t]));
            let (plain, held) = (-a * ratio, -a * ratio.clamp(1.0 - clip, 1.0 + clip));
            let (v, old) = (values[r.prompt_len - 1 + t], f64::from(r.values[t]));
            let target = f64::from(r.returns[t]);
            let kept =
                if clip_value > 0.0 { v.clamp(old - clip_value, old + clip_value) } else { v };
            let before = &r.ids[..r.prompt_len + t];
            let p = distribution(ws, &engines.actor, before, c.sampling.temperature);
            sums[0] += plain.max(held);
            sums[1] += 0.5 * (v - target).powi(2).max((kept - target).powi(2));
            sums[2] -= p.iter().map(|l| l.exp() * l).sum::<f64>();
            sums[3] += ratio - 1.0 - ratio.ln();
            sums[4] += f64::from(u8::from(held > plain));
            n += 1.0;
        }
    }
    sums.map(|s| s / n)
}

/// (x - mean) / deviation over all answer tokens of the experience.
fn whitening(experience: &Experience) -> impl Fn(f64) -> f64 + use<> {
    let all: Vec<f64> = experience.rollouts.iter().flat_map(|r| wide(&r.advantages)).collect();
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    let var = all.iter().map(|a| (a - mean).powi(2)).sum::<f64>() / all.len() as f64;
    move |x| (x - mean) / var.sqrt()
}

#[test]
fn losses_are_the_clipped_formulas_over_all_answer_tokens() {
    for (family, whiten, clip_value) in [("gpt2", true, 0.15), ("llama", false, 0.0)] {
        let mut ws = workspace();
        let mut config = OnlineConfig { cliprange_value: clip_value, ..ppo_config() };
        config.method = Method { whiten_advantages: whiten, epochs: 3, ..method() };
        let mut trainer = OnlineTrainer::new(engines(family, 0.0), config.clone()).unwrap();
        let experience = foreign(&mut trainer, &mut ws, 51, 9);
        let stats = trainer.train_rlhf(&mut ws, &experience, &[]).unwrap();
        let white = whitening(&experience);
        let advantage = |x: f64| if whiten { white(x) } else { x };
        let [policy, value, entropy, kl, clipped] =
            naive(&mut ws, &trainer.models, &config, &experience, &advantage);
        close(f64::from(stats.policy_loss), policy, 1e-5);
        close(f64::from(stats.value_loss), value, 1e-5);
        close(f64::from(stats.entropy), entropy, 1e-5);
        close(f64::from(stats.approx_kl), kl, 1e-5);
        close(f64::from(stats.first_approx_kl), kl, 1e-5);
        close(f64::from(stats.clip_fraction), clipped, 1e-5);
        assert!(clipped > 0.05 && clipped < 0.95);
        // The same in minibatches of one answer: means of each, whitened over all of them.
        trainer.config.minibatch = 1;
        let stats = trainer.train_rlhf(&mut ws, &experience, &[]).unwrap();
        let mut mean = 0.0;
        for r in &experience.rollouts {
            let one = Experience { rollouts: vec![r.clone()], ..Experience::default() };
            mean += naive(&mut ws, &trainer.models, &config, &one, &advantage)[0] / 9.0;
        }
        close(f64::from(stats.policy_loss), mean, 1e-5);
    }
}

#[test]
fn clipping_sets_in_after_some_epochs() {
    let mut ws = workspace();
    let config =
        OnlineConfig { method: Method { epochs: 6, ..method() }, minibatch: 4, ..ppo_config() };
    let mut trainer = OnlineTrainer::new(engines("gpt2", 5e-3), config).unwrap();
    let experience = experience(&mut trainer, &mut ws, &prompts(13, 12));
    let stats = trainer.train_rlhf(&mut ws, &experience, &[]).unwrap();
    assert_eq!(stats.first_ratio_deviation, 0.0);
    assert!(stats.clip_fraction > 0.02 && stats.approx_kl > 1e-3, "{stats:?}");
}

/// The slope of the naive losses along the gradient is the gradient's length.
#[test]
fn gradients_are_those_of_the_formulas() {
    for family in FAMILIES {
        let mut ws = workspace();
        let mut config = OnlineConfig { entropy_coef: 0.1, ..ppo_config() };
        config.micro_batch_tokens = 90;
        let mut trainer = unshared(family, 0.0, config.clone());
        let experience = foreign(&mut trainer, &mut ws, 52, 6);
        trainer.train_rlhf(&mut ws, &experience, &[]).unwrap();
        let white = whitening(&experience);
        for of_critic in [false, true] {
            let pick = |e: &OnlineModels| {
                let m = if of_critic { &critic(e).model } else { &e.actor.model };
                (weights(m), gradients(m))
            };
            let (start, gradient) = pick(&trainer.models);
            let length = norm(&gradient);
            let unit: Vec<f64> = gradient.iter().map(|g| g / length).collect();
            let mut at = |step: f64| {
                let e = &trainer.models;
                shift(
                    if of_critic { &critic(e).model } else { &e.actor.model },
                    &start,
                    &unit,
                    step,
                );
                let [policy, value, entropy, ..] = naive(&mut ws, e, &config, &experience, &white);
                if of_critic { value } else { policy - 0.1 * entropy }
            };
            let h = 3e-4;
            let slope = (at(h) - at(-h)) / (2.0 * h);
            at(0.0);
            assert!((slope / length - 1.0).abs() < 0.01, "{family} {slope} {length}");
        }
    }
}

#[test]
fn actor_and_critic_share_the_memory_of_gradients_without_a_trace() {
    for family in FAMILIES {
        let mut config = OnlineConfig { minibatch: 3, unsup_coef: 2.0, ..ppo_config() };
        config.method.epochs = 2;
        config.micro_batch_tokens = 60;
        let shared = OnlineTrainer::new(engines(family, 1e-3), config.clone()).unwrap();
        let apart = unshared(family, 1e-3, config);
        let grads = |t: &OnlineTrainer| [&t.models.actor, critic(&t.models)].map(|e| e.memory()[1]);
        let both = grads(&apart);
        assert!(grads(&shared) == [both[0].max(both[1]), 0] && both[1] > 0, "{both:?}");
        let text: Vec<Vec<i32>> =
            prompts(62, 4).into_iter().map(|p| [p, vec![1, 2]].concat()).collect();
        let text: Vec<&[i32]> = text.iter().map(Vec::as_slice).collect();
        let [one, two] = [shared, apart].map(|mut t| {
            let mut ws = workspace();
            let experience = experience(&mut t, &mut ws, &prompts(61, 7));
            let stats = t.train_rlhf(&mut ws, &experience, &text).unwrap();
            (
                stats.actor_grad_norm,
                stats.critic_grad_norm,
                weights(&t.models.actor.model),
                weights(&critic(&t.models).model),
            )
        });
        assert!(one == two, "{family}");
    }
}

#[test]
fn an_experience_makes_epochs_times_minibatches_steps() {
    for (epochs, minibatch, steps) in [(1, 100, 1), (1, 4, 3), (3, 5, 6), (2, 1, 20)] {
        for spare in [0, 1] {
            let mut ws = workspace();
            // The learning rate is 0 from step `total` on: then weights stay.
            let schedule = Schedule { kind: ScheduleKind::Linear, warmup: 0, total: steps + spare };
            let mut config = OnlineConfig { minibatch, ..ppo_config() };
            config.method.epochs = epochs;
            (config.actor_schedule, config.critic_schedule) = (schedule, schedule);
            let mut trainer = OnlineTrainer::new(engines("gpt2", 1e-3), config).unwrap();
            let experience = experience(&mut trainer, &mut ws, &prompts(61, 10));
            let now = |t: &OnlineTrainer| {
                (weights(&t.models.actor.model), weights(&critic(&t.models).model))
            };
            let start = now(&trainer);
            trainer.train_rlhf(&mut ws, &experience, &[]).unwrap();
            let then = now(&trainer);
            trainer.train_rlhf(&mut ws, &experience, &[]).unwrap();
            let last = now(&trainer);
            assert!(start.0 != then.0 && start.1 != then.1);
            assert_eq!((then.0 == last.0, then.1 == last.1), (spare == 0, spare == 0), "{steps}");
        }
    }
}

#[test]
fn micro_batches_do_not_matter() {
    for with_lora in [false, true] {
        let run = |micro_batch_tokens: usize| {
            let mut ws = workspace();
            let mut config = OnlineConfig { entropy_coef: 0.01, unsup_coef: 0.5, ..ppo_config() };
            (config.method.epochs, config.minibatch) = (2, 5);
            config.micro_batch_tokens = micro_batch_tokens;
            let mut engines = engines("llama", 1e-3);
            // A large epsilon: Adam would turn the rounding of gradients near 0 into whole steps.
            let adam = AdamWConfig { eps: 1e-4, ..adamw(1e-3) };
            let l = lora("llama");
            let actor = model("llama", Head::Lm, DType::F32, true, with_lora.then_some(&l), 1);
            engines.actor =
                Engine::trained(actor, adam.clone(), ActivationCheckpointing::None).unwrap();
            let values = model("llama", Head::Score, DType::F32, true, None, 2);
            engines.critic =
                Some(Engine::trained(values, adam, ActivationCheckpointing::None).unwrap());
            let mut trainer = OnlineTrainer::new(engines, config).unwrap();
            let text = prompts(3, 4);
            let text: Vec<&[i32]> = text.iter().map(Vec::as_slice).collect();
            let experience = experience(&mut trainer, &mut ws, &prompts(71, 11));
            let stats = trainer.train_rlhf(&mut ws, &experience, &text).unwrap();
            let s = [stats.policy_loss, stats.value_loss, stats.entropy, stats.ptx_loss.unwrap()];
            let e = &trainer.models;
            let all = [weights(&e.actor.model), weights(&critic(e).model)];
            (wide(&s), all.map(|w| wide(&w.concat())))
        };
        let (stats, [actor, critic]) = run(100_000);
        for micro in [1, 60, 200] {
            let (s, [a, c]) = run(micro);
            assert!(relative(&s, &stats) < 1e-5, "{s:?} {stats:?}");
            assert!(relative(&a, &actor) < 1e-5, "{micro} {}", relative(&a, &actor));
            assert!(relative(&c, &critic) < 1e-5, "{micro} {}", relative(&c, &critic));
        }
    }
}

/// LoRA dropout is for supervised steps: under it the policy would not be the one that sampled.
#[test]
fn lora_dropout_takes_no_part_in_ppo() {
    let mut ws = workspace();
    let mut engines = engines("gpt2", 0.0);
    let lora = LoraConfig { dropout: 0.4, ..lora("gpt2") };
    let actor = model("gpt2", Head::Lm, DType::F32, true, Some(&lora), 1);
    engines.actor = Engine::trained(actor, adamw(1e-2), ActivationCheckpointing::None).unwrap();
    let mut trainer = OnlineTrainer::new(engines, ppo_config()).unwrap();
    for _ in 0..3 {
        let experience = experience(&mut trainer, &mut ws, &prompts(64, 8));
        let stats = trainer.train_rlhf(&mut ws, &experience, &[]).unwrap();
        assert_eq!((stats.first_ratio_deviation, stats.first_approx_kl), (0.0, 0.0));
    }
}

#[test]
fn gradients_that_are_not_finite_change_nothing() {
    let mut ws = workspace();
    let method = Method { whiten_advantages: false, ..method() };
    let config = OnlineConfig { method, ..ppo_config() };
    let mut trainer = OnlineTrainer::new(engines("gpt2", 1e-2), config).unwrap();
    trainer.models.actor.enable_ema(&mut ws, 0.5).unwrap();
    let good = experience(&mut trainer, &mut ws, &prompts(65, 6));
    let state = |t: &OnlineTrainer| {
        let actor = &t.models.actor;
        let ema = actor.ema().unwrap().read(&actor.model, ParamId(0)).unwrap();
        (weights(&actor.model), ema, weights(&critic(&t.models).model))
    };
    let before = state(&trainer);
    let mut bad = good.clone();
    bad.rollouts[2].advantages[0] = f32::NAN;
    let stats = trainer.train_rlhf(&mut ws, &bad, &[]).unwrap();
    let after = state(&trainer);
    let [why] = &stats.skipped[..] else { panic!("{:?}", stats.skipped) };
    // Behind the embedding and both layers, the first on the way back.
    let parts = ["actor: the loss is NaN", "gradient of final_norm.", "32 of 32 values"];
    assert!(parts.iter().all(|part| why.contains(part)), "{why}");
    assert!(before.0 == after.0 && before.1 == after.1 && before.2 != after.2);
    // Nothing of it stays for the next step.
    let stats = trainer.train_rlhf(&mut ws, &good, &[]).unwrap();
    let last = state(&trainer);
    assert!(stats.skipped.is_empty());
    assert!(after.0 != last.0 && last.0.iter().flatten().all(|w| w.is_finite()));
}

#[test]
fn a_loss_that_is_not_finite_changes_nothing_either() {
    let mut ws = workspace();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let actor = model("gpt2", Head::Lm, DType::F32, true, None, 1);
        let mut engine =
            Engine::trained(actor, adamw(1e-2), ActivationCheckpointing::None).unwrap();
        let before = weights(&engine.model);
        let mut rng = Rng::new(4, 0);
        let ids = random_ids(&mut rng, 20);
        let mut batch = Batch::new(&[(&ids, 0..19)]);
        batch.columns = vec![vec![1.0; 19]];
        for (loss, changes) in [(bad, false), (0.5, true)] {
            accumulate(&engine, &mut ws, &batch);
            let stats = engine.step(&mut ws, 1.0, loss).unwrap();
            assert!(stats.grad_norm.is_finite() && !engine.model.store.has_grads());
            assert_eq!(stats.skipped.is_none(), changes);
            if let Some(why) = stats.skipped {
                assert!(why.contains(&format!("the loss is {bad}")), "{why}");
            }
            assert_eq!(before != weights(&engine.model), changes, "{loss}");
        }
    }
}

#[test]
fn the_kl_coefficient_survives_an_experience_of_no_numbers() {
    let mut ws = workspace();
    let adaptive = Some(Adaptive { target: 1.0, horizon: 50.0 });
    let method = Method { kl: Some(KlPenalty { coef: 0.3, adaptive }), ..method() };
    let config = OnlineConfig { method, ..ppo_config() };
    let mut trainer = OnlineTrainer::new(engines("gpt2", 1e-2), config).unwrap();
    let reference = &trainer.models.reference.engine().unwrap().model.store;
    let good = reference.read_f32(ParamId(0)).unwrap();
    reference.write_f32(ParamId(0), &vec![f32::NAN; good.len()]).unwrap();
    let before = (weights(&trainer.models.actor.model), trainer.kl_coef);
    let experience = experience(&mut trainer, &mut ws, &prompts(66, 6));
    let stats = trainer.train_rlhf(&mut ws, &experience, &[]).unwrap();
    assert_eq!(stats.skipped.len(), 2, "{:?}", stats.skipped);
    assert!(before == (weights(&trainer.models.actor.model), trainer.kl_coef));
}

#[test]
fn a_batch_without_answers_is_skipped_and_nothing_of_before_is_used() {
    let mut ws = workspace();
    let state = |t: &OnlineTrainer| [&t.models.actor, critic(&t.models)].map(|e| weights(&e.model));
    let run = |ws: &mut Workspace, empty: bool| {
        let config = OnlineConfig { minibatch: 3, unsup_coef: 2.0, ..ppo_config() };
        let mut trainer = OnlineTrainer::new(engines("gpt2", 1e-2), config).unwrap();
        let first = experience(&mut trainer, ws, &prompts(67, 6));
        assert!(trainer.train_rlhf(ws, &first, &[]).unwrap().skipped.is_empty());
        let second = experience(&mut trainer, ws, &prompts(68, 6));
        if empty {
            let mut none = second.clone();
            for r in &mut none.rollouts {
                r.ids.truncate(r.prompt_len);
                [&mut r.logprobs, &mut r.ref_logprobs].into_iter().for_each(Vec::clear);
                [&mut r.values, &mut r.advantages, &mut r.returns].into_iter().for_each(Vec::clear);
                assert!(r.is_empty());
            }
            let before = state(&trainer);
            let stats = trainer.train_rlhf(ws, &none, &[&[1, 2, 3]]).unwrap();
            assert_eq!(stats.skipped.len(), 2, "{:?}", stats.skipped);
            assert!(stats.skipped[0].contains("no answer") && stats.policy_loss == 0.0);
            assert!(before == state(&trainer));
            // Without rollouts there is not even a minibatch.
            let nothing = Experience { rollouts: vec![], ..none };
            trainer.train_rlhf(ws, &nothing, &[]).unwrap();
            assert!(before == state(&trainer));
        }
        trainer.train_rlhf(ws, &second, &[]).unwrap();
        state(&trainer)
    };
    assert!(run(&mut ws, false) == run(&mut ws, true));
}

#[test]
fn answers_that_end_at_once_are_learned_from() {
    let mut ws = workspace();
    let mut config = ppo_config();
    config.sampling.min_new_tokens = 0;
    config.sampling.eos = (0..VOCAB as i32).collect();
    let mut trainer = OnlineTrainer::new(engines("gpt2", 1e-2), config).unwrap();
    let before = weights(&trainer.models.actor.model);
    let experience = experience(&mut trainer, &mut ws, &prompts(69, 6));
    assert!(experience.rollouts.iter().all(|r| r.is_empty() && r.logprobs.len() == 1));
    let stats = trainer.train_rlhf(&mut ws, &experience, &[]).unwrap();
    assert!(stats.skipped.is_empty() && before != weights(&trainer.models.actor.model));
}

#[test]
fn the_moving_average_follows_every_step() {
    let mut ws = workspace();
    let mut trainer = OnlineTrainer::new(engines("gpt2", 1e-2), ppo_config()).unwrap();
    trainer.models.actor.enable_ema(&mut ws, 0.9).unwrap();
    let mut naive: Vec<Vec<f64>> =
        weights(&trainer.models.actor.model).iter().map(|w| wide(w)).collect();
    let experience = experience(&mut trainer, &mut ws, &prompts(81, 8));
    for step in 0..6 {
        trainer.train_rlhf(&mut ws, &experience, &[]).unwrap();
        let actor = &trainer.models.actor;
        for (i, w) in weights(&actor.model).iter().enumerate() {
            naive[i].iter_mut().zip(w).for_each(|(e, w)| *e = 0.9 * *e + 0.1 * f64::from(*w));
            let average = actor.ema().unwrap().read(&actor.model, ParamId(i)).unwrap();
            assert!(
                relative(&wide(&average.unwrap()), &naive[i]) < 1e-6,
                "step {step} parameter {i}"
            );
        }
    }
    let now: Vec<f64> = wide(&weights(&trainer.models.actor.model).concat());
    assert!(relative(&naive.concat(), &now) > 1e-3);
}

/// Adds the gradients of a language-model loss on `batch`.
fn accumulate(engine: &Engine, ws: &mut Workspace, batch: &Batch) {
    let done = engine.accumulate(ws, "text", batch, None, &|tape, model, b, hidden, select| {
        let targets = tape.input_i32(&b.targets)?;
        let (logp, _) = model.logprobs(tape, hidden, select, targets, 1.0)?;
        let weights = tape.input_f32(&b.columns[0])?;
        let loss = weighted_sum(tape, WeightedSum { scale: -1.0 }, logp, weights)?;
        Ok(LossOutput { losses: vec![loss], stats: vec![] })
    });
    done.unwrap();
}

fn text_gradient(ws: &mut Workspace, text: &[Vec<i32>], coef: f32) -> (f64, Vec<f64>) {
    let actor = model("gpt2", Head::Lm, DType::F32, true, None, 1);
    let engine = Engine::trained(actor, adamw(0.0), ActivationCheckpointing::None).unwrap();
    let rows: Vec<_> = text.iter().map(|t| (t.as_slice(), 0..t.len() - 1)).collect();
    let batch = Batch::new(&rows);
    let n = batch.select.len();
    let terms = engine.accumulate(ws, "text", &batch, None, &|tape, model, b, hidden, select| {
        let targets = tape.input_i32(&b.targets)?;
        let (logp, _) = model.logprobs(tape, hidden, select, targets, 1.0)?;
        let ones = tape.input_f32(&vec![1.0; b.select.len()])?;
        let scale = -coef / n as f32;
        let loss = weighted_sum(tape, WeightedSum { scale }, logp, ones)?;
        Ok(LossOutput { losses: vec![loss], stats: vec![] })
    });
    engine.model.store.zero_unset_grads().unwrap();
    (f64::from(terms.unwrap()[0][0] / coef), gradients(&engine.model))
}

#[test]
fn the_mixture_adds_the_gradients_of_its_language_model_loss() {
    let mut ws = workspace();
    let mut rng = Rng::new(91, 0);
    let text: Vec<Vec<i32>> = [40, 12, 2].map(|n| random_ids(&mut rng, n)).to_vec();
    let coef = 3.5;
    let mut run = |coef: f32, minibatch: usize, text: &[Vec<i32>]| {
        let config = OnlineConfig { unsup_coef: coef, minibatch, ..ppo_config() };
        let mut trainer = unshared("gpt2", 0.0, config);
        let experience = foreign(&mut trainer, &mut ws, 53, 6);
        let rows: Vec<&[i32]> = text.iter().map(Vec::as_slice).collect();
        let stats = trainer.train_rlhf(&mut ws, &experience, &rows).unwrap();
        (stats, gradients(&trainer.models.actor.model))
    };
    let (plain, policy) = run(coef, 100, &[]);
    let (off, same) = run(0.0, 100, &text);
    assert!(plain.ptx_loss.is_none() && off.ptx_loss.is_none() && policy == same);
    let (mixed, both) = run(coef, 100, &text);
    // Six minibatches and fewer texts: the mean is over those that have one.
    let (few, _) = run(coef, 1, &text[..1]);
    let (loss, lm) = text_gradient(&mut ws, &text, coef);
    let (first, _) = text_gradient(&mut ws, &text[..1], coef);
    let sum: Vec<f64> = policy.iter().zip(&lm).map(|(a, b)| a + b).collect();
    assert!(relative(&both, &sum) < 1e-5, "{}", relative(&both, &sum));
    assert!(norm(&lm) > 0.1 * norm(&policy));
    close(f64::from(mixed.ptx_loss.unwrap()), loss, 1e-5);
    close(f64::from(few.ptx_loss.unwrap()), first, 1e-5);
    assert_eq!(mixed.policy_loss, plain.policy_loss);
}

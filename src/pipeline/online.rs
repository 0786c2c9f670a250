//! The driver of stages that sample answers: prompts in, actor and critic directories out.

use super::card::Card;
use super::datasets::Examples;
use super::judge::Judged;
use super::models::{Models, no_reward};
use super::reading::{Talks, reading, talks};
use super::run::Run;
use super::sources::{self, Source, critic_source};
use super::stage::Stage;
use super::{datasets, judge, settings};
use crate::algo::{
    Algorithm, Experience, PpoEngines, PpoSection, PpoStats, PpoTrainer, RewardSource, Rollout,
    built_in_rule,
};
use crate::base::Result;
use crate::data::{PromptExample, Tokenizer};
use crate::engine::Engine;
use crate::formats::Draft;
use crate::model::Head;
use crate::report::{Event, Sample};
use std::time::Instant;

/// Runs a stage. Returns it with its number of iterations.
pub(super) fn run(run: &mut Run<'_>, of: &'static Algorithm) -> Result<(Stage, u64)> {
    let cfg = run.cfg;
    let p = &cfg.online(of)?;
    let source = run.source(&Models::of(cfg, &run.dir).start(of)?)?;
    let data: Examples<PromptExample> = datasets::examples(run, of, &source)?;
    let texts = datasets::texts(run, of, &source)?;
    let others = Others::open(run, p)?;
    let read: Vec<&Source> = std::iter::once(&source).chain(others.all()).collect();
    let (stage, from) = run.enter(of, &read)?;
    let prompts = talks(data.train.iter().chain(&data.eval));
    let engines = build(run, of, p, &source, &others, prompts)?;
    let per_iteration = p.answers_per_iteration();
    let batches = data.batches(per_iteration, p.num_train_epochs, p.max_steps, cfg.seed);
    let total = batches.len() as u64;
    let updates = total * (p.ppo_epochs * per_iteration.div_ceil(p.answers_per_step())) as u64;
    let config = settings::online(cfg, p, source.tokenizer.stop_ids().to_vec(), updates);
    let mut trainer = PpoTrainer::new(engines, config)?;
    if p.enable_ema {
        trainer.engines.actor.enable_ema(&mut run.ws, p.ema_decay as f32)?;
    }
    run.start(&stage, total, "iterations")?;
    let held_out = data.held_out(p.eval_prompts);
    let held_out: Vec<&[i32]> = held_out.iter().map(|e| e.ids.as_slice()).collect();
    let (before, mut text) = match from {
        Some(from) => {
            trainer.restore(&from)?;
            (Judged::restore("before", &from)?, from.get("texts")?)
        }
        None => {
            let judge =
                |run: &mut Run<'_>| judge::judge(run, &mut trainer, &source.tokenizer, &held_out);
            (run.droppable(judge)?, 0)
        }
    };
    for (i, batch) in batches.iter().enumerate().skip(stage.done) {
        let clock = Instant::now();
        let prompts: Vec<&[i32]> =
            batch.rows.iter().map(|&i| data.train[i].ids.as_slice()).collect();
        let made = run.droppable(|run| trainer.generate_experience(&mut run.ws, &prompts));
        let experience = run.unless_dropped(made, &stage, i as u64, &|draft| {
            save(&trainer, text, &before, draft)
        })?;
        let generated = clock.elapsed().as_secs_f64();
        let blocks: Vec<&[i32]> = (0..prompts.len().min(texts.len()))
            .map(|k| texts[(text + k) % texts.len()].as_slice())
            .collect();
        text += blocks.len();
        let stats = trainer.train_rlhf(&mut run.ws, &experience, &blocks)?;
        let skipped = run.skipped(of, &stats.skipped)?;
        let seconds = clock.elapsed().as_secs_f64();
        let mut values = metrics(&experience, &stats, &trainer, generated, seconds);
        values.extend(skipped);
        if p.eval_interval > 0 && (i + 1) % p.eval_interval == 0 {
            let scores = judge::judge(run, &mut trainer, &source.tokenizer, &held_out)?;
            values.extend(scores.numbers("eval_score", "eval_kl"));
        }
        let iteration = i as u64 + 1;
        run.reporter.emit(Event::metrics(of.name, iteration, &values));
        if shows_samples(iteration, total) {
            print_samples(run, of, &experience, &source.tokenizer, iteration)?;
        }
        run.boundary(&stage, iteration, &values, &|draft| save(&trainer, text, &before, draft))?;
    }
    let after = judge::judge(run, &mut trainer, &source.tokenizer, &held_out)?;
    show(run, of, &before, &after, total);
    let actor = run.dir.stage(of).join("actor");
    let options = settings::save_as(cfg)?;
    let critic = run.dir.stage(of).join("critic");
    let card = |role| Card::online(cfg, of, p, total, role);
    source.save(&trainer.engines.actor.model, &actor, &options, None, &card("actor")?)?;
    source.save(&trainer.engines.critic.model, &critic, &options, None, &card("critic")?)?;
    let (model, ema_dir) = (&trainer.engines.actor.model, run.dir.stage(of).join("actor_ema"));
    match trainer.engines.actor.ema() {
        Some(ema) => {
            let card = card("moving average of the actor")?;
            source.save(model, &ema_dir, &options, Some(&|id| ema.read(model, id)), &card)?;
        }
        // That of an earlier run, replaced by this one.
        None => sources::clear(&ema_dir)?,
    }
    let mut summary = before.numbers("score_before", "kl_before");
    summary.extend(after.numbers("score_after", "kl_after"));
    run.finish(&stage, &summary, &actor, trainer.engines.actor.memory());
    Ok((stage, total))
}

/// Adds what the step knows to a checkpoint: how much text was read, and how the model answered
/// before.
fn save<'d>(
    trainer: &'d PpoTrainer,
    texts: usize,
    before: &Judged,
    draft: &mut Draft<'d>,
) -> Result<()> {
    draft.set("texts", texts);
    before.save("before", draft);
    trainer.save(draft)
}

/// The models that are read beside the actor.
struct Others {
    /// The reward model, with its name for messages.
    reward: Option<(String, Source)>,
    /// The one that the critic is to start from, where one is named.
    critic: Option<Source>,
}

impl Others {
    fn open(run: &Run<'_>, p: &PpoSection) -> Result<Others> {
        let reward = match Models::of(run.cfg, &run.dir).scorer() {
            Some(name) => Some((name.clone(), run.source(&name)?)),
            None => None,
        };
        let critic = p.critic_model.as_ref().map(|name| run.source(name));
        Ok(Others { reward, critic: critic.transpose()? })
    }

    fn all(&self) -> impl Iterator<Item = &Source> {
        self.reward.iter().map(|(_, source)| source).chain(&self.critic)
    }
}

/// Loads the four models, two of them once where LoRA or a rule makes a copy unnecessary.
fn build(
    run: &mut Run<'_>,
    of: &Algorithm,
    p: &PpoSection,
    source: &Source,
    others: &Others,
    prompts: Talks,
) -> Result<PpoEngines> {
    let cfg = run.cfg;
    let lora = settings::lora_of(cfg, Head::Lm);
    let with_lora = lora.is_some();
    let options = run.trained(source, Head::Lm, lora, true)?;
    let actor = source.load(&options, &mut run.reporter)?;
    run.describe("actor", &actor);
    let keep = settings::keep(cfg.gradient_checkpointing);
    let actor = Engine::trained(actor, settings::actor_adamw(cfg, p), keep)?;
    let reference =
        if with_lora { None } else { Some(run.asked(source, Head::Lm, "reference")?) };
    let rule = p.reward_rule.as_deref();
    let reward = match (rule, &others.reward) {
        (Some(rule), _) => {
            let tokenizer = source.tokenizer.clone();
            let decode = move |ids: &[i32]| tokenizer.decode(ids, true);
            RewardSource::Rule(built_in_rule(rule)?, Box::new(decode))
        }
        (None, Some((name, reward))) => {
            let engine = Box::new(run.asked(reward, Head::Score, "reward model")?);
            if !source.has_tokens_of(reward) {
                run.reporter.emit(Event::note(format!(
                    "{name} has a tokenizer of its own: answers are tokenised again for it, and the \
                     critic starts from the actor unless --critic-model says otherwise"
                )));
            }
            match reading(source, reward, prompts, cfg.chat_format) {
                None => RewardSource::Model(engine),
                Some(read) => RewardSource::Foreign(engine, read),
            }
        }
        (None, None) => return Err(no_reward(of)),
    };
    let scores = others.reward.as_ref().map(|(_, source)| source);
    let critic_source = critic_source(source, scores, others.critic.as_ref())?;
    let lora = settings::lora_of(cfg, Head::Score);
    let options = run.trained(critic_source, Head::Score, lora, false)?;
    let critic = critic_source.load(&options, &mut run.reporter)?;
    run.describe("critic", &critic);
    let critic = Engine::trained(critic, settings::critic_adamw(cfg, p), keep)?;
    Ok(PpoEngines { actor, reference, critic, reward })
}

fn metrics(
    experience: &Experience,
    stats: &PpoStats,
    trainer: &PpoTrainer,
    generated: f64,
    seconds: f64,
) -> Vec<(&'static str, f64)> {
    let n = experience.rollouts.len() as f64;
    let mean = |f: &dyn Fn(&Rollout) -> f64| experience.rollouts.iter().map(f).sum::<f64>() / n;
    let answers = mean(&|r| r.logprobs.len() as f64);
    let tokens: usize = experience.rollouts.iter().map(|r| r.ids.len()).sum();
    let mut out = vec![
        ("reward", mean(&|r| f64::from(r.score))),
        ("kl", mean(&|r| f64::from(r.kl()))),
        ("entropy", f64::from(stats.entropy)),
        ("policy_loss", f64::from(stats.policy_loss)),
        ("value_loss", f64::from(stats.value_loss)),
        ("approx_kl", f64::from(stats.approx_kl)),
        ("clip_rate", f64::from(stats.clip_fraction)),
        ("first_ratio_deviation", f64::from(stats.first_ratio_deviation)),
        ("answer_tokens", answers),
        ("eos_rate", mean(&|r| f64::from(u8::from(r.finished)))),
        ("empty_rate", mean(&|r| f64::from(u8::from(r.is_empty())))),
        ("explained_variance", f64::from(stats.explained_variance)),
        ("actor_grad_norm", f64::from(stats.actor_grad_norm)),
        ("critic_grad_norm", f64::from(stats.critic_grad_norm)),
        ("kl_coef", f64::from(trainer.kl_coef)),
        ("generate_seconds", generated),
        ("seconds", seconds),
        ("tokens_per_s", tokens as f64 / seconds),
    ];
    if let Some(loss) = stats.unsup_loss {
        out.push(("unsup_loss", f64::from(loss)));
    }
    out
}

fn print_samples(
    run: &mut Run<'_>,
    of: &Algorithm,
    experience: &Experience,
    tokenizer: &Tokenizer,
    iteration: u64,
) -> Result<()> {
    for r in experience.rollouts.iter().take(run.cfg.print_samples) {
        let (prompt, answer) = r.ids.split_at(r.prompt_len);
        run.reporter.emit(Event::Sample(Sample {
            step: of.name.into(),
            iteration,
            prompt: tokenizer.decode(prompt, true)?,
            answer: tokenizer.decode(answer, true)?,
            score: Some(f64::from(r.score)),
            ..Sample::default()
        }));
    }
    Ok(())
}

/// True if answers are shown after `iteration`: about ten times in a run. After the last iteration,
/// answers to held-out prompts are shown instead.
fn shows_samples(iteration: u64, total: u64) -> bool {
    iteration < total && (iteration - 1).is_multiple_of(total.div_ceil(10))
}

/// Before and after, side by side, for a few held-out prompts.
fn show(run: &mut Run<'_>, of: &Algorithm, before: &Judged, after: &Judged, total: u64) {
    for (b, a) in before.answers.iter().zip(&after.answers).take(judge::SHOWN) {
        run.reporter.emit(Event::Sample(Sample {
            step: of.name.into(),
            iteration: total,
            prompt: a.prompt.clone(),
            answer: a.answer.clone(),
            baseline: Some(b.answer.clone()),
            score: Some(a.score),
            baseline_score: Some(b.score),
        }));
    }
}

//! The driver of stages that sample answers: prompts in, actor and critic directories out.

use super::card::Card;
use super::datasets::Examples;
use super::evaluate::{Evaluation, ScoredAnswer};
use super::models::{Models, no_reward};
use super::reading::{reading, talks};
use super::run::Run;
use super::settings::Online;
use super::sources::{Source, critic_source};
use super::stage::Stage;
use super::{datasets, evaluate, settings};
use crate::algo::{
    Algorithm, Experience, FromPrompts, ModelReward, OnlineModels, OnlineTrainer, Reference,
    RewardSource, RuleReward, built_in_rule,
};
use crate::base::Result;
use crate::data::{PromptExample, Tokenizer};
use crate::engine::Engine;
use crate::formats::SnapshotBuilder;
use crate::model::Head;
use crate::report::{Event, Sample};
use std::path::PathBuf;
use std::time::Instant;

/// Runs a stage. Returns it with its number of iterations.
pub(super) fn run(
    run: &mut Run<'_>,
    of: &'static Algorithm,
    from: &FromPrompts,
) -> Result<(Stage, u64)> {
    let cfg = run.cfg;
    let keys = Online::of(cfg, of, from)?;
    let p = &keys.keys;
    let source = run.source(&Models::of(cfg, &run.dir).start(of)?)?;
    let data: Examples<PromptExample> = datasets::examples(run, of, &source)?;
    let texts = datasets::texts(run, of, &source)?;
    let others = Others::open(run, of, &keys)?;
    let read: Vec<&Source> = std::iter::once(&source).chain(others.all()).collect();
    let (mut stage, from) = run.enter(of, &read)?;
    let prompts = talks(data.train.iter().chain(&data.eval));
    let models = build(run, of, &keys, &source, &others, prompts)?;
    let mut batches =
        data.batches(p.prompts_per_iteration(), p.num_train_epochs, p.max_steps, cfg.seed);
    let total = batches.total();
    let config = keys.config(cfg, source.tokenizer.stop_ids().to_vec(), total);
    let mut trainer = OnlineTrainer::new(models, config)?;
    if p.enable_ema {
        trainer.models.actor.enable_ema(&mut run.ws, p.ema_decay as f32)?;
    }
    run.start(&mut stage, total, "iterations")?;
    let held_out = data.held_out(p.eval_prompts);
    let (before, mut text) = match from {
        Some(from) => {
            trainer.restore(&from)?;
            (Evaluation::restore("before", &from)?, from.get("texts")?)
        }
        None => {
            let evaluate = |run: &mut Run<'_>| {
                evaluate::evaluate(run, &mut trainer, &source.tokenizer, &held_out)
            };
            (run.droppable(evaluate)?, 0)
        }
    };
    for i in stage.done..total as usize {
        let batch = batches.get(i as u64);
        let clock = Instant::now();
        let prompts: Vec<&PromptExample> = batch.rows.iter().map(|&i| &data.train[i]).collect();
        let made = run.droppable(|run| trainer.generate_experience(&mut run.ws, &prompts));
        let experience = run.unless_dropped(made, &stage, i as u64, &|builder| {
            save(&trainer, text, &before, builder)
        })?;
        let generated = clock.elapsed().as_secs_f64();
        let learns = !experience.rollouts.is_empty();
        let wanted = if learns { prompts.len().min(texts.len()) } else { 0 };
        let blocks: Vec<&[i32]> =
            (0..wanted).map(|k| texts[(text + k) % texts.len()].as_slice()).collect();
        text += blocks.len();
        let stats = trainer.train_rlhf(&mut run.ws, &experience, &blocks)?;
        let skipped = run.skipped(of, &stats.skipped)?;
        let seconds = clock.elapsed().as_secs_f64();
        let mut values = trainer.metrics(&experience, &stats);
        values.extend([("generate_seconds", generated), ("seconds", seconds)]);
        values.push(("tokens_per_s", experience.tokens as f64 / seconds));
        values.extend(skipped);
        if p.eval_interval > 0 && (i + 1) % p.eval_interval == 0 {
            let scores = evaluate::evaluate(run, &mut trainer, &source.tokenizer, &held_out)?;
            values.extend(scores.numbers("eval_score", "eval_kl"));
        }
        let iteration = i as u64 + 1;
        run.reporter.emit(Event::metrics(of.name, iteration, &values));
        if shows_samples(iteration, total) {
            print_samples(run, of, &experience, &source.tokenizer, iteration)?;
        }
        run.boundary(&stage, iteration, &values, &|builder| {
            save(&trainer, text, &before, builder)
        })?;
    }
    let after = evaluate::evaluate(run, &mut trainer, &source.tokenizer, &held_out)?;
    show(run, of, &before, &after, total);
    let actor = save_models(run, of, &keys, &source, &trainer, total)?;
    let mut summary = before.numbers("score_before", "kl_before");
    summary.extend(after.numbers("score_after", "kl_after"));
    run.finish(&stage, &summary, &actor, trainer.models.actor.memory());
    Ok((stage, total))
}

/// Saves actor, critic and moving average. Returns the directory of the actor.
fn save_models(
    run: &Run<'_>,
    of: &Algorithm,
    keys: &Online,
    source: &Source,
    trainer: &OnlineTrainer,
    total: u64,
) -> Result<PathBuf> {
    let cfg = run.cfg;
    let place = |model| run.dir.place(of, Some(model));
    let options = settings::save_as(cfg)?;
    let card = |role| Card::online(cfg, of, keys, total, role);
    source.save(&trainer.models.actor.model, place("actor"), &options, None, &card("actor")?)?;
    if let Some(critic) = &trainer.models.critic {
        source.save(&critic.model, place("critic"), &options, None, &card("critic")?)?;
    }
    let (model, ema_place) = (&trainer.models.actor.model, place("actor_ema"));
    match trainer.models.actor.ema() {
        Some(ema) => {
            let card = card("moving average of the actor")?;
            source.save(model, ema_place, &options, Some(&|id| ema.read(model, id)), &card)?;
        }
        // That of an earlier run, replaced by this one.
        None if run.comm.rank() == 0 => ema_place.clear()?,
        None => {}
    }
    Ok(place("actor").path())
}

/// Adds what the step knows to a checkpoint: how much text was read, and how the model answered
/// before.
fn save<'d>(
    trainer: &'d OnlineTrainer,
    texts: usize,
    before: &Evaluation,
    builder: &mut SnapshotBuilder<'d>,
) -> Result<()> {
    builder.set("texts", texts);
    before.save("before", builder);
    trainer.save(builder)
}

/// The models that are read beside the actor.
struct Others {
    /// The reward model, with its name for messages.
    reward: Option<(String, Source)>,
    /// The one that the critic is to start from, where one is named.
    critic: Option<Source>,
}

impl Others {
    fn open(run: &Run<'_>, of: &Algorithm, keys: &Online) -> Result<Others> {
        let asked = run.cfg.reads_reward_model(of)?;
        let reward = match Models::of(run.cfg, &run.dir).scorer().filter(|_| asked) {
            Some(name) => Some((name.clone(), run.source(&name)?)),
            None => None,
        };
        let critic = keys.critic.as_ref().and_then(|c| c.critic_model.as_ref());
        let critic = critic.map(|name| run.source(name));
        Ok(Others { reward, critic: critic.transpose()? })
    }

    fn all(&self) -> impl Iterator<Item = &Source> {
        self.reward.iter().map(|(_, source)| source).chain(&self.critic)
    }
}

/// Loads the models, two of them once where LoRA or a rule makes a copy unnecessary.
fn build(
    run: &mut Run<'_>,
    of: &Algorithm,
    keys: &Online,
    source: &Source,
    others: &Others,
    talks: bool,
) -> Result<OnlineModels> {
    let cfg = run.cfg;
    let lora = settings::lora_of(cfg, Head::Lm);
    let with_lora = lora.is_some();
    let options = run.trained(source, Head::Lm, lora, true)?;
    let actor = source.load(&options, &mut run.reporter)?;
    run.describe("actor", &actor);
    let checkpointing = cfg.gradient_checkpointing;
    let actor = Engine::trained(actor, settings::actor_adamw(cfg, &keys.keys), checkpointing)?;
    let reference = Reference::asked(keys.method.kl.is_some(), with_lora, || {
        run.asked(source, Head::Lm, "reference")
    })?;
    let rule = keys.keys.reward_rule.as_deref();
    let reward: Box<dyn RewardSource> = match (rule, &others.reward) {
        (Some(rule), _) => {
            let tokenizer = source.tokenizer.clone();
            let decode = move |ids: &[i32]| tokenizer.decode(ids, true);
            Box::new(RuleReward { rule: built_in_rule(rule)?, decode: Box::new(decode) })
        }
        (None, Some((name, reward))) => {
            let engine = run.asked(reward, Head::Score, "reward model")?;
            if !source.has_tokens_of(reward) {
                let critic = match &keys.critic {
                    Some(critic) if critic.critic_model.is_none() => {
                        ", and the critic starts from the actor unless --critic-model says \
                         otherwise"
                    }
                    _ => "",
                };
                run.reporter.emit(Event::note(format!(
                    "{name} has a tokenizer of its own: answers are tokenised again for it{critic}"
                )));
            }
            let retokenise = reading(source, reward, talks, cfg.chat_format);
            Box::new(ModelReward { engine, retokenise })
        }
        (None, None) => return Err(no_reward(of)),
    };
    let Some(of_critic) = &keys.critic else {
        return Ok(OnlineModels { actor, reference, critic: None, reward });
    };
    let scores = others.reward.as_ref().map(|(_, source)| source);
    let critic_source = critic_source(source, scores, others.critic.as_ref())?;
    let lora = settings::lora_of(cfg, Head::Score);
    let options = run.trained(critic_source, Head::Score, lora, false)?;
    let critic = critic_source.load(&options, &mut run.reporter)?;
    run.describe("critic", &critic);
    let critic =
        Engine::trained(critic, settings::critic_adamw(cfg, &keys.keys, of_critic), checkpointing)?;
    Ok(OnlineModels { actor, reference, critic: Some(critic), reward })
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
fn show(run: &mut Run<'_>, of: &Algorithm, before: &Evaluation, after: &Evaluation, total: u64) {
    // The reward may have judged an answer to a prompt before, and none after.
    let is = |b: &ScoredAnswer| after.answers.iter().find(|a| a.at == b.at);
    for b in before.answers.iter().take(evaluate::SHOWN) {
        let Some(a) = is(b) else { continue };
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

//! The three steps, a step of each of full length: the second of two, since the first one's memory
//! grows as it goes.

use super::dry::{Decode, Dry, Phase, named, updated};
use crate::arch::Config;
use crate::base::{Error, Result};
use crate::engine::Engine;
use crate::formats::Draft;
use crate::model::Head;
use crate::pipeline::config::keys::Every;
use crate::pipeline::resume::last_step;
use crate::pipeline::{offline, reward, settings, sft};
use crate::pool::Zero;
use crate::rlhf::{Offline, PpoEngines, PpoTrainer, RewardSource, built_in_rule};
use crate::rollout::Sampling;

/// A step as planned.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) name: &'static str,
    /// Sequences of an optimizer step, or answers of an iteration.
    pub(super) rows: usize,
    /// Tokens of each.
    pub(super) tokens: usize,
    pub(super) phases: Vec<Phase>,
    /// Bytes of the copy that a checkpoint is written from, in the first rank's host memory.
    pub(super) checkpoint: usize,
    /// Bytes of the host that a rank keeps for its device.
    pub(super) offloaded: usize,
    /// ZeRO stages of the trained models, the actor first; empty for a single rank.
    pub(super) stages: Vec<Zero>,
    /// Ranks that generate together.
    pub(super) tensor_parallel: usize,
    /// Elements of the largest parameter.
    pub(super) largest: usize,
}

impl Step {
    /// A step of `rows` sequences of `tokens` tokens with these models.
    fn new(
        dry: &Dry<'_>,
        name: &'static str,
        [rows, tokens]: [usize; 2],
        phases: Vec<Phase>,
        checkpoint: usize,
        engines: &[&Engine],
    ) -> Step {
        let stores = || engines.iter().map(|e| &e.model.store);
        let trained = stores().filter(|s| s.trained().next().is_some() && dry.machine.ranks > 1);
        let sizes = stores().flat_map(|s| s.params()).map(|p| p.spec.shape.iter().product());
        Step {
            name,
            rows,
            tokens,
            phases,
            checkpoint,
            offloaded: offloaded(dry, engines),
            stages: trained.map(|s| s.partition().stage).collect(),
            tensor_parallel: stores().map(|s| s.partition().blocks).max().unwrap_or(1),
            largest: sizes.max().unwrap_or(0),
        }
    }
}

/// The steps that are planned for, by number.
pub(super) fn step(dry: &mut Dry<'_>, number: u32) -> Result<Step> {
    let cfg = dry.cfg;
    match number {
        1 => offline(dry, sft::step(cfg), &named(cfg.actor_model.as_ref())?),
        2 => {
            let model = cfg.reward_model.as_ref().or(cfg.actor_model.as_ref());
            offline(dry, reward::step(cfg), &named(model)?)
        }
        _ => ppo(dry),
    }
}

fn longest(dry: &Dry<'_>, config: &Config) -> Result<usize> {
    Ok(dry.cfg.max_seq_len.min(config.arch()?.max_positions))
}

/// A step that learns from rows alone, from a model of `config`.
fn offline<T: Offline>(
    dry: &mut Dry<'_>,
    step: offline::Step<'_, T>,
    config: &Config,
) -> Result<Step> {
    let tokens = longest(dry, config)?;
    let engine = dry.trained(config, step.head, step.lora, step.adamw, false)?;
    let mut trainer = (step.trainer)(engine, settings::step(dry.cfg, step.section, 2));
    let row = (step.longest)(tokens);
    let batch = vec![&row; step.section.rows_per_step()];
    trainer.iterate(&mut dry.ws, &batch)?;
    let mark = dry.mark();
    trainer.iterate(&mut dry.ws, &batch)?;
    let engines = [trainer.engine()];
    let phase = training(dry.since(&mark, "training", &engines), &engines);
    let mut draft = Draft::default();
    trainer.save(&mut draft)?;
    let checkpoint = copied(dry, step.name, step.section.max_steps, &draft)?;
    let sizes = [step.sequences * batch.len(), tokens];
    Ok(Step::new(dry, step.name, sizes, vec![phase], checkpoint, &engines))
}

fn ppo(dry: &mut Dry<'_>) -> Result<Step> {
    let cfg = dry.cfg;
    let p = &cfg.ppo;
    let actor = named(cfg.actor_model.as_ref())?;
    let (prompt, answer) = (cfg.max_prompt_seq_len, cfg.max_answer_seq_len);
    let room = actor.arch()?.max_positions;
    if prompt + answer > room {
        return Err(Error::user(format!(
            "--max-prompt-seq-len and --max-answer-seq-len ask for sequences of {} tokens, but the actor has \
             {room} positions; lower them",
            prompt + answer
        )));
    }
    let engines = engines(dry, &actor)?;
    let mut trainer = PpoTrainer::new(engines, settings::ppo(cfg, vec![], 2))?;
    if p.enable_ema {
        trainer.engines.actor.enable_ema(&mut dry.ws, p.ema_decay as f32)?;
    }
    let ids = vec![0; prompt];
    let rows = p.answers_per_iteration();
    let prompts = vec![ids.as_slice(); rows];
    let block = vec![0; prompt + answer];
    let texts = if p.unsupervised_data_path.is_empty() { 0 } else { rows };
    let texts = vec![block.as_slice(); texts];
    let mut phases = vec![];
    if cfg.eval_fraction > 0.0 {
        let mark = dry.mark();
        trainer.answer(&mut dry.ws, &vec![ids.as_slice(); p.eval_prompts])?;
        phases.push(dry.since(&mark, "evaluation", &all(&trainer)));
    }
    let experience = trainer.generate_experience(&mut dry.ws, &prompts)?;
    trainer.train_rlhf(&mut dry.ws, &experience, &texts)?;

    let drawn = generation(dry, &mut trainer, &prompts, [prompt, answer])?;
    let mark = dry.mark();
    let experience = trainer.generate_experience(&mut dry.ws, &prompts)?;
    let mut made = dry.since(&mark, "scoring", &all(&trainer));
    // It is dropped at the end of it.
    made.bytes.kv_cache = drawn.bytes.kv_cache;
    made.bytes.buffers = made.bytes.buffers.saturating_sub(made.bytes.kv_cache);
    phases.push(drawn.clone());
    phases.push(made.without(&drawn, "scoring"));
    let mark = dry.mark();
    trainer.train_rlhf(&mut dry.ws, &experience, &texts)?;
    let trained = [&trainer.engines.actor, &trainer.engines.critic];
    let steps = p.ppo_epochs * rows.div_ceil(p.answers_per_step());
    let phase = training(dry.since(&mark, "training", &all(&trainer)), &trained);
    phases.push(Phase { updated: phase.updated * steps, ..phase });
    let mut draft = Draft::default();
    trainer.save(&mut draft)?;
    let checkpoint = copied(dry, "ppo", p.max_steps, &draft)?;
    Ok(Step::new(dry, "ppo", [rows, prompt + answer], phases, checkpoint, &all(&trainer)))
}

/// The models of step 3, those of steps 1 and 2 where these are run.
fn engines(dry: &mut Dry<'_>, actor_config: &Config) -> Result<PpoEngines> {
    let cfg = dry.cfg;
    let lora = settings::actor_lora(cfg);
    let with_lora = lora.is_some();
    let actor = dry.trained(actor_config, Head::Lm, lora, settings::actor_adamw(cfg), true)?;
    let reference = if with_lora { None } else { Some(dry.frozen(actor_config, Head::Lm)?) };
    let given = cfg.reward_model.as_ref().or(cfg.actor_model.as_ref());
    let (reward, of_reward) = match &cfg.ppo.reward_rule {
        Some(rule) => {
            let decode = Box::new(|_: &[i32]| Ok(String::new()));
            (RewardSource::Rule(built_in_rule(rule)?, decode), None)
        }
        None => {
            let config = named(given)?;
            (RewardSource::Model(Box::new(dry.frozen(&config, Head::Score)?)), Some(config))
        }
    };
    let critic = match (&cfg.ppo.critic_model, of_reward) {
        (Some(name), _) => named(Some(name))?,
        (None, Some(config)) => config,
        (None, None) => actor_config.clone(),
    };
    let lora = settings::critic_lora(cfg);
    let critic = dry.trained(&critic, Head::Score, lora, settings::critic_adamw(cfg), false)?;
    Ok(PpoEngines { actor, reference, critic, reward })
}

/// Drawing the answers alone, by this rank those that it draws of all.
fn generation(
    dry: &mut Dry<'_>,
    trainer: &mut PpoTrainer,
    prompts: &[&[i32]],
    [prompt, answer]: [usize; 2],
) -> Result<Phase> {
    let sampling = trainer.config.sampling.clone();
    let own = &prompts[..prompts.len().div_ceil(trainer.engines.actor.generators().size())];
    let numbers: Vec<u64> = (0..own.len() as u64).collect();
    let mut draw = |dry: &mut Dry<'_>, sampling: &Sampling| {
        let mark = dry.mark();
        let engine = &mut trainer.engines.actor;
        engine.generate(&mut dry.ws, own, &numbers, sampling, &mut |_, _| {})?;
        Ok::<Phase, Error>(dry.since(&mark, "generation", &all(trainer)))
    };
    let drawn = draw(dry, &sampling)?;
    let first = draw(dry, &Sampling { max_new_tokens: 1, ..sampling })?;
    let (store, arch) = (&trainer.engines.actor.model.store, &trainer.engines.actor.model.arch);
    let blocks = store.partition().blocks;
    let len: usize = store.flats().iter().map(|f| f.len / blocks).sum();
    // On average half of an answer is there.
    let held = (prompt + answer / 2) as f64 / (prompt + answer) as f64;
    let decode = Decode {
        steps: answer - 1,
        weights: len * store.dtype().size(),
        cache: (drawn.bytes.kv_cache as f64 * held) as usize,
        layers: arch.layers,
        prompt_flops: first.flops,
    };
    Ok(Phase { decode: Some(decode), ..drawn })
}

fn all(trainer: &PpoTrainer) -> Vec<&Engine> {
    let PpoEngines { actor, reference, critic, reward } = &trainer.engines;
    let reward = match reward {
        RewardSource::Model(engine) | RewardSource::Foreign(engine, _) => Some(&**engine),
        RewardSource::Rule(..) => None,
    };
    [Some(actor), reference.as_ref(), Some(critic), reward].into_iter().flatten().collect()
}

fn training(phase: Phase, engines: &[&Engine]) -> Phase {
    Phase { updated: updated(engines), ..phase }
}

/// Bytes of the copy of the state for a checkpoint; none where the step is over before one is due.
/// The last step of a run always saves its end, from which a longer run can go on.
fn copied(dry: &Dry<'_>, step: &str, max_steps: usize, draft: &Draft<'_>) -> Result<usize> {
    let last = step == last_step(dry.cfg);
    match dry.cfg.save_every()? {
        Every::Iterations(n) if max_steps > 0 && n > max_steps as u64 && !last => Ok(0),
        _ => draft.bytes(),
    }
}

/// Bytes of optimizers and frozen weights that the host has for the device.
fn offloaded(dry: &Dry<'_>, engines: &[&Engine]) -> usize {
    let away = dry.cfg.offload && dry.machine.card.is_some();
    let of = |e: &&Engine| {
        let store = &e.model.store;
        e.memory()[2] + if store.is_on_host() { store.host_bytes() } else { 0 }
    };
    if away { engines.iter().map(of).sum() } else { 0 }
}

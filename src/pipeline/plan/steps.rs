//! The stages, a step of each of full length: the second of two, since the first one's memory
//! grows as it goes.

use super::dry::{Decode, Dry, Phase, named, updated};
use crate::algo::{
    Algorithm, Completion, FromPrompts, Learns, ModelReward, OfflineTrainer, OnlineModels,
    OnlineTrainer, Reference, RewardSource, Scoring, Start, built_in_rule,
};
use crate::arch::Config;
use crate::base::{Error, Result};
use crate::config::key::Every;
use crate::data::PromptExample;
use crate::engine::Engine;
use crate::formats::SnapshotBuilder;
use crate::model::Head;
use crate::pipeline::datasets::Offline;
use crate::pipeline::offline::Setting;
use crate::pipeline::settings::{self, Online};
use crate::pool::Zero;
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

/// A stage that is planned for.
pub(super) fn step(dry: &mut Dry<'_>, of: &'static Algorithm) -> Result<Step> {
    let cfg = dry.cfg;
    match &of.learns {
        Learns::Texts(rows, _) => offline(dry, Setting::new(cfg, of, rows.objective)?),
        Learns::Pairs(rows) => offline(dry, Setting::new(cfg, of, rows.objective)?),
        Learns::Prompts(from) => online(dry, of, from),
    }
}

fn longest(dry: &Dry<'_>, config: &Config) -> Result<usize> {
    Ok(dry.cfg.max_seq_len.min(config.arch()?.max_positions))
}

/// The shape of the model that a stage starts from.
fn start(dry: &Dry<'_>, of: &Algorithm) -> Result<Config> {
    let cfg = dry.cfg;
    match (of.start, of.head) {
        (Start::Pretrained, Head::Score) => {
            named(cfg.reward_model.as_ref().or(cfg.actor_model.as_ref()))
        }
        _ => named(cfg.actor_model.as_ref()),
    }
}

/// A stage that learns from rows alone.
fn offline<R: Offline>(dry: &mut Dry<'_>, setting: Setting<R>) -> Result<Step> {
    let (cfg, of, s) = (dry.cfg, setting.of, setting.optimizer);
    let config = &start(dry, of)?;
    let tokens = longest(dry, config)?;
    let lora = settings::lora_of(cfg, of.head);
    let compares = setting.objective.asks_reference();
    let with_lora = lora.is_some();
    let engine = dry.trained(config, of.head, lora, settings::adamw(cfg, &s, of.head), false)?;
    let reference = Reference::asked(compares, with_lora, || dry.frozen(config, of.head))?;
    let step = settings::step(cfg, &s, 2);
    let mut trainer = OfflineTrainer::new(engine, reference, setting.objective, step)?;
    let row = R::longest(tokens);
    let batch = vec![&row; s.rows_per_step()];
    trainer.train(&mut dry.ws, &batch)?;
    let mark = dry.mark();
    trainer.train(&mut dry.ws, &batch)?;
    let engines: Vec<&Engine> =
        [Some(&trainer.engine), trainer.reference()].into_iter().flatten().collect();
    let phase = training(dry.since(&mark, "training", &engines), &engines[..1]);
    let mut builder = SnapshotBuilder::default();
    trainer.save(&mut builder)?;
    let checkpoint = copied(dry, of, s.max_steps, &builder)?;
    let sizes = [R::SEQUENCES * batch.len(), tokens];
    Ok(Step::new(dry, of.name, sizes, vec![phase], checkpoint, &engines))
}

/// A stage that samples answers.
fn online(dry: &mut Dry<'_>, of: &'static Algorithm, from: &FromPrompts) -> Result<Step> {
    let cfg = dry.cfg;
    let keys = &Online::of(cfg, of, from)?;
    let p = &keys.keys;
    let actor = start(dry, of)?;
    let (prompt, answer) = (cfg.max_prompt_seq_len, cfg.max_answer_seq_len);
    let room = actor.arch()?.max_positions;
    if prompt + answer > room {
        return Err(Error::user(format!(
            "--max-prompt-seq-len and --max-answer-seq-len ask for sequences of {} tokens, but \
             the actor has \
             {room} positions; lower them",
            prompt + answer
        )));
    }
    let models = models(dry, keys, &actor)?;
    let mut trainer = OnlineTrainer::new(models, keys.config(cfg, vec![], 2))?;
    if p.enable_ema {
        trainer.models.actor.enable_ema(&mut dry.ws, p.ema_decay as f32)?;
    }
    let asked = PromptExample::new(vec![0; prompt]);
    let rows = keys.completions();
    let prompts = vec![&asked; p.prompts_per_iteration()];
    let block = vec![0; prompt + answer];
    let texts = if p.unsupervised_data_path.is_empty() { 0 } else { prompts.len() };
    let texts = vec![block.as_slice(); texts];
    let mut phases = vec![];
    if cfg.eval_fraction > 0.0 {
        let mark = dry.mark();
        trainer.answer(&mut dry.ws, &vec![&asked; p.eval_prompts])?;
        phases.push(dry.since(&mark, "evaluation", &trainer.models.engines()));
    }
    let experience = trainer.generate_experience(&mut dry.ws, &prompts)?;
    trainer.train_rlhf(&mut dry.ws, &experience, &texts)?;

    let drawn = generation(dry, &mut trainer, &vec![asked.ids.as_slice(); rows], [prompt, answer])?;
    let mark = dry.mark();
    let experience = trainer.generate_experience(&mut dry.ws, &prompts)?;
    let mut made = dry.since(&mark, "scoring", &trainer.models.engines());
    // It is dropped at the end of it.
    made.bytes.kv_cache = drawn.bytes.kv_cache;
    made.bytes.buffers = made.bytes.buffers.saturating_sub(made.bytes.kv_cache);
    phases.push(drawn.clone());
    phases.push(made.without(&drawn, "scoring"));
    let mark = dry.mark();
    trainer.train_rlhf(&mut dry.ws, &experience, &texts)?;
    let since = dry.since(&mark, "training", &trainer.models.engines());
    let phase = training(since, &trainer.models.trained());
    phases.push(Phase { updated: phase.updated * keys.updates(), ..phase });
    let mut builder = SnapshotBuilder::default();
    trainer.save(&mut builder)?;
    let checkpoint = copied(dry, of, p.max_steps, &builder)?;
    Ok(Step::new(
        dry,
        of.name,
        [rows, prompt + answer],
        phases,
        checkpoint,
        &trainer.models.engines(),
    ))
}

/// Stands for a rule: what one computes takes no memory of the device, and the plan has no text.
struct AnyRule;

impl RewardSource for AnyRule {
    fn name(&self) -> &str {
        "rule"
    }

    fn score(&self, _: &mut Scoring<'_>, batch: &[Completion<'_>]) -> Result<Vec<Option<f32>>> {
        Ok(vec![Some(0.0); batch.len()])
    }
}

/// Its models, those of earlier stages where these are run.
fn models(dry: &mut Dry<'_>, keys: &Online, actor_config: &Config) -> Result<OnlineModels> {
    let (cfg, p) = (dry.cfg, &keys.keys);
    let lora = settings::lora_of(cfg, Head::Lm);
    let with_lora = lora.is_some();
    let actor = dry.trained(actor_config, Head::Lm, lora, settings::actor_adamw(cfg, p), true)?;
    let reference = Reference::asked(keys.method.kl.is_some(), with_lora, || {
        dry.frozen(actor_config, Head::Lm)
    })?;
    let given = cfg.reward_model.as_ref().or(cfg.actor_model.as_ref());
    let (reward, of_reward): (Box<dyn RewardSource>, _) = match &p.reward_rule {
        Some(rule) => built_in_rule(rule).map(|_| (Box::new(AnyRule) as Box<_>, None))?,
        None => {
            let config = named(given)?;
            let engine = dry.frozen(&config, Head::Score)?;
            (Box::new(ModelReward { engine, retokenise: None }), Some(config))
        }
    };
    let Some(of_critic) = &keys.critic else {
        return Ok(OnlineModels { actor, reference, critic: None, reward });
    };
    let critic = match (&of_critic.critic_model, of_reward) {
        (Some(name), _) => named(Some(name))?,
        (None, Some(config)) => config,
        (None, None) => actor_config.clone(),
    };
    let lora = settings::lora_of(cfg, Head::Score);
    let adamw = settings::critic_adamw(cfg, p, of_critic);
    let critic = dry.trained(&critic, Head::Score, lora, adamw, false)?;
    Ok(OnlineModels { actor, reference, critic: Some(critic), reward })
}

/// Drawing the answers alone, by this rank those that it draws of all.
fn generation(
    dry: &mut Dry<'_>,
    trainer: &mut OnlineTrainer,
    prompts: &[&[i32]],
    [prompt, answer]: [usize; 2],
) -> Result<Phase> {
    let sampling = trainer.config.sampling.clone();
    let own = &prompts[..prompts.len().div_ceil(trainer.models.actor.generators().size())];
    let numbers: Vec<u64> = (0..own.len() as u64).collect();
    let mut draw = |dry: &mut Dry<'_>, sampling: &Sampling| {
        let mark = dry.mark();
        let engine = &mut trainer.models.actor;
        engine.generate(&mut dry.ws, own, &numbers, sampling, &mut |_, _| {})?;
        Ok::<Phase, Error>(dry.since(&mark, "generation", &trainer.models.engines()))
    };
    let drawn = draw(dry, &sampling)?;
    let first = draw(dry, &Sampling { max_new_tokens: 1, ..sampling })?;
    let (store, arch) = (&trainer.models.actor.model.store, &trainer.models.actor.model.arch);
    let blocks = store.partition().blocks;
    let len: usize = store.buckets().iter().map(|f| f.len / blocks).sum();
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

fn training(phase: Phase, engines: &[&Engine]) -> Phase {
    Phase { updated: updated(engines), ..phase }
}

/// Bytes of the copy of the state for a checkpoint; none where the step is over before one is due.
/// The last step of a run always saves its end, from which a longer run can go on.
fn copied(
    dry: &Dry<'_>,
    of: &Algorithm,
    max_steps: usize,
    builder: &SnapshotBuilder<'_>,
) -> Result<usize> {
    let last = of == dry.cfg.last_stage();
    match dry.cfg.save_every()? {
        Every::Iterations(n) if max_steps > 0 && n > max_steps as u64 && !last => Ok(0),
        _ => builder.bytes(),
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

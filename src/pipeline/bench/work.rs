//! The work that is timed: generation, a training step, a PPO iteration, each by the code a run
//! uses, on random tokens.

use super::count::Cost;
use super::machine::{peak_bytes, reset_peak};
use super::measured::{Measured, Phase, Seconds};
use super::shapes::Subject;
use crate::algo::{
    DEEPSPEED_CHAT, ModelReward, OfflineTrainer, OnlineConfig, OnlineModels, OnlineTrainer,
    Reference, Sft, StepConfig,
};
use crate::base::{DType, Error, Result, Rng};
use crate::data::{PromptExample, SftExample};
use crate::device::Device;
use crate::engine::Engine;
use crate::model::{Head, LoadOptions, Model};
use crate::pipeline::config::{BenchCase, BenchConfig, RunConfig};
use crate::pipeline::settings::{MICRO_BATCH_TOKENS, Online};
use crate::rollout::Sampling;
use crate::tape::Workspace;
use crate::train::{AdamWConfig, Schedule, ScheduleKind};
use std::time::Instant;

/// The configuration, model and device that all cases share.
pub(super) struct Bench<'b> {
    pub(super) cfg: &'b BenchConfig,
    pub(super) subject: &'b Subject,
    pub(super) device: Device,
}

/// Seconds of the parts of one run, in order, and the tokens made or trained on.
type Run = (Vec<f64>, usize);

const SCHEDULE: Schedule = Schedule { kind: ScheduleKind::Constant, warmup: 0, total: 1 };

impl Bench<'_> {
    /// Builds what the case needs, runs it once to warm up, and then as often as asked.
    pub(super) fn measure(&self, case: BenchCase) -> Result<Measured> {
        reset_peak();
        match case {
            BenchCase::Generate(batch) => self.generate(case, batch),
            BenchCase::Train(tokens) => self.train(case, tokens),
            BenchCase::Ppo(batch) => self.ppo(case, batch),
        }
    }

    /// Refuses sequences that are longer than the model's positions.
    pub(super) fn fits(&self, case: BenchCase) -> Result<()> {
        let longest = match case {
            BenchCase::Train(tokens) => tokens,
            _ => self.cfg.prompt_tokens + self.cfg.new_tokens,
        };
        let room = self.subject.config.arch()?.max_positions;
        if longest > room {
            return Err(Error::user(format!(
                "--case {case} has sequences of {longest} tokens, {} has {room} positions; use \
                 shorter ones",
                self.subject.name
            )));
        }
        Ok(())
    }

    /// Options of a model that is trained, or only asked.
    fn options(&self, train: bool) -> LoadOptions {
        let grads = self.cfg.optimizer_state.grads();
        LoadOptions { train, grads, ..LoadOptions::frozen(Head::Lm, self.dtype()).on(self.device) }
    }

    fn trained(&self, model: Model) -> Result<Engine> {
        let adamw = AdamWConfig {
            learning_rate: 1e-5,
            lora_learning_rate: 1e-5,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            state: self.cfg.optimizer_state,
            offload: false,
        };
        Engine::trained(model, adamw, self.cfg.gradient_checkpointing)
    }

    fn dtype(&self) -> DType {
        self.cfg.dtype.dtype()
    }

    fn repeat(&self, mut run: impl FnMut(u64) -> Result<Run>) -> Result<(Vec<Vec<f64>>, usize)> {
        run(0)?;
        let mut all = vec![];
        let mut tokens = 0;
        for i in 1..=self.cfg.repeat as u64 {
            let (seconds, made) = run(i)?;
            all.push(seconds);
            tokens = made;
        }
        Ok((all, tokens))
    }

    /// Puts seconds and operations together; one part alone is the whole.
    fn measured(
        &self,
        case: BenchCase,
        sequences: usize,
        (runs, tokens): (Vec<Vec<f64>>, usize),
        parts: &[(&'static str, f64)],
    ) -> Measured {
        let phase = |i: usize, &(name, flops): &(&'static str, f64)| Phase {
            name,
            flops,
            seconds: Seconds::of(runs.iter().map(|r| r[i])),
        };
        let phases: Vec<Phase> = parts.iter().enumerate().map(|(i, p)| phase(i, p)).collect();
        Measured {
            case: case.to_string(),
            sequences,
            tokens,
            seconds: Seconds::of(runs.iter().map(|r| r.iter().sum())),
            flops: parts.iter().map(|p| p.1).sum(),
            phases: if phases.len() > 1 { phases } else { vec![] },
            steps: None,
            peak_bytes: peak_bytes(),
        }
    }

    /// Random sequences, the same in every run of the program.
    fn sequences(&self, count: usize, tokens: usize, vocab: usize) -> Vec<Vec<i32>> {
        let mut rng = Rng::new(self.cfg.seed, 1 << 40);
        let mut one = || (0..tokens).map(|_| rng.below(vocab as u32) as i32).collect();
        (0..count).map(|_| one()).collect()
    }

    /// Draws from the whole distribution, never an end token.
    fn sampling(&self) -> Sampling {
        let n = self.cfg.new_tokens;
        Sampling {
            temperature: 1.0,
            min_new_tokens: n,
            seed: self.cfg.seed,
            ..Sampling::greedy(n, vec![0])
        }
    }

    fn generate(&self, case: BenchCase, batch: usize) -> Result<Measured> {
        let (prompt, new) = (self.cfg.prompt_tokens, self.cfg.new_tokens);
        let model = self.subject.model(&self.options(false))?;
        let cost = Cost::of(&model.arch, Head::Lm)?;
        let prompts = self.sequences(batch, prompt, model.arch.vocab);
        let prompts: Vec<&[i32]> = prompts.iter().map(Vec::as_slice).collect();
        let (mut engine, mut ws) =
            (Engine::frozen(model), Workspace::new(self.device, usize::MAX)?);
        let sampling = self.sampling();
        let runs = self.repeat(|i| {
            let numbers: Vec<u64> = (0..batch as u64).map(|k| i * batch as u64 + k).collect();
            let (clock, mut heard, mut prefill) = (Instant::now(), 0, 0.0);
            // The prefill is over when each sequence has its first token.
            let mut on_token = |_, _| {
                heard += 1;
                if heard == batch {
                    prefill = clock.elapsed().as_secs_f64();
                }
            };
            let answers = engine.generate(&mut ws, &prompts, &numbers, &sampling, &mut on_token)?;
            let decode = clock.elapsed().as_secs_f64() - prefill;
            Ok((vec![prefill, decode], answers.iter().map(|a| a.tokens.len()).sum()))
        })?;
        let [prefill, decode] = cost.generation(batch, prompt, new);
        let mut measured =
            self.measured(case, batch, runs, &[("prefill", prefill), ("decode", decode)]);
        if new > 1 {
            measured.steps = Some((new - 1, cost.step_bytes(self.dtype())));
        }
        Ok(measured)
    }

    fn train(&self, case: BenchCase, tokens: usize) -> Result<Measured> {
        let batch = self.cfg.train_sequences;
        let model = self.subject.model(&self.options(true))?;
        let cost = Cost::of(&model.arch, Head::Lm)?;
        let rows = self.sequences(batch, tokens, model.arch.vocab);
        let examples: Vec<SftExample> =
            rows.into_iter().map(|ids| SftExample::new(ids, 1)).collect();
        let examples: Vec<&SftExample> = examples.iter().collect();
        let step = StepConfig {
            schedule: SCHEDULE,
            micro_batch_tokens: MICRO_BATCH_TOKENS,
            seed: self.cfg.seed,
        };
        let engine = self.trained(model)?;
        let loss = Box::new(Sft { loss_on_prompt: true });
        let mut trainer = OfflineTrainer::new(engine, Reference::None, loss, step)?;
        let mut ws = Workspace::new(self.device, usize::MAX)?;
        let runs = self.repeat(|_| {
            let clock = Instant::now();
            let done = trainer.train(&mut ws, &examples)?;
            Ok((vec![clock.elapsed().as_secs_f64()], done.tokens))
        })?;
        let flops = cost.training(batch, tokens, tokens - 1);
        Ok(self.measured(case, batch, runs, &[("step", flops)]))
    }

    /// Models as in a run: a frozen copy of the actor is the reference, critic and reward model are
    /// of the same smaller shape.
    fn models(&self) -> Result<OnlineModels> {
        let copy = |of: &Model| -> Result<Engine> {
            let options = LoadOptions { head: of.head, ..self.options(false) };
            let model = Model::empty(&of.config, &options)?;
            model.store.copy_from(&of.store)?;
            Ok(Engine::frozen(model))
        };
        let actor = self.subject.model(&self.options(true))?;
        let critic = self.subject.critic(&self.options(true))?;
        let (reference, reward) = (copy(&actor)?, copy(&critic)?);
        Ok(OnlineModels {
            actor: self.trained(actor)?,
            reference: Reference::model(reference),
            critic: Some(self.trained(critic)?),
            reward: Box::new(ModelReward { engine: reward, retokenise: None }),
        })
    }

    /// PPO as it is by default, with one optimizer step over the experience.
    fn ppo_config(&self, batch: usize) -> Result<OnlineConfig> {
        let (cfg, step_3) = (RunConfig::default(), DEEPSPEED_CHAT[2]);
        let from = step_3.online().ok_or_else(|| Error::internal("step 3 samples nothing"))?;
        let keys = Online::of(&cfg, step_3, from)?;
        Ok(OnlineConfig {
            sampling: self.sampling(),
            minibatch: batch,
            actor_schedule: SCHEDULE,
            critic_schedule: SCHEDULE,
            ..keys.config(&cfg, vec![], 1)
        })
    }

    fn ppo(&self, case: BenchCase, batch: usize) -> Result<Measured> {
        let (prompt, new) = (self.cfg.prompt_tokens, self.cfg.new_tokens);
        let models = self.models()?;
        let actor = Cost::of(&models.actor.model.arch, Head::Lm)?;
        let score = models.reward.engine().unwrap_or(&models.actor);
        let critic = Cost::of(&score.model.arch, Head::Score)?;
        let prompts = self.sequences(batch, prompt, models.actor.model.arch.vocab);
        let prompts: Vec<PromptExample> = prompts.into_iter().map(PromptExample::new).collect();
        let prompts: Vec<&PromptExample> = prompts.iter().collect();
        let mut trainer = OnlineTrainer::new(models, self.ppo_config(batch)?)?;
        let mut ws = Workspace::new(self.device, usize::MAX)?;
        let runs = self.repeat(|_| {
            let clock = Instant::now();
            let experience = trainer.generate_experience(&mut ws, &prompts)?;
            let (made, generated) = (clock.elapsed().as_secs_f64(), trainer.generate_seconds);
            let stats = trainer.train_rlhf(&mut ws, &experience, &[])?;
            if let Some(why) = stats.skipped.first() {
                return Err(Error::user(format!("--case {case}: {why}")));
            }
            let trained = clock.elapsed().as_secs_f64() - made;
            let tokens = experience.rollouts.iter().map(|r| r.logprobs.len()).sum();
            Ok((vec![generated, made - generated, trained], tokens))
        })?;
        let whole = prompt + new;
        let generation: f64 = actor.generation(batch, prompt, new).iter().sum();
        let score = actor.forward(batch, 0, whole, new)
            + critic.forward(batch, 0, whole, new)
            + critic.forward(batch, 0, whole, 1);
        let train = actor.training(batch, whole, new) + critic.training(batch, whole, new);
        let parts = [("generate", generation), ("score", score), ("train", train)];
        Ok(self.measured(case, batch, runs, &parts))
    }
}

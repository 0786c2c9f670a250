//! The hybrid engine: one model, one weight allocation, two phases. `generate` and `accumulate`
//! read the same store; switching phases moves no weight, it only makes or drops the KV-cache.
//!
//! Knows phases and their memory, no losses and no files: what is to be saved it hands out by name.

use crate::base::{Error, Result};
use crate::comm::Comm;
use crate::formats::{Snapshot, SnapshotBuilder};
use crate::model::{Draw, Head, KvCache, Model, Pass};
use crate::rollout::{Answer, Sampling, generate};
use crate::tape::{ActivationCheckpointing, Tape, Workspace};
use crate::tensor::Tensor;
use crate::train::{AdamWConfig, Batch, Ema, Optimizer, StepStats};

/// The phase that the engine is set up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Optimizer steps.
    Training,
    /// Generation, with a KV-cache.
    Generation,
}

/// A model with what its phases need.
#[derive(Debug)]
pub struct Engine {
    /// The model; its store is the only copy of the weights.
    pub model: Model,
    optimizer: Option<Optimizer>,
    ema: Option<Ema>,
    checkpointing: ActivationCheckpointing,
    cache: Option<KvCache>,
    phase: Phase,
}

impl Engine {
    /// An engine for a frozen model.
    pub fn frozen(model: Model) -> Engine {
        Engine {
            model,
            optimizer: None,
            ema: None,
            checkpointing: ActivationCheckpointing::None,
            cache: None,
            phase: Phase::Training,
        }
    }

    /// The ranks that share the work.
    pub fn comm(&self) -> &Comm {
        &self.model.store.partition().comm
    }

    /// An engine for a model to be trained; `keep` says what backward finds kept.
    pub fn trained(
        model: Model,
        config: AdamWConfig,
        checkpointing: ActivationCheckpointing,
    ) -> Result<Engine> {
        let optimizer = Some(Optimizer::new(&model, config)?);
        Ok(Engine { optimizer, checkpointing, ..Engine::frozen(model) })
    }

    /// Starts a moving average of the weights.
    pub fn enable_ema(&mut self, ws: &mut Workspace, decay: f32) -> Result<()> {
        self.ema = Some(Ema::new(ws, &self.model, decay)?);
        Ok(())
    }

    /// The moving average, if there is one.
    pub fn ema(&self) -> Option<&Ema> {
        self.ema.as_ref()
    }

    /// The current phase.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Switches to generation, with room for `sequences` sequences of `max_len` tokens.
    pub fn eval(&mut self, sequences: usize, max_len: usize) -> Result<()> {
        let pages = max_len.div_ceil(crate::model::PAGE);
        let fits = |c: &KvCache| c.pages >= pages && c.spare() as usize >= sequences * c.pages;
        if !self.cache.as_ref().is_some_and(fits) {
            self.cache = None;
            self.cache = Some(KvCache::new(&self.model, sequences, max_len)?);
        }
        self.phase = Phase::Generation;
        Ok(())
    }

    /// Switches to training and drops the KV-cache.
    pub fn train(&mut self) {
        self.cache = None;
        self.phase = Phase::Training;
    }

    /// Generates an answer to each prompt, with draws numbered by `sequences`.
    pub fn generate(
        &mut self,
        ws: &mut Workspace,
        prompts: &[&[i32]],
        sequences: &[u64],
        sampling: &Sampling,
        on_token: &mut dyn FnMut(usize, i32),
    ) -> Result<Vec<Answer>> {
        let longest = prompts.iter().map(|p| p.len()).max().unwrap_or(0);
        self.eval(prompts.len(), longest + sampling.max_new_tokens)?;
        let cache = self.cache.as_ref().expect("made by eval");
        self.model.store.enter_tp()?;
        let done = generate(&self.model, ws, cache, prompts, sequences, sampling, on_token);
        self.model.store.exit_tp();
        done
    }

    /// The ranks that each generate answers of their own: those of tensor parallelism count as one.
    pub fn generators(&self) -> &Comm {
        let store = &self.model.store;
        if store.shares_weights() { &store.partition().slice } else { self.comm() }
    }

    /// Log-probabilities at the selected rows of `batch`, at `temperature`, none if it is idle;
    /// `adapters: false` asks the base model, which is the reference policy of a LoRA actor.
    pub fn logprobs(
        &self,
        ws: &mut Workspace,
        batch: &Batch,
        temperature: f32,
        adapters: bool,
    ) -> Result<Vec<f32>> {
        let key = format!("logprobs {} {adapters}", self.model.store.id());
        ws.run(&key, batch, |tape, batch: &Batch| {
            let pass = Pass { adapters, ..Pass::EVAL };
            let (hidden, select) = batch.hidden(tape, &self.model, pass)?;
            let targets = tape.input_i32(&batch.targets)?;
            let (logp, _) = self.model.logprobs(tape, hidden, select, targets, temperature)?;
            let logp = tape.read_f32(logp)?;
            Ok(if batch.idle { vec![] } else { logp })
        })
    }

    /// Scores at the selected rows of `batch`; none if it is idle.
    pub fn scores(&self, ws: &mut Workspace, batch: &Batch) -> Result<Vec<f32>> {
        if self.model.head != Head::Score {
            return Err(Error::internal("scores of a language model"));
        }
        ws.run(&format!("scores {}", self.model.store.id()), batch, |tape, batch: &Batch| {
            let (hidden, select) = batch.hidden(tape, &self.model, Pass::EVAL)?;
            let scores = self.model.scores(tape, hidden, select)?;
            let scores = tape.read_f32(scores)?;
            Ok(if batch.idle { vec![] } else { scores })
        })
    }

    /// Adds the gradients of one micro-batch. `loss` builds f32 `[1]` losses, all of which are
    /// propagated, and statistics to read back; `name` tells programs apart. `dropout` seeds LoRA
    /// dropout, another one every step. Returns losses, then statistics; zeros for a batch that is
    /// idle.
    pub fn accumulate(
        &self,
        ws: &mut Workspace,
        name: &str,
        batch: &Batch,
        dropout: Option<u64>,
        loss: &LossFn<'_>,
    ) -> Result<Vec<Vec<f32>>> {
        let key = format!("{name} {}", self.model.store.id());
        let dropout = dropout.map(|seed| Draw { seed, first: batch.first });
        let pass = Pass { checkpointing: self.checkpointing, adapters: true, dropout };
        ws.run(&key, batch, |tape, batch: &Batch| {
            tape.record();
            let (hidden, select) = batch.hidden(tape, &self.model, pass)?;
            let LossOutput { losses, stats } = loss(tape, &self.model, batch, hidden, select)?;
            let one: &[f32] = &[1.0];
            let seeds: Vec<(Tensor, &[f32])> = losses.iter().map(|l| (*l, one)).collect();
            tape.backward_from(&seeds)?;
            losses.iter().chain(&stats).map(|t| tape.read_f32(*t)).collect()
        })
    }

    /// The losses of one micro-batch, without gradients.
    pub fn evaluate(
        &self,
        ws: &mut Workspace,
        name: &str,
        batch: &Batch,
        loss: &LossFn<'_>,
    ) -> Result<Vec<Vec<f32>>> {
        let key = format!("{name} eval {}", self.model.store.id());
        ws.run(&key, batch, |tape, batch: &Batch| {
            let (hidden, select) = batch.hidden(tape, &self.model, Pass::EVAL)?;
            let LossOutput { losses, stats } = loss(tape, &self.model, batch, hidden, select)?;
            losses.iter().chain(&stats).map(|t| tape.read_f32(*t)).collect()
        })
    }

    /// Applies the accumulated gradients at `factor` of the peak learning rate. `loss` is the sum
    /// of the losses they come from, over all ranks: where it is not finite they are dropped, as
    /// they are where they are not finite themselves.
    pub fn step(&mut self, ws: &mut Workspace, factor: f32, loss: f32) -> Result<StepStats> {
        let Some(optimizer) = &mut self.optimizer else {
            return Err(Error::internal("a frozen model was asked to step"));
        };
        let stats = optimizer.step(ws, &self.model, factor, loss)?;
        if let (Some(ema), None) = (&self.ema, &stats.skipped) {
            ema.update(ws, &self.model)?;
        }
        Ok(stats)
    }

    /// An error of [`Kind::Diverged`](crate::base::Kind) if an optimizer step has made a number
    /// that is not finite. Steps themselves tell of the one before them.
    pub fn check(&self) -> Result<()> {
        self.optimizer.as_ref().map_or(Ok(()), |optimizer| optimizer.check(&self.model))
    }

    /// Adds to `out` under `at` what training changes: trained weights, optimizer state, moving
    /// average. The tensors are read when they are copied or written. Between steps only: gradients
    /// are no state, those that wait are an error.
    pub fn save<'a>(&'a self, at: &str, out: &mut SnapshotBuilder<'a>) -> Result<()> {
        let store = &self.model.store;
        if store.has_grads() {
            return Err(Error::internal(format!("{at}: saved with gradients that wait")));
        }
        self.check()?;
        out.allow_any_value(self.model.not_finite);
        for (id, p) in store.trained() {
            let name = format!("{at}/weight/{}", p.spec.name);
            out.tensor(name, store.dtype(), &p.spec.shape, move |to| store.read_raw_into(id, to));
        }
        if let Some(optimizer) = &self.optimizer {
            optimizer.save(&self.model, at, out)?;
        }
        self.ema.as_ref().map_or(Ok(()), |ema| ema.save(&self.model, at, out))
    }

    /// Takes from `from` what [`Engine::save`] put there. The engine must be made and set up as
    /// that one was: frozen weights are not in a snapshot.
    pub fn restore(&mut self, at: &str, from: &Snapshot) -> Result<()> {
        let store = &self.model.store;
        for (id, p) in store.trained() {
            let name = format!("{at}/weight/{}", p.spec.name);
            store.write_raw(id, &from.tensor(&name, store.dtype(), &p.spec.shape)?)?;
        }
        if let Some(optimizer) = &mut self.optimizer {
            optimizer.restore(&self.model, at, from)?;
        }
        self.ema.as_ref().map_or(Ok(()), |ema| ema.restore(&self.model, at, from))
    }

    /// Bytes of weights and gradients on the device, of optimizer state, and of the KV-cache.
    pub fn memory(&self) -> [usize; 4] {
        let (weights, grads) = self.model.store.bytes();
        let optimizer = self.optimizer.as_ref().map_or(0, Optimizer::bytes);
        [weights, grads, optimizer, self.cache.as_ref().map_or(0, KvCache::bytes)]
    }
}

/// The result of a loss function: f32 `[1]` losses, and statistics.
#[derive(Debug, Default)]
pub struct LossOutput {
    /// Losses to propagate.
    pub losses: Vec<Tensor>,
    /// Tensors to read back.
    pub stats: Vec<Tensor>,
}

/// A loss over (tape, model, batch, hidden states `[tokens, hidden]`, selected rows `[n]`).
pub type LossFn<'l> =
    dyn for<'a> Fn(&mut Tape<'a>, &'a Model, &Batch, Tensor, Tensor) -> Result<LossOutput> + 'l;

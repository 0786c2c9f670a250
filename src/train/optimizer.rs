//! AdamW on the flat partitions of a store: one launch per bucket, global gradient clipping, no
//! weight decay on vectors, a learning rate of their own for adapters. What is kept of a bucket
//! between steps is in `state.rs`.

use crate::base::{DType, Error, Result};
use crate::device::{Buffer, Region};
use crate::formats::{Snapshot, SnapshotBuilder};
use crate::model::Model;
use crate::op::adamw::{AdamW, Group};
use crate::op::squared_norm::squared_norm;
use crate::pool::{Partition, Zero};
use crate::tape::{Tape, Workspace};
use crate::tensor::{Desc, Tensor};
use crate::train::state::{AdamWState, State};

/// Settings of the optimizer.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Peak learning rate.
    pub learning_rate: f32,
    /// Peak learning rate of LoRA adapters.
    pub lora_learning_rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay, on matrices only.
    pub weight_decay: f32,
    /// Gradients are scaled down to this global norm; 0 = never.
    pub max_grad_norm: f32,
    /// How moments and what bf16 weights lack are kept.
    pub state: AdamWState,
    /// They are kept in the host's memory, and steps are computed there: weights and gradients go
    /// to and fro.
    pub offload: bool,
}

/// The result of one optimizer step.
#[derive(Clone, Debug)]
pub struct StepStats {
    /// Global L2 norm of the gradients before clipping.
    pub grad_norm: f32,
    /// Why nothing was changed: the loss or the gradients were not finite.
    pub skipped: Option<String>,
}

/// One bucket and its optimizer state.
#[derive(Debug)]
struct Part {
    bucket: usize,
    state: State,
    /// Runs of this rank's own elements: start, end, has weight decay, is an adapter.
    ranges: Vec<(usize, usize, bool, bool)>,
}

/// AdamW over all trained parameters of a model.
#[derive(Debug)]
pub struct Optimizer {
    /// The settings.
    pub config: AdamWConfig,
    parts: Vec<Part>,
    steps: u32,
    /// 1 from the first step on that made a number of weights or state that is not finite, where
    /// steps are computed. It is read when the device is waited for anyway.
    broken: Buffer,
    /// Where steps are computed, if the state is not on the model's device.
    host: Option<Workspace>,
}

impl Optimizer {
    /// Fresh state for the trained parameters of `model`. Compact state needs bf16 weights.
    pub fn new(model: &Model, config: AdamWConfig) -> Result<Optimizer> {
        let store = &model.store;
        let home = if config.offload { store.device().host() } else { store.device() };
        let mut parts = vec![];
        for (bucket, f) in store.buckets().iter().enumerate().filter(|(_, f)| f.trained) {
            let mut ranges = vec![];
            for p in store.params().iter().filter(|p| p.bucket == bucket) {
                let matrix = p.slice.len() > 1 && p.spec.name != "score.weight";
                let adapter = p.spec.name.contains(".lora.");
                for block in 0..store.partition().blocks {
                    let start = block * f.block + p.offset;
                    let here = start.max(f.own.start)..(start + p.slice_len()).min(f.own.end);
                    if !here.is_empty() {
                        let [start, end] = [here.start, here.end].map(|at| at - f.own.start);
                        ranges.push((start, end, matrix, adapter));
                    }
                }
            }
            ranges.sort_unstable();
            parts.push(Part {
                bucket,
                state: State::new(config.state, store, bucket, home)?,
                ranges,
            });
        }
        let host =
            (home != store.device()).then(|| Workspace::new(home, usize::MAX)).transpose()?;
        let broken = Buffer::zeroed(home, 4)?;
        Ok(Optimizer { config, parts, steps: 0, broken, host })
    }

    /// Size of the optimizer state.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|p| p.state.bytes()).sum()
    }

    /// Steps done so far.
    pub fn steps(&self) -> u32 {
        self.steps
    }

    /// Adds the state of every trained parameter to `out`, under `at`.
    pub fn save<'a>(
        &'a self,
        model: &'a Model,
        at: &str,
        out: &mut SnapshotBuilder<'a>,
    ) -> Result<()> {
        out.set(&format!("{at}.optimizer_steps"), self.steps);
        let store = &model.store;
        for (id, p) in store.trained() {
            self.part(p.bucket)?.state.save(store, id, at, out)?;
        }
        Ok(())
    }

    /// Takes the state from where [`Optimizer::save`] put it.
    pub fn restore(&mut self, model: &Model, at: &str, from: &Snapshot) -> Result<()> {
        self.steps = from.get(&format!("{at}.optimizer_steps"))?;
        let store = &model.store;
        for (id, p) in store.trained() {
            self.part(p.bucket)?.state.restore(store, id, at, from)?;
        }
        Ok(())
    }

    fn part(&self, bucket: usize) -> Result<&Part> {
        let part = self.parts.iter().find(|p| p.bucket == bucket);
        part.ok_or_else(|| Error::internal("a trained bucket without optimizer state"))
    }

    /// Sums the gradients in the store over its ranks, applies them at `factor` of the peak
    /// learning rates, and forgets them. Gradients that are not finite change nothing, nor do those
    /// of a `loss` that is not finite.
    ///
    /// # Errors
    /// The step before has made a number that is not finite; see [`Optimizer::check`].
    pub fn step(
        &mut self,
        ws: &mut Workspace,
        model: &Model,
        factor: f32,
        loss: f32,
    ) -> Result<StepStats> {
        model.store.reduce_grads()?;
        let (grad_norm, broken) = self.grad_norm(ws, model)?;
        if broken {
            return Err(self.diverged(model)?);
        }
        if !grad_norm.is_finite() || !loss.is_finite() {
            let skipped = Some(what_is_wrong(model, grad_norm, loss)?);
            model.store.reset_grads();
            return Ok(StepStats { grad_norm, skipped });
        }
        let limit = self.config.max_grad_norm;
        let clip = if limit > 0.0 && grad_norm > limit { limit / grad_norm } else { 1.0 };
        self.steps += 1;
        let mut host = self.host.take();
        let done = match &mut host {
            Some(host) => self.step_on_host(host, model, clip, factor),
            None => self.step_on_device(ws, model, clip, factor),
        };
        self.host = host;
        done?;
        model.store.all_gather_weights()?;
        model.store.reset_grads();
        Ok(StepStats { grad_norm, skipped: None })
    }

    fn step_on_device(
        &self,
        ws: &mut Workspace,
        model: &Model,
        clip: f32,
        factor: f32,
    ) -> Result<()> {
        let store = &model.store;
        ws.run(&format!("adamw {}", store.id()), &(), |tape, ()| {
            let clip = tape.input_f32(&[clip])?;
            let broken = tape.bind(self.broken.region(), Desc::new(&[1], DType::I32));
            for part in &self.parts {
                let own = &store.buckets()[part.bucket].own;
                let (w, g) = (store.weights(part.bucket, own), store.grads(part.bucket, own)?);
                self.update(tape, model, part, [w, g], [clip, broken], factor)?;
            }
            Ok(())
        })
    }

    /// The same with copies of weights and gradients, a bucket at a time.
    fn step_on_host(
        &self,
        host: &mut Workspace,
        model: &Model,
        clip: f32,
        factor: f32,
    ) -> Result<()> {
        let store = &model.store;
        for part in &self.parts {
            let own = &store.buckets()[part.bucket].own;
            let (there, grads) = (store.weights(part.bucket, own), store.grads(part.bucket, own)?);
            if store.device().is_fake() {
                Buffer::zeroed(store.device().host(), there.bytes() + grads.bytes())?;
                continue;
            }
            let mut copies = [vec![0u8; there.bytes()], vec![0u8; grads.bytes()]];
            there.read(&mut copies[0])?;
            grads.read(&mut copies[1])?;
            let here = copies.each_mut().map(|c| Region::of_host(c));
            host.run(&format!("adamw {}", part.bucket), &(), |tape, ()| {
                let clip = tape.input_f32(&[clip])?;
                let broken = tape.bind(self.broken.region(), Desc::new(&[1], DType::I32));
                self.update(tape, model, part, here, [clip, broken], factor)
            })?;
            there.write(&copies[0])?;
        }
        Ok(())
    }

    /// An error of [`Kind::Diverged`](crate::base::Kind) if a step has made a weight, as it is
    /// stored, or a moment that is not finite. All ranks ask at the same time. To be asked before
    /// weights or state are saved: the step itself does not wait for the device.
    pub fn check(&self, model: &Model) -> Result<()> {
        let Partition { comm, stage, .. } = model.store.partition();
        let own = self.is_broken()?;
        let broken = if *stage == Zero::Nothing { own } else { comm.any([own])?[0] };
        if broken { Err(self.diverged(model)?) } else { Ok(()) }
    }

    /// True if a step has broken a number that is this rank's.
    fn is_broken(&self) -> Result<bool> {
        let mut word = [0; 4];
        self.broken.read(0, &mut word)?;
        Ok(word != [0; 4])
    }

    /// The error of the last step, which has made numbers that are not finite.
    fn diverged(&self, model: &Model) -> Result<Error> {
        let mut left = "its own state".to_string();
        for (id, p) in model.store.trained() {
            let weights = model.store.read_f32(id)?;
            let bad = weights.iter().filter(|w| !w.is_finite()).count();
            if bad > 0 {
                left = format!("{bad} of {} values of {}", weights.len(), p.spec.name);
                break;
            }
        }
        Ok(Error::diverged(format!(
            "optimizer step {} has left {left} not finite; lower the learning rate, or bring \
             adam_eps, adam_beta1 and adam_beta2 nearer to their defaults; the step is not saved, \
             and the checkpoints are as they were",
            self.steps
        )))
    }

    /// The norm of the gradients of all ranks; true if a step before has broken a number of any.
    fn grad_norm(&self, ws: &mut Workspace, model: &Model) -> Result<(f32, bool)> {
        let sums = ws.run(&format!("grad norm {}", model.store.id()), &(), |tape, ()| {
            let mut sums = vec![];
            for part in &self.parts {
                for run in model.store.first_replicas(part.bucket) {
                    let desc = Desc::new(&[run.len()], model.store.grad_dtype());
                    let g = tape.bind(model.store.grads(part.bucket, &run)?, desc);
                    let sum = squared_norm(tape, g)?;
                    sums.push(tape.read_f32(sum)?[0]);
                }
            }
            Ok(sums)
        })?;
        let sum = sums.iter().map(|s| f64::from(*s)).sum::<f64>();
        let Partition { comm, stage, .. } = model.store.partition();
        let own = [sum, f64::from(u8::from(self.is_broken()?))];
        let all = if *stage == Zero::Nothing { vec![own] } else { comm.concat(&[own])? };
        let norm = all.iter().map(|rank| rank[0]).sum::<f64>().sqrt() as f32;
        Ok((norm, all.iter().any(|rank| rank[1] > 0.0)))
    }

    fn update<'a>(
        &self,
        tape: &mut Tape<'a>,
        model: &Model,
        part: &'a Part,
        [w, g]: [Region<'a>; 2],
        [clip, broken]: [Tensor; 2],
        factor: f32,
    ) -> Result<()> {
        let c = &self.config;
        let store = &model.store;
        let n = Desc::new(&[store.buckets()[part.bucket].own.len()], DType::F32);
        let w = tape.bind(w, Desc { dtype: store.dtype(), ..n });
        let g = tape.bind(g, Desc { dtype: store.grad_dtype(), ..n });
        let groups = part
            .ranges
            .iter()
            .map(|&(start, end, decay, adapter)| Group {
                start,
                end,
                lr: factor * if adapter { c.lora_learning_rate } else { c.learning_rate },
                weight_decay: if decay { c.weight_decay } else { 0.0 },
            })
            .collect();
        let op = AdamW { groups, beta1: c.beta1, beta2: c.beta2, eps: c.eps, step: self.steps };
        part.state.update(tape, op, [w, g, clip, broken])
    }
}

/// The loss and, where gradients are at fault, the parameter whose gradient is the first that is
/// not finite on the way back: from the last segment to the first.
fn what_is_wrong(model: &Model, grad_norm: f32, loss: f32) -> Result<String> {
    let loss = format!("the loss is {loss}");
    if grad_norm.is_finite() {
        return Ok(format!("{loss}, all gradients are finite"));
    }
    let store = &model.store;
    let mut trained: Vec<_> = store.trained().collect();
    trained.sort_by_key(|(id, p)| std::cmp::Reverse((p.spec.segment, id.0)));
    for (id, p) in trained {
        let grad = store.read_grad(id)?;
        let bad = grad.iter().filter(|g| !g.is_finite()).count();
        if bad > 0 {
            let (name, n) = (&p.spec.name, grad.len());
            return Ok(format!(
                "{loss}, the gradient of {name} is not finite in {bad} of {n} values"
            ));
        }
    }
    Ok(format!("{loss}, the norm of the gradients is {grad_norm} though each is finite"))
}

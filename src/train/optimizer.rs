//! AdamW on the flat partitions of a store: one launch per flat, global gradient clipping, no weight
//! decay on vectors, a learning rate of their own for adapters. With bf16 weights an f32 master copy
//! is kept.

use crate::base::{DType, Result};
use crate::device::Buffer;
use crate::model::Model;
use crate::op::adamw::{AdamW, Group, adamw};
use crate::op::sum_sq::sum_sq;
use crate::tape::{Tape, Workspace};
use crate::tensor::{Desc, Tensor};

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
}

/// What one optimizer step did.
#[derive(Clone, Copy, Debug)]
pub struct StepStats {
    /// Global L2 norm of the gradients before clipping.
    pub grad_norm: f32,
    /// The gradients were not finite and nothing was changed.
    pub skipped: bool,
}

/// Optimizer state of one flat.
#[derive(Debug)]
struct State {
    flat: usize,
    m: Buffer,
    v: Buffer,
    master: Option<Buffer>,
    /// Element ranges: start, end, has weight decay, is an adapter.
    ranges: Vec<(usize, usize, bool, bool)>,
}

/// AdamW over all trained parameters of a model.
#[derive(Debug)]
pub struct Optimizer {
    /// The settings.
    pub config: AdamWConfig,
    states: Vec<State>,
    steps: u32,
}

impl Optimizer {
    /// Fresh state for the trained parameters of `model`.
    pub fn new(model: &Model, config: AdamWConfig) -> Result<Optimizer> {
        let store = &model.store;
        let mut states = vec![];
        for (flat, f) in store.flats().iter().enumerate().filter(|(_, f)| f.trained) {
            let one = || Buffer::zeroed(store.device(), f.block * 4);
            let ranges = store
                .params()
                .iter()
                .filter(|p| p.flat == flat)
                .map(|p| {
                    let n: usize = p.slice.iter().product();
                    let matrix = p.slice.len() > 1 && p.spec.name != "score.weight";
                    (p.offset, p.offset + n, matrix, p.spec.name.contains(".lora."))
                })
                .collect();
            let master = (store.dtype() == DType::Bf16).then(one).transpose()?;
            states.push(State { flat, m: one()?, v: one()?, master, ranges });
        }
        let optimizer = Optimizer { config, states, steps: 0 };
        optimizer.reset_master(model)?;
        Ok(optimizer)
    }

    /// Sets the f32 master copies from the weights.
    fn reset_master(&self, model: &Model) -> Result<()> {
        for s in &self.states {
            let Some(master) = &s.master else { continue };
            let flat = &model.store.flats()[s.flat];
            let mut raw = vec![0u8; flat.block * 2];
            flat.weights.read(0, &mut raw)?;
            let wide: Vec<u8> = raw
                .chunks_exact(2)
                .flat_map(|b| [0, 0, b[0], b[1]]) // bf16 is the upper half of a little-endian f32
                .collect();
            master.write(0, &wide)?;
        }
        Ok(())
    }

    /// Size of the optimizer state.
    pub fn bytes(&self) -> usize {
        let size =
            |s: &State| s.m.bytes() + s.v.bytes() + s.master.as_ref().map_or(0, Buffer::bytes);
        self.states.iter().map(size).sum()
    }

    /// Steps done so far.
    pub fn steps(&self) -> u32 {
        self.steps
    }

    /// Applies the gradients in the store at `factor` of the peak learning rates, and forgets them.
    /// Gradients that are not finite change nothing.
    pub fn step(&mut self, ws: &mut Workspace, model: &Model, factor: f32) -> Result<StepStats> {
        model.store.settle_grads()?;
        let grad_norm = self.grad_norm(ws, model)?;
        if !grad_norm.is_finite() {
            model.store.reset_grads();
            return Ok(StepStats { grad_norm, skipped: true });
        }
        let limit = self.config.max_grad_norm;
        let clip = if limit > 0.0 && grad_norm > limit { limit / grad_norm } else { 1.0 };
        self.steps += 1;
        let this: &Optimizer = self;
        ws.run(&format!("adamw {}", model.store.id()), &(), |tape, ()| {
            let clip = tape.input_f32(&[clip])?;
            for s in &this.states {
                this.update(tape, model, s, clip, factor)?;
            }
            Ok(())
        })?;
        model.store.reset_grads();
        Ok(StepStats { grad_norm, skipped: false })
    }

    fn grad_norm(&self, ws: &mut Workspace, model: &Model) -> Result<f32> {
        let sums = ws.run(&format!("grad norm {}", model.store.id()), &(), |tape, ()| {
            let mut sums = vec![];
            for s in &self.states {
                let flat = &model.store.flats()[s.flat];
                let grads = flat.grads.as_ref().expect("trained");
                let g = tape.bind(grads.region(), Desc::new(&[flat.block], DType::F32));
                let sum = sum_sq(tape, g)?;
                sums.push(tape.read_f32(sum)?[0]);
            }
            Ok(sums)
        })?;
        Ok(sums.iter().map(|s| f64::from(*s)).sum::<f64>().sqrt() as f32)
    }

    fn update(
        &self,
        tape: &mut Tape<'_>,
        model: &Model,
        s: &State,
        clip: Tensor,
        factor: f32,
    ) -> Result<()> {
        let c = &self.config;
        let flat = &model.store.flats()[s.flat];
        let n = Desc::new(&[flat.block], DType::F32);
        let w = tape.bind(flat.weights.region(), Desc { dtype: model.store.dtype(), ..n });
        let g = tape.bind(flat.grads.as_ref().expect("trained").region(), n);
        let m = tape.bind(s.m.region(), n);
        let v = tape.bind(s.v.region(), n);
        let master = s.master.as_ref().map(|b| tape.bind(b.region(), n));
        let groups = s
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
        adamw(tape, op, w, g, clip, m, v, master)
    }
}

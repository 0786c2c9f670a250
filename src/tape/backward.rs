//! The walk backwards: segments in reverse, records in reverse, each told which gradients are
//! wanted and whether to set or to add.

use super::{Home, Tape};
use crate::base::{DType, Error, Result};
use crate::op::{Backward, Grad, Place, View, ViewMut};
use crate::tensor::{Desc, Tensor};

impl Tape<'_> {
    /// Propagates d(loss) = 1 to every trained parameter. `loss` is f32 `[1]`.
    pub fn backward(&mut self, loss: Tensor) -> Result<()> {
        self.backward_from(&[(loss, &[1.0])])
    }

    /// Propagates given f32 gradients of several tensors.
    pub fn backward_from(&mut self, seeds: &[(Tensor, &[f32])]) -> Result<()> {
        for (tensor, values) in seeds {
            if tensor.desc.dtype != DType::F32 || tensor.desc.shape.numel() != values.len() {
                return Err(Error::internal(format!(
                    "gradient of {:?} has {} values",
                    tensor.desc,
                    values.len()
                )));
            }
            let grad = self.input(tensor.desc, bytemuck::cast_slice(values))?;
            self.grads.insert(tensor.slot, grad);
        }
        let mut end = self.records.len();
        for s in (0..self.segments.len()).rev() {
            let range = self.segments[s].first..end;
            end = range.start;
            self.replay(range.clone(), self.segments[s].keep)?;
            for r in range.rev() {
                self.step_back(r)?;
            }
        }
        Ok(())
    }

    /// Runs record `r` backward if a gradient reached it.
    fn step_back(&mut self, r: usize) -> Result<()> {
        let record = &self.records[r];
        let (op, plan) = (record.op.clone(), record.plan.clone());
        let (ins, outs) = (record.ins.clone(), record.outs.clone());
        let douts: Vec<Option<Tensor>> = (0..outs.len())
            .map(|i| {
                (plan.differentiable >> i & 1 == 1)
                    .then(|| self.grads.get(&outs[i].slot).copied())
                    .flatten()
            })
            .collect();
        if douts.iter().all(Option::is_none) {
            return Ok(());
        }
        let in_place = |i: usize| plan.outs.contains(&Place::InPlace(i));
        let wanted: Vec<bool> = (0..ins.len())
            .map(|i| {
                !in_place(i)
                    && ins[i].is_some_and(|t| t.desc.dtype != DType::I32 && self.needs_grad(&t))
            })
            .collect();
        if !wanted.contains(&true) {
            return Ok(());
        }
        self.clock += 1;
        let saved = |mask: u64, list: &[Option<Tensor>]| -> Vec<Option<Tensor>> {
            list.iter().enumerate().map(|(i, t)| t.filter(|_| mask >> i & 1 == 1)).collect()
        };
        let saved_ins = saved(plan.saves_ins, &ins);
        let some_outs: Vec<Option<Tensor>> = outs.iter().copied().map(Some).collect();
        let saved_outs = saved(plan.saves_outs, &some_outs);
        for t in saved_ins.iter().chain(&saved_outs).chain(&douts).flatten() {
            self.touch(t);
        }
        let mut dins: Vec<Option<(ViewMut<'_>, bool)>> = vec![];
        for i in 0..ins.len() {
            dins.push(if wanted[i] {
                Some(self.grad_target(&ins[i].expect("wanted"))?)
            } else {
                None
            });
        }
        let scratch = self.scratch(plan.scratch_backward)?;
        self.flops += 2 * plan.flops;
        if self.is_planning() {
            return Ok(());
        }
        let views = |list: &[Option<Tensor>]| -> Vec<Option<View<'_>>> {
            list.iter().map(|t| t.map(|t| self.view(&t))).collect()
        };
        let mut io = Backward {
            ins: views(&saved_ins),
            outs: views(&saved_outs),
            douts: views(&douts),
            dins: dins.into_iter().map(|g| g.map(|(view, acc)| Grad { view, acc })).collect(),
            scratch: self.scratch_slice(scratch),
        };
        op.cpu_backward(&mut io).map_err(|e| e.context(format!("{} backward", op.name())))
    }

    /// Where the gradient of `tensor` goes, and whether something is there already.
    fn grad_target<'s>(&mut self, tensor: &Tensor) -> Result<(ViewMut<'s>, bool)> {
        if let Home::Param(store, id) = self.slots[tensor.slot.0 as usize].home {
            let desc = Desc { shape: tensor.desc.shape, dtype: DType::F32 };
            if self.is_planning() {
                return Ok((empty(), false));
            }
            let region = store.regions(id).1.ok_or_else(|| Error::internal("frozen parameter"))?;
            // SAFETY: each parameter's gradient is a range of its own, written by this operator only.
            return Ok((ViewMut::new(unsafe { region.as_bytes_mut() }, desc), store.mark_grad(id)));
        }
        let (grad, acc) = match self.grads.get(&tensor.slot) {
            Some(grad) => (*grad, true),
            None => (self.alloc(tensor.desc, false)?, false),
        };
        self.grads.insert(tensor.slot, grad);
        self.touch(&grad);
        Ok((if self.is_planning() { empty() } else { self.view_mut(&grad) }, acc))
    }
}

fn empty<'s>() -> ViewMut<'s> {
    ViewMut::new(&mut [], Desc::new(&[0], DType::F32))
}

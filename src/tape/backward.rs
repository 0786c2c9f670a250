//! The walk backwards: segments in reverse, records in reverse, each told which gradients are
//! wanted and whether to set or to add.

use super::placed::{self, Placed};
use super::{Home, Tape};
use crate::base::{DType, Error, Result};
use crate::device::Region;
use crate::op::cast_accumulate::CastAccumulate;
use crate::op::{Arg, Backward, CudaBackward, CudaGrad, Grad, Op, Place, View, run_error};
use crate::tensor::{Desc, Tensor};
use std::sync::Arc;

impl<'a> Tape<'a> {
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
            self.segment = s + 1;
            if self.segment < self.segments.len() {
                self.shared.leave();
            }
            self.replay(range.clone(), self.segments[s].checkpointing)?;
            for r in range.rev() {
                self.step_back(r)?;
            }
            self.reduce_grads()?;
        }
        self.end_reductions()
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
        let late = if plan.late { outs } else { vec![] };
        for t in saved_ins.iter().chain(&saved_outs).chain(&douts).flatten().chain(&late) {
            self.touch(t);
        }
        saved_ins.iter().flatten().try_for_each(|t| self.gather(t))?;
        late.iter().for_each(|t| self.slots[t.slot.0 as usize].late = false);
        let kernels = self.device.has_kernels();
        let mut targets: Vec<Option<Target<'a>>> = vec![];
        for i in 0..ins.len() {
            let narrow = !kernels && plan.bf16_grads >> i & 1 == 1;
            targets.push(match ins[i].filter(|_| wanted[i]) {
                Some(input) => Some(self.grad_target(&input, narrow)?),
                None => None,
            });
        }
        let room = if kernels { plan.cuda_scratch_backward } else { plan.scratch_backward };
        let scratch = self.scratch(room)?;
        self.flops += if plan.late { 3 } else { 2 } * plan.flops;
        if self.computes() {
            let saved = Saved { ins: saved_ins, outs: saved_outs, douts, late };
            // SAFETY: they are those of the record, whose plan this is.
            unsafe { self.compute_back(&op, &saved, &targets, scratch)? };
        }
        targets.iter().flatten().filter_map(|t| t.kept).try_for_each(|kept| self.keep_grad(kept))
    }

    /// Runs `op` backward, which reads what is `saved` and adds to or sets the `targets`.
    ///
    /// # Safety
    /// All tensors are what the plan of `op` was made from and asks for.
    unsafe fn compute_back(
        &self,
        op: &Arc<dyn Op>,
        saved: &Saved,
        targets: &[Option<Target<'a>>],
        scratch: Option<Tensor>,
    ) -> Result<()> {
        let places = |list: &[Option<Tensor>]| -> Vec<Option<Placed<'a>>> {
            list.iter().map(|t| t.map(|t| self.place(&t))).collect()
        };
        let [ins, outs, douts] = [&saved.ins, &saved.outs, &saved.douts].map(|list| places(list));
        let made: Vec<Placed<'a>> = saved.late.iter().map(|t| self.place(t)).collect();
        let dins: Vec<Option<Placed<'a>>> =
            targets.iter().map(|t| t.as_ref().map(Target::place)).collect();
        let scratch = self.scratch_region(scratch);
        let (read, write) =
            (ins.iter().chain(&outs).chain(&douts), dins.iter().flatten().chain(&made));
        placed::check(self.device, op.name(), read.flatten(), write, scratch)?;
        self.at(op.name(), true);
        let accs = targets.iter().map(|t| t.as_ref().is_some_and(|t| t.acc));
        let done = if self.device.has_kernels() {
            let args = |list: &[Option<Placed<'a>>]| -> Vec<Option<Arg>> {
                list.iter().map(|p| p.map(Placed::arg)).collect()
            };
            let grad =
                |(p, acc): (&Option<Placed<'a>>, bool)| p.map(|p| CudaGrad { arg: p.arg(), acc });
            let io = CudaBackward {
                stream: self.device.stream()?,
                ins: args(&ins),
                outs: args(&outs),
                douts: args(&douts),
                dins: dins.iter().zip(accs).map(grad).collect(),
                late: made.iter().map(|p| p.arg()).collect(),
                scratch: scratch.address(),
            };
            // SAFETY: the tensors are what the plan asks for: the caller's promise. What they lie
            // in is borrowed for the tape's life and is given back in the order of the stream;
            // what is written is apart from the rest, as was checked.
            unsafe { op.cuda_backward(&io) }
        } else {
            // SAFETY: the host's memory. What is written is apart from all else the operator
            // gets, as was checked, and all of it is gone before anything else is run.
            let mut io = unsafe {
                let views = |list: &[Option<Placed<'a>>]| -> Vec<Option<View<'a>>> {
                    list.iter().map(|p| p.map(|p| p.view())).collect()
                };
                let grad = |(p, acc): (&Option<Placed<'a>>, bool)| {
                    p.map(|p| Grad { view: p.view_mut(), acc })
                };
                Backward {
                    ins: views(&ins),
                    outs: views(&outs),
                    douts: views(&douts),
                    dins: dins.iter().zip(accs).map(grad).collect(),
                    late: made.iter().map(|p| p.view_mut()).collect(),
                    scratch: scratch.as_f32_mut(),
                }
            };
            op.cpu_backward(&mut io)
        };
        done.map_err(|e| {
            let name = format_args!("{} backward", op.name());
            run_error(e, name, ins.iter().map(|t| t.map(|t| t.desc)))
        })
    }

    /// Where the gradient of `tensor` goes, and whether something is there already; `narrow`: it
    /// may be bf16 where it is kept so.
    fn grad_target(&mut self, tensor: &Tensor, narrow: bool) -> Result<Target<'a>> {
        let wide = Desc { shape: tensor.desc.shape, dtype: DType::F32 };
        if let Home::Param(store, portion) = self.slots[tensor.slot.0 as usize].home {
            let desc = Desc { dtype: store.grad_dtype(), ..wide };
            let (region, acc) = self.param_grad(store, portion)?;
            if desc == wide || narrow {
                return Ok(Target { region, desc, acc, kept: None });
            }
            let made = self.alloc(wide, false)?;
            let kept = Some(Kept { made, region, desc, acc });
            return Ok(Target { region: self.grad_region(&made), desc: wide, acc: false, kept });
        }
        let (grad, acc) = match self.grads.get(&tensor.slot) {
            Some(grad) => (*grad, true),
            None => (self.alloc(tensor.desc, false)?, false),
        };
        self.grads.insert(tensor.slot, grad);
        self.touch(&grad);
        Ok(Target { region: self.grad_region(&grad), desc: grad.desc, acc, kept: None })
    }

    fn grad_region(&self, grad: &Tensor) -> Region<'a> {
        if self.is_planning() { Region::nowhere(grad.desc.bytes()) } else { self.region(grad) }
    }

    /// Rounds a gradient that was made in f32 into the one that is kept.
    fn keep_grad(&mut self, kept: Kept<'a>) -> Result<()> {
        let op: Arc<dyn Op> = Arc::new(CastAccumulate { add: kept.acc });
        let ins = [kept.made, self.bind(kept.region, kept.desc)].map(Some);
        let plan = op.plan(&ins.map(|t| t.map(|t| t.desc)))?;
        self.forward(&op, &plan, &ins).map(|_| ())
    }
}

/// Tensors of a record that its operator asks for in backward.
struct Saved {
    ins: Vec<Option<Tensor>>,
    outs: Vec<Option<Tensor>>,
    douts: Vec<Option<Tensor>>,
    /// Outputs that are computed in backward.
    late: Vec<Tensor>,
}

/// Where a gradient goes.
struct Target<'a> {
    region: Region<'a>,
    desc: Desc,
    acc: bool,
    /// Where it goes from there.
    kept: Option<Kept<'a>>,
}

/// A parameter's bf16 gradient, and the f32 one that is to be rounded into it.
#[derive(Clone, Copy)]
struct Kept<'a> {
    made: Tensor,
    region: Region<'a>,
    desc: Desc,
    acc: bool,
}

impl<'a> Target<'a> {
    fn place(&self) -> Placed<'a> {
        Placed { region: self.region, desc: self.desc }
    }
}

//! One operator with random inputs in place on a device, to be run again and again: what benches
//! and `tools/gpu-check` time. Checks nothing; that is what `conformance` is for.

use crate::base::{DType, Elem, Result, Rng, bf16};
use crate::device::{Buffer, Device, Region};
use crate::op::conformance::Input;
use crate::op::{Arg, Backward, CudaBackward, CudaForward, CudaGrad};
use crate::op::{Forward, Grad, Op, Place, Plan, View, ViewMut};
use crate::tensor::Desc;

/// A tensor with memory of its own.
#[derive(Debug)]
struct Held {
    buffer: Buffer,
    desc: Desc,
}

impl Held {
    fn new(device: Device, desc: Desc) -> Result<Held> {
        Ok(Held { buffer: Buffer::zeroed(device, desc.bytes())?, desc })
    }

    fn filled(device: Device, desc: Desc, rng: &mut Rng, scale: f32) -> Result<Held> {
        let held = Held::new(device, desc)?;
        let n = desc.shape.numel();
        let values: Vec<f32> = (0..n).map(|_| (rng.uniform() * 2.0 - 1.0) * scale).collect();
        held.set(&values)?;
        Ok(held)
    }

    fn set(&self, values: &[f32]) -> Result<()> {
        match self.desc.dtype {
            DType::F32 => self.buffer.write(0, bytemuck::cast_slice(values)),
            DType::Bf16 => {
                let rounded: Vec<bf16> =
                    values.iter().map(|v| <bf16 as Elem>::from_f32(*v)).collect();
                self.buffer.write(0, bytemuck::cast_slice(&rounded))
            }
            DType::I32 => {
                let whole: Vec<i32> = values.iter().map(|v| *v as i32).collect();
                self.buffer.write(0, bytemuck::cast_slice(&whole))
            }
            DType::U8 => {
                let codes: Vec<u8> = values.iter().map(|v| *v as u8).collect();
                self.buffer.write(0, &codes)
            }
        }
    }

    fn region(&self) -> Region<'_> {
        self.buffer.region()
    }

    fn arg(&self) -> Arg {
        Arg { ptr: self.region().address(), desc: self.desc }
    }

    /// # Safety
    /// It is on the CPU, and nothing writes it while the view is used.
    unsafe fn view(&self) -> View<'_> {
        // SAFETY: `as_bytes` asks for memory of the host that nothing writes while the slice is
        // used: by the contract of this function both hold as long as the view, which borrows the
        // buffer.
        View::new(unsafe { self.region().as_bytes() }, self.desc)
    }

    /// # Safety
    /// It is on the CPU, and nothing else touches it while the view is used.
    unsafe fn view_mut(&self) -> ViewMut<'_> {
        // SAFETY: `as_bytes_mut` asks for memory of the host that nothing else touches while the
        // slice is used: by the contract of this function both hold as long as the view.
        ViewMut::new(unsafe { self.region().as_bytes_mut() }, self.desc)
    }
}

/// An operator ready to run.
#[derive(Debug)]
pub struct Bench {
    device: Device,
    op: Box<dyn Op>,
    plan: Plan,
    ins: Vec<Option<Held>>,
    /// Outputs; `None` where one is in place.
    outs: Vec<Option<Held>>,
    douts: Vec<Option<Held>>,
    dins: Vec<Option<Held>>,
    scratch: Held,
    scratch_backward: Held,
}

impl Bench {
    /// Random inputs on `device`, floats of type `dtype`.
    pub fn new(
        device: Device,
        op: Box<dyn Op>,
        inputs: &[Option<Input>],
        dtype: DType,
        seed: u64,
    ) -> Result<Bench> {
        let mut rng = Rng::new(seed, 0);
        let mut ins = vec![];
        for input in inputs {
            ins.push(match input {
                None => None,
                Some(input) => {
                    let desc = Desc::new(input.dims(), input.dtype(dtype));
                    Some(match input {
                        Input::Act(_, s) | Input::Weight(_, s) | Input::F32(_, s) => {
                            Held::filled(device, desc, &mut rng, *s)?
                        }
                        Input::Const(_, v) => {
                            let held = Held::new(device, desc)?;
                            held.set(v)?;
                            held
                        }
                        Input::Ints(_, v) => {
                            let held = Held::new(device, desc)?;
                            held.buffer.write(0, bytemuck::cast_slice(v))?;
                            held
                        }
                        Input::Bytes(_, v) => {
                            let held = Held::new(device, desc)?;
                            held.buffer.write(0, v)?;
                            held
                        }
                    })
                }
            });
        }
        let descs: Vec<Option<Desc>> = ins.iter().map(|h| h.as_ref().map(|h| h.desc)).collect();
        let plan = op.plan(&descs)?;
        let (mut outs, mut douts) = (vec![], vec![]);
        for (i, place) in plan.outs.iter().enumerate() {
            let (desc, held) = match place {
                Place::New(desc) => (*desc, Some(Held::new(device, *desc)?)),
                Place::InPlace(j) => (descs[*j].expect("in-place input"), None),
            };
            let differentiable = plan.differentiable >> i & 1 == 1;
            outs.push(held);
            douts.push(match differentiable {
                true => Some(Held::filled(device, desc, &mut rng, 1.0)?),
                false => None,
            });
        }
        let mut dins = vec![];
        for (i, input) in inputs.iter().enumerate() {
            let grad = input.as_ref().and_then(|x| Some((x.dims(), x.grad_dtype(dtype)?)));
            let wanted = plan.differentiable != 0 && !plan.outs.contains(&Place::InPlace(i));
            dins.push(match grad.filter(|_| wanted) {
                Some((dims, dtype)) => Some(Held::new(device, Desc::new(dims, dtype))?),
                None => None,
            });
        }
        let room = |cpu: usize, cuda: usize| {
            let len = if device.has_kernels() { cuda } else { cpu };
            // An empty buffer has no address that is aligned for floats.
            Held::new(device, Desc::new(&[len.max(1)], DType::F32))
        };
        let scratch = room(plan.scratch, plan.cuda_scratch)?;
        let scratch_backward = room(plan.scratch_backward, plan.cuda_scratch_backward)?;
        Ok(Bench { device, op, plan, ins, outs, douts, dins, scratch, scratch_backward })
    }

    /// Floating-point operations of one forward pass.
    pub fn flops(&self) -> u64 {
        self.plan.flops
    }

    /// True if there is a backward pass.
    pub fn has_backward(&self) -> bool {
        self.dins.iter().any(Option::is_some)
    }

    fn out(&self, i: usize) -> &Held {
        match self.plan.outs[i] {
            Place::New(_) => self.outs[i].as_ref().expect("new output"),
            Place::InPlace(j) => self.ins[j].as_ref().expect("in-place input"),
        }
    }

    /// Runs forward (on a device with kernels: launches it).
    pub fn forward(&self) -> Result<()> {
        let read: Vec<Option<&Held>> = (0..self.ins.len())
            .map(|i| self.ins[i].as_ref().filter(|_| !self.plan.outs.contains(&Place::InPlace(i))))
            .collect();
        let outs = (0..self.outs.len()).map(|i| self.out(i));
        if self.device.has_kernels() {
            let io = CudaForward {
                stream: self.device.stream()?,
                ins: read.iter().map(|h| h.map(Held::arg)).collect(),
                outs: outs.map(Held::arg).collect(),
                scratch: self.scratch.arg().ptr,
            };
            // SAFETY: every tensor was made here for the plan, with memory of its own, which `self`
            // keeps and gives back in the order of the stream.
            return unsafe { self.op.cuda_forward(&io) };
        }
        // SAFETY: on the CPU every tensor has memory of its own, and what is written in place is
        // not read; the views are gone when this returns, and `Bench` is one thread's at a time.
        let mut io = unsafe {
            Forward {
                ins: read.iter().map(|h| h.map(|h| h.view())).collect(),
                outs: outs.map(|h| h.view_mut()).collect(),
                scratch: self.scratch.region().as_f32_mut(),
            }
        };
        self.op.cpu_forward(&mut io)
    }

    /// Outputs that backward makes.
    fn late(&self) -> impl Iterator<Item = &Held> {
        (0..self.outs.len()).filter(|_| self.plan.late).map(|i| self.out(i))
    }

    /// Runs backward for all inputs, setting the gradients.
    pub fn backward<'s>(&'s self) -> Result<()> {
        let saved = |mask: u64, i: usize| mask >> i & 1 == 1;
        let ins = (0..self.ins.len())
            .map(|i| self.ins[i].as_ref().filter(|_| saved(self.plan.saves_ins, i)));
        let outs = (0..self.outs.len())
            .map(|i| Some(self.out(i)).filter(|_| saved(self.plan.saves_outs, i)));
        if self.device.has_kernels() {
            let grad = |h: &Held| CudaGrad { arg: h.arg(), acc: false };
            let io = CudaBackward {
                stream: self.device.stream()?,
                ins: ins.map(|h| h.map(Held::arg)).collect(),
                outs: outs.map(|h| h.map(Held::arg)).collect(),
                douts: self.douts.iter().map(|h| h.as_ref().map(Held::arg)).collect(),
                dins: self.dins.iter().map(|h| h.as_ref().map(grad)).collect(),
                late: self.late().map(Held::arg).collect(),
                scratch: self.scratch_backward.arg().ptr,
            };
            // SAFETY: every tensor was made here for the plan, with memory of its own, which `self`
            // keeps and gives back in the order of the stream.
            return unsafe { self.op.cuda_backward(&io) };
        }
        // SAFETY: on the CPU every tensor has memory of its own, and what is made late is not read;
        // the views are gone when this returns, and `Bench` is one thread's at a time.
        let mut io = unsafe {
            let grad = |h: &'s Held| Grad { view: h.view_mut(), acc: false };
            Backward {
                ins: ins.map(|h| h.map(|h| h.view())).collect(),
                outs: outs.map(|h| h.map(|h| h.view())).collect(),
                douts: self.douts.iter().map(|h| h.as_ref().map(|h| h.view())).collect(),
                dins: self.dins.iter().map(|h| h.as_ref().map(grad)).collect(),
                late: self.late().map(|h| h.view_mut()).collect(),
                scratch: self.scratch_backward.region().as_f32_mut(),
            }
        };
        self.op.cpu_backward(&mut io)
    }
}

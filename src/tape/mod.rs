//! The tape: runs operators, records them as flat printable records grouped in segments, and walks
//! the records backwards. Without memory it only collects lifetimes, from which the static
//! plan of the arena follows; run for real with that plan, it allocates nothing.
//!
//! It knows operators and memory, not models.

mod backward;
mod captured_graph;
mod placed;
mod progress;
mod replay;
mod shared;
#[cfg(test)]
mod tests;
mod workspace;

pub use captured_graph::CapturedGraph;
pub use progress::{Progress, ProgressMarker};
pub use workspace::{Arena, Shaped, Workspace};

use crate::base::{DType, Error, Result};
use crate::device::{Device, Region};
use crate::op::{CudaForward, Forward, Op, Place, Plan, Run, run_error};
use crate::pool::{ArenaPlan, Life, ParamId, Portion, Store};
use crate::tensor::{Desc, Slot, Tensor};
use placed::Placed;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;

/// The values kept between forward and backward. All settings give bitwise equal gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationCheckpointing {
    /// Everything that backward reads.
    None,
    /// Not the outputs of cheap operators, which are run again.
    #[serde(rename = "cheap")]
    Selective,
    /// Only each segment's input; the segment is run again (activation checkpointing).
    Full,
}

/// One operator that was run.
#[derive(Debug)]
pub struct Record {
    op: Arc<dyn Op>,
    plan: Plan,
    ins: Vec<Option<Tensor>>,
    outs: Vec<Tensor>,
}

/// A run of records that is checkpointed, gathered, reduced and timed as one.
#[derive(Debug)]
struct Segment {
    first: usize,
    checkpointing: ActivationCheckpointing,
}

/// Where the bytes of a slot are.
#[derive(Clone, Copy)]
enum Home<'a> {
    /// In the arena, by arena index.
    Arena(usize),
    /// A parameter of a store.
    Param(&'a Store, Portion),
    /// Memory owned by someone else (cache, optimizer state).
    Bound(Region<'a>),
}

struct SlotInfo<'a> {
    home: Home<'a>,
    needs_grad: bool,
    /// Made by backward only.
    late: bool,
}

/// The plan of a program, made before it runs.
#[derive(Debug)]
pub struct Planned {
    /// Where its slots lie.
    pub arena: ArenaPlan,
    lives: Vec<Life>,
    gathers: Vec<shared::Gather>,
}

impl Planned {
    /// True if a program whose slots live as `lives` runs as planned: the same slots at the same
    /// times, none of which is larger.
    fn holds(&self, lives: &[Life]) -> bool {
        let fits =
            |(a, b): (&Life, &Life)| (a.first, a.last) == (b.first, b.last) && a.bytes >= b.bytes;
        self.lives.len() == lives.len() && self.lives.iter().zip(lives).all(fits)
    }
}

/// One run of a program: forward, and backward if wanted.
///
/// Programs get it by reference, and nothing outside this module makes or takes one. So nobody can
/// leak it: when [`Workspace::run`] or [`Workspace::capture`] returns or unwinds, it is dropped,
/// and waits for what still runs on the memory that it borrows (`shared.rs`).
pub struct Tape<'a> {
    device: Device,
    planning: bool,
    base: Region<'a>,
    plan: Option<&'a Planned>,
    progress: Option<&'a ProgressMarker>,
    /// Number of the segment that runs, from 1.
    segment: usize,
    slots: Vec<SlotInfo<'a>>,
    lives: Vec<Life>,
    clock: u32,
    params: HashMap<(u64, Portion), Slot>,
    shared: shared::Shared<'a>,
    /// While planning, what is gathered.
    gathers: Vec<shared::Gather>,
    records: Vec<Record>,
    segments: Vec<Segment>,
    recording: bool,
    checkpointing: ActivationCheckpointing,
    grads: HashMap<Slot, Tensor>,
    flops: u64,
    /// Operators that are recorded instead of run.
    captured: Option<Vec<captured_graph::Step<'a>>>,
}

impl<'a> Tape<'a> {
    /// A tape that only plans what will run on `device`.
    fn planning(device: Device) -> Tape<'a> {
        Tape::new(device, Region::nowhere(0), None)
    }

    /// A tape that runs in `arena` as `plan` says.
    fn running(arena: &'a Arena, plan: &'a Planned) -> Tape<'a> {
        let tape = Tape::new(arena.device(), arena.region(), Some(plan));
        Tape { progress: Some(arena.progress()), ..tape }
    }

    fn new(device: Device, base: Region<'a>, plan: Option<&'a Planned>) -> Tape<'a> {
        Tape {
            device,
            planning: plan.is_none(),
            base,
            plan,
            progress: None,
            segment: 0,
            slots: vec![],
            lives: vec![],
            clock: 0,
            params: HashMap::new(),
            shared: shared::Shared::default(),
            gathers: vec![],
            records: vec![],
            segments: vec![],
            recording: false,
            checkpointing: ActivationCheckpointing::None,
            grads: HashMap::new(),
            flops: 0,
            captured: None,
        }
    }

    /// True if this run only plans.
    pub fn is_planning(&self) -> bool {
        self.planning
    }

    /// From here on computes nothing, but takes part in what the ranks of a store do together: for
    /// a rank that has no rows left where others have some.
    pub fn participate_idle(&mut self) {
        self.shared.only = true;
    }

    /// True if operators run.
    fn computes(&self) -> bool {
        !self.planning && !self.shared.only && !self.device.is_fake()
    }

    /// Starts recording for backward.
    pub fn record(&mut self) {
        self.recording = true;
    }

    /// True if operators that run are recorded for backward.
    pub fn is_recording(&self) -> bool {
        self.recording
    }

    /// Starts a new segment, kept as `keep` says.
    pub fn segment(&mut self, checkpointing: ActivationCheckpointing) {
        self.checkpointing = checkpointing;
        self.shared.leave();
        self.segments.push(Segment { first: self.records.len(), checkpointing });
        self.segment = self.segments.len();
    }

    /// Floating-point operations of all operators run so far, backward counted as twice forward.
    pub fn flops(&self) -> u64 {
        self.flops
    }

    /// The plan that follows from the lifetimes seen.
    fn into_plan(self) -> Planned {
        let arena = ArenaPlan::place(&self.lives);
        Planned { arena, lives: self.lives, gathers: self.gathers }
    }

    /// A parameter as a tensor: all of it, or what is not cut.
    pub fn param(&mut self, store: &'a Store, id: ParamId) -> Tensor {
        self.portion(store, Portion { id, block: None })
    }

    /// A parameter as a tensor, or one block's slice of it.
    pub fn portion(&mut self, store: &'a Store, portion: Portion) -> Tensor {
        let next = Slot(self.slots.len() as u32);
        let slot = *self.params.entry((store.id(), portion)).or_insert(next);
        if slot == next {
            let needs_grad = self.recording && store.param(portion.id).spec.trained;
            let home = Home::Param(store, portion);
            self.slots.push(SlotInfo { home, needs_grad, late: false });
        }
        Tensor { slot, offset: 0, desc: store.desc(portion) }
    }

    /// Memory owned by someone else, who is borrowed as long as the tape lives, as a tensor.
    pub fn bind(&mut self, region: Region<'a>, desc: Desc) -> Tensor {
        let slot = Slot(self.slots.len() as u32);
        self.slots.push(SlotInfo { home: Home::Bound(region), needs_grad: false, late: false });
        Tensor { slot, offset: 0, desc }
    }

    /// Copies integers into the arena.
    pub fn input_i32(&mut self, values: &[i32]) -> Result<Tensor> {
        self.input(Desc::new(&[values.len()], DType::I32), bytemuck::cast_slice(values))
    }

    /// Copies f32 values into the arena.
    pub fn input_f32(&mut self, values: &[f32]) -> Result<Tensor> {
        self.input(Desc::new(&[values.len()], DType::F32), bytemuck::cast_slice(values))
    }

    fn input(&mut self, desc: Desc, bytes: &[u8]) -> Result<Tensor> {
        self.refuse_captured("copies from the host")?;
        self.clock += 1;
        let tensor = self.alloc(desc, false)?;
        if !self.is_planning() {
            self.region(&tensor).write(bytes)?;
        }
        Ok(tensor)
    }

    /// Copies an f32 tensor to the host; zeros when planning.
    pub fn read_f32(&mut self, tensor: Tensor) -> Result<Vec<f32>> {
        Ok(bytemuck::allocation::pod_collect_to_vec(&self.read(tensor, DType::F32)?))
    }

    /// Copies an i32 tensor to the host; zeros when planning.
    pub fn read_i32(&mut self, tensor: Tensor) -> Result<Vec<i32>> {
        Ok(bytemuck::allocation::pod_collect_to_vec(&self.read(tensor, DType::I32)?))
    }

    fn read(&mut self, tensor: Tensor, dtype: DType) -> Result<Vec<u8>> {
        if tensor.desc.dtype != dtype {
            return Err(Error::internal(format!("read {} as {dtype}", tensor.desc.dtype)));
        }
        self.refuse_captured("copies to the host")?;
        if self.slots[tensor.slot.0 as usize].late {
            return Err(Error::internal("read before backward has made it"));
        }
        self.clock += 1;
        self.touch(&tensor);
        if !self.computes() {
            return Ok(vec![0; tensor.desc.bytes()]);
        }
        let mut bytes = vec![0; tensor.desc.bytes()];
        self.at("copy to the host", false);
        self.region(&tensor).read(&mut bytes)?;
        Ok(bytes)
    }

    /// The gradient of an arena tensor after `backward`, if one flowed.
    pub fn grad(&self, tensor: Tensor) -> Option<Tensor> {
        self.grads.get(&tensor.slot).copied()
    }

    fn alloc(&mut self, desc: Desc, needs_grad: bool) -> Result<Tensor> {
        let slot = Slot(self.slots.len() as u32);
        let index = self.lives.len();
        let bytes = desc.bytes();
        if let Some(plan) = self.plan
            && plan.arena.sizes.get(index).is_none_or(|room| *room < bytes)
        {
            let room = plan.arena.sizes.get(index).copied().unwrap_or(0);
            let line = format!("arena slot {index}: {bytes} bytes, planned {room}");
            return Err(Error::internal(line));
        }
        self.lives.push(Life { bytes, first: self.clock, last: self.clock });
        self.slots.push(SlotInfo { home: Home::Arena(index), needs_grad, late: false });
        Ok(Tensor { slot, offset: 0, desc })
    }

    fn touch(&mut self, tensor: &Tensor) {
        if let Home::Arena(index) = self.slots[tensor.slot.0 as usize].home {
            self.lives[index].last = self.clock;
        }
    }

    fn needs_grad(&self, tensor: &Tensor) -> bool {
        self.slots[tensor.slot.0 as usize].needs_grad
    }

    /// Memory of a tensor. Meaningless when planning.
    fn region(&self, tensor: &Tensor) -> Region<'a> {
        let (start, bytes) = (tensor.offset * tensor.desc.dtype.size(), tensor.desc.bytes());
        let whole = match self.slots[tensor.slot.0 as usize].home {
            Home::Arena(index) => {
                let plan = &self.plan.expect("a running tape has a plan").arena;
                self.base.slice(plan.offsets[index], plan.sizes[index])
            }
            Home::Param(store, portion) => self.weights(store, portion),
            Home::Bound(region) => region,
        };
        whole.slice(start, bytes)
    }

    /// Workspace of `len` f32 elements that lives for the current operator only. An empty one has a
    /// slot too: a program has the same slots whatever its sizes.
    fn scratch(&mut self, len: usize) -> Result<Option<Tensor>> {
        let made = self.alloc(Desc::new(&[len], DType::F32), false)?;
        Ok((len > 0).then_some(made))
    }

    fn scratch_region(&self, tensor: Option<Tensor>) -> Region<'a> {
        tensor.map_or(Region::nowhere(0), |t| self.region(&t))
    }

    /// Plans, allocates and runs one operator; `reuse` gives outputs that exist already (replay).
    fn forward(
        &mut self,
        op: &Arc<dyn Op>,
        plan: &Plan,
        ins: &[Option<Tensor>],
    ) -> Result<Vec<Tensor>> {
        self.clock += 1;
        ins.iter().flatten().for_each(|t| self.touch(t));
        ins.iter().flatten().try_for_each(|t| self.gather(t))?;
        if let Some(t) = ins.iter().flatten().find(|t| self.slots[t.slot.0 as usize].late) {
            let line = format!("{} reads {:?}, which backward will make", op.name(), t.desc);
            return Err(Error::internal(line));
        }
        let any = self.recording && ins.iter().flatten().any(|t| self.needs_grad(t));
        let mut outs = Vec::with_capacity(plan.outs.len());
        for (i, place) in plan.outs.iter().enumerate() {
            let differentiable = any && plan.differentiable >> i & 1 == 1;
            outs.push(match place {
                Place::New(desc) => self.alloc(*desc, differentiable)?,
                Place::InPlace(j) => {
                    let t = ins[*j].expect("in-place input");
                    self.slots[t.slot.0 as usize].needs_grad |= differentiable;
                    t
                }
            });
        }
        if any && plan.late {
            outs.iter().for_each(|t| self.slots[t.slot.0 as usize].late = true);
            return Ok(outs);
        }
        let kernels = self.device.has_kernels();
        let scratch = self.scratch(if kernels { plan.cuda_scratch } else { plan.scratch })?;
        self.flops += plan.flops;
        if !self.planning && self.device.is_fake() {
            op.fake_forward(&ins.iter().map(|t| t.map(|t| t.desc)).collect::<Vec<_>>())?;
        }
        if !self.computes() {
            return Ok(outs);
        }
        let in_place = |i: usize| plan.outs.contains(&Place::InPlace(i));
        let read: Vec<Option<Placed<'a>>> = ins
            .iter()
            .enumerate()
            .map(|(i, t)| t.filter(|_| !in_place(i)).map(|t| self.place(&t)))
            .collect();
        let write: Vec<Placed<'a>> = outs.iter().map(|t| self.place(t)).collect();
        let scratch = self.scratch_region(scratch);
        placed::check(self.device, op.name(), read.iter().flatten(), write.iter(), scratch)?;
        if self.captured.is_some() {
            let step = captured_graph::Step { op: op.clone(), ins: read, outs: write, scratch };
            self.captured.get_or_insert_default().push(step);
            return Ok(outs);
        }
        self.at(op.name(), false);
        let done = if kernels {
            let io = CudaForward {
                stream: self.device.stream()?,
                ins: read.iter().map(|p| p.map(Placed::arg)).collect(),
                outs: write.iter().map(|p| p.arg()).collect(),
                scratch: scratch.address(),
            };
            // SAFETY: the tensors are what `plan` was made from and asks for. What they lie in is
            // borrowed for the tape's life and is given back in the order of the stream; what is
            // written is apart from the rest, as was checked.
            unsafe { op.cuda_forward(&io) }
        } else {
            // SAFETY: the host's memory. What is written is apart from all else the operator gets,
            // as was checked, and all of it is gone before anything else is run.
            let mut io = unsafe {
                Forward {
                    ins: read.iter().map(|p| p.map(|p| p.view())).collect(),
                    outs: write.iter().map(|p| p.view_mut()).collect(),
                    scratch: scratch.as_f32_mut(),
                }
            };
            op.cpu_forward(&mut io)
        };
        done.map_err(|e| run_error(e, op.name(), ins.iter().map(|t| t.map(|t| t.desc))))?;
        Ok(outs)
    }

    /// Tells what is begun.
    fn at(&self, operator: &'static str, backward: bool) {
        self.progress.iter().for_each(|p| p.at(operator, self.segment, backward));
    }

    fn place(&self, tensor: &Tensor) -> Placed<'a> {
        Placed { region: self.region(tensor), desc: tensor.desc }
    }
}

impl Run for Tape<'_> {
    fn run(&mut self, op: Arc<dyn Op>, ins: &[Option<Tensor>]) -> Result<Vec<Tensor>> {
        let descs: Vec<Option<Desc>> = ins.iter().map(|t| t.map(|t| t.desc)).collect();
        let plan = op.plan(&descs)?;
        let outs = self.forward(&op, &plan, ins)?;
        if self.recording {
            self.records.push(Record { op, plan, ins: ins.to_vec(), outs: outs.clone() });
        }
        Ok(outs)
    }
}

//! Programs that are recorded once and run again over the same memory, with nothing planned or
//! allocated any more: on the CPU a list of operators with the places of their tensors, on a device
//! with kernels a graph.

use super::{Tape, Workspace, workspace::Shaped};
use crate::base::{Error, Result};
use crate::device::{Device, Graph, Region, Stream};
use crate::op::{Arg, CudaForward, Forward, Op, View, ViewMut, run_error};
use crate::tensor::Desc;
use std::fmt;
use std::sync::Arc;

/// A recorded program. What it reads and writes must stay in place; the arena and what the tape
/// borrowed do, since it borrows them too.
pub struct Program<'a> {
    device: Device,
    steps: Steps<'a>,
}

enum Steps<'a> {
    Operators(Operators<'a>),
    /// With the program's name, which errors tell.
    Graph(Graph, String),
}

/// A tensor's place.
type Place = (Region, Desc);

/// An operator that was recorded instead of run.
pub(super) struct Step {
    pub(super) op: Arc<dyn Op>,
    pub(super) ins: Vec<Option<Place>>,
    pub(super) outs: Vec<Place>,
    /// f32 workspace.
    pub(super) scratch: Region,
}

impl Step {
    fn failed(&self, e: Error) -> Error {
        run_error(e, self.op.name(), self.ins.iter().map(|x| x.map(|(_, desc)| desc)))
    }
}

struct Operators<'a> {
    steps: Vec<Step>,
    /// Empty between runs; kept for their memory.
    ins: Vec<Option<View<'a>>>,
    outs: Vec<ViewMut<'a>>,
}

impl fmt::Debug for Program<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.steps {
            Steps::Operators(o) => write!(f, "program of {} operators", o.steps.len()),
            Steps::Graph(graph, _) => graph.fmt(f),
        }
    }
}

impl Program<'_> {
    /// Runs it once more.
    pub fn run(&mut self) -> Result<()> {
        match &mut self.steps {
            Steps::Operators(operators) if self.device.has_kernels() => {
                operators.launch(self.device.stream()?)
            }
            Steps::Operators(operators) => operators.run(),
            Steps::Graph(graph, name) => {
                let done = self.device.stream()?.replay(graph);
                done.map_err(|e| e.context(format_args!("the recorded program {name}")))
            }
        }
    }
}

impl Operators<'_> {
    /// Launches the kernels of all.
    fn launch(&self, stream: &Stream) -> Result<()> {
        let arg = |(region, desc): &Place| Arg { ptr: region.ptr as u64, desc: *desc };
        for step in &self.steps {
            let io = CudaForward {
                stream,
                ins: step.ins.iter().map(|x| x.as_ref().map(arg)).collect(),
                outs: step.outs.iter().map(arg).collect(),
                scratch: step.scratch.ptr as u64,
            };
            step.op.cuda_forward(&io).map_err(|e| step.failed(e))?;
        }
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        for step in &self.steps {
            let (mut ins, mut outs) =
                (std::mem::take(&mut self.ins), std::mem::take(&mut self.outs));
            // SAFETY: the regions outlive the program, and an operator's outputs are distinct from
            // what it reads: see `Tape::view`. The views are dropped before the next operator's.
            unsafe {
                let view = |(region, desc): &Place| View::new(region.as_bytes(), *desc);
                ins.extend(step.ins.iter().map(|x| x.as_ref().map(view)));
                let view = |(region, desc): &Place| ViewMut::new(region.as_bytes_mut(), *desc);
                outs.extend(step.outs.iter().map(view));
            }
            // SAFETY: as above; the workspace belongs to this operator alone.
            let scratch = unsafe { step.scratch.as_f32_mut() };
            let mut io = Forward { ins, outs, scratch };
            let done = step.op.cpu_forward(&mut io);
            io.ins.clear();
            io.outs.clear();
            (self.ins, self.outs) = (io.ins, io.outs);
            done.map_err(|e| step.failed(e))?;
        }
        Ok(())
    }
}

impl Workspace {
    /// Records `program` as it would run on `inputs`. It may not copy to or from the host, and must
    /// have been planned for inputs as large as these ([`Workspace::reserve`]). `graph`: a device
    /// that can is to record a graph.
    pub fn capture<'a, I: Shaped>(
        &'a self,
        key: &str,
        inputs: &I,
        graph: bool,
        program: impl FnOnce(&mut Tape<'a>, &I) -> Result<()>,
    ) -> Result<Program<'a>> {
        let mut tape = self.tape(key)?;
        self.position().enter(key);
        let device = tape.device;
        if device.has_kernels() && graph {
            let (graph, ()) = device.stream()?.capture(|| program(&mut tape, inputs))?;
            return Ok(Program { device, steps: Steps::Graph(graph, key.to_string()) });
        }
        tape.captured = Some(vec![]);
        program(&mut tape, inputs)?;
        let steps = tape.captured.take().unwrap_or_default();
        let operators = Operators { steps, ins: vec![], outs: vec![] };
        Ok(Program { device, steps: Steps::Operators(operators) })
    }
}

impl Tape<'_> {
    /// Fails where a program that is captured copies to or from the host.
    pub(super) fn refuse_captured(&self, what: &str) -> Result<()> {
        match &self.captured {
            None => Ok(()),
            Some(_) => Err(Error::internal(format!("a captured program {what}"))),
        }
    }
}

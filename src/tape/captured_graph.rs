//! Programs that are recorded once and run again over the same memory, with nothing planned or
//! allocated any more: on the CPU a list of operators with the places of their tensors, on a device
//! with kernels a graph.

use super::placed::Placed;
use super::{Tape, Workspace, workspace::Shaped};
use crate::base::{Error, Result};
use crate::device::{Device, Graph, Region, Stream};
use crate::op::{CudaForward, Forward, Op, View, ViewMut, run_error};
use std::fmt;
use std::sync::Arc;

/// A recorded program. What it reads and writes must stay in place; the arena and what the tape
/// borrowed do, since it borrows them too.
pub struct CapturedGraph<'a> {
    device: Device,
    steps: Steps<'a>,
}

enum Steps<'a> {
    Operators(Operators<'a>),
    /// With the program's name, which errors tell.
    Graph(Graph, String),
}

/// An operator that was recorded instead of run.
pub(super) struct Step<'a> {
    pub(super) op: Arc<dyn Op>,
    /// Its inputs, none of which it writes.
    pub(super) ins: Vec<Option<Placed<'a>>>,
    pub(super) outs: Vec<Placed<'a>>,
    /// f32 workspace.
    pub(super) scratch: Region<'a>,
}

impl Step<'_> {
    fn failed(&self, e: Error) -> Error {
        run_error(e, self.op.name(), self.ins.iter().map(|x| x.map(|p| p.desc)))
    }
}

struct Operators<'a> {
    steps: Vec<Step<'a>>,
    /// Empty between runs; kept for their memory.
    ins: Vec<Option<View<'a>>>,
    outs: Vec<ViewMut<'a>>,
}

impl fmt::Debug for CapturedGraph<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.steps {
            Steps::Operators(o) => write!(f, "program of {} operators", o.steps.len()),
            Steps::Graph(graph, _) => graph.fmt(f),
        }
    }
}

impl CapturedGraph<'_> {
    /// Runs it once more.
    pub fn run(&mut self) -> Result<()> {
        match &mut self.steps {
            Steps::Operators(operators) if self.device.has_kernels() => {
                operators.launch(self.device.stream()?)
            }
            Steps::Operators(operators) => operators.run(),
            Steps::Graph(graph, name) => {
                // SAFETY: the program borrows the arena and all that was bound when it was
                // recorded.
                let done = unsafe { self.device.stream()?.replay(graph) };
                done.map_err(|e| e.context(format_args!("the recorded program {name}")))
            }
        }
    }
}

impl Operators<'_> {
    /// Launches the kernels of all.
    fn launch(&self, stream: &Stream) -> Result<()> {
        for step in &self.steps {
            let io = CudaForward {
                stream,
                ins: step.ins.iter().map(|p| p.map(Placed::arg)).collect(),
                outs: step.outs.iter().map(|p| p.arg()).collect(),
                scratch: step.scratch.address(),
            };
            // SAFETY: the tensors are what the operator's plan was made from and asks for. What
            // they lie in is borrowed for the program's life and given back in the order of the
            // stream; what is written is apart from the rest: `Tape::forward` has checked that.
            unsafe { step.op.cuda_forward(&io) }.map_err(|e| step.failed(e))?;
        }
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        for step in &self.steps {
            let (mut ins, mut outs) =
                (std::mem::take(&mut self.ins), std::mem::take(&mut self.outs));
            // SAFETY: the host's memory. What an operator writes is apart from all else it gets:
            // `Tape::forward` has checked that. Its views are gone before the next one's are made.
            let scratch = unsafe {
                ins.extend(step.ins.iter().map(|p| p.map(|p| p.view())));
                outs.extend(step.outs.iter().map(|p| p.view_mut()));
                step.scratch.as_f32_mut()
            };
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
    ) -> Result<CapturedGraph<'a>> {
        let mut tape = self.tape(key)?;
        self.progress().enter(key);
        let device = tape.device;
        if device.has_kernels() && graph {
            let (graph, ()) = device.stream()?.capture(|| program(&mut tape, inputs))?;
            return Ok(CapturedGraph { device, steps: Steps::Graph(graph, key.to_string()) });
        }
        tape.captured = Some(vec![]);
        program(&mut tape, inputs)?;
        let steps = tape.captured.take().unwrap_or_default();
        let operators = Operators { steps, ins: vec![], outs: vec![] };
        Ok(CapturedGraph { device, steps: Steps::Operators(operators) })
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

//! Graphs: a run of launches and copies recorded once and started again with one call.

use super::api::SUCCESS;
use super::{Context, Stream};
use crate::base::Result;
use cudarc::driver::sys::{CUgraph, CUgraphExec, CUstreamCaptureMode};

/// A recorded run of device work.
pub struct Graph {
    context: &'static Context,
    exec: CUgraphExec,
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("graph")
    }
}

/// The recording takes only the calls of its own thread.
const THREAD_LOCAL: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

impl Stream {
    /// Records what `work` puts into this stream, without running it.
    pub fn capture<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(Graph, T)> {
        self.context.enter();
        let api = &self.context.api;
        // SAFETY: the stream lives; capture is ended below whatever `work` returns.
        let code = unsafe { (api.capture_begin)(self.handle, THREAD_LOCAL) };
        self.context.check(code, "cannot record a graph")?;
        let result = work();
        let mut graph: CUgraph = std::ptr::null_mut();
        let mut exec: CUgraphExec = std::ptr::null_mut();
        // SAFETY: capture began on this stream; the graph is destroyed once it is instantiated.
        unsafe {
            let ended = (api.capture_end)(self.handle, &raw mut graph);
            let made = match (&result, ended) {
                (Ok(_), SUCCESS) => (api.graph_instantiate)(&raw mut exec, graph, 0),
                _ => ended,
            };
            if !graph.is_null() {
                (api.graph_destroy)(graph);
            }
            // What `work` has to say comes first.
            let value = result?;
            self.context.check(made, "cannot record a graph")?;
            Ok((Graph { context: self.context, exec }, value))
        }
    }

    /// Starts a recorded run again.
    ///
    /// # Safety
    /// The memory that the recorded work names is still allocated, and stays so until this stream
    /// is done with the run; nothing else touches it meanwhile.
    pub unsafe fn replay(&self, graph: &Graph) -> Result<()> {
        self.context.enter();
        // SAFETY: the graph is borrowed, so it has not been destroyed. By the contract of this
        // function the memory that it names is there until the run is over, and nothing else
        // touches it.
        let code = unsafe { (self.context.api.graph_launch)(graph.exec, self.handle) };
        self.context.check(code, format_args!("a graph in {self:?}"))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made in `capture`, destroyed once.
        unsafe { (self.context.api.graph_exec_destroy)(self.exec) };
    }
}

//! Where bytes live and code runs: the CPU, and Null, which allocates and computes nothing and is
//! used to plan. The surface is memory and parallelism, no maths.

pub mod cpu;
mod memory;

pub use memory::{Buffer, Region};

/// A place where bytes live and operators run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// Host memory and the worker threads.
    Cpu,
    /// No memory, no arithmetic: the whole engine can be run on it to plan memory.
    Null,
}

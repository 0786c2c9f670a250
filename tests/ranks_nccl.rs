//! Ranks with a card each, connected by NCCL: processes with emulated devices, and a library with
//! NCCL's functions whose bytes travel by files (`fake_nccl.cpp`). Every call against ranks in one
//! process, bit for bit; ranks that are killed or stopped; and whole runs through the binary.

#![cfg(feature = "emulator")]

#[path = "common/checkpoint.rs"]
pub mod checkpoint;
#[path = "pipeline/place.rs"]
pub mod place;
#[path = "resume/process.rs"]
pub mod process;

#[path = "ranks_nccl/calls.rs"]
mod calls;
#[path = "ranks_nccl/fake.rs"]
mod fake;
#[path = "ranks_nccl/groups.rs"]
mod groups;
#[path = "ranks/near.rs"]
pub mod near;
#[path = "ranks_nccl/runs.rs"]
mod runs;

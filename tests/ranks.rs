//! Runs of several ranks, through the binary: what one does, stopped with some ranks and gone on
//! with by others.

#[path = "common/checkpoint.rs"]
pub mod checkpoint;
#[path = "pipeline/place.rs"]
pub mod place;
#[path = "resume/process.rs"]
pub mod process;

#[path = "ranks/local.rs"]
mod local;
#[cfg(feature = "mpi")]
#[path = "ranks/mpi.rs"]
mod mpi;
#[path = "ranks/near.rs"]
pub mod near;

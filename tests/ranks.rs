//! Runs of several ranks, through the binary: what one does, stopped with some ranks and gone on
//! with by others.

#[path = "common/checkpoint.rs"]
mod checkpoint;
#[allow(dead_code)]
#[path = "pipeline/place.rs"]
mod place;
#[allow(dead_code)]
#[path = "resume/process.rs"]
mod process;

#[path = "ranks/local.rs"]
mod local;
#[cfg(feature = "mpi")]
#[path = "ranks/mpi.rs"]
mod mpi;
#[path = "ranks/near.rs"]
mod near;

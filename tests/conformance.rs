//! Conformance of every algorithm, by the list of algorithms alone: a line there makes one tested
//! here. `DUPLEX_WRITE_DOCS=1 cargo test --test conformance` renews `docs/algorithms.md`.

#[path = "common/checkpoint.rs"]
pub mod checkpoint;
#[path = "conformance/docs.rs"]
mod docs;
#[path = "conformance/learning.rs"]
mod learning;
#[path = "pipeline/place.rs"]
pub mod place;
#[path = "conformance/runs.rs"]
mod runs;

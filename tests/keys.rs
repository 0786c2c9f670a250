//! Every numeric key at the ends of its range, in short runs: settings that a range allows either
//! train or end by one line, and nothing that is not finite is saved.
//!
//! The settings come from the tables of keys, so that a new key is covered. A run follows from seed
//! and number alone. `DUPLEX_SWEEP_RUNS` and `DUPLEX_SWEEP_SEED` ask for more, or for the same
//! again; `tools/keys-sweep` sets them.

#[path = "common/checkpoint.rs"]
pub mod checkpoint;
#[path = "keys/draw.rs"]
mod draw;
#[path = "keys/drive.rs"]
mod drive;
#[path = "pipeline/place.rs"]
pub mod place;

#[test]
fn every_numeric_key_at_its_ends_trains_or_ends_in_one_line() {
    drive::sweep();
}

//! The stages as one run: configuration, run directory, models and data in, models out, the
//! embedded demo, and the measurement of a machine. Knows no argument parsing.

mod bench;
mod card;
mod chat;
mod chat_input;
pub mod config;
mod datasets;
pub mod demo;
mod doctor;
mod eval;
mod export;
mod generation;
mod health;
mod inspect;
mod judge;
mod offline;
mod online;
mod output;
mod pace;
mod plan;
mod ranks;
mod reading;
mod remarks;
mod resume;
mod run;
mod run_dir;
mod saver;
mod settings;
mod sources;
mod stage;
mod start;
mod stop;
mod tokens;
mod train;
mod verify;
mod watchdog;

pub use bench::bench;
pub use chat::chat;
pub use doctor::{Finding, Findings, Mark, doctor};
pub use eval::eval;
pub use inspect::inspect;
pub use plan::plan;
pub use ranks::{Ranks, alike};
pub use train::train;
pub use verify::verify;

//! The program from end to end: the commands on tiny random models, and what they leave behind.

#[path = "common/checkpoint.rs"]
pub mod checkpoint;

#[path = "pipeline/bench.rs"]
mod bench;
#[path = "pipeline/bounds.rs"]
mod bounds;
#[path = "pipeline/data.rs"]
mod data;
#[path = "pipeline/determinism.rs"]
mod determinism;
#[path = "pipeline/devices.rs"]
mod devices;
#[path = "pipeline/doctor.rs"]
mod doctor;
#[path = "pipeline/exports.rs"]
mod exports;
#[path = "pipeline/first_hour.rs"]
mod first_hour;
#[path = "pipeline/foreign.rs"]
mod foreign;
#[path = "pipeline/lora.rs"]
mod lora;
#[path = "pipeline/options.rs"]
mod options;
#[path = "pipeline/place.rs"]
pub mod place;
#[path = "pipeline/plan.rs"]
mod plan;
#[path = "pipeline/steps.rs"]
mod steps;
#[path = "pipeline/talk.rs"]
mod talk;
#[path = "pipeline/vocabulary.rs"]
mod vocabulary;

//! Duplex: RLHF training (SFT, reward model, PPO) in one binary over one weight allocation.
//!
//! The order of the house, in which a module imports only modules to its left, is in
//! `docs/architecture.md`: base, device, config, formats, tensor, pool, arch, op, data, tape,
//! model, train, rollout, engine, algo, report, pipeline, cli.

pub mod algo;
pub mod arch;
pub mod base;
pub mod cli;
pub mod comm;
pub mod config;
pub mod data;
pub mod device;
pub mod engine;
pub mod formats;
pub mod model;
pub mod op;
pub mod pipeline;
pub mod pool;
pub mod report;

pub mod rollout;
pub mod tape;
pub mod tensor;
pub mod train;

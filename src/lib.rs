//! Duplex: RLHF training (SFT, reward model, PPO) in one binary over one weight allocation.
//!
//! Modules are listed in the order of the house (`docs/architecture.md`): a module imports only
//! modules above it.

pub mod base;
pub mod data;
pub mod device;
pub mod formats;
pub mod op;
pub mod report;
pub mod tensor;

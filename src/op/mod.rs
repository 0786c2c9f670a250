//! The operators.

pub mod cpu;

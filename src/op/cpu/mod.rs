//! CPU kernels shared by several operators.

pub mod shared;

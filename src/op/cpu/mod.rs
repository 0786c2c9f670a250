//! CPU kernels shared by several operators.

pub mod loss;
pub mod shared;

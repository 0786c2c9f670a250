//! CPU kernels shared by several operators.

pub mod loss;
pub mod shared;
pub mod softmax;
#[cfg(test)]
pub(crate) mod testing;

//! CPU kernels shared by several operators: vectors of sixteen lanes, matrix products, and the
//! elementwise functions and sums that operators are made of. Knows nothing of tensors.

pub mod act;
pub mod adamw;
pub mod adamw_compact;
mod amx;
pub mod attend;
pub mod attend_backward;
pub mod dropout;
pub mod gemm;
pub mod lanes;
pub mod loss;
pub mod norm;
pub mod rope;
pub mod scatter;
mod scores;
pub mod shared;
pub mod simd;
mod simd_x86;
pub mod softmax;
#[cfg(test)]
pub(crate) mod testing;
mod tile;
pub mod vec;
mod vec_math;

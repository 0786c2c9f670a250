//! CPU kernels shared by several operators.

pub mod act;
pub mod attend;
pub mod attend_backward;
pub mod scatter;
pub mod shared;
pub mod simd;
mod simd_x86;
mod tile;
pub mod vec;
mod vec_math;

//! Words everyone uses: errors, dtypes, shapes and the counter-based random numbers.
//! Knows nothing of devices, tensors or models.

mod caught;
mod dtype;
mod error;
mod rng;
mod shape;

pub use caught::{Limited, caught, is_caught, with_limit};
pub use dtype::{DType, Elem};
pub use error::{Error, Kind, Result};
pub use half::bf16;
pub use rng::{Philox, Rng};
pub use shape::Shape;

//! Words everyone uses: errors, dtypes, shapes, the counter-based random numbers, what the system
//! tells. Knows nothing of devices, tensors or models.

mod bounded;
mod dtype;
mod error;
mod library;
mod panic_guard;
mod rng;
mod shape;
mod system;

pub use bounded::{Limited, bounded};
pub use dtype::{DType, Elem};
pub use error::{Error, Kind, Result};
pub use half::bf16;
pub(crate) use library::functions;
pub use panic_guard::{catch_panic, catches_panic};
pub use rng::{Philox, Rng};
pub use shape::Shape;
pub use system::{machine_name, on_stop};

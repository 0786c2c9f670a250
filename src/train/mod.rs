//! Training mechanics that know no algorithm: batches, the optimizer on flat partitions, learning
//! rate schedules, the moving average of weights.

mod batch;
mod ema;
mod optimizer;
mod schedule;
mod state;

pub use batch::Batch;
pub use ema::Ema;
pub use optimizer::{AdamWConfig, Optimizer, StepStats};
pub use schedule::{Schedule, ScheduleKind};
pub use state::AdamWState;

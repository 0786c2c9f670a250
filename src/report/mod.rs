//! The output of a run: one stream of [`Event`]s goes to the terminal, `metrics.jsonl`, TensorBoard
//! and `report.html`. This module does not know who emits the events or what they mean: a stage
//! declares its metrics when it begins.

mod bar;
mod chart;
mod declared;
mod escape;
mod event;
mod html;
mod jsonl;
mod number;
mod page;
mod reporter;
mod run;
mod series;
mod sink;
mod tensorboard;
mod terminal;
#[cfg(test)]
mod tests;

pub use declared::Declared;
pub use event::{Event, Sample};
pub use html::Html;
pub use jsonl::{Jsonl, cut_log};
pub(crate) use number::significant;
pub use reporter::Reporter;
pub use sink::Sink;
pub use tensorboard::TensorBoard;
pub use terminal::Terminal;

//! Words everyone uses: errors, dtypes, shapes, the counter-based random numbers, what the system
//! tells, the reading of files, and what is said to the user. Knows nothing of devices, tensors or
//! models.

mod bounded;
mod dtype;
mod error;
mod file;
mod library;
mod panic_guard;
mod print;
mod rng;
mod shape;
mod stop;
mod system;
mod text;
mod voice;

pub use bounded::{Limited, bounded};
pub use dtype::{DType, Elem};
pub use error::{Error, Kind, Result};
pub use file::{
    FileId, InFile, entries, is_dir, is_file, is_there, read_file, read_if_there, read_text,
};
pub use half::bf16;
pub(crate) use library::functions;
pub use panic_guard::{catch_panic, catches_panic};
pub use print::print;
pub use rng::{Philox, Rng};
pub use shape::Shape;
pub use stop::{
    Finishing, check_stop, finish_first, finish_for_good, listen_for_stop, stop_requested,
    stop_signal,
};
pub use system::{machine_name, on_stop, tell_of_file_size_limits, write_at_once};
pub use text::{printable, printable_lines};
pub use voice::{Bar, advance_bar, finish_saying, say, show_bar, speaks_to_terminal, tell, warn};

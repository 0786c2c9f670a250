//! Places that events go to.

use super::Event;
use crate::base::Result;

/// A place events go to.
pub trait Sink: Send {
    /// The sink's name for the user, for the warning when it fails.
    fn name(&self) -> &str;

    /// Takes one event; `time` is in seconds since 1970.
    fn write(&mut self, time: f64, event: &Event) -> Result<()>;
}

//! Calls that end by meeting the other ranks, whoever carries them.

use super::Pending;
use crate::base::Result;

/// A call that ends by meeting the other ranks.
pub(super) trait Meet {
    fn meet(&self) -> Result<()>;
}

/// Something that meets once: when it is waited for, at the latest when it is dropped.
struct Deferred<M: Meet> {
    meeting: M,
    over: bool,
}

pub(super) fn deferred(meeting: impl Meet + 'static) -> Box<dyn Pending> {
    Box::new(Deferred { meeting, over: false })
}

impl<M: Meet> Deferred<M> {
    fn end(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.over, true) { Ok(()) } else { self.meeting.meet() }
    }
}

impl<M: Meet> Pending for Deferred<M> {
    fn wait(mut self: Box<Self>) -> Result<()> {
        self.end()
    }
}

impl<M: Meet> Drop for Deferred<M> {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

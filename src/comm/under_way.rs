//! Calls that end by meeting the other ranks, whoever carries them.

use super::Pending;
use crate::base::Result;

/// A call that ends by meeting the other ranks.
pub(super) trait Meet {
    fn meet(&self) -> Result<()>;
}

/// Something that meets once: when it is waited for, at the latest when it is dropped.
struct UnderWay<M: Meet> {
    meeting: M,
    over: bool,
}

pub(super) fn under_way(meeting: impl Meet + 'static) -> Box<dyn Pending> {
    Box::new(UnderWay { meeting, over: false })
}

impl<M: Meet> UnderWay<M> {
    fn end(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.over, true) { Ok(()) } else { self.meeting.meet() }
    }
}

impl<M: Meet> Pending for UnderWay<M> {
    fn wait(mut self: Box<Self>) -> Result<()> {
        self.end()
    }
}

impl<M: Meet> Drop for UnderWay<M> {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

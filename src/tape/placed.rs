//! Tensors with their memory, as operators get them, and the check that what an operator writes is
//! apart from all else that it gets, and that all is where the operator runs. Whoever calls a
//! program may bind one buffer twice, or give an operator that works in place the same tensor as
//! another input: that is an error here.

use crate::base::{Error, Result};
use crate::device::{Device, Region};
use crate::op::{Arg, View, ViewMut};
use crate::tensor::Desc;

/// A tensor and where it lies, which is borrowed for `'a`.
#[derive(Clone, Copy)]
pub(super) struct Placed<'a> {
    pub(super) region: Region<'a>,
    pub(super) desc: Desc,
}

impl<'a> Placed<'a> {
    /// As kernels get it.
    pub(super) fn arg(self) -> Arg {
        Arg { ptr: self.region.address(), desc: self.desc }
    }

    /// # Safety
    /// It lies in the host's memory, and nothing writes it while the view is used.
    pub(super) unsafe fn view(self) -> View<'a> {
        // SAFETY: `as_bytes` asks for memory of the host that nothing writes while the slice is
        // used: by the contract of this function both hold as long as the view.
        View::new(unsafe { self.region.as_bytes() }, self.desc)
    }

    /// # Safety
    /// It lies in the host's memory, and nothing else touches it while the view is used.
    pub(super) unsafe fn view_mut(self) -> ViewMut<'a> {
        // SAFETY: `as_bytes_mut` asks for memory of the host that nothing else touches while the
        // slice is used: by the contract of this function both hold as long as the view.
        ViewMut::new(unsafe { self.region.as_bytes_mut() }, self.desc)
    }
}

/// Fails unless all that `name` gets lies on `device`, and all that it writes, its workspace among
/// it, has no byte in common with anything else.
pub(super) fn check<'p, 'a: 'p>(
    device: Device,
    name: &str,
    read: impl Iterator<Item = &'p Placed<'a>> + Clone,
    write: impl Iterator<Item = &'p Placed<'a>> + Clone,
    scratch: Region<'a>,
) -> Result<()> {
    let read = read.map(|p| p.region);
    let mut written = write.map(|p| p.region).chain(std::iter::once(scratch));
    let missing = |r: Region<'_>| r.bytes() > 0 && (r.device() != device || r.ptr().is_null());
    if read.clone().chain(written.clone()).any(missing) {
        return Err(Error::internal(format!("{name} is given what is not on {device}")));
    }
    while let Some(one) = written.next() {
        if read.clone().chain(written.clone()).any(|other| one.overlaps(&other)) {
            return Err(Error::internal(format!("{name} writes what it is also given elsewhere")));
        }
    }
    Ok(())
}

//! Requests: what MPI has been asked for and has not done yet. Counts of more than 31 bits are cut
//! here.

use crate::base::{Error, Result};
use crate::comm::Span;
use ::mpi::ffi;
use std::ffi::c_int;

/// The tag of what one rank sends another; a reduction's messages have that of their call.
pub(super) const P2P_TAG: c_int = 0;
/// MPI promises tags up to 32767. Far fewer calls are under way at a time.
const TAGS: u64 = 30_000;

/// The tag of a call's messages.
pub(super) fn tag(number: u64) -> c_int {
    1 + (number % TAGS) as c_int
}

/// The other ranks of a group, each rank beginning behind itself, so that not all send to the same
/// first.
pub(super) fn others(rank: usize, size: usize) -> impl Iterator<Item = usize> {
    (1..size).map(move |i| (rank + i) % size)
}

/// The error of an MPI call that gave `code`.
pub(super) fn check(what: &str, code: c_int) -> Result<()> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = [0u8; 4096];
    let (mut length, mut class) = (0, 0);
    // SAFETY: room for more than MPI_MAX_ERROR_STRING characters.
    unsafe {
        ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &mut length);
        ffi::MPI_Error_class(code, &mut class);
    }
    let text = String::from_utf8_lossy(&text[..(length as usize).min(text.len())]).into_owned();
    if class == ffi::MPI_ERR_TRUNCATE as c_int {
        return Err(Error::internal(format!("{what}: the ranks do not agree on its length")));
    }
    Err(Error::stopped(format!("{what}: MPI reports {text}")))
}

/// The communicator of a group, and the most bytes it is given at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lane {
    pub(super) comm: ffi::MPI_Comm,
    pub(super) largest: usize,
}

// SAFETY: a handle without thread affinity; one thread at a time is inside MPI.
unsafe impl Send for Lane {}
// SAFETY: it is only read, and one thread at a time is inside MPI.
unsafe impl Sync for Lane {}

impl Lane {
    /// Itself, for closures, which would else take its fields one by one.
    pub(super) fn whole(&self) -> &Lane {
        self
    }

    /// Pieces of `data` that MPI can count.
    fn pieces(&self, data: Span) -> impl Iterator<Item = Span> + use<> {
        let largest = self.largest;
        let starts = (0..data.bytes).step_by(largest);
        starts.map(move |at| data.slice(at, largest.min(data.bytes - at)))
    }
}

/// Some requests that end together. Dropped earlier, they go on: who drops them must keep their
/// memory.
#[derive(Debug, Default)]
pub(super) struct Requests {
    open: Vec<ffi::MPI_Request>,
    /// Bytes that a request must bring; `None` if it brings none, or MPI sees to it.
    expected: Vec<Option<usize>>,
    /// The indices and statuses of those that are over, for MPI to write into.
    indices: Vec<c_int>,
    statuses: Vec<ffi::MPI_Status>,
}

// SAFETY: requests have no thread affinity, and one thread at a time is inside MPI; whoever started
// the call lets any thread use its memory until it has been waited for.
unsafe impl Send for Requests {}

impl Requests {
    fn push(&mut self, what: &str, code: c_int, request: ffi::MPI_Request) -> Result<()> {
        check(what, code)?;
        self.open.push(request);
        self.expected.push(None);
        Ok(())
    }

    /// # Safety
    /// For this and those below: no other thread uses MPI meanwhile, and the memory is alive and
    /// left alone until the requests are over.
    pub(super) unsafe fn barrier(&mut self, lane: &Lane) -> Result<()> {
        // SAFETY: a live communicator, and a local for the request. By the contract of this
        // function no other thread uses MPI.
        let (code, request) = unsafe {
            let mut request = ffi::RSMPI_REQUEST_NULL;
            (ffi::MPI_Ibarrier(lane.comm, &mut request), request)
        };
        self.push("barrier", code, request)
    }

    pub(super) unsafe fn broadcast(&mut self, lane: &Lane, data: Span, root: usize) -> Result<()> {
        for piece in lane.pieces(data) {
            // SAFETY: a live communicator, and a local for the request. By the contract of
            // `barrier`, which is this one's too, no other thread uses MPI, and the piece is left
            // alone until the request is over.
            let (code, request) = unsafe {
                let mut request = ffi::RSMPI_REQUEST_NULL;
                let (ptr, n, root) = (piece.ptr.cast(), piece.bytes as c_int, root as c_int);
                let bytes = ffi::RSMPI_UINT8_T;
                (ffi::MPI_Ibcast(ptr, n, bytes, root, lane.comm, &mut request), request)
            };
            self.push("broadcast", code, request)?;
        }
        Ok(())
    }

    /// Gives `own` to all others of rank `rank`'s group and takes their `blocks`, its own apart. By
    /// messages: MPI's own all-gather cannot be told by its Rust binding that a block is in its
    /// place already, nor count all bytes.
    pub(super) unsafe fn all_gather(
        &mut self,
        lane: &Lane,
        own: Span,
        blocks: &[Span],
        (rank, tag): (usize, c_int),
    ) -> Result<()> {
        for other in others(rank, blocks.len()) {
            // SAFETY: the contract of `send` and `receive` is that of this function, for `own` and
            // for each of the `blocks`.
            unsafe {
                self.receive(lane, blocks[other], other, tag)?;
                self.send(lane, own, other, tag)?;
            }
        }
        Ok(())
    }

    pub(super) unsafe fn send(
        &mut self,
        lane: &Lane,
        data: Span,
        to: usize,
        tag: c_int,
    ) -> Result<()> {
        for piece in lane.pieces(data) {
            // SAFETY: as in `broadcast`; MPI only reads the piece.
            let (code, request) = unsafe {
                let mut request = ffi::RSMPI_REQUEST_NULL;
                let (ptr, n, to) = (piece.ptr.cast(), piece.bytes as c_int, to as c_int);
                let bytes = ffi::RSMPI_UINT8_T;
                (ffi::MPI_Isend(ptr, n, bytes, to, tag, lane.comm, &mut request), request)
            };
            self.push("send", code, request)?;
        }
        Ok(())
    }

    pub(super) unsafe fn receive(
        &mut self,
        lane: &Lane,
        data: Span,
        from: usize,
        tag: c_int,
    ) -> Result<()> {
        for piece in lane.pieces(data) {
            // SAFETY: as in `broadcast`; nobody but MPI touches the piece until the request is
            // over.
            let (code, request) = unsafe {
                let mut request = ffi::RSMPI_REQUEST_NULL;
                let (ptr, n, from) = (piece.ptr.cast(), piece.bytes as c_int, from as c_int);
                let bytes = ffi::RSMPI_UINT8_T;
                (ffi::MPI_Irecv(ptr, n, bytes, from, tag, lane.comm, &mut request), request)
            };
            self.push("receive", code, request)?;
            self.expected.last_mut().into_iter().for_each(|e| *e = Some(piece.bytes));
        }
        Ok(())
    }

    /// True if all have ended. Lets MPI do its work.
    ///
    /// # Safety
    /// No other thread uses MPI meanwhile, and the memory of the requests is still there.
    pub(super) unsafe fn over(&mut self) -> Result<bool> {
        let n = self.open.len();
        if n > 0 {
            self.indices.resize(n, 0);
            // SAFETY: plain numbers.
            self.statuses.resize_with(n, || unsafe { std::mem::zeroed() });
            let mut ended = 0;
            // SAFETY: room for all of them.
            let code = unsafe {
                ffi::MPI_Testsome(
                    n as c_int,
                    self.open.as_mut_ptr(),
                    &mut ended,
                    self.indices.as_mut_ptr(),
                    self.statuses.as_mut_ptr(),
                )
            };
            let each = code == ffi::MPI_ERR_IN_STATUS as c_int;
            if !each {
                check("wait", code)?;
            }
            for i in 0..ended.max(0) as usize {
                let status = &self.statuses[i];
                if each {
                    check("wait", status.MPI_ERROR)?;
                }
                self.arrived(self.indices[i] as usize, status)?;
            }
            self.sweep();
        }
        Ok(self.open.is_empty())
    }

    /// Checks that a message was as long as it had to be.
    fn arrived(&self, request: usize, status: &ffi::MPI_Status) -> Result<()> {
        let Some(expected) = self.expected[request] else { return Ok(()) };
        let mut bytes = 0;
        // SAFETY: a status that MPI has written.
        let code = unsafe { ffi::MPI_Get_count(status, ffi::RSMPI_UINT8_T, &mut bytes) };
        check("count", code)?;
        if bytes as usize == expected {
            return Ok(());
        }
        let (from, sent) = (status.MPI_SOURCE, bytes);
        Err(Error::internal(format!("rank {from} sent {sent} bytes where {expected} are taken")))
    }

    /// Forgets those that are over.
    fn sweep(&mut self) {
        // SAFETY: MPI's constant.
        let over = |request: &ffi::MPI_Request| *request == unsafe { ffi::RSMPI_REQUEST_NULL };
        let open = |i: &usize| !over(&self.open[*i]);
        let kept: Vec<usize> = (0..self.open.len()).filter(open).collect();
        self.expected = kept.iter().map(|i| self.expected[*i]).collect();
        self.open.retain(|request| !over(request));
    }
}

//! Device memory. A [`Buffer`] owns bytes; a [`Region`] is a range of them that borrows the owner,
//! so that it cannot outlive the memory.
//!
//! Bytes may be written through a shared handle, like those of a [`Cell`](std::cell::Cell), and for
//! the same reasons: a buffer is one thread's at a time, what is safe here copies bytes and keeps
//! no reference to them, and references come from `unsafe` functions only, whose callers see to it
//! that nobody writes meanwhile.

use crate::base::{Error, Result};
use crate::device::cpu::parallel_for;
use crate::device::{Device, fake};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

mod host;

/// True once something that cannot be stopped may still write memory of the host.
static KEPT: AtomicBool = AtomicBool::new(false);

/// From here on no buffer of the host gives its memory back: something that cannot be stopped, such
/// as a message on its way, may still write there. For a process that is about to end.
#[cfg(feature = "mpi")]
pub(crate) fn keep_host_memory() {
    KEPT.store(true, Ordering::SeqCst);
}

/// An owned range of device memory, zero-initialised.
#[derive(Debug)]
pub struct Buffer {
    device: Device,
    ptr: *mut u8,
    bytes: usize,
    /// The device for copies to which the host's pages are locked.
    locked_for: Option<Device>,
}

/// A borrowed range of memory of some device. Its address is null where there is no memory, as
/// while planning.
#[derive(Clone, Copy, Debug)]
pub struct Region<'b> {
    device: Device,
    ptr: *mut u8,
    bytes: usize,
    /// The owner is borrowed; it holds the region to one thread, as `Buffer` is.
    owner: PhantomData<&'b Buffer>,
}

// SAFETY: the bytes are the buffer's alone and belong to no thread. It is not `Sync`, and regions
// are not `Send`, so whoever gets it is the only one who reaches them.
unsafe impl Send for Buffer {}

impl Buffer {
    /// Allocates `bytes` zeroed bytes on `device`.
    pub fn zeroed(device: Device, bytes: usize) -> Result<Buffer> {
        let buffer = |ptr: *mut u8| Buffer { device, ptr, bytes, locked_for: None };
        if bytes == 0 {
            return Ok(buffer(std::ptr::null_mut()));
        }
        if let Device::Fake(kind) = device {
            fake::alloc(kind, bytes)?;
            return Ok(buffer(std::ptr::null_mut()));
        }
        if device.has_kernels() {
            let stream = device.stream()?;
            let ptr = stream.alloc(bytes)? as *mut u8;
            let buffer = buffer(ptr);
            stream.fill(buffer.region(), 0)?;
            // Other threads' streams may use it next.
            stream.synchronize()?;
            return Ok(buffer);
        }
        match host::alloc(bytes) {
            Some(ptr) => Ok(buffer(ptr)),
            None => Err(Error::memory(format!(
                "out of memory: cannot allocate {} MiB; use a smaller model, batch or sequence \
                 length",
                bytes.div_ceil(1 << 20)
            ))),
        }
    }

    /// The same of the host, for copies to `device` ([`Device::upload`]): its pages are locked, if
    /// the system lets so many be.
    pub fn locked(device: Device, bytes: usize) -> Result<Buffer> {
        let mut buffer = Buffer::zeroed(device.host(), bytes)?;
        if bytes > 0 && !device.is_fake() && device.stream()?.lock_pages(buffer.region()) {
            buffer.locked_for = Some(device);
        }
        Ok(buffer)
    }

    /// The device it lives on.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The whole buffer as a region.
    pub fn region(&self) -> Region<'_> {
        Region { device: self.device, ptr: self.ptr, bytes: self.bytes, owner: PhantomData }
    }

    /// The bytes `offset..offset + bytes` as a region.
    pub fn slice(&self, offset: usize, bytes: usize) -> Region<'_> {
        self.region().slice(offset, bytes)
    }

    /// Copies host bytes to `offset`.
    pub fn write(&self, offset: usize, src: &[u8]) -> Result<()> {
        self.slice(offset, src.len()).write(src)
    }

    /// Copies bytes at `offset` to the host.
    pub fn read(&self, offset: usize, dst: &mut [u8]) -> Result<()> {
        self.slice(offset, dst.len()).read(dst)
    }
}

/// Bytes that one task of a copy takes.
const PIECE: usize = 1 << 20;

/// Copies on all threads: one alone neither fills the memory's bandwidth nor touches new pages fast
/// enough.
fn copy(from: &[u8], to: &mut [u8]) {
    if to.len() <= PIECE {
        return to.copy_from_slice(from);
    }
    let pieces: Vec<Mutex<&mut [u8]>> = to.chunks_mut(PIECE).map(Mutex::new).collect();
    parallel_for(pieces.len(), |i| {
        let mut to = pieces[i].lock().unwrap_or_else(PoisonError::into_inner);
        let n = to.len();
        to.copy_from_slice(&from[i * PIECE..][..n]);
    });
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Device::Fake(kind) = self.device {
            fake::free(kind, self.bytes);
        }
        if self.ptr.is_null() {
            return;
        }
        if self.device.has_kernels() {
            if let Ok(stream) = self.device.stream() {
                // SAFETY: allocated in `zeroed` on this device, and given back here alone.
                unsafe { stream.free(self.ptr as u64) };
            }
            return;
        }
        if KEPT.load(Ordering::SeqCst) {
            return;
        }
        if let Some(device) = self.locked_for
            && let (Ok(work), Ok(uploads)) = (device.stream(), device.upload_stream())
        {
            // What still copies from it has been begun by this thread.
            let _ = uploads.synchronize();
            work.unlock_pages(self.region());
        }
        // SAFETY: allocated in `zeroed` with this very size. Regions borrow the buffer, so there is
        // none any more, nor a reference that came from one.
        unsafe { host::free(self.ptr, self.bytes) };
    }
}

impl<'b> Region<'b> {
    /// `bytes` bytes that are not there: what tensors have while planning, and on a fake
    /// device.
    pub const fn nowhere(bytes: usize) -> Region<'static> {
        Region { device: Device::Cpu, ptr: std::ptr::null_mut(), bytes, owner: PhantomData }
    }

    /// Memory of the host that is lent, to be used like a buffer's.
    pub fn of_host(memory: &'b mut [u8]) -> Region<'b> {
        let (ptr, bytes) = (memory.as_mut_ptr(), memory.len());
        Region { device: Device::Cpu, ptr, bytes, owner: PhantomData }
    }

    /// The range of `bytes` bytes at `ptr`.
    ///
    /// # Safety
    /// It is memory of `device` that stays allocated for `'b`, during which other threads leave it
    /// alone and no reference to it is used while something is written to it.
    pub unsafe fn new(device: Device, ptr: *mut u8, bytes: usize) -> Region<'b> {
        Region { device, ptr, bytes, owner: PhantomData }
    }

    /// The device whose memory it is.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Its first byte, or null where there is no memory.
    pub fn ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// The address of its first byte, as kernels take it.
    pub fn address(&self) -> u64 {
        self.ptr as u64
    }

    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The bytes `offset..offset + bytes` of the region.
    pub fn slice(self, offset: usize, bytes: usize) -> Region<'b> {
        let inside = offset <= self.bytes && bytes <= self.bytes - offset;
        assert!(inside, "region {offset}+{bytes} of {}", self.bytes);
        Region { ptr: self.ptr.wrapping_add(offset), bytes, ..self }
    }

    /// True if there is no memory: while planning, and on a fake device, where addresses mean
    /// nothing.
    fn is_nowhere(&self) -> bool {
        self.ptr.is_null() || self.device.is_fake()
    }

    /// Copies host bytes to the region.
    pub fn write(self, src: &[u8]) -> Result<()> {
        assert_eq!(self.bytes, src.len());
        if self.is_nowhere() {
            return Ok(());
        }
        if self.device.has_kernels() {
            return self.device.stream()?.copy_in(self, src);
        }
        // SAFETY: host memory of that length, which the owner that is borrowed keeps allocated and
        // only this thread reaches. No reference to it is in use, so `src` is elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), self.ptr, src.len()) };
        Ok(())
    }

    /// Copies a region of the same device and length here; either it is the same or the two do not
    /// overlap.
    pub fn copy_from(self, from: Region<'_>) -> Result<()> {
        assert_eq!(self.bytes, from.bytes);
        if self.is_nowhere() || from.is_nowhere() || self.ptr == from.ptr {
            return Ok(());
        }
        if self.device != from.device || self.overlaps(&from) {
            return Err(Error::internal(format!("a copy of {from:?} to {self:?}")));
        }
        if self.device.has_kernels() {
            return self.device.stream()?.copy(self, from);
        }
        // SAFETY: host memory whose owners are borrowed and that only this thread reaches, through
        // no other reference; the two ranges have no byte in common, as was checked.
        copy(unsafe { from.as_bytes() }, unsafe { self.as_bytes_mut() });
        Ok(())
    }

    /// Sets the region to zero bytes.
    pub fn clear(self) -> Result<()> {
        if self.bytes == 0 || self.is_nowhere() {
            return Ok(());
        }
        if self.device.has_kernels() {
            return self.device.stream()?.fill(self, 0);
        }
        // SAFETY: host memory of that length, which the owner that is borrowed keeps allocated and
        // only this thread reaches; no reference to it is in use.
        unsafe { std::ptr::write_bytes(self.ptr, 0, self.bytes) };
        Ok(())
    }

    /// Copies the region to the host, once all work before it is done.
    pub fn read(self, dst: &mut [u8]) -> Result<()> {
        assert_eq!(self.bytes, dst.len());
        if self.is_nowhere() {
            return Ok(());
        }
        if self.device.has_kernels() {
            return self.device.stream()?.copy_out(self, dst);
        }
        // SAFETY: host memory of that length whose owner is borrowed; this thread, which alone may
        // write it, reads it here. `dst` is borrowed exclusively, so it is elsewhere.
        copy(unsafe { self.as_bytes() }, dst);
        Ok(())
    }

    /// The region as shared bytes, which live as long as the owner is borrowed.
    ///
    /// # Safety
    /// It must be the host's memory, and nothing may write it while the result is used.
    pub unsafe fn as_bytes(self) -> &'b [u8] {
        if self.bytes == 0 {
            return &[];
        }
        assert!(!self.ptr.is_null(), "bytes of memory that is not there");
        // SAFETY: the owner, borrowed for `'b`, keeps these bytes allocated and has initialised
        // them. By the contract of this function nothing writes them while the result is used.
        unsafe { std::slice::from_raw_parts(self.ptr, self.bytes) }
    }

    /// The region as exclusive bytes, which live as long as the owner is borrowed.
    ///
    /// # Safety
    /// It must be the host's memory, and nothing else may touch it while the result is used.
    pub unsafe fn as_bytes_mut(self) -> &'b mut [u8] {
        if self.bytes == 0 {
            return &mut [];
        }
        assert!(!self.ptr.is_null(), "bytes of memory that is not there");
        // SAFETY: the owner, borrowed for `'b`, keeps these bytes allocated and has initialised
        // them. By the contract of this function nothing else touches them while the result is
        // used.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.bytes) }
    }

    /// The region as exclusive f32 values.
    ///
    /// # Safety
    /// As for [`Region::as_bytes_mut`].
    pub unsafe fn as_f32_mut(self) -> &'b mut [f32] {
        if self.bytes == 0 {
            return &mut [];
        }
        // SAFETY: the contract of this function is that of `as_bytes_mut`.
        bytemuck::cast_slice_mut(unsafe { self.as_bytes_mut() })
    }

    /// True if two regions share a byte.
    pub fn overlaps(&self, other: &Region<'_>) -> bool {
        let (a, b) = (self.ptr as usize, other.ptr as usize);
        let there = |r: &Region<'_>| r.bytes > 0 && !r.is_nowhere();
        there(self)
            && there(other)
            && self.device == other.device
            && a < b + other.bytes
            && b < a + self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_cut_within_their_memory() {
        let buffer = Buffer::zeroed(Device::Cpu, 16).unwrap();
        assert_eq!(buffer.slice(4, 12).slice(12, 0).bytes(), 0);
        for (offset, bytes) in [(0, 17), (16, 1), (usize::MAX, 2)] {
            let cut = || buffer.slice(offset, bytes).bytes();
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(cut)).is_err());
        }
    }

    #[test]
    fn copies_are_of_memory_that_is_apart() {
        let buffer = Buffer::zeroed(Device::Cpu, 8).unwrap();
        buffer.write(0, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        buffer.slice(4, 4).copy_from(buffer.slice(0, 4)).unwrap();
        buffer.region().copy_from(buffer.region()).unwrap();
        assert!(buffer.slice(1, 4).copy_from(buffer.slice(0, 4)).is_err());
        let mut lent = [0; 8];
        Region::of_host(&mut lent).copy_from(buffer.region()).unwrap();
        assert_eq!(lent, [1, 2, 3, 4, 1, 2, 3, 4]);
    }
}

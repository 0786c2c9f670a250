//! Device memory. A [`Buffer`] owns bytes; a [`Region`] is the bare address range that tensors are
//! resolved to while operators run.
//!
//! Like memory of an accelerator, a buffer may be written through a shared handle: operators of one
//! run execute one after another, and each declares what it writes. Host access goes through
//! [`Buffer::read`] and [`Buffer::write`], between runs.

use crate::base::{Error, Result};
use crate::device::cpu::parallel_for;
use crate::device::{Device, imagined};
use std::sync::{Mutex, PoisonError};

mod host;

/// An owned range of device memory, zero-initialised.
#[derive(Debug)]
pub struct Buffer {
    device: Device,
    ptr: *mut u8,
    bytes: usize,
    /// The device for copies to which the host's pages are locked.
    locked_for: Option<Device>,
}

/// A borrowed address range on some device: host memory only on [`Device::Cpu`]. `ptr` is null
/// where there is no memory, as while planning.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// First byte.
    pub ptr: *mut u8,
    /// Length in bytes.
    pub bytes: usize,
}

// SAFETY: the buffer is plain bytes without thread affinity; who writes when is decided by the
// tape, which runs one operator at a time.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Allocates `bytes` zeroed bytes on `device`.
    pub fn zeroed(device: Device, bytes: usize) -> Result<Buffer> {
        let buffer = |ptr: *mut u8| Buffer { device, ptr, bytes, locked_for: None };
        if bytes == 0 {
            return Ok(buffer(std::ptr::null_mut()));
        }
        if let Device::Imagined(kind) = device {
            imagined::alloc(kind, bytes)?;
            return Ok(buffer(std::ptr::null_mut()));
        }
        if device.has_kernels() {
            let stream = device.stream()?;
            let ptr = stream.alloc(bytes)? as *mut u8;
            stream.fill(Region { ptr, bytes }, 0)?;
            // Other threads' streams may use it next.
            stream.synchronize()?;
            return Ok(buffer(ptr));
        }
        match host::alloc(bytes) {
            Some(ptr) => Ok(buffer(ptr)),
            None => Err(Error::memory(format!(
                "out of memory: cannot allocate {} MiB; use a smaller model, batch or sequence length",
                bytes >> 20
            ))),
        }
    }

    /// The same of the host, for copies to `device` ([`Device::upload`]): its pages are locked, if
    /// the system lets so many be.
    pub fn locked(device: Device, bytes: usize) -> Result<Buffer> {
        let mut buffer = Buffer::zeroed(device.host(), bytes)?;
        if bytes > 0 && !device.is_imagined() && device.stream()?.lock_pages(buffer.region()) {
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
    pub fn region(&self) -> Region {
        Region { ptr: self.ptr, bytes: self.bytes }
    }

    /// The bytes `offset..offset + bytes` as a region.
    pub fn slice(&self, offset: usize, bytes: usize) -> Region {
        self.region().slice(offset, bytes)
    }

    /// Copies host bytes to `offset`.
    pub fn write(&self, offset: usize, src: &[u8]) -> Result<()> {
        self.device.write(self.slice(offset, src.len()), src)
    }

    /// Copies bytes at `offset` to the host.
    pub fn read(&self, offset: usize, dst: &mut [u8]) -> Result<()> {
        self.device.read(self.slice(offset, dst.len()), dst)
    }
}

impl Device {
    /// True if a region has no memory: while planning, and on an imagined device, where addresses
    /// mean nothing.
    fn has_nothing_at(self, region: Region) -> bool {
        region.ptr.is_null() || self.is_imagined()
    }

    /// Copies host bytes to a region of this device's memory.
    pub fn write(self, to: Region, src: &[u8]) -> Result<()> {
        assert_eq!(to.bytes, src.len());
        if self.has_nothing_at(to) {
            return Ok(());
        }
        if self.has_kernels() {
            return self.stream()?.copy_in(to, src);
        }
        // SAFETY: the region is live host memory; `src` is host memory borrowed from elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), to.ptr, src.len()) };
        Ok(())
    }

    /// Copies a region of this device's memory to another of the same length, which does not
    /// overlap it.
    pub fn copy(self, to: Region, from: Region) -> Result<()> {
        assert_eq!(to.bytes, from.bytes);
        if self.has_nothing_at(to) || self.has_nothing_at(from) {
            return Ok(());
        }
        if self.has_kernels() {
            return self.stream()?.copy(to, from);
        }
        // SAFETY: both are live host memory, and do not overlap.
        copy(unsafe { from.as_bytes() }, unsafe { to.as_bytes_mut() });
        Ok(())
    }

    /// Sets a region of this device's memory to zero bytes.
    pub fn clear(self, region: Region) -> Result<()> {
        if region.bytes == 0 || self.has_nothing_at(region) {
            return Ok(());
        }
        if self.has_kernels() {
            return self.stream()?.fill(region, 0);
        }
        // SAFETY: the region is live host memory.
        unsafe { std::ptr::write_bytes(region.ptr, 0, region.bytes) };
        Ok(())
    }

    /// Copies a region of this device's memory to the host, once all work before it is done.
    pub fn read(self, from: Region, dst: &mut [u8]) -> Result<()> {
        assert_eq!(from.bytes, dst.len());
        if self.has_nothing_at(from) {
            return Ok(());
        }
        if self.has_kernels() {
            return self.stream()?.copy_out(from, dst);
        }
        // SAFETY: the region is live host memory, and `dst` is exclusively borrowed from elsewhere.
        copy(unsafe { from.as_bytes() }, dst);
        Ok(())
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
        if let Device::Imagined(kind) = self.device {
            imagined::free(kind, self.bytes);
        }
        if self.ptr.is_null() {
            return;
        }
        if self.device.has_kernels() {
            if let Ok(stream) = self.device.stream() {
                stream.free(self.ptr as u64);
            }
            return;
        }
        if let Some(device) = self.locked_for
            && let (Ok(work), Ok(uploads)) = (device.stream(), device.upload_stream())
        {
            // What still copies from it has been begun by this thread.
            let _ = uploads.synchronize();
            work.unlock_pages(self.region());
        }
        // SAFETY: allocated in `zeroed` with this very size, and nobody uses it any more.
        unsafe { host::free(self.ptr, self.bytes) };
    }
}

impl Region {
    /// No memory.
    pub const NOWHERE: Region = Region { ptr: std::ptr::null_mut(), bytes: 0 };

    /// The bytes `offset..offset + bytes` of the region.
    pub fn slice(self, offset: usize, bytes: usize) -> Region {
        assert!(offset + bytes <= self.bytes, "region {offset}+{bytes} of {}", self.bytes);
        Region { ptr: self.ptr.wrapping_add(offset), bytes }
    }

    /// The region as shared bytes.
    ///
    /// # Safety
    /// The region must be alive and host-readable, and nothing may write it for `'a`.
    pub unsafe fn as_bytes<'a>(self) -> &'a [u8] {
        if self.bytes == 0 {
            return &[];
        }
        // SAFETY: promised by the caller.
        unsafe { std::slice::from_raw_parts(self.ptr, self.bytes) }
    }

    /// The region as exclusive bytes.
    ///
    /// # Safety
    /// The region must be alive and host-writable, and nothing else may touch it for `'a`.
    pub unsafe fn as_bytes_mut<'a>(self) -> &'a mut [u8] {
        if self.bytes == 0 {
            return &mut [];
        }
        // SAFETY: promised by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.bytes) }
    }

    /// The region as exclusive f32 values.
    ///
    /// # Safety
    /// As for [`Region::as_bytes_mut`].
    pub unsafe fn as_f32_mut<'a>(self) -> &'a mut [f32] {
        if self.bytes == 0 {
            return &mut [];
        }
        // SAFETY: promised by the caller.
        bytemuck::cast_slice_mut(unsafe { self.as_bytes_mut() })
    }

    /// True if two regions share a byte.
    pub fn overlaps(&self, other: &Region) -> bool {
        let (a, b) = (self.ptr as usize, other.ptr as usize);
        !self.ptr.is_null() && a < b + other.bytes && b < a + self.bytes
    }
}

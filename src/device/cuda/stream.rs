//! Streams: copies, fills and kernels, one after another, asynchronously to the host; events to
//! time and order them.

use super::api::{NOT_READY, SUCCESS};
use super::params::KernelParams;
use super::{Context, fault};
use crate::base::{Error, Result};
use crate::device::{Device, Region};
use cudarc::driver::sys::{CU_MEMHOSTREGISTER_PORTABLE, CUevent, CUstream, CUstream_flags};
use std::cell::Cell;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering};

/// A queue of device work, used by one host thread. Lives as long as the process.
pub struct Stream {
    device: Device,
    pub(super) context: &'static Context,
    pub(super) handle: CUstream,
    /// Counted in this process.
    number: u32,
    /// One u32 in which kernels report faults.
    fault: u64,
    launches: Cell<u64>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "stream {} of {}", self.number, self.context.card.name)
    }
}

// SAFETY: the driver's handles may be used from any thread; what counts launches is used by one
// thread at a time.
unsafe impl Send for Stream {}

/// Apart from the stream that other libraries of the process use by default.
const NON_BLOCKING: u32 = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;

impl Stream {
    pub(in crate::device) fn new(device: Device, context: &'static Context) -> Result<Stream> {
        context.enter();
        let mut handle: CUstream = std::ptr::null_mut();
        // SAFETY: the pointer is to a local.
        let code = unsafe { (context.api.stream_create)(&raw mut handle, NON_BLOCKING) };
        context.check(code, "cannot make a stream")?;
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let launches = Cell::new(0);
        let mut stream = Stream { device, context, handle, number, fault: 0, launches };
        stream.fault = stream.alloc(256)?;
        stream.fill(stream.faults(), 0)?;
        Ok(stream)
    }

    /// The device it belongs to.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The card it belongs to.
    pub fn card(&self) -> &super::Card {
        &self.context.card
    }

    /// The driver's handle, for other libraries that work in this stream.
    pub fn raw(&self) -> *mut c_void {
        self.handle.cast()
    }

    /// Address of the word in which kernels report faults; it is looked at by [`Stream::copy_out`].
    pub fn fault(&self) -> u64 {
        self.fault
    }

    fn faults(&self) -> Region<'_> {
        // SAFETY: allocated with this length in `new` and never given back; no reference to memory
        // of a device is ever made.
        unsafe { Region::new(self.device, self.fault as *mut u8, 256) }
    }

    /// Fails if a region is not memory of this stream's device.
    fn check_ours(&self, region: &Region<'_>) -> Result<()> {
        if region.device() == self.device {
            return Ok(());
        }
        Err(Error::internal(format!("{self:?} was given memory of {}", region.device())))
    }

    /// Kernels launched or recorded so far; those of a graph count once, when it is recorded.
    pub fn launches(&self) -> u64 {
        self.launches.get()
    }

    /// `bytes` of device memory, of any content, for work of this stream after this call.
    pub(in crate::device) fn alloc(&self, bytes: usize) -> Result<u64> {
        self.context.enter();
        let mut address = 0u64;
        // SAFETY: the pointer is to a local.
        let code = unsafe { (self.context.api.memory_alloc)(&raw mut address, bytes, self.handle) };
        let mib = bytes.div_ceil(1 << 20);
        self.context.check(code, format_args!("cannot allocate {mib} MiB"))?;
        Ok(address)
    }

    /// Gives memory back, once this stream is done with all work so far. Other streams must be done
    /// with it.
    ///
    /// # Safety
    /// The address came from [`Stream::alloc`] of this device and is given back once.
    pub(in crate::device) unsafe fn free(&self, address: u64) {
        self.context.enter();
        // SAFETY: by the contract of this function the driver gave this address, and gets it back
        // for the first time. It does so once this stream is done; other streams are by then.
        unsafe { (self.context.api.memory_free)(address, self.handle) };
    }

    /// Locks pages of the host, so that copies from them need no help of the processor. Whether it
    /// could be done. They are locked for all devices.
    pub(in crate::device) fn lock_pages(&self, host: Region<'_>) -> bool {
        self.context.enter();
        // SAFETY: the region borrows its owner, so the range is allocated; locking changes none of
        // its bytes, and a driver that is given what is not the host's answers with an error.
        let code = unsafe {
            (self.context.api.host_register)(
                host.ptr().cast(),
                host.bytes(),
                CU_MEMHOSTREGISTER_PORTABLE,
            )
        };
        code == SUCCESS
    }

    /// Undoes [`Stream::lock_pages`].
    pub(in crate::device) fn unlock_pages(&self, host: Region<'_>) {
        self.context.enter();
        // SAFETY: the region borrows its owner, so the range is allocated; a driver answers with an
        // error where it was not locked.
        unsafe { (self.context.api.host_unregister)(host.ptr().cast()) };
    }

    /// Starts `kernel` on `grid` blocks of `threads` threads with `shared` bytes of dynamic shared
    /// memory. Nothing is started where the grid is empty.
    ///
    /// # Safety
    /// The addresses in `params` are memory of this device, as long as the kernel takes it to be
    /// from the other parameters and the grid, that stays allocated until this stream is done with
    /// the kernel. Nothing else touches meanwhile what it writes, or writes what it reads. Where
    /// the stream is captured, that holds for every replay of the graph.
    pub unsafe fn launch<P: KernelParams>(
        &self,
        kernel: &str,
        grid: [u32; 3],
        threads: u32,
        shared: usize,
        params: &P,
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        self.context.enter();
        self.launches.set(self.launches.get() + 1);
        let function = self.context.function(kernel, shared)?;
        let mut values: [*mut c_void; 1] = [std::ptr::from_ref(params).cast_mut().cast()];
        // SAFETY: every kernel takes one struct by value, of this layout, copied before this
        // returns; the caller vouches for the addresses in it.
        let code = unsafe {
            (self.context.api.launch)(
                function,
                grid[0],
                grid[1],
                grid[2],
                threads,
                1,
                1,
                shared as u32,
                self.handle,
                values.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        self.context.check(code, format_args!("{kernel} in {self:?}"))
    }

    /// Copies host bytes to the device. `src` may be used again at once.
    pub fn copy_in(&self, to: Region<'_>, src: &[u8]) -> Result<()> {
        assert!(src.len() <= to.bytes(), "copy of {} bytes into {}", src.len(), to.bytes());
        self.check_ours(&to)?;
        if src.is_empty() {
            return Ok(());
        }
        self.context.enter();
        // SAFETY: `to` is allocated, since it borrows its owner, which gives it back in the order
        // of a stream; it is as long as `src`, which the driver stages before the call returns.
        let code = unsafe {
            (self.context.api.copy_in)(to.address(), src.as_ptr().cast(), src.len(), self.handle)
        };
        self.context.check(code, "cannot copy to the device")
    }

    /// Begins to copy a range of the host to the device: it is left alone until this stream is done
    /// with it.
    ///
    /// # Safety
    /// `from` is the host's memory. Both stay allocated until this stream is done with the copy;
    /// until then nothing else touches `to`, and nothing writes `from`.
    pub(in crate::device) unsafe fn begin_copy_in(
        &self,
        to: Region<'_>,
        from: Region<'_>,
    ) -> Result<()> {
        same_length(&to, &from)?;
        self.check_ours(&to)?;
        self.context.enter();
        // SAFETY: of one length, as was checked; the caller leaves both in place until the end.
        let code = unsafe {
            let (from, bytes) = (from.ptr().cast(), from.bytes());
            (self.context.api.copy_in)(to.address(), from, bytes, self.handle)
        };
        self.context.check(code, "cannot copy to the device")
    }

    /// Waits for everything before it and copies device bytes to the host; then tells of faults
    /// that kernels reported.
    pub fn copy_out(&self, from: Region<'_>, dst: &mut [u8]) -> Result<()> {
        assert!(dst.len() <= from.bytes(), "copy of {} bytes out of {}", dst.len(), from.bytes());
        self.check_ours(&from)?;
        self.context.enter();
        let mut word = 0u32;
        // SAFETY: `from` borrows its owner, so it is allocated, and is as long as `dst`, which is
        // borrowed until the wait below; the word of faults lives as long as the process.
        unsafe {
            let api = &self.context.api;
            if !dst.is_empty() {
                let ptr = dst.as_mut_ptr().cast();
                let code = (api.copy_out)(ptr, from.address(), dst.len(), self.handle);
                self.context.check(code, "cannot copy from the device")?;
            }
            let code = (api.copy_out)((&raw mut word).cast(), self.fault, 4, self.handle);
            self.context.check(code, "cannot copy from the device")?;
        }
        self.synchronize()?;
        if word != 0 {
            self.fill(self.faults().slice(0, 4), 0)?;
            return Err(fault::error(word));
        }
        Ok(())
    }

    /// Copies bytes within the device.
    pub fn copy(&self, to: Region<'_>, from: Region<'_>) -> Result<()> {
        same_length(&to, &from)?;
        if to.bytes() == 0 {
            return Ok(());
        }
        self.check_ours(&to)?;
        self.check_ours(&from)?;
        self.context.enter();
        // SAFETY: memory of this device of one length, as was checked, and allocated, since the
        // regions borrow their owners, which give it back in the order of a stream.
        let code = unsafe {
            (self.context.api.copy)(to.address(), from.address(), to.bytes(), self.handle)
        };
        self.context.check(code, "cannot copy on the device")
    }

    /// Sets all bytes of a range.
    pub fn fill(&self, to: Region<'_>, value: u8) -> Result<()> {
        if to.bytes() == 0 {
            return Ok(());
        }
        self.check_ours(&to)?;
        self.context.enter();
        // SAFETY: memory of this device, as was checked, and allocated, since the region borrows
        // its owner, which gives it back in the order of a stream.
        let code = unsafe { (self.context.api.fill)(to.address(), value, to.bytes(), self.handle) };
        self.context.check(code, "cannot fill device memory")
    }

    /// Waits until all work is done.
    ///
    /// # Errors
    /// The device has failed, or what it computes is of no use any more
    /// ([`Device::end`](crate::device::Device::end)): that is looked at after the wait, since what
    /// lets a wait end early is said before.
    pub fn synchronize(&self) -> Result<()> {
        self.context.enter();
        // SAFETY: the stream lives.
        let code = unsafe { (self.context.api.stream_synchronize)(self.handle) };
        self.context.ended()?;
        self.context.check(code, format_args!("{self:?}"))
    }

    /// Marks the present end of the queue.
    pub fn record(&self) -> Result<Event> {
        self.context.enter();
        let mut handle: CUevent = std::ptr::null_mut();
        // SAFETY: the pointer is to a local; the event is destroyed with `Event`.
        unsafe {
            let code = (self.context.api.event_create)(&raw mut handle, 0);
            self.context.check(code, "cannot make an event")?;
            let event = Event { context: self.context, handle };
            let code = (self.context.api.event_record)(handle, self.handle);
            self.context.check(code, "cannot record an event")?;
            Ok(event)
        }
    }

    /// Lets later work wait for `event` of another stream.
    pub fn wait(&self, event: &Event) -> Result<()> {
        self.context.enter();
        // SAFETY: both live.
        let code = unsafe { (self.context.api.stream_wait)(self.handle, event.handle, 0) };
        self.context.check(code, "cannot wait for an event")
    }
}

fn same_length(to: &Region<'_>, from: &Region<'_>) -> Result<()> {
    if to.bytes() == from.bytes() {
        return Ok(());
    }
    let line = format!("copy of {} bytes into {}", from.bytes(), to.bytes());
    Err(Error::internal(line))
}

/// A point in a stream.
pub struct Event {
    context: &'static Context,
    handle: CUevent,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: the driver allows calls from several threads at once, and a shared event is only asked.
unsafe impl Sync for Event {}

impl Event {
    /// True if the stream has reached this event.
    pub fn is_over(&self) -> Result<bool> {
        self.context.enter();
        // SAFETY: the event was recorded.
        match unsafe { (self.context.api.event_query)(self.handle) } {
            NOT_READY => Ok(false),
            code => self.context.check(code, "an event").map(|()| true),
        }
    }

    /// Milliseconds from `earlier` to this, waiting for both.
    pub fn since(&self, earlier: &Event) -> Result<f32> {
        self.context.enter();
        let mut ms = 0f32;
        // SAFETY: both events were recorded; the pointer is to a local.
        unsafe {
            let code = (self.context.api.event_synchronize)(self.handle);
            self.context.check(code, "cannot wait for an event")?;
            let code = (self.context.api.event_elapsed)(&raw mut ms, earlier.handle, self.handle);
            self.context.check(code, "cannot time events")?;
        }
        Ok(ms)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made in `record`, destroyed once.
        unsafe { (self.context.api.event_destroy)(self.handle) };
    }
}

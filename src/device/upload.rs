//! Copies from the host that go on while the device computes: in a stream of their own, which waits
//! for the thread's work before it, and for which later work waits.

use super::{Buffer, Device, Event, Region};
use crate::base::{Error, Result};

/// A copy under way. Dropped without being waited for, it is waited for then: memory may go once it
/// is gone.
#[must_use = "the copy is under way until it is waited for"]
pub struct Upload {
    device: Device,
    end: Option<Event>,
}

impl Device {
    /// Begins to copy all of `from`, memory of the host, once this thread's work so far is done.
    /// Where its pages are not locked ([`Buffer::locked`]) it takes the processor's time.
    ///
    /// # Safety
    /// Until the upload is over, both stay allocated, and nothing but this thread's stream, once it
    /// waits, touches `to`, and nothing writes `from`. A call that has failed has begun nothing, or
    /// has been waited for.
    pub unsafe fn upload(self, to: Region<'_>, from: &Buffer) -> Result<Upload> {
        if from.device() != self.host() {
            return Err(Error::internal(format!("an upload from {}", from.device())));
        }
        if self.is_fake() {
            return Ok(Upload { device: self, end: None });
        }
        let (work, uploads) = (self.stream()?, self.upload_stream()?);
        uploads.wait(&work.record()?)?;
        // SAFETY: the caller leaves both alone until the upload is over.
        unsafe { uploads.begin_copy_in(to, from.region())? };
        let end = uploads.record().inspect_err(|_| drop(uploads.synchronize()))?;
        Ok(Upload { device: self, end: Some(end) })
    }
}

impl Upload {
    /// Lets this thread's work from here on wait for it.
    pub fn wait(mut self) -> Result<()> {
        self.end.as_ref().map_or(Ok(()), |end| self.device.stream()?.wait(end))?;
        self.end = None;
        Ok(())
    }

    /// Waits for it here: others may read what was copied.
    pub fn finish(mut self) -> Result<()> {
        match self.end.take() {
            Some(_) => self.device.upload_stream()?.synchronize(),
            None => Ok(()),
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.end.is_some()
            && let Ok(stream) = self.device.upload_stream()
        {
            // Whoever comes next is told what is wrong with the device.
            let _ = stream.synchronize();
        }
    }
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "upload to {}", self.device)
    }
}

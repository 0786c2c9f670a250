//! Where bytes live and code runs: the CPU; a CUDA device; the same device emulated on the CPU, so
//! that every kernel can be run without a GPU; and one that is fake, to plan for. The surface
//! is memory, streams, launches and parallelism, no maths.

pub mod cpu;
pub mod cuda;
pub mod fake;
mod memory;
mod upload;

pub use cuda::{Card, Event, Graph, Stream};
pub use fake::FakeDevice;
#[cfg(feature = "mpi")]
pub(crate) use memory::keep_host_memory;
pub use memory::{Buffer, Region};
pub use upload::Upload;

use crate::base::{Error, Result};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

/// A place where bytes live and operators run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// Host memory and the worker threads.
    Cpu,
    /// A CUDA device, by number.
    Cuda(u32),
    /// A CUDA device emulated on the CPU: the same kernels, slowly.
    Emulated,
    /// A device that only counts what is asked of it.
    Fake(FakeDevice),
}

/// The purpose of a thread's stream.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Queue {
    Work,
    Uploads,
}

impl Device {
    /// True if operators run as kernels here, on memory that the host cannot read.
    pub fn has_kernels(self) -> bool {
        matches!(self, Device::Cuda(_) | Device::Emulated | Device::Fake(FakeDevice::Cuda))
    }

    /// True if it has no memory and runs nothing.
    pub fn is_fake(self) -> bool {
        matches!(self, Device::Fake(_))
    }

    /// Where bytes lie that its host has.
    pub fn host(self) -> Device {
        if self.is_fake() { Device::Fake(FakeDevice::Cpu) } else { Device::Cpu }
    }

    /// The calling thread's stream on this device. Fails where there is no such device.
    pub fn stream(self) -> Result<&'static Stream> {
        self.stream_for(Queue::Work)
    }

    /// The calling thread's stream of copies from the host that go on beside its work.
    fn upload_stream(self) -> Result<&'static Stream> {
        self.stream_for(Queue::Uploads)
    }

    fn stream_for(self, queue: Queue) -> Result<&'static Stream> {
        type Streams = HashMap<(Device, Queue), &'static Stream>;
        thread_local! {
            static STREAMS: RefCell<Streams> = RefCell::new(HashMap::new());
        }
        STREAMS.with_borrow_mut(|streams| {
            if let Some(stream) = streams.get(&(self, queue)) {
                return Ok(*stream);
            }
            let stream: &'static Stream = Box::leak(Box::new(Stream::new(self, self.context()?)?));
            streams.insert((self, queue), stream);
            Ok(stream)
        })
    }

    /// A stream beside the calling thread's, for work that says itself when it is over.
    pub(crate) fn new_stream(self) -> Result<Stream> {
        Stream::new(self, self.context()?)
    }

    /// From here on every wait for this device fails with `e`, on every thread: what is computed on
    /// it is of no use any more, since ranks that take part in it are gone. Only the first error
    /// counts.
    pub fn end(self, e: Error) {
        if let Ok(context) = self.context() {
            context.end(e);
        }
    }

    /// Fails with the error given to [`Device::end`], if there is one.
    pub fn ended(self) -> Result<()> {
        if self.has_kernels() { self.context()?.ended() } else { Ok(()) }
    }

    /// True if some wait has failed with the error given to [`Device::end`].
    pub fn end_is_known(self) -> bool {
        self.context().is_ok_and(cuda::Context::end_is_known)
    }

    fn context(self) -> Result<&'static cuda::Context> {
        match self {
            Device::Cuda(ordinal) => cuda::card(ordinal),
            Device::Emulated => cuda::emulated(),
            Device::Cpu => Err(Error::internal("the CPU has no streams")),
            Device::Fake(_) => Err(Error::internal("a fake device has no streams")),
        }
    }

    /// The best device of this machine and why it is that one: CUDA when usable, else the CPU.
    pub fn best() -> (Device, String) {
        match Device::Cuda(0).stream() {
            Ok(stream) => {
                let card = stream.card();
                let gib = card.memory as f64 / f64::from(1 << 30);
                (Device::Cuda(0), format!("{}, {gib:.0} GiB", card.name))
            }
            Err(e) => (Device::Cpu, e.to_string()),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Device::Emulated => f.write_str("emulated"),
            Device::Fake(kind) => write!(f, "fake {kind:?}"),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Device> {
        let unknown = || {
            Error::user(format!("device {text:?} is not known; use cpu, cuda, cuda:N or emulated"))
        };
        match text {
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            "emulated" => Ok(Device::Emulated),
            _ => {
                let ordinal = text.strip_prefix("cuda:").ok_or_else(unknown)?;
                ordinal.parse().map(Device::Cuda).map_err(|_| unknown())
            }
        }
    }
}

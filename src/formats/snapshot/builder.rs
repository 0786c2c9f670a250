//! The tensors and values to save, by name. A builder reads a tensor from where it lives when its
//! turn comes. A copy of a builder holds all tensors, so that they can change while it is written.

use super::super::{SaveTensor, SourceDType};
use crate::base::{Error, Result};
use crate::device::{Buffer, Device};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Display;

/// A snapshot to be. It reads from what lives for `'a`.
#[derive(Default)]
pub struct SnapshotBuilder<'a> {
    content: Content,
    /// How each tensor is read.
    readers: Vec<Reader<'a>>,
    any_value: bool,
}

/// Fills the row-major little-endian bytes of a tensor.
type Reader<'a> = Box<dyn Fn(&mut [u8]) -> Result<()> + 'a>;

/// A builder whose tensors are in memory.
pub struct Copied {
    content: Content,
    /// All tensors, one after the other.
    memory: Buffer,
}

/// Names, types and shapes of tensors, and values by name.
#[derive(Default)]
pub struct Content {
    pub(super) tensors: Vec<SaveTensor>,
    pub(super) values: BTreeMap<String, String>,
}

/// A source that a snapshot can be written from.
pub trait Whole {
    /// The tensors' names, dtypes and shapes, and the values.
    fn content(&self) -> &Content;
    /// The bytes of tensor `i`.
    fn read(&self, i: usize) -> Result<Cow<'_, [u8]>>;
}

impl<'a> SnapshotBuilder<'a> {
    /// Says whether the tensors added from here on may have infinite and NaN values, which are
    /// refused else when they are written.
    pub fn allow_any_value(&mut self, any: bool) {
        self.any_value = any;
    }

    /// Adds a tensor; `read` fills its row-major little-endian bytes. Its name must be new.
    pub fn tensor(
        &mut self,
        name: String,
        dtype: impl Into<SourceDType>,
        shape: &[usize],
        read: impl Fn(&mut [u8]) -> Result<()> + 'a,
    ) {
        let any_value = self.any_value;
        let tensor = SaveTensor { any_value, ..SaveTensor::new(name, dtype, shape) };
        self.content.tensors.push(tensor);
        self.readers.push(Box::new(read));
    }

    /// Adds a value, or replaces it. Numbers are kept as Rust writes them, which reads back
    /// exactly.
    pub fn set(&mut self, name: &str, value: impl Display) {
        self.content.values.insert(name.to_string(), value.to_string());
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> Result<usize> {
        self.content.tensors.iter().map(SaveTensor::bytes).sum()
    }

    /// Reads all tensors as [`SnapshotBuilder::copied`] does and keeps nothing, for a rank that
    /// only does its part in reading.
    pub fn read_all(self) -> Result<()> {
        (0..self.readers.len()).try_for_each(|i| self.read(i).map(|_| ()))
    }

    /// Reads all tensors into `memory`, host memory that holds [`SnapshotBuilder::bytes`]: memory
    /// that has been used before is much faster than new memory.
    pub fn copied(self, memory: Buffer) -> Result<Copied> {
        if memory.device() != Device::Cpu || memory.bytes() < self.bytes()? {
            return Err(Error::internal("memory that does not fit a snapshot"));
        }
        let mut at = 0;
        for (tensor, read) in self.content.tensors.iter().zip(&self.readers) {
            let bytes = tensor.bytes()?;
            // SAFETY: host memory that is owned here, and that nothing else uses.
            read(unsafe { memory.slice(at, bytes).as_bytes_mut() })?;
            at += bytes;
        }
        Ok(Copied { content: self.content, memory })
    }
}

impl Copied {
    /// The memory, for the next copy.
    pub fn into_memory(self) -> Buffer {
        self.memory
    }
}

impl Whole for SnapshotBuilder<'_> {
    fn content(&self) -> &Content {
        &self.content
    }

    fn read(&self, i: usize) -> Result<Cow<'_, [u8]>> {
        let mut bytes = vec![0; self.content.tensors[i].bytes()?];
        self.readers[i](&mut bytes)?;
        Ok(Cow::Owned(bytes))
    }
}

impl Whole for Copied {
    fn content(&self) -> &Content {
        &self.content
    }

    fn read(&self, i: usize) -> Result<Cow<'_, [u8]>> {
        let tensors = &self.content.tensors;
        let at = tensors[..i].iter().map(SaveTensor::bytes).sum::<Result<usize>>()?;
        // SAFETY: host memory that is owned here, and not written any more.
        Ok(Cow::Borrowed(unsafe { self.memory.slice(at, tensors[i].bytes()?).as_bytes() }))
    }
}

//! Memory of gradients, which stores that are trained in turn may share. It knows whose gradients
//! it holds, so that no store adds to another's; it knows no layout.

use crate::base::{Error, Result};
use crate::device::{Buffer, Device, Region};
use std::cell::Cell;
use std::rc::Rc;

/// One buffer with its owner.
#[derive(Clone, Debug)]
pub(super) struct Memory(Rc<Owned>);

#[derive(Debug)]
struct Owned {
    buffer: Buffer,
    /// Id of the store whose gradients are there and not applied yet; 0 = none.
    store: Cell<u64>,
}

impl Memory {
    /// `bytes` zeroed bytes that hold nobody's gradients.
    pub(super) fn zeroed(device: Device, bytes: usize) -> Result<Memory> {
        let buffer = Buffer::zeroed(device, bytes)?;
        Ok(Memory(Rc::new(Owned { buffer, store: Cell::new(0) })))
    }

    /// Length in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.0.buffer.bytes()
    }

    /// Makes it hold the gradients of `store`; fails while it holds another's.
    pub(super) fn claim(&self, store: u64) -> Result<()> {
        let owner = self.0.store.get();
        if owner != 0 && owner != store {
            return Err(Error::internal("gradients of another model are not applied yet"));
        }
        self.0.store.set(store);
        Ok(())
    }

    /// Ends a claim of `store`, if it has one.
    pub(super) fn release(&self, store: u64) {
        if self.0.store.get() == store {
            self.0.store.set(0);
        }
    }
}

/// The gradients of one bucket: a range of such a buffer.
#[derive(Debug)]
pub struct Grads {
    memory: Memory,
    offset: usize,
    bytes: usize,
}

impl Grads {
    /// The bytes `offset..offset + bytes` of `memory`.
    pub(super) fn new(memory: &Memory, offset: usize, bytes: usize) -> Grads {
        Grads { memory: memory.clone(), offset, bytes }
    }

    /// The same range of another buffer.
    pub(super) fn move_to(&mut self, memory: &Memory) {
        self.memory = memory.clone();
    }

    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The whole range.
    pub fn region(&self) -> Region<'_> {
        self.memory.0.buffer.slice(self.offset, self.bytes)
    }

    /// The bytes `offset..offset + bytes` of the range.
    pub fn slice(&self, offset: usize, bytes: usize) -> Region<'_> {
        self.region().slice(offset, bytes)
    }
}

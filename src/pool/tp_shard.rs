//! Computing with one block of the cut beside ranks that have the others: tensor parallelism. Where
//! a rank's part of the training state is its block, it is used where it lies; else what the block
//! lacks is gathered for as long as that goes on.

use super::partition::Partition;
use super::store::Store;
use crate::base::Result;
use crate::device::Buffer;

impl Store {
    /// True if the weights of a segment are to be gathered when it runs.
    pub fn gathers(&self) -> bool {
        self.is_on_host() || self.shares_weights() && self.slices.is_none()
    }

    /// The block that this rank computes with, where it does so with one alone.
    pub fn tp_shard(&self) -> Option<usize> {
        let Partition { comm, blocks, .. } = self.partition();
        self.slices.as_ref().map(|_| comm.rank() / (comm.size() / blocks).max(1))
    }

    /// Lets this rank compute with its block of every weight, as one of the ranks of tensor
    /// parallelism, until [`Store::exit_tp`]. Where its part is a block nothing is copied or
    /// sent; else what its block lacks is gathered. Where weights are not shared out nothing
    /// changes.
    pub fn enter_tp(&mut self) -> Result<()> {
        self.may_generate()?;
        if !self.shares_weights() {
            return Ok(());
        }
        let mut slices = vec![];
        if self.partition().slice.size() > 1 {
            for bucket in self.buckets() {
                let slice = Buffer::zeroed(self.device(), bucket.block * self.dtype().size())?;
                self.gather_slice(bucket, slice.region())?;
                slices.push(Some(slice));
            }
        }
        self.slices = Some(slices);
        Ok(())
    }

    /// Bytes of what was gathered for it.
    pub fn tp_bytes(&self) -> usize {
        self.slices.iter().flatten().flatten().map(Buffer::bytes).sum()
    }

    /// Ends what [`Store::enter_tp`] began.
    pub fn exit_tp(&mut self) {
        self.slices = None;
    }
}

//! Communication between the ranks of a store: gradients, updated weights, and for stage 3 the
//! weights of a bucket while it is computed with. Weights in host memory come to the device in the
//! same way.

use super::partition::{Partition, Zero};
use super::store::{FlatBucket, Store};
use crate::base::Result;
use crate::comm::{Handle, Reduce};
use crate::device::{Region, Upload};

/// Weights of a bucket on their way to where they are computed with.
#[derive(Debug)]
pub enum Gather {
    /// From all ranks.
    OfRanks(Handle),
    /// From the host's memory.
    OfHost(Upload),
}

impl Gather {
    /// Waits for them, or lets the device do so.
    pub fn wait(self) -> Result<()> {
        match self {
            Gather::OfRanks(handle) => handle.wait(),
            Gather::OfHost(upload) => upload.wait(),
        }
    }
}

impl Store {
    /// Makes this rank's own gradients the sums over all ranks. Those of other ranks are of no use
    /// from here on, but with stage 0 all are one's own.
    pub fn reduce_grads(&self) -> Result<()> {
        self.zero_unset_grads()?;
        let Partition { comm, stage, .. } = self.partition();
        if comm.size() == 1 || self.shares_grads() {
            return Ok(());
        }
        self.finished()?;
        let mut calls = vec![];
        for (i, bucket) in self.buckets().iter().enumerate().filter(|(_, f)| f.trained) {
            let (all, own) = (self.grads(i, &(0..bucket.len))?, self.grads(i, &bucket.own)?);
            // SAFETY: the store, which is borrowed, has the gradients; this function waits for all
            // calls, also where it fails, and does nothing else with them before. `own` is this
            // rank's block of `all`.
            calls.push(unsafe {
                match stage {
                    Zero::Nothing => comm.all_reduce(all, self.grad_dtype(), Reduce::Sum)?,
                    _ => comm.reduce_scatter(all, own, self.grad_dtype(), Reduce::Sum)?,
                }
            });
        }
        calls.into_iter().try_for_each(Handle::wait)
    }

    /// Gives the weights that this rank has updated to those that have them too.
    pub fn all_gather_weights(&self) -> Result<()> {
        let Partition { comm, stage, .. } = self.partition();
        if comm.size() == 1 || *stage == Zero::Nothing || self.shares_weights() {
            return Ok(());
        }
        self.finished()?;
        let mut calls = vec![];
        for (i, bucket) in self.buckets().iter().enumerate().filter(|(_, f)| f.trained) {
            let (own, all) = (self.weights(i, &bucket.own), bucket.weights.region());
            // SAFETY: the store, which is borrowed, has the weights; this function waits for all
            // calls, also where it fails, and does nothing else with them before. `own` is this
            // rank's block of `all`.
            calls.push(unsafe { comm.all_gather(own, all)? });
        }
        calls.into_iter().try_for_each(Handle::wait)
    }

    /// Begins to gather the weights of a bucket, which are shared out or the host's, into `to`.
    ///
    /// # Safety
    /// Until the gather has been waited for, `to` and the weights of this store stay allocated;
    /// nothing touches `to`, and nothing writes the weights.
    pub unsafe fn gather_bucket(&self, bucket: usize, to: Region<'_>) -> Result<Gather> {
        let mut own = self.buckets()[bucket].weights.region();
        if self.is_on_host() {
            let held = &self.buckets()[bucket].held;
            own = to.slice(held.start * self.dtype().size(), own.bytes());
            // SAFETY: the caller leaves both in place until the gather has been waited for, which
            // waits for the upload.
            let upload = unsafe { self.device().upload(own, &self.buckets()[bucket].weights)? };
            if !self.shares_weights() {
                return Ok(Gather::OfHost(upload));
            }
            // Other ranks read it.
            upload.finish()?;
        }
        self.finished()?;
        // SAFETY: the caller leaves both in place until the gather has been waited for. `own` is
        // the weights here or, if they came from the host, this rank's block of `to`.
        unsafe { self.partition().comm.all_gather(own, to) }.map(Gather::OfRanks)
    }

    /// Gathers this rank's block of a bucket from the ranks that have a part of it.
    pub(super) fn gather_slice(&self, bucket: &FlatBucket, to: Region<'_>) -> Result<()> {
        self.finished()?;
        // SAFETY: both owners are borrowed until the call has ended, which is waited for here.
        unsafe { self.partition().slice.all_gather(bucket.weights.region(), to)? }.wait()
    }

    /// Begins to sum a bucket's gradients `all` over the ranks, this rank's part into `own`.
    ///
    /// # Safety
    /// Until the call has been waited for, both stay allocated and nothing touches them. They do
    /// not overlap.
    pub unsafe fn reduce_bucket(&self, all: Region<'_>, own: Region<'_>) -> Result<Handle> {
        self.finished()?;
        let comm = &self.partition().comm;
        // SAFETY: the caller leaves both in place until the call has been waited for.
        unsafe { comm.reduce_scatter(all, own, self.grad_dtype(), Reduce::Sum) }
    }

    /// Waits until the device has done what was asked of it so far, where calls are not its own
    /// work: other ranks touch its memory now.
    pub(super) fn finished(&self) -> Result<()> {
        let Partition { comm, slice, .. } = self.partition();
        let waits = !comm.is_on_device() && !slice.is_on_device();
        if waits && self.device().has_kernels() {
            self.device().stream()?.synchronize()
        } else {
            Ok(())
        }
    }
}

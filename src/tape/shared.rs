//! Stores that ranks share out (ZeRO), or whose weights are the host's: the weights of a bucket are
//! gathered when a segment first needs them, the next ones while it computes, and let go with the
//! segment; its gradients are summed over the ranks when its backward has run, while the next
//! segment's does. All lies in the arena, as planned: the order is that of the program, and the
//! same on every rank.

use super::{Home, Tape};
use crate::base::Result;
use crate::comm::Handle;
use crate::device::Region;
use crate::op::add::add;
use crate::pool::{self, Portion, Store};
use crate::tensor::{Desc, Tensor};
use std::collections::HashSet;
use std::ops::Range;

/// A bucket of a store.
type Key = (u64, usize);

/// The gathers and sums under way of stores that ranks share.
#[derive(Default)]
pub(super) struct Shared<'a> {
    /// Nothing else is done.
    pub(super) only: bool,
    /// The buckets that the segment has gathered.
    here: Vec<(Key, Tensor)>,
    /// How many were gathered so far.
    count: usize,
    /// When the last one was.
    last: u32,
    /// The next one, begun early.
    next: Option<pool::Gather>,
    /// Gradients of the segment, whole buckets of them, in the order in which they were begun.
    grads: Vec<BucketGrads<'a>>,
    /// Gradients that are being summed over the ranks.
    sums: Vec<Sum<'a>>,
}

/// The gradients of all of a bucket, while its segment runs backward.
struct BucketGrads<'a> {
    store: &'a Store,
    bucket: usize,
    all: Tensor,
    /// Those that hold a value.
    set: HashSet<Portion>,
}

/// A sum over the ranks that is under way.
struct Sum<'a> {
    store: &'a Store,
    bucket: usize,
    all: Tensor,
    own: Tensor,
    handle: Option<Handle>,
}

/// A gather in the order of a program: where to, and of what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gather {
    key: Key,
    /// The slot of the arena.
    slot: usize,
}

impl Shared<'_> {
    /// The segment has ended: what it has gathered is not used any more.
    pub(super) fn leave(&mut self) {
        self.here.clear();
    }
}

impl<'a> Tape<'a> {
    /// Gathers what `tensor` is a part of, if it is shared out or the host's, and not here.
    pub(super) fn gather(&mut self, tensor: &Tensor) -> Result<()> {
        let Home::Param(store, portion) = self.slots[tensor.slot.0 as usize].home else {
            return Ok(());
        };
        if !store.gathers() {
            return Ok(());
        }
        let bucket = store.param(portion.id).bucket;
        let key = (store.id(), bucket);
        if let Some((_, all)) = self.shared.here.iter().find(|(k, _)| *k == key) {
            let all = *all;
            self.touch(&all);
            return Ok(());
        }
        let slot = self.lives.len();
        let all = self.alloc(Desc::new(&[store.buckets()[bucket].len], store.dtype()), false)?;
        if self.planning {
            // Begun when the one before it was needed.
            if self.shared.count > 0 {
                self.lives[slot].first = self.shared.last;
            }
            self.gathers.push(Gather { key, slot });
        } else {
            let handle = match self.shared.next.take() {
                Some(begun) => begun,
                // SAFETY: waited for below, before anything else happens; the tape borrows the
                // store and the arena, in which the slot is new.
                None => unsafe { store.gather_bucket(bucket, self.region(&all))? },
            };
            handle.wait()?;
            self.begin_next(store)?;
        }
        (self.shared.last, self.shared.count) = (self.clock, self.shared.count + 1);
        self.shared.here.push((key, all));
        Ok(())
    }

    /// Begins the gather after the one that is there now, if it is of the same store.
    fn begin_next(&mut self, store: &'a Store) -> Result<()> {
        let plan = self.plan.expect("a running tape has a plan");
        if let Some(Gather { key, slot }) = plan.gathers.get(self.shared.count + 1).copied()
            && key.0 == store.id()
        {
            let bytes = store.buckets()[key.1].len * store.dtype().size();
            let to = self.base.slice(plan.arena.offsets[slot], bytes);
            // SAFETY: the tape borrows the store and the arena, and waits for the gather when it is
            // needed or when the tape is dropped, which always happens: see `Tape`. The plan has
            // the slot's life begin here, so no other slot lies there until then; a program that
            // gathers does not write the store.
            self.shared.next = Some(unsafe { store.gather_bucket(key.1, to)? });
        }
        Ok(())
    }

    /// Memory of the weights of a portion: where the store has them, or where they have been
    /// gathered.
    pub(super) fn weights(&self, store: &'a Store, portion: Portion) -> Region<'a> {
        let (bucket, elements) = (store.param(portion.id).bucket, store.elements(portion));
        let key = (store.id(), bucket);
        match self.shared.here.iter().find(|(k, _)| *k == key) {
            None => store.weights(bucket, &elements),
            Some((_, all)) => {
                let size = store.dtype().size();
                self.region(all).slice(elements.start * size, elements.len() * size)
            }
        }
    }

    /// Where the gradient of a portion goes, and whether it holds a value already.
    pub(super) fn param_grad(
        &mut self,
        store: &'a Store,
        portion: Portion,
    ) -> Result<(Region<'a>, bool)> {
        let (bucket, elements) = (store.param(portion.id).bucket, store.elements(portion));
        if !store.shares_grads() {
            let region = store.grads(bucket, &elements)?;
            return Ok((region, self.computes() && store.mark_grad(portion)?));
        }
        let known =
            self.shared.grads.iter().position(|g| g.store.id() == store.id() && g.bucket == bucket);
        let i = match known {
            Some(i) => i,
            None => {
                let all = Desc::new(&[store.buckets()[bucket].len], store.grad_dtype());
                let all = self.alloc(all, false)?;
                self.shared.grads.push(BucketGrads { store, bucket, all, set: HashSet::new() });
                self.shared.grads.len() - 1
            }
        };
        let (all, acc) = (self.shared.grads[i].all, !self.shared.grads[i].set.insert(portion));
        self.touch(&all);
        if self.planning {
            let bytes = elements.len() * store.grad_dtype().size();
            return Ok((Region::nowhere(bytes), false));
        }
        let size = store.grad_dtype().size();
        let region = self.region(&all).slice(elements.start * size, elements.len() * size);
        Ok((region, acc))
    }

    /// Begins to sum the gradients of the segment over the ranks, and ends the sums of the one
    /// before.
    pub(super) fn reduce_grads(&mut self) -> Result<()> {
        self.clock += 1;
        let mut begun = vec![];
        for BucketGrads { store, bucket, all, set } in std::mem::take(&mut self.shared.grads) {
            self.touch(&all);
            let own = Desc::new(&[store.buckets()[bucket].own.len()], store.grad_dtype());
            let own = self.alloc(own, false)?;
            let mut handle = None;
            if !self.planning {
                let region = self.region(&all);
                store.zero_unset(bucket, region, &|id, block| {
                    let is = |block| set.contains(&Portion { id, block });
                    !self.shared.only && (is(Some(block)) || block == 0 && is(None))
                })?;
            }
            self.sum_replica_grads(store, bucket, all)?;
            if !self.planning {
                let (all, own) = (self.region(&all), self.region(&own));
                // SAFETY: the tape borrows the arena. The slots live, and nobody is given them,
                // until `end_reductions` has waited for the call, or the tape is dropped, which
                // always happens: see `Tape`. Two slots do not overlap.
                handle = Some(unsafe { store.reduce_bucket(all, own)? });
            }
            begun.push(Sum { store, bucket, all, own, handle });
        }
        self.end_reductions()?;
        self.shared.sums = begun;
        Ok(())
    }

    /// Gives each of the blocks that have the same elements of a bucket the sum of their gradients,
    /// which lie in `all`.
    fn sum_replica_grads(&mut self, store: &'a Store, bucket: usize, all: Tensor) -> Result<()> {
        let part = |run: &Range<usize>| {
            let desc = Desc::new(&[run.len()], all.desc.dtype);
            Tensor { offset: run.start, desc, ..all }
        };
        for places in store.replicas(bucket) {
            self.clock += 1;
            let mut sum = part(&places[0]);
            for other in &places[1..] {
                sum = self.unrecorded(|tape| add(tape, sum, part(other)))?;
            }
            self.touch(&sum);
            // An idle rank has zeros there.
            if self.computes() {
                for place in &places {
                    self.region(&part(place)).copy_from(self.region(&sum))?;
                }
            }
        }
        Ok(())
    }

    /// Runs operators that no backward follows.
    fn unrecorded<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let recording = std::mem::replace(&mut self.recording, false);
        let done = run(self);
        self.recording = recording;
        done
    }

    /// Ends the sums that are under way, and adds them to what this rank keeps.
    pub(super) fn end_reductions(&mut self) -> Result<()> {
        for Sum { store, bucket, all, own, handle } in std::mem::take(&mut self.shared.sums) {
            self.clock += 1;
            [all, own].iter().for_each(|t| self.touch(t));
            handle.map_or(Ok(()), Handle::wait)?;
            if !self.planning {
                store.begin_grads(bucket)?;
            }
            let to = store.grads(bucket, &store.buckets()[bucket].grads_held)?;
            let kept = self.bind(to, own.desc);
            // The ranks' sum is there also where this rank has computed nothing.
            let only = std::mem::replace(&mut self.shared.only, false);
            let sum = self.unrecorded(|tape| add(tape, kept, own));
            self.shared.only = only;
            let sum = sum?;
            if !self.planning {
                to.copy_from(self.region(&sum))?;
            }
        }
        Ok(())
    }
}

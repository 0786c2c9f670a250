//! Gradients of what several blocks have: norms, small vectors, heads that fewer blocks would do
//! for. Each copy gets the same gradient, so all stay equal; what is summed over ranks counts one
//! of them.

use super::store::{ALIGN, FlatBucket, Param, ParamId, Store};
use crate::base::Result;
use crate::device::Region;
use crate::pool::ShardSpec;
use std::ops::Range;

impl Store {
    /// Completes the gradients `all` of a bucket, of which `set` says whether those of a
    /// parameter's slice in a block hold a value: the others become zero.
    pub fn zero_unset(
        &self,
        bucket: usize,
        all: Region<'_>,
        set: &dyn Fn(ParamId, usize) -> bool,
    ) -> Result<()> {
        let (block, size) = (self.buckets()[bucket].block, self.grad_dtype().size());
        let at = |from: usize, len: usize| all.slice(from * size, len * size);
        let mut end = 0;
        for (i, p) in self.params().iter().enumerate().filter(|(_, p)| p.bucket == bucket) {
            let id = ParamId(i);
            // A table is one portion, whose elements run through all blocks.
            if p.spec.sharding == ShardSpec::Table {
                let n = if set(id, 0) { p.spec.shape.iter().product() } else { 0 };
                at(n, block * self.partition().blocks - n).clear()?;
                return Ok(());
            }
            let room = p.slice_len().next_multiple_of(ALIGN);
            for b in 0..self.partition().blocks {
                let from = if set(id, b) { p.slice_len() } else { 0 };
                at(b * block + p.offset + from, room - from).clear()?;
            }
            end = p.offset + room;
        }
        let gap = |b: usize| at(b * block + end, block - end).clear();
        (0..self.partition().blocks).try_for_each(gap)
    }

    /// The runs of elements of a bucket that several blocks have alike: of each, where it is in
    /// every one of them.
    pub fn replicas(&self, bucket: usize) -> Vec<Vec<Range<usize>>> {
        let (block, blocks) = (self.buckets()[bucket].block, self.partition().blocks);
        let mut out = vec![];
        let params = self.params().iter().filter(|p| p.bucket == bucket && blocks > 1);
        for p in params {
            let of = |b: usize| p.spec.sharding.replicas(&p.slice, b);
            let at = |b: usize, run: &Range<usize>| {
                let start = b * block + p.offset;
                run.start + start..run.end + start
            };
            for first in 0..blocks {
                for (run, _) in of(first).into_iter().filter(|(_, f)| *f == first) {
                    let same = |b: &usize| of(*b).iter().any(|(r, f)| *r == run && *f == first);
                    let all: Vec<_> = (first..blocks).filter(same).map(|b| at(b, &run)).collect();
                    out.extend((all.len() > 1).then_some(all));
                }
            }
        }
        out
    }

    /// Runs of this rank's own elements of a bucket that no block before has too: what is counted
    /// once when something is summed over all ranks.
    pub fn first_replicas(&self, bucket: usize) -> Vec<Range<usize>> {
        let FlatBucket { block, own, .. } = &self.buckets()[bucket];
        let mut out: Vec<Range<usize>> = vec![];
        for b in own.start / block..own.end.div_ceil(*block) {
            // Elements of the block that are another's.
            let params = self.params().iter().filter(|p| p.bucket == bucket);
            let again = |p: &Param| {
                let copies = p.spec.sharding.replicas(&p.slice, b).into_iter();
                let start = b * block + p.offset;
                let others = copies.filter(|(_, first)| *first != b);
                others.map(|(r, _)| r.start + start..r.end + start).collect::<Vec<_>>()
            };
            let mut at = b * block;
            let end = (b + 1) * block;
            for skip in params.flat_map(again).chain(std::iter::once(end..end)) {
                let run = at.max(own.start)..skip.start.min(own.end);
                out.extend((!run.is_empty()).then_some(run));
                at = skip.end;
            }
        }
        out
    }
}

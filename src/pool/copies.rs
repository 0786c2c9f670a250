//! Gradients of what several blocks have: norms, small vectors, heads that fewer blocks would do for. Each copy gets the same
//! gradient, so all stay equal; what is summed over ranks counts one of them.

use super::store::{ALIGN, Flat, Param, ParamId, Store};
use super::whole::{narrowed, widened};
use crate::base::{Error, Result};
use crate::device::Region;
use crate::pool::Cut;
use std::ops::Range;

impl Store {
    /// Completes the gradients `all` of a flat, of which `set` says whether those of a parameter's slice in a block hold a
    /// value: the others become zero, and what several blocks have gets the sum of all in each.
    pub fn settle(
        &self,
        flat: usize,
        all: Region,
        set: &dyn Fn(ParamId, usize) -> bool,
    ) -> Result<()> {
        let (block, size) = (self.flats()[flat].block, self.grad_dtype().size());
        let at = |from: usize, len: usize| all.slice(from * size, len * size);
        let mut end = 0;
        for (i, p) in self.params().iter().enumerate().filter(|(_, p)| p.flat == flat) {
            let id = ParamId(i);
            // A table is one portion, whose elements run through all blocks.
            if p.spec.cut == Cut::Table {
                let n = if set(id, 0) { p.spec.shape.iter().product() } else { 0 };
                self.device().clear(at(n, block * self.partition().blocks - n))?;
                return Ok(());
            }
            let room = p.slice_len().next_multiple_of(ALIGN);
            for b in 0..self.partition().blocks {
                let from = if set(id, b) { p.slice_len() } else { 0 };
                self.device().clear(at(b * block + p.offset + from, room - from))?;
            }
            self.add_copies(p, block, &at)?;
            end = p.offset + room;
        }
        let gap = |b: usize| self.device().clear(at(b * block + end, block - end));
        (0..self.partition().blocks).try_for_each(gap)
    }

    /// Gives each of the blocks that have the same elements of a parameter the sum of their gradients.
    fn add_copies(
        &self,
        p: &Param,
        block: usize,
        at: &dyn Fn(usize, usize) -> Region,
    ) -> Result<()> {
        let blocks = self.partition().blocks;
        let of = |b: usize| p.spec.cut.copies(&p.slice, b);
        let runs = |b: usize| of(b).into_iter().filter(move |(_, first)| *first != b);
        let none = (0..blocks).all(|b| runs(b).next().is_none());
        if none || self.device().is_imagined() {
            return Ok(());
        }
        // On the host: they are small, and rounded once.
        let region = |b: usize, run: &Range<usize>| at(b * block + p.offset + run.start, run.len());
        let read = |b: usize, run: &Range<usize>| {
            let from = region(b, run);
            let mut raw = vec![0; from.bytes];
            self.device().read(from, &mut raw)?;
            Ok::<_, Error>(widened(raw, self.grad_dtype()))
        };
        for first in 0..blocks {
            for (run, _) in of(first).into_iter().filter(|(_, f)| *f == first) {
                let same = |b: &usize| of(*b).iter().any(|(r, f)| *r == run && *f == first);
                let others: Vec<usize> = (first + 1..blocks).filter(same).collect();
                if others.is_empty() {
                    continue;
                }
                let mut sum = read(first, &run)?;
                for b in &others {
                    sum.iter_mut().zip(read(*b, &run)?).for_each(|(s, v)| *s += v);
                }
                let raw = narrowed(&sum, self.grad_dtype());
                for b in std::iter::once(first).chain(others) {
                    self.device().write(region(b, &run), &raw)?;
                }
            }
        }
        Ok(())
    }

    /// Runs of this rank's own elements of a flat that no block before has too: what is counted once when something is summed
    /// over all ranks.
    pub fn counted(&self, flat: usize) -> Vec<Range<usize>> {
        let Flat { block, own, .. } = &self.flats()[flat];
        let mut out: Vec<Range<usize>> = vec![];
        for b in own.start / block..own.end.div_ceil(*block) {
            // Elements of the block that are another's.
            let params = self.params().iter().filter(|p| p.flat == flat);
            let again = |p: &Param| {
                let copies = p.spec.cut.copies(&p.slice, b).into_iter();
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

//! Reductions over MPI: every rank gets all values of its share and reduces them in the order of
//! the ranks; an all-reduce then gives the shares to all. Values come in pieces, of which a few MiB
//! are under way.

use super::super::{Call, Reduce, Span, host, reduce::reduce};
use super::engine::Work;
use super::requests::{Lane, Requests, others, tag};
use crate::base::{DType, Error, Result};
use std::collections::VecDeque;
use std::ffi::c_int;

/// Bytes of others' values that are held at a time.
const HELD: usize = 4 << 20;
/// Pieces under way: one is reduced while the next comes.
const AHEAD: usize = 2;
/// Least and unit of a piece.
const LINE: usize = 4096;

/// One rank's part in a reduction.
pub(super) struct Reduction {
    lane: Lane,
    rank: usize,
    tag: c_int,
    dtype: DType,
    by: Reduce,
    /// Every rank's share, as it lies here.
    shares: Vec<Span>,
    /// The result of our share.
    to: Span,
    /// Bytes of a share that are exchanged at a time.
    piece: usize,
    /// Others' values of our share: `AHEAD` times a piece of each rank.
    held: Vec<u8>,
    /// Pieces that have been asked for, and those of them that are not reduced yet.
    asked: usize,
    open: VecDeque<Requests>,
    /// The exchange of results, once it has begun; `None` where a share is all that is wanted.
    results: Option<Requests>,
    all: bool,
    over: bool,
}

// SAFETY: whoever started the call lets any thread use its ranges until it has been waited for.
unsafe impl Send for Reduction {}

impl Reduction {
    /// Begins a reduction, which is call `number` of rank `rank` of `size`.
    pub(super) fn new(
        lane: Lane,
        (rank, size): (usize, usize),
        number: u64,
        call: Call,
    ) -> Result<Reduction> {
        let (shares, to, dtype, by, all): (Vec<Span>, _, _, _, _) = match call {
            Call::ReduceScatter { from, to, dtype, by } => {
                let share = |r: usize| from.slice(r * to.bytes, to.bytes);
                ((0..size).map(share).collect(), to, dtype, by, false)
            }
            Call::AllReduce { data, dtype, by } => {
                let elements = data.bytes / dtype.size();
                let at = |r: usize| elements * r / size * dtype.size();
                let shares: Vec<Span> =
                    (0..size).map(|r| data.slice(at(r), at(r + 1) - at(r))).collect();
                let own = shares[rank];
                (shares, own, dtype, by, true)
            }
            other => return Err(Error::internal(format!("{other:?} is no reduction"))),
        };
        let room = (HELD / (AHEAD * size)).min(lane.largest).max(LINE);
        let longest = shares.iter().map(|s| s.bytes).max().unwrap_or(0);
        let piece = (room / LINE * LINE).min(longest.next_multiple_of(LINE)).max(LINE);
        let mut reduction = Reduction {
            lane,
            rank,
            tag: tag(number),
            dtype,
            by,
            to,
            piece,
            held: vec![0; if longest == 0 { 0 } else { AHEAD * size * piece }],
            shares,
            asked: 0,
            open: VecDeque::new(),
            results: None,
            all,
            over: false,
        };
        reduction.ask()?;
        Ok(reduction)
    }

    /// Piece `i` of `share`; empty behind its end.
    fn cut(&self, share: Span, i: usize) -> Span {
        let start = (i * self.piece).min(share.bytes);
        share.slice(start, self.piece.min(share.bytes - start))
    }

    /// Where rank `from`'s values of piece `i` are held.
    fn held(&mut self, from: usize, i: usize) -> Span {
        let place = (i % AHEAD * self.shares.len() + from) * self.piece;
        let bytes = self.cut(self.to, i).bytes;
        host(&mut self.held[place..place + self.piece]).slice(0, bytes)
    }

    /// Exchanges as many pieces as may be under way.
    fn ask(&mut self) -> Result<()> {
        let pieces = |share: &Span| share.bytes.div_ceil(self.piece);
        let pieces = self.shares.iter().map(pieces).max().unwrap_or(0);
        while self.asked < pieces && self.open.len() < AHEAD {
            let (i, lane) = (self.asked, self.lane);
            let mut requests = Requests::default();
            for r in others(self.rank, self.shares.len()) {
                let (held, given) = (self.held(r, i), self.cut(self.shares[r], i));
                // SAFETY: one's own memory, and the call's: alive and left alone until it is over.
                unsafe {
                    requests.receive(&lane, held, r, self.tag)?;
                    requests.send(&lane, given, r, self.tag)?;
                }
            }
            self.open.push_back(requests);
            self.asked += 1;
        }
        Ok(())
    }
}

impl Drop for Reduction {
    fn drop(&mut self) {
        if !self.over {
            // MPI may still write there.
            std::mem::forget(std::mem::take(&mut self.held));
        }
    }
}

impl Work for Reduction {
    unsafe fn step(&mut self) -> Result<bool> {
        while let Some(first) = self.open.front_mut() {
            // SAFETY: `over` has the contract of `Work::step`, under which this is called; the held
            // values are this reduction's own.
            if !unsafe { first.over() }? {
                return Ok(false);
            }
            let (i, size) = (self.asked - self.open.len(), self.shares.len());
            self.open.pop_front();
            let to = self.cut(self.to, i);
            let own = self.cut(self.shares[self.rank], i);
            let value = |r| if r == self.rank { own } else { self.held(r, i) };
            let from: Vec<Span> = (0..size).map(value).collect();
            // SAFETY: what came of piece `i` is over; the rest is the call's memory.
            unsafe { reduce(&from, to, self.dtype, self.by)? };
            self.ask()?;
        }
        if self.all && self.results.is_none() {
            let mut results = Requests::default();
            let who = (self.rank, self.tag);
            // SAFETY: nothing is under way in the shares any more: all pieces have been given and
            // reduced.
            unsafe { results.all_gather(&self.lane, self.to, &self.shares, who)? };
            self.results = Some(results);
        }
        match &mut self.results {
            // SAFETY: `over` has the contract of `Work::step`, under which this is called.
            Some(results) => self.over = unsafe { results.over()? },
            None => self.over = true,
        }
        Ok(self.over)
    }
}

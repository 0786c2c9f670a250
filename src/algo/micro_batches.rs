//! The rows of a step and how they go through a model: in micro-batches of as many tokens as
//! allowed, or as memory allows. Which they are decides on memory and speed only: losses are sums
//! over rows, scaled by what the whole step holds, and what a token draws depends on its number in
//! the step.

use crate::base::{Error, Kind, Result};
use crate::comm::Comm;
use crate::data::micro_batches;
use crate::pool::Store;
use crate::tape::Workspace;
use crate::train::Batch;
use std::ops::Range;

/// Rows by their number, of which micro-batches can be made. Each rank has a run of them: what the
/// ranks make of theirs is, end to end, what one would make of all.
pub(super) struct MicroBatches<'r> {
    /// Tokens of each row, of all ranks.
    lengths: Vec<usize>,
    /// Those of this rank.
    own: Range<usize>,
    max_tokens: usize,
    comm: Comm,
    /// A pass over a model takes all ranks.
    shares: bool,
    pack: Box<Pack<'r>>,
}

/// Makes a micro-batch of rows by their number.
type Pack<'r> = dyn Fn(&[usize]) -> Batch + 'r;

impl<'r> MicroBatches<'r> {
    /// Rows of `lengths` tokens, which `pack` packs in micro-batches of up to `max_tokens`, or of
    /// one row, for passes over `store`'s model.
    pub(super) fn new(
        lengths: Vec<usize>,
        max_tokens: usize,
        store: &Store,
        pack: impl Fn(&[usize]) -> Batch + 'r,
    ) -> MicroBatches<'r> {
        let comm = store.partition().comm.clone();
        let own = share(&lengths, &comm);
        let shares = store.shares_grads();
        MicroBatches { lengths, own, max_tokens, comm, shares, pack: Box::new(pack) }
    }

    /// Calls `run` with micro-batches of this rank's rows, in order; those that select nothing are
    /// left out. One that memory does not suffice for is halved: `run` must leave everything as it
    /// was when it ends with an error of [`Kind::Memory`], which a program does that cannot be
    /// planned. Ranks do one micro-batch each at a time: what they share they gather together. One
    /// that has no more of its own gets batches that are idle as long as another has some.
    pub(super) fn each(
        &self,
        ws: &mut Workspace,
        run: &mut dyn FnMut(&mut Workspace, &Batch) -> Result<()>,
    ) -> Result<()> {
        let mut todo = micro_batches(&self.lengths[self.own.clone()], self.max_tokens);
        todo.iter_mut().flatten().for_each(|i| *i += self.own.start);
        todo.reverse();
        loop {
            let next = self.next(&mut todo);
            let [open, asked] = self.comm.any([next.is_some(), ws.cancel_requested()])?;
            if asked {
                return Err(ws.drop_work());
            }
            match next {
                Some(next) => self.one(ws, run, next, &mut todo)?,
                None if open => self.idle(ws, run)?,
                None => return Ok(()),
            }
        }
    }

    /// The next micro-batch that selects something.
    fn next(&self, todo: &mut Vec<Vec<usize>>) -> Option<(Vec<usize>, Batch)> {
        while let Some(rows) = todo.pop() {
            let batch = (self.pack)(&rows);
            if !batch.select.is_empty() {
                return Some((rows, batch));
            }
        }
        None
    }

    /// Runs a micro-batch, or as much of it as there is memory for, and leaves the rest to be done.
    /// Other ranks are waiting for this one's to be run, so it may not come back with nothing done.
    fn one(
        &self,
        ws: &mut Workspace,
        run: &mut dyn FnMut(&mut Workspace, &Batch) -> Result<()>,
        (mut rows, mut batch): (Vec<usize>, Batch),
        todo: &mut Vec<Vec<usize>>,
    ) -> Result<()> {
        loop {
            // Rows are in order: those before have these tokens, whatever they select.
            batch.first = self.lengths[..rows[0]].iter().sum();
            match run(ws, &batch) {
                Err(e) if e.kind() == Kind::Memory && rows.len() > 1 => {
                    let (n, tokens) = (rows.len(), batch.packed.ids.len());
                    ws.notify(|| halved(n, tokens, &e));
                    let (a, b) = rows.split_at(n / 2);
                    todo.extend([b.to_vec(), a.to_vec()]);
                    match self.next(todo) {
                        Some(half) => (rows, batch) = half,
                        None => return Ok(()),
                    }
                }
                done => return done,
            }
        }
    }

    /// Runs what other ranks run without rows of this one's own: as though for the shortest there
    /// is.
    fn idle(
        &self,
        ws: &mut Workspace,
        run: &mut dyn FnMut(&mut Workspace, &Batch) -> Result<()>,
    ) -> Result<()> {
        if !self.shares {
            return Ok(());
        }
        let mut all: Vec<usize> = (0..self.lengths.len()).collect();
        all.sort_by_key(|&i| self.lengths[i]);
        let packed = all.iter().map(|&i| (self.pack)(&[i])).find(|b| !b.select.is_empty());
        match packed {
            Some(batch) => run(ws, &Batch { idle: true, ..batch }),
            None => Err(Error::internal("a row that another rank has is missing")),
        }
    }
}

/// Returns the message that a micro-batch did not fit in memory and is halved.
fn halved(rows: usize, tokens: usize, e: &Error) -> String {
    format!(
        "no memory for a micro-batch of {rows} rows with {tokens} tokens, it is halved, as \
         others will be: slower, with the same sums; --micro-batch-tokens {} \
         or --gradient-checkpointing full saves the attempts ({e})",
        tokens / 2
    )
}

/// The rows of this rank: a run of about as many tokens as every rank's.
pub(super) fn share(lengths: &[usize], comm: &Comm) -> Range<usize> {
    let total: usize = lengths.iter().sum();
    // The first row that begins where rank `rank`'s tokens do, or later.
    let begin = |rank: usize| {
        let mut before = 0;
        let begins = |len: &usize| {
            let at = before;
            before += len;
            at * comm.size() >= total * rank
        };
        if rank == comm.size() {
            return lengths.len();
        }
        lengths.iter().position(begins).unwrap_or(lengths.len())
    };
    begin(comm.rank())..begin(comm.rank() + 1)
}

/// The ends of the selected states of each sequence, after a 0.
pub(super) fn ends_of_selected(batch: &Batch) -> Vec<i32> {
    let ends = &batch.packed.cu_seqlens;
    ends.iter().map(|end| batch.select.partition_point(|state| state < end) as i32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;
    use crate::comm::run_ranks;
    use std::time::Duration;

    #[test]
    fn ranks_share_all_rows_in_order_and_evenly() {
        let mut rng = Rng::new(3, 0);
        for case in 0..200 {
            let rows = case % 20;
            let lengths: Vec<usize> = (0..rows).map(|_| 1 + rng.below(50) as usize).collect();
            let ranks = 1 + case % 5;
            let timeout = Duration::from_secs(20);
            let shares = run_ranks(ranks, timeout, |comm| Ok(share(&lengths, &comm))).unwrap();
            let all: Vec<usize> = shares.iter().cloned().flatten().collect();
            assert!(all.into_iter().eq(0..rows));
            let longest = lengths.iter().max().copied().unwrap_or(0);
            let even = lengths.iter().sum::<usize>() / ranks;
            let tokens = |r: &Range<usize>| lengths[r.clone()].iter().sum::<usize>();
            assert!(
                shares.iter().all(|r| tokens(r) <= even + longest + 1),
                "{lengths:?} {shares:?}"
            );
        }
    }
}

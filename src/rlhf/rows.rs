//! The rows of a step and how they go through a model: in micro-batches of as many tokens as allowed, or as
//! memory allows. Which they are decides on memory and speed only: losses are sums over rows, scaled by what the whole
//! step holds, and what a token draws depends on its number in the step.

use crate::base::{Kind, Result};
use crate::comm::Comm;
use crate::data::micro_batches;
use crate::tape::Workspace;
use crate::train::Batch;
use std::ops::Range;

/// Rows by their number, of which micro-batches can be made. Each rank has a run of them: what the ranks make of theirs
/// is, end to end, what one would make of all.
pub(super) struct Rows<'r> {
    /// Tokens of each row, of all ranks.
    lengths: Vec<usize>,
    /// Those of this rank.
    own: Range<usize>,
    max_tokens: usize,
    pack: Box<Pack<'r>>,
}

/// Makes a micro-batch of rows by their number.
type Pack<'r> = dyn Fn(&[usize]) -> Batch + 'r;

impl<'r> Rows<'r> {
    /// Rows of `lengths` tokens, which `pack` packs in micro-batches of up to `max_tokens`, or of one row.
    pub(super) fn new(
        lengths: Vec<usize>,
        max_tokens: usize,
        comm: &Comm,
        pack: impl Fn(&[usize]) -> Batch + 'r,
    ) -> Rows<'r> {
        let own = share(&lengths, comm);
        Rows { lengths, own, max_tokens, pack: Box::new(pack) }
    }

    /// Calls `run` with micro-batches of this rank's rows, in order; those that select nothing
    /// are left out. One that memory does not suffice for is halved: `run` must leave everything as it
    /// was when it ends with an error of [`Kind::Memory`], which a program does that cannot be planned.
    pub(super) fn each(
        &self,
        ws: &mut Workspace,
        run: &mut dyn FnMut(&mut Workspace, &Batch) -> Result<()>,
    ) -> Result<()> {
        let mut todo = micro_batches(&self.lengths[self.own.clone()], self.max_tokens);
        todo.iter_mut().flatten().for_each(|i| *i += self.own.start);
        todo.reverse();
        let mut first = self.lengths[..self.own.start].iter().sum();
        while let Some(rows) = todo.pop() {
            ws.go_on()?;
            let mut batch = (self.pack)(&rows);
            batch.first = first;
            let done = if batch.select.is_empty() { Ok(()) } else { run(ws, &batch) };
            match done {
                Err(e) if e.kind() == Kind::Memory && rows.len() > 1 => {
                    let (n, tokens) = (rows.len(), batch.packed.ids.len());
                    ws.tell(|| {
                        format!(
                            "no memory for a micro-batch of {n} rows with {tokens} tokens, it is halved, as \
                             others will be: slower, with the same sums; --micro-batch-tokens {} \
                             or --gradient-checkpointing full saves the attempts ({e})",
                            tokens / 2
                        )
                    });
                    let (a, b) = rows.split_at(n / 2);
                    todo.extend([b.to_vec(), a.to_vec()]);
                }
                done => {
                    done?;
                    first += batch.packed.ids.len();
                }
            }
        }
        Ok(())
    }
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

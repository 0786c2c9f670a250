//! The rows of a step and how they go through a model: in micro-batches of as many tokens as allowed, or as
//! memory allows. Which they are decides on memory and speed only: losses are sums over rows, scaled by what the whole
//! step holds, and what a token draws depends on its number in the step.

use crate::base::{Kind, Result};
use crate::data::micro_batches;
use crate::tape::Workspace;
use crate::train::Batch;

/// Rows by their number, of which micro-batches can be made.
pub(super) struct Rows<'r> {
    /// Tokens of each row.
    pub(super) lengths: Vec<usize>,
    /// Most tokens of a micro-batch of more than one row.
    pub(super) max_tokens: usize,
    /// Packs some of the rows.
    pub(super) pack: Box<Pack<'r>>,
}

/// Makes a micro-batch of rows by their number.
type Pack<'r> = dyn Fn(&[usize]) -> Batch + 'r;

impl Rows<'_> {
    /// Calls `run` with micro-batches of all rows, in order; those that select nothing
    /// are left out. One that memory does not suffice for is halved: `run` must leave everything as it
    /// was when it ends with an error of [`Kind::Memory`], which a program does that cannot be planned.
    pub(super) fn each(
        &self,
        ws: &mut Workspace,
        run: &mut dyn FnMut(&mut Workspace, &Batch) -> Result<()>,
    ) -> Result<()> {
        let mut todo = micro_batches(&self.lengths, self.max_tokens);
        todo.reverse();
        let mut first = 0;
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

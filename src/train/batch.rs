//! A micro-batch: packed sequences, the rows at which something is predicted, and per-row columns.

use crate::base::Result;
use crate::data::Packed;
use crate::model::{Attend, Model, Pass};
use crate::tape::{Shaped, Tape};
use crate::tensor::Tensor;

/// Packed sequences with `n` selected rows.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The tokens.
    pub packed: Packed,
    /// Selected token indices `[n]`.
    pub select: Vec<i32>,
    /// Tokens of the step that come before these.
    pub first: usize,
    /// Token to predict at each selected row `[n]`.
    pub targets: Vec<i32>,
    /// Numbers that the loss takes (weights, old log-probs, advantages, ...), usually `[n]` each.
    pub columns: Vec<Vec<f32>>,
    /// Nothing is computed: the rank has no rows left where others have some, and only does its
    /// part in what they share.
    pub idle: bool,
}

impl Batch {
    /// Packs `rows`, each with the positions selected in it; the target at position `t` is token
    /// `t + 1` (0 after the end).
    pub fn new<P: IntoIterator<Item = usize> + Clone>(rows: &[(&[i32], P)]) -> Batch {
        let ids: Vec<&[i32]> = rows.iter().map(|r| r.0).collect();
        let packed = Packed::from_rows(&ids);
        let (mut select, mut targets) = (vec![], vec![]);
        for (i, (ids, positions)) in rows.iter().enumerate() {
            let first = packed.cu_seqlens[i];
            for t in positions.clone() {
                select.push(first + t as i32);
                targets.push(ids.get(t + 1).copied().unwrap_or(0));
            }
        }
        Batch { packed, select, first: 0, targets, columns: vec![], idle: false }
    }

    /// Tokens that are run.
    pub fn tokens(&self) -> usize {
        if self.idle { 0 } else { self.packed.ids.len() }
    }

    /// Runs `model` over the packed tokens; returns the last hidden states and the selected rows.
    pub fn hidden<'a>(
        &self,
        tape: &mut Tape<'a>,
        model: &'a Model,
        pass: Pass,
    ) -> Result<(Tensor, Tensor)> {
        if self.idle {
            tape.participate_idle();
        }
        let ids = tape.input_i32(&self.packed.ids)?;
        let positions = tape.input_i32(&self.packed.positions)?;
        let cu_seqlens = tape.input_i32(&self.packed.cu_seqlens)?;
        let select = tape.input_i32(&self.select)?;
        let hidden = model.hidden(tape, ids, positions, &Attend::Packed { cu_seqlens }, pass)?;
        Ok((hidden, select))
    }
}

impl Shaped for Batch {
    fn dims(&self) -> Vec<usize> {
        let mut dims =
            vec![self.packed.ids.len(), self.packed.cu_seqlens.len() - 1, self.select.len()];
        dims.extend(self.columns.iter().map(Vec::len));
        dims
    }

    fn largest(dims: &[usize]) -> Batch {
        let [tokens, sequences, selected, columns @ ..] = dims else {
            panic!("three sizes and more")
        };
        Batch {
            packed: Packed {
                ids: vec![0; *tokens],
                positions: vec![0; *tokens],
                cu_seqlens: vec![0; sequences + 1],
            },
            select: vec![0; *selected],
            first: 0,
            targets: vec![0; *selected],
            columns: columns.iter().map(|n| vec![0.0; *n]).collect(),
            idle: false,
        }
    }
}

//! How a parameter is cut into blocks: which of its rows or columns each block holds. A block is
//! what one rank of tensor parallelism computes with.

use crate::base::{Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// Rows (or columns) that belong together: those of the q heads, of the gate, of a whole matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Rows of the group in a block; those that its range leaves are padding, and zero.
    pub each: usize,
    /// The rows of the parameter that each block holds. Two blocks hold the same ones or share
    /// none.
    pub blocks: Arc<[Range<usize>]>,
}

impl Group {
    /// `rows` rows in as even runs as there can be.
    pub fn even(rows: Range<usize>, blocks: usize) -> Group {
        let each = rows.len().div_ceil(blocks);
        let at = |b: usize| rows.start + (b * each).min(rows.len());
        Group { each, blocks: (0..blocks).map(|b| at(b)..at(b + 1)).collect() }
    }

    /// The same groups of `width` rows for each row.
    pub fn times(&self, width: usize) -> Group {
        let wide = |r: &Range<usize>| r.start * width..r.end * width;
        Group { each: self.each * width, blocks: self.blocks.iter().map(wide).collect() }
    }

    /// The same rows, counted from `by` on.
    pub fn after(&self, by: usize) -> Group {
        let moved = |r: &Range<usize>| r.start + by..r.end + by;
        Group { each: self.each, blocks: self.blocks.iter().map(moved).collect() }
    }

    /// The same rows, of a parameter that begins at row `by` of this one.
    pub fn since(&self, by: usize) -> Group {
        let moved = |r: &Range<usize>| r.start - by.min(r.start)..r.end - by.min(r.end);
        Group { each: self.each, blocks: self.blocks.iter().map(moved).collect() }
    }

    /// The block that holds the rows of block `b` first.
    fn first_replica(&self, b: usize) -> usize {
        let rows = &self.blocks[b];
        let same = |other: &Range<usize>| !rows.is_empty() && other == rows;
        self.blocks.iter().position(same).unwrap_or(b)
    }
}

/// How a parameter is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardSpec {
    /// By output rows, each group on its own (q, k and v heads of a fused projection).
    Rows(Vec<Group>),
    /// By input columns (attention output, MLP down projection).
    Cols(Group),
    /// Not cut: every block holds the whole (norm weights, small vectors).
    Replicated,
    /// A table, by rows in order, in a bucket of its own: its blocks end to end are the whole.
    Table,
}

/// A run of elements of a parameter that is one in the parameter and in a block.
pub(super) struct Piece {
    /// First element within the parameter's slices of all blocks, end to end.
    pub(super) at: usize,
    /// Elements of the whole row-major parameter.
    pub(super) full: Range<usize>,
}

impl ShardSpec {
    /// The shape of a block's slice of a parameter of `shape`. The rows of a table are a multiple
    /// of `unit` where there are several blocks.
    pub(super) fn slice(
        &self,
        name: &str,
        shape: &[usize],
        blocks: usize,
        unit: usize,
    ) -> Result<Vec<usize>> {
        let mut slice = shape.to_vec();
        let wrong = || Error::internal(format!("{name}: cut {self:?} of {shape:?} into {blocks}"));
        match self {
            ShardSpec::Replicated => {}
            ShardSpec::Table if blocks == 1 => {}
            ShardSpec::Table => slice[0] = shape[0].div_ceil(blocks).next_multiple_of(unit),
            ShardSpec::Rows(groups) => {
                if groups.iter().any(|g| g.blocks.len() != blocks) {
                    return Err(wrong());
                }
                slice[0] = groups.iter().map(|g| g.each).sum();
            }
            ShardSpec::Cols(group) => {
                if group.blocks.len() != blocks || shape.len() != 2 {
                    return Err(wrong());
                }
                slice[1] = group.each;
            }
        }
        Ok(slice)
    }

    /// The pieces of a parameter of `shape` over all blocks, which have slices of the shape
    /// `slice`.
    pub(super) fn pieces(&self, shape: &[usize], slice: &[usize], blocks: usize) -> Vec<Piece> {
        let (columns, each): (usize, usize) = (shape[1..].iter().product(), slice.iter().product());
        let all = shape[0] * columns;
        match self {
            ShardSpec::Replicated => {
                (0..blocks).map(|b| Piece { at: b * each, full: 0..all }).collect()
            }
            // End to end they are the whole.
            ShardSpec::Table => vec![Piece { at: 0, full: 0..all }],
            ShardSpec::Rows(groups) => {
                let mut out = vec![];
                for b in 0..blocks {
                    let mut row = 0;
                    for group in groups {
                        let rows = &group.blocks[b];
                        let full = rows.start * columns..rows.end * columns;
                        out.push(Piece { at: b * each + row * columns, full });
                        row += group.each;
                    }
                }
                out
            }
            ShardSpec::Cols(group) => {
                let piece = |(b, row): (usize, usize)| {
                    let cols = &group.blocks[b];
                    let full = row * columns + cols.start..row * columns + cols.end;
                    Piece { at: b * each + row * group.each, full }
                };
                let rows = |b| (0..shape[0]).map(move |row| (b, row));
                (0..blocks).flat_map(rows).map(piece).collect()
            }
        }
    }

    /// Runs of elements of block `b`'s slice that another block has too, with the first that has
    /// them. Columns are never repeated.
    pub(super) fn replicas(&self, slice: &[usize], b: usize) -> Vec<(Range<usize>, usize)> {
        let all: usize = slice.iter().product();
        match self {
            ShardSpec::Replicated => vec![(0..all, 0)],
            ShardSpec::Rows(groups) => {
                let columns: usize = slice[1..].iter().product();
                let mut row = 0;
                let run = |group: &Group| {
                    let range = row * columns..(row + group.each) * columns;
                    row += group.each;
                    (range, group.first_replica(b))
                };
                groups.iter().map(run).collect()
            }
            ShardSpec::Cols(_) | ShardSpec::Table => vec![(0..all, b)],
        }
    }
}

//! Packed batches: rows of token ids laid end to end without padding, and the cutting of a batch
//! into micro-batches by token count. It knows nothing of what the tokens mean.

/// Sequences laid end to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Token ids of all sequences, `tokens()` long.
    pub ids: Vec<i32>,
    /// Position of every token within its own sequence, from 0.
    pub positions: Vec<i32>,
    /// Start of every sequence in `ids`, and the end of the last: `sequences() + 1` long.
    pub cu_seqlens: Vec<i32>,
}

impl Packed {
    /// Packs rows in the order given. An empty row becomes a sequence of no tokens.
    pub fn from_rows(rows: &[&[i32]]) -> Packed {
        let total = rows.iter().map(|r| r.len()).sum();
        let mut packed = Packed {
            ids: Vec::with_capacity(total),
            positions: Vec::with_capacity(total),
            cu_seqlens: Vec::with_capacity(rows.len() + 1),
        };
        packed.cu_seqlens.push(0);
        for row in rows {
            packed.ids.extend_from_slice(row);
            packed.positions.extend(0..row.len() as i32);
            packed.cu_seqlens.push(packed.ids.len() as i32);
        }
        packed
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    /// Length of the longest sequence, 0 for an empty batch.
    pub fn max_len(&self) -> usize {
        (0..self.sequences()).map(|i| self.row_range(i).len()).max().unwrap_or(0)
    }

    /// Where sequence `i` lies in `ids`.
    pub fn row_range(&self, i: usize) -> std::ops::Range<usize> {
        self.cu_seqlens[i] as usize..self.cu_seqlens[i + 1] as usize
    }
}

/// Cuts rows of these lengths, in order, into runs of at most `max_tokens` tokens; returns the row
/// indices of each run. A row longer than `max_tokens` makes a run of its own.
pub fn micro_batches(lengths: &[usize], max_tokens: usize) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut used = 0;
    for (i, &len) in lengths.iter().enumerate() {
        match batches.last_mut() {
            Some(batch) if used + len <= max_tokens => batch.push(i),
            _ => {
                batches.push(vec![i]);
                used = 0;
            }
        }
        used += len;
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn packs_rows_end_to_end() {
        let packed = Packed::from_rows(&[&[5, 6, 7], &[], &[9]]);
        assert_eq!(packed.ids, [5, 6, 7, 9]);
        assert_eq!(packed.positions, [0, 1, 2, 0]);
        assert_eq!(packed.cu_seqlens, [0, 3, 3, 4]);
        assert_eq!((packed.tokens(), packed.sequences(), packed.max_len()), (4, 3, 3));
        assert_eq!((packed.row_range(1), packed.row_range(2)), (3..3, 3..4));
        let empty = Packed::from_rows(&[]);
        assert_eq!((empty.tokens(), empty.sequences(), empty.max_len()), (0, 0, 0));
    }

    #[test]
    fn a_long_row_stands_alone() {
        assert_eq!(micro_batches(&[4, 9, 1, 3], 5), [vec![0], vec![1], vec![2, 3]]);
        assert!(micro_batches(&[], 5).is_empty());
    }

    proptest! {
        #[test]
        fn micro_batches_keep_order_and_limit(
            lengths in prop::collection::vec(0usize..40, 0..60), max in 1usize..100,
        ) {
            let batches = micro_batches(&lengths, max);
            let flat: Vec<usize> = batches.concat();
            prop_assert_eq!(flat, (0..lengths.len()).collect::<Vec<_>>());
            for (i, batch) in batches.iter().enumerate() {
                let sum: usize = batch.iter().map(|&r| lengths[r]).sum();
                prop_assert!(sum <= max || batch.len() == 1);
                // Greedy: the next row would not have fitted.
                if let Some(next) = batches.get(i + 1) {
                    prop_assert!(sum + lengths[next[0]] > max);
                }
            }
        }
    }
}

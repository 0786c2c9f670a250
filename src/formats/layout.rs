//! Reversible layout permutations of row-major data: pure copies, any element type, no model names.

/// Writes the transpose of `src`, `[rows, cols]`, to `dst`, `[cols, rows]`. Its own inverse with
/// `rows` and `cols` exchanged. (GPT-2 stores its projections input-major.)
///
/// # Panics
/// If a slice does not hold `rows * cols` elements: a bug of the caller, who knows both shapes.
pub fn transpose<T: Copy>(rows: usize, cols: usize, src: &[T], dst: &mut [T]) {
    /// A tile's lines, source and destination together, stay in the first-level cache.
    const TILE: usize = 32;
    assert_eq!(Some(src.len()), rows.checked_mul(cols), "transpose: source is not [rows, cols]");
    assert_eq!(src.len(), dst.len(), "transpose: source and destination differ in size");
    for r0 in (0..rows).step_by(TILE) {
        for c0 in (0..cols).step_by(TILE) {
            for c in c0..cols.min(c0 + TILE) {
                for r in r0..rows.min(r0 + TILE) {
                    dst[c * rows + r] = src[r * cols + c];
                }
            }
        }
    }
}

/// Rows of `src`, `[order.len(), width]`, in another order: row `r` of the result is row
/// `order[r]`.
///
/// # Panics
/// If `src` has another size, as [`transpose`].
pub fn gather_rows<T: Copy>(order: &[usize], width: usize, src: &[T]) -> Vec<T> {
    assert_eq!(Some(src.len()), order.len().checked_mul(width), "gather_rows: another size");
    order.iter().flat_map(|&r| &src[r * width..(r + 1) * width]).copied().collect()
}

/// The inverse of [`gather_rows`] for an order that names every row once.
///
/// # Panics
/// As [`gather_rows`].
pub fn scatter_rows<T: Copy + Default>(order: &[usize], width: usize, src: &[T]) -> Vec<T> {
    assert_eq!(Some(src.len()), order.len().checked_mul(width), "scatter_rows: another size");
    let mut out = vec![T::default(); src.len()];
    for (row, &r) in src.chunks_exact(width.max(1)).zip(order) {
        out[r * width..(r + 1) * width].copy_from_slice(row);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn transpose_moves_every_element_and_inverts(rows in 0usize..80, cols in 0usize..80) {
            let src: Vec<u16> = (0..rows * cols).map(|i| i as u16).collect();
            let (mut t, mut back) = (vec![0; src.len()], vec![0; src.len()]);
            transpose(rows, cols, &src, &mut t);
            for r in 0..rows {
                for c in 0..cols {
                    prop_assert_eq!(t[c * rows + r], src[r * cols + c]);
                }
            }
            transpose(cols, rows, &t, &mut back);
            prop_assert_eq!(back, src);
        }

        #[test]
        fn rows_are_gathered_and_scattered_back(
            order in Just((0..40).collect::<Vec<usize>>()).prop_shuffle(), width in 1usize..5,
        ) {
            let src: Vec<f32> = (0..order.len() * width).map(|i| i as f32).collect();
            let ours = gather_rows(&order, width, &src);
            for (r, &from) in order.iter().enumerate() {
                let row = |x: usize| x * width..(x + 1) * width;
                prop_assert_eq!(&ours[row(r)], &src[row(from)]);
            }
            prop_assert_eq!(scatter_rows(&order, width, &ours), src);
        }
    }
}

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

/// Writes `src`, `[a, b, block]`, to `dst` as `[b, a, block]`: whole blocks change places. Its own
/// inverse with `a` and `b` exchanged. (Fused query-key-value rows stored head by head.)
///
/// # Panics
/// If a slice does not hold `a * b * block` elements, as [`transpose`].
pub fn swap_blocks<T: Copy>(a: usize, b: usize, block: usize, src: &[T], dst: &mut [T]) {
    let size = a.checked_mul(b).and_then(|n| n.checked_mul(block));
    assert_eq!(Some(src.len()), size, "swap_blocks: source is not [a, b, block]");
    assert_eq!(src.len(), dst.len(), "swap_blocks: source and destination differ in size");
    for i in 0..a {
        for j in 0..b {
            let (from, to) = ((i * b + j) * block, (j * a + i) * block);
            dst[to..to + block].copy_from_slice(&src[from..from + block]);
        }
    }
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
        fn swap_blocks_is_a_block_transpose(a in 0usize..9, b in 0usize..9, block in 0usize..5) {
            let src: Vec<f32> = (0..a * b * block).map(|i| i as f32).collect();
            let (mut t, mut back) = (vec![0.0; src.len()], vec![0.0; src.len()]);
            swap_blocks(a, b, block, &src, &mut t);
            for (i, x) in src.iter().enumerate() {
                let (ia, ib, k) = (i / (b * block), i / block % b, i % block);
                prop_assert_eq!(t[(ib * a + ia) * block + k], *x);
            }
            swap_blocks(b, a, block, &t, &mut back);
            prop_assert_eq!(back, src);
        }
    }
}

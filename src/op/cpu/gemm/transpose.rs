//! Sixteen rows of bf16, read as they lie and turned in registers, so that a vector holds one pair
//! of terms of sixteen outputs of A B^T and nothing is added up across lanes. Few rows of A use the
//! turned rows at once, many use a copy of them; both add the same pairs in the same order.

use super::super::simd::{LANES, Simd, prefetch};
use super::Mat;
use crate::base::bf16;
use std::ops::Range;

/// Up to this many rows of A, their sums and the turned rows of B stay in registers.
pub(super) const FEW: usize = 8;
/// Terms turned at a time.
const STEP: usize = 2 * LANES;

/// All rows of `a`, at most [`FEW`], times rows `cols` of `b`, to `sums`, whose rows are `width`
/// long.
#[inline(always)]
pub(super) fn few_rows<S: Simd>(
    s: S,
    a: Mat<bf16>,
    b: Mat<bf16>,
    cols: &Range<usize>,
    sums: &mut [f32],
    width: usize,
) {
    for j in (0..cols.len()).step_by(LANES) {
        let (first, sums) = (cols.start + j, &mut sums[j..]);
        match a.rows {
            1 => few::<S, 1>(s, a, b, first, sums, width),
            2 => few::<S, 2>(s, a, b, first, sums, width),
            3 => few::<S, 3>(s, a, b, first, sums, width),
            4 => few::<S, 4>(s, a, b, first, sums, width),
            5 => few::<S, 5>(s, a, b, first, sums, width),
            6 => few::<S, 6>(s, a, b, first, sums, width),
            7 => few::<S, 7>(s, a, b, first, sums, width),
            _ => few::<S, FEW>(s, a, b, first, sums, width),
        }
    }
}

/// Pairs of the terms `start..start + n`, `n` at most 32, of sixteen rows of `b` from `first` on,
/// turned: vector t holds pair t of every row. What there is not is zero.
#[inline(always)]
fn transposed<S: Simd>(s: S, b: Mat<bf16>, first: usize, start: usize, n: usize) -> [S::V; LANES] {
    let mut tile = [s.splat(0.0); LANES];
    let there = (b.rows - first).min(LANES);
    assert!(b.data.len() >= (first + there - 1) * b.ld + start + n);
    let top = b.data.as_ptr().wrapping_add(first * b.ld + start);
    for (r, v) in tile.iter_mut().enumerate() {
        let row = top.wrapping_add(r * b.ld);
        // The rows that are turned next.
        prefetch(row.wrapping_add(LANES * b.ld));
        if r < there {
            // SAFETY: as asserted.
            *v = unsafe { s.load_pairs(row, n) };
        }
    }
    s.transpose(tile)
}

/// Pair `t` of a row of `n` terms, the partner of an odd last one zero.
///
/// # Safety
/// `row` must be readable for `n` elements, and `2 t < n`.
#[inline(always)]
pub(super) unsafe fn pair(row: *const bf16, t: usize, n: usize) -> f32 {
    // SAFETY: the caller has `n` elements readable. A whole pair is read where 2 t + 1 < n, else
    // element 2 t, which is below `n`.
    unsafe {
        if 2 * t + 1 < n {
            row.add(2 * t).cast::<f32>().read_unaligned()
        } else {
            f32::from_bits(u32::from(row.add(2 * t).read().to_bits()))
        }
    }
}

/// All `R` rows of `a` times sixteen rows of `b` from `first` on, into the front of rows of `sums`,
/// which are `width` long.
#[inline(always)]
fn few<S: Simd, const R: usize>(
    s: S,
    a: Mat<bf16>,
    b: Mat<bf16>,
    first: usize,
    sums: &mut [f32],
    width: usize,
) {
    assert!(a.cols == 0 || a.data.len() >= (R - 1) * a.ld + a.cols);
    let mut acc = [s.splat(0.0); R];
    for start in (0..a.cols).step_by(STEP) {
        let n = STEP.min(a.cols - start);
        let tile = transposed(s, b, first, start, n);
        let at = a.data.as_ptr().wrapping_add(start);
        // SAFETY: `n` elements from `start` on are inside each row, as asserted.
        unsafe {
            // Whole steps, of a length known at compile time, are unrolled.
            match n {
                STEP => add_tile(s, at, a.ld, STEP, &tile, &mut acc),
                _ => add_tile(s, at, a.ld, n, &tile, &mut acc),
            }
        }
    }
    for (r, v) in acc.into_iter().enumerate() {
        s.put(&mut sums[r * width..][..LANES], v);
    }
}

/// Adds the products of `R` rows of `n` terms and as many turned ones.
///
/// # Safety
/// `at` must be readable for `R` rows of `n` elements, `ld` apart.
#[inline(always)]
unsafe fn add_tile<S: Simd, const R: usize>(
    s: S,
    at: *const bf16,
    ld: usize,
    n: usize,
    tile: &[S::V; LANES],
    acc: &mut [S::V; R],
) {
    for (t, x) in tile.iter().enumerate() {
        if 2 * t < n {
            for (r, sum) in acc.iter_mut().enumerate() {
                // SAFETY: r < R, so the row is one of those that the caller has readable for `n`
                // elements, and 2 t < n.
                let a = s.splat(unsafe { pair(at.add(r * ld), t, n) });
                *sum = s.dot_pairs(a, *x, *sum);
            }
        }
    }
}

/// Copies `terms` of rows `cols` of `b`, turned: pair by pair, `V` vectors each.
#[inline(always)]
pub(super) fn copy_transposed<S: Simd, const V: usize>(
    s: S,
    b: Mat<bf16>,
    cols: &Range<usize>,
    terms: &Range<usize>,
    copy: &mut [f32],
) {
    let b = Mat { rows: cols.end, ..b };
    for v in 0..cols.len().div_ceil(LANES) {
        for start in terms.clone().step_by(STEP) {
            let n = STEP.min(terms.end - start);
            let tile = transposed(s, b, cols.start + v * LANES, start, n);
            let to = &mut copy[(start - terms.start) / 2 * V * LANES..];
            for (t, x) in tile.iter().enumerate() {
                if 2 * t < n {
                    s.put(&mut to[(t * V + v) * LANES..][..LANES], *x);
                }
            }
        }
    }
}

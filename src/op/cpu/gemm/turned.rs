//! A B^T of bf16 by dot products of pairs of terms. Sixteen rows of B, which are read as they lie, are
//! turned in registers, so that a vector holds one pair of sixteen outputs: sums need not be added up
//! across lanes, and a pair of A is in all of them. Few rows of A use the turned rows at once; many
//! use copies of them, as the other products do. Both add the same pairs in the same order.

use super::super::simd::{Kernel, LANES, Simd, dispatch_pairs, prefetch_far};
use super::outer::{DEPTH, MAX_BLOCK, add_products, copy_a_pairs};
use super::{Blocks, Epilogue, Mat, MatMut, Output, RowEnd, Scratch, finish, with_scratch};
use crate::base::{Elem, bf16};
use std::ops::Range;

/// Up to this many rows of A their sums stay in registers.
const FEW: usize = 8;
/// Columns of a block for few rows: the weights are shared out in pieces of this many rows.
const FEW_COLUMNS: usize = 64;
/// Vectors of columns in a tile for many rows, and its rows.
const VECS: usize = 3;
const ROWS: usize = 8;
/// Terms turned at a time.
const STEP: usize = 2 * LANES;

/// See [`super::gemm_nt`].
pub(super) fn run<C: Elem, E: Elem>(
    a: Mat<bf16>,
    b: Mat<bf16>,
    c: MatMut<C>,
    epilogue: &Epilogue<E>,
) {
    let (m, n, k) = (a.rows, b.rows, a.cols);
    assert!(b.cols == k && (c.rows, c.cols) == (m, n), "gemm_nt: shapes disagree");
    assert!(epilogue.bias.is_none_or(|x| x.len() >= n), "gemm_nt: bias too short");
    if m == 0 || n == 0 {
        return;
    }
    let residual = epilogue.residual.map(|(x, ld)| Mat::new(x, m, n, ld));
    let output = Output { data: c.data.as_mut_ptr(), ld: c.ld };
    let (max, unit) = match m {
        ..=FEW => ([m, FEW_COLUMNS], [m, LANES]),
        _ => (MAX_BLOCK, [ROWS, VECS * LANES]),
    };
    Blocks::new(m, n, max, unit).for_each(m * n * k, |rows, cols| {
        with_scratch(|scratch| {
            let output = &output;
            dispatch_pairs(Block { a, b, output, epilogue, residual, rows, cols, scratch });
        });
    });
}

/// One block of the output.
struct Block<'a, C, E> {
    a: Mat<'a, bf16>,
    b: Mat<'a, bf16>,
    output: &'a Output<C>,
    epilogue: &'a Epilogue<'a, E>,
    residual: Option<Mat<'a, E>>,
    rows: Range<usize>,
    cols: Range<usize>,
    scratch: &'a mut Scratch,
}

impl<C: Elem, E: Elem> Kernel for Block<'_, C, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Block { a, b, output, epilogue, residual, rows, cols, scratch } = self;
        let Scratch { a: a_copy, b: b_copy, sums } = scratch;
        let tall = rows.len().next_multiple_of(ROWS);
        let width = cols.len().next_multiple_of(VECS * LANES);
        let sums = sums.get(tall * width);
        if a.rows <= FEW {
            let stride = a.cols.div_ceil(2).next_multiple_of(LANES);
            let a_copy = a_copy.get(a.rows * stride);
            for (i, dst) in a_copy.chunks_exact_mut(stride.max(1)).enumerate() {
                let dst: &mut [bf16] = bytemuck::cast_slice_mut(dst);
                dst[..a.cols].copy_from_slice(a.row(i, 0..a.cols));
                dst[a.cols..].fill(bf16::ZERO);
            }
            for at in (0..cols.len()).step_by(LANES) {
                let (first, sums) = (cols.start + at, &mut sums[at..]);
                match a.rows {
                    1 => few::<S, 1>(s, a_copy, stride, b, first, sums, width),
                    2 => few::<S, 2>(s, a_copy, stride, b, first, sums, width),
                    3 => few::<S, 3>(s, a_copy, stride, b, first, sums, width),
                    4 => few::<S, 4>(s, a_copy, stride, b, first, sums, width),
                    5 => few::<S, 5>(s, a_copy, stride, b, first, sums, width),
                    6 => few::<S, 6>(s, a_copy, stride, b, first, sums, width),
                    7 => few::<S, 7>(s, a_copy, stride, b, first, sums, width),
                    _ => few::<S, 8>(s, a_copy, stride, b, first, sums, width),
                }
            }
        } else {
            let (a_copy, b_copy) = (a_copy.get(tall * DEPTH), b_copy.get(width * DEPTH));
            sums.fill(0.0);
            for start in (0..a.cols).step_by(DEPTH) {
                let terms = start..(start + DEPTH).min(a.cols);
                copy_a_pairs::<S, false>(s, a, &rows, &terms, a_copy);
                copy_turned(s, b, &cols, &terms, b_copy);
                let n = terms.len().div_ceil(2);
                add_products::<S, false, true, ROWS, VECS>(s, a_copy, b_copy, n, sums, width);
            }
        }
        for (i, sums) in rows.zip(sums.chunks_exact(width)) {
            // SAFETY: blocks are disjoint and inside the matrix.
            let c = unsafe { output.row(i, &cols) };
            let end = RowEnd {
                bias: epilogue.bias.map(|x| &x[cols.clone()]),
                residual: residual.map(|x| x.row(i, cols.clone())),
                alpha: epilogue.alpha,
                accumulate: epilogue.accumulate,
            };
            finish(s, c, sums, &end);
        }
    }
}

/// Pairs of the terms `start..` of rows `first..first + 16` of `b`, turned: vector t holds pair t of
/// every row. What there is not is zero.
#[inline(always)]
fn turned<S: Simd>(s: S, b: Mat<bf16>, first: usize, terms: Range<usize>) -> [S::V; LANES] {
    let mut tile = [s.splat(0.0); LANES];
    for (r, v) in tile.iter_mut().enumerate() {
        if first + r < b.rows {
            let row = b.row(first + r, terms.clone());
            // The rows that are read next.
            prefetch_far(row.as_ptr().wrapping_add(LANES * b.ld));
            // SAFETY: all of `row`, at most 32.
            *v = unsafe { s.load_pairs(row.as_ptr(), row.len()) };
        }
    }
    s.transpose(tile)
}

/// `R` rows of pairs, `stride` apart, times rows `first..first + 16` of `b`, into the front of rows of
/// `sums`, which are `width` long.
#[inline(always)]
fn few<S: Simd, const R: usize>(
    s: S,
    a: &[f32],
    stride: usize,
    b: Mat<bf16>,
    first: usize,
    sums: &mut [f32],
    width: usize,
) {
    let mut acc = [s.splat(0.0); R];
    for start in (0..b.cols).step_by(STEP) {
        let tile = turned(s, b, first, start..(start + STEP).min(b.cols));
        let mut a_rows = [&a[..0]; R];
        for (r, row) in a_rows.iter_mut().enumerate() {
            *row = &a[r * stride + start / 2..][..LANES];
        }
        if b.cols - start >= STEP {
            for t in 0..LANES {
                for r in 0..R {
                    acc[r] = s.dot_pairs(s.splat(a_rows[r][t]), tile[t], acc[r]);
                }
            }
        } else {
            // Adding zeros would turn a negative zero.
            for t in 0..(b.cols - start).div_ceil(2) {
                for r in 0..R {
                    acc[r] = s.dot_pairs(s.splat(a_rows[r][t]), tile[t], acc[r]);
                }
            }
        }
    }
    for (r, v) in acc.into_iter().enumerate() {
        s.put(&mut sums[r * width..][..LANES], v);
    }
}

/// Copies rows `cols` of `b`, turned: for each group of `VECS` vectors of them, pair by pair; zero
/// beyond `cols`.
#[inline(always)]
fn copy_turned<S: Simd>(
    s: S,
    b: Mat<bf16>,
    cols: &Range<usize>,
    terms: &Range<usize>,
    copy: &mut [f32],
) {
    const GROUP: usize = VECS * LANES;
    let b = Mat { rows: cols.end, ..b };
    for j in (0..cols.len().next_multiple_of(GROUP)).step_by(LANES) {
        let (group, v) = (j / GROUP, j % GROUP);
        for start in terms.clone().step_by(STEP) {
            let end = (start + STEP).min(terms.end);
            let tile = turned(s, b, cols.start + j, start..end);
            let t = (start - terms.start) / 2;
            for (i, v_t) in tile.into_iter().enumerate().take((end - start).div_ceil(2)) {
                s.put(&mut copy[(group * DEPTH + t + i) * GROUP + v..], v_t);
            }
        }
    }
}

//! A B and A^T B: the second operand is contiguous along the output's rows, so a tile of the
//! output grows by outer products. Both operands are first copied as f32 into the order in which
//! the tiles read them.

use super::super::simd::{Kernel, LANES, Level, Simd, dispatch};
use super::super::vec::convert;
use super::{Blocks, Mat, MatMut, Output, RowEnd, Scratch, finish, with_scratch};
use crate::base::Elem;
use std::ops::Range;

/// Terms summed between two visits of a tile; the sums rest in f32 memory, which is exact.
const DEPTH: usize = 256;
/// Rows and columns of a block, at most: its sums and copies fit level 2.
const MAX_BLOCK: [usize; 2] = [192, 288];
/// What the tiles of every level divide.
const UNIT: [usize; 2] = [24, 48];

/// C = A B, or A^T B if `TRANS`; see [`super::gemm_nn`].
pub(super) fn run<A: Elem, B: Elem, C: Elem, const TRANS: bool>(
    level: Level,
    a: Mat<A>,
    b: Mat<B>,
    c: MatMut<C>,
    accumulate: bool,
) {
    let (m, depth) = if TRANS { (a.cols, a.rows) } else { (a.rows, a.cols) };
    let n = b.cols;
    assert!(b.rows == depth && (c.rows, c.cols) == (m, n), "gemm_nn, gemm_tn: shapes disagree");
    if m == 0 || n == 0 {
        return;
    }
    let output = Output { data: c.data.as_mut_ptr(), ld: c.ld };
    Blocks::new(m, n, MAX_BLOCK, UNIT).for_each(m * n * depth, |rows, cols| {
        with_scratch(|scratch| {
            let output = &output;
            dispatch(
                level,
                Block::<A, B, C, TRANS> { a, b, output, rows, cols, depth, accumulate, scratch },
            );
        });
    });
}

/// One block of the output.
struct Block<'a, A, B, C, const TRANS: bool> {
    a: Mat<'a, A>,
    b: Mat<'a, B>,
    output: &'a Output<C>,
    rows: Range<usize>,
    cols: Range<usize>,
    depth: usize,
    accumulate: bool,
    scratch: &'a mut Scratch,
}

impl<A: Elem, B: Elem, C: Elem, const TRANS: bool> Kernel for Block<'_, A, B, C, TRANS> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Block { a, b, output, rows, cols, depth, accumulate, scratch } = self;
        let tall = rows.len().next_multiple_of(UNIT[0]);
        let width = cols.len().next_multiple_of(UNIT[1]);
        let Scratch { a: a_copy, b: b_copy, sums } = scratch;
        let (a_copy, b_copy) = (a_copy.get(tall * DEPTH), b_copy.get(width * DEPTH));
        let sums = sums.get(tall * width);
        sums.fill(0.0);
        for start in (0..depth).step_by(DEPTH) {
            let terms = start..(start + DEPTH).min(depth);
            // 8 x 3 vectors fill the 32 registers of AVX-512, 6 x 1 pairs the 16 of AVX2.
            if S::WIDE {
                copy_a::<S, A, TRANS, 8>(s, a, &rows, &terms, a_copy);
                copy_b::<S, B, 3>(s, b, &terms, &cols, b_copy);
                add_products::<S, TRANS, 8, 3>(s, a_copy, b_copy, terms.len(), sums, width);
            } else {
                copy_a::<S, A, TRANS, 6>(s, a, &rows, &terms, a_copy);
                copy_b::<S, B, 1>(s, b, &terms, &cols, b_copy);
                add_products::<S, TRANS, 6, 1>(s, a_copy, b_copy, terms.len(), sums, width);
            }
        }
        for (i, sums) in rows.zip(sums.chunks_exact(width)) {
            // SAFETY: blocks are disjoint and inside the matrix.
            let c = unsafe { output.row(i, &cols) };
            let end = RowEnd::<f32> { bias: None, residual: None, alpha: 1.0, accumulate };
            finish(s, c, sums, &end);
        }
    }
}

/// Copies the terms of A: row by row, `DEPTH` apart; if `TRANS`, for each group of `ROWS` output
/// rows their values term by term. What lies beyond `rows` is left as it was: it only reaches sums
/// in padding.
#[inline(always)]
fn copy_a<S: Simd, A: Elem, const TRANS: bool, const ROWS: usize>(
    s: S,
    a: Mat<A>,
    rows: &Range<usize>,
    terms: &Range<usize>,
    copy: &mut [f32],
) {
    if !TRANS {
        for (i, dst) in rows.clone().zip(copy.chunks_exact_mut(DEPTH)) {
            convert(s, dst, a.row(i, terms.clone()));
        }
        return;
    }
    for (t, i) in terms.clone().enumerate() {
        for (group, src) in a.row(i, rows.clone()).chunks(ROWS).enumerate() {
            let dst = &mut copy[(group * DEPTH + t) * ROWS..][..ROWS];
            if let Ok(src) = <&[A; ROWS]>::try_from(src) {
                for r in 0..ROWS {
                    dst[r] = src[r].to_f32();
                }
            } else {
                for (d, x) in dst.iter_mut().zip(src) {
                    *d = x.to_f32();
                }
            }
        }
    }
}

/// Copies the terms of B: for each group of `VECS` vectors of columns their values term by term,
/// zero beyond `cols`.
#[inline(always)]
fn copy_b<S: Simd, B: Elem, const VECS: usize>(
    s: S,
    b: Mat<B>,
    terms: &Range<usize>,
    cols: &Range<usize>,
    copy: &mut [f32],
) {
    let group_len = VECS * LANES;
    for (t, i) in terms.clone().enumerate() {
        for (group, src) in b.row(i, cols.clone()).chunks(group_len).enumerate() {
            let dst = &mut copy[(group * DEPTH + t) * group_len..][..group_len];
            for v in (0..group_len).step_by(LANES) {
                s.put(&mut dst[v..], s.take(&src[v.min(src.len())..]));
            }
        }
    }
}

/// Adds `terms` outer products to all `sums`, whose rows are `width` long.
#[inline(always)]
fn add_products<S: Simd, const TRANS: bool, const ROWS: usize, const VECS: usize>(
    s: S,
    a: &[f32],
    b: &[f32],
    terms: usize,
    sums: &mut [f32],
    width: usize,
) {
    let tall = sums.len() / width;
    for i in (0..tall).step_by(ROWS) {
        for j in (0..width).step_by(VECS * LANES) {
            let (a, b) = (&a[i * DEPTH..][..ROWS * DEPTH], &b[j * DEPTH..]);
            tile::<S, TRANS, ROWS, VECS>(s, a, b, terms, &mut sums[i * width + j..], width);
        }
    }
}

/// Adds `terms` outer products to the tile at the start of `sums`.
#[inline(always)]
fn tile<S: Simd, const TRANS: bool, const ROWS: usize, const VECS: usize>(
    s: S,
    a: &[f32],
    b: &[f32],
    terms: usize,
    sums: &mut [f32],
    width: usize,
) {
    assert!(terms <= DEPTH && a.len() >= ROWS * DEPTH && b.len() >= terms * VECS * LANES);
    assert!(sums.len() >= (ROWS - 1) * width + VECS * LANES);
    let (a, b, sums) = (a.as_ptr(), b.as_ptr(), sums.as_mut_ptr());
    let mut tile = [[s.splat(0.0); VECS]; ROWS];
    for (r, row) in tile.iter_mut().enumerate() {
        for (v, sum) in row.iter_mut().enumerate() {
            // SAFETY: inside `sums`, as asserted.
            *sum = unsafe { s.load(sums.add(r * width + v * LANES)) };
        }
    }
    for t in 0..terms {
        let mut b_row = [s.splat(0.0); VECS];
        for (v, x) in b_row.iter_mut().enumerate() {
            // SAFETY: inside `b`, as asserted.
            *x = unsafe { s.load(b.add((t * VECS + v) * LANES)) };
        }
        for (r, row) in tile.iter_mut().enumerate() {
            let at = if TRANS { t * ROWS + r } else { r * DEPTH + t };
            // SAFETY: inside `a`, as asserted.
            let a = s.splat(unsafe { *a.add(at) });
            for (sum, b) in row.iter_mut().zip(b_row) {
                *sum = s.fma(a, b, *sum);
            }
        }
    }
    for (r, row) in tile.into_iter().enumerate() {
        for (v, sum) in row.into_iter().enumerate() {
            // SAFETY: inside `sums`, as asserted.
            unsafe { s.store(sums.add(r * width + v * LANES), sum) };
        }
    }
}

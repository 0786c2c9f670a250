//! A B and A^T B: the second operand is contiguous along the output's rows, so a tile of the output
//! grows by outer products. Both operands are first copied, as f32, into the order in which the
//! tiles read them.

use super::super::simd::{Kernel, LANES, Level, Simd, dispatch};
use super::super::vec::convert;
use super::{Ends, Epilogue, Mat, MatMut, Product, Scratch, each_block, prefetch_row};
use crate::base::Elem;
use std::ops::Range;

/// Terms summed between two visits of a tile; the sums rest in f32 memory, which is exact.
const DEPTH: usize = 256;
/// Rows and columns of a block, at most: its sums and copies fit level 2.
const MAX_BLOCK: [usize; 2] = [192, 288];
/// Rows asked for ahead of their copying: parts of rows are too short for the processor to foresee.
const AHEAD: usize = 16;
/// Rows and columns that are multiples of every level's tiles.
const UNIT: [usize; 2] = [24, 48];

/// C = A B, or A^T B if `TRANS`; see [`super::gemm_nn`].
pub(super) fn run<A: Elem, B: Elem, C: Elem, E: Elem, const TRANS: bool>(
    level: Level,
    a: Mat<A>,
    b: Mat<B>,
    c: MatMut<C>,
    epilogue: &Epilogue<E>,
) {
    let product = if TRANS { Product::Tn } else { Product::Nn };
    let [m, n, depth] = product.sizes(&a, &b);
    each_block([m, n, depth], c, epilogue, MAX_BLOCK, UNIT, |ends, rows, cols, scratch| {
        dispatch(level, Block::<A, B, C, E, TRANS> { a, b, ends, rows, cols, depth, scratch });
    });
}

/// One block of the output.
struct Block<'a, A, B, C, E, const TRANS: bool> {
    a: Mat<'a, A>,
    b: Mat<'a, B>,
    ends: Ends<'a, C, E>,
    rows: Range<usize>,
    cols: Range<usize>,
    depth: usize,
    scratch: &'a mut Scratch,
}

impl<A: Elem, B: Elem, C: Elem, E: Elem, const TRANS: bool> Kernel
    for Block<'_, A, B, C, E, TRANS>
{
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Block { a, b, ends, rows, cols, depth, scratch } = self;
        let tall = rows.len().next_multiple_of(UNIT[0]);
        let width = cols.len().next_multiple_of(UNIT[1]);
        let Scratch { a: a_copy, b: b_copy, sums } = scratch;
        let (a_copy, b_copy) =
            (a_copy.get(tall.next_multiple_of(LANES) * DEPTH), b_copy.get(width * DEPTH));
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
        ends.store(s, rows, &cols, sums, width);
    }
}

/// Rows of A copied together if it is transposed: tiles of half as many share a group, which one
/// vector fills.
const fn group(rows: usize) -> usize {
    if LANES.is_multiple_of(rows) { LANES } else { rows }
}

/// Copies the terms of A: row by row, `DEPTH` apart; if `TRANS`, for each [`group`] of output rows
/// their values term by term. What lies beyond `rows` only reaches sums in padding.
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
    let group = group(ROWS);
    for (t, term) in terms.clone().enumerate() {
        prefetch_row(a, term + AHEAD, rows);
        let src = a.row(term, rows.clone());
        for i in (0..src.len()).step_by(group) {
            s.put(&mut copy[i * DEPTH + t * group..][..group], s.take(&src[i..]));
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
        prefetch_row(b, i + AHEAD, cols);
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
    for j in (0..width).step_by(VECS * LANES) {
        for i in (0..tall).step_by(ROWS) {
            // Where tiles share a group, the second starts inside it.
            let inside = if TRANS { i % group(ROWS) } else { 0 };
            let (a, b) = (&a[(i - inside) * DEPTH + inside..], &b[j * DEPTH..]);
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
    // From one term, and from one row, of A to the next.
    let (next_term, next_row) = if TRANS { (group(ROWS), 1) } else { (1, DEPTH) };
    assert!(a.len() > terms.saturating_sub(1) * next_term + (ROWS - 1) * next_row);
    assert!(b.len() >= terms * VECS * LANES);
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
            // SAFETY: inside `a`, as asserted.
            let a = s.splat(unsafe { *a.add(t * next_term + r * next_row) });
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

//! A B^T of bf16 by dot products of pairs of terms. Sixteen rows of B, which are read as they lie, are
//! turned in registers, so that a vector holds one pair of sixteen outputs and a pair of A goes into
//! all of them: nothing is added up across lanes. Few rows of A use the turned rows at once, many
//! use a copy of them. Both add the same pairs in the same order.

use super::super::simd::{Kernel, LANES, Level, Simd, dispatch, prefetch};
use super::{Ends, Epilogue, Mat, MatMut, Scratch, each_block};
use crate::base::{Elem, bf16};
use std::ops::Range;

/// Up to this many rows of A, their sums and the turned rows of B stay in registers.
const FEW: usize = 8;
/// Columns of a block of few rows, at most: its first rows of B come from memory unasked.
const FEW_COLUMNS: usize = 512;
/// A block of many rows, at most: its sums and the copy of B fit level 2.
const MANY: [usize; 2] = [512, COLUMNS];
/// Rows and vectors of columns of a tile of many rows: with one of B they fill the 32 registers.
const ROWS: usize = 8;
const VECS: usize = 3;
const COLUMNS: usize = VECS * LANES;
/// Terms copied at a time; the sums rest in f32 memory, which is exact.
const DEPTH: usize = 256;
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
    assert!(b.cols == k, "gemm_nt: shapes disagree");
    let (max, unit) =
        if m <= FEW { ([m, FEW_COLUMNS], [m, LANES]) } else { (MANY, [ROWS, COLUMNS]) };
    each_block([m, n, k], c, epilogue, max, unit, |ends, rows, cols, scratch| {
        dispatch(Level::Avx512Bf16, Block { a, b, ends, rows, cols, scratch });
    });
}

/// One block of the output.
struct Block<'a, C, E> {
    a: Mat<'a, bf16>,
    b: Mat<'a, bf16>,
    ends: Ends<'a, C, E>,
    rows: Range<usize>,
    cols: Range<usize>,
    scratch: &'a mut Scratch,
}

impl<C: Elem, E: Elem> Kernel for Block<'_, C, E> {
    const PAIRS: bool = true;
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Block { a, b, ends, rows, cols, scratch } = self;
        let width = cols.len().next_multiple_of(LANES);
        let sums = scratch.sums.get(rows.len() * width);
        if a.rows <= FEW {
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
                    _ => few::<S, 8>(s, a, b, first, sums, width),
                }
            }
        } else {
            let a = Mat { data: &a.data[rows.start * a.ld..], rows: rows.len(), ..a };
            let copy = scratch.b.get(DEPTH / 2 * width);
            sums.fill(0.0);
            for start in (0..a.cols).step_by(DEPTH) {
                let terms = start..(start + DEPTH).min(a.cols);
                match width / LANES {
                    1 => add_products::<S, 1>(s, a, b, &cols, terms, copy, sums),
                    2 => add_products::<S, 2>(s, a, b, &cols, terms, copy, sums),
                    _ => add_products::<S, VECS>(s, a, b, &cols, terms, copy, sums),
                }
            }
        }
        ends.store(s, rows, &cols, sums, width);
    }
}

/// Pairs of the terms `start..start + n`, `n` at most 32, of sixteen rows of `b` from `first` on,
/// turned: vector t holds pair t of every row. What there is not is zero.
#[inline(always)]
fn turned<S: Simd>(s: S, b: Mat<bf16>, first: usize, start: usize, n: usize) -> [S::V; LANES] {
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
unsafe fn pair(row: *const bf16, t: usize, n: usize) -> f32 {
    // SAFETY: the caller's promise.
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
        let tile = turned(s, b, first, start, n);
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
                // SAFETY: the caller's promise.
                let a = s.splat(unsafe { pair(at.add(r * ld), t, n) });
                *sum = s.dot_pairs(a, *x, *sum);
            }
        }
    }
}

/// Adds `terms` of all rows of `a` times rows `cols` of `b`, `V` vectors of them, to `sums`.
#[inline(always)]
fn add_products<S: Simd, const V: usize>(
    s: S,
    a: Mat<bf16>,
    b: Mat<bf16>,
    cols: &Range<usize>,
    terms: Range<usize>,
    copy: &mut [f32],
    sums: &mut [f32],
) {
    copy_turned::<S, V>(s, b, cols, &terms, copy);
    // The rows in tiles of nearly equal height.
    let tall = a.rows.div_ceil(a.rows.div_ceil(ROWS));
    for i in (0..a.rows).step_by(tall) {
        let sums = &mut sums[i * V * LANES..];
        match tall.min(a.rows - i) {
            1 => tile::<S, 1, V>(s, a, i, &terms, copy, sums),
            2 => tile::<S, 2, V>(s, a, i, &terms, copy, sums),
            3 => tile::<S, 3, V>(s, a, i, &terms, copy, sums),
            4 => tile::<S, 4, V>(s, a, i, &terms, copy, sums),
            5 => tile::<S, 5, V>(s, a, i, &terms, copy, sums),
            6 => tile::<S, 6, V>(s, a, i, &terms, copy, sums),
            7 => tile::<S, 7, V>(s, a, i, &terms, copy, sums),
            _ => tile::<S, 8, V>(s, a, i, &terms, copy, sums),
        }
    }
}

/// Copies `terms` of rows `cols` of `b`, turned: pair by pair, `V` vectors each.
#[inline(always)]
fn copy_turned<S: Simd, const V: usize>(
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
            let tile = turned(s, b, cols.start + v * LANES, start, n);
            let to = &mut copy[(start - terms.start) / 2 * V * LANES..];
            for (t, x) in tile.iter().enumerate() {
                if 2 * t < n {
                    s.put(&mut to[(t * V + v) * LANES..][..LANES], *x);
                }
            }
        }
    }
}

/// Adds `terms` of rows `i..i + R` of `a` times the copied rows of B to `sums`.
#[inline(always)]
fn tile<S: Simd, const R: usize, const V: usize>(
    s: S,
    a: Mat<bf16>,
    i: usize,
    terms: &Range<usize>,
    copy: &[f32],
    sums: &mut [f32],
) {
    let n = terms.len();
    assert!(a.data.len() >= (i + R - 1) * a.ld + terms.end);
    assert!(copy.len() >= n.div_ceil(2) * V * LANES && sums.len() >= R * V * LANES);
    let top = a.data.as_ptr().wrapping_add(i * a.ld + terms.start);
    let (copy, sums) = (copy.as_ptr(), sums.as_mut_ptr());
    let mut acc = [[s.splat(0.0); V]; R];
    for (r, row) in acc.iter_mut().enumerate() {
        for (v, sum) in row.iter_mut().enumerate() {
            // SAFETY: inside `sums`, as asserted.
            *sum = unsafe { s.load(sums.add((r * V + v) * LANES)) };
        }
    }
    for t in 0..n / 2 {
        // SAFETY: all pairs up to the last whole one are inside `a` and `copy`, as asserted.
        unsafe { step::<S, R, V>(s, top, a.ld, t, n, copy, &mut acc) };
    }
    if n % 2 == 1 {
        // SAFETY: as above; its partner is not read.
        unsafe { step::<S, R, V>(s, top, a.ld, n / 2, n, copy, &mut acc) };
    }
    for (r, row) in acc.into_iter().enumerate() {
        for (v, sum) in row.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe { s.store(sums.add((r * V + v) * LANES), sum) };
        }
    }
}

/// Adds the products of pair `t` of `n` terms.
///
/// # Safety
/// `top` must be readable for `R` rows of `n` elements, `ld` apart, and `copy` up to pair `t`.
#[inline(always)]
unsafe fn step<S: Simd, const R: usize, const V: usize>(
    s: S,
    top: *const bf16,
    ld: usize,
    t: usize,
    n: usize,
    copy: *const f32,
    acc: &mut [[S::V; V]; R],
) {
    let mut b = [s.splat(0.0); V];
    for (v, x) in b.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *x = unsafe { s.load(copy.add((t * V + v) * LANES)) };
    }
    for (r, row) in acc.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let a = s.splat(unsafe { pair(top.add(r * ld), t, n) });
        for (v, sum) in row.iter_mut().enumerate() {
            *sum = s.dot_pairs(a, b[v], *sum);
        }
    }
}

//! A B^T: both operands contiguous along the summed dimension, so each output is a dot product.

use super::super::simd::{Kernel, LANES, Level, Simd, dispatch, is_f32, prefetch};
use super::super::vec::convert;
use super::{Ends, Epilogue, Mat, MatMut, Product, Scratch, each_block};
use crate::base::Elem;
use std::ops::Range;

/// Rows of B in a tile.
const COLS: usize = 4;
/// Up to this many rows of A, bf16 is widened in registers: copies would not be reused enough.
const FEW_ROWS: usize = 12;
/// Bytes of the copies (or reused parts) of A and of B in one block: together they fit level 2.
const A_BYTES: usize = 256 << 10;
const B_BYTES: usize = 512 << 10;

/// See [`super::gemm_nt`]; at a given level.
pub(super) fn run<A: Elem, B: Elem, C: Elem, E: Elem>(
    level: Level,
    a: Mat<A>,
    b: Mat<B>,
    c: MatMut<C>,
    epilogue: &Epilogue<E>,
) {
    let [m, n, k] = Product::Nt.sizes(&a, &b);
    let row_bytes = 4 * k.max(LANES);
    let rows = (A_BYTES / row_bytes).clamp(24, 192);
    let cols = if m <= FEW_ROWS { 64 } else { (B_BYTES / row_bytes).clamp(32, 192) };
    let unit = if m <= FEW_ROWS { m } else { 6 };
    let (max, unit) = ([rows.max(unit), cols], [unit, COLS]);
    each_block([m, n, k], c, epilogue, max, unit, |ends, rows, cols, scratch| {
        let wide = m > FEW_ROWS;
        dispatch(level, Block { a, b, ends, rows, cols, wide, scratch });
    });
}

/// One block of the output.
struct Block<'a, A, B, C, E> {
    a: Mat<'a, A>,
    b: Mat<'a, B>,
    ends: Ends<'a, C, E>,
    rows: Range<usize>,
    cols: Range<usize>,
    /// True if bf16 operands are copied as f32 first.
    wide: bool,
    scratch: &'a mut Scratch,
}

impl<A: Elem, B: Elem, C: Elem, E: Elem> Kernel for Block<'_, A, B, C, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Block { a, b, ends, rows, cols, wide, scratch } = self;
        let Scratch { a: a_copy, b: b_copy, sums } = scratch;
        let k = a.cols;
        let width = cols.len().next_multiple_of(COLS);
        let sums = sums.get(rows.len() * width);
        if wide && !(is_f32::<A>() && is_f32::<B>()) {
            let a = widened(s, a, &rows, a_copy.get(rows.len() * k));
            let b = widened(s, b, &cols, b_copy.get(cols.len() * k));
            products(s, a, b, sums, width);
        } else {
            products(s, part(a, &rows), part(b, &cols), sums, width);
        }
        ends.store(s, rows, &cols, sums, width);
    }
}

/// The rows `rows` of `x`.
#[inline(always)]
fn part<'a, E: Elem>(x: Mat<'a, E>, rows: &Range<usize>) -> Mat<'a, E> {
    let data = if x.cols == 0 { &[] } else { &x.data[rows.start * x.ld..] };
    Mat { data, rows: rows.len(), ..x }
}

/// An f32 copy of the rows `rows` of `x`.
#[inline(always)]
fn widened<'a, S: Simd, E: Elem>(
    s: S,
    x: Mat<E>,
    rows: &Range<usize>,
    copy: &'a mut [f32],
) -> Mat<'a, f32> {
    if x.cols > 0 {
        for (i, dst) in rows.clone().zip(copy.chunks_exact_mut(x.cols)) {
            convert(s, dst, x.row(i, 0..x.cols));
        }
    }
    Mat { data: copy, rows: rows.len(), cols: x.cols, ld: x.cols }
}

/// `sums[i, j]` = row i of `a` times row j of `b`; rows of `sums` are `width` long.
#[inline(always)]
fn products<S: Simd, A: Elem, B: Elem>(s: S, a: Mat<A>, b: Mat<B>, sums: &mut [f32], width: usize) {
    // The rows in tiles of nearly equal height.
    let tiles = a.rows.div_ceil(if S::WIDE { 6 } else { 1 });
    let tall = a.rows.div_ceil(tiles);
    let mut i = 0;
    while i < a.rows {
        let left = (a.rows - i).min(tall);
        // The first pass brings B from memory: ask for the rows of the next tile ahead of time.
        let ahead = if i == 0 { COLS * b.ld } else { 0 };
        for j in (0..b.rows).step_by(COLS) {
            let out = &mut sums[i * width + j..];
            match left {
                1 => tile::<S, A, B, 1>(s, a, b, [i, j], ahead, out, width),
                2 => tile::<S, A, B, 2>(s, a, b, [i, j], ahead, out, width),
                3 => tile::<S, A, B, 3>(s, a, b, [i, j], ahead, out, width),
                4 => tile::<S, A, B, 4>(s, a, b, [i, j], ahead, out, width),
                5 => tile::<S, A, B, 5>(s, a, b, [i, j], ahead, out, width),
                _ => tile::<S, A, B, 6>(s, a, b, [i, j], ahead, out, width),
            }
        }
        i += left;
    }
}

/// Rows `i..i + ROWS` of `a` times rows `j..j + COLS` of `b`. Rows past the end of `b` repeat its
/// last one: their results land in padding. Unless 0, `ahead` is how far behind each element of B
/// lies the one needed by the next tile.
#[inline(always)]
fn tile<S: Simd, A: Elem, B: Elem, const ROWS: usize>(
    s: S,
    a: Mat<A>,
    b: Mat<B>,
    [i, j]: [usize; 2],
    ahead: usize,
    out: &mut [f32],
    width: usize,
) {
    let a_rows: [&[A]; ROWS] = std::array::from_fn(|r| a.row(i + r, 0..a.cols));
    let b_rows: [&[B]; COLS] = std::array::from_fn(|c| b.row((j + c).min(b.rows - 1), 0..a.cols));
    let a_rows = a_rows.map(|x| x.as_ptr());
    let b_rows = b_rows.map(|x| x.as_ptr());
    let mut sums = [[s.splat(0.0); COLS]; ROWS];
    let (whole, tail) = (a.cols / LANES * LANES, a.cols % LANES);
    for k in (0..whole).step_by(LANES) {
        if ahead > 0 {
            for p in b_rows {
                prefetch(p.wrapping_add(ahead + k));
            }
        }
        // SAFETY: k + 16 is at most the length of every row.
        unsafe { step::<S, A, B, ROWS>(s, a_rows, b_rows, k, LANES, &mut sums) };
    }
    if tail > 0 {
        // SAFETY: whole + tail is the length of every row.
        unsafe { step::<S, A, B, ROWS>(s, a_rows, b_rows, whole, tail, &mut sums) };
    }
    for (r, sums) in sums.into_iter().enumerate() {
        out[r * width..r * width + COLS].copy_from_slice(&s.sum4(sums));
    }
}

/// Adds the products of elements `k..k + n`, at most 16, of every pair of rows; missing ones count
/// as zeros.
///
/// # Safety
/// All rows must be readable there.
#[inline(always)]
unsafe fn step<S: Simd, A: Elem, B: Elem, const ROWS: usize>(
    s: S,
    a_rows: [*const A; ROWS],
    b_rows: [*const B; COLS],
    k: usize,
    n: usize,
    sums: &mut [[S::V; COLS]; ROWS],
) {
    // Loops, not closures: see `Kernel`.
    let mut b = [s.splat(0.0); COLS];
    for (b, p) in b.iter_mut().zip(b_rows) {
        // SAFETY: the caller has elements `k..k + n` of every row of `b` readable, and n <= 16.
        *b = unsafe { s.load_some(p.add(k), n) };
    }
    for (sums, p) in sums.iter_mut().zip(a_rows) {
        // SAFETY: and those of every row of `a`.
        let a = unsafe { s.load_some(p.add(k), n) };
        for (sum, b) in sums.iter_mut().zip(b) {
            *sum = s.fma(a, b, *sum);
        }
    }
}

//! Products of bf16 by dot products of pairs of terms, in panels: for some terms, a few vectors of
//! columns of B are copied pair by pair, and all rows of A are multiplied with the copy. A is read
//! as it lies; only where it is transposed is it copied too, for its pairs lie apart.

use super::super::simd::{Kernel, LANES, Level, Simd, dispatch};
use super::transpose::{FEW, copy_transposed, few_rows, pair};
use super::{Buffer, Ends, Epilogue, Mat, MatMut, Product, Scratch, each_block, prefetch_row};
use crate::base::{Elem, bf16};
use std::ops::Range;

/// Rows and vectors of columns of a tile: with one of B they fill the 32 registers.
const ROWS: usize = 8;
const VECS: usize = 3;
/// Columns of a panel.
const COLUMNS: usize = VECS * LANES;
/// Terms copied at a time; the sums rest in f32 memory, which is exact.
const DEPTH: usize = 256;
/// Rows asked for ahead of their copying: parts of rows are too short for the processor to foresee.
const AHEAD: usize = 16;
/// A block of few rows, at most: its first rows of B come from memory unasked.
const FEW_COLUMNS: usize = 512;

/// C = A B^T, A B or A^T B, with an epilogue.
pub(super) fn run<C: Elem, E: Elem>(
    product: Product,
    a: Mat<bf16>,
    b: Mat<bf16>,
    c: MatMut<C>,
    epilogue: &Epilogue<E>,
) {
    let [m, n, depth] = product.sizes(&a, &b);
    // Sums and the terms of A at hand fit level 2. In A B^T a panel is turned, which takes time,
    // once for as many rows as there may be. Of A B and A^T B the depth may be the vocabulary or
    // all tokens: the terms of A at hand are used for many panels before the next are read.
    let (max, unit) = match product {
        Product::Nt if m <= FEW => ([m, FEW_COLUMNS], [m, LANES]),
        Product::Nt => ([512, COLUMNS], [ROWS, COLUMNS]),
        Product::Nn => ([256, 8 * COLUMNS], [ROWS, COLUMNS]),
        Product::Tn => ([256, 8 * COLUMNS], [LANES, COLUMNS]),
    };
    each_block([m, n, depth], c, epilogue, max, unit, |ends, rows, cols, scratch| {
        let block = Block { product, a, b, ends, rows, cols, depth, scratch };
        dispatch(Level::Avx512Bf16, block);
    });
}

/// One block of the output.
struct Block<'a, C, E> {
    product: Product,
    a: Mat<'a, bf16>,
    b: Mat<'a, bf16>,
    ends: Ends<'a, C, E>,
    rows: Range<usize>,
    cols: Range<usize>,
    depth: usize,
    scratch: &'a mut Scratch,
}

impl<C: Elem, E: Elem> Kernel for Block<'_, C, E> {
    const PAIRS: bool = true;
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Block { product, a, b, ends, rows, cols, depth, scratch } = self;
        let width = cols.len().next_multiple_of(LANES);
        let Scratch { a: a_copy, b: b_copy, sums } = scratch;
        let sums = sums.get(rows.len() * width);
        if product == Product::Nt && a.rows <= FEW {
            few_rows(s, a, b, &cols, sums, width);
            return ends.store(s, rows, &cols, sums, width);
        }
        sums.fill(0.0);
        let panel = b_copy.get(DEPTH / 2 * COLUMNS);
        for start in (0..depth).step_by(DEPTH) {
            let terms = start..(start + DEPTH).min(depth);
            let left = match product {
                Product::Tn => Left::copied(s, a, &rows, &terms, a_copy),
                _ => Left::as_it_lies(a, &rows, &terms),
            };
            for j in (0..cols.len()).step_by(COLUMNS) {
                let part = cols.start + j..(cols.start + j + COLUMNS).min(cols.end);
                let right = Right { b, turned: product == Product::Nt, cols: &part, terms: &terms };
                let sums = &mut sums[j..];
                match part.len().div_ceil(LANES) {
                    1 => add_panel::<S, 1>(s, &left, right, panel, sums, width),
                    2 => add_panel::<S, 2>(s, &left, right, panel, sums, width),
                    _ => add_panel::<S, 3>(s, &left, right, panel, sums, width),
                }
            }
        }
        ends.store(s, rows, &cols, sums, width);
    }
}

/// Pairs of some terms of rows of A: that of row i and pair t is at `start(i) + t * next_pair`, and
/// those of the rows of a tile are `next_row` apart.
struct Left<'a> {
    data: &'a [bf16],
    /// Rows.
    len: usize,
    /// Rows of the highest tile.
    tall: usize,
    /// Rows side by side, and elements from one such group to the next.
    group: [usize; 2],
    next_row: usize,
    next_pair: usize,
    /// Pairs of two terms.
    pairs: usize,
    /// True if a last term without a partner follows.
    odd: bool,
}

impl<'a> Left<'a> {
    /// In the matrix itself.
    #[inline(always)]
    fn as_it_lies(a: Mat<'a, bf16>, rows: &Range<usize>, terms: &Range<usize>) -> Left<'a> {
        let (len, n) = (rows.len(), terms.len());
        Left {
            data: &a.data[rows.start * a.ld + terms.start..],
            len,
            // Tiles of nearly equal height.
            tall: len.div_ceil(len.div_ceil(ROWS)),
            group: [1, a.ld],
            next_row: a.ld,
            next_pair: 2,
            pairs: n / 2,
            odd: n % 2 == 1,
        }
    }

    /// Copied from the transposed matrix, for sixteen rows at a time pair by pair. An odd term gets
    /// a partner of zero.
    #[inline(always)]
    fn copied<S: Simd>(
        s: S,
        a: Mat<bf16>,
        rows: &Range<usize>,
        terms: &Range<usize>,
        copy: &'a mut Buffer,
    ) -> Left<'a> {
        let copy = copy.get(rows.len().next_multiple_of(LANES) * DEPTH / 2);
        for (t, [first, second]) in two_rows(a, terms, rows).enumerate() {
            for i in (0..rows.len()).step_by(LANES) {
                let pairs = s.zip_pairs(from(first, i), from(second, i));
                s.put(&mut copy[i * DEPTH / 2 + t * LANES..][..LANES], pairs);
            }
        }
        Left {
            data: bytemuck::cast_slice(copy),
            len: rows.len(),
            tall: ROWS,
            group: [LANES, LANES * DEPTH],
            next_row: 2,
            next_pair: 2 * LANES,
            pairs: terms.len().div_ceil(2),
            odd: false,
        }
    }

    fn start(&self, i: usize) -> usize {
        i / self.group[0] * self.group[1] + i % self.group[0] * self.next_row
    }
}

/// Columns `cols` of rows `terms`, two rows at a time; the partner of an odd one is empty.
#[inline(always)]
fn two_rows<'a>(
    x: Mat<'a, bf16>,
    terms: &Range<usize>,
    cols: &Range<usize>,
) -> impl Iterator<Item = [&'a [bf16]; 2]> {
    let (end, cols) = (terms.end, cols.clone());
    terms.clone().step_by(2).map(move |t| {
        prefetch_row(x, t + AHEAD, &cols);
        prefetch_row(x, t + AHEAD + 1, &cols);
        let second = if t + 1 < end { x.row(t + 1, cols.clone()) } else { &[] };
        [x.row(t, cols.clone()), second]
    })
}

/// The rest of `x` from `at` on; empty if `at` is past the end.
#[inline(always)]
fn from(x: &[bf16], at: usize) -> &[bf16] {
    &x[at.min(x.len())..]
}

/// Copies `terms` of columns `cols` of `b`, at most `V` vectors: pair by pair, an odd one followed
/// by zeros.
#[inline(always)]
fn copy_zipped<S: Simd, const V: usize>(
    s: S,
    b: Mat<bf16>,
    cols: &Range<usize>,
    terms: &Range<usize>,
    copy: &mut [f32],
) {
    for ([first, second], to) in two_rows(b, terms, cols).zip(copy.chunks_exact_mut(V * LANES)) {
        for v in (0..V * LANES).step_by(LANES) {
            s.put(&mut to[v..v + LANES], s.zip_pairs(from(first, v), from(second, v)));
        }
    }
}

/// A panel of B: some terms of some columns.
#[derive(Clone, Copy)]
struct Right<'a> {
    b: Mat<'a, bf16>,
    /// True if the columns are rows of `b`.
    turned: bool,
    cols: &'a Range<usize>,
    terms: &'a Range<usize>,
}

/// Copies a panel of B, `V` vectors of columns, and adds its products with all rows of A to `sums`,
/// whose rows are `width` long.
#[inline(always)]
fn add_panel<S: Simd, const V: usize>(
    s: S,
    left: &Left,
    right: Right,
    panel: &mut [f32],
    sums: &mut [f32],
    width: usize,
) {
    let Right { b, turned, cols, terms } = right;
    if turned {
        copy_transposed::<S, V>(s, b, cols, terms, panel);
    } else {
        copy_zipped::<S, V>(s, b, cols, terms, panel);
    }
    for i in (0..left.len).step_by(left.tall.max(1)) {
        let sums = &mut sums[i * width..];
        match left.tall.min(left.len - i) {
            1 => tile::<S, 1, V>(s, left, i, panel, sums, width),
            2 => tile::<S, 2, V>(s, left, i, panel, sums, width),
            3 => tile::<S, 3, V>(s, left, i, panel, sums, width),
            4 => tile::<S, 4, V>(s, left, i, panel, sums, width),
            5 => tile::<S, 5, V>(s, left, i, panel, sums, width),
            6 => tile::<S, 6, V>(s, left, i, panel, sums, width),
            7 => tile::<S, 7, V>(s, left, i, panel, sums, width),
            _ => tile::<S, ROWS, V>(s, left, i, panel, sums, width),
        }
    }
}

/// Adds the products of rows `i..i + R` and a panel to the tile at the start of `sums`.
#[inline(always)]
fn tile<S: Simd, const R: usize, const V: usize>(
    s: S,
    left: &Left,
    i: usize,
    panel: &[f32],
    sums: &mut [f32],
    width: usize,
) {
    let n = left.pairs + usize::from(left.odd);
    let top = left.start(i);
    let last = top + (R - 1) * left.next_row + n.saturating_sub(1) * left.next_pair;
    assert!(n == 0 || last + usize::from(!left.odd) < left.data.len());
    assert!(panel.len() >= n * V * LANES && sums.len() >= (R - 1) * width + V * LANES);
    let (top, panel, sums) = (left.data[top..].as_ptr(), panel.as_ptr(), sums.as_mut_ptr());
    let mut acc = [[s.splat(0.0); V]; R];
    for (r, row) in acc.iter_mut().enumerate() {
        for (v, sum) in row.iter_mut().enumerate() {
            // SAFETY: inside `sums`, as asserted.
            *sum = unsafe { s.load(sums.add(r * width + v * LANES)) };
        }
    }
    for t in 0..left.pairs {
        // SAFETY: pairs up to the last whole one are inside A and the panel, as asserted.
        unsafe { step::<S, R, V, 2>(s, top, left, t, panel, &mut acc) };
    }
    if left.odd {
        // SAFETY: the last pair is inside A and the panel, as asserted, but for its second term,
        // which is not read.
        unsafe { step::<S, R, V, 1>(s, top, left, left.pairs, panel, &mut acc) };
    }
    for (r, row) in acc.into_iter().enumerate() {
        for (v, sum) in row.into_iter().enumerate() {
            // SAFETY: inside `sums`, as asserted.
            unsafe { s.store(sums.add(r * width + v * LANES), sum) };
        }
    }
}

/// Adds the products of pair `t`, of which `TERMS` are there.
///
/// # Safety
/// `top` must be readable at pair `t` of `R` rows, and `panel` at pair `t`.
#[inline(always)]
unsafe fn step<S: Simd, const R: usize, const V: usize, const TERMS: usize>(
    s: S,
    top: *const bf16,
    left: &Left,
    t: usize,
    panel: *const f32,
    acc: &mut [[S::V; V]; R],
) {
    let mut b = [s.splat(0.0); V];
    for (v, x) in b.iter_mut().enumerate() {
        // SAFETY: the caller has pair `t` of the panel readable, which is `V` vectors of 16 f32.
        *x = unsafe { s.load(panel.add((t * V + v) * LANES)) };
    }
    for (r, row) in acc.iter_mut().enumerate() {
        // SAFETY: the caller has pair `t` of `R` rows readable at `top`, of which `TERMS`, 1 or 2,
        // elements are there: `pair` reads no more.
        let a = unsafe { pair(top.add(r * left.next_row + t * left.next_pair), 0, TERMS) };
        let a = s.splat(a);
        for (v, sum) in row.iter_mut().enumerate() {
            *sum = s.dot_pairs(a, b[v], *sum);
        }
    }
}

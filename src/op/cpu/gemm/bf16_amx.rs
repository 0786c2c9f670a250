//! Products of bf16 matrices on tile registers. One operand, `left`, is read as it lies where its
//! rows hold the terms; the other, `right`, is copied block by block with pairs of consecutive
//! terms side by side. In A B^T the left one is B, a weight, so that product is computed as
//! B A^T and turned when it is stored.
#![cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux")),
    allow(dead_code, unused_variables)
)]

use super::super::amx::{ROWS, Tiles};
use super::super::simd::{Kernel, LANES, Level, Simd, dispatch, prefetch_far};
use super::{Ends, Epilogue, Mat, MatMut, Product, Scratch, each_block};
use crate::base::{Elem, bf16};
use std::ops::Range;

/// Terms in a tile.
const STEP: usize = 2 * LANES;
/// Terms summed between two visits of an output tile; the sums rest in f32 memory, which is exact.
const DEPTH: usize = 1024;
/// Rows and columns of four output tiles, which are computed together.
const SIDE: usize = 2 * ROWS;
/// f32 in a tile.
const TILE: usize = ROWS * LANES;

/// [`run`] on the tile registers. Panics if the processor has none.
pub(super) fn on_processor<C: Elem, E: Elem>(
    level: Level,
    product: Product,
    a: Mat<bf16>,
    b: Mat<bf16>,
    c: MatMut<C>,
    epilogue: &Epilogue<E>,
) {
    assert!(Level::detected() == Level::Amx, "no tile registers");
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        use super::super::amx::Amx;
        // SAFETY: they are available, and a block is all that its thread computes at a time.
        run(level, || unsafe { Amx::new() }, product, a, b, c, epilogue);
    }
}

/// The product of `a` and `b`, by the tiles that `tiles` gives to each task.
pub(super) fn run<T: Tiles, C: Elem, E: Elem>(
    level: Level,
    tiles: impl Fn() -> T + Sync + Send,
    product: Product,
    a: Mat<bf16>,
    b: Mat<bf16>,
    c: MatMut<C>,
    epilogue: &Epilogue<E>,
) {
    let [m, n, depth] = product.sizes(&a, &b);
    // Many columns share the copy of what becomes the right operand of A B^T. Few rows stay
    // together, so that B is read once.
    let max = match product {
        Product::Nt if m <= SIDE => [m, 256],
        Product::Nt => [128, 1024],
        _ => [128, 768],
    };
    let unit = [SIDE.min(m), SIDE];
    each_block([m, n, depth], c, epilogue, max, unit, |ends, rows, cols, scratch| {
        let tiles = tiles();
        dispatch(level, Block { tiles, product, a, b, depth, ends, rows, cols, scratch });
    });
}

/// One block of the output.
struct Block<'a, T, C, E> {
    tiles: T,
    product: Product,
    a: Mat<'a, bf16>,
    b: Mat<'a, bf16>,
    depth: usize,
    ends: Ends<'a, C, E>,
    rows: Range<usize>,
    cols: Range<usize>,
    scratch: &'a mut Scratch,
}

impl<T: Tiles, C: Elem, E: Elem> Kernel for Block<'_, T, C, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Block { mut tiles, product, a, b, depth, ends, rows, cols, scratch } = self;
        let Scratch { a: left_copy, b: right_copy, sums } = scratch;
        let turned = product == Product::Nt;
        // Rows and columns of what is computed.
        let (left, right) = if turned { (b, a) } else { (a, b) };
        let (down, along) = if turned { (&cols, &rows) } else { (&rows, &cols) };
        let left = Left { x: left, across: product == Product::Tn };
        let width = along.len().next_multiple_of(SIDE);
        let sums = sums.get(down.len().next_multiple_of(SIDE) * width);
        sums.fill(0.0);
        for start in (0..depth).step_by(DEPTH) {
            let terms = start..(start + DEPTH).min(depth);
            let steps = terms.len().div_ceil(STEP);
            let right_copy = right_copy.get(width / LANES * steps * TILE);
            if turned {
                pack_rows(s, right, along, &terms, right_copy);
            } else {
                pack_columns(s, right, along, &terms, right_copy);
            }
            for i in (0..down.len()).step_by(SIDE) {
                let rows = down.start + i..(down.start + i + SIDE).min(down.end);
                let left = left.tiles(s, rows, &terms, left_copy.get(SIDE * DEPTH / 2));
                let sums = &mut sums[i * width..][..SIDE * width];
                add_products(&mut tiles, left, right_copy, sums, width, along.len());
            }
        }
        if !turned {
            ends.store(s, rows, &cols, sums, width);
            return;
        }
        let features = cols.len().next_multiple_of(LANES);
        let turned = left_copy.get(LANES * features);
        for j in (0..rows.len()).step_by(LANES) {
            turn(s, &sums[j..], width, turned, features);
            let rows = rows.start + j..(rows.start + j + LANES).min(rows.end);
            ends.store(s, rows, &cols, turned, features);
        }
    }
}

/// The left operand: its output rows are its rows, or its columns if `across`.
#[derive(Clone, Copy)]
struct Left<'a> {
    x: Mat<'a, bf16>,
    across: bool,
}

/// Two tiles of the left operand, one above the other: where their first terms are, and bytes
/// between rows. The next step's lie 64 bytes on.
#[derive(Clone, Copy)]
struct LeftTiles {
    tiles: [(*const u8, usize); 2],
    steps: usize,
    /// Rows that the next output rows need, to be asked for; null if they are copies.
    ahead: *const bf16,
    ld: usize,
}

impl Left<'_> {
    /// The tiles of at most 32 output rows: as they lie if they are whole, or else in `copy`,
    /// filled up with zeros.
    #[inline(always)]
    fn tiles<S: Simd>(
        self,
        s: S,
        rows: Range<usize>,
        terms: &Range<usize>,
        copy: &mut [f32],
    ) -> LeftTiles {
        let steps = terms.len().div_ceil(STEP);
        let x = self.x;
        if !self.across && rows.len() == SIDE && terms.len().is_multiple_of(STEP) {
            // Each row is within `x`: `row` checks it.
            let first = |i: usize| x.row(i, terms.clone()).as_ptr().cast::<u8>();
            let tiles = [rows.start, rows.start + ROWS].map(|i| (first(i), 2 * x.ld));
            x.row(rows.end - 1, terms.clone());
            let ahead = x.data.as_ptr().wrapping_add(rows.end * x.ld + terms.start);
            return LeftTiles { tiles, steps, ahead, ld: x.ld };
        }
        if self.across {
            copy_across(s, x, &rows, terms, copy);
        } else {
            copy.fill(0.0);
            for (i, dst) in rows.zip(copy.chunks_exact_mut(DEPTH / 2)) {
                let dst: &mut [bf16] = bytemuck::cast_slice_mut(dst);
                dst[..terms.len()].copy_from_slice(x.row(i, terms.clone()));
            }
        }
        let tiles = [&copy[..], &copy[ROWS * DEPTH / 2..]].map(|x| (x.as_ptr().cast(), 2 * DEPTH));
        LeftTiles { tiles, steps, ahead: std::ptr::null(), ld: 0 }
    }
}

/// Copies columns `cols`, at most 32, of rows `terms` as rows of `copy`, `DEPTH` bf16 apart.
#[inline(always)]
fn copy_across<S: Simd>(
    s: S,
    x: Mat<bf16>,
    cols: &Range<usize>,
    terms: &Range<usize>,
    copy: &mut [f32],
) {
    let mut tile = [s.splat(0.0); LANES];
    for (step, start) in terms.clone().step_by(STEP).enumerate() {
        for half in 0..2 {
            let first = (cols.start + half * LANES).min(cols.end);
            let cols = first..(first + LANES).min(cols.end);
            for (p, v) in tile.iter_mut().enumerate() {
                *v = pair(s, x, start + 2 * p, terms.end, &cols);
            }
            for (r, v) in s.transpose(tile).into_iter().enumerate() {
                s.put(&mut copy[(half * ROWS + r) * DEPTH / 2 + step * LANES..], v);
            }
        }
    }
}

/// Rows `t` and `t + 1`, where they are before `end`, pair by pair.
#[inline(always)]
fn pair<S: Simd>(s: S, x: Mat<bf16>, t: usize, end: usize, cols: &Range<usize>) -> S::V {
    let first = if t < end { x.row(t, cols.clone()) } else { &[] };
    let second = if t + 1 < end { x.row(t + 1, cols.clone()) } else { &[] };
    s.zip_pairs(first, second)
}

/// Packs rows `rows` of `x`, which become columns of the right operand: for each 16 of them, for
/// each step, a tile.
#[inline(always)]
fn pack_rows<S: Simd>(
    s: S,
    x: Mat<bf16>,
    rows: &Range<usize>,
    terms: &Range<usize>,
    packed: &mut [f32],
) {
    let steps = terms.len().div_ceil(STEP);
    let mut tile = [s.splat(0.0); LANES];
    for (t, dst) in packed.chunks_exact_mut(TILE).enumerate() {
        let (first, start) = (rows.start + t / steps * LANES, terms.start + t % steps * STEP);
        let terms = start..(start + STEP).min(terms.end);
        for (r, v) in tile.iter_mut().enumerate() {
            let row = if first + r < rows.end { x.row(first + r, terms.clone()) } else { &[] };
            // SAFETY: all of `row`, at most 32.
            *v = unsafe { s.load_pairs(row.as_ptr(), row.len()) };
        }
        for (dst, v) in dst.chunks_exact_mut(LANES).zip(s.transpose(tile)) {
            s.put(dst, v);
        }
    }
}

/// Packs columns `cols` of `x`: for each 16 of them, for each step, a tile.
#[inline(always)]
fn pack_columns<S: Simd>(
    s: S,
    x: Mat<bf16>,
    cols: &Range<usize>,
    terms: &Range<usize>,
    packed: &mut [f32],
) {
    let steps = terms.len().div_ceil(STEP);
    for (t, dst) in packed.chunks_exact_mut(TILE).enumerate() {
        let first = (cols.start + t / steps * LANES).min(cols.end);
        let cols = first..(first + LANES).min(cols.end);
        let start = terms.start + t % steps * STEP;
        for (p, dst) in dst.chunks_exact_mut(LANES).enumerate() {
            s.put(dst, pair(s, x, start + 2 * p, terms.end, &cols));
        }
    }
}

/// Adds 32 rows of the left operand times the `cols` packed columns of the right one to `sums`.
#[inline(always)]
fn add_products<T: Tiles>(
    tiles: &mut T,
    left: LeftTiles,
    packed: &[f32],
    sums: &mut [f32],
    width: usize,
    cols: usize,
) {
    let panel = left.steps * TILE;
    assert!(sums.len() >= SIDE * width && packed.len() >= width / LANES * panel);
    for j in (0..cols).step_by(SIDE) {
        let left = if j == 0 { left } else { LeftTiles { ahead: std::ptr::null(), ..left } };
        let right = packed[j / LANES * panel..].as_ptr().cast();
        let sums = sums[j..].as_mut_ptr();
        // SAFETY: the two tiles of the left operand have 32 rows of all terms, or are copies of
        // them; two panels are packed, and two times two tiles of sums are inside, as asserted.
        unsafe {
            if cols - j <= LANES {
                add_column(tiles, left, right, sums, width);
            } else {
                add_square(tiles, left, right, sums, width);
            }
        }
    }
}

/// Adds the products of two tiles of the left operand and two panels of the right one.
///
/// # Safety
/// Two panels must be readable, four tiles of sums writable. `left` comes from [`Left::tiles`],
/// whose matrix or copy is still there.
#[inline(always)]
unsafe fn add_square<T: Tiles>(
    tiles: &mut T,
    left: LeftTiles,
    right: *const u8,
    sums: *mut f32,
    width: usize,
) {
    let [(upper, upper_stride), (lower, lower_stride)] = left.tiles;
    let corner = |i: usize, j: usize| sums.wrapping_add(i * ROWS * width + j * LANES).cast::<u8>();
    // SAFETY: the corners are the four tiles of sums that the caller has writable, rows `width`
    // apart. Each step reads one tile of each panel, of which the caller has two readable, and 64
    // bytes of each row of the left operand, which `LeftTiles` has for all of its steps.
    unsafe {
        tiles.load::<0>(corner(0, 0), 4 * width);
        tiles.load::<1>(corner(0, 1), 4 * width);
        tiles.load::<2>(corner(1, 0), 4 * width);
        tiles.load::<3>(corner(1, 1), 4 * width);
        for step in 0..left.steps {
            let near = right.add(step * 4 * TILE);
            left.prefetch(step);
            tiles.load::<4>(upper.add(step * 2 * STEP), upper_stride);
            tiles.load::<6>(near, 4 * LANES);
            tiles.dot::<0, 4, 6>();
            tiles.load::<7>(near.add(left.steps * 4 * TILE), 4 * LANES);
            tiles.dot::<1, 4, 7>();
            tiles.load::<5>(lower.add(step * 2 * STEP), lower_stride);
            tiles.dot::<2, 5, 6>();
            tiles.dot::<3, 5, 7>();
        }
        tiles.store::<0>(corner(0, 0), 4 * width);
        tiles.store::<1>(corner(0, 1), 4 * width);
        tiles.store::<2>(corner(1, 0), 4 * width);
        tiles.store::<3>(corner(1, 1), 4 * width);
    }
}

/// Adds the products of two tiles of the left operand and one panel of the right one.
///
/// # Safety
/// A panel must be readable, two tiles of sums writable. `left` comes from [`Left::tiles`], whose
/// matrix or copy is still there.
#[inline(always)]
unsafe fn add_column<T: Tiles>(
    tiles: &mut T,
    left: LeftTiles,
    right: *const u8,
    sums: *mut f32,
    width: usize,
) {
    let [(upper, upper_stride), (lower, lower_stride)] = left.tiles;
    let below = sums.wrapping_add(ROWS * width);
    // SAFETY: the two tiles of sums are writable by the contract of this function, rows `width`
    // apart. Each step reads one tile of the panel, which the caller has readable, and 64 bytes of
    // each row of the left operand, which `LeftTiles` has for all of its steps.
    unsafe {
        tiles.load::<0>(sums.cast(), 4 * width);
        tiles.load::<2>(below.cast(), 4 * width);
        for step in 0..left.steps {
            left.prefetch(step);
            tiles.load::<6>(right.add(step * 4 * TILE), 4 * LANES);
            tiles.load::<4>(upper.add(step * 2 * STEP), upper_stride);
            tiles.dot::<0, 4, 6>();
            tiles.load::<5>(lower.add(step * 2 * STEP), lower_stride);
            tiles.dot::<2, 5, 6>();
        }
        tiles.store::<0>(sums.cast(), 4 * width);
        tiles.store::<2>(below.cast(), 4 * width);
    }
}

impl LeftTiles {
    /// Asks for what the next output rows need in this step.
    #[inline(always)]
    fn prefetch(&self, step: usize) {
        if !self.ahead.is_null() {
            for r in 0..SIDE {
                prefetch_far(self.ahead.wrapping_add(r * self.ld + step * STEP));
            }
        }
    }
}

/// The first 16 columns of `x`, whose rows are `width` long, as the rows of `out`, each `len` long,
/// a multiple of 16 and at most the rows of `x`.
#[inline(always)]
fn turn<S: Simd>(s: S, x: &[f32], width: usize, out: &mut [f32], len: usize) {
    let mut tile = [s.splat(0.0); LANES];
    for i in (0..len).step_by(LANES) {
        for (r, v) in tile.iter_mut().enumerate() {
            *v = s.take(&x[(i + r) * width..][..LANES]);
        }
        for (r, v) in s.transpose(tile).into_iter().enumerate() {
            s.put(&mut out[r * len + i..], v);
        }
    }
}

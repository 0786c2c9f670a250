//! Matrix products on the CPU: row-major matrices with a leading dimension, f32 or bf16 storage,
//! f32 arithmetic.
//!
//! Every output element is computed by one fixed chain of operations on its own row and column, so
//! its bits depend neither on the other rows, nor on blocks, tiles or threads. Blocks and threads
//! divide the output only. Where both operands are bf16 the chain is the level's own: terms in
//! pairs at `Avx512Bf16`, in tiles of 32 at `Amx`.

mod bf16_amx;
mod bf16_dot;
mod dot;
mod outer;
mod transpose;

use super::simd::{LANES, Level, Simd, level, prefetch};
use crate::base::{DType, Elem, bf16};
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

/// A matrix to read: element (i, j) is `data[i * ld + j]`.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a, E> {
    data: &'a [E],
    rows: usize,
    cols: usize,
    ld: usize,
}

impl<'a, E: Elem> Mat<'a, E> {
    /// A `rows` x `cols` view with `ld` elements between row starts. Panics if it leaves `data`.
    pub fn new(data: &'a [E], rows: usize, cols: usize, ld: usize) -> Mat<'a, E> {
        check(data.len(), rows, cols, ld);
        Mat { data, rows, cols, ld }
    }

    /// A view of a dense `rows` x `cols` matrix.
    pub fn dense(data: &'a [E], rows: usize, cols: usize) -> Mat<'a, E> {
        Mat::new(data, rows, cols, cols)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns `cols` of row `i`.
    #[inline(always)]
    pub fn row(&self, i: usize, cols: Range<usize>) -> &'a [E] {
        &self.data[i * self.ld + cols.start..i * self.ld + cols.end]
    }
}

/// A matrix to write: element (i, j) is `data[i * ld + j]`.
#[derive(Debug)]
pub struct MatMut<'a, E> {
    data: &'a mut [E],
    rows: usize,
    cols: usize,
    ld: usize,
}

impl<'a, E: Elem> MatMut<'a, E> {
    /// A `rows` x `cols` view with `ld` elements between row starts. Panics if it leaves `data`.
    pub fn new(data: &'a mut [E], rows: usize, cols: usize, ld: usize) -> MatMut<'a, E> {
        check(data.len(), rows, cols, ld);
        MatMut { data, rows, cols, ld }
    }

    /// A view of a dense `rows` x `cols` matrix.
    pub fn dense(data: &'a mut [E], rows: usize, cols: usize) -> MatMut<'a, E> {
        MatMut::new(data, rows, cols, cols)
    }
}

fn check(len: usize, rows: usize, cols: usize, ld: usize) {
    let need = if rows == 0 || cols == 0 { 0 } else { (rows - 1) * ld + cols };
    assert!(ld >= cols && len >= need, "{rows} x {cols} matrix, ld {ld}, in {len} elements");
}

/// The operations on a sum before it is stored: `alpha * sum`, then `+ bias[column]`, `+ residual`,
/// `+ old value` (if `accumulate`). They run in this order in f32; the result is rounded once to
/// the output type.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a, E> {
    /// One value for each column of the output.
    pub bias: Option<&'a [E]>,
    /// A matrix of the output's shape, and its leading dimension.
    pub residual: Option<(&'a [E], usize)>,
    /// The factor of the sum.
    pub alpha: f32,
    /// True if the output's old value is added.
    pub accumulate: bool,
}

impl<E> Default for Epilogue<'_, E> {
    fn default() -> Self {
        Epilogue { bias: None, residual: None, alpha: 1.0, accumulate: false }
    }
}

/// C = A B^T with an epilogue: `C[m, n] = sum_k A[m, k] * B[n, k]`.
///
/// Sixteen running sums, lane l over k = l mod 16 ascending, are added by a fixed tree: the order
/// of [`dot`](super::vec::dot), but for two bf16 operands where the level multiplies pairs or
/// tiles. Panics if the shapes disagree.
pub fn gemm_nt<A: Elem, B: Elem, C: Elem, E: Elem>(
    a: Mat<A>,
    b: Mat<B>,
    c: MatMut<C>,
    epilogue: &Epilogue<E>,
) {
    multiply(level(), Product::Nt, a, b, c, epilogue);
}

/// C = A B: `C[m, k] = sum_n A[m, n] * B[n, k]`, n ascending from 0; with `accumulate` the sum is
/// added to the old C. Panics if the shapes disagree.
pub fn gemm_nn<A: Elem, B: Elem, C: Elem>(a: Mat<A>, b: Mat<B>, c: MatMut<C>, accumulate: bool) {
    let epilogue = Epilogue::<f32> { accumulate, ..Epilogue::default() };
    multiply(level(), Product::Nn, a, b, c, &epilogue);
}

/// C = A^T B: `C[n, k] = sum_m A[m, n] * B[m, k]`, m ascending from 0; with `accumulate` the sum
/// is added to the old C. Panics if the shapes disagree.
pub fn gemm_tn<A: Elem, B: Elem, C: Elem>(a: Mat<A>, b: Mat<B>, c: MatMut<C>, accumulate: bool) {
    let epilogue = Epilogue::<f32> { accumulate, ..Epilogue::default() };
    multiply(level(), Product::Tn, a, b, c, &epilogue);
}

/// Which product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Product {
    /// A B^T.
    Nt,
    /// A B.
    Nn,
    /// A^T B.
    Tn,
}

impl Product {
    /// Rows and columns of the output, and the terms of each sum. Panics if the operands disagree.
    fn sizes<A, B>(self, a: &Mat<A>, b: &Mat<B>) -> [usize; 3] {
        let (m, depth) = if self == Product::Tn { (a.cols, a.rows) } else { (a.rows, a.cols) };
        let (n, terms) = if self == Product::Nt { (b.rows, b.cols) } else { (b.cols, b.rows) };
        assert!(depth == terms, "gemm: shapes disagree");
        [m, n, depth]
    }
}

/// A product at a given level, or at the best one below it that this processor has.
fn multiply<A: Elem, B: Elem, C: Elem, E: Elem>(
    level: Level,
    product: Product,
    a: Mat<A>,
    b: Mat<B>,
    c: MatMut<C>,
    epilogue: &Epilogue<E>,
) {
    let both_bf16 = matches!((A::DTYPE, B::DTYPE), (DType::Bf16, DType::Bf16));
    match level.min(Level::detected()) {
        Level::Amx if both_bf16 => {
            bf16_amx::on_processor(level, product, bf16s(a), bf16s(b), c, epilogue);
        }
        Level::Avx512Bf16 if both_bf16 => bf16_dot::run(product, bf16s(a), bf16s(b), c, epilogue),
        _ => match product {
            Product::Nt => dot::run(level, a, b, c, epilogue),
            Product::Nn => outer::run::<A, B, C, E, false>(level, a, b, c, epilogue),
            Product::Tn => outer::run::<A, B, C, E, true>(level, a, b, c, epilogue),
        },
    }
}

/// A bf16 matrix under its own name. Panics on any other.
#[inline(always)]
fn bf16s<E: Elem>(x: Mat<E>) -> Mat<bf16> {
    Mat { data: bytemuck::cast_slice(x.data), rows: x.rows, cols: x.cols, ld: x.ld }
}

/// The output as the tasks see it: each writes its own block.
#[derive(Clone, Copy)]
struct Output<'a, C> {
    data: *mut C,
    ld: usize,
    marker: PhantomData<&'a mut [C]>,
}

// SAFETY: tasks write disjoint blocks of the matrix, which outlives them.
unsafe impl<C: Send> Sync for Output<'_, C> {}

impl<'a, C: Elem> Output<'a, C> {
    /// Columns `cols` of row `i`.
    ///
    /// # Safety
    /// They must lie in the matrix, and no one else may hold them meanwhile.
    #[inline(always)]
    unsafe fn row(self, i: usize, cols: &Range<usize>) -> &'a mut [C] {
        // SAFETY: the caller gives columns of a row of the matrix, which `data` and `ld` are of and
        // which is borrowed while this exists; nobody else holds them.
        unsafe {
            std::slice::from_raw_parts_mut(self.data.add(i * self.ld + cols.start), cols.len())
        }
    }
}

/// Where sums go.
#[derive(Clone, Copy)]
struct Ends<'a, C, E> {
    output: Output<'a, C>,
    epilogue: &'a Epilogue<'a, E>,
    residual: Option<Mat<'a, E>>,
}

impl<C: Elem, E: Elem> Ends<'_, C, E> {
    /// Finishes a block of sums, whose rows are `width` long.
    #[inline(always)]
    fn store<S: Simd>(
        self,
        s: S,
        rows: Range<usize>,
        cols: &Range<usize>,
        sums: &[f32],
        width: usize,
    ) {
        for (i, sums) in rows.zip(sums.chunks_exact(width)) {
            // SAFETY: blocks are disjoint and inside the matrix.
            let c = unsafe { self.output.row(i, cols) };
            let end = RowEnd {
                bias: self.epilogue.bias.map(|x| &x[cols.clone()]),
                residual: self.residual.map(|x| x.row(i, cols.clone())),
                alpha: self.epilogue.alpha,
                accumulate: self.epilogue.accumulate,
            };
            finish(s, c, sums, &end);
        }
    }
}

/// Runs `task` on every block of the `m` x `n` output `c` of `depth` terms, at most `max` rows and
/// columns, multiples of `unit`: with where its sums go and a thread's scratch. Panics if `c` or
/// the epilogue is not of that shape.
fn each_block<C: Elem, E: Elem>(
    [m, n, depth]: [usize; 3],
    c: MatMut<C>,
    epilogue: &Epilogue<E>,
    max: [usize; 2],
    unit: [usize; 2],
    task: impl Fn(Ends<C, E>, Range<usize>, Range<usize>, &mut Scratch) + Sync + Send,
) {
    assert!((c.rows, c.cols) == (m, n), "gemm: shapes disagree");
    assert!(epilogue.bias.is_none_or(|x| x.len() >= n), "gemm: bias too short");
    if m == 0 || n == 0 {
        return;
    }
    let residual = epilogue.residual.map(|(x, ld)| Mat::new(x, m, n, ld));
    let output = Output { data: c.data.as_mut_ptr(), ld: c.ld, marker: PhantomData };
    Blocks::new(m, n, max, unit).for_each(m * n * depth, |rows, cols| {
        let ends = Ends { output, epilogue, residual };
        with_scratch(|scratch| task(ends, rows, cols, scratch));
    });
}

/// One row's share of an epilogue.
struct RowEnd<'a, E> {
    bias: Option<&'a [E]>,
    residual: Option<&'a [E]>,
    alpha: f32,
    accumulate: bool,
}

/// Stores the sums of (a part of) one row.
#[inline(always)]
fn finish<S: Simd, C: Elem, E: Elem>(s: S, c: &mut [C], sums: &[f32], end: &RowEnd<E>) {
    let alpha = s.splat(end.alpha);
    for j in (0..c.len()).step_by(LANES) {
        let mut v = s.mul(alpha, s.take(&sums[j..]));
        if let Some(bias) = end.bias {
            v = s.add(v, s.take(&bias[j..]));
        }
        if let Some(residual) = end.residual {
            v = s.add(v, s.take(&residual[j..]));
        }
        if end.accumulate {
            v = s.add(v, s.take(&c[j..]));
        }
        s.put(&mut c[j..], v);
    }
}

/// A cache line of f32.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// Asks for columns `cols` of row `i`, which need not exist.
#[inline(always)]
fn prefetch_row<E: Elem>(x: Mat<E>, i: usize, cols: &Range<usize>) {
    let row = x.data.as_ptr().wrapping_add(i * x.ld);
    for j in cols.clone().step_by(64 / size_of::<E>()) {
        prefetch(row.wrapping_add(j));
    }
}

/// A growing buffer of f32, aligned to a cache line. Its contents are whatever was left there.
#[derive(Default)]
struct Buffer(Vec<Line>);

impl Buffer {
    fn get(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(LANES);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0.0; LANES]));
        }
        &mut bytemuck::cast_slice_mut(&mut self.0)[..len]
    }
}

/// A thread's room for copies of operands and for sums.
#[derive(Default)]
struct Scratch {
    a: Buffer,
    b: Buffer,
    sums: Buffer,
}

/// Calls `f` with this thread's scratch.
fn with_scratch(f: impl FnOnce(&mut Scratch)) {
    thread_local!(static SCRATCH: RefCell<Scratch> = RefCell::default());
    SCRATCH.with(|s| f(&mut s.borrow_mut()));
}

/// The division of the output into blocks, one task each.
struct Blocks {
    rows: usize,
    cols: usize,
    row_block: usize,
    col_block: usize,
}

impl Blocks {
    /// Blocks of nearly equal size, at most `max` rows and columns, multiples of `unit`; smaller
    /// while there are fewer than four a thread.
    fn new(rows: usize, cols: usize, mut max: [usize; 2], unit: [usize; 2]) -> Blocks {
        let even = |total: usize, max: usize, unit: usize| {
            total.div_ceil(total.div_ceil(max).max(1)).next_multiple_of(unit)
        };
        loop {
            let row_block = even(rows, max[0], unit[0]);
            let col_block = even(cols, max[1], unit[1]);
            let blocks = Blocks { rows, cols, row_block, col_block };
            let side = usize::from(col_block >= row_block);
            let least = 4 * unit[side];
            if blocks.count() >= 4 * crate::device::cpu::threads()
                || [row_block, col_block][side] <= least
            {
                return blocks;
            }
            max[side] = ([row_block, col_block][side] / 2).max(least);
        }
    }

    fn count(&self) -> usize {
        self.rows.div_ceil(self.row_block) * self.cols.div_ceil(self.col_block)
    }

    /// Rows and columns of block `t`. Neighbours share their columns.
    fn block(&self, t: usize) -> (Range<usize>, Range<usize>) {
        let down = self.rows.div_ceil(self.row_block);
        let (i, j) = (t % down * self.row_block, t / down * self.col_block);
        (i..(i + self.row_block).min(self.rows), j..(j + self.col_block).min(self.cols))
    }

    /// Runs `f` on every block, on all threads if `work` (multiply-adds) is worth waking them.
    fn for_each(&self, work: usize, f: impl Fn(Range<usize>, Range<usize>) + Sync + Send) {
        let task = |t| {
            let (rows, cols) = self.block(t);
            f(rows, cols);
        };
        if work < 1 << 17 {
            (0..self.count()).for_each(task);
        } else {
            crate::device::cpu::parallel_for(self.count(), task);
        }
    }
}

#[cfg(test)]
mod tests;

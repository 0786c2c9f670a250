//! Matrix products on CUDA devices (`cuda/tile/gemm.cuh`): which kernel and tile takes which
//! operands. Every element of the result is one f32 sum over K in order, so the choice of tile
//! changes no bit.

use crate::base::{DType, Error, Result};
use crate::device::Stream;
use crate::device::cuda::constants::gemm::{FMA_THREADS, FMA_TILE, GEMM_PAD};
use crate::device::cuda::constants::kernel::WARP;
use crate::device::cuda::constants::linear;
use crate::device::cuda::params::GemmParams;
use crate::op::act::Kind;
use crate::op::attr::kernel_number;

/// The layouts of a product's two operands, all row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// a `[m, k]` by the transpose of b `[n, k]`.
    Nt,
    /// a `[m, k]` by b `[k, n]`.
    Nn,
    /// The transpose of a `[k, m]` by b `[k, n]`.
    Tn,
}

impl Layout {
    /// The product of this layout that is `[m, n]`, sums of `k` products each.
    pub fn of(self, m: usize, n: usize, k: usize) -> Product {
        Product { layout: self, m, n, k }
    }
}

/// The layout and the sizes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// How the operands lie.
    pub layout: Layout,
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Products that are summed to an element.
    pub k: usize,
}

/// An operand on the device.
#[derive(Clone, Copy, Debug)]
pub struct Mat {
    /// Address of the first element.
    pub ptr: u64,
    /// f32 or bf16.
    pub dtype: DType,
    /// Elements from one row to the next.
    pub ld: usize,
    /// How its columns lie.
    pub columns: Columns,
}

/// How the columns of a matrix lie: side by side, or as a gather of column blocks left them,
/// `width` columns of all rows and then the next, `stride` elements from block to block. `width` is
/// a multiple of 8.
#[derive(Clone, Copy, Debug, Default)]
pub struct Columns {
    /// Columns of a block; 0: all are side by side.
    pub width: usize,
    /// Elements from one block to the next.
    pub stride: usize,
}

impl Mat {
    /// A matrix with its columns side by side.
    pub fn new(ptr: u64, dtype: DType, ld: usize) -> Mat {
        Mat { ptr, dtype, ld, columns: Columns::default() }
    }
}

/// The result, and what is added to the product: `scale * a b + bias + residual`.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    /// Address of the first element.
    pub ptr: u64,
    /// f32 or bf16.
    pub dtype: DType,
    /// Elements from one row to the next.
    pub ld: usize,
    /// Address of a bias `[n]` in the dtype of b; 0 for none.
    pub bias: u64,
    /// Address of a residual laid out and typed like the result, which it may be; 0 for none.
    pub residual: u64,
    /// Add to what is there.
    pub accumulate: bool,
    /// Multiplies the product.
    pub scale: f32,
    /// Applied to the product with its bias, rounded; excludes `residual` and `accumulate`. For
    /// `Nt` and operands all in one dtype.
    pub activation: Option<Kind>,
    /// How its columns lie.
    pub columns: Columns,
}

impl Out {
    /// A plain result, set.
    pub fn new(ptr: u64, dtype: DType, ld: usize) -> Out {
        let columns = Columns::default();
        let (accumulate, activation) = (false, None);
        Out { ptr, dtype, ld, bias: 0, residual: 0, accumulate, scale: 1.0, activation, columns }
    }
}

/// A tile of the tensor-core kernels, as `cuda/op/linear.cu` names and declares them.
struct Tile {
    name: &'static str,
    rows: usize,
    columns: usize,
    k: usize,
    threads: u32,
    stages: usize,
}

const LARGE: Tile = Tile::new("large", linear::LARGE);
const MEDIUM: Tile = Tile::new("medium", linear::MEDIUM);
const UNALIGNED: Tile = Tile::new("unaligned", linear::MEDIUM);
const SKINNY: Tile = Tile::new("skinny", linear::SKINNY);

impl Tile {
    const fn new(name: &'static str, numbers: [usize; 6]) -> Tile {
        let [rows, columns, k, warp_rows, warp_columns, stages] = numbers;
        let threads = (rows / warp_rows * (columns / warp_columns) * WARP) as u32;
        Tile { name, rows, columns, k, threads, stages }
    }

    /// Dynamic shared memory in bytes: a ring of the padded tiles of `GemmTile`.
    fn shared(&self, layout: Layout) -> usize {
        let area = |rows: usize, columns: usize| rows * (columns + GEMM_PAD);
        let a = match layout {
            Layout::Tn => area(self.k, self.rows),
            Layout::Nt | Layout::Nn => area(self.rows, self.k),
        };
        let b = match layout {
            Layout::Nt => area(self.columns, self.k),
            Layout::Nn | Layout::Tn => area(self.k, self.columns),
        };
        2 * self.stages * (a + b)
    }
}

/// Multiplies `a` and `b` into `out`.
///
/// # Safety
/// The addresses are memory as `Op::cuda_forward` has it, as long as the sizes say.
pub unsafe fn gemm(stream: &Stream, product: Product, a: Mat, b: Mat, out: Out) -> Result<()> {
    let Product { layout, m, n, k } = product;
    let params = GemmParams {
        a: a.ptr,
        b: b.ptr,
        c: out.ptr,
        bias: out.bias,
        residual: out.residual,
        m: m as u32,
        n: n as u32,
        k: k as u32,
        lda: a.ld as u32,
        ldb: b.ld as u32,
        ldc: out.ld as u32,
        b_block: b.columns.width as u32,
        c_block: out.columns.width as u32,
        b_stride: b.columns.stride as u64,
        c_stride: out.columns.stride as u64,
        scale: out.scale,
        accumulate: u32::from(out.accumulate),
        activation: out.activation.map_or(0, kernel_number),
        pad: 0,
    };
    let whole = |x: Columns| x.width.is_multiple_of(8);
    let added = out.accumulate || out.residual != 0;
    if a.columns.width != 0 || !whole(b.columns) || !whole(out.columns) {
        return Err(Error::internal("matrix product: blocks of columns that do not fit"));
    }
    if out.activation.is_some() && (layout != Layout::Nt || added || a.dtype != out.dtype) {
        return Err(Error::internal("matrix product: an activation that does not fit"));
    }
    let act = if out.activation.is_some() { "_act" } else { "" };
    // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
    unsafe { launch(stream, layout, act, [a.dtype, b.dtype, out.dtype], &params) }
}

/// # Safety
/// The addresses are memory as `Op::cuda_forward` has it, as long as the sizes say.
unsafe fn launch(
    stream: &Stream,
    layout: Layout,
    act: &str,
    dtypes: [DType; 3],
    params: &GemmParams,
) -> Result<()> {
    let name = match layout {
        Layout::Nt => "nt",
        Layout::Nn => "nn",
        Layout::Tn => "tn",
    };
    let (m, n) = (params.m as usize, params.n as usize);
    if dtypes[0] != DType::Bf16 || dtypes[1] != DType::Bf16 {
        let kernel = format!("gemm_fma_{name}{act}_{}_{}_{}", dtypes[0], dtypes[1], dtypes[2]);
        let grid = [n.div_ceil(FMA_TILE) as u32, m.div_ceil(FMA_TILE) as u32, 1];
        // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
        return unsafe { stream.launch(&kernel, grid, FMA_THREADS as u32, 0, params) };
    }
    let tile = choose(stream, layout, params);
    let kernel = format!("gemm_{name}_{}{act}_{}", tile.name, dtypes[2]);
    let grid = [n.div_ceil(tile.columns) as u32, m.div_ceil(tile.rows) as u32, 1];
    // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
    unsafe { stream.launch(&kernel, grid, tile.threads, tile.shared(layout), params) }
}

/// The tile: few rows take the narrow one, many the large one, if its tiles fill the card. Rows
/// that do not start at multiples of 16 bytes cannot be copied asynchronously.
fn choose(stream: &Stream, layout: Layout, p: &GemmParams) -> &'static Tile {
    let aligned = |ptr: u64, ld: u32| ptr.is_multiple_of(16) && ld.is_multiple_of(8);
    // The chunks of 16 bytes along a row must lie wholly inside or outside the matrix.
    let whole = |x: u32| x.is_multiple_of(8);
    let chunks = match layout {
        Layout::Nt => whole(p.k),
        Layout::Nn => whole(p.k) && whole(p.n),
        Layout::Tn => whole(p.m) && whole(p.n),
    };
    let blocks = whole(p.b_block) && p.b_stride.is_multiple_of(8);
    if !(aligned(p.a, p.lda) && aligned(p.b, p.ldb) && chunks && blocks) {
        return &UNALIGNED;
    }
    if p.m as usize <= SKINNY.rows {
        return &SKINNY;
    }
    let tiles = (p.m as usize).div_ceil(LARGE.rows) * (p.n as usize).div_ceil(LARGE.columns);
    if tiles >= stream.card().multiprocessors as usize { &LARGE } else { &MEDIUM }
}

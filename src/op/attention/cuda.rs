//! Attention's launches on a CUDA device: kernel, number of blocks, bytes of shared memory. The
//! kernels are in cuda/tile/attend*.cuh. Numbers of tiles follow from shapes alone. Only the device
//! knows where a sequence begins, so there are as many blocks as there could be tiles.

use super::Attention;
use crate::base::{DType, Error, Result};
use crate::device::Stream;
use crate::device::cuda::constants::attend::{
    ATTEND_ADD, ATTEND_ALIBI, ATTEND_ALIGNED, ATTEND_D32, ATTEND_D64, ATTEND_D96, ATTEND_D128,
    ATTEND_D256, ATTEND_THREADS, BLOCK_KEYS, FEW_ROWS,
};
use crate::device::cuda::constants::attend_f32::{LEFT, RIGHT, STRIDE_P};
use crate::device::cuda::constants::kernel::WARP;
use crate::device::cuda::params::{AttendParams, MAX_SLOPES};
use crate::op::{Arg, CudaBackward, CudaForward};

/// Threads that share no rows.
const THREADS: u32 = ATTEND_THREADS as u32;
/// Bytes of a tile of probabilities in f32.
const PROBABILITIES: usize = LEFT * STRIDE_P * 4;

/// The tiles of a head that is `width` wide in shared memory, as the kernels of that width have
/// them.
#[derive(Clone, Copy)]
struct Shape {
    width: usize,
    /// Query rows of a forward tile.
    rows: usize,
    /// In the pass over keys: query rows per step, columns per block, warps that share keys.
    step: usize,
    columns: usize,
    key_share: usize,
    /// In the pass over queries: stages of keys and values, warps that share rows.
    stages: usize,
    row_share: usize,
}

const SHAPES: [Shape; 5] = [
    Shape::new(ATTEND_D32),
    Shape::new(ATTEND_D64),
    Shape::new(ATTEND_D96),
    Shape::new(ATTEND_D128),
    Shape::new(ATTEND_D256),
];

/// Most dimensions of a head.
const LARGEST: usize = SHAPES[SHAPES.len() - 1].width;

impl Shape {
    const fn new(numbers: [usize; 7]) -> Shape {
        let [width, rows, step, columns, key_share, stages, row_share] = numbers;
        Shape { width, rows, step, columns, key_share, stages, row_share }
    }

    /// The narrowest that holds a head.
    fn of(op: &Attention) -> Result<Shape> {
        SHAPES.into_iter().find(|s| s.width >= op.head_dim).ok_or_else(|| {
            Error::user(format!(
                "attention: heads of {} dimensions: CUDA kernels take {LARGEST} at most; run this \
                 model on the CPU",
                op.head_dim
            ))
        })
    }

    /// Bytes of a row in bf16 and in f32: spaced apart unless the kernel swaps pieces within it.
    fn row(self, dtype: DType) -> usize {
        match (dtype, self.width) {
            (DType::Bf16, 64 | 128 | 256) => 2 * self.width,
            (DType::Bf16, _) => 2 * (self.width + 8),
            _ => 4 * (self.width + 4),
        }
    }

    /// Shared memory of a forward tile of `rows`; scores go between warps where some share rows.
    fn forward(self, dtype: DType, rows: usize) -> usize {
        match dtype {
            DType::Bf16 => {
                let between = if rows < 64 { rows * BLOCK_KEYS * 4 } else { 0 };
                (rows + 4 * BLOCK_KEYS) * self.row(dtype) + between
            }
            _ => (LEFT + 2 * RIGHT) * self.row(dtype) + PROBABILITIES,
        }
    }

    /// Shared memory of the pass over keys.
    fn keys(self, dtype: DType) -> usize {
        let state = 16;
        match dtype {
            DType::Bf16 => {
                let between = if self.key_share > 1 { 4 * 2 * self.step / 16 * 512 } else { 0 };
                (2 * BLOCK_KEYS + 4 * self.step) * self.row(dtype) + 2 * self.step * state + between
            }
            _ => 2 * (LEFT + RIGHT) * self.row(dtype) + 2 * PROBABILITIES + RIGHT * state,
        }
    }

    /// Shared memory of the pass over queries.
    fn queries(self, dtype: DType) -> usize {
        match dtype {
            DType::Bf16 => {
                let between = if self.row_share > 1 { 4 * BLOCK_KEYS / 16 * 512 } else { 0 };
                2 * (1 + self.stages) * BLOCK_KEYS * self.row(dtype) + between
            }
            _ => 2 * (LEFT + RIGHT) * self.row(dtype) + PROBABILITIES,
        }
    }
}

/// The parameters of `op` without what is not known of both directions.
pub(in crate::op) fn params(
    op: &Attention,
    stream: &Stream,
    qkv: Arg,
    cu_seqlens: Arg,
) -> Result<AttendParams> {
    let mut slopes = [0.0; MAX_SLOPES];
    if let Some(from) = &op.alibi {
        let Some(to) = slopes.get_mut(..from.len()) else {
            return Err(Error::user(format!(
                "attention: ALiBi for {} heads: CUDA kernels take {MAX_SLOPES} at most; run this \
                 model on the CPU",
                op.heads
            )));
        };
        to.copy_from_slice(from);
    }
    Ok(AttendParams {
        qkv: qkv.ptr,
        cu_seqlens: cu_seqlens.ptr,
        fault: stream.fault(),
        tokens: qkv.rows() as u32,
        sequences: cu_seqlens.desc.shape.numel() as u32 - 1,
        heads: op.heads as u32,
        kv_heads: op.kv_heads as u32,
        head_dim: op.head_dim as u32,
        reach: op.reach().min(1 << 30) as u32,
        flags: if op.alibi.is_some() { ATTEND_ALIBI } else { 0 },
        scale: op.scale,
        softcap: op.softcap,
        slopes,
        ..bytemuck::Zeroable::zeroed()
    })
}

impl AttendParams {
    /// Says whether rows of all tensors may be moved 16 bytes at a time.
    fn align(&mut self, op: &Attention, dtype: DType) {
        let tensors = [self.qkv, self.kcache, self.vcache, self.o, self.d_o, self.dqkv];
        let whole = (op.head_dim * dtype.size()).is_multiple_of(16);
        if whole && tensors.iter().all(|t| t.is_multiple_of(16)) {
            self.flags |= ATTEND_ALIGNED;
        }
    }

    /// Most tiles of `rows` that the sequences can have, when each token makes `group` rows.
    fn tiles(&self, group: usize, rows: usize) -> u32 {
        (self.tokens as usize * group).div_ceil(rows) as u32 + self.sequences
    }
}

fn name(dtype: DType) -> &'static str {
    if dtype == DType::Bf16 { "bf16" } else { "f32" }
}

/// Appends the new keys and values to the cache.
///
/// # Safety
/// The addresses are memory as `Op::cuda_forward` has it, as long as the sizes say.
pub(in crate::op) unsafe fn append(
    op: &Attention,
    stream: &Stream,
    dtype: DType,
    mut params: AttendParams,
) -> Result<()> {
    params.align(op, dtype);
    let kernel = format!("cached_attention_append_{}", name(dtype));
    // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
    unsafe { stream.launch(&kernel, [params.tokens, 1, 1], THREADS, 0, &params) }
}

/// Attends, to the cache or to the batch itself.
///
/// # Safety
/// The addresses are memory as `Op::cuda_forward` has it, as long as the sizes say.
pub(in crate::op) unsafe fn attend(
    op: &Attention,
    stream: &Stream,
    dtype: DType,
    mut params: AttendParams,
) -> Result<()> {
    if params.tokens == 0 {
        return Ok(());
    }
    params.align(op, dtype);
    let (shape, group) = (Shape::of(op)?, op.group());
    let few = params.tokens as usize * group < 32 * params.sequences as usize;
    let (kernel, rows) = match (params.kcache != 0, dtype) {
        (false, DType::Bf16) => ("attention_forward", shape.rows),
        (true, DType::Bf16) if few => ("cached_attention_few", FEW_ROWS),
        (true, DType::Bf16) => ("cached_attention_many", shape.rows),
        (false, _) => ("attention_forward", LEFT),
        (true, _) => ("cached_attention_forward", LEFT),
    };
    let kernel = format!("{kernel}_{}_d{}", name(dtype), shape.width);
    let grid = [params.tiles(group, rows), op.kv_heads as u32, 1];
    // SAFETY: the caller vouches for as much memory at the addresses as the sizes say.
    unsafe { stream.launch(&kernel, grid, THREADS, shape.forward(dtype, rows), &params) }
}

/// `Op::cuda_forward` of packed attention.
///
/// # Safety
/// As for `Op::cuda_forward`.
pub(super) unsafe fn forward(op: &Attention, io: &CudaForward<'_>) -> Result<()> {
    let qkv = io.input(0);
    let base = params(op, io.stream, qkv, io.input(1))?;
    let params = AttendParams { o: io.outs[0].ptr, lse: io.outs[1].ptr, ..base };
    // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
    unsafe { attend(op, io.stream, qkv.desc.dtype, params) }
}

/// `Op::cuda_backward` of packed attention; the workspace has room for a delta per token and head.
///
/// # Safety
/// As for `Op::cuda_forward`.
pub(super) unsafe fn backward(op: &Attention, io: &CudaBackward<'_>) -> Result<()> {
    let qkv = io.input(0);
    let Some(grad) = &io.dins[0] else { return Ok(()) };
    if qkv.rows() == 0 {
        return Ok(());
    }
    let (dtype, base) = (qkv.desc.dtype, params(op, io.stream, qkv, io.input(1))?);
    let mut params = AttendParams {
        o: io.output(0).ptr,
        lse: io.output(1).ptr,
        d_o: io.dout(0).ptr,
        delta: io.scratch,
        dqkv: grad.arg.ptr,
        flags: base.flags | if grad.acc { ATTEND_ADD } else { 0 },
        ..base
    };
    params.align(op, dtype);
    let (shape, group, heads) = (Shape::of(op)?, op.group(), op.kv_heads as u32);
    let launch = |what: &str, grid: [u32; 3], share: usize, shared: usize| {
        let kernel = format!("attention_backward_{what}_{}_d{}", name(dtype), shape.width);
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { io.stream.launch(&kernel, grid, THREADS * share as u32, shared, &params) }
    };
    let rows = (qkv.rows() * op.heads) as u32;
    let delta = format!("attention_delta_{}", name(dtype));
    // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
    unsafe {
        io.stream.launch(
            &delta,
            [rows.div_ceil(THREADS / WARP as u32), 1, 1],
            THREADS,
            0,
            &params,
        )?
    };
    let (keys, queries) = (shape.keys(dtype), shape.queries(dtype));
    if dtype == DType::Bf16 {
        let slices = (shape.width / shape.columns) as u32;
        launch("keys", [params.tiles(1, BLOCK_KEYS), heads, slices], shape.key_share, keys)?;
        launch("queries", [params.tiles(group, BLOCK_KEYS), heads, 1], shape.row_share, queries)
    } else {
        launch("keys", [params.tiles(1, LEFT), heads, 1], 1, keys)?;
        launch("queries", [params.tiles(group, LEFT), heads, 1], 1, queries)
    }
}

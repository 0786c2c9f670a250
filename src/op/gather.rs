//! Rows picked by index.
//!
//! x `[rows, width]` (or `[rows]`), index i32 `[n]` -> y `[n, width]` (or `[n]`). `x` may be f32
//! whatever the model's dtype. Backward adds the rows back in index order.

use crate::base::{DType, Elem, Result, bf16};
use crate::device::cpu::parallel_for;
use crate::device::cuda::params::GatherParams;
use crate::op::conformance::{Case, Input};
use crate::op::cpu::scatter::{check_range, scatter_add};
use crate::op::cpu::shared::{SharedMut, row_chunks};
use crate::op::cuda::scatter::{Entries, scatter_add as cuda_scatter_add, scatter_scratch};
use crate::op::cuda::vectors::{THREADS, aligned, row_grid, vec_len};
use crate::op::def::OpDef;
use crate::op::{
    Backward, CudaBackward, CudaForward, Forward, Op, Place, Plan, Run, by_dtype, required,
    shape_error,
};
use crate::tensor::{Desc, Tensor};
use std::sync::Arc;

/// The operator.
#[derive(Clone, Copy, Debug)]
pub struct Gather;

/// Registry entry.
pub const DEF: OpDef =
    OpDef { name: "gather", about: "rows picked by index: y[i] = x[index[i]]", cases };

/// The rows of `x` named by `index`, in that order; an index may repeat.
pub fn gather(r: &mut dyn Run, x: Tensor, index: Tensor) -> Result<Tensor> {
    Ok(r.run(Arc::new(Gather), &[Some(x), Some(index)])?[0])
}

impl Op for Gather {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let (x, index) = (required(self, ins, 0)?, required(self, ins, 1)?);
        let n = index.shape.numel();
        let dims = match *x.shape.dims() {
            [_] => vec![n],
            [_, width] if width > 0 => vec![n, width],
            _ => vec![],
        };
        if dims.is_empty() || !x.dtype.is_float() || index.dtype != DType::I32 {
            return Err(shape_error(self, ins, "x [rows, width] or [rows], index i32 [n]"));
        }
        Ok(Plan {
            outs: vec![Place::New(Desc::new(&dims, x.dtype))],
            differentiable: 0b1,
            saves_ins: 0b10,
            cheap: true,
            cuda_scratch_backward: scatter_scratch(n),
            ..Plan::default()
        })
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        match io.input(0).desc.dtype {
            DType::Bf16 => forward::<bf16>(io),
            _ => forward::<f32>(io),
        }
    }

    fn cpu_backward(&self, io: &mut Backward<'_>) -> Result<()> {
        match io.dout(0).desc.dtype {
            DType::Bf16 => backward::<bf16>(io),
            _ => backward::<f32>(io),
        }
        Ok(())
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        let (x, index, y) = (io.input(0), io.input(1), io.outs[0].ptr);
        let (count, width, n) = (index.desc.shape.numel(), width(&x.desc), vec_len(x.desc.dtype));
        let params = GatherParams {
            x: x.ptr,
            index: index.ptr,
            y,
            fault: io.stream.fault(),
            count: count as u32,
            rows: (x.desc.shape.numel() / width) as u32,
            width: width as u32,
            flags: aligned(&[x.ptr, y], &[width], n),
        };
        let kernel = by_dtype(x.desc.dtype, "gather_f32", "gather_bf16");
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { io.stream.launch(kernel, row_grid(count, width, n)?, THREADS, 0, &params) }
    }

    unsafe fn cuda_backward(&self, io: &CudaBackward<'_>) -> Result<()> {
        let (index, dy) = (io.input(1), io.dout(0));
        let Some(dx) = &io.dins[0] else { return Ok(()) };
        let width = width(&dy.desc);
        let entries = Entries { index, offset: 0, from: dy, width, scale: 1.0 };
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { cuda_scatter_add(io.stream, entries, dx, io.scratch) }
    }
}

/// Elements per row of `[rows, width]` or `[rows]`.
fn width(desc: &Desc) -> usize {
    desc.shape.dims().get(1).copied().unwrap_or(1)
}

fn forward<E: Elem>(io: &mut Forward<'_>) -> Result<()> {
    let (x, index) = (io.input(0), io.input(1).i32());
    let width = width(&x.desc);
    let x = x.get::<E>();
    check_range(DEF.name, "index", index, 0, x.len() / width)?;
    let y = SharedMut::new(io.outs[0].get::<E>());
    let chunks = row_chunks(index.len(), width);
    parallel_for(chunks.len(), |c| {
        for i in chunks[c].clone() {
            // SAFETY: row i belongs to this task alone.
            let y = unsafe { y.slice(i * width, width) };
            y.copy_from_slice(&x[index[i] as usize * width..][..width]);
        }
    });
    Ok(())
}

fn backward<E: Elem>(io: &mut Backward<'_>) {
    let (index, dy) = (io.input(1).i32(), io.dout(0));
    let (width, dy) = (width(&dy.desc), dy.get::<E>());
    let Some(dx) = &mut io.dins[0] else { return };
    scatter_add(index, 0, dy, width, 1.0, dx.view.get::<E>(), dx.acc);
}

fn cases() -> Vec<Case> {
    let mut cases = vec![];
    let mut case = |input: Input, rows: usize, width: usize, n: usize| {
        let index: Vec<i32> = (0..n).map(|i| ((i * i + 5 * i + 1) % rows) as i32).collect();
        cases.push(Case::new(Gather, vec![Some(input), Some(Input::ints(&index))], move |ins| {
            let row = |i: &f64| ins[0][*i as usize * width..][..width].to_vec();
            vec![ins[1].iter().flat_map(row).collect()]
        }));
    };
    case(Input::act(&[17, 33], 1.0), 17, 33, 31);
    case(Input::act(&[130, 16], 1.0), 130, 16, 65);
    case(Input::act(&[1, 40], 1.0), 1, 40, 3);
    case(Input::f32(&[65, 1], 1.0), 65, 1, 130);
    case(Input::f32(&[31], 1.0), 31, 1, 17);
    cases
}

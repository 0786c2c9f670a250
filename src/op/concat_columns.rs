//! Column blocks side by side: what ranks each made of all rows, as one matrix.
//!
//! x f32 `[blocks, rows, each]` -> y f32 `[rows, width]`, y\[i, b each + j\] = x\[b, i, j\]. The
//! last columns, of which there are blocks each - width, are left out: padding of a size that the
//! blocks do not divide. No gradient.

use crate::base::{DType, Result};
use crate::device::cpu::parallel_for;
use crate::device::cuda::params::ConcatColumnsParams;
use crate::op::conformance::{Case, Input};
use crate::op::cpu::shared::{SharedMut, row_chunks};
use crate::op::cuda::vectors::{THREADS, aligned, row_grid, vec_len};
use crate::op::def::OpDef;
use crate::op::{CudaForward, Forward, Op, Place, Plan, Run, required, shape_error};
use crate::tensor::{Desc, Tensor};
use std::sync::Arc;

/// The operator.
#[derive(Clone, Copy, Debug)]
pub struct ConcatColumns {
    /// Columns of the output.
    pub width: usize,
}

/// Registry entry.
pub const DEF: OpDef = OpDef {
    name: "concat_columns",
    about: "column blocks side by side: y[i, b each + j] = x[b, i, j]",
    cases,
};

/// The first `op.width` columns of the blocks `x` f32 `[blocks, rows, each]`. Returns f32 `[rows,
/// width]`.
pub fn concat_columns(r: &mut dyn Run, op: ConcatColumns, x: Tensor) -> Result<Tensor> {
    Ok(r.run(Arc::new(op), &[Some(x)])?[0])
}

impl Op for ConcatColumns {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let x = required(self, ins, 0)?;
        match *x.shape.dims() {
            [blocks, rows, each] if x.dtype == DType::F32 && blocks * each >= self.width => {
                let y = Desc::new(&[rows, self.width], DType::F32);
                Ok(Plan { outs: vec![Place::New(y)], cheap: true, ..Plan::default() })
            }
            _ => {
                let expected = format!("x f32 [blocks, rows, each] of {} columns", self.width);
                Err(shape_error(self, ins, &expected))
            }
        }
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        let (x, width) = (io.input(0), self.width);
        let (rows, each) = (x.dims()[1], x.dims()[2]);
        let x = x.f32();
        let y = SharedMut::new(io.outs[0].f32());
        let chunks = row_chunks(rows, width);
        parallel_for(chunks.len(), |c| {
            for i in chunks[c].clone() {
                // SAFETY: row i belongs to this task alone.
                let y = unsafe { y.slice(i * width, width) };
                for (b, y) in y.chunks_mut(each.max(1)).enumerate() {
                    y.copy_from_slice(&x[(b * rows + i) * each..][..y.len()]);
                }
            }
        });
        Ok(())
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        let (x, y) = (io.input(0), io.outs[0].ptr);
        let (rows, each, n) = (x.dims()[1], x.dims()[2], vec_len(DType::F32));
        let params = ConcatColumnsParams {
            x: x.ptr,
            y,
            rows: rows as u32,
            width: self.width as u32,
            each: each as u32,
            flags: aligned(&[x.ptr, y], &[each, self.width], n),
        };
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe {
            io.stream.launch("concat_columns", row_grid(rows, self.width, n)?, THREADS, 0, &params)
        }
    }
}

fn cases() -> Vec<Case> {
    let case = |[blocks, rows, each]: [usize; 3], width: usize| {
        let ins = vec![Some(Input::f32(&[blocks, rows, each], 1.0))];
        let case = Case::new(ConcatColumns { width }, ins, move |ins| {
            let at = |k: usize| (k / width, k % width);
            let from = |(i, column)| ins[0][(column / each * rows + i) * each + column % each];
            vec![(0..rows * width).map(|k| from(at(k))).collect()]
        });
        Case { dtypes: &[DType::F32], ..case }
    };
    vec![
        case([1, 3, 5], 5),
        case([3, 7, 11], 31),
        case([2, 130, 36], 72),
        case([4, 9, 16], 52),
        case([5, 1, 8], 33),
        case([8, 2, 2], 9),
    ]
}

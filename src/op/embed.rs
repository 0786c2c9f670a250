//! Token embedding with optional learned positions.
//!
//! ids i32 `[tokens]`, positions i32 `[tokens]`, tok `[vocab, hidden]`, pos `[positions, hidden]`
//! or none -> x `[tokens, hidden]` = scale tok\[id\] + pos\[position + offset\], in f32 rounded
//! once, with the scale rounded to the dtype of the weights first, as the reference implementations
//! do.
//!
//! With a window the tables are one rank's runs of rows, and x is f32: that rank's part, to be
//! summed over the ranks. Each row is one rank's, so the sum is what the whole tables give before
//! rounding, bit for bit. Then an id that is no rank's is not found out, and there is no gradient.

use crate::base::{DType, Elem, Result, bf16};
use crate::device::cpu::parallel_for;
use crate::device::cuda::params::EmbedParams;
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
pub struct Embed {
    /// Added to every id, for a table of positions looked up alone; else 0.
    pub id_offset: usize,
    /// Added to every position before the table is read (OPT reserves the first two rows).
    pub position_offset: usize,
    /// Multiplies token embeddings, not positions (Gemma: the square root of hidden); 1 = none.
    pub scale: f32,
    /// The rows that the tables hold; `None`: all of them.
    pub window: Option<Window>,
}

/// The runs of rows that one rank has of the tables.
#[derive(Clone, Copy, Debug, Default)]
pub struct Window {
    /// The first row of tok.
    pub first_id: usize,
    /// The first row of pos.
    pub first_position: usize,
}

/// The value that a rank adds for a row it does not hold. Only -0.0 changes no bit of a sum, not
/// even of -0.
const NOTHING: f32 = -0.0;

impl Embed {
    /// The scale in the dtype of the weights.
    fn scale<E: Elem>(&self) -> f32 {
        E::from_f32(self.scale).to_f32()
    }

    fn scale_in(&self, dtype: DType) -> f32 {
        match dtype {
            DType::Bf16 => self.scale::<bf16>(),
            _ => self.scale::<f32>(),
        }
    }
}

/// Registry entry.
pub const DEF: OpDef = OpDef {
    name: "embed",
    about: "token embedding plus optional learned positions: \
        scale tok[id] + pos[position + offset]",
    cases,
};

/// Looks up the rows of `ids`, and of `positions` in `pos` if there is one. Returns
/// `[tokens, hidden]`.
pub fn embed(
    r: &mut dyn Run,
    op: Embed,
    ids: Tensor,
    positions: Tensor,
    tok: Tensor,
    pos: Option<Tensor>,
) -> Result<Tensor> {
    Ok(r.run(Arc::new(op), &[Some(ids), Some(positions), Some(tok), pos])?[0])
}

impl Op for Embed {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let (ids, at) = (required(self, ins, 0)?, required(self, ins, 1)?);
        let tok = required(self, ins, 2)?;
        let pos = ins.get(3).copied().flatten();
        let (tokens, d) = (ids.shape.numel(), tok.shape.last());
        let matrix = |w: &Desc| {
            w.dtype == tok.dtype && w.shape.dims().len() == 2 && w.shape.last() == d && d > 0
        };
        if ids.dtype != DType::I32
            || at != ids
            || !tok.dtype.is_float()
            || !matrix(&tok)
            || !pos.as_ref().is_none_or(matrix)
        {
            return Err(shape_error(
                self,
                ins,
                "ids and positions i32 [tokens], tok [vocab, hidden], pos [positions, hidden]",
            ));
        }
        let whole = self.window.is_none();
        let dtype = if whole { tok.dtype } else { DType::F32 };
        Ok(Plan {
            outs: vec![Place::New(Desc::new(&[tokens, d], dtype))],
            differentiable: u64::from(whole),
            saves_ins: 0b11,
            bf16_grads: 0b1100,
            cheap: true,
            cuda_scratch_backward: scatter_scratch(tokens),
            flops: if pos.is_some() { (tokens * d) as u64 } else { 0 },
            ..Plan::default()
        })
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        match (io.input(2).desc.dtype, self.window) {
            (DType::Bf16, None) => forward::<bf16, bf16>(self, io),
            (DType::Bf16, Some(_)) => forward::<bf16, f32>(self, io),
            _ => forward::<f32, f32>(self, io),
        }
    }

    fn cpu_backward(&self, io: &mut Backward<'_>) -> Result<()> {
        match io.dout(0).desc.dtype {
            DType::Bf16 => backward::<bf16>(self, io),
            _ => backward::<f32>(self, io),
        }
        Ok(())
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        let (ids, tok, pos, x) = (io.input(0), io.input(2), io.ins[3], io.outs[0].ptr);
        let (tokens, hidden) = (ids.desc.shape.numel(), tok.desc.shape.last());
        let n = vec_len(tok.desc.dtype);
        let first = self.window.unwrap_or_default();
        let params = EmbedParams {
            ids: ids.ptr,
            at: io.ptr(1),
            tok: tok.ptr,
            pos: io.ptr(3),
            x,
            fault: io.stream.fault(),
            tokens: tokens as u32,
            hidden: hidden as u32,
            vocab: tok.desc.shape.rows() as u32,
            positions: pos.map_or(0, |p| p.desc.shape.rows() as u32),
            id_offset: self.id_offset as u32,
            position_offset: self.position_offset as u32,
            first_id: first.first_id as u32,
            first_position: first.first_position as u32,
            scale: self.scale_in(tok.desc.dtype),
            flags: aligned(&[tok.ptr, io.ptr(3), x], &[hidden], n),
        };
        let kernel = match self.window {
            None => by_dtype(tok.desc.dtype, "embed_f32", "embed_bf16"),
            Some(_) => by_dtype(tok.desc.dtype, "embed_part_f32", "embed_part_bf16"),
        };
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { io.stream.launch(kernel, row_grid(tokens, hidden, n)?, THREADS, 0, &params) }
    }

    unsafe fn cuda_backward(&self, io: &CudaBackward<'_>) -> Result<()> {
        let (ids, at, dx) = (io.input(0), io.input(1), io.dout(0));
        let (hidden, scale) = (dx.desc.shape.last(), self.scale_in(dx.desc.dtype));
        for (i, index, offset, scale) in
            [(2, ids, self.id_offset, scale), (3, at, self.position_offset, 1.0)]
        {
            if let Some(grad) = io.dins.get(i).and_then(Option::as_ref) {
                let entries = Entries { index, offset, from: dx, width: hidden, scale };
                // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
                unsafe { cuda_scatter_add(io.stream, entries, grad, io.scratch)? };
            }
        }
        Ok(())
    }
}

/// The row of a table of `rows` rows, the first of them number `first`, that `index` names; `None`
/// if it is outside.
fn row(index: i32, offset: usize, first: usize, rows: usize) -> Option<usize> {
    let row = usize::try_from(index).ok()? + offset;
    row.checked_sub(first).filter(|row| *row < rows)
}

fn forward<E: Elem, X: Elem>(op: &Embed, io: &mut Forward<'_>) -> Result<()> {
    let (ids, at, tok) = (io.input(0).i32(), io.input(1).i32(), io.input(2));
    let (vocab, d) = (tok.dims()[0], tok.dims()[1]);
    let tok = tok.get::<E>();
    let pos = io.ins[3].map_or(&[][..], |p| p.get::<E>());
    let positions = pos.len() / d;
    if op.window.is_none() {
        check_range(DEF.name, "id", ids, op.id_offset, vocab)?;
        if io.ins[3].is_some() {
            check_range(DEF.name, "position", at, op.position_offset, positions)?;
        }
    }
    let first = op.window.unwrap_or_default();
    let scale = op.scale::<E>();
    let x = SharedMut::new(io.outs[0].get::<X>());
    let chunks = row_chunks(ids.len(), d);
    parallel_for(chunks.len(), |c| {
        for t in chunks[c].clone() {
            // SAFETY: row t belongs to this task alone.
            let x = unsafe { x.slice(t * d, d) };
            let tok = row(ids[t], op.id_offset, first.first_id, vocab).map(|r| &tok[r * d..][..d]);
            let pos = row(at[t], op.position_offset, first.first_position, positions)
                .map(|r| &pos[r * d..][..d]);
            match (tok, pos) {
                (Some(tok), Some(pos)) => {
                    for ((x, tok), pos) in x.iter_mut().zip(tok).zip(pos) {
                        *x = X::from_f32(scale * tok.to_f32() + pos.to_f32());
                    }
                }
                (Some(tok), None) => {
                    x.iter_mut().zip(tok).for_each(|(x, v)| *x = X::from_f32(scale * v.to_f32()));
                }
                (None, Some(pos)) => {
                    x.iter_mut().zip(pos).for_each(|(x, v)| *x = X::from_f32(v.to_f32()));
                }
                (None, None) => x.fill(X::from_f32(NOTHING)),
            }
        }
    });
    Ok(())
}

fn backward<E: Elem>(op: &Embed, io: &mut Backward<'_>) {
    let (ids, at, dx) = (io.input(0).i32(), io.input(1).i32(), io.dout(0));
    let (d, dx) = (dx.desc.shape.last(), dx.get::<E>());
    for (i, index, offset, scale) in
        [(2, ids, op.id_offset, op.scale::<E>()), (3, at, op.position_offset, 1.0)]
    {
        if let Some(grad) = io.dins.get_mut(i).and_then(Option::as_mut) {
            if grad.view.desc.dtype == DType::F32 {
                scatter_add(index, offset, dx, d, scale, grad.view.f32(), grad.acc);
            } else {
                scatter_add(index, offset, dx, d, scale, grad.view.get::<E>(), grad.acc);
            }
        }
    }
}

fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for (tokens, d, vocab, offset, learned, scale) in [
        (1, 17, 5, 2, true, 1.0),
        (33, 8, 7, 0, true, 1.0),
        (130, 16, 40, 0, false, 1.0),
        (31, 40, 3, 2, true, 1.0),
        (29, 24, 9, 0, false, 24f32.sqrt()),
        (18, 11, 6, 1, true, 0.4),
    ] {
        // Without positions of its own, as a table of positions itself.
        let id_offset = if learned { 0 } else { 2 };
        let ids: Vec<i32> = (0..tokens).map(|t| (t * t + 3 * t) as i32 % vocab).collect();
        let at: Vec<i32> = (0..tokens).map(|t| t as i32 % 9).collect();
        let op = Embed { id_offset, position_offset: offset, scale, window: None };
        cases.push(Case::new(
            op,
            vec![
                Some(Input::ints(&ids)),
                Some(Input::ints(&at)),
                Some(Input::weight(&[vocab as usize + id_offset, d], 1.0)),
                learned.then(|| Input::weight(&[9 + offset, d], 1.0)),
            ],
            move |ins| {
                let mut x = vec![0.0; tokens * d];
                for (t, (id, at)) in ins[0].iter().zip(&ins[1]).enumerate() {
                    for i in 0..d {
                        let p = (*at as usize + offset) * d + i;
                        x[t * d + i] = f64::from(scale)
                            * ins[2][(*id as usize + id_offset) * d + i]
                            + if learned { ins[3][p] } else { 0.0 };
                    }
                }
                vec![x]
            },
        ));
    }
    cases.extend([part([19, 24], [3, 7], [2, 5], true), part([70, 9], [2, 6], [0, 1], false)]);
    cases
}

/// A case with tables of `end - first` rows, and with some ids and positions outside them.
fn part([tokens, d]: [usize; 2], id: [usize; 2], position: [usize; 2], learned: bool) -> Case {
    let numbers = |k: usize, n: usize| (0..tokens).map(|t| (t * k % n) as i32).collect::<Vec<_>>();
    let (ids, at) = (numbers(5, id[1] + 2), numbers(3, position[1] + 2));
    let window = Some(Window { first_id: id[0], first_position: position[0] });
    let op = Embed { id_offset: 1, position_offset: 2, scale: 1.5, window };
    let ins = vec![
        Some(Input::ints(&ids)),
        Some(Input::ints(&at)),
        Some(Input::weight(&[id[1] - id[0], d], 1.0)),
        learned.then(|| Input::weight(&[position[1] - position[0], d], 1.0)),
    ];
    Case::new(op, ins, move |ins| {
        let of = |table: &[f64], number: f64, [first, end]: [usize; 2], i: usize| {
            let held = (first..end).contains(&(number as usize));
            if held { table[(number as usize - first) * d + i] } else { 0.0 }
        };
        let x = |k: usize| {
            let (t, i) = (k / d, k % d);
            let tok = of(&ins[2], ins[0][t] + 1.0, id, i);
            let pos = if learned { of(&ins[3], ins[1][t] + 2.0, position, i) } else { 0.0 };
            1.5 * tok + pos
        };
        vec![(0..tokens * d).map(x).collect()]
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;
    use crate::op::cpu::testing::{Host, Runner, forward};
    use crate::op::{View, ViewMut};

    /// sqrt(3072) = 55.43 is 55.5 in bf16; 1.375 times that is 76.5, where 55.43 would give 76.
    #[test]
    fn the_scale_is_rounded_to_the_dtype_of_the_weights() {
        let op = Embed { id_offset: 0, position_offset: 0, scale: 3072f32.sqrt(), window: None };
        let ids = || Some(Host::ints(&[0]));
        let run = |tok| forward(&op, &[ids(), ids(), Some(tok), None]).expect("embed").remove(0);
        let x = run(Host::new::<bf16>(&[1, 1], &[1.375]));
        assert_eq!(x.get::<bf16>()[0].to_f32(), 76.5);
        let x = run(Host::new::<f32>(&[1, 1], &[1.375]));
        assert_eq!(x.f32()[0], 3072f32.sqrt() * 1.375);
    }

    #[test]
    fn an_id_outside_the_vocabulary_is_an_error_that_names_both() {
        for (id, vocab) in [(7i32, 7usize), (-1, 3)] {
            let tok = vec![0f32; vocab * 2];
            let mut x = [0f32; 2];
            let mut io = Forward {
                ins: vec![
                    Some(View::new(bytemuck::bytes_of(&id), Desc::new(&[1], DType::I32))),
                    Some(View::new(bytemuck::bytes_of(&0i32), Desc::new(&[1], DType::I32))),
                    Some(View::new(bytemuck::cast_slice(&tok), Desc::new(&[vocab, 2], DType::F32))),
                    None,
                ],
                outs: vec![ViewMut::new(
                    bytemuck::cast_slice_mut(&mut x),
                    Desc::new(&[1, 2], DType::F32),
                )],
                scratch: &mut [],
            };
            let op = Embed { id_offset: 0, position_offset: 0, scale: 1.0, window: None };
            let e = op.cpu_forward(&mut io).unwrap_err().to_string();
            assert!(e.contains(&format!("id {id} ")) && e.contains(&format!("0..{vocab}")), "{e}");
        }
    }

    /// The parts of three ranks, summed in order and rounded, against the whole.
    fn parts_sum_up<E: Elem>(run: Runner, learned: bool) {
        let mut rng = Rng::new(83, E::DTYPE.size() as u64);
        let (tokens, vocab, positions, d) = (57, 20, 13, 24);
        let mut numbers = |n: u32| Some(Host::ints(&[(); 57].map(|()| rng.below(n) as i32)));
        let (ids, at) = (numbers(vocab as u32 - 1), numbers(positions as u32 - 2));
        let mut table = |rows: usize| {
            let mut values: Vec<f32> = (0..rows * d).map(|_| rng.normal()).collect();
            (values[3], values[rows * d - 1]) = (-0.0, -0.0);
            Host::new::<E>(&[rows, d], &values)
        };
        let (tok, pos) = (table(vocab), table(positions));
        let pos = |at: &[usize]| learned.then(|| pos.rows(at));
        let all = |n: usize| (0..n).collect::<Vec<_>>();
        let op = Embed { id_offset: 1, position_offset: 2, scale: 1.7, window: None };
        let ins = [ids.clone(), at.clone(), Some(tok.clone()), pos(&all(positions))];
        let want = run(&op, &ins).expect("no faults").remove(0);
        let mut sum = vec![];
        for rank in 0..3 {
            let [a, b] = [7 * rank, vocab.min(7 * rank + 7)];
            let [p, q] = [5 * rank, positions.min(5 * rank + 5)];
            let window = Some(Window { first_id: a, first_position: p });
            let held =
                [Some(tok.rows(&(a..b).collect::<Vec<_>>())), pos(&(p..q).collect::<Vec<_>>())];
            let [tok, pos] = held;
            let ins = [ids.clone(), at.clone(), tok, pos];
            let part = run(&Embed { window, ..op }, &ins).expect("no faults").remove(0).f32();
            match rank {
                0 => sum = part,
                _ => sum.iter_mut().zip(part).for_each(|(s, p)| *s += p),
            }
        }
        assert_eq!(Host::new::<E>(&[tokens, d], &sum), want);
    }

    #[test]
    fn parts_of_ranks_sum_up_to_the_bits_of_the_whole() {
        for learned in [false, true] {
            parts_sum_up::<f32>(forward, learned);
            parts_sum_up::<bf16>(forward, learned);
        }
    }

    #[cfg(feature = "emulator")]
    #[test]
    fn parts_of_ranks_sum_up_on_the_emulated_device() {
        for learned in [false, true] {
            parts_sum_up::<f32>(crate::op::cuda::testing::forward, learned);
            parts_sum_up::<bf16>(crate::op::cuda::testing::forward, learned);
        }
    }
}

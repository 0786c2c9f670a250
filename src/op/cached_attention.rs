//! Causal self-attention of new tokens over a paged cache of keys and values: prefill, decode and
//! anything between.
//!
//! qkv `[tokens, (heads + 2 kv_heads) head_dim]` of the new tokens, cu_seqlens i32 `[sequences +
//! 1]` over them, starts i32 `[sequences]` (tokens already cached), page_table i32 `[sequences,
//! pages]`, kcache and vcache `[num_pages, kv_heads, 64, head_dim]` -> o `[tokens, heads
//! head_dim]`, kcache and vcache with the new keys and values appended. Position p of a sequence
//! lies in slot p % 64 of page `page_table[p / 64]`. Rows are bit for bit those of
//! [`attention`](super::attention).

use crate::base::{DType, Elem, Error, Result, bf16};
use crate::device::cpu::parallel_for;
use crate::op::attention::{
    Adjust, Attention, Heads, PLAIN, cumulative, example, reference, sequences, tasks,
};
use crate::op::conformance::{Case, Input};
use crate::op::cpu::attend::{Block, KEYS, Queries, attend, query_tokens};
use crate::op::cpu::shared::SharedMut;
use crate::op::def::OpDef;
use crate::op::{CudaForward, Forward, Op, Place, Plan, Run, required, shape_error};
use crate::tensor::{Desc, Tensor};
use std::ops::Range;
use std::sync::Arc;

mod cuda;

/// The operator.
#[derive(Clone, Debug)]
pub struct CachedAttention(pub Attention);

/// Tokens per page of the cache.
pub const PAGE: usize = KEYS;

/// Registry entry.
pub const DEF: OpDef = OpDef {
    name: "cached_attention",
    about: "appends keys and values to a paged cache, then attends over it; no gradient",
    cases,
};

/// Where the keys and values of some sequences are cached.
#[derive(Clone, Copy, Debug)]
pub struct Cache {
    /// Tokens already cached, i32 `[sequences]`.
    pub starts: Tensor,
    /// Page numbers, i32 `[sequences, pages]`.
    pub page_table: Tensor,
    /// Keys, `[num_pages, kv_heads, 64, head_dim]`.
    pub k: Tensor,
    /// Values, of the same shape.
    pub v: Tensor,
}

/// Appends the new tokens to the cache and attends. Returns o `[tokens, heads * head_dim]`.
pub fn cached_attention(
    r: &mut dyn Run,
    op: Attention,
    qkv: Tensor,
    cu_seqlens: Tensor,
    cache: Cache,
) -> Result<Tensor> {
    let ins = [qkv, cu_seqlens, cache.starts, cache.page_table, cache.k, cache.v].map(Some);
    Ok(r.run(Arc::new(CachedAttention(op)), &ins)?[0])
}

impl Op for CachedAttention {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let (qkv, cu) = (required(self, ins, 0)?, required(self, ins, 1)?);
        let (starts, table) = (required(self, ins, 2)?, required(self, ins, 3)?);
        let (k, v) = (required(self, ins, 4)?, required(self, ins, 5)?);
        let sequences = cu.shape.numel().saturating_sub(1);
        let op = &self.0;
        if !op.fits(&qkv, &cu)
            || starts != Desc::new(&[sequences], DType::I32)
            || table != Desc::new(&[sequences, table.shape.last()], DType::I32)
            || k != v
            || k.dtype != qkv.dtype
            || k.shape.dims().len() != 4
            || k.shape.dims()[1..] != [op.kv_heads, PAGE, op.head_dim]
        {
            return Err(shape_error(
                self,
                ins,
                "qkv [tokens, (heads + 2 kv_heads) head_dim], cu_seqlens [sequences + 1], starts \
                 [sequences], page_table [sequences, pages], kcache and vcache [num_pages, \
                 kv_heads, 64, head_dim]",
            ));
        }
        let tokens = qkv.shape.rows();
        let width = op.heads * op.head_dim;
        Ok(Plan {
            outs: vec![
                Place::New(Desc::new(&[tokens, width], qkv.dtype)),
                Place::InPlace(4),
                Place::InPlace(5),
            ],
            // Lengths are not known here; half of the pages are assumed.
            flops: (2 * tokens * width * table.shape.last() * PAGE) as u64,
            ..Plan::default()
        })
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        match io.input(0).desc.dtype {
            DType::Bf16 => forward::<bf16>(&self.0, io),
            _ => forward::<f32>(&self.0, io),
        }
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe { cuda::forward(self, io) }
    }
}

/// Which pages the sequences have.
struct Pages<'a> {
    starts: &'a [i32],
    table: &'a [i32],
    columns: usize,
}

impl Pages<'_> {
    /// Fails unless every position up to the end of each sequence has a page among `pages`.
    fn check(&self, lengths: &[Range<usize>], pages: usize) -> Result<()> {
        for (s, new) in lengths.iter().enumerate() {
            let start = usize::try_from(self.starts[s]).unwrap_or(usize::MAX / 2);
            let needed = (start + new.len()).div_ceil(PAGE);
            if needed > self.columns {
                return Err(Error::internal(format!(
                    "cached_attention: sequence {s} has {} cached and {} new tokens but {} pages \
                     of {PAGE}",
                    self.starts[s],
                    new.len(),
                    self.columns
                )));
            }
            let row = &self.table[s * self.columns..][..needed];
            if let Some(bad) = row.iter().find(|p| !(0..pages as i64).contains(&i64::from(**p))) {
                return Err(Error::internal(format!(
                    "cached_attention: page {bad} of sequence {s} is outside 0..{pages}"
                )));
            }
        }
        Ok(())
    }

    /// First cached element of position `p` of sequence `s` for one kv head.
    fn at(&self, s: usize, p: usize, op: &Attention, kv_head: usize) -> usize {
        let page = self.table[s * self.columns + p / PAGE] as usize;
        ((page * op.kv_heads + kv_head) * PAGE + p % PAGE) * op.head_dim
    }
}

fn forward<E: Elem>(op: &Attention, io: &mut Forward<'_>) -> Result<()> {
    let (qkv, table) = (io.input(0), io.input(3));
    let lengths = sequences(io.input(1).i32(), qkv.dims()[0])?;
    let pages =
        Pages { starts: io.input(2).i32(), table: table.i32(), columns: table.desc.shape.last() };
    let [o, k, v] = &mut io.outs[..] else { panic!("cached_attention has three outputs") };
    pages.check(&lengths, k.desc.shape.dims()[0])?;
    let qkv = qkv.get::<E>();
    let (k, v) = (k.get::<E>(), v.get::<E>());
    append(op, qkv, &lengths, &pages, k, v);
    let (k, v) = (&*k, &*v);
    let o = SharedMut::new(o.get::<E>());
    let tasks = tasks(op, &lengths);
    parallel_for(tasks.len(), |i| {
        let (s, kv_head, first) = tasks[i];
        let queries = Queries {
            op,
            qkv,
            kv_head,
            token: lengths[s].start + first,
            tokens: query_tokens(op).min(lengths[s].len() - first),
            position: pages.starts[s] as usize + first,
            o,
            lse: None,
        };
        attend(queries, |b| {
            let at = pages.at(s, b * PAGE, op, kv_head);
            Block { k: &k[at..], v: &v[at..], stride: op.head_dim }
        });
    });
    Ok(())
}

/// Copies the new keys and values to their slots.
fn append<E: Elem>(
    op: &Attention,
    qkv: &[E],
    lengths: &[Range<usize>],
    pages: &Pages<'_>,
    k: &mut [E],
    v: &mut [E],
) {
    let (d, width) = (op.head_dim, op.width());
    let caches = [SharedMut::new(k), SharedMut::new(v)];
    parallel_for(2 * op.kv_heads, |i| {
        let (which, kv_head) = (i / op.kv_heads, i % op.kv_heads);
        let column = (op.heads + i) * d;
        for (s, range) in lengths.iter().enumerate() {
            for t in range.clone() {
                let p = pages.starts[s] as usize + t - range.start;
                let at = pages.at(s, p, op, kv_head);
                // SAFETY: a kv head of a cache belongs to one task.
                let slot = unsafe { caches[which].slice(at, d) };
                slot.copy_from_slice(&qkv[t * width + column..][..d]);
            }
        }
    });
}

/// The float64 reference: o and the two caches.
fn reference_cached(op: &Attention, ins: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let ints = |i: usize| ins[i].iter().map(|v| *v as i32).collect::<Vec<_>>();
    let (cu, starts, table) = (ints(1), ints(2), ints(3));
    let columns = table.len() / starts.len();
    let pages = Pages { starts: &starts, table: &table, columns };
    let (d, width) = (op.head_dim, op.width());
    let (mut o, mut k, mut v) = (vec![], ins[4].clone(), ins[5].clone());
    for (s, w) in cu.windows(2).enumerate() {
        for (i, t) in (w[0] as usize..w[1] as usize).enumerate() {
            let row = &ins[0][t * width..][..width];
            let p = starts[s] as usize + i;
            for h in 0..op.kv_heads {
                let at = pages.at(s, p, op, h);
                k[at..at + d].copy_from_slice(&row[(op.heads + h) * d..][..d]);
                v[at..at + d].copy_from_slice(&row[(op.heads + op.kv_heads + h) * d..][..d]);
            }
            for h in 0..op.heads {
                let at = (0..=p).map(|p| pages.at(s, p, op, h / op.group()));
                let keys: Vec<_> = at.map(|at| (&k[at..at + d], &v[at..at + d])).collect();
                o.extend(reference(op, h, &row[h * d..][..d], &keys).0);
            }
        }
    }
    vec![o, k, v]
}

fn cases() -> Vec<Case> {
    let mut cases = vec![];
    // New tokens and cached tokens of each sequence.
    type Lengths = &'static [i32];
    let shapes: [(Lengths, Lengths, Heads, Adjust); 15] = [
        (&[1, 17, 31], &[0, 5, 64], (4, 2, 16), PLAIN),
        (&[1, 1, 1, 1], &[0, 63, 64, 130], (4, 4, 40), PLAIN),
        (&[65], &[65], (4, 1, 64), PLAIN),
        (&[130, 0, 3], &[1, 9, 127], (4, 2, 8), PLAIN),
        (&[1, 17, 31], &[0, 5, 64], (4, 2, 16), (true, 0, 0.0)),
        (&[1, 1, 1, 1], &[0, 63, 64, 280], (4, 4, 40), (false, 20, 0.0)),
        (&[65, 2], &[65, 200], (4, 1, 64), (false, 70, 0.0)),
        (&[130, 0, 3], &[1, 9, 127], (4, 2, 8), (false, 0, 1.5)),
        (&[130, 0, 3], &[1, 9, 255], (4, 2, 8), (true, 64, 2.0)),
        (&[1, 1, 90], &[127, 128, 150], (4, 1, 16), (true, 129, 0.7)),
        (&[1, 9, 40], &[70, 0, 66], (3, 1, 20), PLAIN),
        (&[1, 1, 2], &[127, 5, 64], (8, 2, 128), PLAIN),
        (&[2, 50], &[63, 100], (2, 1, 256), (true, 90, 0.0)),
        (&[1, 1, 20], &[0, 140, 3], (1, 1, 24), PLAIN),
        (&[1, 33], &[77, 60], (3, 1, 64), PLAIN),
    ];
    for (new, starts, (heads, kv_heads, head_dim), adjust) in shapes {
        let op = example((heads, kv_heads, head_dim), adjust);
        let (cu, columns, sequences) = (cumulative(new), 5, new.len());
        let num_pages = sequences * columns + 3;
        // A permutation of the pages: 7 is coprime to every count used here.
        assert!(num_pages % 7 != 0);
        let table: Vec<i32> =
            (0..sequences * columns).map(|i| ((i * 7 + 3) % num_pages) as i32).collect();
        let cache = Some(Input::act(&[num_pages, kv_heads, PAGE, head_dim], 1.5));
        cases.push(Case::new(
            CachedAttention(op.clone()),
            vec![
                Some(Input::act(&[cu[sequences] as usize, op.width()], 1.5)),
                Some(Input::ints(&cu)),
                Some(Input::ints(starts)),
                Some(Input::Ints(vec![sequences, columns], table)),
                cache.clone(),
                cache,
            ],
            move |ins| reference_cached(&op, ins),
        ));
    }
    cases
}

#[cfg(test)]
#[path = "cached_attention_tests.rs"]
mod tests;

#[cfg(all(test, feature = "emulator"))]
#[path = "cached_attention/cuda_tests.rs"]
mod cuda_tests;

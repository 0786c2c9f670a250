//! Drawing the next token of each sequence.
//!
//! logits f32 `[b, vocab]`, sequence, position, forbid_eos i32 `[b]` -> token i32 `[b]`, logp f32
//! `[b]`. The draw inverts the cumulative distribution with one random number that depends on
//! (seed, sequence, position) only, so it does not matter which batch slot a sequence has. `logp`
//! is that of the distribution at the temperature before top-k, top-p and forbidden end tokens,
//! from the same routine as the `logprob` operator's. No gradient.

use crate::base::{DType, Error, Philox, Result};
use crate::device::cpu::parallel_for;
use crate::device::cuda::params::SampleParams;
use crate::op::conformance::{Case, Input};
use crate::op::cpu::shared::{SharedMut, row_chunks};
use crate::op::cpu::softmax;
use crate::op::cuda::{Rows, eos_list};
use crate::op::def::OpDef;
use crate::op::exact::log_sum_exp;
use crate::op::{CudaForward, Forward, Op, Place, Plan, Run, required, shape_error};
use crate::tensor::{Desc, Tensor};
use std::cmp::Ordering;
use std::sync::Arc;

/// The operator.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Softmax temperature; 0 = greedy, the lowest index winning ties, with `logp` taken at 1.
    pub temperature: f32,
    /// Keep the k likeliest tokens, lower indices first among equals; 0 = all.
    pub top_k: usize,
    /// Then keep the smallest set of the likeliest tokens with at least this share; 1 = all.
    pub top_p: f32,
    /// Seed of the draws.
    pub seed: u64,
    /// Tokens that may not be drawn where `forbid_eos` is 1.
    pub eos: Vec<i32>,
}

/// Registry entry.
pub const DEF: OpDef = OpDef {
    name: "sample",
    about: "token ~ top_p(top_k(softmax(logits / T))), logp of the unfiltered softmax(logits / T)",
    cases,
};

/// Returns tokens i32 `[b]` and their log-probabilities f32 `[b]`.
pub fn sample(
    r: &mut dyn Run,
    op: Sample,
    logits: Tensor,
    sequence: Tensor,
    position: Tensor,
    forbid_eos: Tensor,
) -> Result<(Tensor, Tensor)> {
    let ins = [Some(logits), Some(sequence), Some(position), Some(forbid_eos)];
    let outs = r.run(Arc::new(op), &ins)?;
    Ok((outs[0], outs[1]))
}

impl Op for Sample {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let logits = required(self, ins, 0)?;
        let b = logits.shape.rows();
        let ints = Some(Desc::new(&[b], DType::I32));
        let fits = logits.dtype == DType::F32 && logits.shape.dims().len() == 2;
        if !fits || logits.shape.last() == 0 || (1..4).any(|i| ins[i] != ints) {
            return Err(shape_error(self, ins, "logits f32 [b, vocab] and three i32 [b]"));
        }
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) || self.top_p.is_nan() {
            let (t, p) = (self.temperature, self.top_p);
            return Err(Error::internal(format!("sample at temperature {t}, top-p {p}")));
        }
        Ok(Plan {
            outs: vec![
                Place::New(Desc::new(&[b], DType::I32)),
                Place::New(Desc::new(&[b], DType::F32)),
            ],
            flops: 12 * logits.shape.numel() as u64,
            ..Plan::default()
        })
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        let vocab = io.input(0).desc.shape.last();
        let logits = io.input(0).f32();
        let [sequence, position, forbid] = [1, 2, 3].map(|i| io.input(i).i32());
        let [tokens, logps] = &mut io.outs[..] else { panic!("sample has two outputs") };
        let tokens = tokens.i32();
        let (out, logps) = (SharedMut::new(&mut *tokens), SharedMut::new(logps.f32()));
        let chunks = row_chunks(sequence.len(), vocab);
        parallel_for(chunks.len(), |c| {
            let mut weights = vec![0f32; vocab];
            for b in chunks[c].clone() {
                let z = &logits[b * vocab..][..vocab];
                let u = uniform(self.seed, sequence[b], position[b]);
                let (token, logp) = self.draw(z, u, forbid[b] != 0, &mut weights);
                // SAFETY: row b belongs to this task alone.
                unsafe { (out.slice(b, 1)[0], logps.slice(b, 1)[0]) = (token, logp) };
            }
        });
        match tokens.iter().position(|t| *t < 0) {
            Some(b) => Err(Error::user(format!(
                "no token can be sampled for sequence {} at position {}: the model's logits are \
                 not \
                 finite, or every token is an end token; go back to an earlier checkpoint or lower \
                 the learning rate",
                sequence[b], position[b]
            ))),
            None => Ok(()),
        }
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        let logits = io.input(0);
        let vocab = logits.last();
        let params = SampleParams {
            logits: logits.ptr,
            sequence: io.input(1).ptr,
            position: io.input(2).ptr,
            forbid_eos: io.input(3).ptr,
            tokens: io.outs[0].ptr,
            logp: io.outs[1].ptr,
            fault: io.stream.fault(),
            seed: self.seed,
            vocab: vocab as u32,
            top_k: self.top_k.min(vocab) as u32,
            inv_t: softmax::inverse(self.temperature),
            top_p: self.top_p,
            // The largest power of two with which the weights of all tokens add up to less than
            // 2^63.
            scale: (1u64 << (62 - vocab.next_power_of_two().ilog2())) as f32,
            greedy: (self.temperature == 0.0).into(),
            eos_count: self.eos.len() as u32,
            eos: eos_list(&self.eos)?,
            padding: 0,
        };
        let rows = Rows::of(vocab);
        let kernel = rows.kernel("sample_small_f32", "sample_f32");
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe {
            io.stream.launch(kernel, [logits.rows() as u32, 1, 1], rows.threads(), 0, &params)
        }
    }
}

/// Uniform in [0, 1) with 53 bits, fine enough for the rarest token.
fn uniform(seed: u64, sequence: i32, position: i32) -> f64 {
    let [a, b, ..] = Philox::new(seed).block([position as u32, 0, sequence as u32, 0]);
    ((u64::from(a) << 21) ^ (u64::from(b) >> 11)) as f64 / (1u64 << 53) as f64
}

impl Sample {
    /// Token and log-probability for one row, or (-1, NaN) where nothing can be drawn. `weights` is
    /// workspace of one row.
    fn draw(&self, z: &[f32], u: f64, forbid: bool, weights: &mut [f32]) -> (i32, f32) {
        let inv_t = softmax::inverse(self.temperature);
        let row = softmax::row(z, inv_t);
        let forbidden: Vec<usize> = self
            .eos
            .iter()
            .filter_map(|e| usize::try_from(*e).ok().filter(|e| forbid && *e < z.len()))
            .collect();
        let allowed = |i: &usize| !forbidden.contains(i);
        let best = if forbidden.is_empty() {
            likeliest(z)
        } else {
            weights.copy_from_slice(z);
            forbidden.iter().for_each(|e| weights[*e] = f32::NEG_INFINITY);
            likeliest(weights)
        };
        let Some(best) = best.filter(|_| row.log_sum.is_finite()) else {
            return (-1, f32::NAN);
        };
        let token = if self.temperature == 0.0 {
            best
        } else {
            softmax::exps(z, inv_t, z[best] * inv_t, weights);
            forbidden.iter().for_each(|e| weights[*e] = 0.0);
            if self.top_k == 0 && self.top_p >= 1.0 {
                invert(weights, u)
            } else {
                invert_kept(weights, &self.keep(z, weights, allowed), u)
            }
        };
        (token as i32, row.logp(z[token], inv_t))
    }

    /// Tokens left by top-k and top-p, the likeliest first. Only as much of the vocabulary is
    /// sorted as is kept, more or less.
    fn keep(&self, z: &[f32], weights: &[f32], allowed: impl Fn(&usize) -> bool) -> Vec<usize> {
        let order = |a: &usize, b: &usize| match z[*b].total_cmp(&z[*a]) {
            Ordering::Equal => a.cmp(b),
            unequal => unequal,
        };
        let mut tokens: Vec<usize> = (0..z.len()).filter(allowed).collect();
        if self.top_k > 0 && self.top_k < tokens.len() {
            tokens.select_nth_unstable_by(self.top_k, order);
            tokens.truncate(self.top_k);
            // The sum below must not depend on how the selection shuffled.
            tokens.sort_unstable_by(order);
        }
        let total: f64 = tokens.iter().map(|i| f64::from(weights[*i])).sum();
        let goal = f64::from(self.top_p) * total;
        let mut head = 64;
        loop {
            if head < tokens.len() {
                tokens.select_nth_unstable_by(head, order);
            }
            head = head.min(tokens.len());
            tokens[..head].sort_unstable_by(order);
            let mut share = 0f64;
            let enough = tokens[..head].iter().position(|i| {
                share += f64::from(weights[*i]);
                share >= goal && self.top_p < 1.0
            });
            if enough.is_some() || head == tokens.len() {
                tokens.truncate(enough.map_or(head, |i| i + 1));
                return tokens;
            }
            head *= 8;
        }
    }
}

/// The index of the largest logit, the first of equals; none if it is not finite.
fn likeliest(z: &[f32]) -> Option<usize> {
    const BLOCK: usize = 256;
    let largest = softmax::max(z);
    if !largest.is_finite() {
        return None;
    }
    let block = z.chunks(BLOCK).position(|block| softmax::max(block) == largest)?;
    z[block * BLOCK..].iter().position(|z| *z == largest).map(|i| block * BLOCK + i)
}

/// The token at which the cumulative weight passes the share `u`, in vocabulary order. Whole blocks
/// are passed over first.
fn invert(weights: &[f32], u: f64) -> usize {
    const BLOCK: usize = 256;
    let sums: Vec<f64> = weights.chunks(BLOCK).map(block_sum).collect();
    let goal = u * sums.iter().sum::<f64>();
    let mut before = 0f64;
    let mut last = 0;
    for (block, sum) in sums.iter().enumerate().filter(|(_, s)| **s > 0.0) {
        last = block;
        if before + sum > goal {
            break;
        }
        before += sum;
    }
    let start = last * BLOCK;
    let block = &weights[start..weights.len().min(start + BLOCK)];
    start + pass(block.iter().copied(), goal - before)
}

/// As `invert`, over the tokens `kept` in their order.
fn invert_kept(weights: &[f32], kept: &[usize], u: f64) -> usize {
    let total: f64 = kept.iter().map(|i| f64::from(weights[*i])).sum();
    kept[pass(kept.iter().map(|i| weights[*i]), u * total)]
}

/// The first index at which the running sum is above `goal`; where rounding lets none be, the last
/// one of any weight.
fn pass(weights: impl Iterator<Item = f32>, goal: f64) -> usize {
    let (mut sum, mut last) = (0f64, 0);
    for (i, w) in weights.enumerate().filter(|(_, w)| *w > 0.0) {
        sum += f64::from(w);
        last = i;
        if sum > goal {
            break;
        }
    }
    last
}

/// Sum in 8 interleaved f64 lanes, then lane by lane.
fn block_sum(x: &[f32]) -> f64 {
    let mut lanes = [0f64; 8];
    let (whole, rest) = x.as_chunks::<8>();
    for c in whole {
        lanes.iter_mut().zip(c).for_each(|(l, v)| *l += f64::from(*v));
    }
    lanes.iter_mut().zip(rest).for_each(|(l, v)| *l += f64::from(*v));
    lanes.iter().sum()
}

/// Greedy choice and top-k of one, where the token is certain; distributions are tested below.
fn cases() -> Vec<Case> {
    let case = |b: usize, vocab: usize, temperature: f32| {
        let top_k = usize::from(temperature > 0.0);
        let eos = vec![3, 1];
        let op = Sample { temperature, top_k, top_p: 1.0, seed: 9, eos: eos.clone() };
        let forbid: Vec<i32> = (0..b as i32).map(|i| i % 2).collect();
        let ids: Vec<i32> = (0..b as i32).collect();
        let ins = vec![
            Some(Input::f32(&[b, vocab], 5.0)),
            Some(Input::ints(&ids)),
            Some(Input::ints(&ids)),
            Some(Input::ints(&forbid)),
        ];
        Case::new(op, ins, move |ins| {
            let t = if temperature == 0.0 { 1.0 } else { f64::from(temperature) };
            let (mut tokens, mut logps) = (vec![], vec![]);
            for (row, forbid) in ins[0].chunks(vocab).zip(&ins[3]) {
                let may = |i: usize| *forbid == 0.0 || !eos.contains(&(i as i32));
                let (best, top) = (0..vocab)
                    .filter(|i| may(*i))
                    .map(|i| (i, row[i]))
                    .fold((0, f64::MIN), |a, b| if b.1 > a.1 { b } else { a });
                let scaled: Vec<f64> = row.iter().map(|z| z / t).collect();
                tokens.push(best as f64);
                logps.push(top / t - log_sum_exp(&scaled));
            }
            vec![tokens, logps]
        })
    };
    vec![case(6, 5, 0.0), case(4, 1003, 0.0), case(5, 97, 0.7)]
}

#[cfg(test)]
mod tests;

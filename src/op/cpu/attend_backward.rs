//! Gradients of causal attention (Dao 2023, FlashAttention-2, algorithm 2): probabilities are
//! recomputed from the log-sum-exp, one block of 64 keys after the other. A task owns one sequence
//! and one kv head and adds in a fixed order, so gradients are deterministic and know nothing of
//! other sequences.

use crate::base::Elem;
use crate::op::attr::Attention;
use crate::op::cpu::attend::{KEYS, cut, load_queries, query_tokens, with_scratch};
use crate::op::cpu::scores::Row;
use crate::op::cpu::shared::SharedMut;
use crate::op::cpu::simd::{Kernel, LANES, Simd, dispatch, level};
use crate::op::cpu::tile::{Coefficients, Rows, dots, mix};
use crate::op::cpu::{vec, vec_math};

/// One sequence and one kv head with its group of query heads.
#[derive(Debug)]
pub struct Gradient<'a, 's, E> {
    /// The attributes.
    pub op: &'a Attention,
    /// All tokens, `[tokens, q|k|v]`.
    pub qkv: &'a [E],
    /// Forward's output, `[tokens, heads * head_dim]`.
    pub o: &'a [E],
    /// Gradient of `o`.
    pub d_o: &'a [E],
    /// Forward's log-sum-exps, `[tokens, heads]`.
    pub lse: &'a [f32],
    /// Gradient of `qkv`.
    pub dqkv: SharedMut<'a, E>,
    /// Add to `dqkv` instead of setting it.
    pub acc: bool,
    /// The kv head.
    pub kv_head: usize,
    /// Row of the first token.
    pub start: usize,
    /// Length of the sequence.
    pub tokens: usize,
    /// Workspace of `tokens * group * (head_dim + 1)` elements.
    pub work: &'s mut [f32],
}

/// Writes the rows of `dqkv` of this sequence, in the columns of this kv head and its group.
pub fn attend_backward<E: Elem>(g: Gradient<'_, '_, E>) {
    let d = g.op.head_dim;
    let rows = query_tokens(g.op).min(g.tokens) * g.op.group();
    with_scratch(rows * 2 * (d + KEYS) + 2 * KEYS * d, |tiles| {
        dispatch(level(), Backward { g, tiles });
    });
}

struct Backward<'a, 's, 't, E> {
    g: Gradient<'a, 's, E>,
    tiles: &'t mut [f32],
}

impl<E: Elem> Kernel for Backward<'_, '_, '_, E> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Backward { g, mut tiles } = self;
        let (group, d) = (g.op.group(), g.op.head_dim);
        let step = query_tokens(g.op).min(g.tokens);
        let (mut work, len) = (g.work, g.tokens * group);
        let (dq, delta) = (cut(&mut work, len * d), cut(&mut work, len));
        let query = cut(&mut tiles, step * group * d);
        let d_out = cut(&mut tiles, step * group * d);
        let p = cut(&mut tiles, step * group * KEYS);
        let ds = cut(&mut tiles, step * group * KEYS);
        let dk = cut(&mut tiles, KEYS * d);
        let dv = cut(&mut tiles, KEYS * d);
        dq.fill(0.0);
        // Where row (token, head of the group) r of this task lies in the outputs, in heads.
        let at = |r: usize| (g.start + r / group) * g.op.heads + g.kv_head * group + r % group;
        for (r, delta) in delta.iter_mut().enumerate() {
            *delta = vec::dot(&g.d_o[at(r) * d..][..d], &g.o[at(r) * d..][..d]);
        }
        let width = g.op.width();
        let columns = [g.op.heads + g.kv_head, g.op.heads + g.op.kv_heads + g.kv_head];
        for first in (0..g.tokens).step_by(KEYS) {
            let n = (g.tokens - first).min(KEYS);
            let [k, v] = columns
                .map(|c| Rows::new(&g.qkv[(g.start + first) * width + c * d..], width, n, d));
            dk.fill(0.0);
            dv.fill(0.0);
            // Later tokens have the whole block before their window.
            let end = (first + KEYS - 1).saturating_add(g.op.reach()).min(g.tokens);
            for t in (first..end).step_by(step) {
                let rows = step.min(end - t) * group;
                let query = &mut query[..rows * d];
                load_queries(s, g.op, g.qkv, g.kv_head, g.start + t, query);
                for (r, out) in d_out[..rows * d].chunks_exact_mut(d).enumerate() {
                    vec::convert(s, out, &g.d_o[at(t * group + r) * d..][..d]);
                }
                let (query, d_out) = (Rows::new(query, d, rows, d), Rows::new(d_out, d, rows, d));
                dots(s, query, k, p, KEYS);
                dots(s, d_out, v, ds, KEYS);
                for r in 0..rows {
                    let distance = t + r / group - first;
                    let visible = (distance + 1).min(n);
                    let (p, ds) = (&mut p[r * KEYS..][..KEYS], &mut ds[r * KEYS..][..KEYS]);
                    let (lse, delta) = (g.lse[at(t * group + r)], delta[t * group + r]);
                    if g.op.adjusts() {
                        let head = g.kv_head * group + r % group;
                        adjusted_gradient(s, Row { op: g.op, head, distance }, p, ds, lse, delta);
                    } else {
                        softmax_gradient(s, p, ds, lse, delta);
                    }
                    p[visible..].fill(0.0);
                    ds[visible..].fill(0.0);
                }
                let transposed = |data| Coefficients { data, row: 1, column: KEYS };
                mix(s, dv, n, transposed(p), d_out);
                mix(s, dk, n, transposed(ds), query);
                let ds = Coefficients { data: ds, row: KEYS, column: 1 };
                mix(s, &mut dq[t * group * d..], rows, ds, k);
            }
            for (c, from) in columns.into_iter().zip([&*dk, &*dv]) {
                for j in 0..n {
                    // SAFETY: this sequence's columns of this kv head belong to this task alone.
                    let out = unsafe { g.dqkv.slice((g.start + first + j) * width + c * d, d) };
                    put(s, out, &from[j * d..][..d], 1.0, g.acc);
                }
            }
        }
        for r in 0..len {
            let column = (g.kv_head * group + r % group) * d;
            // SAFETY: this sequence's columns of this group belong to this task alone.
            let out = unsafe { g.dqkv.slice((g.start + r / group) * width + column, d) };
            put(s, out, &dq[r * d..][..d], g.op.scale, g.acc);
        }
    }
}

/// `p = exp(p - lse)` and `ds = p (ds - delta)`: from scores and dO . v to the probabilities and
/// the gradients of the scores.
#[inline(always)]
fn softmax_gradient<S: Simd>(s: S, p: &mut [f32], ds: &mut [f32], lse: f32, delta: f32) {
    for (p, ds) in p.chunks_exact_mut(LANES).zip(ds.chunks_exact_mut(LANES)) {
        let e = vec_math::exp(s, s.sub(s.take(p), s.splat(lse)));
        s.put(p, e);
        s.put(ds, s.mul(e, s.sub(s.take(ds), s.splat(delta))));
    }
}

/// The same through what the model does to its scores.
#[inline(always)]
fn adjusted_gradient<S: Simd>(
    s: S,
    row: Row<'_>,
    p: &mut [f32],
    ds: &mut [f32],
    lse: f32,
    delta: f32,
) {
    row.cap(s, p);
    let mut capped = [0.0; KEYS];
    capped.copy_from_slice(p);
    row.bias(s, p);
    softmax_gradient(s, p, ds, lse, delta);
    row.cap_gradient(s, &capped, ds);
    p[..row.hidden()].fill(0.0);
    ds[..row.hidden()].fill(0.0);
}

/// `out = scale * from`, or `out += scale * from`.
#[inline(always)]
fn put<S: Simd, E: Elem>(s: S, out: &mut [E], from: &[f32], scale: f32, acc: bool) {
    for (o, x) in out.chunks_mut(LANES).zip(from.chunks(LANES)) {
        let old = if acc { s.take(o) } else { s.splat(0.0) };
        s.put(o, s.fma(s.take(x), s.splat(scale), old));
    }
}

//! Causal attention of a few query rows over the keys of their sequence, block by block with an
//! online softmax (Dao 2023, FlashAttention-2). The one routine behind packed and cached attention:
//! blocks are 64 keys counted from the start of the sequence and every row is reduced on its own,
//! so a row's bits depend neither on its neighbours nor on where the keys live.

use crate::base::Elem;
use crate::device::cuda::constants::attend::BLOCK_KEYS;
use crate::op::attr::Attention;
use crate::op::cpu::scores::Row;
use crate::op::cpu::shared::SharedMut;
use crate::op::cpu::simd::{Kernel, LANES, Simd, dispatch, level};
use crate::op::cpu::tile::{Coefficients, Rows, dots, mix};
use crate::op::cpu::vec_math;
use std::cell::RefCell;

/// Keys per block, and per page of the cache.
pub const KEYS: usize = BLOCK_KEYS;

/// Query rows per task: (token, head of the group) pairs.
const QUERY_ROWS: usize = 64;

/// Keys and values of one block of a sequence, for one kv head.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a, E> {
    /// Key `j` of the block at `j * stride`.
    pub k: &'a [E],
    /// Value `j` likewise.
    pub v: &'a [E],
    /// Elements from one key to the next.
    pub stride: usize,
}

/// Consecutive query tokens of one sequence with all query heads of one kv head.
#[derive(Debug)]
pub struct Queries<'a, E> {
    /// The attributes.
    pub op: &'a Attention,
    /// All tokens, `[tokens, q|k|v]`.
    pub qkv: &'a [E],
    /// The kv head.
    pub kv_head: usize,
    /// Row of the first token in `qkv`.
    pub token: usize,
    /// Number of tokens.
    pub tokens: usize,
    /// Position of the first token in its sequence.
    pub position: usize,
    /// All outputs, `[tokens, heads * head_dim]`.
    pub o: SharedMut<'a, E>,
    /// All log-sum-exps, `[tokens, heads]`, where wanted.
    pub lse: Option<SharedMut<'a, f32>>,
}

/// Tokens per task.
pub fn query_tokens(op: &Attention) -> usize {
    (QUERY_ROWS / op.group()).max(1)
}

/// Attends over the keys up to each token; `block(b)` gives keys `64 b..` of the sequence. Writes
/// the rows of `q.o` and `q.lse` that belong to these tokens and heads, and nothing else.
pub fn attend<'a, E: Elem>(q: Queries<'a, E>, block: impl Fn(usize) -> Block<'a, E>) {
    let (rows, d) = (q.tokens * q.op.group(), q.op.head_dim);
    with_scratch(rows * (2 * d + KEYS + 2), |scratch| {
        dispatch(level(), Forward { q, block, scratch });
    });
}

/// Calls `f` with `n` undefined f32 of this thread.
pub(super) fn with_scratch(n: usize, f: impl FnOnce(&mut [f32])) {
    thread_local! {
        static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }
    SCRATCH.with_borrow_mut(|s| {
        if s.len() < n {
            s.resize(n, 0.0);
        }
        f(&mut s[..n]);
    });
}

/// Cuts the first `n` elements off `s`.
#[inline(always)]
pub(super) fn cut<'a>(s: &mut &'a mut [f32], n: usize) -> &'a mut [f32] {
    s.split_off_mut(..n).expect("scratch")
}

struct Forward<'a, 's, E, F> {
    q: Queries<'a, E>,
    block: F,
    scratch: &'s mut [f32],
}

impl<'a, E: Elem, F: Fn(usize) -> Block<'a, E>> Kernel for Forward<'a, '_, E, F> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (q, block, mut scratch) = (self.q, self.block, self.scratch);
        let (group, d) = (q.op.group(), q.op.head_dim);
        let rows = q.tokens * group;
        let query = cut(&mut scratch, rows * d);
        let acc = cut(&mut scratch, rows * d);
        let scores = cut(&mut scratch, rows * KEYS);
        let max = cut(&mut scratch, rows);
        let sum = cut(&mut scratch, rows);
        load_queries(s, q.op, q.qkv, q.kv_head, q.token, query);
        acc.fill(0.0);
        max.fill(f32::NEG_INFINITY);
        sum.fill(0.0);
        let (end, window) = (q.position + q.tokens, q.op.reach());
        for b in (q.position + 1).saturating_sub(window) / KEYS..end.div_ceil(KEYS) {
            let keys = block(b);
            let n = (end - b * KEYS).min(KEYS);
            // Tokens before `first` see none of the block, from `full` on they see all of it.
            let first = (b * KEYS).saturating_sub(q.position) * group;
            let full = (b * KEYS + KEYS - 1).saturating_sub(q.position).min(q.tokens) * group;
            // Tokens before `edge` have no key of the block hidden by their window, from `last` on
            // all: these rows pass the block by, as a softmax over nothing is undefined.
            let until = |p: usize| p.saturating_sub(q.position).min(q.tokens) * group;
            let edge = until((b * KEYS).saturating_add(window));
            let last = until((b * KEYS + KEYS - 1).saturating_add(window));
            let row = |r: usize| Row {
                op: q.op,
                head: q.kv_head * group + r % group,
                distance: q.position + r / group - b * KEYS,
            };
            let visible = |r: usize| (row(r).distance + 1).min(KEYS);
            let k = Rows::new(keys.k, keys.stride, n, d);
            let from = Rows::new(&query[first * d..], d, last - first, d);
            dots(s, from, k, &mut scores[first * KEYS..], KEYS);
            if q.op.adjusts() {
                for r in first..last {
                    adjust(s, row(r), &mut scores[r * KEYS..][..KEYS]);
                }
            }
            for r in first..last {
                let p = &mut scores[r * KEYS..][..KEYS];
                let acc = &mut acc[r * d..][..d];
                softmax_row(s, p, visible(r), &mut max[r], &mut sum[r], acc);
            }
            let mut r = first;
            while r < last {
                let step = if r < full || r >= edge { group } else { edge - r };
                let hidden = row(r).hidden();
                let v = &keys.v[hidden * keys.stride..];
                let v = Rows::new(v, keys.stride, visible(r) - hidden, d);
                let p = Coefficients { data: &scores[r * KEYS + hidden..], row: KEYS, column: 1 };
                mix(s, &mut acc[r * d..], step, p, v);
                r += step;
            }
        }
        for r in 0..rows {
            let (token, head) = (q.token + r / group, q.kv_head * group + r % group);
            let at = token * q.op.heads + head;
            // SAFETY: this token's rows of this kv head's queries belong to this task alone.
            let o = unsafe { q.o.slice(at * d, d) };
            let scale = s.splat(1.0 / sum[r]);
            for (o, a) in o.chunks_mut(LANES).zip(acc[r * d..][..d].chunks(LANES)) {
                s.put(o, s.mul(s.take(a), scale));
            }
            if let Some(lse) = q.lse {
                // SAFETY: this token's element of this head belongs to this task alone.
                let lse = unsafe { lse.slice(at, 1) };
                lse[0] = max[r] + sum[r].ln();
            }
        }
    }
}

/// The queries of `out.len() / (group head_dim)` tokens from `token` on, times the scale, as f32
/// rows (token, head of the group).
#[inline(always)]
pub(super) fn load_queries<S: Simd, E: Elem>(
    s: S,
    op: &Attention,
    qkv: &[E],
    kv_head: usize,
    token: usize,
    out: &mut [f32],
) {
    let (width, row) = (op.width(), op.group() * op.head_dim);
    for (i, out) in out.chunks_exact_mut(row).enumerate() {
        let from = &qkv[(token + i) * width + kv_head * row..][..row];
        for (o, q) in out.chunks_mut(LANES).zip(from.chunks(LANES)) {
            s.put(o, s.mul(s.take(q), s.splat(op.scale)));
        }
    }
}

/// Makes the scores of a block what the model wants them to be.
#[inline(always)]
fn adjust<S: Simd>(s: S, row: Row<'_>, p: &mut [f32]) {
    row.cap(s, p);
    row.bias(s, p);
    p[..row.hidden()].fill(f32::NEG_INFINITY);
}

/// One step of the online softmax: turns the scores of a block into probabilities relative to the
/// new maximum and rescales what was accumulated under the old one.
#[inline(always)]
fn softmax_row<S: Simd>(
    s: S,
    p: &mut [f32],
    visible: usize,
    max: &mut f32,
    sum: &mut f32,
    acc: &mut [f32],
) {
    p[visible..].fill(f32::NEG_INFINITY);
    // Vectors without visible keys would only add zeros.
    let p = &mut p[..visible.next_multiple_of(LANES)];
    let mut top = s.splat(*max);
    for p in p.chunks_exact(LANES) {
        top = s.max(top, s.take(p));
    }
    let new = s.lanes(top).into_iter().fold(f32::NEG_INFINITY, f32::max);
    let alpha = vec_math::exp(s, s.splat(*max - new));
    let mut total = s.splat(0.0);
    for p in p.chunks_exact_mut(LANES) {
        let e = vec_math::exp(s, s.sub(s.take(p), s.splat(new)));
        s.put(p, e);
        total = s.add(total, e);
    }
    *max = new;
    *sum = *sum * s.lanes(alpha)[0] + s.sum(total);
    for a in acc.chunks_mut(LANES) {
        s.put(a, s.mul(s.take(a), alpha));
    }
}

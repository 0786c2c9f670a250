//! The operators at the sizes of a model's training and decode steps: what is timed.

use crate::base::{DType, Rng};
use crate::op::Op;
use crate::op::act::{Act, Kind};
use crate::op::adamw::{AdamW, Group};
use crate::op::adamw_compact::AdamWCompact;
use crate::op::attention::Attention;
use crate::op::cached_attention::{CachedAttention, PAGE};
use crate::op::conformance::Input;
use crate::op::cpu::adamw_compact::BLOCK;
use crate::op::cross_entropy::CrossEntropy;
use crate::op::embed::Embed;
use crate::op::linear::Linear;
use crate::op::logprob::LogProb;
use crate::op::norm::Norm;
use crate::op::rope::Rope;
use crate::op::sample::Sample;
use crate::op::squared_norm::SquaredNorm;

/// Sizes of a model and of its batches.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Width of the model.
    pub hidden: usize,
    /// Width of the MLP.
    pub mlp: usize,
    /// Query heads, as many kv heads.
    pub heads: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Sequences of a training batch, and tokens of each.
    pub train: (usize, usize),
    /// Sequences of a decode step, and tokens in the cache of each.
    pub decode: (usize, usize),
    /// Parameters of one bucket.
    pub params: usize,
}

impl Shape {
    /// OPT-1.3B: 8 sequences of 512 tokens; 64 sequences of 512 cached tokens.
    pub const OPT_1_3B: Shape = Shape {
        hidden: 2048,
        mlp: 8192,
        heads: 32,
        vocab: 50272,
        train: (8, 512),
        decode: (64, 512),
        params: 50_000_000,
    };

    /// Small enough for the emulated device.
    pub const TINY: Shape = Shape {
        hidden: 64,
        mlp: 128,
        heads: 4,
        vocab: 300,
        train: (2, 40),
        decode: (3, 70),
        params: 10_000,
    };
}

/// One operator to be timed.
pub struct Timed {
    /// Operator and use.
    pub name: String,
    /// Makes the operator.
    pub op: Box<dyn Fn() -> Box<dyn Op>>,
    /// Its inputs.
    pub ins: Vec<Option<Input>>,
}

/// All that is timed at the sizes of `s`.
pub fn shapes(s: &Shape) -> Vec<Timed> {
    let mut all = layers(s, s.train.0 * s.train.1);
    let decode = layers(s, s.decode.0);
    all.extend(decode.into_iter().map(|t| Timed { name: t.name + ", decode", ..t }));
    all.extend([
        train_attention(s),
        decode_attention(s),
        logprob(s),
        cross_entropy(s),
        sample(s),
        squared_norm(s),
    ]);
    all.extend([adamw(s), adamw_compact(s)]);
    all
}

fn timed<O: Op + Clone + 'static>(name: &str, op: O, ins: Vec<Option<Input>>) -> Timed {
    Timed { name: name.to_string(), op: Box::new(move || Box::new(op.clone())), ins }
}

fn act(dims: &[usize]) -> Option<Input> {
    Some(Input::act(dims, 1.0))
}

/// Weights small enough for outputs of the size of the inputs.
fn weight(dims: &[usize]) -> Option<Input> {
    let scale = (dims[dims.len() - 1] as f32).powf(-0.5);
    Some(Input::weight(dims, scale))
}

fn ints(n: usize, below: usize) -> Option<Input> {
    let mut rng = Rng::new(3, n as u64);
    Some(Input::ints(&(0..n).map(|_| rng.below(below as u32) as i32).collect::<Vec<_>>()))
}

/// The operators that work token by token, with `tokens` tokens.
fn layers(s: &Shape, tokens: usize) -> Vec<Timed> {
    let linear = Linear::PLAIN;
    let norm = Norm { mean: true, eps: 1e-5, unit_offset: false };
    let (h, m) = (s.hidden, s.mlp);
    let head_dim = h / s.heads;
    let half = head_dim / 2;
    let inv_freq = (0..half).map(|i| 1e4f32.powf(-(i as f32) / half as f32)).collect();
    let (heads, kv_heads) = (s.heads, s.heads);
    let rope = Rope { heads, kv_heads, head_dim, inv_freq, interleaved: false, scale: 1.0 };
    let embed = Embed { id_offset: 0, position_offset: 0, scale: 1.0, window: None };
    let gelu = Act { kind: Kind::GeluTanh, gated: false };
    vec![
        timed(
            "linear qkv",
            linear,
            vec![act(&[tokens, h]), weight(&[3 * h, h]), weight(&[3 * h]), None],
        ),
        timed(
            "linear out + residual",
            linear,
            vec![act(&[tokens, h]), weight(&[h, h]), weight(&[h]), act(&[tokens, h])],
        ),
        timed("linear up", linear, vec![act(&[tokens, h]), weight(&[m, h]), weight(&[m]), None]),
        timed("linear down", linear, vec![act(&[tokens, m]), weight(&[h, m]), weight(&[h]), None]),
        timed("norm", norm, vec![act(&[tokens, h]), weight(&[h]), weight(&[h])]),
        timed("act gelu", gelu, vec![act(&[tokens, m])]),
        timed("rope", rope, vec![act(&[tokens, 3 * h]), ints(tokens, 512)]),
        timed(
            "embed",
            embed,
            vec![ints(tokens, s.vocab), ints(tokens, 512), weight(&[s.vocab, h]), None],
        ),
    ]
}

fn attention_op(s: &Shape) -> Attention {
    let head_dim = s.hidden / s.heads;
    Attention::new(s.heads, s.heads, head_dim, (head_dim as f32).powf(-0.5))
}

/// 0, step, 2 step, ...
fn offsets(n: usize, step: usize) -> Option<Input> {
    Some(Input::ints(&(0..=n).map(|i| (i * step) as i32).collect::<Vec<_>>()))
}

fn train_attention(s: &Shape) -> Timed {
    let (sequences, tokens) = s.train;
    let qkv = act(&[sequences * tokens, 3 * s.hidden]);
    timed("attention", attention_op(s), vec![qkv, offsets(sequences, tokens)])
}

fn decode_attention(s: &Shape) -> Timed {
    let (sequences, cached) = s.decode;
    let pages = (cached + 1).div_ceil(PAGE);
    let cache = act(&[sequences * pages, s.heads, PAGE, s.hidden / s.heads]);
    let table: Vec<i32> = (0..(sequences * pages) as i32).collect();
    let ins = vec![
        act(&[sequences, 3 * s.hidden]),
        offsets(sequences, 1),
        Some(Input::ints(&vec![cached as i32; sequences])),
        Some(Input::Ints(vec![sequences, pages], table)),
        cache.clone(),
        cache,
    ];
    timed("attention, decode", CachedAttention(attention_op(s)), ins)
}

fn logprob(s: &Shape) -> Timed {
    let n = s.train.0 * s.train.1;
    let ins = vec![act(&[n, s.hidden]), weight(&[s.vocab, s.hidden]), None, ints(n, s.vocab)];
    timed("logprob", LogProb { temperature: 1.0, softcap: 0.0 }, ins)
}

fn cross_entropy(s: &Shape) -> Timed {
    let n = s.train.0 * s.train.1;
    let ones = Some(Input::Const(vec![n], vec![1.0; n]));
    let ins = vec![act(&[n, s.hidden]), weight(&[s.vocab, s.hidden]), None, ints(n, s.vocab), ones];
    timed("cross_entropy", CrossEntropy { scale: -1.0 / n as f32, softcap: 0.0 }, ins)
}

fn sample(s: &Shape) -> Timed {
    let n = s.decode.0;
    let op = Sample { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 1, eos: vec![2] };
    let zeros = Some(Input::ints(&vec![0; n]));
    let logits = Some(Input::f32(&[n, s.vocab], 3.0));
    timed("sample", op, vec![logits, ints(n, 1000), ints(n, 1000), zeros])
}

fn squared_norm(s: &Shape) -> Timed {
    timed("squared_norm", SquaredNorm, vec![Some(Input::f32(&[s.params], 1.0))])
}

/// bf16 weights with a master copy, one group.
fn adamw(s: &Shape) -> Timed {
    let group = Group { start: 0, end: s.params, lr: 1e-4, weight_decay: 0.1 };
    let op = AdamW { groups: vec![group], beta1: 0.9, beta2: 0.95, eps: 1e-8, step: 10 };
    let flat = || Some(Input::f32(&[s.params], 1e-3));
    let w = Some(Input::weight(&[s.params], 1e-3));
    let clip = Some(Input::Const(vec![1], vec![1.0]));
    let ones = Some(Input::Const(vec![s.params], vec![1e-6; s.params]));
    timed("adamw", op, vec![w, flat(), clip, flat(), ones, Some(Input::ints(&[0])), flat()])
}

/// The same on a compact state.
fn adamw_compact(s: &Shape) -> Timed {
    let n = s.params.next_multiple_of(BLOCK);
    let group = Group { start: 0, end: n, lr: 1e-4, weight_decay: 0.1 };
    let op = AdamW { groups: vec![group], beta1: 0.9, beta2: 0.95, eps: 1e-8, step: 10 };
    let codes = || Some(Input::Bytes(vec![n], (0..n).map(|i| (i % 128) as u8).collect()));
    let scales = n / BLOCK * 2;
    let ins = vec![
        Some(Input::weight(&[n], 1e-3)),
        Some(Input::f32(&[n], 1e-3)),
        Some(Input::Const(vec![1], vec![1.0])),
        codes(),
        codes(),
        codes(),
        Some(Input::Const(vec![scales], vec![1e-3; scales])),
        Some(Input::ints(&[0])),
    ];
    timed("adamw_compact", AdamWCompact(op), ins)
}

/// True if the inputs of operator `name` fit weights of `dtype`. AdamW keeps further bits of
/// weights only beside bf16.
pub fn takes(name: &str, dtype: DType) -> bool {
    match name {
        "adamw" | "adamw_compact" => dtype == DType::Bf16,
        "sample" | "squared_norm" => dtype == DType::F32,
        _ => true,
    }
}

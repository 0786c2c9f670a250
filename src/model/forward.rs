//! The block interpreter. Training, scoring and generation run this one function; they differ only
//! in where attention finds its keys.

use crate::arch::{Position, Residual};
use crate::base::{Error, Result};
use crate::model::{Head, KvCache, Model};
use crate::op;
use crate::op::act::Act;
use crate::op::attention::Attention;
use crate::op::logprob::LogProb;
use crate::op::qk_norm::QkNorm;

use crate::op::rope::Rope;
use crate::op::softcap::Softcap;
use crate::tape::{ActivationCheckpointing, Tape};
use crate::tensor::Tensor;

/// Where the keys and values come from.
#[derive(Clone, Copy, Debug)]
pub enum Attend<'a> {
    /// From the batch itself: packed sequences, `cu_seqlens` `[sequences + 1]`.
    Packed {
        /// First token of each sequence, and the end.
        cu_seqlens: Tensor,
    },
    /// From the cache, to which the batch's own are appended.
    Cached {
        /// First new token of each sequence, and the end.
        cu_seqlens: Tensor,
        /// Tokens already cached, by sequence.
        starts: Tensor,
        /// Page table `[sequences, pages]`.
        table: Tensor,
        /// The cache.
        cache: &'a KvCache,
    },
}

/// Inputs of attention besides the hidden rows.
#[derive(Clone, Copy)]
struct Reads<'r, 'a> {
    /// Position of each token.
    positions: Tensor,
    attend: &'r Attend<'a>,
}

/// How one pass over the model is made.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// The activations kept for the backward pass.
    pub checkpointing: ActivationCheckpointing,
    /// True if LoRA adapters take part; without them the model is the base model.
    pub adapters: bool,
    /// LoRA dropout for this pass; `None` turns it off.
    pub dropout: Option<Draw>,
}

/// The random numbers of LoRA dropout in a pass.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// A new seed every step.
    pub seed: u64,
    /// Index of the pass's first token among those of the step. It makes a token's dropout
    /// independent of the split into passes.
    pub first: usize,
}

impl Pass {
    /// Scoring and generation: nothing kept, adapters on, no dropout.
    pub const EVAL: Pass =
        Pass { checkpointing: ActivationCheckpointing::None, adapters: true, dropout: None };
}

impl Model {
    /// The last norm's output `[tokens, hidden]` for packed `ids` and `positions` `[tokens]`.
    pub fn hidden<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        ids: Tensor,
        positions: Tensor,
        attend: &Attend<'a>,
        pass: Pass,
    ) -> Result<Tensor> {
        let reads = Reads { positions, attend };
        tape.segment(ActivationCheckpointing::None);
        let mut x = self.embed(tape, ids, positions)?;
        if let Some(norm) = &self.params.embed_norm {
            x = self.norm(tape, norm, x)?;
        }
        for layer in 0..self.arch.layers {
            tape.segment(pass.checkpointing);
            x = self.block(tape, layer, x, reads, pass)?;
        }
        tape.segment(ActivationCheckpointing::None);
        if let Some(norm) = &self.params.final_norm {
            x = self.norm(tape, norm, x)?;
        }
        match self.params.project_out {
            Some(project) => self.project(tape, project, x, None),
            None => Ok(x),
        }
    }

    fn block<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        layer: usize,
        x: Tensor,
        reads: Reads<'_, 'a>,
        pass: Pass,
    ) -> Result<Tensor> {
        let p = &self.params.blocks[layer];
        let residual = self.arch.residual;
        let missing = || Error::internal("a block lacks a norm of its kind");
        let norm2 = || p.norm2.as_ref().ok_or_else(missing);
        match residual {
            Residual::PreNorm => {
                let n = self.norm(tape, &p.norm1, x)?;
                let x = self.attention(tape, layer, n, Some(x), reads, pass)?;
                let n = self.norm(tape, norm2()?, x)?;
                self.mlp(tape, layer, n, Some(x), pass)
            }
            Residual::PostNorm => {
                let x = self.attention(tape, layer, x, Some(x), reads, pass)?;
                let x = self.norm(tape, &p.norm1, x)?;
                let x = self.mlp(tape, layer, x, Some(x), pass)?;
                self.norm(tape, norm2()?, x)
            }
            Residual::Parallel | Residual::ParallelOneNorm => {
                let n = self.norm(tape, &p.norm1, x)?;
                let sum = self.attention(tape, layer, n, Some(x), reads, pass)?;
                let n = match residual {
                    Residual::Parallel => self.norm(tape, norm2()?, x)?,
                    _ => n,
                };
                self.mlp(tape, layer, n, Some(sum), pass)
            }
            Residual::Sandwich => {
                let post1 = p.post1.as_ref().ok_or_else(missing)?;
                let post2 = p.post2.as_ref().ok_or_else(missing)?;
                let n = self.norm(tape, &p.norm1, x)?;
                let o = self.attention(tape, layer, n, None, reads, pass)?;
                let o = self.norm(tape, post1, o)?;
                let x = op::add::add(tape, x, o)?;
                let n = self.norm(tape, norm2()?, x)?;
                let o = self.mlp(tape, layer, n, None, pass)?;
                let o = self.norm(tape, post2, o)?;
                op::add::add(tape, x, o)
            }
        }
    }

    /// Attention of `layer` on `n`, with `residual` added.
    fn attention<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        layer: usize,
        n: Tensor,
        residual: Option<Tensor>,
        reads: Reads<'_, 'a>,
        pass: Pass,
    ) -> Result<Tensor> {
        let (arch, p) = (&self.arch, &self.params.blocks[layer]);
        let (heads, kv_heads, head_dim) =
            (self.params.heads.each, self.params.kv_heads, arch.head_dim);
        self.joined(tape, &p.out, residual, pass, &mut |tape, block| {
            let mut qkv = self.linear(tape, &p.qkv, n, block, None, pass)?;
            if let Some([q, k]) = p.qk_norm {
                let norm = QkNorm { heads, kv_heads, head_dim, eps: arch.norm.eps };
                let (q, k) = (self.param(tape, q), self.param(tape, k));
                qkv = op::qk_norm::qk_norm(tape, norm, qkv, q, k)?;
            }
            if let Position::Rotary(rotary) = &arch.position {
                let (inv_freq, interleaved) = (rotary.inv_freq.clone(), rotary.interleaved);
                let rope = Rope { heads, kv_heads, head_dim, inv_freq, interleaved, scale: 1.0 };
                qkv = op::rope::rope(tape, rope, qkv, reads.positions)?;
            }
            self.attend(tape, layer, block, qkv, reads.attend)
        })
    }

    /// The MLP of `layer` on `n`, with `residual` added.
    fn mlp<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        layer: usize,
        n: Tensor,
        residual: Option<Tensor>,
        pass: Pass,
    ) -> Result<Tensor> {
        let (arch, p) = (&self.arch, &self.params.blocks[layer]);
        let kind = arch.activation;
        let adapted = pass.adapters && !p.up.adapters.is_empty();
        // Backward needs the activation's argument; without one it need not be stored.
        let fused = !(arch.gated || adapted || tape.is_recording());
        self.joined(tape, &p.down, residual, pass, &mut |tape, block| {
            if fused {
                return self.activated(tape, &p.up, n, block, kind);
            }
            let up = self.linear(tape, &p.up, n, block, None, pass)?;
            op::act::act(tape, Act { kind, gated: arch.gated }, up)
        })
    }

    fn attend<'a>(
        &self,
        tape: &mut Tape<'a>,
        layer: usize,
        block: Option<usize>,
        qkv: Tensor,
        attend: &Attend<'a>,
    ) -> Result<Tensor> {
        let (arch, heads) = (&self.arch, &self.params.heads);
        let alibi = match &arch.position {
            Position::Alibi { slopes } => Some(match block {
                None => slopes.clone(),
                Some(b) => {
                    // Heads that are padding have any.
                    let own = slopes[heads.blocks[b].clone()].iter().copied();
                    own.chain(std::iter::repeat(0.0)).take(heads.each).collect()
                }
            }),
            Position::Learned { .. } | Position::Rotary(_) => None,
        };
        let attention = Attention {
            alibi,
            window: arch.windows[layer],
            softcap: arch.attention_softcap,
            ..Attention::new(heads.each, self.params.kv_heads, arch.head_dim, arch.scale)
        };
        match attend {
            Attend::Packed { cu_seqlens } => {
                op::attention::attention(tape, attention, qkv, *cu_seqlens)
            }
            Attend::Cached { .. } if block != self.store.tp_shard() => {
                Err(Error::internal("a cache of one block's heads, and a pass over all blocks"))
            }
            Attend::Cached { cu_seqlens, starts, table, cache } => {
                let (k, v) = &cache.layers[layer];
                let k = tape.bind(k.region(), cache.desc);
                let v = tape.bind(v.region(), cache.desc);
                let cache =
                    op::cached_attention::Cache { starts: *starts, page_table: *table, k, v };
                op::cached_attention::cached_attention(tape, attention, qkv, *cu_seqlens, cache)
            }
        }
    }

    /// Returns the hidden rows that `select` `[n]` picks, and the weight and bias of the output
    /// layer. Logits are computed from these.
    fn output<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        hidden: Tensor,
        select: Tensor,
    ) -> Result<(Tensor, Tensor, Option<Tensor>)> {
        debug_assert_eq!(self.head, Head::Lm);
        let rows = op::gather::gather(tape, hidden, select)?;
        let weight = self.param(tape, self.params.head);
        let bias = self.params.head_bias.map(|b| self.param(tape, b));
        Ok((rows, weight, bias))
    }

    /// Log-probabilities and entropies f32 `[n]` of `targets` `[n]` after hidden rows `select`
    /// `[n]`.
    pub fn logprobs<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        hidden: Tensor,
        select: Tensor,
        targets: Tensor,
        temperature: f32,
    ) -> Result<(Tensor, Tensor)> {
        let (rows, weight, bias) = self.output(tape, hidden, select)?;
        let logprob = LogProb { temperature, softcap: self.arch.head_softcap };
        op::logprob::logprob(tape, logprob, rows, weight, bias, targets)
    }

    /// `scale` times the sum of the log-probabilities of `targets` `[n]` after hidden rows `select`
    /// `[n]`, under `weights` f32 `[n]`: f32 `[1]`, on a recording tape there after backward.
    pub fn cross_entropy<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        hidden: Tensor,
        select: Tensor,
        targets: Tensor,
        weights: Tensor,
        scale: f32,
    ) -> Result<Tensor> {
        let (rows, weight, bias) = self.output(tape, hidden, select)?;
        let cross_entropy =
            op::cross_entropy::CrossEntropy { scale, softcap: self.arch.head_softcap };
        op::cross_entropy::cross_entropy(tape, cross_entropy, rows, weight, bias, targets, weights)
    }

    /// Logits f32 `[n, vocab]` after hidden rows `select` `[n]`.
    pub fn logits<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        hidden: Tensor,
        select: Tensor,
    ) -> Result<Tensor> {
        let (rows, weight, bias) = self.output(tape, hidden, select)?;
        let linear = op::linear::Linear::LOGITS;
        let logits = op::linear::linear(tape, linear, rows, weight, bias, None)?;
        let logits = self.whole_rows(tape, logits)?;
        match self.arch.head_softcap {
            0.0 => Ok(logits),
            cap => op::softcap::softcap(tape, Softcap { cap }, logits),
        }
    }

    /// Scores f32 `[n]` at hidden rows `select` `[n]`.
    pub fn scores<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        hidden: Tensor,
        select: Tensor,
    ) -> Result<Tensor> {
        debug_assert_eq!(self.head, Head::Score);
        let rows = op::gather::gather(tape, hidden, select)?;
        let weight = self.param(tape, self.params.head);
        op::score_head::score_head(tape, rows, weight, None)
    }
}

//! The block interpreter. Training, scoring and generation run this one function; they differ only
//! in where attention finds its keys.

use crate::arch::{Activation, Position};
use crate::base::Result;
use crate::model::{Head, KvCache, Linear, Model, NormParams};
use crate::op;
use crate::op::act::{Act, Kind};
use crate::op::attention::Attention;
use crate::op::embed::Embed;
use crate::op::logprob::LogProb;
use crate::op::lora::Lora;
use crate::op::norm::Norm;
use crate::op::rope::Rope;
use crate::tape::{Keep, Tape};
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

/// How one pass over the model is made.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// What is kept for backward.
    pub keep: Keep,
    /// Whether LoRA adapters take part; without them the model is the base model.
    pub adapters: bool,
    /// Seed of LoRA dropout for this pass; `None` turns dropout off.
    pub dropout: Option<u64>,
}

impl Pass {
    /// Scoring and generation: nothing kept, adapters on, no dropout.
    pub const EVAL: Pass = Pass { keep: Keep::All, adapters: true, dropout: None };
}

impl Model {
    /// The last norm's output `[tokens, hidden]` for packed `ids` and `positions` `[tokens]`.
    pub fn hidden<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        ids: Tensor,
        positions: Tensor,
        attend: &Attend<'_>,
        pass: Pass,
    ) -> Result<Tensor> {
        tape.segment(Keep::All);
        let tokens = tape.param(&self.store, self.params.tokens);
        let table = self.params.positions.map(|p| tape.param(&self.store, p));
        let position_offset = match self.arch.position {
            Position::Learned { offset, .. } => offset,
            Position::Rope { .. } => 0,
        };
        let embed = Embed { position_offset, scale: 1.0 };
        let mut x = op::embed::embed(tape, embed, ids, positions, tokens, table)?;
        for layer in 0..self.arch.layers {
            tape.segment(pass.keep);
            x = self.block(tape, layer, x, positions, attend, pass)?;
        }
        tape.segment(Keep::All);
        self.norm(tape, &self.params.final_norm, x)
    }

    fn block<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        layer: usize,
        x: Tensor,
        positions: Tensor,
        attend: &Attend<'_>,
        pass: Pass,
    ) -> Result<Tensor> {
        let (arch, p) = (&self.arch, &self.params.blocks[layer]);
        let n = self.norm(tape, &p.norm1, x)?;
        let mut qkv = self.linear(tape, &p.qkv, n, None, pass)?;
        if let Position::Rope { inv_freq } = &arch.position {
            let rope = Rope {
                heads: arch.heads,
                kv_heads: arch.kv_heads,
                head_dim: arch.head_dim,
                inv_freq: inv_freq.clone(),
                interleaved: false,
                scale: 1.0,
            };
            qkv = op::rope::rope(tape, rope, qkv, positions)?;
        }
        let o = self.attend(tape, layer, qkv, attend)?;
        let x = self.linear(tape, &p.out, o, Some(x), pass)?;
        let n = self.norm(tape, &p.norm2, x)?;
        let up = self.linear(tape, &p.up, n, None, pass)?;
        let kind = match arch.activation {
            Activation::Relu => Kind::Relu,
            Activation::GeluErf => Kind::GeluErf,
            Activation::GeluTanh => Kind::GeluTanh,
            Activation::Silu => Kind::Silu,
        };
        let a = op::act::act(tape, Act { kind, gated: arch.gated }, up)?;
        self.linear(tape, &p.down, a, Some(x), pass)
    }

    fn attend(
        &self,
        tape: &mut Tape<'_>,
        layer: usize,
        qkv: Tensor,
        attend: &Attend<'_>,
    ) -> Result<Tensor> {
        let arch = &self.arch;
        let attention = Attention {
            heads: arch.heads,
            kv_heads: arch.kv_heads,
            head_dim: arch.head_dim,
            scale: arch.scale(),
        };
        match attend {
            Attend::Packed { cu_seqlens } => {
                op::attention::attention(tape, attention, qkv, *cu_seqlens)
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

    fn norm<'a>(&'a self, tape: &mut Tape<'a>, p: &NormParams, x: Tensor) -> Result<Tensor> {
        let weight = tape.param(&self.store, p.weight);
        let bias = p.bias.map(|b| tape.param(&self.store, b));
        let norm = &self.arch.norm;
        let norm = Norm { mean: norm.layer_norm, eps: norm.eps, unit_offset: false };
        op::norm::norm(tape, norm, x, weight, bias)
    }

    fn linear<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        p: &Linear,
        x: Tensor,
        residual: Option<Tensor>,
        pass: Pass,
    ) -> Result<Tensor> {
        let weight = tape.param(&self.store, p.weight);
        let bias = p.bias.map(|b| tape.param(&self.store, b));
        let linear = op::linear::Linear { f32_out: false };
        let mut y = op::linear::linear(tape, linear, x, weight, bias, residual)?;
        for adapter in p.adapters.iter().filter(|_| pass.adapters) {
            let config = self.lora.as_ref().expect("adapters come with a config");
            let lora = Lora {
                scale: config.scale(),
                offset: adapter.offset,
                dropout: pass.dropout.map_or(0.0, |_| config.dropout),
                seed: pass.dropout.unwrap_or(0),
                site: adapter.site,
            };
            let a = tape.param(&self.store, adapter.a);
            let b = tape.param(&self.store, adapter.b);
            y = op::lora::lora(tape, lora, y, x, a, b)?;
        }
        Ok(y)
    }

    /// Log-probabilities and entropies f32 `[n]` of `targets` `[n]` after hidden rows `select` `[n]`.
    pub fn logprobs<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        hidden: Tensor,
        select: Tensor,
        targets: Tensor,
        temperature: f32,
    ) -> Result<(Tensor, Tensor)> {
        debug_assert_eq!(self.head, Head::Lm);
        let rows = op::gather::gather(tape, hidden, select)?;
        let weight = tape.param(&self.store, self.params.head);
        let op = LogProb { temperature, softcap: 0.0 };
        op::logprob::logprob(tape, op, rows, weight, None, targets)
    }

    /// Logits f32 `[n, vocab]` after hidden rows `select` `[n]`.
    pub fn logits<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        hidden: Tensor,
        select: Tensor,
    ) -> Result<Tensor> {
        debug_assert_eq!(self.head, Head::Lm);
        let rows = op::gather::gather(tape, hidden, select)?;
        let weight = tape.param(&self.store, self.params.head);
        op::linear::linear(tape, op::linear::Linear { f32_out: true }, rows, weight, None, None)
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
        let weight = tape.param(&self.store, self.params.head);
        op::head::head(tape, rows, weight, None)
    }
}

//! Model families as data: a closed vocabulary of architectural choices, a table of tensor names
//! per family, and the reader of Hugging Face `config.json`. Holds no code that runs per step.

mod config;
mod families;
mod keys;

pub use config::Config;
pub use families::{FAMILIES, Family, Module, Names};
pub(crate) use keys::is_off;

use std::sync::Arc;

/// How positions enter.
#[derive(Clone, Debug, PartialEq)]
pub enum Position {
    /// A learned table of `rows` rows, of which position `p` uses row `p + offset`.
    Learned {
        /// Rows in the table.
        rows: usize,
        /// Added to the position (OPT: 2).
        offset: usize,
    },
    /// Rotary embedding.
    Rotary(Rotary),
    /// A bias on attention scores that grows with distance (ALiBi, Press et al. 2022).
    Alibi {
        /// By query head.
        slopes: Arc<[f32]>,
    },
}

/// Rotary embedding (Su et al. 2021) of the first `2 * inv_freq.len()` dims of each head.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// Inverse frequencies, one per rotated pair.
    pub inv_freq: Arc<[f32]>,
    /// Pairs are neighbours (2i, 2i + 1) instead of halves (i, i + n).
    pub interleaved: bool,
}

/// How the parts of a block follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// x += attention(norm1 x), then x += mlp(norm2 x).
    PreNorm,
    /// x = norm1(x + attention x), then x = norm2(x + mlp x).
    PostNorm,
    /// x += attention(norm1 x) + mlp(norm2 x).
    Parallel,
    /// x += attention(norm1 x) + mlp(norm1 x).
    ParallelOneNorm,
    /// x += post1(attention(norm1 x)), then x += post2(mlp(norm2 x)).
    Sandwich,
}

/// The order in which a checkpoint's fused q, k, v layer has its rows. Ours is q, k, v.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkvRows {
    /// q of all heads, then k, then v.
    Stacked,
    /// q, k, v of the first head, then of the second, ...
    ByHead,
    /// In so many blocks, of which each has q, v, k of its heads (CodeGen).
    Blocks(usize),
}

/// The normalisation used everywhere in the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormKind {
    /// LayerNorm (mean and bias) or RMSNorm.
    pub layer_norm: bool,
    /// Added to the variance.
    pub eps: f32,
    /// The stored weight is the scale minus 1.
    pub unit_offset: bool,
}

/// The activation of the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// max(x, 0).
    Relu,
    /// GELU with the tanh approximation ("gelu_new", "gelu_pytorch_tanh").
    GeluTanh,
    /// Exact GELU, x Phi(x).
    GeluErf,
    /// x sigmoid(x), also called swish.
    Silu,
}

/// The sizes every family has.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Rows of the embedding.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Width of the MLP.
    pub ffn: usize,
    /// Longest sequence.
    pub max_positions: usize,
}

/// One model architecture, fully resolved.
#[derive(Clone, Debug)]
pub struct Arch {
    /// Tensor names and Hugging Face class names.
    pub family: &'static Family,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the MLP.
    pub ffn: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// Width of the embedding; where it is not `hidden`, projections lead in and out.
    pub embed_width: usize,
    /// Factor on token embeddings.
    pub embed_scale: f32,
    /// A norm follows the embedding.
    pub embed_norm: bool,
    /// Position encoding.
    pub position: Position,
    /// Norm.
    pub norm: NormKind,
    /// A norm precedes the head.
    pub final_norm: bool,
    /// Order of the parts of a block.
    pub residual: Residual,
    /// Scale of the attention scores.
    pub scale: f32,
    /// Attention scores go through `cap * tanh(score / cap)`; 0 = they do not.
    pub attention_softcap: f32,
    /// Keys a query sees, itself included, by layer; 0 = all.
    pub windows: Arc<[usize]>,
    /// RMSNorm on every query and key head.
    pub qk_norm: bool,
    /// Rows of the checkpoint's fused qkv layer.
    pub qkv_order: QkvRows,
    /// MLP activation.
    pub activation: Activation,
    /// Gated MLP: `act(gate(x)) * up(x)`.
    pub gated: bool,
    /// Biases of q, k and v.
    pub bias_qkv: bool,
    /// Bias of the attention output.
    pub bias_out: bool,
    /// Biases of the MLP.
    pub bias_mlp: bool,
    /// The head is the embedding.
    pub tied: bool,
    /// The language-model head has a bias.
    pub head_bias: bool,
    /// Logits go through `cap * tanh(logit / cap)`; 0 = they do not.
    pub head_softcap: f32,
}

impl Arch {
    /// A pre-norm decoder with biases, LayerNorm, learned positions, GELU, and a tied head: GPT-2,
    /// from which the families name their differences.
    pub fn plain(family: &'static Family, s: Sizes) -> Arch {
        let head_dim = s.hidden / s.heads.max(1);
        Arch {
            family,
            vocab: s.vocab,
            hidden: s.hidden,
            layers: s.layers,
            heads: s.heads,
            kv_heads: s.heads,
            head_dim,
            ffn: s.ffn,
            max_positions: s.max_positions,
            embed_width: s.hidden,
            embed_scale: 1.0,
            embed_norm: false,
            position: Position::Learned { rows: s.max_positions, offset: 0 },
            norm: NormKind { layer_norm: true, eps: 1e-5, unit_offset: false },
            final_norm: true,
            residual: Residual::PreNorm,
            scale: 1.0 / (head_dim.max(1) as f32).sqrt(),
            attention_softcap: 0.0,
            windows: vec![0; s.layers].into(),
            qk_norm: false,
            qkv_order: QkvRows::Stacked,
            activation: Activation::GeluTanh,
            gated: false,
            bias_qkv: true,
            bias_out: true,
            bias_mlp: true,
            tied: true,
            head_bias: false,
            head_softcap: 0.0,
        }
    }

    /// About how many parameters there are, whatever the sizes.
    pub fn parameters(&self) -> f64 {
        let [hidden, ffn, head] = [self.hidden, self.ffn, self.head_dim].map(|n| n as f64);
        let [vocab, width] = [self.vocab, self.embed_width].map(|n| n as f64);
        let positions = match self.position {
            Position::Learned { rows, .. } => rows as f64 * hidden,
            Position::Rotary(_) | Position::Alibi { .. } => 0.0,
        };
        let attention = 2.0 * head * (self.heads + self.kv_heads) as f64 * hidden;
        let mlp = if self.gated { 3.0 } else { 2.0 } * hidden * ffn;
        2.0 * vocab * width
            + 2.0 * width * hidden
            + positions
            + self.layers as f64 * (attention + mlp)
    }

    /// For each of our q|k|v rows the row of the checkpoint's fused layer; None where they are the
    /// same.
    pub fn qkv_source_rows(&self) -> Option<Vec<usize>> {
        let (heads, d) = (self.heads, self.head_dim);
        // (part, head, dim) to the checkpoint's row.
        let place: Box<dyn Fn(usize, usize, usize) -> usize> = match self.qkv_order {
            QkvRows::Stacked => return None,
            QkvRows::ByHead => Box::new(move |part, head, i| (head * 3 + part) * d + i),
            QkvRows::Blocks(blocks) => {
                let local = heads / blocks;
                Box::new(move |part, head, i| {
                    let part = [0, 2, 1][part];
                    ((head / local * 3 + part) * local + head % local) * d + i
                })
            }
        };
        let rows = (0..3 * heads * d).map(|r| place(r / (heads * d), r / d % heads, r % d));
        Some(rows.collect())
    }
}

/// ALiBi's slopes for so many query heads.
pub fn alibi_slopes(heads: usize) -> Arc<[f32]> {
    // The largest power of two, then every other slope of twice as many heads.
    let whole = 1 << heads.max(1).ilog2();
    let slope = |heads: usize, k: usize| (-8.0 * k as f64 / heads as f64).exp2() as f32;
    let first = (1..=whole.min(heads)).map(|k| slope(whole, k));
    let rest = (0..heads.saturating_sub(whole)).map(|k| slope(2 * whole, 2 * k + 1));
    first.chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arch(heads: usize, qkv_order: QkvRows) -> Arch {
        let sizes =
            Sizes { vocab: 9, hidden: heads * 2, layers: 1, heads, ffn: 4, max_positions: 8 };
        Arch { qkv_order, ..Arch::plain(FAMILIES[0], sizes) }
    }

    #[test]
    fn slopes_of_any_number_of_heads() {
        let eight: Vec<f32> = (1..=8).map(|k| 0.5f32.powi(k)).collect();
        assert_eq!(*alibi_slopes(8), eight[..]);
        // The paper's example of 12 heads: those of 8, and every other one of 16.
        let more: Vec<f32> = (0..4).map(|k| 0.5f32.powf(0.5 * (2 * k + 1) as f32)).collect();
        // A config may say anything; it is refused later.
        assert!(alibi_slopes(0).is_empty());
        let twelve = alibi_slopes(12);
        assert_eq!(twelve[..8], eight[..]);
        assert!(twelve[8..].iter().zip(&more).all(|(a, b)| (a - b).abs() < 1e-7));
    }

    #[test]
    fn rows_of_fused_layers() {
        assert_eq!(arch(4, QkvRows::Stacked).qkv_source_rows(), None);
        let by_head = arch(2, QkvRows::ByHead).qkv_source_rows().unwrap();
        assert_eq!(by_head, [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]);
        // Two blocks of two heads: q0 q1 v0 v1 k0 k1 | q2 q3 v2 v3 k2 k3.
        let blocks = arch(4, QkvRows::Blocks(2)).qkv_source_rows().unwrap();
        assert_eq!(blocks[..8], [0, 1, 2, 3, 12, 13, 14, 15]);
        assert_eq!(blocks[8..16], [8, 9, 10, 11, 20, 21, 22, 23]);
        assert_eq!(blocks[16..], [4, 5, 6, 7, 16, 17, 18, 19]);
    }
}

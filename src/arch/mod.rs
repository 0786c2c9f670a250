//! Model families as data: a closed vocabulary of architectural choices, a table of tensor names per
//! family, and the reader of Hugging Face `config.json`. Holds no code that runs per step.

mod config;
mod families;

pub use config::Config;
pub use families::{FAMILIES, Family, Module, Names};

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
    /// Rotary embedding (Su et al. 2021) of the first `2 * inv_freq.len()` dims of each head, in
    /// half-split pairing.
    Rope {
        /// Inverse frequencies, one per rotated pair.
        inv_freq: Arc<[f32]>,
    },
}

/// The normalisation used everywhere in the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormKind {
    /// LayerNorm (mean and bias) or RMSNorm.
    pub layer_norm: bool,
    /// Added to the variance.
    pub eps: f32,
}

/// The activation of the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// max(0, x)
    Relu,
    /// GELU by erf.
    GeluErf,
    /// GELU by the tanh approximation.
    GeluTanh,
    /// x * sigmoid(x)
    Silu,
}

/// One model architecture, fully resolved. A pre-norm decoder with serial residuals.
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
    /// Position encoding.
    pub position: Position,
    /// Norm.
    pub norm: NormKind,
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
}

impl Arch {
    /// Rows of the fused q|k|v projection.
    pub fn qkv_rows(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Scale of the attention scores.
    pub fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

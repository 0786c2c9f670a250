//! Attributes of operators that kernels of the CPU take too. Each is part of its operator, which
//! hands it on under its own name.

pub use crate::arch::Activation as Kind;
use crate::base::DType;
use crate::device::cuda::constants::activation::{GELU_ERF, GELU_TANH, RELU, SILU};
use crate::tensor::Desc;
use std::sync::Arc;

/// The number by which kernels know an activation.
pub(super) fn kernel_number(kind: Kind) -> u32 {
    match kind {
        Kind::Relu => RELU,
        Kind::GeluTanh => GELU_TANH,
        Kind::GeluErf => GELU_ERF,
        Kind::Silu => SILU,
    }
}

/// A norm; `mean` selects LayerNorm, otherwise RMSNorm.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// Subtract the mean (LayerNorm).
    pub mean: bool,
    /// Added to the variance.
    pub eps: f32,
    /// The weight is stored less 1.
    pub unit_offset: bool,
}

/// Attention, with what some models do to the scores: scaled, then soft-capped, then biased,
/// then masked.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Dimensions per head.
    pub head_dim: usize,
    /// Multiplies the scores.
    pub scale: f32,
    /// ALiBi (Press et al. 2022): one slope per query head; slope times (query position - key
    /// position) is taken from the score.
    pub alibi: Option<Arc<[f32]>>,
    /// A query sees itself and the `window - 1` keys before it; 0 for all keys before it.
    pub window: usize,
    /// Scores become `softcap * tanh(score / softcap)`; 0 for as they are.
    pub softcap: f32,
}

impl Attention {
    /// Plain causal attention: no slopes, no window, no cap.
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize, scale: f32) -> Attention {
        Attention { heads, kv_heads, head_dim, scale, alibi: None, window: 0, softcap: 0.0 }
    }

    /// Keys that a query sees at most, itself included.
    pub fn reach(&self) -> usize {
        if self.window == 0 { usize::MAX } else { self.window }
    }

    /// True if scores are more than scaled products under the causal mask.
    pub fn adjusts(&self) -> bool {
        self.alibi.is_some() || self.window > 0 || self.softcap != 0.0
    }

    /// Query heads per kv head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Width of a row of qkv.
    pub fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// True if the attributes are valid, and `qkv` and `cu_seqlens` fit them.
    pub(super) fn fits(&self, qkv: &Desc, cu_seqlens: &Desc) -> bool {
        self.kv_heads > 0
            && self.heads > 0
            && self.heads.is_multiple_of(self.kv_heads)
            && self.head_dim > 0
            && self.alibi.as_ref().is_none_or(|slopes| slopes.len() == self.heads)
            && self.softcap.is_finite()
            && self.softcap >= 0.0
            && qkv.dtype.is_float()
            && qkv.shape.dims() == [qkv.shape.rows(), self.width()]
            && cu_seqlens.dtype == DType::I32
            && cu_seqlens.shape.numel() > 0
    }
}

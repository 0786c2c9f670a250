//! Phi-3 (Abdin et al. 2024): LLaMA with q, k, v in one layer and gate and up in another. Its long
//! rotary scaling ("longrope") is not supported.

use super::{Family, Names, llama};
use crate::arch::Arch;

pub(super) static PHI3: Family = Family {
    model_type: "phi3",
    causal_lm: "Phi3ForCausalLM",
    classifier: "Phi3ForSequenceClassification",
    transposed: false,
    names: Names { qkv: &["self_attn.qkv_proj"], up: &["mlp.gate_up_proj"], ..llama::NAMES },
    keys: &[
        llama::KEYS,
        llama::WINDOWS,
        &["original_max_position_embeddings", "partial_rotary_factor"],
    ],
    read: |c, family| {
        let arch = llama::read(c, family)?;
        Ok(Arch { windows: c.windows(arch.layers, 0, |_| true)?, ..arch })
    },
};

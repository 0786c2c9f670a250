//! The families, a file each: the tensor names of their Hugging Face checkpoints, and how their
//! `config.json` is read.

mod bloom;
mod codegen;
mod gemma2;
mod gpt2;
mod gpt_neo;
mod gpt_neox;
mod gptj;
mod llama;
mod opt;
mod phi3;

use crate::arch::config::{PART, rope_kind};
use crate::arch::{Arch, Config};
use crate::base::Result;
use serde_json::Value;

/// Checkpoint modules that make up one of our linear layers, stacked by output rows in this order.
pub type Module = &'static [&'static str];

/// Names of the modules in a checkpoint; block modules are relative to the block. Empty where a
/// family has no such module.
#[derive(Debug)]
pub struct Names {
    /// Prefix of everything but the heads, which some published checkpoints leave out.
    pub prefix: &'static str,
    /// Token embedding.
    pub tokens: &'static str,
    /// Position embedding.
    pub positions: &'static str,
    /// Norm after the embedding.
    pub embed_norm: &'static str,
    /// Projection from the embedding's width.
    pub project_in: &'static str,
    /// Projection to the embedding's width.
    pub project_out: &'static str,
    /// Block `{i}`.
    pub block: &'static str,
    /// Norm before attention (after it in post-norm models).
    pub norm1: &'static str,
    /// q, k and v.
    pub qkv: Module,
    /// Norm of query heads.
    pub q_norm: &'static str,
    /// Norm of key heads.
    pub k_norm: &'static str,
    /// Attention output.
    pub out: Module,
    /// Norm after attention, before the residual is added.
    pub post1: &'static str,
    /// Norm before the MLP (after it in post-norm models).
    pub norm2: &'static str,
    /// First MLP layer, or gate and up.
    pub up: Module,
    /// Second MLP layer.
    pub down: Module,
    /// Norm after the MLP, before the residual is added.
    pub post2: &'static str,
    /// Norm before the head.
    pub final_norm: &'static str,
    /// Language-model head, without the prefix.
    pub head: &'static str,
}

impl Names {
    /// No names; the usual one of the head.
    const NONE: Names = Names {
        prefix: "",
        tokens: "",
        positions: "",
        embed_norm: "",
        project_in: "",
        project_out: "",
        block: "",
        norm1: "",
        qkv: &[],
        q_norm: "",
        k_norm: "",
        out: &[],
        post1: "",
        norm2: "",
        up: &[],
        down: &[],
        post2: "",
        final_norm: "",
        head: "lm_head",
    };
}

/// One family.
#[derive(Debug)]
pub struct Family {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// Class of the language model.
    pub causal_lm: &'static str,
    /// Class of the reward model and critic (one label).
    pub classifier: &'static str,
    /// Linear weights of blocks are stored `[in, out]` (Conv1D).
    pub transposed: bool,
    /// Tensor names.
    pub names: Names,
    /// Keys of `config.json` that [`Family::read`] reads, in lists that families share.
    pub keys: &'static [&'static [&'static str]],
    /// Reads the architecture from a config.
    pub read: fn(&Config, &'static Family) -> Result<Arch>,
}

impl Family {
    /// True if a key of `config.json` is read.
    pub fn reads(&self, key: &str) -> bool {
        self.keys.iter().any(|list| list.contains(&key))
    }
}

/// All families.
pub static FAMILIES: [&Family; 13] = [
    &bloom::BLOOM,
    &codegen::CODEGEN,
    &gemma2::GEMMA2,
    &gpt2::GPT2,
    &gpt_neo::GPT_NEO,
    &gpt_neox::GPT_NEOX,
    &gptj::GPTJ,
    &llama::LLAMA,
    &llama::MISTRAL,
    &opt::OPT,
    &phi3::PHI3,
    &llama::QWEN2,
    &llama::QWEN3,
];

impl Config {
    /// The family named by `model_type`.
    pub fn family(&self) -> Result<&'static Family> {
        let name = self.map.get("model_type").and_then(Value::as_str).unwrap_or("(missing)");
        FAMILIES.into_iter().find(|f| f.model_type == name).ok_or_else(|| {
            let known: Vec<&str> = FAMILIES.iter().map(|f| f.model_type).collect();
            let own = match self.map.get("auto_map") {
                Some(Value::Object(map)) if !map.is_empty() => {
                    " (it needs code of its own, auto_map)"
                }
                _ => "",
            };
            self.error(
                "model_type",
                &format!("{name:?} is not supported{own}; known: {}", known.join(", ")),
            )
        })
    }

    /// The part of each head that turns: `partial_rotary_factor` in families that read it; the
    /// references of the others turn whole heads, whatever it says.
    ///
    /// # Errors
    /// The positions of such a family are scaled too: `transformers` does not run such a model.
    pub fn turning_part(&self, family: &Family) -> Result<f64> {
        let part = self.rope_number(PART, &[PART], 1.0)?;
        if family.reads(PART) {
            return Ok(part);
        }
        let kind = self.rope().and_then(|(_, rope)| rope_kind(rope));
        match kind {
            Some(kind) if kind != "default" && part != 1.0 => {
                Err(self.error(PART, &format!("{part} is not supported beside {kind} positions")))
            }
            _ => Ok(1.0),
        }
    }
}

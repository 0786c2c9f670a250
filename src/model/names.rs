//! Tensor names in files: which tensor of the model a name of a checkpoint or of an adapter means.
//!
//! Tools wrap a model before they save it (`module.`, `_orig_mod.`, `rwtransformer.`) or save its
//! body alone, without the family's prefix. All of these spellings mean the same tensor.

use crate::arch::Arch;
use crate::base::{Error, Result};
use crate::formats::Checkpoint;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// Parts of a name that a wrapper inserts anywhere: `torch.compile`, FSDP, activation
/// checkpointing, PEFT.
const TRANSPARENT: [&str; 4] =
    ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer"];

/// Wrappers in front of a whole model: data parallelism, merged PEFT models, DeepSpeed-Chat's
/// reward model, TRL's value head, and classes that hold the model as an attribute.
const WRAPPERS: [&str; 7] = [
    "module.",
    "base_model.model.",
    "rwtransformer.",
    "pretrained_model.",
    "base_model.",
    "model.",
    "transformer.",
];

/// Names of language-model heads.
const LM_HEADS: [&str; 2] = ["lm_head", "embed_out"];

/// Modules that score: transformers, DeepSpeed-Chat and TRL (`v_head`), OpenRLHF (`value_head`),
/// others.
const SCORE_HEADS: [&str; 10] = [
    "score",
    "v_head",
    "value_head",
    "reward_head",
    "classifier",
    "rm_head",
    "regression_head",
    "scalar_head",
    "score_head",
    "classification_head",
];

/// Ends of names of buffers: constants that older versions stored beside the weights.
const BUFFERS: [&str; 12] = [
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    ".attn.causal_mask",
    ".attn.embed_positions",
    "rotary_emb.inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    "rotary_emb.original_inv_freq",
    "position_ids",
    "decoder.version",
];

/// Ends of names that quantised weights have.
const QUANTISED: [&str; 10] = [
    ".qweight",
    ".qzeros",
    ".scales",
    ".g_idx",
    ".absmax",
    ".quant_map",
    ".SCB",
    ".weight_scale",
    ".weight_scale_inv",
    ".weight_format",
];

/// Meaning of a name.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    /// A tensor of the model, by its name in `transformers`.
    Tensor(String),
    /// Part of a score head.
    Score,
    /// A constant that is not read.
    Buffer,
    Unknown,
}

/// The tensors of a file by their meaning.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// From a tensor's name in `transformers` to its name in the file.
    pub(super) tensors: HashMap<String, String>,
    /// Names of score heads' tensors in the file.
    pub(super) score: Vec<String>,
    /// Names in the file that mean nothing.
    pub(super) unknown: Vec<String>,
}

/// The `transformers` name of the language-model head's `part`.
pub(super) fn head_name(arch: &Arch, part: &str) -> String {
    format!("{}.{part}", arch.family.names.head)
}

/// The `transformers` name of the token embedding.
pub(super) fn embedding_name(arch: &Arch) -> String {
    format!("{}{}.weight", arch.family.names.prefix, arch.family.names.tokens)
}

impl Names {
    /// Sorts the tensors of `file`, which lies in `dir`; `known` are those of the model. Errors
    /// where two different tensors mean the same one.
    pub(super) fn of(
        file: &Checkpoint,
        arch: &Arch,
        known: &HashSet<String>,
        dir: &Path,
    ) -> Result<Names> {
        let mut names = Names::default();
        for stored in file.names() {
            names.sort(stored, stored, arch, known, file, dir)?;
        }
        Ok(names)
    }

    /// Puts the tensor that `file` calls `stored`, by `name`, where it belongs.
    pub(super) fn sort(
        &mut self,
        name: &str,
        stored: &str,
        arch: &Arch,
        known: &HashSet<String>,
        file: &Checkpoint,
        dir: &Path,
    ) -> Result<()> {
        match meaning(name, arch, known) {
            Meaning::Buffer => {}
            Meaning::Score => self.score.push(stored.into()),
            Meaning::Unknown => self.unknown.push(stored.into()),
            Meaning::Tensor(name) => {
                let Some(other) = self.tensors.insert(name.clone(), stored.into()) else {
                    return Ok(());
                };
                if !same_tensor(file, &other, stored)? {
                    return Err(Error::user(format!(
                        "{}: {other} and {stored} are different tensors for {name}; keep one",
                        dir.display()
                    )));
                }
                self.tensors.insert(name, other);
            }
        }
        Ok(())
    }

    /// The stored name of the tensor that `transformers` calls `name`.
    pub(super) fn get(&self, name: &str) -> Option<&String> {
        self.tensors.get(name)
    }

    /// More about tensors that are not known.
    pub(super) fn hint(&self) -> &'static str {
        let ends =
            |list: &[&str]| self.unknown.iter().any(|n| list.iter().any(|end| n.ends_with(end)));
        if ends(&QUANTISED) {
            "; the weights are quantised, which is not supported: use the original ones"
        } else if self.unknown.iter().any(|n| n.contains(".lora_")) {
            "; they are LoRA adapters that were not merged: merge them, or save them alone with \
             PEFT"
        } else {
            ""
        }
    }
}

/// The `transformers` name of a tensor that a file calls `stored`, if the model has it.
pub(super) fn model_name(stored: &str, arch: &Arch, known: &HashSet<String>) -> Option<String> {
    match meaning(stored, arch, known) {
        Meaning::Tensor(name) => Some(name),
        _ => None,
    }
}

fn meaning(stored: &str, arch: &Arch, known: &HashSet<String>) -> Meaning {
    let kept: Vec<&str> = stored.split('.').filter(|s| !TRANSPARENT.contains(s)).collect();
    let whole = kept.join(".");
    let mut rest = whole.as_str();
    loop {
        // Published base models leave the prefix out; OPT's keeps half of it.
        for name in [
            rest.to_string(),
            format!("{}{rest}", arch.family.names.prefix),
            format!("model.{rest}"),
        ] {
            if known.contains(&name) {
                return Meaning::Tensor(name);
            }
        }
        for head in LM_HEADS {
            if let Some(part @ ("weight" | "bias")) =
                rest.strip_prefix(head).and_then(|r| r.strip_prefix('.'))
            {
                return Meaning::Tensor(head_name(arch, part));
            }
        }
        if rest.split_once('.').is_some_and(|(module, _)| SCORE_HEADS.contains(&module)) {
            return Meaning::Score;
        }
        match WRAPPERS.iter().find_map(|w| rest.strip_prefix(w)) {
            Some(inner) => rest = inner,
            None => break,
        }
    }
    match BUFFERS.iter().any(|end| whole.ends_with(end)) {
        true => Meaning::Buffer,
        false => Meaning::Unknown,
    }
}

/// True if two tensors of a file are equal bit for bit.
pub(super) fn same_tensor(file: &Checkpoint, a: &str, b: &str) -> Result<bool> {
    Ok(file.info(a) == file.info(b) && file.read_raw(a)? == file.read_raw(b)?)
}

/// Up to three names for a message.
pub(super) fn first_three(names: &[String]) -> String {
    names.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Config;
    use serde_json::json;

    fn arch(config: serde_json::Value) -> Arch {
        Config::from_map(config.as_object().unwrap().clone()).arch().unwrap()
    }

    #[test]
    fn wrappers_and_prefixes_of_every_tool_mean_the_same_tensor() {
        let opt = arch(json!({"model_type": "opt", "vocab_size": 50272, "hidden_size": 24,
            "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 40,
            "max_position_embeddings": 16}));
        let known: HashSet<String> =
            ["model.decoder.embed_tokens.weight", "model.decoder.layers.0.fc1.bias"]
                .map(String::from)
                .into();
        for stored in [
            "model.decoder.layers.0.fc1.bias",
            "decoder.layers.0.fc1.bias",
            "layers.0.fc1.bias",
            "module.model.decoder.layers.0.fc1.bias",
            "rwtransformer.decoder.layers.0.fc1.bias",
            "module.rwtransformer.decoder.layers.0.fc1.bias",
            "_orig_mod.model.decoder.layers.0._orig_mod.fc1.bias",
            "base_model.model.model.decoder.layers.0.fc1.base_layer.bias",
            "_fsdp_wrapped_module.model.decoder.layers.0._fsdp_wrapped_module.fc1.bias",
        ] {
            let want = Some("model.decoder.layers.0.fc1.bias".into());
            assert_eq!(model_name(stored, &opt, &known), want, "{stored}");
        }
        for (stored, want) in [
            ("v_head.summary.weight", Meaning::Score),
            ("module.v_head.weight", Meaning::Score),
            ("base_model.model.score.weight", Meaning::Score),
            ("decoder.version", Meaning::Buffer),
            ("module.embed_out.weight", Meaning::Tensor("lm_head.weight".into())),
            ("decoder.layers.1.fc1.bias", Meaning::Unknown),
            ("optimizer.step", Meaning::Unknown),
            ("decoder.layers.0.score.weight", Meaning::Unknown),
        ] {
            assert_eq!(meaning(stored, &opt, &known), want, "{stored}");
        }
    }
}

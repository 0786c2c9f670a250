//! A description of a model, read from its files without loading its weights: family, sizes,
//! tokenizer, LoRA targets, and the memory its phases take.

use super::config::InspectConfig;
use super::tokens;
use super::verify::head_of;
use crate::arch::{Arch, Config, Position, Residual};
use crate::base::{DType, Result, printable, read_text};
use crate::formats::Checkpoint;
use crate::model::{Head, LoraConfig, Model, Params, base_dir, linear_modules, resolve_model};
use crate::pool::ParamSpec;
use serde_json::Value;
use std::path::Path;

/// Tokens the cache's size is told for.
const CACHE_TOKENS: usize = 1024;

/// Rank of the adapters that are counted.
const LORA_RANK: usize = 16;

/// The description, one fact a line.
pub fn inspect(cfg: &InspectConfig) -> Result<String> {
    let given = resolve_model(&cfg.path.display().to_string())?;
    let dir = base_dir(&given)?;
    let config = Config::read(&dir)?;
    let mut arch = config.arch()?;
    let head = head_of(&given, &config);
    if head == Head::Lm {
        arch.tied = Model::ties_head(&given)?;
    }
    let (specs, _) = Params::lay_out(&arch, head, true, None, 1)?;
    let mut lines = vec![("directory", given.display().to_string())];
    if let Some(adapter) = adapter(&given) {
        lines.push(("adapter", adapter));
        lines.push(("base model", dir.display().to_string()));
    }
    lines.extend(shape(&arch, head, &specs));
    if head == Head::Score {
        lines.push(("score head", score_head(&given)?));
    }
    lines.push(("weights", weights(&dir)?));
    lines.extend(tokens::facts(&given, arch.vocab));
    lines.push(("lora modules", linear_modules(&arch).join(", ")));
    lines.push(("trained", trained(&arch, head, &specs)?));
    lines.extend(memory(&arch, count(&specs), cfg.dtype.dtype()));
    let line = |(name, value): &(&str, String)| format!("{name:<14} {}\n", printable(value));
    Ok(lines.iter().map(line).collect())
}

/// Parameters trained in full, and by LoRA on every linear layer.
fn trained(arch: &Arch, head: Head, specs: &[ParamSpec]) -> Result<String> {
    let modules = vec!["all".to_string()];
    let lora = LoraConfig { rank: LORA_RANK, alpha: 16.0, modules, ..LoraConfig::default() };
    let (adapted, _) = Params::lay_out(arch, head, true, Some(&lora), 1)?;
    let adapters: Vec<ParamSpec> = adapted.into_iter().filter(|s| s.trained).collect();
    Ok(format!(
        "{:.1} M in full; {:.1} M by LoRA of rank {LORA_RANK} on all modules",
        count(specs) as f64 / 1e6,
        count(&adapters) as f64 / 1e6
    ))
}

fn count(specs: &[ParamSpec]) -> usize {
    specs.iter().map(|s| s.shape.iter().product::<usize>()).sum()
}

fn shape(arch: &Arch, head: Head, specs: &[ParamSpec]) -> Vec<(&'static str, String)> {
    let position = match &arch.position {
        Position::Learned { .. } => "learned".to_string(),
        Position::Alibi { .. } => "ALiBi".to_string(),
        Position::Rotary(r) => {
            format!("rotary on {} of {} dims of a head", 2 * r.inv_freq.len(), arch.head_dim)
        }
    };
    let residual = match arch.residual {
        Residual::PreNorm => "pre-norm",
        Residual::PostNorm => "post-norm",
        Residual::Parallel => "attention and MLP in parallel",
        Residual::ParallelOneNorm => "attention and MLP in parallel behind one norm",
        Residual::Sandwich => "norms before and after attention and MLP",
    };
    let sliding = arch.windows.iter().filter(|w| **w > 0).count();
    let window = arch.windows.iter().max().copied().unwrap_or(0);
    let windows = match sliding {
        0 => String::new(),
        n => format!(", {n} of them with a window of {window}"),
    };
    let class = match head {
        Head::Score => arch.family.classifier,
        _ => arch.family.causal_lm,
    };
    let head = match head {
        Head::Score => "",
        _ if arch.tied => ", head tied",
        _ => ", head of its own",
    };
    let gated = if arch.gated { ", gated" } else { "" };
    let activation = format!("{:?}", arch.activation).to_lowercase();
    vec![
        ("family", format!("{} ({class})", arch.family.model_type)),
        ("parameters", format!("{:.1} M", count(specs) as f64 / 1e6)),
        ("layers", format!("{}{windows}, {residual}", arch.layers)),
        ("hidden", arch.hidden.to_string()),
        (
            "heads",
            format!(
                "{} of {} dims, {} for keys and values",
                arch.heads, arch.head_dim, arch.kv_heads
            ),
        ),
        ("mlp", format!("{}, {activation}{gated}", arch.ffn)),
        ("positions", format!("{}, {position}", arch.max_positions)),
        ("vocabulary", format!("{} rows{head}", arch.vocab)),
    ]
}

/// The score head of a reward model, by the name of its tensor.
fn score_head(dir: &Path) -> Result<String> {
    let tensors = Model::score_tensors(dir)?;
    Ok(match tensors.is_empty() {
        true => "none yet: it can be trained as a reward model".into(),
        false => tensors.join(", "),
    })
}

fn weights(dir: &Path) -> Result<String> {
    let checkpoint = Checkpoint::open(dir)?;
    let mut dtypes: Vec<String> = checkpoint
        .names()
        .filter_map(|n| checkpoint.info(n))
        .map(|info| format!("{:?}", info.dtype).to_lowercase())
        .collect();
    dtypes.sort();
    dtypes.dedup();
    let files = checkpoint.files().count();
    let plural = if files == 1 { "" } else { "s" };
    Ok(format!("{} in {files} file{plural}", dtypes.join(", ")))
}

/// Rank and modules of adapters, as their file says.
fn adapter(dir: &Path) -> Option<String> {
    let text = read_text(&dir.join("adapter_config.json"), 16 << 20).ok()?;
    let config: Value = serde_json::from_str(&text).ok()?;
    let list = |key: &str| match config.get(key) {
        Some(Value::Array(all)) => {
            let names: Vec<&str> = all.iter().filter_map(Value::as_str).collect();
            (!names.is_empty()).then(|| names.join(", "))
        }
        Some(Value::String(one)) => Some(one.clone()),
        Some(Value::Object(map)) if !map.is_empty() => Some(Value::Object(map.clone()).to_string()),
        _ => None,
    };
    let number = |key: &str| config.get(key).map_or("unset".into(), Value::to_string);
    let mut parts = vec![
        format!("{} of rank {}", config["peft_type"].as_str().unwrap_or("?"), number("r")),
        format!("alpha {}", number("lora_alpha")),
        format!("on {}", list("target_modules").unwrap_or("?".into())),
    ];
    for key in ["rank_pattern", "alpha_pattern", "modules_to_save"] {
        parts.extend(list(key).map(|value| format!("{key} {value}")));
    }
    Some(parts.join(", "))
}

/// Bytes by what holds them.
fn memory(arch: &Arch, params: usize, dtype: DType) -> Vec<(&'static str, String)> {
    let mib = |bytes: usize| format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20));
    let weights = params * dtype.size();
    // Gradients and Adam's two moments in f32, and f32 weights beside bf16 ones.
    let copies = if dtype == DType::Bf16 { 4 } else { 3 };
    let cache = 2 * arch.layers * arch.kv_heads * arch.head_dim * dtype.size() * CACHE_TOKENS;
    vec![
        (
            "memory",
            format!(
                "generation in {dtype}: weights {}, cache {} for {CACHE_TOKENS} tokens of one \
                 sequence",
                mib(weights),
                mib(cache)
            ),
        ),
        (
            "memory",
            format!(
                "training in {dtype}: weights {}, gradients and optimizer {} (only those of the \
                 adapters under LoRA), and activations",
                mib(weights),
                mib(copies * 4 * params)
            ),
        ),
    ]
}

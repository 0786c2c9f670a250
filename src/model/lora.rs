//! LoRA (Hu et al. 2021): settings, initialisation, and the adapter format of PEFT.

use crate::arch::Arch;
use crate::base::{Error, Result, Rng};
use crate::model::{Adapter, Model};
use serde_json::Value;
use std::path::Path;

/// Largest rank of adapters that are read, and of those that a run can ask for.
const MOST_RANK: usize = 4096;

/// Adapter settings.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank r.
    pub rank: usize,
    /// The update is scaled by alpha / r.
    pub alpha: f32,
    /// Dropout on the adapter's input.
    pub dropout: f32,
    /// Last parts of checkpoint module names ("q_proj", "c_attn"), or "all".
    pub modules: Vec<String>,
}

impl LoraConfig {
    /// Scale of the update.
    pub fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }

    /// Whether modules of this last name part get an adapter.
    pub fn targets(&self, module: &str) -> bool {
        self.modules.iter().any(|m| m == module || m == "all" || m == "all-linear")
    }

    /// Refuses a name that matches nothing.
    pub fn check(&self, arch: &Arch) -> Result<()> {
        let known = linear_modules(arch);
        if self.rank == 0 {
            return Err(Error::user("LoRA rank is 0; use --lora-dim 8 or more, or leave LoRA out"));
        }
        for m in &self.modules {
            if !(m == "all" || m == "all-linear" || known.contains(&m.as_str())) {
                return Err(Error::user(format!(
                    "LoRA module {m:?} matches no linear layer of this {} model; it has {}, or use \"all\"",
                    arch.family.model_type,
                    known.join(", ")
                )));
            }
        }
        Ok(())
    }
}

/// Last name parts of all linear layers in blocks: the names LoRA goes by.
pub fn linear_modules(arch: &Arch) -> Vec<&'static str> {
    let n = &arch.family.names;
    let all = [n.qkv, n.out, n.up, n.down].concat();
    all.into_iter().map(|m| m.rsplit('.').next().unwrap_or(m)).collect()
}

impl Model {
    /// All adapters, in block order.
    pub fn adapters(&self) -> impl Iterator<Item = &Adapter> {
        self.params.linears().flat_map(|l| l.adapters.iter())
    }

    /// A: Kaiming uniform with a = sqrt(5), that is uniform within 1/sqrt(in); B: zero.
    pub fn init_adapters(&self, seed: u64) -> Result<()> {
        for adapter in self.adapters() {
            let shape = &self.store.param(adapter.a).spec.shape;
            let bound = 1.0 / (shape[1] as f32).sqrt();
            let mut rng = Rng::new(seed, (1 << 32) + adapter.site);
            let n = shape[0] * shape[1];
            let values: Vec<f32> = (0..n).map(|_| (rng.uniform() * 2.0 - 1.0) * bound).collect();
            self.store.write_f32(adapter.a, &values)?;
            let zeros = vec![0.0; self.store.param(adapter.b).spec.shape.iter().product()];
            self.store.write_f32(adapter.b, &zeros)?;
        }
        Ok(())
    }
}

/// Whether `dir` holds PEFT adapters.
pub(crate) fn is_adapter_dir(dir: &Path) -> bool {
    dir.join("adapter_config.json").is_file()
}

/// Reads `adapter_config.json`: the settings and the base model's name.
pub(crate) fn read_adapter_config(dir: &Path) -> Result<(LoraConfig, String)> {
    let path = dir.join("adapter_config.json");
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, &e))?;
    let bad = |what: &str| Error::user(format!("{}: {what}", path.display()));
    let v: Value = serde_json::from_str(&text).map_err(|e| bad(&e.to_string()))?;
    for (key, supported) in [("use_rslora", false), ("use_dora", false)] {
        if v.get(key).and_then(Value::as_bool).unwrap_or(supported) != supported {
            return Err(bad(&format!("{key} is not supported")));
        }
    }
    if v.get("peft_type").and_then(Value::as_str) != Some("LORA") {
        return Err(bad("peft_type is not LORA"));
    }
    let rank = v.get("r").and_then(Value::as_u64).ok_or_else(|| bad("r is missing"))? as usize;
    if !(1..=MOST_RANK).contains(&rank) {
        return Err(bad(&format!("r is {rank}, expected 1 to {MOST_RANK}")));
    }
    let alpha = v.get("lora_alpha").and_then(Value::as_f64).unwrap_or(rank as f64) as f32;
    let dropout = v.get("lora_dropout").and_then(Value::as_f64).unwrap_or(0.0) as f32;
    let modules = match v.get("target_modules") {
        Some(Value::String(s)) => vec![s.clone()],
        Some(Value::Array(a)) => a.iter().filter_map(Value::as_str).map(String::from).collect(),
        _ => return Err(bad("target_modules is missing")),
    };
    let base = v.get("base_model_name_or_path").and_then(Value::as_str).unwrap_or("").to_string();
    Ok((LoraConfig { rank, alpha, dropout, modules }, base))
}

//! PEFT's `adapter_config.json`: every key is used, known to change nothing here, or refused by
//! name. Semantics are those of `peft.LoraConfig`.

use crate::arch::is_off;
use crate::base::{Error, Result, is_there, read_text};
use crate::model::lora::{LoraConfig, LoraRules};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Largest rank of adapters that are read, and of those that a run can ask for.
const MOST_RANK: usize = 4096;

/// Largest configuration read, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// Rank and alpha where the config has none.
const DEFAULT: usize = 8;

/// Keys that are read below.
const USED: [&str; 18] = [
    "alpha_pattern",
    "base_model_name_or_path",
    "bias",
    "ensure_weight_tying",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "use_rslora",
    "loftq_config",
];

/// Keys that do not change what trained adapters compute: records, settings of initialisation and
/// of memory, and layouts that follow from the model.
const HARMLESS: [&str; 15] = [
    "auto_mapping",
    "corda_config",
    "enable_lora",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "lora_ga_config",
    "megatron_core",
    "merge_weights",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
    "task_type",
    "unsloth_fixed",
    "velora_config",
];

/// Initialisations that leave the base model's weights alone.
const PLAIN_INIT: [&str; 3] = ["gaussian", "orthogonal", "eva"];

/// A parsed `adapter_config.json`.
#[derive(Clone, Debug)]
pub(super) struct AdapterConfig {
    /// Settings of the adapters.
    pub(super) lora: LoraConfig,
    /// Name or path of the base model, with `@` and its revision if one is given.
    pub(super) base: String,
}

/// True if `dir` holds PEFT adapters.
pub(super) fn is_adapter_dir(dir: &Path) -> Result<bool> {
    is_there(&dir.join("adapter_config.json"))
}

/// The file of the adapters' weights in `dir`: safetensors, else PyTorch's.
///
/// # Errors
/// There is neither.
pub fn adapter_weights(dir: &Path) -> Result<PathBuf> {
    for file in ["adapter_model.safetensors", "adapter_model.bin"].map(|f| dir.join(f)) {
        if is_there(&file)? {
            return Ok(file);
        }
    }
    Err(Error::user(format!(
        "{}: holds adapter_config.json, but neither adapter_model.safetensors nor \
         adapter_model.bin",
        dir.display()
    )))
}

impl AdapterConfig {
    /// Reads `dir/adapter_config.json`. Errors name the file and the key.
    pub(super) fn read(dir: &Path) -> Result<AdapterConfig> {
        let path = dir.join("adapter_config.json");
        let text = read_text(&path, MAX_FILE)?;
        let parsed = match serde_json::from_str(&text) {
            Ok(Value::Object(map)) => Keys(map).config(),
            Ok(_) => Err(Error::user("not a JSON object")),
            Err(e) => Err(Error::user(e.to_string())),
        };
        parsed.map_err(|e| e.context(path.display()))
    }
}

fn bad(key: &str, what: &str) -> Error {
    Error::user(format!("{key} {what}"))
}

struct Keys(Map<String, Value>);

impl Keys {
    fn config(&self) -> Result<AdapterConfig> {
        if self.get("peft_type").and_then(Value::as_str) != Some("LORA") {
            return Err(bad("peft_type", "is not LORA; only LoRA adapters are supported"));
        }
        for (key, value) in &self.0 {
            let known = USED.contains(&&**key) || HARMLESS.contains(&&**key);
            if !known && !is_off(value) {
                return Err(bad(
                    key,
                    "is set, which is not supported; merge the adapter with peft",
                ));
            }
        }
        self.check_init()?;
        let rank = match self.get("r") {
            None => DEFAULT,
            Some(v) => rank(v).map_err(|e| e.context("r"))?,
        };
        let mut rules = LoraRules {
            peft: true,
            rank_stabilised: self.flag("use_rslora")?,
            ensure_tying: self.flag("ensure_weight_tying")?,
            saved: self.strings("modules_to_save")?,
            bias: match self.get("bias").map(Value::as_str) {
                None => "none".into(),
                Some(Some(b @ ("none" | "all" | "lora_only"))) => b.into(),
                Some(_) => return Err(bad("bias", "is not none, all or lora_only")),
            },
            layers: self.layers()?,
            layers_pattern: self.strings("layers_pattern")?,
            ..LoraRules::default()
        };
        for (pattern, value) in self.pattern("rank_pattern")? {
            let rank =
                self::rank(value).map_err(|e| e.context(format!("rank_pattern {pattern:?}")))?;
            rules.rank_pattern.push((pattern.clone(), rank));
        }
        for (pattern, value) in self.pattern("alpha_pattern")? {
            let alpha = number(value).ok_or_else(|| {
                bad("alpha_pattern", &format!("of {pattern:?} is {value}, expected a number"))
            })?;
            rules.alpha_pattern.push((pattern.clone(), alpha));
        }
        match self.get("exclude_modules") {
            Some(Value::String(regex)) => rules.exclude_regex = Some(regex.clone()),
            _ => rules.exclude = self.strings("exclude_modules")?,
        }
        let modules = match self.get("target_modules") {
            Some(Value::String(all)) if all.eq_ignore_ascii_case("all-linear") => {
                vec!["all-linear".to_string()]
            }
            Some(Value::String(regex)) => {
                if rules.layers.is_some() {
                    return Err(bad("layers_to_transform", "cannot be used beside a pattern"));
                }
                rules.target_regex = Some(regex.clone());
                vec![]
            }
            Some(Value::Array(none)) if none.is_empty() => {
                return Err(bad("target_modules", "is empty, so it selects no module"));
            }
            _ => self.strings("target_modules")?,
        };
        let alpha = self.number("lora_alpha", DEFAULT as f32)?;
        let dropout = self.number("lora_dropout", 0.0)?;
        if !(0.0..1.0).contains(&dropout) {
            return Err(bad("lora_dropout", &format!("is {dropout}, expected 0 to 1")));
        }
        let text = |key| self.get(key).and_then(Value::as_str).unwrap_or("");
        let base = match (text("base_model_name_or_path"), text("revision")) {
            (base, "") => base.to_string(),
            (base, revision) => format!("{base}@{revision}"),
        };
        Ok(AdapterConfig { lora: LoraConfig { rank, alpha, dropout, modules, rules }, base })
    }

    /// Refuses initialisations that change the base model: loading them needs its old weights.
    fn check_init(&self) -> Result<()> {
        match self.get("init_lora_weights") {
            None | Some(Value::Bool(_)) => Ok(()),
            Some(Value::String(s)) if PLAIN_INIT.contains(&&*s.to_lowercase()) => Ok(()),
            Some(v) => Err(bad(
                "init_lora_weights",
                &format!(
                    "{v} changes the base model's weights, which is not supported; save the \
                     adapter with path_initial_model_for_weight_conversion, or merge it with peft"
                ),
            )),
        }
    }

    /// A value that is there and not null.
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    fn flag(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            None => Ok(false),
            Some(v) => {
                v.as_bool().ok_or_else(|| bad(key, &format!("is {v}, expected true or false")))
            }
        }
    }

    fn number(&self, key: &str, default: f32) -> Result<f32> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => number(v).ok_or_else(|| bad(key, &format!("is {v}, expected a number"))),
        }
    }

    /// A list of strings, or a single one.
    fn strings(&self, key: &str) -> Result<Vec<String>> {
        let wrong = || bad(key, "is not a list of names");
        match self.get(key) {
            None => Ok(vec![]),
            Some(Value::String(one)) => Ok(vec![one.clone()]),
            Some(Value::Array(all)) => {
                all.iter().map(|v| v.as_str().map(String::from).ok_or_else(wrong)).collect()
            }
            Some(_) => Err(wrong()),
        }
    }

    fn layers(&self) -> Result<Option<Vec<usize>>> {
        let key = "layers_to_transform";
        let one = |v: &Value| {
            let n = v.as_u64().ok_or_else(|| bad(key, &format!("has {v}, expected layers")))?;
            Ok(n as usize)
        };
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(all)) if all.is_empty() => Ok(None),
            Some(Value::Array(all)) => all.iter().map(one).collect::<Result<_>>().map(Some),
            Some(v) => Ok(Some(vec![one(v)?])),
        }
    }

    fn pattern(&self, key: &str) -> Result<impl Iterator<Item = (&String, &Value)>> {
        match self.get(key) {
            None => Ok(None.into_iter().flatten()),
            Some(Value::Object(map)) => Ok(Some(map.iter()).into_iter().flatten()),
            Some(v) => Err(bad(key, &format!("is {v}, expected patterns and numbers"))),
        }
    }
}

fn number(value: &Value) -> Option<f32> {
    value.as_f64().map(|x| x as f32).filter(|x| x.is_finite())
}

fn rank(value: &Value) -> Result<usize> {
    match value.as_u64() {
        Some(r) if (1..=MOST_RANK as u64).contains(&r) => Ok(r as usize),
        _ => Err(Error::user(format!("is {value}, expected 1 to {MOST_RANK}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(changes: Value) -> Result<AdapterConfig> {
        let mut all = json!({"peft_type": "LORA", "target_modules": ["q_proj"]});
        all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        Keys(all.as_object().unwrap().clone()).config()
    }

    #[test]
    fn absent_keys_have_the_defaults_of_peft() {
        let lora = read(json!({})).unwrap().lora;
        assert_eq!((lora.rank, lora.alpha, lora.dropout), (8, 8.0, 0.0));
        let lora = read(json!({"r": 3, "lora_alpha": null})).unwrap().lora;
        assert_eq!((lora.rank, lora.alpha), (3, 8.0));
    }

    #[test]
    fn what_is_switched_on_and_not_supported_is_named() {
        for (key, off, on) in [
            ("use_dora", json!(false), json!(true)),
            ("use_qalora", json!(false), json!(true)),
            ("lora_bias", json!(false), json!(true)),
            ("trainable_token_indices", json!(null), json!([3, 4])),
            ("target_parameters", json!([]), json!(["mlp.experts.down_proj"])),
            ("layer_replication", json!(null), json!([[0, 4], [2, 5]])),
            ("megatron_config", json!(null), json!({"a": 1})),
            ("alora_invocation_tokens", json!(null), json!([5])),
            ("arrow_config", json!(null), json!({"top_k": 3})),
            ("a_key_of_next_year", json!({}), json!("x")),
            ("init_lora_weights", json!(true), json!("pissa_niter_4")),
            ("init_lora_weights", json!("gaussian"), json!("olora")),
            ("peft_type", json!("LORA"), json!("IA3")),
            ("bias", json!("all"), json!("some")),
            ("r", json!(64), json!(0)),
            ("rank_pattern", json!({"q": 4}), json!({"q": -4})),
            ("alpha_pattern", json!({"q": 0.5}), json!({"q": "4"})),
            ("target_modules", json!(".*q_proj"), json!(7)),
            ("target_modules", json!(["q_proj"]), json!([])),
        ] {
            assert!(read(json!({key: off})).is_ok(), "{key}");
            let e = read(json!({key: on})).unwrap_err().to_string();
            assert!(e.contains(key), "{key}: {e}");
        }
    }
}

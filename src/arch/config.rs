//! Typed access to a Hugging Face `config.json`, with errors that name the file and the key.

use crate::arch::{Activation, Arch, FAMILIES, Family};
use crate::base::{Error, Result};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// A parsed `config.json`.
#[derive(Clone, Debug)]
pub struct Config {
    path: PathBuf,
    /// All keys, in file order, as they were.
    pub map: Map<String, Value>,
}

impl Config {
    /// Reads `dir/config.json`.
    pub fn read(dir: &Path) -> Result<Config> {
        let path = dir.join("config.json");
        if !dir.is_dir() {
            return Err(Error::user(format!(
                "{}: no such model directory; give a Hugging Face model directory or a cached model name",
                dir.display()
            )));
        }
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, &e))?;
        match serde_json::from_str(&text) {
            Ok(Value::Object(map)) => Ok(Config { path, map }),
            Ok(_) => Err(Error::user(format!("{}: not a JSON object", path.display()))),
            Err(e) => Err(Error::user(format!("{}: {e}", path.display()))),
        }
    }

    /// A config made in code.
    pub fn from_map(map: Map<String, Value>) -> Config {
        Config { path: PathBuf::from("config.json"), map }
    }

    /// The family named by `model_type`.
    pub fn family(&self) -> Result<&'static Family> {
        let name = self.map.get("model_type").and_then(Value::as_str).unwrap_or("(missing)");
        FAMILIES.iter().find(|f| f.model_type == name).ok_or_else(|| {
            let known: Vec<&str> = FAMILIES.iter().map(|f| f.model_type).collect();
            self.error(
                "model_type",
                &format!("{name:?} is not supported; known: {}", known.join(", ")),
            )
        })
    }

    /// The architecture described.
    pub fn arch(&self) -> Result<Arch> {
        let family = self.family()?;
        let arch = (family.read)(self, family)?;
        for (key, value) in [
            ("vocab size", arch.vocab),
            ("hidden size", arch.hidden),
            ("number of layers", arch.layers),
            ("number of heads", arch.heads),
            ("head size", arch.head_dim),
            ("MLP width", arch.ffn),
            ("number of positions", arch.max_positions),
        ] {
            if value == 0 {
                return Err(self.error(key, "is 0"));
            }
        }
        if arch.kv_heads == 0 || arch.heads % arch.kv_heads != 0 {
            let what = format!("{} does not divide the {} heads", arch.kv_heads, arch.heads);
            return Err(self.error("num_key_value_heads", &what));
        }
        Ok(arch)
    }

    /// An error about `key`.
    pub fn error(&self, key: &str, what: &str) -> Error {
        Error::user(format!("{}: {key} {what}", self.path.display()))
    }

    /// A required size.
    pub fn size(&self, key: &str) -> Result<usize> {
        match self.map.get(key) {
            None | Some(Value::Null) => Err(self.error(key, "is missing")),
            Some(v) => match v.as_u64() {
                Some(n) if n <= 1 << 32 => Ok(n as usize),
                _ => Err(self.error(key, &format!("is {v}, expected a size"))),
            },
        }
    }

    /// A size that may be absent or null.
    pub fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        if self.map.get(key).is_none_or(Value::is_null) { Ok(default) } else { self.size(key) }
    }

    /// A number that may be absent or null.
    pub fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(v) => {
                v.as_f64().ok_or_else(|| self.error(key, &format!("is {v}, expected a number")))
            }
        }
    }

    /// A flag that may be absent or null.
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(v) => v
                .as_bool()
                .ok_or_else(|| self.error(key, &format!("is {v}, expected true or false"))),
        }
    }

    /// Refuses any value of `key` but `supported` (its default when absent).
    pub fn only(&self, key: &str, supported: &Value) -> Result<()> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(()),
            Some(v) if v == supported => Ok(()),
            Some(v) => Err(self.error(key, &format!("{v} is not supported, only {supported}"))),
        }
    }

    /// The activation named by `key`.
    pub fn activation(&self, key: &str, default: &str) -> Result<Activation> {
        let name = self.map.get(key).and_then(Value::as_str).unwrap_or(default);
        match name {
            "relu" => Ok(Activation::Relu),
            "gelu" => Ok(Activation::GeluErf),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
            "silu" | "swish" => Ok(Activation::Silu),
            _ => Err(self.error(key, &format!("{name:?} is not supported; known: relu, gelu, gelu_new, gelu_pytorch_tanh, silu"))),
        }
    }

    /// Inverse rotary frequencies for `dims` rotated dims, from today's `rope_parameters` or the
    /// older `rope_theta` and `rope_scaling`.
    pub fn inv_freq(&self, dims: usize) -> Result<Vec<f32>> {
        let mut theta = self.number_or("rope_theta", 10_000.0)?;
        for key in ["rope_scaling", "rope_parameters"] {
            let Some(Value::Object(rope)) = self.map.get(key) else { continue };
            let kind = rope.get("rope_type").or_else(|| rope.get("type")).and_then(Value::as_str);
            if !matches!(kind, None | Some("default")) {
                return Err(self.error(
                    &format!("{key}.rope_type"),
                    &format!("{kind:?} is not supported, only \"default\""),
                ));
            }
            theta = rope.get("rope_theta").and_then(Value::as_f64).unwrap_or(theta);
        }
        Ok((0..dims / 2).map(|i| (1.0 / theta.powf(2.0 * i as f64 / dims as f64)) as f32).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(v: Value) -> Config {
        Config::from_map(v.as_object().unwrap().clone())
    }

    fn llama() -> Value {
        json!({"model_type": "llama", "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 50,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_parameters": {"rope_theta": 500.0}})
    }

    #[test]
    fn both_spellings_of_rope_theta_are_read() {
        let new = config(llama()).arch().unwrap();
        let mut old = llama();
        old.as_object_mut().unwrap().remove("rope_parameters");
        old["rope_theta"] = json!(500.0);
        assert_eq!(new.position, config(old).arch().unwrap().position);
        assert_eq!((new.head_dim, new.kv_heads, new.tied), (8, 2, false));
    }

    #[test]
    fn unsupported_and_missing_values_name_the_key() {
        let with = |key: &str, v: Value| {
            let mut c = llama();
            c[key] = v;
            config(c).arch().unwrap_err().to_string()
        };
        assert!(
            with("model_type", json!("mamba"))
                .contains("model_type \"mamba\" is not supported; known: opt")
        );
        assert!(with("hidden_size", Value::Null).contains("hidden_size is missing"));
        assert!(with("hidden_act", json!("mish")).contains("hidden_act \"mish\""));
        assert!(
            with("num_key_value_heads", json!(3)).contains("num_key_value_heads 3 does not divide")
        );
        assert!(with("rope_scaling", json!({"rope_type": "yarn"})).contains("yarn"));
    }
}

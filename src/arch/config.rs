//! Typed access to a Hugging Face `config.json`, with errors that name the file and the key.

use crate::arch::{Activation, Arch, Position};
use crate::base::{Error, Result, is_dir, read_text};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Largest file read, in bytes.
const MAX_FILE: u64 = 16 << 20;
/// Most layers or heads: both make tables before any weight is seen.
const MOST_PARTS: u64 = 4096;
/// Most dims of a head that rotary positions turn, for the same reason.
const MOST_ROTATED: usize = 1 << 16;
/// Widest residual stream, and all heads together: the rows of a fused layer are listed.
const MOST_WIDE: usize = 1 << 20;
/// More parameters than any machine holds; below it no product of sizes overflows.
const MOST_PARAMETERS: f64 = 1e15;
/// The key of the part of each head that turns.
pub(super) const PART: &str = "partial_rotary_factor";

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
        if !is_dir(dir)? {
            return Err(Error::user(format!(
                "{}: no such model directory; give a Hugging Face model directory or a cached \
                 model name",
                dir.display()
            )));
        }
        let text = read_text(&path, MAX_FILE)?;
        match serde_json::from_str(&text) {
            Ok(Value::Object(map)) => Ok(Config { path, map }),
            Ok(_) => Err(Error::user(format!("{}: not a JSON object", path.display()))),
            Err(e) => Err(Error::user(format!("{}: {e}", path.display()))),
        }
    }

    /// The directory it was read from; empty for one made in code.
    pub fn dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// A config made in code.
    pub fn from_map(map: Map<String, Value>) -> Config {
        Config { path: PathBuf::from("config.json"), map }
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
            ("embedding width", arch.embed_width),
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
        self.check_numbers(&arch)?;
        self.check_keys(&arch)?;
        Ok(arch)
    }

    /// Refuses numbers that nothing can be computed with.
    fn check_numbers(&self, arch: &Arch) -> Result<()> {
        if let Position::Rotary(r) = &arch.position
            && 2 * r.inv_freq.len() > arch.head_dim
        {
            let (dims, head) = (2 * r.inv_freq.len(), arch.head_dim);
            return Err(
                self.error("rotary positions", &format!("turn {dims} dims of a head of {head}"))
            );
        }
        for (key, x) in [
            ("the epsilon of norms", arch.norm.eps),
            ("the scale of attention", arch.scale),
            ("a soft cap", arch.attention_softcap),
            ("a soft cap", arch.head_softcap),
        ] {
            if !(0.0..f32::INFINITY).contains(&x) {
                return Err(self.error(key, &format!("is {x}")));
            }
        }
        let width = arch.hidden.max(arch.heads * arch.head_dim);
        if width > MOST_WIDE {
            return Err(self.error("sizes", &format!("are up to {width}, more than {MOST_WIDE}")));
        }
        let parameters = arch.parameters();
        if parameters > MOST_PARAMETERS {
            return Err(
                self.error("sizes", &format!("make a model of {parameters:.0e} parameters"))
            );
        }
        Ok(())
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// An error about `key`.
    pub fn error(&self, key: &str, what: &str) -> Error {
        Error::user(format!("{}: {key} {what}", self.path.display()))
    }

    /// A required size.
    pub fn size(&self, key: &str) -> Result<usize> {
        self.size_up_to(key, 1 << 32)
    }

    /// A required number of layers or heads.
    pub fn count(&self, key: &str) -> Result<usize> {
        self.size_up_to(key, MOST_PARTS)
    }

    fn size_up_to(&self, key: &str, most: u64) -> Result<usize> {
        match self.map.get(key) {
            None | Some(Value::Null) => Err(self.error(key, "is missing")),
            Some(v) => match v.as_u64() {
                Some(n) if n <= most => Ok(n as usize),
                Some(n) => Err(self.error(key, &format!("is {n}, more than {most}"))),
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
        let name = match self.map.get(key) {
            None => default,
            Some(Value::String(name)) => name,
            Some(other) => {
                return Err(self.error(key, &format!("is {other}, expected the name of one")));
            }
        };
        match name {
            "relu" => Ok(Activation::Relu),
            "gelu" => Ok(Activation::GeluErf),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
            "silu" | "swish" => Ok(Activation::Silu),
            _ => Err(self.error(
                key,
                &format!(
                    "{name:?} is not supported; known: relu, gelu, gelu_new, gelu_pytorch_tanh, \
                     silu"
                ),
            )),
        }
    }

    /// The keys of the older `rope_scaling`, which replaces today's `rope_parameters`, if any.
    pub(super) fn rope(&self) -> Option<(&'static str, &Map<String, Value>)> {
        ["rope_scaling", "rope_parameters"].into_iter().find_map(|key| match self.map.get(key) {
            Some(Value::Object(rope)) if !rope.is_empty() => Some((key, rope)),
            _ => None,
        })
    }

    /// [`PART`] of the rotary settings where it is not 1, by its whole name.
    pub(super) fn nested_part(&self) -> Option<String> {
        let (key, rope) = self.rope()?;
        let part = rope.get(PART)?.as_f64()?;
        (part != 1.0).then(|| format!("{key}.{PART}"))
    }

    /// A number that is `absent` where the key is missing and 0 where it is null.
    pub fn number_or_null(&self, key: &str, absent: f64) -> Result<f64> {
        let default = if self.map.contains_key(key) { 0.0 } else { absent };
        self.number_or(key, default)
    }

    /// A number of the rotary embedding, in `rope_parameters` or, as in older configs, beside it
    /// under one of `older` names.
    pub fn rope_number(&self, key: &str, older: &[&str], default: f64) -> Result<f64> {
        if let Some(x) = self.rope().and_then(|(_, r)| r.get(key)).and_then(Value::as_f64) {
            return Ok(x);
        }
        let given = older.iter().find(|k| self.map.get(**k).is_some_and(|v| !v.is_null()));
        given.map_or(Ok(default), |key| self.number_or(key, default))
    }

    /// Inverse rotary frequencies for `dims` rotated dims of base `theta`, with the scaling the
    /// config asks for: none, linear (positions divided), or LLaMA 3's by wavelength.
    pub fn inv_freq(&self, dims: usize, theta: f64) -> Result<Vec<f32>> {
        if !(1..=MOST_ROTATED).contains(&dims) {
            return Err(self.error("rotary positions", &format!("turn {dims} dims of a head")));
        }
        let frequencies = self.scaled_frequencies(dims, theta)?;
        if !frequencies.iter().all(|f| f.is_finite()) {
            return Err(self.error("rotary positions", "have a frequency that is not finite"));
        }
        Ok(frequencies)
    }

    fn scaled_frequencies(&self, dims: usize, theta: f64) -> Result<Vec<f32>> {
        for key in ["rope_scaling", "rope_parameters"] {
            if let Some(v) = self.map.get(key).filter(|v| !v.is_null() && !v.is_object()) {
                return Err(
                    self.error(key, &format!("is {v}, expected an object with its settings"))
                );
            }
        }
        // An odd number of dims has its last pair reach one dim further.
        let plain = (0..dims.div_ceil(2)).map(|i| theta.powf(-2.0 * i as f64 / dims as f64));
        let Some((key, rope)) = self.rope() else { return Ok(plain.map(|f| f as f32).collect()) };
        let kind = rope_kind(rope);
        let number = |name: &str| {
            let value = rope.get(name).and_then(Value::as_f64).filter(|x| *x > 0.0);
            value.ok_or_else(|| self.error(&format!("{key}.{name}"), "is missing"))
        };
        let scaled: Vec<f64> = match kind {
            None | Some("default") => plain.collect(),
            Some("linear") => {
                let factor = number("factor")?;
                plain.map(|f| f / factor).collect()
            }
            Some("llama3") => {
                let (factor, low) = (number("factor")?, number("low_freq_factor")?);
                let high = number("high_freq_factor")?;
                let original = match number("original_max_position_embeddings") {
                    Ok(original) => original,
                    Err(_) => self.size("max_position_embeddings")? as f64,
                };
                // Between the two wavelengths the factor fades out.
                let one = |f: f64| {
                    let turns = original * f / std::f64::consts::TAU;
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - kept) * f / factor + kept * f
                };
                plain.map(one).collect()
            }
            Some(other) => {
                return Err(self.error(
                    &format!("{key}.rope_type"),
                    &format!("{other:?} is not supported; known: default, linear, llama3"),
                ));
            }
        };
        Ok(scaled.into_iter().map(|f| f as f32).collect())
    }

    /// Windows by layer from `layer_types`; where that is absent, `otherwise` says which layers
    /// slide. Their width is `sliding_window`, by default `absent`; null means no layer slides.
    pub fn windows(
        &self,
        layers: usize,
        absent: usize,
        otherwise: impl Fn(usize) -> bool,
    ) -> Result<std::sync::Arc<[usize]>> {
        let null = self.map.contains_key("sliding_window");
        let window = self.size_or("sliding_window", if null { 0 } else { absent })?;
        let Some(Value::Array(types)) = self.map.get("layer_types") else {
            return Ok((0..layers).map(|i| if otherwise(i) { window } else { 0 }).collect());
        };
        if types.len() != layers {
            let what = format!("has {} entries for {layers} layers", types.len());
            return Err(self.error("layer_types", &what));
        }
        let one = |kind: &Value| match kind.as_str() {
            Some("sliding_attention") => Ok(window),
            Some("full_attention") => Ok(0),
            _ => Err(self.error("layer_types", &format!("{kind} is not supported"))),
        };
        types.iter().map(one).collect()
    }
}

/// The kind of scaling that the rotary settings name.
pub(super) fn rope_kind(rope: &Map<String, Value>) -> Option<&str> {
    rope.get("rope_type").or_else(|| rope.get("type")).and_then(Value::as_str)
}

#[cfg(test)]
mod tests;

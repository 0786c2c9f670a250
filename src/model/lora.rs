//! LoRA (Hu et al. 2021): settings, and which modules get an adapter of which rank and scale.

use crate::arch::Arch;
use crate::base::{Error, Result};
use crate::formats::Checkpoint;
use fancy_regex::Regex;
use std::collections::HashMap;

/// Adapter settings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoraConfig {
    /// Rank r.
    pub rank: usize,
    /// The update is scaled by alpha / r.
    pub alpha: f32,
    /// Dropout on the adapter's input.
    pub dropout: f32,
    /// Last parts of checkpoint module names ("q_proj", "self_attn.q_proj"), full names, or "all".
    pub modules: Vec<String>,
    /// More settings, of adapters that PEFT made.
    pub rules: LoraRules,
}

/// Settings of PEFT beyond rank, alpha, dropout and module names; patterns are Python's regular
/// expressions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoraRules {
    /// The settings come from PEFT, where a name may match nothing.
    pub peft: bool,
    /// Adapted modules, by a pattern of the whole name.
    pub target_regex: Option<String>,
    /// Modules left out, by name or suffix.
    pub exclude: Vec<String>,
    /// Modules left out, by a pattern of the whole name.
    pub exclude_regex: Option<String>,
    /// The only layers with adapters.
    pub layers: Option<Vec<usize>>,
    /// Patterns of the name before a layer's number.
    pub layers_pattern: Vec<String>,
    /// Ranks by pattern of the name's end; the first that matches counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// Alphas likewise.
    pub alpha_pattern: Vec<(String, f32)>,
    /// The update is scaled by alpha / sqrt(r).
    pub rank_stabilised: bool,
    /// Modules whose weights come with the adapters (`modules_to_save`), by the name's end.
    pub saved: Vec<String>,
    /// Biases that come with the adapters: none, all, lora_only.
    pub bias: String,
    /// A saved embedding stays tied to the head.
    pub ensure_tying: bool,
    /// Names lack the model's first part ("model."), since the base has no head.
    pub bare: bool,
}

/// Rank and scale of an adapter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Size {
    pub(super) rank: usize,
    pub(super) scale: f32,
}

/// The linear layers of all blocks by their checkpoint module names.
fn all_modules(arch: &Arch) -> impl Iterator<Item = String> {
    let n = &arch.family.names;
    let modules = [n.qkv, n.out, n.up, n.down].concat();
    let blocks = (0..arch.layers).map(|i| n.block.replace("{i}", &i.to_string()));
    blocks.flat_map(move |block| {
        let at = format!("{}{block}", n.prefix);
        modules.iter().map(|m| format!("{at}.{m}")).collect::<Vec<_>>()
    })
}

/// The modules that PEFT adapts in a family where nobody names any.
fn default_modules(arch: &Arch) -> Vec<String> {
    let modules: &[&str] = match arch.family.names.qkv {
        [fused] => &[fused],
        _ => &["q_proj", "v_proj"],
    };
    modules.iter().map(|m| m.rsplit('.').next().unwrap_or(m).to_string()).collect()
}

fn pattern(key: &str, pattern: &str, around: [&str; 2]) -> Result<Regex> {
    Regex::new(&format!("{}{pattern}{}", around[0], around[1]))
        .map_err(|e| Error::user(format!("{key}: {pattern:?} is not a pattern: {e}")))
}

fn matches(regex: &Regex, name: &str) -> Result<bool> {
    regex.is_match(name).map_err(|e| Error::user(format!("{}: {e}", regex.as_str())))
}

/// Values by patterns of the name's end.
fn by_end<T: Copy>(key: &str, patterns: &[(String, T)]) -> Result<Vec<(Regex, T)>> {
    const END: [&str; 2] = [r"\A(.*\.)?(", r")\z"];
    patterns.iter().map(|(p, value)| Ok((pattern(key, p, END)?, *value))).collect()
}

/// The value of the first pattern that `name` matches.
fn first<T: Copy>(patterns: &[(Regex, T)], name: &str) -> Result<Option<T>> {
    for (regex, value) in patterns {
        if matches(regex, name)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

/// True if a name stands for every linear layer.
fn is_all(module: &str) -> bool {
    module == "all" || module == "all-linear"
}

/// True if `name` is one of `list` or ends in one, from a dot on.
fn ends_in(list: &[String], name: &str) -> bool {
    list.iter()
        .any(|m| name.strip_suffix(m.as_str()).is_some_and(|r| r.is_empty() || r.ends_with('.')))
}

/// Compiled settings.
struct Matcher<'a> {
    lora: &'a LoraConfig,
    modules: Vec<String>,
    target: Option<Regex>,
    exclude: Vec<Regex>,
    layer: Vec<Regex>,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f32)>,
}

impl Matcher<'_> {
    fn new<'a>(lora: &'a LoraConfig, arch: &Arch) -> Result<Matcher<'a>> {
        const WHOLE: [&str; 2] = [r"\A(?:", r")\z"];
        let r = &lora.rules;
        let whole =
            |key, p: &Option<String>| p.as_ref().map(|p| pattern(key, p, WHOLE)).transpose();
        let mut exclude: Vec<Regex> =
            whole("exclude_modules", &r.exclude_regex)?.into_iter().collect();
        for m in &r.saved {
            exclude.push(pattern("modules_to_save", m, [r"\A(|.*\.)", r"(\z|\..*)"])?);
        }
        let layer = match r.layers_pattern.is_empty() {
            true => vec![pattern("layers_pattern", "", [r"\A.*?\.[^.]*\.(\d+)\.", ""])?],
            false => {
                let one = |p: &String| {
                    pattern("layers_pattern", p, [r"\A(?:|.*?\.)", r"\.(?<layer>\d+)\."])
                };
                r.layers_pattern.iter().map(one).collect::<Result<_>>()?
            }
        };
        let target = whole("target_modules", &r.target_regex)?;
        let unnamed = lora.modules.is_empty() && target.is_none();
        Ok(Matcher {
            lora,
            modules: if unnamed { default_modules(arch) } else { lora.modules.clone() },
            target,
            exclude,
            layer,
            ranks: by_end("rank_pattern", &r.rank_pattern)?,
            alphas: by_end("alpha_pattern", &r.alpha_pattern)?,
        })
    }

    /// Rank and scale of the adapter on a module, if it gets one.
    fn size(&self, name: &str) -> Result<Option<Size>> {
        let r = &self.lora.rules;
        for regex in &self.exclude {
            if matches(regex, name)? {
                return Ok(None);
            }
        }
        let targeted = match &self.target {
            Some(regex) => matches(regex, name)?,
            None => {
                let all = self.modules.iter().any(|m| is_all(m));
                (all || ends_in(&self.modules, name)) && self.in_layers(name)?
            }
        };
        if !targeted || ends_in(&r.exclude, name) {
            return Ok(None);
        }
        let rank = first(&self.ranks, name)?.unwrap_or(self.lora.rank);
        let alpha = first(&self.alphas, name)?.unwrap_or(self.lora.alpha);
        let by = if r.rank_stabilised { (rank as f32).sqrt() } else { rank as f32 };
        Ok(Some(Size { rank, scale: alpha / by }))
    }

    fn in_layers(&self, name: &str) -> Result<bool> {
        let Some(layers) = &self.lora.rules.layers else { return Ok(true) };
        for regex in &self.layer {
            let found = regex
                .captures(name)
                .map_err(|e| Error::user(format!("layers_pattern: {e}")))?
                .and_then(|c| {
                    let number = c.name("layer").or_else(|| c.get(1))?;
                    number.as_str().parse::<usize>().ok()
                });
            if let Some(layer) = found {
                return Ok(layers.contains(&layer));
            }
        }
        Ok(false)
    }
}

impl LoraRules {
    /// The name that the adapters' base has for a module or tensor: without the first part where
    /// they are [`LoraRules::bare`]. The score head's stays.
    pub(super) fn in_base<'n>(&self, name: &'n str) -> &'n str {
        let bare = name.split_once('.').filter(|(first, _)| self.bare && *first != "score");
        bare.map_or(name, |(_, rest)| rest)
    }

    /// True if a tensor is of a module whose weights come with the adapters.
    pub(super) fn saves(&self, tensor: &str) -> bool {
        let module = tensor.rsplit_once('.').map_or(tensor, |(module, _)| module);
        self.saved.iter().any(|m| module.ends_with(m.as_str()))
    }
}

impl LoraConfig {
    /// The same for the names in an adapter file, which may lack the model's first part.
    pub(super) fn for_names(mut self, file: &Checkpoint, arch: &Arch) -> LoraConfig {
        let prefix = arch.family.names.prefix;
        let root = prefix.split('.').next().unwrap_or(prefix);
        let factors = || file.names().filter(|n| n.contains(".lora_A."));
        let full = factors().any(|n| n.contains(&format!("base_model.model.{root}.")));
        self.rules.bare = !full && factors().next().is_some();
        self
    }

    /// Rank and scale of every adapter by the module it is on.
    ///
    /// # Errors
    /// A pattern is none, a name that is no PEFT setting matches nothing, or nothing is adapted.
    pub(super) fn sizes(&self, arch: &Arch) -> Result<HashMap<String, Size>> {
        self.check(arch)?;
        let matcher = Matcher::new(self, arch)?;
        let mut sizes = HashMap::new();
        for module in all_modules(arch) {
            if let Some(size) = matcher.size(self.rules.in_base(&module))? {
                sizes.insert(module, size);
            }
        }
        if sizes.is_empty() {
            let targets = match &self.rules.target_regex {
                Some(regex) => format!("{regex:?}"),
                None => matcher.modules.join(", "),
            };
            return Err(Error::user(format!(
                "target_modules {targets} match no linear layer of this {} model; it has {}",
                arch.family.model_type,
                linear_modules(arch).join(", ")
            )));
        }
        Ok(sizes)
    }

    /// Refuses a rank of 0, and a name that matches nothing where PEFT would not allow it.
    fn check(&self, arch: &Arch) -> Result<()> {
        if self.rank == 0 {
            return Err(Error::user("LoRA rank is 0; use --lora-dim 8 or more, or leave LoRA out"));
        }
        let linear: Vec<String> = all_modules(arch).collect();
        for m in self.modules.iter().filter(|_| !self.rules.peft) {
            let found = linear.iter().any(|l| ends_in(std::slice::from_ref(m), l));
            if !(is_all(m) || found) {
                return Err(Error::user(format!(
                    "LoRA module {m:?} matches no linear layer of this {} model; it has {}, or use \
                     \"all\"",
                    arch.family.model_type,
                    linear_modules(arch).join(", ")
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Config;
    use serde_json::json;

    fn llama() -> Arch {
        let config = json!({"model_type": "llama", "vocab_size": 96, "hidden_size": 32,
            "num_hidden_layers": 12, "num_attention_heads": 4, "intermediate_size": 50});
        Config::from_map(config.as_object().unwrap().clone()).arch().unwrap()
    }

    fn names(lora: &LoraConfig) -> Vec<String> {
        let mut names: Vec<String> = lora.sizes(&llama()).unwrap().into_keys().collect();
        names.sort();
        names
    }

    fn on(modules: &[&str], rules: LoraRules) -> LoraConfig {
        let modules = modules.iter().map(|m| m.to_string()).collect();
        let rules = LoraRules { peft: true, ..rules };
        LoraConfig { rank: 4, alpha: 8.0, dropout: 0.0, modules, rules }
    }

    #[test]
    fn modules_are_found_as_peft_finds_them() {
        let none = LoraRules::default();
        assert_eq!(names(&on(&["all-linear"], none.clone())).len(), 12 * 7);
        assert_eq!(names(&on(&["q_proj", "lm_head"], none.clone())).len(), 12);
        // A part of a name is none of it.
        assert_eq!(names(&on(&["proj", "self_attn.q_proj"], none.clone())).len(), 12);
        assert_eq!(names(&on(&["model.layers.3.mlp.up_proj"], none.clone())).len(), 1);
        // PEFT's own choice.
        assert_eq!(names(&on(&[], none.clone())).len(), 24);
        let regex = |r: &str| LoraRules { target_regex: Some(r.into()), ..none.clone() };
        let some = names(&on(&[], regex(r".*layers\.(1|10)\.(?!mlp).*[qk]_proj")));
        assert_eq!(some.len(), 4, "{some:?}");
        assert!(on(&[], regex("q_proj")).sizes(&llama()).is_err(), "must match the whole name");
        assert!(on(&[], regex("(")).sizes(&llama()).unwrap_err().to_string().contains("\"(\""));
        let layers = |layers_pattern: &[&str]| LoraRules {
            layers: Some(vec![1, 11]),
            layers_pattern: layers_pattern.iter().map(|p| p.to_string()).collect(),
            ..none.clone()
        };
        let some = names(&on(&["v_proj"], layers(&[])));
        assert_eq!(some, ["model.layers.1.self_attn.v_proj", "model.layers.11.self_attn.v_proj"]);
        assert_eq!(names(&on(&["v_proj"], layers(&["h", "layers"]))), some);
        assert!(on(&["v_proj"], layers(&["h"])).sizes(&llama()).is_err());
        let without = LoraRules { exclude: vec!["0.self_attn.q_proj".into()], ..none.clone() };
        assert_eq!(names(&on(&["q_proj"], without)).len(), 11);
        let regex = Some(r".*\.(\d)\..*".into());
        assert_eq!(
            names(&on(&["q_proj"], LoraRules { exclude_regex: regex, ..none.clone() })).len(),
            2
        );
        let saved = LoraRules { saved: vec!["mlp".into()], ..none };
        assert_eq!(names(&on(&["q_proj", "up_proj"], saved)).len(), 12);
    }

    #[test]
    fn the_first_pattern_that_matches_the_end_gives_rank_and_alpha() {
        let rules = LoraRules {
            rank_pattern: vec![("layers.1.self_attn.q_proj".into(), 16), ("q_proj".into(), 2)],
            alpha_pattern: vec![(r"layers\.\d\..*_proj".into(), 64.0), ("proj".into(), 1.0)],
            ..LoraRules::default()
        };
        let lora = on(&["q_proj", "v_proj"], rules.clone());
        let sizes = lora.sizes(&llama()).unwrap();
        let size = |layer: usize, m: &str| sizes[&format!("model.layers.{layer}.self_attn.{m}")];
        assert_eq!(size(1, "q_proj"), Size { rank: 16, scale: 4.0 });
        assert_eq!(size(11, "q_proj"), Size { rank: 2, scale: 4.0 });
        assert_eq!(size(9, "v_proj"), Size { rank: 4, scale: 16.0 });
        let stable = LoraRules { rank_stabilised: true, ..rules };
        let sizes = on(&["q_proj"], stable).sizes(&llama()).unwrap();
        assert_eq!(sizes["model.layers.1.self_attn.q_proj"], Size { rank: 16, scale: 16.0 });
    }
}

//! Loading Hugging Face checkpoints: finding the directory, checking that every tensor is there and
//! fits, and putting each into the store in our layout.

use crate::arch::Config;
use crate::base::{DType, Error, Result};
use crate::device::Device;
use crate::formats::{Checkpoint, layout};
use crate::model::lora::{is_adapter_dir, read_adapter_config};
use crate::model::{Head, LoraConfig, Model, Source};
use crate::pool::{Param, ParamId, Partition};
use std::path::{Path, PathBuf};

/// How a model is loaded or made.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Head wanted; a missing score head is initialised.
    pub head: Head,
    /// Storage type of weights and activations.
    pub dtype: DType,
    /// Whether it will be trained.
    pub train: bool,
    /// Storage type of gradients: f32, or for bf16 weights bf16.
    pub grads: DType,
    /// Where the weights live.
    pub device: Device,
    /// The ranks that share the model, and how.
    pub partition: Partition,
    /// Adapters to add.
    pub lora: Option<LoraConfig>,
    /// Seed of what has to be initialised.
    pub seed: u64,
    /// Whether the weights stay in the host's memory and come to the device when they are needed; of a frozen model that does not
    /// generate.
    pub offload: bool,
    /// Whether weights that are not finite are refused, rather than noted.
    pub strict: bool,
}

impl LoadOptions {
    /// A frozen model without new adapters, on the CPU.
    pub fn frozen(head: Head, dtype: DType) -> LoadOptions {
        let (grads, device) = (DType::F32, Device::Cpu);
        let (train, lora, seed, offload, strict) = (false, None, 0, false, false);
        let partition = Partition::alone();
        LoadOptions { head, dtype, train, grads, device, partition, lora, seed, offload, strict }
    }

    /// The same, on `device`.
    pub fn on(self, device: Device) -> LoadOptions {
        LoadOptions { device, ..self }
    }
}

/// The local Hugging Face cache: `HF_HUB_CACHE`, else `hub` in `HF_HOME`, else in `~/.cache/huggingface`.
pub fn hub_cache() -> PathBuf {
    let env = |key: &str| std::env::var_os(key).filter(|v| !v.is_empty()).map(PathBuf::from);
    env("HF_HUB_CACHE")
        .or_else(|| env("HF_HOME").map(|h| h.join("hub")))
        .or_else(|| env("HOME").map(|h| h.join(".cache/huggingface/hub")))
        .unwrap_or_default()
}

/// The directory of a model given as a path or as a name in the local Hugging Face cache
/// ([`hub_cache`]).
pub fn resolve_model(name: &str) -> Result<PathBuf> {
    let path = Path::new(name);
    if path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let looks_like_name = name.split('/').count() <= 2
        && !name.starts_with(['/', '.', '~'])
        && name.chars().all(|c| c.is_alphanumeric() || "-_./".contains(c));
    if !looks_like_name {
        return Err(Error::user(format!("{name}: no such model directory")));
    }
    let hub = hub_cache();
    let repo = hub.join(format!("models--{}", name.replace('/', "--")));
    if let Ok(commit) = std::fs::read_to_string(repo.join("refs/main")) {
        // A hash. Anything else could lead out of the cache.
        let commit = commit.trim();
        let plain = !commit.is_empty() && commit.chars().all(|c| c.is_ascii_alphanumeric());
        let snapshot = repo.join("snapshots").join(commit);
        if plain && snapshot.join("config.json").is_file() {
            return Ok(snapshot);
        }
    }
    Err(Error::user(format!(
        "{name}: neither a directory nor a model in the local cache {}; download it there first (`hf download {name}`) or give a directory",
        hub.display()
    )))
}

/// The directory of the base model where `dir` holds PEFT adapters, else `dir`.
pub fn base_dir(dir: &Path) -> Result<PathBuf> {
    if !is_adapter_dir(dir) {
        return Ok(dir.to_path_buf());
    }
    let (_, base) = read_adapter_config(dir)?;
    // Looked for beside the adapters first.
    let beside = dir.parent().unwrap_or(Path::new(".")).join(&base);
    if !base.is_empty() && beside.join("config.json").is_file() {
        return Ok(beside);
    }
    resolve_model(&base).map_err(|e| e.context("base of the adapters"))
}

impl Model {
    /// Loads a checkpoint directory, or PEFT adapters on the base they name.
    pub fn load(dir: &Path, options: &LoadOptions) -> Result<Model> {
        if dir.is_dir() && is_adapter_dir(dir) {
            return Model::load_adapted(dir, options);
        }
        let config = Config::read(dir)?;
        let mut model = Model::empty(&config, options)?;
        let checkpoint = Checkpoint::open(dir)?;
        model.fill(&checkpoint, dir, options)?;
        model.init_adapters(options.seed)?;
        Ok(model)
    }

    fn load_adapted(dir: &Path, options: &LoadOptions) -> Result<Model> {
        let (lora, _) = read_adapter_config(dir)?;
        if options.lora.is_some() {
            return Err(Error::user(format!(
                "{}: holds adapters already; merge them first, or give the base model",
                dir.display()
            )));
        }
        let base = base_dir(dir)?;
        let options = LoadOptions { lora: Some(lora), ..options.clone() };
        let mut model = Model::load(&base, &options)?;
        let file = Checkpoint::open_file(&dir.join("adapter_model.safetensors"))?;
        let mut notes = vec![];
        for adapter in model.adapters() {
            for (id, part) in [(adapter.a, "lora_A"), (adapter.b, "lora_B")] {
                let name = format!("base_model.model.{}.{part}.weight", adapter.module);
                let shape = &model.store.param(id).spec.shape;
                check_shape(&file, &name, shape, dir)?;
                let mut values = file.read_f32(&name)?;
                notes.extend(no_numbers(&values, &name, dir, options.strict)?);
                if let Some(order) = adapter.order.as_ref().filter(|_| part == "lora_B") {
                    values = layout::gather_rows(order, shape[1], &values);
                }
                model.store.write_f32(id, &values)?;
            }
        }
        model.notes.extend(notes);
        let score = "base_model.model.score.weight";
        if model.head == Head::Score && file.info(score).is_some() {
            model.store.write_f32(model.params.head, &file.read_f32(score)?)?;
            model.score_is_random = false;
        }
        Ok(model)
    }

    fn fill(&mut self, checkpoint: &Checkpoint, dir: &Path, options: &LoadOptions) -> Result<()> {
        let prefix = self.arch.family.names.prefix;
        // Published base-model checkpoints name tensors without the prefix.
        let find = |name: &str| -> Option<String> {
            let short = name.strip_prefix(prefix).unwrap_or(name);
            // OPT's base model keeps half of its prefix.
            let middle = name.strip_prefix("model.").unwrap_or(name);
            [name, short, middle]
                .into_iter()
                .find(|n| checkpoint.info(n).is_some())
                .map(String::from)
        };
        let mut missing = vec![];
        let mut init_score = false;
        for (i, source) in self.params.sources.iter().enumerate() {
            let Some(source) = source else { continue };
            let param = self.store.param(ParamId(i));
            let names: Vec<Option<String>> = source.tensors.iter().map(|(n, _)| find(n)).collect();
            if names.iter().any(Option::is_none) {
                if param.spec.name == "score.weight" {
                    init_score = true;
                } else {
                    missing.extend(
                        source
                            .tensors
                            .iter()
                            .zip(&names)
                            .filter(|(_, f)| f.is_none())
                            .map(|((n, _), _)| n.clone()),
                    );
                }
                continue;
            }
            let names: Vec<String> = names.into_iter().flatten().collect();
            let values = read_param(checkpoint, param, source, &names, dir)?;
            self.store.write_f32(ParamId(i), &values)?;
            self.notes.extend(no_numbers(&values, &names[0], dir, options.strict)?);
        }
        if !missing.is_empty() {
            return Err(Error::user(format!(
                "{}: {} tensors are missing, first {}",
                dir.display(),
                missing.len(),
                first_three(&missing)
            )));
        }
        self.refuse_extra(checkpoint, dir)?;
        if init_score {
            self.init_score(options.seed)?;
            self.score_is_random = true;
        }
        Ok(())
    }

    /// Refuses tensors that belong to no parameter, but for known buffers and the other head.
    fn refuse_extra(&self, checkpoint: &Checkpoint, dir: &Path) -> Result<()> {
        let prefix = self.arch.family.names.prefix;
        let sources = self.params.sources.iter().flatten();
        let known: std::collections::HashSet<&str> =
            sources.flat_map(|s| s.tensors.iter().map(|(n, _)| n.as_str())).collect();
        let ignored = |name: &str| {
            let buffers = [
                ".attn.bias",
                ".attn.masked_bias",
                ".attention.bias",
                ".attention.masked_bias",
                ".attn.causal_mask",
                "rotary_emb.inv_freq",
            ];
            let heads = [
                "lm_head.weight",
                "lm_head.bias",
                "embed_out.weight",
                "score.weight",
                "v_head.weight",
            ];
            heads.contains(&name) || buffers.iter().any(|b| name.ends_with(b))
        };
        let extra: Vec<String> = checkpoint
            .names()
            .filter(|n| {
                let (full, half) = (format!("{prefix}{n}"), format!("model.{n}"));
                !known.contains(n)
                    && !known.contains(&*full)
                    && !known.contains(&*half)
                    && !ignored(n)
            })
            .map(String::from)
            .collect();
        if extra.is_empty() {
            return Ok(());
        }
        Err(Error::user(format!(
            "{}: {} tensors belong to no part of a {} model of this config, first {}",
            dir.display(),
            extra.len(),
            self.arch.family.model_type,
            first_three(&extra)
        )))
    }
}

/// What is to be said of values of a tensor that are infinite or not a number; an error if `strict`.
fn no_numbers(values: &[f32], name: &str, dir: &Path, strict: bool) -> Result<Option<String>> {
    let bad = values.iter().filter(|v| !v.is_finite()).count();
    let told = format!("{}: {bad} values are not finite in {name}", dir.display());
    match bad {
        0 => Ok(None),
        _ if strict => {
            Err(Error::user(format!("{told}; use another model, or leave out --strict-weights")))
        }
        _ => Ok(Some(told)),
    }
}

fn first_three(names: &[String]) -> String {
    names.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn check_shape(checkpoint: &Checkpoint, name: &str, want: &[usize], dir: &Path) -> Result<()> {
    let Some(info) = checkpoint.info(name) else {
        return Err(Error::user(format!("{}: tensor {name} is missing", dir.display())));
    };
    if info.shape != want {
        return Err(Error::user(format!(
            "{}: tensor {name} has shape {:?}, the config says {want:?}",
            dir.display(),
            info.shape
        )));
    }
    Ok(())
}

/// Stacks the source tensors of a parameter into our row-major `[out, in]`.
fn read_param(
    checkpoint: &Checkpoint,
    param: &Param,
    source: &Source,
    names: &[String],
    dir: &Path,
) -> Result<Vec<f32>> {
    let shape_of = |rows: usize| {
        let mut shape = param.spec.shape.clone();
        shape[0] = rows;
        if source.transposed {
            shape.reverse();
        }
        shape
    };
    // Before there is room made for them: a config may say anything.
    for (name, (_, rows)) in names.iter().zip(&source.tensors) {
        check_shape(checkpoint, name, &shape_of(*rows), dir)?;
    }
    let mut out = Vec::with_capacity(param.spec.shape.iter().product());
    for (name, (_, rows)) in names.iter().zip(&source.tensors) {
        let shape = shape_of(*rows);
        let values = checkpoint.read_f32(name)?;
        if source.transposed {
            let mut turned = vec![0.0; values.len()];
            layout::transpose(shape[0], shape[1], &values, &mut turned);
            out.extend(turned);
        } else {
            out.extend(values);
        }
    }
    Ok(match &source.order {
        Some(order) => layout::gather_rows(order, out.len() / order.len(), &out),
        None => out,
    })
}

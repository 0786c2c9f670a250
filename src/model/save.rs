//! Saving Hugging Face directories: weights with adapters merged, or PEFT adapters alone.

use crate::base::{DType, Elem, Error, Result, bf16};
use crate::formats::{OutDir, SaveTensor, SourceDType, layout, save_sharded, write_safetensors};
use crate::model::names::{embedding_name, head_name};
use crate::model::{Adapter, Head, LoraConfig, Model, Source};
use crate::pool::ParamId;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Options of a save.
#[derive(Clone, Debug)]
pub struct SaveAs {
    /// Larger checkpoints are cut into shards.
    pub max_shard_bytes: usize,
    /// `eos_token_id` of `config.json`; `None` leaves the base's.
    pub eos: Option<Value>,
}

impl Default for SaveAs {
    fn default() -> Self {
        SaveAs { max_shard_bytes: 5_000_000_000, eos: None }
    }
}

/// Values to be written in place of a parameter's own, where there are some.
pub type Values<'v> = dyn Fn(ParamId) -> Result<Option<Vec<f32>>> + 'v;

/// Where the values of a checkpoint tensor come from.
#[derive(Clone)]
struct Part<'m> {
    param: ParamId,
    source: &'m Source,
    rows: std::ops::Range<usize>,
}

impl Part<'_> {
    /// The checkpoint tensor from the parameter's values, which have so many columns.
    fn as_stored(&self, values: &[f32], columns: usize) -> Vec<f32> {
        let range = self.rows.start * columns..self.rows.end * columns;
        let rows = match &self.source.order {
            Some(order) => layout::scatter_rows(order, columns, values)[range].to_vec(),
            None => values[range].to_vec(),
        };
        if !self.source.transposed {
            return rows;
        }
        let mut turned = vec![0.0; rows.len()];
        layout::transpose(self.rows.len(), columns, &rows, &mut turned);
        turned
    }
}

/// The checkpoint tensors of a model in its dtype, and where their values come from.
fn checkpoint_tensors(model: &Model) -> (Vec<SaveTensor>, HashMap<String, Part<'_>>) {
    let dtype = source_dtype(model.store.dtype());
    let (mut tensors, mut parts) = (vec![], HashMap::new());
    for (i, source) in model.params.sources.iter().enumerate() {
        let Some(source) = source else { continue };
        let shape = &model.store.param(ParamId(i)).spec.shape;
        let mut first = 0;
        for (name, rows) in &source.tensors {
            let mut dims = shape.clone();
            dims[0] = *rows;
            if source.transposed {
                dims.reverse();
            }
            tensors.push(to_save(model, name.clone(), dtype, &dims));
            let rows = first..first + rows;
            first = rows.end;
            parts.insert(name.clone(), Part { param: ParamId(i), source, rows });
        }
    }
    (tensors, parts)
}

/// A tensor of `model`, with values that are not finite only if the model came with some.
fn to_save(model: &Model, name: String, dtype: SourceDType, shape: &[usize]) -> SaveTensor {
    SaveTensor { any_value: model.not_finite, ..SaveTensor::new(name, dtype, shape) }
}

/// Writes `config.json` and the weights into `dir`. Adapters are merged.
/// `values` replaces the stored weights (an EMA) where it returns some. The other ranks that share
/// the weights [take part](take_part_in_saving).
pub fn save_model(
    model: &Model,
    dir: &OutDir,
    options: &SaveAs,
    values: Option<&Values<'_>>,
) -> Result<()> {
    save_or_read(model, Some(dir), options, values)
}

/// Does this rank's part in reading what another one writes by [`save_model`] and, with `adapters`,
/// by [`save_adapters`].
pub fn take_part_in_saving(
    model: &Model,
    values: Option<&Values<'_>>,
    adapters: bool,
) -> Result<()> {
    save_or_read(model, None, &SaveAs::default(), values)?;
    if adapters { adapters_to(model, None, "") } else { Ok(()) }
}

fn save_or_read(
    model: &Model,
    dir: Option<&OutDir>,
    options: &SaveAs,
    values: Option<&Values<'_>>,
) -> Result<()> {
    if let Some(dir) = dir {
        write_json(dir, "config.json", &config_of(model, options).into())?;
    }
    let (tensors, parts) = checkpoint_tensors(model);
    let adapters = merged_adapters(model);
    let value = |id: ParamId| {
        let given = values.map_or(Ok(None), |f| f(id))?;
        given.map_or_else(|| model.store.read_f32(id), Ok)
    };
    let mut bytes = |t: &SaveTensor| {
        let part = &parts[&t.name];
        let columns: usize = model.store.param(part.param).spec.shape[1..].iter().product();
        let mut w = value(part.param)?;
        // A parameter of several tensors comes by here once for each, and merges that one's
        // adapter.
        let merged = adapters.get(&part.param).into_iter().flat_map(|a| a.iter());
        for adapter in merged.filter(|a| part.rows.contains(&a.offset)) {
            merge(adapter, &value, columns, &mut w)?;
        }
        let w = part.as_stored(&w, columns);
        Ok(Cow::Owned(to_bytes(&w, model.store.dtype())))
    };
    match dir {
        Some(dir) => save_sharded(dir, &tensors, options.max_shard_bytes, &mut bytes).map(|_| ()),
        None => tensors.iter().try_for_each(|t| bytes(t).map(|_| ())),
    }
}

fn source_dtype(dtype: DType) -> SourceDType {
    match dtype {
        DType::Bf16 => SourceDType::Bf16,
        _ => SourceDType::F32,
    }
}

fn to_bytes(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::Bf16 => {
            values.iter().flat_map(|v| <bf16 as Elem>::from_f32(*v).to_le_bytes()).collect()
        }
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

fn merged_adapters(model: &Model) -> HashMap<ParamId, &Vec<Adapter>> {
    let adapted = model.params.linears().filter(|l| !l.adapters.is_empty());
    adapted.map(|l| (l.weight, &l.adapters)).collect()
}

/// W[offset.., :] += scale * B A, with A and B as `value` gives them.
fn merge(
    adapter: &Adapter,
    value: &dyn Fn(ParamId) -> Result<Vec<f32>>,
    columns: usize,
    w: &mut [f32],
) -> Result<()> {
    let Adapter { rank, scale, .. } = *adapter;
    let (a, b) = (value(adapter.a)?, value(adapter.b)?);
    for row in 0..adapter.rows {
        let out = &mut w[(adapter.offset + row) * columns..][..columns];
        for r in 0..rank {
            let f = scale * b[row * rank + r];
            out.iter_mut().zip(&a[r * columns..]).for_each(|(o, a)| *o += f * a);
        }
    }
    Ok(())
}

/// The config with what the weights are now: class, dtype, end tokens, labels.
fn config_of(model: &Model, options: &SaveAs) -> Map<String, Value> {
    let mut map = model.config.map.clone();
    let family = model.arch.family;
    let class = match model.head {
        Head::Lm => family.causal_lm,
        Head::Score => family.classifier,
    };
    map.insert("architectures".into(), json!([class]));
    let dtype = if model.store.dtype() == DType::Bf16 { "bfloat16" } else { "float32" };
    map.shift_remove("torch_dtype");
    map.insert("dtype".into(), json!(dtype));
    if let Some(eos) = &options.eos {
        map.insert("eos_token_id".into(), eos.clone());
    }
    if model.head == Head::Score {
        map.insert("num_labels".into(), json!(1));
        map.insert("id2label".into(), json!({"0": "LABEL_0"}));
        map.insert("label2id".into(), json!({"LABEL_0": 0}));
    }
    map
}

fn write_json(dir: &OutDir, name: &str, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::internal(e.to_string()))?;
    dir.write_bytes(name, format!("{text}\n").as_bytes())
}

/// Writes the adapters in PEFT's format. `base` is the name recorded as their base model.
pub fn save_adapters(model: &Model, dir: &OutDir, base: &str) -> Result<()> {
    adapters_to(model, Some(dir), base)
}

fn adapters_to(model: &Model, dir: Option<&OutDir>, base: &str) -> Result<()> {
    let Some(lora) = &model.lora else {
        return Err(Error::internal("save_adapters of a model without adapters"));
    };
    let mut tensors = vec![];
    let mut places = HashMap::new();
    for adapter in model.adapters() {
        for (id, part) in [(adapter.a, "lora_A"), (adapter.b, "lora_B")] {
            let name = in_peft(lora, &format!("{}.{part}.weight", adapter.module));
            let shape = &model.store.param(id).spec.shape;
            tensors.push(to_save(model, name.clone(), SourceDType::F32, shape));
            let order = adapter.order.clone().filter(|_| part == "lora_B");
            places.insert(name, Place::Factor(id, order));
        }
    }
    let (stored, mut parts) = checkpoint_tensors(model);
    let adapted: HashSet<&str> = model.adapters().map(|a| a.module.as_str()).collect();
    for tensor in &stored {
        let score = tensor.name == "score.weight";
        if !score && !model.saved_with_adapters.contains(&tensor.name) {
            continue;
        }
        let Some(part) = parts.remove(&tensor.name) else { continue };
        // PEFT looks for an adapted module's own tensors below it.
        let name = match tensor.name.rsplit_once('.') {
            Some((module, end)) if adapted.contains(module) => format!("{module}.base_layer.{end}"),
            _ => tensor.name.clone(),
        };
        let mut names = vec![name];
        // PEFT keeps a copy for each of two modules that it ties.
        let tied = model.arch.tied && model.head == Head::Lm && lora.rules.ensure_tying;
        if tied && tensor.name == embedding_name(&model.arch) {
            names.push(head_name(&model.arch, "weight"));
        }
        for name in names.iter().map(|n| in_peft(lora, n)) {
            tensors.push(to_save(model, name.clone(), SourceDType::F32, &tensor.info.shape));
            places.insert(name, Place::Base(part.clone()));
        }
    }
    let mut bytes = |t: &SaveTensor| {
        let values = match &places[&t.name] {
            Place::Factor(id, order) => {
                let values = model.store.read_f32(*id)?;
                match order {
                    Some(order) => layout::scatter_rows(order, values.len() / order.len(), &values),
                    None => values,
                }
            }
            Place::Base(part) => {
                let shape = &model.store.param(part.param).spec.shape;
                let values = model.store.read_f32(part.param)?;
                part.as_stored(&values, shape[1..].iter().product())
            }
        };
        Ok(Cow::Owned(to_bytes(&values, DType::F32)))
    };
    let Some(dir) = dir else {
        return tensors.iter().try_for_each(|t| bytes(t).map(|_| ()));
    };
    let metadata = Some(("format", "pt"));
    write_safetensors(dir, "adapter_model.safetensors", &tensors, metadata, &mut bytes)?;
    write_json(dir, "adapter_config.json", &adapter_config(model, lora, base))
}

/// Where the values of an adapter file's tensor come from.
enum Place<'m> {
    /// A factor, with the order of its rows in the checkpoint.
    Factor(ParamId, Option<Arc<[usize]>>),
    /// A tensor of the base.
    Base(Part<'m>),
}

/// The name that PEFT gives a tensor.
fn in_peft(lora: &LoraConfig, name: &str) -> String {
    format!("base_model.model.{}", lora.rules.in_base(name))
}

/// Patterns with their values, in order.
fn patterns<T: Serialize>(all: &[(String, T)]) -> Map<String, Value> {
    all.iter().map(|(pattern, value)| (pattern.clone(), json!(value))).collect()
}

/// The settings in PEFT's words. A selection of modules that names alone do not make is written as
/// a list of full names.
fn adapter_config(model: &Model, lora: &LoraConfig, base: &str) -> Value {
    let rules = &lora.rules;
    let last = |m: &str| m.rsplit('.').next().unwrap_or(m).to_string();
    let selected = rules.target_regex.is_some()
        || rules.exclude_regex.is_some()
        || !rules.exclude.is_empty()
        || rules.layers.is_some()
        || lora.modules.iter().any(|m| m.contains('.'));
    let full = |m: &str| rules.in_base(m).to_string();
    let modules =
        model.adapters().map(|a| if selected { full(&a.module) } else { last(&a.module) });
    let mut modules: Vec<String> = modules.collect();
    modules.sort();
    modules.dedup();
    let score = model.head == Head::Score;
    let mut saved: Vec<&str> = rules.saved.iter().map(String::as_str).collect();
    if score && !saved.contains(&"score") {
        saved.push("score");
    }
    json!({
        "peft_type": "LORA",
        "task_type": if score { "SEQ_CLS" } else { "CAUSAL_LM" },
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": modules,
        "rank_pattern": patterns(&rules.rank_pattern),
        "alpha_pattern": patterns(&rules.alpha_pattern),
        "use_rslora": rules.rank_stabilised,
        "modules_to_save": if saved.is_empty() { json!(null) } else { json!(saved) },
        "ensure_weight_tying": rules.ensure_tying,
        "bias": if rules.bias.is_empty() { "none" } else { &rules.bias },
        "fan_in_fan_out": model.arch.family.transposed,
        "inference_mode": true,
        "init_lora_weights": true,
    })
}

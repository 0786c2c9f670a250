//! Saving Hugging Face directories: weights with adapters merged, or PEFT adapters alone.

use crate::base::{DType, Elem, Error, Result, bf16};
use crate::formats::{
    SaveTensor, SourceDType, layout, save_sharded, write_atomic, write_safetensors,
};
use crate::model::{Adapter, Head, Model, Source};
use crate::pool::ParamId;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
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
struct Part<'m> {
    param: ParamId,
    source: &'m Source,
    rows: std::ops::Range<usize>,
}

/// Writes `config.json` and the weights into `dir`, which is made if absent. Adapters are merged.
/// `values` replaces the stored weights (an EMA) where it returns some. The other ranks that share the weights
/// [take part](take_part_in_saving).
pub fn save_model(
    model: &Model,
    dir: &Path,
    options: &SaveAs,
    values: Option<&Values<'_>>,
) -> Result<()> {
    save_or_read(model, Some(dir), options, values)
}

/// Does this rank's part in reading what another one writes by [`save_model`] and, with `adapters`, by [`save_adapters`].
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
    dir: Option<&Path>,
    options: &SaveAs,
    values: Option<&Values<'_>>,
) -> Result<()> {
    if let Some(dir) = dir {
        std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, &e))?;
        write_json(&dir.join("config.json"), &config_of(model, options).into())?;
    }
    let dtype = source_dtype(model.store.dtype());
    let mut tensors = vec![];
    let mut parts = HashMap::new();
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
            tensors.push(SaveTensor::new(name.clone(), dtype, &dims));
            let rows = first..first + rows;
            first = rows.end;
            parts.insert(name.clone(), Part { param: ParamId(i), source, rows });
        }
    }
    let adapters = merged_adapters(model);
    let value = |id: ParamId| {
        let given = values.map_or(Ok(None), |f| f(id))?;
        given.map_or_else(|| model.store.read_f32(id), Ok)
    };
    let mut bytes = |t: &SaveTensor| {
        let part = &parts[&t.name];
        let columns: usize = model.store.param(part.param).spec.shape[1..].iter().product();
        let range = part.rows.start * columns..part.rows.end * columns;
        let mut w = value(part.param)?;
        // A parameter of several tensors comes by here once for each, and merges that one's adapter.
        let merged = adapters.get(&part.param).into_iter().flat_map(|a| a.iter());
        for adapter in merged.filter(|a| part.rows.contains(&a.offset)) {
            merge(model, adapter, &value, columns, &mut w)?;
        }
        if let Some(order) = &part.source.order {
            w = layout::scatter_rows(order, columns, &w);
        }
        let mut w = w[range].to_vec();
        if part.source.transposed {
            let mut turned = vec![0.0; w.len()];
            layout::transpose(part.rows.len(), columns, &w, &mut turned);
            w = turned;
        }
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
    model: &Model,
    adapter: &Adapter,
    value: &dyn Fn(ParamId) -> Result<Vec<f32>>,
    columns: usize,
    w: &mut [f32],
) -> Result<()> {
    let lora = model.lora.as_ref().expect("adapters come with a config");
    let (a, b) = (value(adapter.a)?, value(adapter.b)?);
    for row in 0..adapter.rows {
        let out = &mut w[(adapter.offset + row) * columns..][..columns];
        for r in 0..lora.rank {
            let f = lora.scale() * b[row * lora.rank + r];
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

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::internal(e.to_string()))?;
    write_atomic(path, |out| writeln!(out, "{text}").map_err(|e| Error::io("write", path, &e)))
}

/// Writes the adapters in PEFT's format. `base` is the name recorded as their base model.
pub fn save_adapters(model: &Model, dir: &Path, base: &str) -> Result<()> {
    adapters_to(model, Some(dir), base)
}

fn adapters_to(model: &Model, dir: Option<&Path>, base: &str) -> Result<()> {
    let Some(lora) = &model.lora else {
        return Err(Error::internal("save_adapters of a model without adapters"));
    };
    let mut tensors = vec![];
    let mut places = HashMap::new();
    let mut add = |name: String, id: ParamId, order: Option<Arc<[usize]>>| {
        tensors.push(SaveTensor::new(
            name.clone(),
            SourceDType::F32,
            &model.store.param(id).spec.shape,
        ));
        places.insert(name, (id, order));
    };
    for adapter in model.adapters() {
        let order = adapter.order.clone();
        for (id, part, order) in [(adapter.a, "lora_A", None), (adapter.b, "lora_B", order)] {
            add(format!("base_model.model.{}.{part}.weight", adapter.module), id, order);
        }
    }
    if model.head == Head::Score {
        add("base_model.model.score.weight".into(), model.params.head, None);
    }
    let mut bytes = |t: &SaveTensor| {
        let (id, order) = &places[&t.name];
        let mut values = model.store.read_f32(*id)?;
        if let Some(order) = order {
            values = layout::scatter_rows(order, values.len() / order.len(), &values);
        }
        Ok(Cow::Owned(to_bytes(&values, DType::F32)))
    };
    let Some(dir) = dir else {
        return tensors.iter().try_for_each(|t| bytes(t).map(|_| ()));
    };
    std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, &e))?;
    let path = dir.join("adapter_model.safetensors");
    write_safetensors(&path, &tensors, &[("format", "pt")], &mut bytes)?;
    let mut modules: Vec<String> = model
        .adapters()
        .map(|a| a.module.rsplit('.').next().unwrap_or(&a.module).to_string())
        .collect();
    modules.sort();
    modules.dedup();
    let score = model.head == Head::Score;
    let config = json!({
        "peft_type": "LORA",
        "task_type": if score { "SEQ_CLS" } else { "CAUSAL_LM" },
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": modules,
        "modules_to_save": if score { json!(["score"]) } else { json!(null) },
        "bias": "none",
        "fan_in_fan_out": model.arch.family.transposed,
        "inference_mode": true,
        "init_lora_weights": true,
    });
    write_json(&dir.join("adapter_config.json"), &config)
}

//! Exports: a trained model as a directory that `transformers` and `peft` load unchanged. Weights
//! and `config.json` come from `model::save`; here are the tokenizer's files,
//! `generation_config.json`, the model card, and the adapters alone.

use super::card::{Card, hub_name};
use super::generation;
use super::run_dir::Place;
use super::sources::Source;
use crate::base::Result;
use crate::data::Tokenizer;
use crate::formats::OutDir;
use crate::model::{
    Model, SaveAs, Values, base_dir, save_adapters, save_model, take_part_in_saving,
};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Settings of generation that older models keep in `config.json`. `transformers` reads them from
/// there only where no `generation_config.json` stands beside it.
const IN_CONFIG: [&str; 22] = [
    "bad_words_ids",
    "begin_suppress_tokens",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "repetition_penalty",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];

impl Source {
    /// Saves a trained model that started here as a Hugging Face directory, in place of an older
    /// one. Rank 0 writes, all ranks read. Adapters are merged into the weights, and also saved
    /// alone, in `adapter/` inside. `values` replaces the stored weights (an EMA) where it returns
    /// some.
    pub(super) fn save(
        &self,
        model: &Model,
        place: Place<'_>,
        options: &SaveAs,
        values: Option<&Values<'_>>,
        card: &Card,
    ) -> Result<()> {
        let adapters = model.lora.is_some() && values.is_none();
        if model.store.partition().comm.rank() > 0 {
            return take_part_in_saving(model, values, adapters);
        }
        place.replace(|new| write(self, model, new, options, values, card, adapters))
    }
}

/// Fills the directory `new` with `model`, trained from `source`. `values` replaces the stored
/// weights (an EMA) where it returns some; `adapters` asks for `adapter/` inside.
fn write(
    source: &Source,
    model: &Model,
    new: &OutDir,
    options: &SaveAs,
    values: Option<&Values<'_>>,
    card: &Card,
    adapters: bool,
) -> Result<()> {
    let settings = generation_config(&[&source.dir, &base_of(model)?], model, &source.tokenizer)?;
    let eos = settings.get("eos_token_id").cloned();
    for alone in [false, true].into_iter().filter(|alone| adapters || !alone) {
        let dir = if alone { new.sub("adapter")? } else { new.clone() };
        if alone {
            save_adapters(model, &dir, &adapter_base(model)?)?;
        } else {
            save_model(model, &dir, &SaveAs { eos: eos.clone(), ..options.clone() }, values)?;
        }
        source.tokenizer.save(&dir)?;
        let generation = format!("{:#}\n", Value::Object(settings.clone()));
        dir.write_bytes(generation::FILE, generation.as_bytes())?;
        let base = alone.then(|| adapter_base(model)).transpose()?;
        let card = card.text(&base_of(model)?, model.head, base.as_deref());
        dir.write_bytes("README.md", card.as_bytes())?;
    }
    Ok(())
}

/// The directory of the model's `config.json`: of adapters, the base model's.
fn base_of(model: &Model) -> Result<PathBuf> {
    let dir = model.config.dir();
    if dir.as_os_str().is_empty() { Ok(".".into()) } else { base_dir(dir) }
}

/// The base model's name for `adapter_config.json`: its name on the hub, or an absolute path.
fn adapter_base(model: &Model) -> Result<String> {
    let base = base_of(model)?;
    if let Some(name) = hub_name(&base) {
        return Ok(name);
    }
    let base = std::path::absolute(&base).unwrap_or(base);
    Ok(base.display().to_string())
}

/// The generation settings of the first of `dirs` that has any, with every id that ends an answer.
/// Where none has a file, they are made as `transformers` would make them from `config.json`.
fn generation_config(
    dirs: &[&Path],
    model: &Model,
    tokenizer: &Tokenizer,
) -> Result<Map<String, Value>> {
    let config = &model.config.map;
    let mut settings = match generation::settings(dirs)? {
        Some(settings) => settings,
        None => {
            let kept =
                IN_CONFIG.into_iter().filter_map(|k| Some((k.into(), config.get(k)?.clone())));
            kept.filter(|(_, v)| !v.is_null()).collect()
        }
    };
    let given = settings.get("eos_token_id").or(config.get("eos_token_id"));
    let eos = all_ends(given.filter(|v| !v.is_null()), tokenizer);
    let known = |key: &str, own: Option<i32>| {
        config.get(key).filter(|v| !v.is_null()).cloned().or(own.map(Value::from))
    };
    let bos = match tokenizer.bos_prefix() {
        [bos] => Some(*bos),
        _ => None,
    };
    let ids = [
        ("bos_token_id", known("bos_token_id", bos)),
        ("pad_token_id", known("pad_token_id", Some(tokenizer.pad_id()))),
    ];
    for (key, value) in ids.into_iter().filter_map(|(k, v)| Some((k, v?))) {
        if settings.get(key).is_none_or(Value::is_null) {
            settings.insert(key.into(), value);
        }
    }
    settings.insert("eos_token_id".into(), eos);
    Ok(settings)
}

/// The ids of `given` in their order, then those of the tokenizer and of the turn's end. One id
/// alone is a number, unless `given` is a list.
fn all_ends(given: Option<&Value>, tokenizer: &Tokenizer) -> Value {
    let mut ids = generation::ends(given);
    let own = [tokenizer.eos_id(), tokenizer.turn_end_id()].into_iter();
    for id in own.chain(tokenizer.stop_ids().iter().copied()).map(i64::from) {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    match (ids.as_slice(), given) {
        ([one], None | Some(Value::Number(_))) => json!(one),
        _ => json!(ids),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Config;
    use crate::base::DType;
    use crate::model::{Head, LoadOptions};

    const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n\
                          {{ m.content }}<|im_end|>\n{% endfor %}\
                          {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    /// Ids: `<|end|>` 0, `<|im_start|>` 1, `<|im_end|>` 2.
    fn tokenizer(template: Option<&str>) -> Tokenizer {
        let special = ["<|end|>", "<|im_start|>", "<|im_end|>"];
        Tokenizer::byte_level_bpe(["some text"; 3].into_iter(), 300, &special, template).unwrap()
    }

    fn model(more: Value) -> Model {
        let mut config = json!({"model_type": "llama", "vocab_size": 300, "hidden_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
            "max_position_embeddings": 32, "rms_norm_eps": 1e-5});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let config = Config::from_map(config.as_object().unwrap().clone());
        Model::empty(&config, &LoadOptions::frozen(Head::Lm, DType::F32)).unwrap()
    }

    fn settings(base: Option<Value>, config: Value, template: Option<&str>) -> Value {
        let dir = tempfile::tempdir().unwrap();
        if let Some(base) = base {
            let text = base.to_string();
            std::fs::write(dir.path().join("generation_config.json"), text).unwrap();
        }
        let made = generation_config(&[dir.path()], &model(config), &tokenizer(template));
        Value::Object(made.unwrap())
    }

    #[test]
    fn the_base_keeps_its_settings_and_gains_the_turn_end() {
        let base = json!({"temperature": 0.7, "eos_token_id": 0, "pad_token_id": 5, "x": [1]});
        let got = settings(Some(base), json!({"bos_token_id": 7}), Some(CHATML));
        let want = json!({"temperature": 0.7, "eos_token_id": [0, 2], "pad_token_id": 5, "x": [1],
            "bos_token_id": 7});
        assert_eq!(got, want);
        // The order of the base's list stays, and so do ids that the tokenizer does not have.
        let base = json!({"eos_token_id": [299, 2]});
        let got = settings(Some(base), json!({}), Some(CHATML));
        assert_eq!(got, json!({"eos_token_id": [299, 2, 0], "pad_token_id": 0}));
    }

    #[test]
    fn without_a_file_the_settings_come_from_the_config() {
        let config = json!({"eos_token_id": 0, "do_sample": true, "top_k": null, "max_length": 50});
        let got = settings(None, config, None);
        let want =
            json!({"do_sample": true, "max_length": 50, "eos_token_id": 0, "pad_token_id": 0});
        assert_eq!(got, want);
        assert_eq!(settings(None, json!({"eos_token_id": null}), None)["eos_token_id"], json!(0));
    }
}

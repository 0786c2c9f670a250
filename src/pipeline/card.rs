//! The model card of an export: `README.md` with the front matter that the hub reads, and a table
//! of how the model was trained. It holds no date, path or machine, so that equal runs write equal
//! cards.

use super::config::{DataSource, RunConfig};
use super::settings::Online;
use super::settings::rank_of;
use crate::algo::{Algorithm, CriticSection, OnlineSection, OptimizerSection};
use crate::base::{Result, read_text};
use crate::config::{Key, Kind, Section};
use crate::data::Use;
use crate::model::Head;
use serde::Serialize;
use serde_json::Value;
use std::path::Path;

/// A row of the table.
type Setting = (String, String);

/// The part of a model card about the training.
pub(super) struct Card {
    /// Tag on the hub.
    tag: &'static str,
    /// A sentence's subject: "Supervised finetuning".
    step: String,
    /// File names.
    data: Vec<String>,
    settings: Vec<Setting>,
}

impl Card {
    /// After `total` optimizer steps of a stage that learns from rows.
    pub(super) fn offline(
        cfg: &RunConfig,
        of: &Algorithm,
        optimizer: &OptimizerSection,
        total: u64,
    ) -> Result<Card> {
        let mut sources = vec![cfg.data_sources()?];
        if of.learns.rows() == Use::Texts {
            sources.push(cfg.sft_only_sources()?);
        }
        let mut settings = of_optimizer(optimizer, total);
        settings.extend(named([("longest sequence", format!("{} tokens", cfg.max_seq_len))]));
        settings.extend(own(cfg, of, OptimizerSection::keys()));
        settings.extend(common(cfg, rank_of(cfg, of.head)));
        Ok(Card { tag: of.tag, step: of.title.to_string(), data: names(&sources), settings })
    }

    /// After `total` iterations of a stage that samples. `role` names the model: "actor", "critic".
    pub(super) fn online(
        cfg: &RunConfig,
        of: &Algorithm,
        keys: &Online,
        total: u64,
        role: &str,
    ) -> Result<Card> {
        let data = names(&[cfg.data_sources()?, cfg.unsupervised_sources(of)?]);
        let p = &keys.keys;
        let reward =
            p.reward_rule.as_ref().map_or("a reward model".into(), |r| format!("rule {r}"));
        let lengths = (cfg.max_prompt_seq_len, cfg.max_answer_seq_len);
        let mut settings = named([
            ("iterations", total.to_string()),
            ("completions per iteration", keys.completions().to_string()),
            ("reward", reward),
            ("learning rate of the actor", p.actor_learning_rate.to_string()),
        ]);
        if let Some(critic) = &keys.critic {
            let rate = critic.critic_learning_rate.to_string();
            settings.extend(named([("learning rate of the critic", rate)]));
        }
        settings.extend(named([
            ("schedule", written(&p.update.lr_scheduler_type)),
            ("sequences per optimizer step", p.completions_per_step().to_string()),
            ("temperature of rollouts", p.temperature.to_string()),
            ("longest prompt, completion", format!("{}, {} tokens", lengths.0, lengths.1)),
        ]));
        settings.extend(own(cfg, of, [OnlineSection::keys(), CriticSection::keys()].concat()));
        let head = if role == "critic" { Head::Score } else { Head::Lm };
        settings.extend(common(cfg, rank_of(cfg, head)));
        Ok(Card { tag: of.tag, step: format!("{} ({role})", of.title), data, settings })
    }

    /// The file's text. `base` is the directory training started from, with its card if it has one;
    /// `adapter_of` is the base model's name where the directory holds adapters alone.
    pub(super) fn text(&self, base: &Path, head: Head, adapter_of: Option<&str>) -> String {
        let front = Front::of(base);
        let name = hub_name(base).or(front.base_model.clone());
        let pipeline = match head {
            Head::Lm => "text-generation",
            Head::Score => "text-classification",
        };
        let mut lines = vec!["---".to_string()];
        if let Some(name) = adapter_of.or(name.as_deref()) {
            lines.push(format!("base_model: {}", scalar(name)));
        }
        let library = if adapter_of.is_some() { "peft" } else { "transformers" };
        lines.push(format!("library_name: {library}"));
        lines.extend(front.license);
        lines.push(format!("pipeline_tag: {pipeline}"));
        lines.push("tags:".into());
        if let Some(base) = adapter_of {
            lines.push(format!("- {}", scalar(&format!("base_model:adapter:{base}"))));
            lines.extend(["- lora".into(), "- transformers".into()]);
        }
        lines.extend([format!("- {}", self.tag), "- duplex".into(), "---".into(), String::new()]);
        let what = if adapter_of.is_some() { "LoRA adapters" } else { "Model" };
        let start = name.unwrap_or_else(|| {
            base.file_name().map_or("a local model".into(), |n| n.to_string_lossy().into_owned())
        });
        lines.push(format!("# {what}: {}", self.step));
        lines.push(format!(
            "\n{} from `{start}`, by Duplex {}.\n",
            self.step,
            env!("CARGO_PKG_VERSION")
        ));
        lines.extend(["| setting | value |".into(), "|---|---|".into()]);
        let data: Vec<String> = self.data.iter().map(|d| format!("`{d}`")).collect();
        lines.push(format!("| data | {} |", data.join(", ")));
        lines.extend(self.settings.iter().map(|(name, value)| format!("| {name} | {value} |")));
        lines.join("\n") + "\n"
    }
}

/// The name on the hub of a directory in the local cache: `models--org--name/snapshots/REVISION`.
pub(super) fn hub_name(dir: &Path) -> Option<String> {
    let mut up = dir.components().rev().skip(1);
    let part = |c: Option<std::path::Component<'_>>| c?.as_os_str().to_str().map(str::to_owned);
    (part(up.next())? == "snapshots").then_some(())?;
    Some(part(up.next())?.strip_prefix("models--")?.replace("--", "/"))
}

/// Largest card read, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// Fields of a base model's card that also hold for models made from it.
#[derive(Default)]
struct Front {
    /// Lines about the license, as they stand.
    license: Vec<String>,
    /// The model that an earlier export started from.
    base_model: Option<String>,
}

impl Front {
    fn of(dir: &Path) -> Front {
        let text = read_text(&dir.join("README.md"), MAX_FILE).unwrap_or_default();
        let mut lines = text.lines();
        if lines.next().map(str::trim_end) != Some("---") {
            return Front::default();
        }
        let front: Vec<&str> = lines.take_while(|l| l.trim_end() != "---").collect();
        let ours = front.contains(&"- duplex");
        let keys = ["license:", "license_name:", "license_link:"];
        let given = |line: &&&str| keys.iter().any(|k| line.starts_with(k)) && !line.ends_with(':');
        let license = front.iter().filter(given).map(|l| l.trim_end().to_owned()).collect();
        let base = front.iter().find_map(|l| l.strip_prefix("base_model: ")).filter(|_| ours);
        Front { license, base_model: base.map(|b| b.trim().trim_matches('"').to_owned()) }
    }
}

/// A YAML scalar.
fn scalar(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    match text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(plain) {
        true => text.to_owned(),
        false => Value::from(text).to_string(),
    }
}

/// File names of data sets: paths are the machine's own.
fn names(sources: &[Vec<DataSource>]) -> Vec<String> {
    let name = |s: &DataSource| s.path.file_name().map(|n| n.to_string_lossy().into_owned());
    sources.iter().flatten().filter_map(name).collect()
}

fn of_optimizer(s: &OptimizerSection, total: u64) -> Vec<Setting> {
    named([
        ("optimizer steps", total.to_string()),
        ("rows per optimizer step", s.rows_per_step().to_string()),
        ("learning rate", s.learning_rate.to_string()),
        ("schedule", written(&s.update.lr_scheduler_type)),
        ("warm-up steps", s.update.num_warmup_steps.to_string()),
        ("weight decay", s.weight_decay.to_string()),
        ("longest gradient norm", s.update.max_grad_norm.to_string()),
    ])
}

fn common(cfg: &RunConfig, rank: usize) -> Vec<Setting> {
    let mut all = named([("dtype", cfg.dtype.dtype().to_string()), ("seed", cfg.seed.to_string())]);
    if rank > 0 {
        let modules = cfg.lora.lora_module_name.join(", ");
        let lora = format!("rank {rank}, alpha {}, on {modules}", cfg.lora.lora_alpha);
        all.extend(named([("LoRA", lora)]));
    }
    all
}

fn named<const N: usize>(settings: [(&str, String); N]) -> Vec<Setting> {
    settings.map(|(name, value)| (name.to_string(), value)).into()
}

/// The keys of an algorithm that are not among those it shares with others. Text is left out: it
/// may be a path, which is the machine's own.
fn own(cfg: &RunConfig, of: &Algorithm, shared: Vec<Key>) -> Vec<Setting> {
    let own = of.section.keys(of.name, 0, 0);
    let own = own.iter().filter_map(|key| {
        let leaf = key.path.rsplit('.').next()?;
        let value = cfg.sections.value(of.name, leaf)?;
        let shown = !matches!(key.kind, Kind::Text | Kind::List(_));
        let value = value.as_str().map_or_else(|| value.to_string(), String::from);
        (shown && shared.iter().all(|s| s.path != leaf)).then(|| (format!("`{leaf}`"), value))
    });
    own.collect()
}

/// The word for it in a configuration.
fn written(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(text)) => text,
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card() -> Card {
        let cfg =
            RunConfig { data_path: vec!["/my/own/a.jsonl:0.5".into()], ..RunConfig::default() };
        let sft = crate::algo::DEEPSPEED_CHAT[0];
        Card::offline(&cfg, sft, &cfg.optimizer(sft).unwrap(), 60).unwrap()
    }

    #[test]
    fn a_card_inherits_the_license_and_says_how_it_was_trained() {
        let hub = tempfile::tempdir().unwrap();
        let base = hub.path().join("models--org--small-1b/snapshots/0123abcd");
        std::fs::create_dir_all(&base).unwrap();
        let readme =
            "---\nlicense: other\nlicense_name: of-its-own\nbase_model: not/this\n---\nlicense: no";
        std::fs::write(base.join("README.md"), readme).unwrap();
        let text = card().text(&base, Head::Lm, None);
        let front = "---\nbase_model: org/small-1b\nlibrary_name: transformers\nlicense: other\n\
            license_name: of-its-own\npipeline_tag: text-generation\ntags:\n- sft\n- duplex\n---\n";
        assert!(text.starts_with(front), "{text}");
        for line in
            ["| data | `a.jsonl` |", "| optimizer steps | 60 |", "| learning rate | 0.00001 |"]
        {
            assert!(text.contains(line), "{line} is not in {text}");
        }
        assert!(text.contains("from `org/small-1b`") && !text.contains("/my/own"), "{text}");
    }

    #[test]
    fn an_export_of_an_export_keeps_the_first_base() {
        let dir = tempfile::tempdir().unwrap();
        let readme = "---\nbase_model: org/first\ntags:\n- sft\n- duplex\n---\n";
        std::fs::write(dir.path().join("README.md"), readme).unwrap();
        assert!(card().text(dir.path(), Head::Lm, None).contains("base_model: org/first\n"));
        // A local model has no name that the hub knows.
        let alone = tempfile::tempdir().unwrap();
        assert!(!card().text(alone.path(), Head::Score, None).contains("base_model"));
    }

    #[test]
    fn a_card_of_adapters_has_the_fields_of_peft() {
        let dir = tempfile::tempdir().unwrap();
        let text = card().text(dir.path(), Head::Lm, Some("/a dir/base"));
        let front = "---\nbase_model: \"/a dir/base\"\nlibrary_name: peft\n\
                     pipeline_tag: text-generation\ntags:\n\
                     - \"base_model:adapter:/a dir/base\"\n- lora\n- transformers\n- sft\n\
                     - duplex\n---\n";
        assert!(text.starts_with(front), "{text}");
    }
}

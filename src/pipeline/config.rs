//! The configuration of a run, of a conversation and of an evaluation: structs with their defaults,
//! read from layers (defaults, preset, TOML file, command line, `--set`) by the table of keys.
//!
//! Names and defaults are DeepSpeed-Chat's where it has a flag. Where a default differs:
//! - `sft.learning_rate` 1e-5: its 1e-3 is for LoRA; its recipes for full finetuning use 9.65e-6.
//! - `sft.loss_on_prompt` false: learning the user's side of the talk is rarely wanted.
//! - `reward.loss` end: its token-wise loss also compares padding positions of the shorter answer.
//! - `ppo.num_warmup_steps` 10: its 100 is longer than many whole runs.
//! - `ppo.whiten_advantages` true: it never scales advantages, and its users report unstable
//!   critics.
//! - rollouts are sampled (`ppo.temperature` 1): it decodes greedily by default, so it never
//!   explores.
//! - `lora.lora_alpha` 16: its scale is fixed at 1 / rank, which makes large ranks all but inert.
//! - `lora.lora_module_name` all: its `decoder.layers.` means the same for OPT and nothing
//!   elsewhere.
//! - `seed` 1234 in all steps: its step 3 is unseeded.
//! - `dtype` bf16: fp16 with loss scaling is not offered.
//! - `tensorboard` on: event files cost nothing.
//!
//! `--preset deepspeed-chat` sets those that have an equivalent here.

mod bench;
mod chat;
mod check;
mod doctor;
mod eval;
mod idle;
mod inspect;
mod lora;
mod plan;
mod presets;
mod ranks;
mod table;
#[cfg(test)]
mod tests;
mod verify;

pub use bench::{BenchCase, BenchConfig};
pub use chat::ChatConfig;
pub use check::DataSource;
pub use doctor::DoctorConfig;
pub use eval::EvalConfig;
pub use inspect::InspectConfig;
pub use lora::LoraSection;
pub use plan::PlanConfig;
pub use presets::{PRESETS, Preset, preset_settings};
pub use ranks::{Deployment, ZeroStage};
pub use table::{BENCHMARK, CHECKUP, EVALUATION, INSPECTION, PLANNING, RUN, TALK, VERIFICATION};
pub use verify::VerifyConfig;

use crate::algo::{
    self, Algorithm, CriticSection, DEEPSPEED_CHAT, OnlineSection, OptimizerSection,
};
use crate::base::{DType, Error, Result};
use crate::config::{Sections, Setting, flat, merge};
use crate::data::{OnBadRow, OnLongPrompt};
use crate::device::Device;
use crate::tape::ActivationCheckpointing;
use crate::train::AdamWState;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Where arithmetic runs: in text `auto`, `cpu`, `cuda`, `cuda:N` or `emulated`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The best device present.
    Auto,
    /// This device.
    On(Device),
}

impl TryFrom<String> for DeviceChoice {
    type Error = Error;

    fn try_from(text: String) -> Result<DeviceChoice> {
        if text == "auto" { Ok(DeviceChoice::Auto) } else { text.parse().map(DeviceChoice::On) }
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> String {
        match choice {
            DeviceChoice::Auto => "auto".into(),
            DeviceChoice::On(device) => device.to_string(),
        }
    }
}

impl DeviceChoice {
    /// The device meant, once it is known to work, and what to tell of it.
    pub fn open(self) -> Result<(Device, String)> {
        match self {
            DeviceChoice::Auto => match Device::best() {
                (Device::Cpu, why) => Ok((Device::Cpu, format!("{} ({why})", describe_cpu()))),
                best => Ok(best),
            },
            DeviceChoice::On(Device::Cpu) => Ok((Device::Cpu, describe_cpu())),
            DeviceChoice::On(device) => {
                let stream =
                    device.stream().map_err(|e| e.context(format!("--device {device}")))?;
                Ok((device, stream.card().name.clone()))
            }
        }
    }
}

fn describe_cpu() -> String {
    format!("CPU, {} threads", crate::device::cpu::threads())
}

/// Dtype of weights and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// bfloat16.
    Bf16,
    /// 32-bit float.
    F32,
}

impl Precision {
    /// The dtype meant.
    pub fn dtype(self) -> DType {
        match self {
            Precision::Bf16 => DType::Bf16,
            Precision::F32 => DType::F32,
        }
    }
}

/// How conversations become text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConversationFormat {
    /// By the tokenizer's chat template, else as Human/Assistant turns.
    Auto,
    /// By the tokenizer's chat template.
    Template,
    /// As Human/Assistant turns.
    HumanAssistant,
}

/// A training run: `duplex train`, or the command of an algorithm. The table of keys documents each
/// field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunConfig {
    /// Stages to run, in the order of the list of algorithms.
    pub stages: Vec<&'static Algorithm>,
    /// Folder or name of the model to train; None = the embedded demonstration.
    pub actor_model: Option<String>,
    /// Folder or name of the reward model; None = as the actor.
    pub reward_model: Option<String>,
    /// The run directory.
    pub output_dir: PathBuf,
    /// True if the run replaces another one in the directory.
    pub overwrite: bool,
    /// `auto`, `never`, or a checkpoint.
    pub resume: String,
    /// How often a checkpoint is saved; see [`RunConfig::save_every`].
    pub save_every: String,
    /// How long an iteration may take; see [`RunConfig::stuck_after`].
    pub stuck_after: String,
    /// Newest checkpoints kept.
    pub keep_checkpoints: usize,
    /// Metric whose best checkpoint is kept too.
    pub keep_best: Option<String>,
    /// True if a finished run is trained further.
    pub extend: bool,
    /// True if a run may resume with changed data.
    pub allow_changed_data: bool,
    /// DeepSpeed-Chat's name for where the ranks are. Their number follows from `num_gpus` or the
    /// launcher.
    pub deployment_type: Deployment,
    /// Ranks that this process starts.
    pub num_gpus: usize,
    /// The ZeRO stage of every model.
    pub zero_stage: ZeroStage,
    /// The ZeRO stage of reward model and critic; auto: that of `zero_stage`.
    pub critic_zero_stage: ZeroStage,
    /// Ranks that generate together, each with its slice of the weights; 0 = chosen.
    pub inference_tp_size: usize,
    /// How long a rank waits for another; see [`RunConfig::rank_timeout`].
    pub rank_timeout: String,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Dtype of weights and activations.
    pub dtype: Precision,
    /// CPU threads; 0 = all cores.
    pub threads: usize,
    /// Seed of every random number.
    pub seed: u64,
    /// PATH or PATH:WEIGHT each; see [`RunConfig::data_sources`].
    pub data_path: Vec<String>,
    /// Shares of texts, pairs and prompts; None = 2,4,4 among the stages; see [`RunConfig::split`].
    pub data_split: Option<String>,
    /// Further data, all for texts to imitate.
    pub sft_only_data_path: Vec<String>,
    /// Share kept for evaluation, 0..=0.5.
    pub eval_fraction: f64,
    /// True if non-finite weights are an error.
    pub strict_weights: bool,
    /// How an unusable row is handled.
    pub on_bad_row: OnBadRow,
    /// How a prompt over the limit is handled.
    pub on_long_prompt: OnLongPrompt,
    /// Longest sequence of stages that learn from rows, tokens.
    pub max_seq_len: usize,
    /// Longest prompt, tokens.
    pub max_prompt_seq_len: usize,
    /// Longest answer, tokens.
    pub max_answer_seq_len: usize,
    /// Most packed tokens of a micro-batch; 0 = chosen.
    pub micro_batch_tokens: usize,
    /// Most memory for activations, MiB; 0 = what there is.
    pub memory_limit: usize,
    /// The activations that the backward pass recomputes.
    pub gradient_checkpointing: ActivationCheckpointing,
    /// How the optimizers keep their state.
    pub optimizer_state: AdamWState,
    /// True if optimizer state and the frozen models of step 3 stay in host memory.
    pub offload: bool,
    /// How conversations become text.
    pub chat_format: ConversationFormat,
    /// True if text prompts and texts already hold the chat template's control tokens.
    pub pre_rendered: bool,
    /// Answers shown now and then during PPO.
    pub print_samples: usize,
    /// Largest file of a saved model; see [`RunConfig::max_shard_bytes`].
    pub max_shard_size: String,
    /// True if the terminal shows only warnings and errors.
    pub quiet: bool,
    /// True if TensorBoard event files are written.
    pub tensorboard: bool,
    /// Adapters of all stages.
    pub lora: LoraSection,
    /// The sections of the algorithms.
    #[serde(flatten)]
    pub sections: Sections,
    /// Dotted keys the user gave (file, flags, `--set` or a preset asked for by name).
    #[serde(skip)]
    pub explicit: BTreeSet<&'static str>,
}

impl Default for RunConfig {
    fn default() -> RunConfig {
        RunConfig {
            stages: DEEPSPEED_CHAT.to_vec(),
            actor_model: None,
            reward_model: None,
            output_dir: "output".into(),
            overwrite: false,
            resume: "auto".into(),
            save_every: "10m".into(),
            stuck_after: "10m".into(),
            keep_checkpoints: 2,
            keep_best: None,
            extend: false,
            allow_changed_data: false,
            deployment_type: Deployment::SingleGpu,
            num_gpus: 1,
            zero_stage: ZeroStage::Auto,
            critic_zero_stage: ZeroStage::Auto,
            inference_tp_size: 0,
            rank_timeout: "10m".into(),
            device: DeviceChoice::Auto,
            dtype: Precision::Bf16,
            threads: 0,
            seed: 1234,
            data_path: vec![],
            data_split: None,
            sft_only_data_path: vec![],
            eval_fraction: 0.05,
            strict_weights: false,
            on_bad_row: OnBadRow::Error,
            on_long_prompt: OnLongPrompt::Skip,
            max_seq_len: 512,
            max_prompt_seq_len: 256,
            max_answer_seq_len: 256,
            micro_batch_tokens: 0,
            memory_limit: 0,
            gradient_checkpointing: ActivationCheckpointing::None,
            optimizer_state: AdamWState::Full,
            offload: false,
            chat_format: ConversationFormat::Auto,
            pre_rendered: false,
            print_samples: 2,
            max_shard_size: "5GB".into(),
            quiet: false,
            tensorboard: true,
            lora: LoraSection::default(),
            sections: algo::sections(),
            explicit: BTreeSet::new(),
        }
    }
}

impl RunConfig {
    /// Puts `settings` over the defaults, a later one over an earlier one, and checks the whole.
    pub fn resolve(settings: Vec<Setting>) -> Result<RunConfig> {
        let explicit = settings.iter().map(|s| s.key.path).collect();
        let settings = presets::with_implied(settings)?;
        let mut config: RunConfig = merge(&RUN, &settings)?;
        config.explicit = explicit;
        config.check()?;
        Ok(config)
    }

    /// The section of an algorithm as its struct, or as a part of that.
    pub fn section<T: DeserializeOwned>(&self, of: &Algorithm) -> Result<T> {
        self.sections.get(of.name)
    }

    /// The keys of an algorithm that learns from rows.
    pub fn optimizer(&self, of: &Algorithm) -> Result<OptimizerSection> {
        self.section(of)
    }

    /// The keys of an algorithm that samples answers.
    pub fn online(&self, of: &Algorithm) -> Result<OnlineSection> {
        self.section(of)
    }

    /// The keys of its critic, where it has one.
    pub fn critic(&self, of: &Algorithm) -> Result<Option<CriticSection>> {
        of.has_critic().then(|| self.section(of)).transpose()
    }

    /// True if a stage that samples reads a reward model: to score, or because a critic starts from
    /// it.
    pub fn reads_reward_model(&self, of: &Algorithm) -> Result<bool> {
        Ok(of.has_critic() || self.online(of)?.reward_rule.is_none())
    }

    /// True if the run has this stage.
    pub fn runs(&self, stage: &Algorithm) -> bool {
        self.stages.contains(&stage)
    }

    /// The last stage, which a longer run goes on with.
    pub fn last_stage(&self) -> &'static Algorithm {
        self.stages.last().copied().unwrap_or(DEEPSPEED_CHAT[0])
    }

    /// The names of the stages, by which checkpoints are called.
    pub fn stage_names(&self) -> Vec<&'static str> {
        self.stages.iter().map(|stage| stage.name).collect()
    }

    /// True if this is the embedded demonstration, which names neither model nor data.
    pub fn is_demo(&self) -> bool {
        let models = self.actor_model.is_some() || self.reward_model.is_some();
        !models && self.data_path.is_empty() && self.sft_only_data_path.is_empty()
    }

    /// True if the user gave this dotted key.
    pub fn is_explicit(&self, path: &str) -> bool {
        self.explicit.contains(path)
    }

    /// The keys to which the user gave other values than their defaults. A written configuration
    /// has every key, so a default counts as not given.
    pub fn given(&self) -> Result<BTreeSet<&'static str>> {
        let (now, default) = (flat(&RUN, self)?, flat(&RUN, &RunConfig::default())?);
        let changed = |path: &&'static str| now.get(*path) != default.get(*path);
        Ok(self.explicit.iter().copied().filter(changed).collect())
    }
}

#[cfg(test)]
impl RunConfig {
    /// The section of SFT, for tests.
    pub(crate) fn sft(&self) -> algo::SftSection {
        self.section(DEEPSPEED_CHAT[0]).unwrap()
    }

    /// That of the reward model.
    pub(crate) fn reward(&self) -> algo::RewardSection {
        self.section(DEEPSPEED_CHAT[1]).unwrap()
    }

    /// That of PPO.
    pub(crate) fn ppo(&self) -> algo::PpoSection {
        self.section(DEEPSPEED_CHAT[2]).unwrap()
    }
}

//! The configuration of `duplex eval`.

use super::{DeviceChoice, EVALUATION, Precision, check};
use crate::base::Result;
use crate::config::{Setting, merge};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// An evaluation: `duplex eval`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalConfig {
    /// Model folder.
    pub path: PathBuf,
    /// Model folder to compare with.
    pub baseline: Option<PathBuf>,
    /// Reward model that scores.
    pub reward_model: Option<String>,
    /// Built-in rule that scores.
    pub reward_rule: Option<String>,
    /// PATH or PATH:WEIGHT each; see [`EvalConfig::data_sources`].
    pub data_path: Vec<String>,
    /// True if text prompts already contain the chat template's control tokens.
    pub pre_rendered: bool,
    /// Prompts to answer.
    pub prompts: usize,
    /// Longest prompt, tokens.
    pub max_prompt_seq_len: usize,
    /// Longest answer, tokens.
    pub max_new_tokens: usize,
    /// Softmax temperature; 0 = greedy.
    pub temperature: f64,
    /// Draw from the k likeliest tokens; 0 = all.
    pub top_k: usize,
    /// Draw from the smallest set of this probability; 1 = all.
    pub top_p: f64,
    /// Seed of the draws.
    pub seed: u64,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Dtype of weights and activations.
    pub dtype: Precision,
    /// CPU threads; 0 = all cores.
    pub threads: usize,
    /// Answers shown.
    pub print_samples: usize,
}

impl Default for EvalConfig {
    fn default() -> EvalConfig {
        EvalConfig {
            path: PathBuf::new(),
            baseline: None,
            reward_model: None,
            reward_rule: None,
            data_path: vec![],
            pre_rendered: false,
            prompts: 100,
            max_prompt_seq_len: 256,
            max_new_tokens: 256,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            seed: 1234,
            device: DeviceChoice::Auto,
            dtype: Precision::Bf16,
            threads: 0,
            print_samples: 2,
        }
    }
}

impl EvalConfig {
    /// Puts `settings` over the defaults and checks the whole.
    pub fn resolve(settings: &[Setting]) -> Result<EvalConfig> {
        let config: EvalConfig = merge(EVALUATION, settings)?;
        check::model_given(&config.path, "eval")?;
        config.check()?;
        Ok(config)
    }
}

impl EvalConfig {
    /// The sources of `data_path`.
    pub fn data_sources(&self) -> Result<Vec<check::DataSource>> {
        check::DataSource::parse_all("data_path", &self.data_path)
    }

    /// Checks what the single keys cannot.
    fn check(&self) -> Result<()> {
        self.data_sources()?;
        if self.reward_rule.is_some() == self.reward_model.is_some() {
            return check::refuse(
                "set either --reward-model or --reward-rule: one of them scores the answers",
            );
        }
        Ok(())
    }
}

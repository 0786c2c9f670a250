//! The configuration of `duplex chat`.

use super::{DeviceChoice, Precision, TALK, check};
use crate::base::{Error, Result};
use crate::config::{Setting, merge};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A conversation: `duplex chat`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatConfig {
    /// Model folder.
    pub path: PathBuf,
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
    /// System message.
    pub system: Option<String>,
    /// One prompt to answer; `-` = standard input. None = a conversation.
    pub prompt: Option<String>,
    /// True if text is continued as it is, without chat template.
    pub raw: bool,
}

impl Default for ChatConfig {
    fn default() -> ChatConfig {
        ChatConfig {
            path: PathBuf::new(),
            max_new_tokens: 256,
            temperature: 0.7,
            top_k: 0,
            top_p: 0.95,
            seed: 1234,
            device: DeviceChoice::Auto,
            dtype: Precision::Bf16,
            threads: 0,
            system: None,
            prompt: None,
            raw: false,
        }
    }
}

impl ChatConfig {
    /// Puts `settings` over the defaults and checks the whole.
    pub fn resolve(settings: &[Setting]) -> Result<ChatConfig> {
        let config: ChatConfig = merge(TALK, settings)?;
        check::model_given(&config.path, "chat")?;
        if config.raw && config.system.is_some() {
            return Err(Error::user(
                "--raw continues text as it is, without a system message; leave out --system",
            ));
        }
        Ok(config)
    }
}

//! The configuration of `duplex bench`, and the names of what it measures.

use super::check::state_fits;
use super::{BENCHMARK, DeviceChoice, Precision};
use crate::base::{Error, Result};
use crate::config::{Setting, merge};
use crate::tape::ActivationCheckpointing;
use crate::train::AdamWState;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// A measurement: `duplex bench`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchConfig {
    /// Folder or name of a model; None = random weights in `shape`.
    pub model: Option<String>,
    /// A published shape, where no model is given.
    pub shape: String,
    /// The cases to measure; see [`BenchConfig::cases`].
    pub case: Vec<String>,
    /// Timed runs of each case, after one to warm up.
    pub repeat: usize,
    /// Tokens of a prompt, in generation and PPO.
    pub prompt_tokens: usize,
    /// Tokens of an answer.
    pub new_tokens: usize,
    /// Sequences of a training step.
    pub train_sequences: usize,
    /// The activations that the backward pass recomputes.
    pub gradient_checkpointing: ActivationCheckpointing,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Dtype of weights and activations.
    pub dtype: Precision,
    /// How the optimizer keeps its state.
    pub optimizer_state: AdamWState,
    /// CPU threads; 0 = all cores.
    pub threads: usize,
    /// Seed of weights, tokens and draws.
    pub seed: u64,
    /// File for the results.
    pub json: Option<PathBuf>,
}

impl Default for BenchConfig {
    fn default() -> BenchConfig {
        let cases = ["generate-1", "generate-8", "generate-32", "train-256", "train-512", "ppo-8"];
        BenchConfig {
            model: None,
            shape: "opt-125m".into(),
            case: cases.map(String::from).to_vec(),
            repeat: 5,
            prompt_tokens: 64,
            new_tokens: 64,
            train_sequences: 8,
            gradient_checkpointing: ActivationCheckpointing::None,
            device: DeviceChoice::Auto,
            dtype: Precision::Bf16,
            optimizer_state: AdamWState::Full,
            threads: 0,
            seed: 1234,
            json: None,
        }
    }
}

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BenchCase {
    /// Generation with so many sequences.
    Generate(usize),
    /// A training step with sequences of so many tokens.
    Train(usize),
    /// A PPO iteration with so many prompts.
    Ppo(usize),
}

impl fmt::Display for BenchCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BenchCase::Generate(n) => write!(f, "generate-{n}"),
            BenchCase::Train(n) => write!(f, "train-{n}"),
            BenchCase::Ppo(n) => write!(f, "ppo-{n}"),
        }
    }
}

impl BenchCase {
    fn parse(text: &str) -> Option<BenchCase> {
        let (kind, n) = text.split_once('-').unwrap_or((text, "8"));
        let n = n.parse().ok().filter(|n| (1..=1 << 16).contains(n))?;
        match kind {
            "generate" => Some(BenchCase::Generate(n)),
            // One token has none to predict.
            "train" if text.contains('-') && n > 1 => Some(BenchCase::Train(n)),
            "ppo" => Some(BenchCase::Ppo(n)),
            _ => None,
        }
    }
}

impl BenchConfig {
    /// Puts `settings` over the defaults and checks the whole.
    pub fn resolve(settings: &[Setting]) -> Result<BenchConfig> {
        let config: BenchConfig = merge(BENCHMARK, settings)?;
        let given = |path: &str| settings.iter().any(|s| s.key.path == path);
        if given("model") && given("shape") {
            return Err(Error::user("--model and --shape exclude each other"));
        }
        config.cases()?;
        state_fits(config.optimizer_state, config.dtype)?;
        Ok(config)
    }

    /// Returns the cases to measure, in order. An unknown case or an empty list is an error.
    pub fn cases(&self) -> Result<Vec<BenchCase>> {
        let words = self.case.iter().flat_map(|c| c.split(','));
        let cases: Result<Vec<BenchCase>> = words
            .map(|word| {
                BenchCase::parse(word.trim()).ok_or_else(|| {
                    Error::user(format!(
                        "--case {word:?} is not a case; write generate-N (sequences), train-N \
                         (tokens of each sequence, 2 or more) or ppo-N (prompts)"
                    ))
                })
            })
            .collect();
        cases.and_then(|all| match all.is_empty() {
            true => Err(Error::user("\"case\" is empty; name what is to be measured")),
            false => Ok(all),
        })
    }
}

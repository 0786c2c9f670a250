//! Checks of what several keys say together, and the values written as text (data sources, splits,
//! sizes) in the form the pipeline uses.

use super::{Precision, RunConfig};
use crate::algo::{Algorithm, lower_is_better, place};
use crate::base::{Error, Result};
use crate::config::key::{Every, parse_bytes, parse_every, parse_time};
use crate::data::Use;
use crate::train::AdamWState;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// DeepSpeed-Chat's shares of texts, pairs and prompts.
const DEFAULT_SPLIT: [f64; 3] = [2.0, 4.0, 4.0];

/// Most often that an epoch may repeat a data set.
const MAX_WEIGHT: f64 = 100.0;

/// A data file or folder and its weight in the blend.
#[derive(Clone, Debug, PartialEq)]
pub struct DataSource {
    /// File or folder.
    pub path: PathBuf,
    /// Share relative to the other sources, above 0.
    pub weight: f64,
}

impl DataSource {
    /// Reads PATH or PATH:WEIGHT; `key` names the place in the error line.
    fn parse(key: &str, text: &str) -> Result<DataSource> {
        let weighted = text.rsplit_once(':').and_then(|(path, w)| Some((path, w.parse().ok()?)));
        let (path, weight): (&str, f64) = weighted.unwrap_or((text, 1.0));
        if path.is_empty() {
            return Err(Error::user(format!("{key:?} has {text:?}, which names no file")));
        }
        if !(weight > 0.0 && weight <= MAX_WEIGHT) {
            return Err(Error::user(format!(
                "{key:?} has {text:?}; the weight after the colon must be above 0 and at most \
                 {MAX_WEIGHT}"
            )));
        }
        Ok(DataSource { path: path.into(), weight })
    }

    pub(super) fn parse_all(key: &str, texts: &[String]) -> Result<Vec<DataSource>> {
        texts.iter().map(|t| DataSource::parse(key, t)).collect()
    }
}

/// The three numbers of "data_split".
fn shares(text: &str) -> Result<[f64; 3]> {
    let parts: Option<Vec<f64>> = text.split(',').map(|p| p.trim().parse().ok()).collect();
    let parts: Option<[f64; 3]> = parts.and_then(|p| p.try_into().ok());
    let usable =
        |p: &[f64; 3]| p.iter().all(|x| (0.0..=1e9).contains(x)) && p.iter().sum::<f64>() > 0.0;
    parts.filter(usable).ok_or_else(|| {
        Error::user(format!(
            "\"data_split\" must be three numbers of 0 or more, not all 0, such as \"2,4,4\", not \
             {text:?}"
        ))
    })
}

impl RunConfig {
    /// The sources of `data_path`.
    pub fn data_sources(&self) -> Result<Vec<DataSource>> {
        DataSource::parse_all("data_path", &self.data_path)
    }

    /// The sources of `sft_only_data_path`.
    pub fn sft_only_sources(&self) -> Result<Vec<DataSource>> {
        DataSource::parse_all("sft_only_data_path", &self.sft_only_data_path)
    }

    /// The sources of plain text that an algorithm mixes in.
    pub fn unsupervised_sources(&self, of: &Algorithm) -> Result<Vec<DataSource>> {
        let key = format!("{}.unsupervised_data_path", of.name);
        DataSource::parse_all(&key, &self.online(of)?.unsupervised_data_path)
    }

    /// Shares of the data for texts, pairs and prompts; they add up to 1. Where none are given,
    /// what no stage uses gets nothing: a stage alone takes all rows that it can use.
    pub fn split(&self) -> Result<[f64; 3]> {
        let used = |of: Use| self.stages.iter().any(|stage| stage.learns.rows() == of);
        let parts = match &self.data_split {
            Some(text) => shares(text)?,
            None => Use::ALL.map(|of| if used(of) { DEFAULT_SPLIT[of as usize] } else { 0.0 }),
        };
        let sum: f64 = parts.iter().sum();
        Ok(parts.map(|p| p / sum))
    }

    /// Most bytes of activations.
    pub fn memory_limit_bytes(&self) -> usize {
        match self.memory_limit {
            0 => usize::MAX,
            mib => mib << 20,
        }
    }

    /// Largest file of a saved model, in bytes.
    pub fn max_shard_bytes(&self) -> Result<u64> {
        parse_bytes(&self.max_shard_size)
            .ok_or_else(|| Error::user(format!("\"max_shard_size\" {:?}", self.max_shard_size)))
    }

    /// How often a checkpoint is saved.
    pub fn save_every(&self) -> Result<Every> {
        let every = &self.save_every;
        parse_every(every).ok_or_else(|| Error::user(format!("\"save_every\" {every:?}")))
    }

    /// The least time after which an iteration counts as stuck.
    pub fn stuck_after(&self) -> Result<Duration> {
        let time = &self.stuck_after;
        parse_time(time).ok_or_else(|| Error::user(format!("\"stuck_after\" {time:?}")))
    }

    /// How long a rank waits for another before it gives up.
    pub fn rank_timeout(&self) -> Result<Duration> {
        let time = &self.rank_timeout;
        parse_time(time).ok_or_else(|| Error::user(format!("\"rank_timeout\" {time:?}")))
    }

    /// Checks what the single keys cannot.
    pub(super) fn check(&self) -> Result<()> {
        let places: Vec<_> = self.stages.iter().map(|stage| place(stage.name)).collect();
        if places.is_empty() || places.windows(2).any(|w| w[0] >= w[1]) {
            let names = crate::algo::names().join(", ");
            return refuse(&format!(
                "\"stages\" must name some of {names}, each at most once, in this order"
            ));
        }
        self.data_sources()?;
        self.sft_only_sources()?;
        self.split()?;
        self.max_shard_bytes()?;
        self.save_every()?;
        self.stuck_after()?;
        self.rank_timeout()?;
        self.keep_best.as_deref().map_or(Ok(true), lower_is_better)?;
        if self.lora.lora_module_name.is_empty() {
            return refuse("\"lora.lora_module_name\" is empty; use \"all\" or name modules");
        }
        state_fits(self.optimizer_state, self.dtype)?;
        if self.optimizer_state == AdamWState::Compact && self.inference_tp_size > 1 {
            return refuse(
                "\"inference_tp_size\" above 1 needs \"optimizer_state\" full: compact codes have \
                 one scale for neighbours that would be cut apart",
            );
        }
        self.stages.iter().try_for_each(|stage| self.check_sampling(stage))
    }

    /// Checks the keys of an algorithm that samples answers.
    fn check_sampling(&self, of: &Algorithm) -> Result<()> {
        let Some(from) = of.online() else { return Ok(()) };
        let (keys, name) = (self.online(of)?, of.name);
        let method = (from.method)(&self.sections, name)?;
        self.unsupervised_sources(of)?;
        if keys.min_answer_seq_len > self.max_answer_seq_len {
            return refuse(&format!(
                "\"{name}.min_answer_seq_len\" {} is above \"max_answer_seq_len\" {}",
                keys.min_answer_seq_len, self.max_answer_seq_len
            ));
        }
        let step = keys.completions_per_step();
        let gathered = keys.prompts_per_iteration() * method.num_generations;
        if step > gathered {
            return refuse(&format!(
                "\"{name}.per_device_training_batch_size\" {step} is above the {gathered} answers \
                 gathered per iteration (per_device_generation_batch_size times \
                 generation_batches{})",
                if method.num_generations > 1 { " times num_generations" } else { "" }
            ));
        }
        if keys.reward_rule.is_some() && self.reward_model.is_some() {
            return refuse(&format!(
                "\"{name}.reward_rule\" and \"reward_model\" are both set; keep one{}",
                match from.critic {
                    true => format!(" (\"{name}.critic_model\" says what the critic starts from)"),
                    false => String::new(),
                }
            ));
        }
        Ok(())
    }
}

/// Refuses a compact optimizer state beside f32 weights.
pub(super) fn state_fits(state: AdamWState, dtype: Precision) -> Result<()> {
    match (state, dtype) {
        (AdamWState::Compact, Precision::F32) => refuse(
            "\"optimizer_state\" compact is for bf16 weights; use \"dtype\" bf16 or \
             \"optimizer_state\" full",
        ),
        _ => Ok(()),
    }
}

/// Refuses an empty path.
pub(super) fn folder_given(path: &Path, command: &str) -> Result<()> {
    if path.as_os_str().is_empty() {
        let line = format!("no directory given; write `duplex {command} DIRECTORY`");
        return Err(Error::user(line));
    }
    Ok(())
}

/// Refuses an empty model path.
pub(super) fn model_given(path: &Path, command: &str) -> Result<()> {
    if path.as_os_str().is_empty() {
        let line = format!("no model given; write `duplex {command} DIRECTORY`");
        return Err(Error::user(line));
    }
    Ok(())
}

pub(super) fn refuse(line: &str) -> Result<()> {
    Err(Error::user(line))
}

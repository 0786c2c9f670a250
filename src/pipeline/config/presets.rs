//! Named sets of values that lie between the defaults and the user's own.

use super::table::RUN;
use crate::algo::ALGORITHMS;
use crate::base::{Error, Result};
use crate::config::{Setting, nearest, toml_settings};

/// A named set of values of a training run.
pub struct Preset {
    /// Its name on the command line.
    pub name: &'static str,
    /// One line of help.
    pub help: &'static str,
    /// The values.
    pub toml: fn() -> String,
}

/// Taken by itself where the run is the demonstration.
const DEMO: &str = "demo";

/// A run that names one of these is not the demonstration.
const REPLACE_DEMO: [&str; 4] = ["actor_model", "reward_model", "data_path", "sft_only_data_path"];

/// Lengths of the demonstration's rows, and its values of the keys of every algorithm.
fn demo() -> String {
    let mut toml = String::from(
        "data_split = \"0,6,4\"\nmax_seq_len = 96\nmax_prompt_seq_len = 48\n\
         max_answer_seq_len = 32\n",
    );
    for algorithm in ALGORITHMS {
        toml += &format!("[{}]\n{}\n", algorithm.name, algorithm.demo);
    }
    toml
}

/// All presets.
pub static PRESETS: &[Preset] = &[
    Preset {
        name: DEMO,
        help: "rates for models of a few million parameters; taken by itself for the embedded \
               demonstration",
        toml: demo,
    },
    Preset {
        name: "deepspeed-chat",
        help: "DeepSpeed-Chat's own values where the defaults differ",
        toml: || {
            "[sft]\nlearning_rate = 9.65e-6\nloss_on_prompt = true\n\
             [reward]\nloss = \"token_wise\"\n\
             [ppo]\nnum_warmup_steps = 100\nwhiten_advantages = false\n\
             [lora]\nlora_alpha = 1.0\n"
                .into()
        },
    },
];

/// The values of the preset called `name`.
pub fn preset_settings(name: &str) -> Result<Vec<Setting>> {
    let Some(preset) = PRESETS.iter().find(|p| p.name == name) else {
        let names: Vec<&str> = PRESETS.iter().map(|p| p.name).collect();
        let hint = match nearest(name, names.iter().copied()) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("presets are {}", names.join(", ")),
        };
        return Err(Error::user(format!("unknown preset {name:?}; {hint}")));
    };
    toml_settings(&RUN, &format!("preset {name}"), &(preset.toml)())
}

/// `settings`, with the demonstration's values below them where they name neither model nor data.
pub(super) fn with_implied(settings: Vec<Setting>) -> Result<Vec<Setting>> {
    if settings.iter().any(|s| REPLACE_DEMO.contains(&s.key.path)) {
        return Ok(settings);
    }
    let mut all = preset_settings(DEMO)?;
    all.extend(settings);
    Ok(all)
}

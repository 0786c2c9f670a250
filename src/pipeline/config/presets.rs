//! Named sets of values that lie between the defaults and the user's own.

use super::table::RUN;
use crate::base::{Error, Result};
use crate::config::{Setting, nearest, toml_settings};

/// A named set of values of a training run.
pub struct Preset {
    /// Its name on the command line.
    pub name: &'static str,
    /// One line of help.
    pub help: &'static str,
    /// The values.
    pub toml: &'static str,
}

/// Taken by itself where the run is the demonstration.
const DEMO: &str = "demo";

/// A run that names one of these is not the demonstration.
const REPLACE_DEMO: [&str; 4] = ["actor_model", "reward_model", "data_path", "sft_only_data_path"];

/// Rates for a model of a million parameters that starts from nothing.
const DEMO_TOML: &str = r#"
data_split = "0,6,4"
max_seq_len = 96
max_prompt_seq_len = 48
max_answer_seq_len = 32
[sft]
learning_rate = 3e-3
num_train_epochs = 3
num_warmup_steps = 50
per_device_train_batch_size = 32
[reward]
learning_rate = 1e-3
num_train_epochs = 4
num_warmup_steps = 50
per_device_train_batch_size = 32
[ppo]
actor_learning_rate = 3e-4
critic_learning_rate = 1e-3
per_device_generation_batch_size = 64
per_device_training_batch_size = 32
ppo_epochs = 2
max_steps = 100
kl_coef = 0.2
clip_reward_value = 20
missing_eos_penalty = 2
eval_prompts = 200
"#;

/// All presets.
pub static PRESETS: &[Preset] = &[
    Preset {
        name: DEMO,
        help: "rates for models of a few million parameters; taken by itself for the embedded demonstration",
        toml: DEMO_TOML,
    },
    Preset {
        name: "deepspeed-chat",
        help: "DeepSpeed-Chat's own values where the defaults differ",
        toml: "[sft]\nlearning_rate = 9.65e-6\nloss_on_prompt = true\n\
               [reward]\nloss = \"token_wise\"\n\
               [ppo]\nnum_warmup_steps = 100\nwhiten_advantages = false\n\
               [lora]\nlora_alpha = 1.0\n",
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
    toml_settings(&RUN, &format!("preset {name}"), preset.toml)
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

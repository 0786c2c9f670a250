//! The section of LoRA, which all stages share.

use serde::{Deserialize, Serialize};

/// Adapters. A dim of 0 means full finetuning of that model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraSection {
    /// Rank in the actor.
    pub actor_lora_dim: usize,
    /// Rank in reward model and critic.
    pub critic_lora_dim: usize,
    /// The update is scaled by alpha / rank.
    pub lora_alpha: f64,
    /// Dropout on the input.
    pub lora_dropout: f64,
    /// Module names, or "all".
    pub lora_module_name: Vec<String>,
    /// Peak learning rate of the actor's adapters.
    pub actor_lora_learning_rate: f64,
    /// Peak learning rate of reward model's and critic's adapters.
    pub critic_lora_learning_rate: f64,
}

impl Default for LoraSection {
    fn default() -> LoraSection {
        LoraSection {
            actor_lora_dim: 0,
            critic_lora_dim: 0,
            lora_alpha: 16.0,
            lora_dropout: 0.0,
            lora_module_name: vec!["all".into()],
            actor_lora_learning_rate: 5e-4,
            critic_lora_learning_rate: 5e-4,
        }
    }
}

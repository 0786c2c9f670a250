//! Settings that were given, but change nothing beside others.

use super::RunConfig;
use crate::algo::ALGORITHMS;
use crate::base::Result;
use crate::model::Head;

impl RunConfig {
    /// A warning for each kind of settings that were given and have no effect: those of LoRA
    /// without a rank, and with one the learning rates of weights that then stay frozen.
    pub fn idle_settings(&self) -> Result<Vec<String>> {
        let given = self.given()?;
        let named = |keys: &[String]| {
            let named: Vec<&str> =
                keys.iter().map(String::as_str).filter(|k| given.contains(*k)).collect();
            (!named.is_empty()).then(|| named.join(", "))
        };
        let (actor, critic) = (self.lora.actor_lora_dim > 0, self.lora.critic_lora_dim > 0);
        let of_lora = [
            "lora.lora_alpha",
            "lora.lora_dropout",
            "lora.lora_module_name",
            "lora.actor_lora_learning_rate",
            "lora.critic_lora_learning_rate",
        ]
        .map(String::from);
        let mut warnings = vec![];
        if let Some(keys) = named(&of_lora).filter(|_| !actor && !critic) {
            warnings.push(format!(
                "{keys} change nothing without LoRA; give --lora-dim (or --actor-lora-dim, \
                 --critic-lora-dim), or all weights are trained"
            ));
        }
        let rate = |a: &&crate::algo::Algorithm| match a.samples() {
            true => format!("{}.actor_learning_rate", a.name),
            false => format!("{}.learning_rate", a.name),
        };
        let adapted = ALGORITHMS.iter().filter(|a| if a.head == Head::Lm { actor } else { critic });
        let frozen: Vec<String> = adapted.map(rate).collect();
        if let Some(keys) = named(&frozen) {
            warnings.push(format!(
                "{keys} change nothing with LoRA, where adapters alone are trained, at \
                 --lora-learning-rate"
            ));
        }
        Ok(warnings)
    }
}

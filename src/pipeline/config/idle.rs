//! Settings that were given, but change nothing beside others.

use super::RunConfig;

impl RunConfig {
    /// A warning for each kind of settings that were given and have no effect: those of LoRA
    /// without a rank, and with one the learning rates of weights that then stay frozen.
    pub fn idle_settings(&self) -> Vec<String> {
        let default = RunConfig::default();
        let lora = &self.lora;
        // A written configuration has every key: a default counts as not given.
        let given =
            |key: &'static str, changed: bool| (changed && self.is_explicit(key)).then_some(key);
        let mut warnings = vec![];
        if lora.actor_lora_dim == 0 && lora.critic_lora_dim == 0 {
            let d = &default.lora;
            let keys = [
                given("lora.lora_alpha", lora.lora_alpha != d.lora_alpha),
                given("lora.lora_dropout", lora.lora_dropout != d.lora_dropout),
                given("lora.lora_module_name", lora.lora_module_name != d.lora_module_name),
                given(
                    "lora.actor_lora_learning_rate",
                    lora.actor_lora_learning_rate != d.actor_lora_learning_rate,
                ),
                given(
                    "lora.critic_lora_learning_rate",
                    lora.critic_lora_learning_rate != d.critic_lora_learning_rate,
                ),
            ];
            let named: Vec<&str> = keys.into_iter().flatten().collect();
            if !named.is_empty() {
                warnings.push(format!(
                    "{} change nothing without LoRA; give --lora-dim (or --actor-lora-dim, \
                     --critic-lora-dim), or all weights are trained",
                    named.join(", ")
                ));
            }
        }
        let (sft, reward, ppo) = (&self.sft.optimizer, &self.reward.optimizer, &self.ppo);
        let (actor, critic) = (lora.actor_lora_dim > 0, lora.critic_lora_dim > 0);
        let base = (&default.sft.optimizer, &default.reward.optimizer, &default.ppo);
        let rates = [
            given("sft.learning_rate", actor && sft.learning_rate != base.0.learning_rate),
            given("reward.learning_rate", critic && reward.learning_rate != base.1.learning_rate),
            given(
                "ppo.actor_learning_rate",
                actor && ppo.actor_learning_rate != base.2.actor_learning_rate,
            ),
        ];
        let named: Vec<&str> = rates.into_iter().flatten().collect();
        if !named.is_empty() {
            warnings.push(format!(
                "{} change nothing with LoRA, where adapters alone are trained, at \
                 --lora-learning-rate",
                named.join(", ")
            ));
        }
        warnings
    }
}

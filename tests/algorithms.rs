//! The algorithms against naive f64 versions of their published formulas, on tiny random models.

pub mod common;

#[path = "algorithms/broken.rs"]
mod broken;
#[path = "algorithms/critic_free.rs"]
mod critic_free;
#[path = "algorithms/dpo.rs"]
mod dpo;
#[path = "algorithms/experience.rs"]
mod experience;
#[path = "algorithms/gradients.rs"]
mod gradients;
#[path = "algorithms/learning.rs"]
mod learning;
#[path = "algorithms/memory.rs"]
mod memory;
#[cfg(any(feature = "cuda", feature = "emulator"))]
#[path = "algorithms/offload.rs"]
mod offload;
#[path = "algorithms/optimizer.rs"]
mod optimizer;
#[path = "algorithms/pairs.rs"]
mod pairs;
#[path = "algorithms/plan.rs"]
mod plan;
#[path = "algorithms/ranks.rs"]
mod ranks;
#[path = "algorithms/sampling.rs"]
mod sampling;
#[path = "algorithms/setup.rs"]
mod setup;
#[path = "algorithms/sft.rs"]
mod sft;
#[path = "algorithms/sizes.rs"]
mod sizes;
#[path = "algorithms/state.rs"]
mod state;
#[path = "algorithms/update.rs"]
mod update;
#[path = "algorithms/vocabulary.rs"]
mod vocabulary;

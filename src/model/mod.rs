//! A transformer interpreted from an [`Arch`]: parameters, forward, heads, LoRA,
//! KV-cache, load and save. Names no family; knows no loss.

mod cache;
mod forward;
mod hub;
mod layers;
mod load;
mod lora;
mod names;
mod params;
mod peft;
mod save;

pub use cache::{KvCache, PAGE};
pub use forward::{Attend, Draw, Pass};
pub use hub::{hub_cache, resolve_model};
pub use load::{LoadOptions, base_dir};
pub use lora::{LoraConfig, LoraRules, linear_modules};
pub use params::{Adapter, BlockParams, Linear, NormParams, Params, Source};
pub use peft::adapter_weights;
pub use save::{SaveAs, Values, save_adapters, save_model, take_part_in_saving};

use crate::arch::{Arch, Config};
use crate::base::{Result, Rng};
use crate::pool::{ParamId, Store};

/// The head on top of the last norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// Next-token logits.
    Lm,
    /// One number per token: reward model and critic.
    Score,
}

/// A model: architecture, parameters and where they are.
#[derive(Debug)]
pub struct Model {
    /// The architecture.
    pub arch: Arch,
    /// The config it came from, for saving.
    pub config: Config,
    /// The head on top of the last norm.
    pub head: Head,
    /// Adapter settings, if it has adapters.
    pub lora: Option<LoraConfig>,
    /// The weights.
    pub store: Store,
    /// Which parameter is what.
    pub params: Params,
    /// Tensors of the base that came with the adapters (PEFT's `modules_to_save`, trained biases).
    pub saved_with_adapters: Vec<String>,
    /// Things the user should know of what was loaded ("values are not finite").
    pub notes: Vec<String>,
    /// Its checkpoint had values that are not finite, so it may be saved with some.
    pub not_finite: bool,
    /// Its checkpoint had no score head: scores mean nothing until it is trained.
    pub score_is_random: bool,
}

impl Model {
    /// A model with zeroed parameters.
    pub fn empty(config: &Config, options: &LoadOptions) -> Result<Model> {
        let LoadOptions { head, train, .. } = *options;
        let arch = config.arch()?;
        let partition = options.partition.clone();
        let lora = options.lora.as_ref();
        let (specs, params) = Params::lay_out(&arch, head, train, lora, partition.blocks)?;
        let LoadOptions { device, dtype, grads, .. } = *options;
        let store = match options.offload {
            true => Store::on_host(device, dtype, partition, specs)?,
            false => Store::with_grads(device, dtype, grads, partition, specs)?,
        };
        let (config, lora) = (config.clone(), options.lora.clone());
        Ok(Model {
            arch,
            config,
            head,
            lora,
            store,
            params,
            saved_with_adapters: vec![],
            notes: vec![],
            not_finite: false,
            score_is_random: false,
        })
    }

    /// A model with random weights, as GPT-2 was initialised: normal with standard deviation 0.02,
    /// residual projections scaled down by sqrt(2 layers), norms 1, biases 0.
    pub fn random(config: &Config, options: &LoadOptions) -> Result<Model> {
        let model = Model::empty(config, options)?;
        let seed = options.seed;
        for (i, p) in model.store.params().iter().enumerate() {
            let (id, n) = (ParamId(i), p.spec.shape.iter().product::<usize>());
            let name = &p.spec.name;
            // Adapters and score head are initialised below.
            if name.contains(".lora.") || name == "score.weight" {
                continue;
            }
            let values: Vec<f32> = if name.ends_with("bias") {
                vec![0.0; n]
            } else if p.spec.shape.len() == 1 {
                vec![if model.arch.norm.unit_offset { 0.0 } else { 1.0 }; n]
            } else {
                let residual = name.ends_with(".out.weight") || name.ends_with(".down.weight");
                let depth = (2.0 * model.arch.layers as f32).sqrt();
                let std = if residual { 0.02 / depth } else { 0.02 };
                let mut rng = Rng::new(seed, i as u64);
                (0..n).map(|_| rng.normal() * std).collect()
            };
            model.store.write_f32(id, &values)?;
        }
        model.init_score(seed)?;
        model.init_adapters(seed)?;
        Ok(model)
    }

    /// Initialises the score head, if there is one: normal with variance 1/(hidden + 1) (Stiennon
    /// et al. 2020).
    pub fn init_score(&self, seed: u64) -> Result<()> {
        if self.head == Head::Score {
            let mut rng = Rng::new(seed, u64::MAX - 1);
            let width = self.arch.embed_width;
            let std = 1.0 / (width as f32 + 1.0).sqrt();
            let values: Vec<f32> = (0..width).map(|_| rng.normal() * std).collect();
            self.store.write_f32(self.params.head, &values)?;
        }
        Ok(())
    }

    /// All adapters, in block order.
    pub fn adapters(&self) -> impl Iterator<Item = &Adapter> {
        self.params.linears().flat_map(|l| l.adapters.iter())
    }

    /// A: Kaiming uniform with a = sqrt(5), that is uniform within 1/sqrt(in); B: zero.
    pub fn init_adapters(&self, seed: u64) -> Result<()> {
        for adapter in self.adapters() {
            let shape = &self.store.param(adapter.a).spec.shape;
            let bound = 1.0 / (shape[1] as f32).sqrt();
            let mut rng = Rng::new(seed, (1 << 32) + adapter.site);
            let n = shape[0] * shape[1];
            let values: Vec<f32> = (0..n).map(|_| (rng.uniform() * 2.0 - 1.0) * bound).collect();
            self.store.write_f32(adapter.a, &values)?;
            let zeros = vec![0.0; self.store.param(adapter.b).spec.shape.iter().product()];
            self.store.write_f32(adapter.b, &zeros)?;
        }
        Ok(())
    }

    /// Number of parameters, adapters included.
    pub fn num_params(&self) -> usize {
        let sizes = self.store.params().iter().map(|p| p.spec.shape.iter().product::<usize>());
        sizes.sum()
    }

    /// Number of trained parameters.
    pub fn num_trained(&self) -> usize {
        let trained = self.store.params().iter().filter(|p| p.spec.trained);
        trained.map(|p| p.spec.shape.iter().product::<usize>()).sum()
    }
}

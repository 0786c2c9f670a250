//! The models that are measured: published shapes, kept as `config.json` texts, with random
//! weights, or a model directory. The shapes of `tools/compare-pytorch` are the same files.

use crate::arch::Config;
use crate::base::{Error, Result};
use crate::model::{Head, LoadOptions, Model, resolve_model};
use crate::pipeline::config::BenchConfig;
use serde_json::{Map, Value};
use std::path::PathBuf;

/// Name, configuration, and configuration of the critic and reward model beside it in PPO.
static SHAPES: [(&str, &str, &str); 4] = [
    ("opt-125m", include_str!("shapes/opt-125m.json"), CRITIC),
    ("gpt2", include_str!("shapes/gpt2.json"), CRITIC),
    ("smollm2-135m", include_str!("shapes/smollm2-135m.json"), CRITIC),
    ("tiny", include_str!("shapes/tiny.json"), include_str!("shapes/tiny.json")),
];

/// OPT's architecture at 46 M parameters: 6 layers, 512 wide.
const CRITIC: &str = include_str!("shapes/opt-46m.json");

/// The model to measure.
pub(super) struct Subject {
    /// Shape or directory, as given.
    pub(super) name: String,
    /// The model.
    pub(super) config: Config,
    /// The critic and the reward model, which have the model's vocabulary.
    critic: Config,
    /// Where the weights are; None = random.
    dir: Option<PathBuf>,
    seed: u64,
}

impl Subject {
    /// Finds the model or the shape.
    pub(super) fn open(cfg: &BenchConfig) -> Result<Subject> {
        let (name, dir, config, critic) = match &cfg.model {
            Some(name) => {
                let dir = resolve_model(name)?;
                (name.clone(), Some(dir.clone()), Config::read(&dir)?, CRITIC)
            }
            None => {
                let known = SHAPES.iter().find(|s| s.0 == cfg.shape);
                let (name, config, critic) =
                    known.ok_or_else(|| Error::internal(format!("no shape {:?}", cfg.shape)))?;
                (name.to_string(), None, parsed(config)?, *critic)
            }
        };
        let mut critic = parsed(critic)?;
        critic.map.insert("vocab_size".into(), config.arch()?.vocab.into());
        Ok(Subject { name, config, critic, dir, seed: cfg.seed })
    }

    /// The model with a language-model head.
    pub(super) fn model(&self, options: &LoadOptions) -> Result<Model> {
        let options = LoadOptions { seed: self.seed, ..options.clone() };
        match &self.dir {
            Some(dir) => Model::load(dir, &options),
            None => Model::random(&self.config, &options),
        }
    }

    /// A critic or reward model with random weights.
    pub(super) fn critic(&self, options: &LoadOptions) -> Result<Model> {
        let options = LoadOptions {
            head: Head::Score,
            seed: self.seed + u64::from(options.train),
            ..options.clone()
        };
        Model::random(&self.critic, &options)
    }
}

fn parsed(text: &str) -> Result<Config> {
    let map: Map<String, Value> =
        serde_json::from_str(text).map_err(|e| Error::internal(format!("a shape: {e}")))?;
    Ok(Config::from_map(map))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::DType;
    use crate::model::Params;

    fn millions(text: &str, head: Head) -> f64 {
        let arch = parsed(text).unwrap().arch().unwrap();
        let (specs, _) = Params::lay_out(&arch, head, false, None, 1).unwrap();
        specs.iter().map(|s| s.shape.iter().product::<usize>()).sum::<usize>() as f64 / 1e6
    }

    #[test]
    fn shapes_have_the_published_sizes() {
        let sizes: Vec<f64> = SHAPES.iter().map(|s| millions(s.1, Head::Lm)).collect();
        for (size, published) in sizes.iter().zip([125.2, 124.4, 134.5]) {
            assert!((size - published).abs() < 0.1, "{sizes:?}");
        }
        assert!((millions(CRITIC, Head::Score) - 45.7).abs() < 0.1);
    }

    #[test]
    fn the_critic_has_the_vocabulary_of_the_model() {
        let cfg = BenchConfig { shape: "tiny".into(), ..BenchConfig::default() };
        let subject = Subject::open(&cfg).unwrap();
        let options = LoadOptions::frozen(Head::Score, DType::F32);
        assert_eq!(subject.critic(&options).unwrap().arch.vocab, 256);
    }
}

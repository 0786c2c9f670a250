//! Models of a run with their tokenizers: found, loaded, saved.

use crate::arch::Config;
use crate::base::{DType, Error, Result};
use crate::data::Tokenizer;
use crate::model::{
    Head, LoadOptions, LoraConfig, Model, SaveAs, base_dir, resolve_model, save_adapters,
    save_model,
};
use crate::report::{Event, Reporter};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A model directory that exists, with its tokenizer.
pub(super) struct Source {
    pub(super) dir: PathBuf,
    pub(super) tokenizer: Arc<Tokenizer>,
    /// Longest sequence of the model.
    pub(super) max_positions: usize,
}

impl Source {
    /// Resolves a directory or cached name and loads its tokenizer.
    pub(super) fn open(name: &str) -> Result<Source> {
        let dir = resolve_model(name)?;
        // Adapters come with the base model's tokenizer.
        let base = base_dir(&dir)?;
        let max_positions = Config::read(&base)?.arch()?.max_positions;
        let own = dir.join("tokenizer.json").is_file();
        let tokenizer = Arc::new(Tokenizer::load(if own { &dir } else { &base })?);
        Ok(Source { dir, tokenizer, max_positions })
    }

    /// Loads the model and checks that it knows every token.
    pub(super) fn load(&self, options: &LoadOptions, reporter: &mut Reporter) -> Result<Model> {
        let model = Model::load(&self.dir, options)?;
        self.tokenizer.check_vocab(model.arch.vocab)?;
        for note in &model.notes {
            reporter.emit(Event::warning(note.clone()));
        }
        Ok(model)
    }

    /// Refuses a model whose tokens are not these.
    pub(super) fn same_tokens(&self, other: &Source) -> Result<()> {
        if self.tokenizer.same_vocabulary(&other.tokenizer) {
            return Ok(());
        }
        Err(Error::user(format!(
            "{} and {} have different tokenizers; actor, critic and reward model must share one",
            self.dir.display(),
            other.dir.display()
        )))
    }

    /// Saves a trained model that started here as a Hugging Face directory with its tokenizer.
    /// Adapters are merged into it, and also saved alone, in `adapter/` inside.
    pub(super) fn save(&self, model: &Model, dir: &Path, options: &SaveAs) -> Result<()> {
        save_model(model, dir, options, None)?;
        self.tokenizer.save(dir)?;
        if model.lora.is_some() {
            save_adapters(model, &dir.join("adapter"), &self.dir.display().to_string())?;
        }
        Ok(())
    }
}

/// Options for a model to be trained.
pub(super) fn trained(
    head: Head,
    dtype: DType,
    lora: Option<LoraConfig>,
    seed: u64,
) -> LoadOptions {
    LoadOptions { head, dtype, train: true, lora, seed }
}

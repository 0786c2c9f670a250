//! What the steps work on: models with their tokenizers, and rows made into examples.

use crate::base::{DType, Error, Result, Rng};
use crate::data::{self, Tokenizer};
use crate::model::{Head, LoadOptions, LoraConfig, Model, SaveAs, resolve_model, save_adapters, save_model};
use crate::report::{Event, Reporter};
use std::path::{Path, PathBuf};

/// A model directory that exists, with its tokenizer.
pub(super) struct Source {
    pub(super) dir: PathBuf,
    pub(super) tokenizer: Tokenizer,
}

impl Source {
    /// Resolves a directory or cached name and loads its tokenizer.
    pub(super) fn open(name: &str) -> Result<Source> {
        let dir = resolve_model(name)?;
        let tokenizer = Tokenizer::load(&dir)?;
        Ok(Source { dir, tokenizer })
    }

    /// Loads the model and checks that it knows every token.
    pub(super) fn load(&self, options: &LoadOptions, reporter: &mut Reporter) -> Result<Model> {
        let model = Model::load(&self.dir, options)?;
        let (tokens, rows) = (self.tokenizer.vocab_size(), model.arch.vocab);
        if tokens > rows {
            return Err(Error::user(format!(
                "{}: the tokenizer has {tokens} tokens, the embedding {rows} rows; use the tokenizer the model was made with",
                self.dir.display()
            )));
        }
        for note in &model.notes {
            reporter.emit(Event::warning(note.clone()));
        }
        Ok(model)
    }
}

/// Options for a model to be trained.
pub(super) fn trained(head: Head, dtype: DType, lora: Option<LoraConfig>, seed: u64) -> LoadOptions {
    LoadOptions { head, dtype, train: true, lora, seed }
}

/// Saves a trained model as a Hugging Face directory with its tokenizer; adapters are merged into
/// it, and also saved alone beside it in `adapter/`.
pub(super) fn save(model: &Model, source: &Source, dir: &Path, options: &SaveAs) -> Result<()> {
    save_model(model, dir, options, None)?;
    source.tokenizer.save(dir)?;
    if model.lora.is_some() {
        save_adapters(model, &dir.join("adapter"), &source.dir.display().to_string())?;
    }
    Ok(())
}

/// The order of examples in an epoch.
pub(super) fn epoch_order(n: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    Rng::new(seed ^ 0x6570_6f63, epoch).shuffle(&mut order);
    order
}

/// Batches of example numbers for `epochs` epochs, at most `max_steps` of them (0 = no limit). A
/// short last batch of an epoch is used as it is.
pub(super) fn schedule_batches(
    n: usize,
    batch: usize,
    epochs: u64,
    max_steps: u64,
    seed: u64,
) -> Vec<Vec<usize>> {
    let mut out = vec![];
    let mut epoch = 0;
    while n > 0 && (epoch < epochs || max_steps > 0) {
        for chunk in epoch_order(n, seed, epoch).chunks(batch.max(1)) {
            if max_steps > 0 && out.len() as u64 == max_steps {
                return out;
            }
            out.push(chunk.to_vec());
        }
        epoch += 1;
    }
    out
}

/// Reports bad and over-long rows that were left out.
pub(super) fn report_left_out(reporter: &mut Reporter, what: &str, count: usize, first: &[String]) {
    if count > 0 {
        let example = first.first().map_or(String::new(), |f| format!(", first: {f}"));
        reporter.emit(Event::warning(format!("{count} {what}{example}")));
    }
}

/// Refuses an empty set.
pub(super) fn require(n: usize, split: &str, data: &[String]) -> Result<()> {
    if n > 0 {
        return Ok(());
    }
    Err(Error::user(format!(
        "no examples for {split} in {}; add data, change data_split, or raise the length limits",
        if data.is_empty() { "data_path (not given)".to_string() } else { data.join(", ") }
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_cover_each_epoch_once_in_a_fresh_order() {
        let batches = schedule_batches(10, 4, 2, 0, 3);
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2, 4, 4, 2]);
        let epoch = |i: usize| batches[3 * i..3 * i + 3].concat();
        let (a, b) = (epoch(0), epoch(1));
        assert_ne!(a, b);
        let sorted = |mut v: Vec<usize>| {
            v.sort_unstable();
            v
        };
        assert_eq!(sorted(a), (0..10).collect::<Vec<_>>());
        assert_eq!(sorted(b), (0..10).collect::<Vec<_>>());
        assert_eq!(schedule_batches(10, 4, 1, 7, 3).len(), 7);
        assert_eq!(schedule_batches(10, 4, 2, 0, 3), batches);
    }
}

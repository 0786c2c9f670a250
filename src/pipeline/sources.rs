//! Models of a run with their tokenizers: found, loaded, saved.

use crate::arch::{Arch, Config};
use crate::base::{Error, Result};
use crate::data::Tokenizer;
use crate::formats::{Checkpoint, sync_dir};
use crate::model::{
    LoadOptions, Model, SaveAs, Values, base_dir, resolve_model, save_adapters, save_model,
    take_part_in_saving,
};

use crate::report::{Event, Reporter};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A model directory that exists, with its tokenizer.
pub(super) struct Source {
    pub(super) dir: PathBuf,
    pub(super) tokenizer: Arc<Tokenizer>,
    /// Of the model.
    pub(super) arch: Arch,
}

impl Source {
    /// Resolves a directory or cached name and loads its tokenizer.
    pub(super) fn open(name: &str) -> Result<Source> {
        let dir = resolve_model(name)?;
        // Adapters come with the base model's tokenizer.
        let base = base_dir(&dir)?;
        let arch = Config::read(&base)?.arch()?;
        let own = dir.join("tokenizer.json").is_file();
        let tokenizer = Arc::new(Tokenizer::load(if own { &dir } else { &base })?);
        Ok(Source { dir, tokenizer, arch })
    }

    /// Loads the model and checks that it knows every token.
    pub(super) fn load(&self, options: &LoadOptions, reporter: &mut Reporter) -> Result<Model> {
        let model = self.load_checked(options)?;
        for note in &model.notes {
            reporter.emit(Event::warning(note.clone()));
        }
        Ok(model)
    }

    /// The same outside a run: warnings go to standard error.
    pub(super) fn load_alone(&self, options: &LoadOptions) -> Result<Model> {
        let model = self.load_checked(options)?;
        for note in &model.notes {
            eprintln!("warning: {note}");
        }
        Ok(model)
    }

    fn load_checked(&self, options: &LoadOptions) -> Result<Model> {
        let model = Model::load(&self.dir, options)?;
        self.tokenizer.check_vocab(model.arch.vocab)?;
        // A model that is to be trained may begin with a random score head.
        if model.score_is_random && !options.train {
            return Err(Error::user(format!(
                "{}: has no score head, so it cannot score answers; name a reward model, such as \
                 one that `duplex reward` made",
                self.dir.display()
            )));
        }
        Ok(model)
    }

    /// The files that the model and its tokenizer are read from.
    pub(super) fn files(&self) -> Result<Vec<PathBuf>> {
        let base = base_dir(&self.dir)?;
        let mut files: Vec<PathBuf> =
            Checkpoint::open(&base)?.files().map(Path::to_path_buf).collect();
        for dir in [&self.dir, &base] {
            let small = std::fs::read_dir(dir).map_err(|e| Error::io("read", dir, &e))?;
            let small = small.filter_map(|e| e.ok().map(|e| e.path()));
            files.extend(small.filter(|p| {
                let settings = ["json", "jinja", "model"];
                let of = |p: &Path, ends: &[&str]| {
                    p.extension().and_then(|e| e.to_str()).is_some_and(|e| ends.contains(&e))
                };
                let adapter = p
                    .file_name()
                    .is_some_and(|n| n == "adapter_model.safetensors" || n == "adapter_model.bin");
                p.is_file() && (of(p, &settings) || adapter)
            }));
        }
        files.sort();
        files.dedup();
        Ok(files)
    }

    /// Whether ids mean the same to both.
    pub(super) fn has_tokens_of(&self, other: &Source) -> bool {
        self.tokenizer.same_vocabulary(&other.tokenizer)
    }

    /// Refuses a model whose tokens are not these.
    pub(super) fn same_tokens(&self, other: &Source) -> Result<()> {
        if self.has_tokens_of(other) {
            return Ok(());
        }
        Err(Error::user(format!(
            "{} and {} have different tokenizers; models used together must share one",
            self.dir.display(),
            other.dir.display()
        )))
    }

    /// Saves a trained model that started here as a Hugging Face directory with its tokenizer, in
    /// place of an older one: the first rank writes, all read. Adapters are merged into it, and also saved alone, in `adapter/`
    /// inside. `values` replaces the stored weights (an EMA) where it returns some.
    pub(super) fn save(
        &self,
        model: &Model,
        dir: &Path,
        options: &SaveAs,
        values: Option<&Values<'_>>,
    ) -> Result<()> {
        let adapters = model.lora.is_some() && values.is_none();
        if model.store.partition().comm.rank() > 0 {
            return take_part_in_saving(model, values, adapters);
        }
        replace_dir(dir, |new| {
            save_model(model, new, options, values)?;
            self.tokenizer.save(new)?;
            if adapters {
                // Where training started from adapters, the base is theirs.
                let base = base_dir(&self.dir)?;
                let base = std::path::absolute(&base).unwrap_or(base);
                save_adapters(model, &new.join("adapter"), &base.display().to_string())?;
            }
            Ok(())
        })
    }
}

/// Fills a new directory and puts it in the place of `dir`. On an error the old one stays.
fn replace_dir(dir: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let sibling = |end: &str| {
        let mut name = dir.file_name().unwrap_or_default().to_os_string();
        name.push(end);
        dir.with_file_name(name)
    };
    let (new, old) = (sibling(".partial"), sibling(".old"));
    clear(&new)?;
    std::fs::create_dir_all(&new).map_err(|e| Error::io("create", &new, &e))?;
    if let Err(e) = fill(&new) {
        // The error that counts is the first one.
        let _ = clear(&new);
        return Err(e);
    }
    clear(&old)?;
    let rename = |from: &Path, to: &Path| {
        std::fs::rename(from, to).map_err(|e| Error::io("rename a directory to", to, &e))
    };
    if dir.exists() {
        rename(dir, &old)?;
    }
    rename(&new, dir)?;
    // What is told of it afterwards must not outlive it.
    dir.parent().filter(|p| !p.as_os_str().is_empty()).map_or(Ok(()), sync_dir)?;
    clear(&old)
}

/// Removes a directory if it is there.
pub(super) fn clear(dir: &Path) -> Result<()> {
    match dir.exists() {
        true => std::fs::remove_dir_all(dir).map_err(|e| Error::io("remove", dir, &e)),
        false => Ok(()),
    }
}

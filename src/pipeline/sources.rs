//! Models of a run with their tokenizers: found and loaded.

use crate::arch::{Arch, Config};
use crate::base::{Error, FileId, Result, entries, is_dir, is_file, is_there, read_text, warn};
use crate::data::{Tokenizer, now};
use crate::device::{Device, FakeDevice};
use crate::formats::Checkpoint;
use crate::model::{LoadOptions, Model, base_dir, hub_cache, resolve_model};
use crate::report::{Event, Reporter};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

/// A model directory that exists, with its tokenizer.
pub(super) struct Source {
    pub(super) dir: PathBuf,
    pub(super) tokenizer: Arc<Tokenizer>,
    /// The architecture of the model.
    pub(super) arch: Arch,
    /// The files in its directories before anything was read.
    seen: BTreeMap<PathBuf, FileId>,
}

impl Source {
    /// Resolves a directory or cached name and loads its tokenizer.
    pub(super) fn open(name: &str) -> Result<Source> {
        Source::open_at(name, now())
    }

    /// The same at a given time, in seconds since 1970, for chat templates that write the date.
    pub(super) fn open_at(name: &str, now: i64) -> Result<Source> {
        let dir = resolve_model(name)?;
        let base = base_dir(&dir)?;
        let mut seen = BTreeMap::new();
        for place in places(&dir, &base)? {
            for path in entries(&place)? {
                // A link that leads nowhere is told of when it is read.
                seen.extend(FileId::of(&path)?.map(|id| (path, id)));
            }
        }
        let arch = Config::read(&base)?.arch()?;
        let tokenizer = Arc::new(Tokenizer::load_at(&tokenizer_dir(&dir)?, now)?);
        Ok(Source { dir, tokenizer, arch, seen })
    }

    /// Loads the model and checks that it knows every token.
    pub(super) fn load(&self, options: &LoadOptions, reporter: &mut Reporter) -> Result<Model> {
        let model = self.load_checked(options)?;
        for note in model.notes.iter().chain(self.tokenizer.notes()) {
            reporter.emit(Event::warning(note.clone()));
        }
        Ok(model)
    }

    /// The same outside a run: warnings go to standard error.
    pub(super) fn load_alone(&self, options: &LoadOptions) -> Result<Model> {
        let model = self.load_checked(options)?;
        for note in model.notes.iter().chain(self.tokenizer.notes()) {
            warn(note);
        }
        Ok(model)
    }

    /// Finds what would keep the model from being loaded, without reading its weights.
    pub(super) fn check_loads(&self, options: &LoadOptions) -> Result<()> {
        let nowhere = Device::Fake(FakeDevice::Cpu);
        self.load_checked(&options.clone().on(nowhere)).map(|_| ())
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
        for dir in places(&self.dir, &base)? {
            for path in entries(&dir)?.into_iter().filter(|path| is_read(path)) {
                if is_file(&path)? {
                    files.push(path);
                }
            }
        }
        files.sort();
        files.dedup();
        Ok(files)
    }

    /// The same with what each was before it was read: those that come later differ from it.
    pub(super) fn files_as_read(&self) -> Result<Vec<(PathBuf, Option<FileId>)>> {
        let seen = |file: PathBuf| (file.clone(), self.seen.get(&file).copied());
        Ok(self.files()?.into_iter().map(seen).collect())
    }

    /// True if both tokenizers give every token the same id.
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
}

/// The model that the critic starts from: the one given, else the reward model, else the actor.
///
/// # Errors
/// Its tokens are not the actor's: values are per token of the actor.
pub(super) fn critic_source<'s>(
    actor: &'s Source,
    reward: Option<&'s Source>,
    given: Option<&'s Source>,
) -> Result<&'s Source> {
    let same = reward.filter(|reward| actor.has_tokens_of(reward));
    let found = given.or(same).unwrap_or(actor);
    actor.same_tokens(found)?;
    Ok(found)
}

/// Models by name. Each is opened once.
#[derive(Default)]
pub(super) struct Opened(Vec<(String, Rc<Source>)>);

impl Opened {
    /// The model of this name.
    pub(super) fn get(&mut self, name: &str) -> Result<Rc<Source>> {
        if let Some((_, source)) = self.0.iter().find(|(known, _)| known == name) {
            return Ok(source.clone());
        }
        let source = Rc::new(Source::open(name)?);
        self.0.push((name.to_string(), source.clone()));
        Ok(source)
    }
}

/// True for the names of files that are read beside the weights.
fn is_read(path: &Path) -> bool {
    let end = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let by_name = ["adapter_model.safetensors", "adapter_model.bin", "merges.txt"];
    ["json", "jinja", "model"].contains(&end) || by_name.iter().any(|name| path.ends_with(name))
}

/// The directories that a model and its tokenizer are read from.
fn places(dir: &Path, base: &Path) -> Result<Vec<PathBuf>> {
    let mut all = vec![dir.to_owned()];
    all.extend((base != dir).then(|| base.to_owned()));
    for templates in all.clone().iter().map(|dir| dir.join("additional_chat_templates")) {
        if is_dir(&templates)? {
            all.push(templates);
        }
    }
    Ok(all)
}

/// The directory of the tokenizer of `dir`: its own, or that of the base model for adapters that
/// come without one.
pub(super) fn tokenizer_dir(dir: &Path) -> Result<PathBuf> {
    let base = base_dir(dir)?;
    Ok(if Tokenizer::is_in(dir)? { dir.to_path_buf() } else { base })
}

/// The path of a data set: as given, or where the local cache of the hub holds a data set of this
/// name.
pub(super) fn data_path(given: &Path) -> Result<PathBuf> {
    let name = given.to_str().unwrap_or_default();
    let known = ["json", "jsonl", "txt", "csv", "tsv", "gz", "zst", "parquet", "arrow"];
    let is_file = given.extension().and_then(|e| e.to_str()).is_some_and(|e| known.contains(&e));
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let parts = name.split('/').filter(|p| !p.is_empty()).count();
    if is_there(given)?
        || is_file
        || !(1..=2).contains(&parts)
        || name.starts_with(['.', '/', '~'])
        || name.ends_with('/')
        || !name.chars().all(plain)
    {
        return Ok(given.to_path_buf());
    }
    let Some(hub) = hub_cache() else {
        return Err(Error::user(format!(
            "{name}: no such file or directory, and no local cache to look in, as HOME is not set"
        )));
    };
    let repo = hub.join(format!("datasets--{}", name.replace('/', "--")));
    let commit = read_text(&repo.join("refs/main"), 4096).unwrap_or_default();
    let commit = commit.trim();
    // A hash. Anything else could lead out of the cache.
    let snapshot = repo.join("snapshots").join(commit);
    let plain = !commit.is_empty() && commit.chars().all(|c| c.is_ascii_alphanumeric());
    if plain && is_dir(&snapshot)? {
        return Ok(snapshot);
    }
    let directory = name.rsplit('/').next().unwrap_or(name);
    Err(Error::user(format!(
        "{name}: no such file or directory, and no data set of that name in the local cache {}; \
         Duplex does not download data sets: run `hf download --repo-type dataset {name} \
         --local-dir {directory}` and give that directory",
        hub.display()
    )))
}

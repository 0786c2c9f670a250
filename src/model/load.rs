//! Loading Hugging Face checkpoints: finding the directory, checking that every tensor is there and
//! fits, and putting each into the store in our layout.

use crate::arch::{Arch, Config};
use crate::base::{DType, Error, Result, bf16, is_dir, is_there};
use crate::device::Device;
use crate::formats::{Checkpoint, layout};
use crate::model::hub::{resolve_model, split_revision};
use crate::model::names::{Names, embedding_name, first_three, head_name, model_name, same_tensor};
use crate::model::peft::{AdapterConfig, adapter_weights, is_adapter_dir};
use crate::model::{Head, LoraConfig, Model, Source};
use crate::pool::{ParamId, Partition};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// How a model is loaded or made.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Head wanted; a missing score head is initialised.
    pub head: Head,
    /// Storage type of weights and activations.
    pub dtype: DType,
    /// True if the model will be trained.
    pub train: bool,
    /// Storage type of gradients: f32, or for bf16 weights bf16.
    pub grads: DType,
    /// Where the weights live.
    pub device: Device,
    /// The ranks that share the model, and how.
    pub partition: Partition,
    /// Adapters to add.
    pub lora: Option<LoraConfig>,
    /// Seed of what has to be initialised.
    pub seed: u64,
    /// True if the weights stay in host memory and come to the device when they are needed. The
    /// model must be frozen and must not generate.
    pub offload: bool,
    /// True if non-finite weights are an error; otherwise they are noted.
    pub strict: bool,
}

impl LoadOptions {
    /// A frozen model without new adapters, on the CPU.
    pub fn frozen(head: Head, dtype: DType) -> LoadOptions {
        let (grads, device) = (DType::F32, Device::Cpu);
        let (train, lora, seed, offload, strict) = (false, None, 0, false, false);
        let partition = Partition::alone();
        LoadOptions { head, dtype, train, grads, device, partition, lora, seed, offload, strict }
    }

    /// The same, on `device`.
    pub fn on(self, device: Device) -> LoadOptions {
        LoadOptions { device, ..self }
    }
}

/// The directory of the base model where `dir` holds PEFT adapters, else `dir`.
pub fn base_dir(dir: &Path) -> Result<PathBuf> {
    if !is_adapter_dir(dir)? {
        return Ok(dir.to_path_buf());
    }
    let name = AdapterConfig::read(dir)?.base;
    let (path, _) = split_revision(&name);
    // Looked for beside the adapters first.
    let beside = dir.parent().unwrap_or(Path::new(".")).join(path);
    if !path.is_empty() && is_there(&beside.join("config.json"))? {
        return Ok(beside);
    }
    if path.is_empty() {
        return Err(Error::user(format!(
            "{}: names no base model; set base_model_name_or_path",
            dir.join("adapter_config.json").display()
        )));
    }
    let name = if is_dir(Path::new(path))? { path } else { &name };
    resolve_model(name).map_err(|e| e.context("base of the adapters"))
}

/// PEFT adapters that are read.
struct Adapters<'d> {
    dir: &'d Path,
    lora: LoraConfig,
    file: Checkpoint,
}

impl Model {
    /// Loads a checkpoint directory, or PEFT adapters on the base they name. On a fake device
    /// all is checked but the values, which are not read.
    pub fn load(dir: &Path, options: &LoadOptions) -> Result<Model> {
        let adapters = is_adapter_dir(dir)?.then(|| Adapters::open(dir, options)).transpose()?;
        let base = base_dir(dir)?;
        if adapters.is_some() && is_adapter_dir(&base)? {
            // What only has the name is told of as what it is.
            AdapterConfig::read(&base)?;
            return Err(Error::user(format!(
                "{}: adapters on adapters; merge {} first",
                dir.display(),
                base.display()
            )));
        }
        let mut config = Config::read(&base)?;
        let arch = config.arch()?;
        let checkpoint = Checkpoint::open(&base)?;
        let mut notes = config.notes(&arch);
        let mut options = options.clone();
        if let Some(adapters) = adapters.as_ref() {
            options.lora = Some(adapters.lora.clone().for_names(&adapters.file, &arch));
        }
        if options.head == Head::Lm && arch.tied {
            let untied = adapters.as_ref().is_some_and(|a| a.unties(&arch));
            if untied || own_head(&checkpoint, &arch, &base, &mut notes)? {
                config.map.insert("tie_word_embeddings".into(), false.into());
            }
        }
        let mut model = Model::empty(&config, &options)?;
        model.notes = notes;
        model.fill(&checkpoint, &base, &options, arch.tied)?;
        match adapters {
            Some(adapters) => model.fill_adapters(&adapters, &options)?,
            None if model.is_fake() => {}
            None => model.init_adapters(options.seed)?,
        }
        if model.score_is_random && !model.is_fake() {
            model.init_score(options.seed)?;
        }
        Ok(model)
    }

    /// True if there is no memory for weights: then files are checked, and no values are read.
    fn is_fake(&self) -> bool {
        self.store.device().is_fake()
    }

    /// Names of the checkpoint tensors of this model, with those of a tied head.
    fn known_tensors(&self) -> HashSet<String> {
        let sources = self.params.sources.iter().flatten();
        sources.flat_map(|s| s.tensors.iter().map(|(n, _)| n.clone())).collect()
    }

    /// Reads all parameters but adapters. `tied`: the checkpoint has one tensor for embedding and
    /// head, even if the model has two.
    fn fill(
        &mut self,
        checkpoint: &Checkpoint,
        dir: &Path,
        options: &LoadOptions,
        tied: bool,
    ) -> Result<()> {
        let known = self.known_tensors();
        let mut names = Names::of(checkpoint, &self.arch, &known, dir)?;
        let (embedding, head) = (embedding_name(&self.arch), head_name(&self.arch, "weight"));
        // Of tensors that share memory some tools store one, under either name.
        for (one, other) in [(&embedding, &head), (&head, &embedding)] {
            if let (true, None, Some(stored)) = (tied, names.get(one), names.get(other)) {
                let stored = stored.clone();
                names.tensors.insert(one.clone(), stored);
            }
        }
        self.find_score(checkpoint, &mut names, dir)?;
        let mut missing = vec![];
        for (i, source) in self.params.sources.iter().enumerate() {
            let Some(source) = source else { continue };
            let stored: Vec<Option<&String>> =
                source.tensors.iter().map(|(n, _)| names.get(n)).collect();
            if stored.iter().any(Option::is_none) {
                if self.store.param(ParamId(i)).spec.name == "score.weight" {
                    self.score_is_random = true;
                } else {
                    let all = source.tensors.iter().zip(&stored);
                    missing.extend(all.filter(|(_, s)| s.is_none()).map(|((n, _), _)| n.clone()));
                }
                continue;
            }
            let stored: Vec<String> = stored.into_iter().flatten().cloned().collect();
            let param = self.store.param(ParamId(i));
            check_rows(checkpoint, &param.spec.shape, source, &stored, dir)?;
            if self.is_fake() {
                continue;
            }
            let values = read_rows(checkpoint, &param.spec.shape, source, &stored)?;
            self.store.write_f32(ParamId(i), &values)?;
            let told = no_numbers(&values, &stored[0], dir, options)?;
            self.not_finite |= told.is_some();
            self.notes.extend(told);
        }
        if !missing.is_empty() {
            return Err(self.missing(checkpoint, &missing, &names, dir));
        }
        self.refuse_unknown(&names, names.hint(), dir)?;
        let absent = checkpoint.absent().count();
        if absent > 0 {
            self.notes.push(format!(
                "{}: the index names {} in no file; the model needs none of them",
                dir.display(),
                counted(absent, "tensor that is", "tensors that are")
            ));
        }
        Ok(())
    }

    /// Refuses tensors that mean nothing; `hint` may say more of them.
    fn refuse_unknown(&self, names: &Names, hint: &str, dir: &Path) -> Result<()> {
        if names.unknown.is_empty() {
            return Ok(());
        }
        Err(Error::user(format!(
            "{}: {} to no part of a {} model of this config, first {}{hint}",
            dir.display(),
            counted(names.unknown.len(), "tensor belongs", "tensors belong"),
            self.arch.family.model_type,
            first_three(&names.unknown)
        )))
    }

    /// The error of tensors that are not there.
    fn missing(
        &self,
        checkpoint: &Checkpoint,
        missing: &[String],
        names: &Names,
        dir: &Path,
    ) -> Error {
        let known = self.known_tensors();
        let shard = checkpoint.absent().find(|(name, _)| {
            model_name(name, &self.arch, &known).is_some_and(|n| missing.contains(&n))
        });
        let more = if let Some((name, shard)) = shard {
            let why = match dir.join(shard).exists() {
                true => "does not hold it",
                false => "is missing",
            };
            format!("; the index places {name} in {shard}, which {why}: download it again")
        } else if !names.unknown.is_empty() {
            let unknown = &names.unknown;
            let count = counted(unknown.len(), "other has", "others have");
            format!("; {count} no meaning here, first {}", first_three(unknown)) + names.hint()
        } else if missing == [head_name(&self.arch, "weight")] {
            match checkpoint.names().any(|n| n.ends_with("score.weight")) {
                true => "; it is a reward model, which writes no text".into(),
                false => {
                    "; if the head is the embedding, the config must say tie_word_embeddings true"
                        .into()
                }
            }
        } else {
            String::new()
        };
        Error::user(format!(
            "{}: {}, first {}{more}",
            dir.display(),
            counted(missing.len(), "tensor is missing", "tensors are missing"),
            first_three(missing)
        ))
    }

    /// Finds the score head of a checkpoint under any of its names, and notes one that is not
    /// wanted.
    fn find_score(&mut self, checkpoint: &Checkpoint, names: &mut Names, dir: &Path) -> Result<()> {
        if let Some(stored) = names.tensors.remove("score.weight") {
            names.score.push(stored);
            names.score.sort();
        }
        if names.score.is_empty() {
            return Ok(());
        }
        if self.head == Head::Lm {
            self.notes.push(format!(
                "{}: its score head ({}) is not used: a language model is wanted",
                dir.display(),
                first_three(&names.score)
            ));
            return Ok(());
        }
        let bad = |what: String| Error::user(format!("{}: {what}", dir.display()));
        let (mut weights, mut rest) = (vec![], vec![]);
        for stored in &names.score {
            let last = stored.rsplit('.').next().unwrap_or("");
            let flat = stored.split('.').all(|part| part.parse::<usize>().is_err());
            let known = flat && !stored.contains("dense") && !stored.contains("out_proj");
            match last {
                "weight" if known => weights.push(stored),
                "bias" if known => {
                    if checkpoint.read_f32(stored)?.iter().any(|x| *x != 0.0) {
                        return Err(bad(format!(
                            "{stored} is not 0; a score head with a bias is not supported"
                        )));
                    }
                }
                _ => rest.push(stored.clone()),
            }
        }
        let [weight] = weights[..] else {
            return Err(bad(format!(
                "a score head of one linear layer is supported; it has {}",
                first_three(&names.score)
            )));
        };
        if !rest.is_empty() {
            return Err(bad(format!(
                "a score head of one linear layer is supported; it has {} too",
                first_three(&rest)
            )));
        }
        if let Some(&[labels, _]) = checkpoint.info(weight).map(|i| &i.shape[..])
            && labels != 1
        {
            return Err(bad(format!(
                "has num_labels {labels} ({weight} has {labels} rows); a reward model has 1"
            )));
        }
        names.tensors.insert("score.weight".into(), weight.clone());
        Ok(())
    }
}

impl Model {
    /// True if the language model in `dir` has the embedding for a head once it is loaded: the
    /// config ties them, and no tensor of the files says otherwise.
    pub fn ties_head(dir: &Path) -> Result<bool> {
        let base = base_dir(dir)?;
        let arch = Config::read(&base)?.arch()?;
        if !arch.tied {
            return Ok(false);
        }
        let options = LoadOptions::frozen(Head::Lm, DType::F32);
        if is_adapter_dir(dir)? && Adapters::open(dir, &options)?.unties(&arch) {
            return Ok(false);
        }
        Ok(!own_head(&Checkpoint::open(&base)?, &arch, &base, &mut vec![])?)
    }

    /// The tensors of the score head in `dir`, by their names in the files: adapters' first, else
    /// the base model's.
    pub fn score_tensors(dir: &Path) -> Result<Vec<String>> {
        let base = base_dir(dir)?;
        let arch = Config::read(&base)?.arch()?;
        let mut files = vec![Checkpoint::open(&base)?];
        if is_adapter_dir(dir)? {
            files.insert(0, Checkpoint::open_file(&adapter_weights(dir)?)?);
        }
        for file in &files {
            let (mut names, known) = (Names::default(), HashSet::new());
            for stored in file.names() {
                names.sort(&plain_name(stored), stored, &arch, &known, file, dir)?;
            }
            names.score.sort();
            if !names.score.is_empty() {
                return Ok(names.score);
            }
        }
        Ok(vec![])
    }
}

/// True if a checkpoint whose config ties head and embedding has both with different values: then
/// `transformers` does not tie them either.
fn own_head(
    checkpoint: &Checkpoint,
    arch: &Arch,
    dir: &Path,
    notes: &mut Vec<String>,
) -> Result<bool> {
    let (embedding, head) = (embedding_name(arch), head_name(arch, "weight"));
    let known = [embedding.clone(), head.clone()].into();
    let names = Names::of(checkpoint, arch, &known, dir)?;
    let (Some(e), Some(h)) = (names.get(&embedding), names.get(&head)) else { return Ok(false) };
    if same_tensor(checkpoint, e, h)? {
        return Ok(false);
    }
    notes.push(format!(
        "{}: tie_word_embeddings is true, but {h} and {e} differ: they are not tied, as in \
         transformers",
        dir.display()
    ));
    Ok(true)
}

impl Adapters<'_> {
    fn open<'d>(dir: &'d Path, options: &LoadOptions) -> Result<Adapters<'d>> {
        let lora = AdapterConfig::read(dir)?.lora;
        if options.lora.is_some() {
            return Err(Error::user(format!(
                "{}: holds adapters already; merge them first, or give the base model",
                dir.display()
            )));
        }
        let file = Checkpoint::open_file(&adapter_weights(dir)?)?;
        Ok(Adapters { dir, lora, file })
    }

    /// True if a tied head is not the embedding any more: one of them came with the adapters alone.
    fn unties(&self, arch: &Arch) -> bool {
        let rules = &self.lora.rules;
        let (embedding, head) = (embedding_name(arch), head_name(arch, "weight"));
        !rules.ensure_tying && (rules.saves(&embedding) || rules.saves(&head))
    }
}

impl Model {
    /// Reads the adapters' factors and what else their file holds.
    fn fill_adapters(&mut self, adapters: &Adapters<'_>, options: &LoadOptions) -> Result<()> {
        let Adapters { dir, file, .. } = adapters;
        let lora = self.lora.clone().unwrap_or_default();
        // By module and factor; the rest by its name without what PEFT adds.
        let mut factors = HashMap::new();
        let mut rest = HashMap::new();
        for stored in file.names() {
            let name = plain_name(stored);
            match factor_of(&name) {
                Some((module, factor)) => {
                    factors.insert((module.to_string(), factor), stored.to_string());
                }
                // The base's own weights, which old versions stored too.
                None if name.contains(".original_module.") => {}
                None => {
                    rest.insert(name, stored.to_string());
                }
            }
        }
        let mut notes = vec![];
        for adapter in self.adapters() {
            let module = lora.rules.in_base(&adapter.module);
            for (id, part) in [(adapter.a, "lora_A"), (adapter.b, "lora_B")] {
                let shape = &self.store.param(id).spec.shape;
                let Some(stored) = factors.remove(&(module.to_string(), part)) else {
                    return Err(Error::user(format!(
                        "{}: {part} of {} is missing, which target_modules selects",
                        dir.display(),
                        adapter.module
                    )));
                };
                check_shape(file, &stored, shape, dir)?;
                if self.is_fake() {
                    continue;
                }
                let mut values = file.read_f32(&stored)?;
                notes.extend(no_numbers(&values, &stored, dir, options)?);
                if let Some(order) = adapter.order.as_ref().filter(|_| part == "lora_B") {
                    values = layout::gather_rows(order, shape[1], &values);
                }
                self.store.write_f32(id, &values)?;
            }
        }
        self.not_finite |= !notes.is_empty();
        self.notes.extend(notes);
        if !factors.is_empty() {
            let mut names: Vec<String> = factors.into_values().collect();
            names.sort();
            return Err(Error::user(format!(
                "{}: {} of no adapter that adapter_config.json selects on a linear layer of a \
                 block, first {}",
                dir.display(),
                counted(names.len(), "tensor is", "tensors are"),
                first_three(&names)
            )));
        }
        self.fill_saved(adapters, &lora, rest, options)
    }

    /// Reads weights of the base that came with the adapters. `rest` holds their names in the file
    /// by those without PEFT's parts.
    fn fill_saved(
        &mut self,
        adapters: &Adapters<'_>,
        lora: &LoraConfig,
        rest: HashMap<String, String>,
        options: &LoadOptions,
    ) -> Result<()> {
        let Adapters { dir, file, .. } = adapters;
        let known = self.known_tensors();
        let mut names = Names::default();
        for (name, stored) in rest {
            names.sort(&name, &stored, &self.arch, &known, file, dir)?;
        }
        names.score.sort();
        names.unknown.sort();
        self.find_score(file, &mut names, dir)?;
        self.settle_head(file, &mut names, dir)?;
        self.refuse_unknown(&names, "", dir)?;
        let mut used = HashSet::new();
        for (i, source) in self.params.sources.iter().enumerate() {
            let Some(source) = source else { continue };
            let param = self.store.param(ParamId(i));
            let mut first = 0;
            for (name, rows) in &source.tensors {
                let range = first..first + rows;
                first = range.end;
                let Some(stored) = names.get(name) else {
                    // PEFT finds the modules by their names' ends.
                    if lora.rules.saves(name)
                        && !(self.arch.tied && name == &embedding_name(&self.arch))
                    {
                        return Err(Error::user(format!(
                            "{}: {name} is missing, which modules_to_save names",
                            dir.display()
                        )));
                    }
                    continue;
                };
                let one = Source { tensors: vec![(name.clone(), *rows)], ..source.clone() };
                let alone = source.tensors.len() == 1;
                let spec = &param.spec;
                let columns: usize = spec.shape[1..].iter().product();
                let stored = std::slice::from_ref(stored);
                check_rows(file, &spec.shape, &one, stored, dir)?;
                used.insert(name.clone());
                if self.is_fake() {
                    continue;
                }
                let values = read_rows(file, &spec.shape, &one, stored)?;
                let told = no_numbers(&values, &stored[0], dir, options)?;
                self.not_finite |= told.is_some();
                self.notes.extend(told);
                if alone {
                    self.store.write_f32(ParamId(i), &values)?;
                } else {
                    let mut all = self.store.read_f32(ParamId(i))?;
                    all[range.start * columns..range.end * columns].copy_from_slice(&values);
                    self.store.write_f32(ParamId(i), &all)?;
                }
            }
        }
        if used.remove("score.weight") {
            self.score_is_random = false;
        }
        let mut saved: Vec<String> = used.into_iter().collect();
        saved.sort();
        if options.train && !saved.is_empty() {
            self.notes.push(format!(
                "{}: {} came with the adapters and stay as they are; the adapters' factors are \
                 trained",
                dir.display(),
                first_three(&saved)
            ));
        }
        self.saved_with_adapters = saved;
        Ok(())
    }

    /// Leaves the language-model head among the tensors of adapters only where it is one of its
    /// own: a tied one is the embedding, and a reward model has none.
    fn settle_head(&self, file: &Checkpoint, names: &mut Names, dir: &Path) -> Result<()> {
        let (embedding, head) = (embedding_name(&self.arch), head_name(&self.arch, "weight"));
        if self.arch.tied
            && let Some(stored) = names.tensors.remove(&head)
        {
            if let Some(other) = names.get(&embedding).filter(|_| self.head == Head::Lm)
                && !same_tensor(file, other, &stored)?
            {
                return Err(Error::user(format!(
                    "{}: {other} and {stored} differ, but the config ties them",
                    dir.display()
                )));
            }
            names.tensors.entry(embedding).or_insert(stored);
        }
        if self.head == Head::Score {
            names.tensors.remove(&head);
            names.tensors.remove(&head_name(&self.arch, "bias"));
        }
        Ok(())
    }
}

/// A name in an adapter file without wrappers and without `modules_to_save.<adapter>`.
fn plain_name(stored: &str) -> String {
    let mut name = stored;
    while let Some(inner) =
        ["module.", "base_model.model.", "base_model."].iter().find_map(|w| name.strip_prefix(w))
    {
        name = inner;
    }
    let Some((module, rest)) = name.split_once(".modules_to_save.") else { return name.into() };
    // The adapter's name, which PEFT leaves out of files.
    let part = rest.split_once('.').map_or(rest, |(_, part)| part);
    format!("{module}.{part}")
}

/// Module and factor that a tensor of an adapter is, with or without the adapter's name.
fn factor_of(name: &str) -> Option<(&str, &'static str)> {
    ["lora_A", "lora_B"].into_iter().find_map(|factor| {
        let (module, rest) = name.split_once(&format!(".{factor}."))?;
        let end = rest.strip_suffix("weight")?;
        (end.matches('.').count() <= 1).then_some((module, factor))
    })
}

/// Returns a note if any value of a tensor is infinite or NaN in the dtype of the model; an error
/// instead if the options are strict.
fn no_numbers(
    values: &[f32],
    name: &str,
    dir: &Path,
    options: &LoadOptions,
) -> Result<Option<String>> {
    let finite = |v: &f32| match options.dtype {
        DType::Bf16 => bf16::from_f32(*v).is_finite(),
        _ => v.is_finite(),
    };
    let bad = values.iter().filter(|v| !finite(v)).count();
    let values = counted(bad, "value is", "values are");
    let told = format!("{}: {values} not finite in {name}", dir.display());
    match bad {
        0 => Ok(None),
        _ if options.strict => {
            Err(Error::user(format!("{told}; use another model, or leave out --strict-weights")))
        }
        _ => Ok(Some(told)),
    }
}

/// A number of things with what they are or do.
fn counted(n: usize, one: &str, more: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { more })
}

fn check_shape(checkpoint: &Checkpoint, name: &str, want: &[usize], dir: &Path) -> Result<()> {
    let Some(info) = checkpoint.info(name) else {
        return Err(Error::user(format!("{}: tensor {name} is missing", dir.display())));
    };
    if info.shape != want {
        return Err(Error::user(format!(
            "{}: tensor {name} has shape {:?}, the config says {want:?}",
            dir.display(),
            info.shape
        )));
    }
    Ok(())
}

/// Shape of `rows` rows of a parameter of `shape` as `source` stores them.
fn stored_shape(shape: &[usize], source: &Source, rows: usize) -> Vec<usize> {
    let mut shape = shape.to_vec();
    shape[0] = rows;
    if source.transposed {
        shape.reverse();
    }
    shape
}

/// Refuses source tensors of other shapes, before there is room made for them: a config may say
/// anything.
fn check_rows(
    checkpoint: &Checkpoint,
    shape: &[usize],
    source: &Source,
    names: &[String],
    dir: &Path,
) -> Result<()> {
    let mut all = names.iter().zip(&source.tensors);
    all.try_for_each(|(name, (_, rows))| {
        check_shape(checkpoint, name, &stored_shape(shape, source, *rows), dir)
    })
}

/// Stacks the source tensors of a parameter of `shape` into our row-major `[out, in]`.
fn read_rows(
    checkpoint: &Checkpoint,
    shape: &[usize],
    source: &Source,
    names: &[String],
) -> Result<Vec<f32>> {
    let mut out = Vec::with_capacity(shape.iter().product());
    for (name, (_, rows)) in names.iter().zip(&source.tensors) {
        let shape = stored_shape(shape, source, *rows);
        let values = checkpoint.read_f32(name)?;
        if source.transposed {
            let mut turned = vec![0.0; values.len()];
            layout::transpose(shape[0], shape[1], &values, &mut turned);
            out.extend(turned);
        } else {
            out.extend(values);
        }
    }
    Ok(match &source.order {
        Some(order) => layout::gather_rows(order, out.len() / order.len(), &out),
        None => out,
    })
}

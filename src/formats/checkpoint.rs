//! All the weights of a Hugging Face model directory as one table from name to tensor, whatever
//! files they lie in. Reads on demand; knows no model and no configuration.

use super::TensorInfo;
use super::names::{clipped, is_plain_name, not_here, quoted};
use super::safetensors::SafetensorsFile;
use super::torch::TorchFile;
use crate::base::{Error, Result, is_there, read_file};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::path::Path;

/// The files that [`Checkpoint::open`] looks for, in this order.
const LOOKED_FOR: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// Bound on an index file; real ones stay under a few megabytes.
const MAX_INDEX: u64 = 100_000_000;

/// Open weight files and the tensors in them.
pub struct Checkpoint {
    sources: Vec<Source>,
    /// Name to position in `sources`.
    places: BTreeMap<String, usize>,
    /// Tensors that an index names and no file holds, with the file it names.
    absent: BTreeMap<String, String>,
}

enum Source {
    Safetensors(SafetensorsFile),
    Torch(TorchFile),
}

impl Checkpoint {
    /// Opens the weights in `dir`: `model.safetensors`, else its index and shards, else
    /// `pytorch_model.bin`, else its index and shards. Everything but the tensors' bytes is checked
    /// here; errors name the file and the tensor at fault. An index may name tensors and shards
    /// that are not there ([`Checkpoint::absent`]), as long as one shard is.
    pub fn open(dir: &Path) -> Result<Checkpoint> {
        for name in LOOKED_FOR {
            let path = dir.join(name);
            if !is_there(&path)? {
                continue;
            }
            return match name.ends_with(".index.json") {
                true => Checkpoint::open_index(dir, &path),
                false => Checkpoint::open_file(&path),
            };
        }
        Err(Error::user(format!(
            "no weights in {}: looked for {}; {}",
            dir.display(),
            LOOKED_FOR.join(", "),
            what_is_there(dir)
        )))
    }

    /// Opens one weight file, as a PEFT adapter's: a PyTorch one by its extension `.bin`, `.pt` or
    /// `.pth`, else safetensors.
    pub fn open_file(path: &Path) -> Result<Checkpoint> {
        Checkpoint::join(vec![Source::open(path)?])
    }

    fn open_index(dir: &Path, index: &Path) -> Result<Checkpoint> {
        let map = read_index(index)?;
        let mut shards: Vec<&str> = map.values().map(String::as_str).collect();
        shards.sort_unstable();
        shards.dedup();
        let mut sources = Vec::new();
        for shard in &shards {
            let path = dir.join(shard);
            if is_there(&path)? {
                sources.push(Source::open(&path)?);
            }
        }
        if sources.is_empty() {
            return Err(Error::user(format!(
                "{} names the shard {}, which is missing; download it again",
                index.display(),
                shards[0]
            )));
        }
        let mut checkpoint = Checkpoint::join(sources)?;
        for (name, shard) in map {
            match checkpoint.places.get(&name).map(|&i| checkpoint.sources[i].path()) {
                Some(found) if found != dir.join(&shard) => {
                    return Err(Error::user(format!(
                        "{} places tensor {} in {shard}, but it is in {}; the files are of \
                         different models, download them again",
                        index.display(),
                        quoted(&name),
                        found.display()
                    )));
                }
                Some(_) => {}
                // Whoever needs it says so.
                None => {
                    checkpoint.absent.insert(name, shard);
                }
            }
        }
        Ok(checkpoint)
    }

    fn join(sources: Vec<Source>) -> Result<Checkpoint> {
        let mut places = BTreeMap::new();
        for (i, source) in sources.iter().enumerate() {
            for name in source.names() {
                if let Some(j) = places.insert(name.to_owned(), i) {
                    return Err(Error::user(format!(
                        "tensor {} is both in {} and in {}; keep the files of one model only",
                        quoted(name),
                        sources[j].path().display(),
                        source.path().display()
                    )));
                }
            }
        }
        Ok(Checkpoint { sources, places, absent: BTreeMap::new() })
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Tensors that the index names and no file holds, each with the file that should.
    pub fn absent(&self) -> impl Iterator<Item = (&str, &str)> {
        self.absent.iter().map(|(name, shard)| (name.as_str(), shard.as_str()))
    }

    /// Dtype and shape of a tensor; `None` if there is none of this name.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.places.get(name).and_then(|&i| match &self.sources[i] {
            Source::Safetensors(file) => file.info(name),
            Source::Torch(file) => file.info(name),
        })
    }

    /// The weight files.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.sources.iter().map(Source::path)
    }

    /// The elements of a float tensor in row-major order as f32 (F64 is rounded). Errors if there
    /// is no such tensor, if it is not of floats, or if its bytes are damaged.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let (source, info) = self.find(name)?;
        let bytes = source.bytes(name)?;
        info.dtype.to_f32(&bytes).ok_or_else(|| {
            Error::user(format!(
                "{}: tensor {} is {}, not floating point",
                source.path().display(),
                quoted(name),
                info.dtype
            ))
        })
    }

    /// The bytes of a tensor: row-major, little-endian, in its own dtype, not necessarily aligned.
    pub fn read_raw(&self, name: &str) -> Result<Vec<u8>> {
        self.find(name)?.0.bytes(name)
    }

    fn find(&self, name: &str) -> Result<(&Source, &TensorInfo)> {
        if let (Some(&i), Some(info)) = (self.places.get(name), self.info(name)) {
            return Ok((&self.sources[i], info));
        }
        let first = self.files().next().unwrap_or(Path::new("an empty checkpoint"));
        Err(not_here(name, first.parent().filter(|_| self.sources.len() > 1).unwrap_or(first)))
    }
}

impl Source {
    fn open(path: &Path) -> Result<Source> {
        match path.extension().and_then(|e| e.to_str()) {
            Some("bin" | "pt" | "pth") => TorchFile::open(path).map(Source::Torch),
            _ => SafetensorsFile::open(path).map(Source::Safetensors),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Source::Safetensors(file) => file.path(),
            Source::Torch(file) => file.path(),
        }
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match self {
            Source::Safetensors(file) => Box::new(file.names()),
            Source::Torch(file) => Box::new(file.names()),
        }
    }

    fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        match self {
            Source::Safetensors(file) => file.bytes(name),
            Source::Torch(file) => file.bytes(name),
        }
    }
}

/// Advice for a directory without weights that are read, by what it holds instead.
fn what_is_there(dir: &Path) -> &'static str {
    let names = fs::read_dir(dir).into_iter().flatten().flatten();
    let names: Vec<String> = names.filter_map(|e| e.file_name().into_string().ok()).collect();
    let any = |test: &dyn Fn(&str) -> bool| names.iter().any(|n| test(n));
    if any(&|n| n == "adapter_model.safetensors" || n == "adapter_model.bin") {
        "it holds adapters without adapter_config.json; copy that beside them"
    } else if any(&|n| n.ends_with(".gguf")) {
        "it holds GGUF files, which are not read; give the original model"
    } else if any(&|n| n.starts_with("consolidated")) {
        "its consolidated weights are in another layout; use the model's Hugging Face version"
    } else if any(&|n| n == "tf_model.h5" || n == "flax_model.msgpack") {
        "its weights are TensorFlow's or Flax's; load and save it once with transformers"
    } else if any(&|n| n.starts_with("global_step") || n == "zero_to_fp32.py") {
        "it is a DeepSpeed checkpoint; run its zero_to_fp32.py first"
    } else {
        "give a directory in Hugging Face layout"
    }
}

/// Reads the `weight_map` of an index: tensor name to the file name of its shard.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let shown = path.display();
    let text = read_file(path, MAX_INDEX)?;
    let index: Index = serde_json::from_slice(&text)
        .map_err(|e| Error::user(format!("{shown}: {}", clipped(&e.to_string()))))?;
    let mut map = BTreeMap::new();
    for (name, shard) in index.weight_map.0 {
        if !is_plain_name(&shard) {
            return Err(Error::user(format!(
                "{shown} names the shard {}, which is not a file in its own directory; refused",
                quoted(&shard)
            )));
        }
        match map.entry(name) {
            Entry::Vacant(slot) => {
                slot.insert(shard);
            }
            Entry::Occupied(slot) => {
                return Err(Error::user(format!(
                    "{shown} places tensor {} both in {} and in {shard}",
                    quoted(slot.key()),
                    slot.get()
                )));
            }
        }
    }
    if map.is_empty() {
        return Err(Error::user(format!("{shown} names no tensors; download it again")));
    }
    Ok(map)
}

#[derive(Deserialize)]
struct Index {
    weight_map: Pairs,
}

/// A JSON map of strings as it stands, repeated keys included.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Pairs, D::Error> {
        d.deserialize_map(PairsVisitor)
    }
}

struct PairsVisitor;

impl<'de> Visitor<'de> for PairsVisitor {
    type Value = Pairs;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a map from tensor to shard")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Pairs, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(Pairs(pairs))
    }
}

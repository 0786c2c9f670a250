//! `manifest.json`: what a snapshot says of itself. It begins with the checksum of all that follows
//! in it, and has a checksum for each header and each tensor of the shards, so that no byte of a
//! snapshot can change unnoticed, and a damaged tensor can be named.

use super::super::fingerprint::{Fingerprint, Sum};
use super::super::names::{clipped, is_plain_name, quoted};
use super::super::out_dir::OutDir;
use super::damage::damaged;
use crate::base::{Error, Result, read_file};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

pub(super) const MANIFEST: &str = "manifest.json";

/// Version of the format written, the newest that is read.
const FORMAT_VERSION: u64 = 1;

/// Bound on a manifest; that of a model with many thousand tensors has some hundred kilobytes.
const MAX_MANIFEST: u64 = 100_000_000;

/// The run and the moment of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// The step of the run, by its short name.
    pub step: String,
    /// Iterations of it that are done.
    pub iteration: u64,
    /// The step is finished: its results are saved, and the snapshot holds no tensors.
    pub finished: bool,
    /// The run's configuration, by key.
    pub config: BTreeMap<String, String>,
    /// The files that the run has read.
    pub inputs: Vec<Input>,
}

impl Label {
    /// True if nothing was done yet: the mark of a run that has begun.
    pub fn is_beginning(&self) -> bool {
        self.iteration == 0 && !self.finished
    }
}

/// A file that a run has read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Its name.
    pub path: String,
    /// True for data, false for a model.
    pub data: bool,
    /// Size and checksum of its content as it was read.
    #[serde(flatten)]
    pub fingerprint: Fingerprint,
}

/// All that the manifest says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) format_version: u64,
    /// The program and version that wrote it.
    pub(super) program: String,
    #[serde(flatten)]
    pub(super) label: Label,
    pub(super) values: BTreeMap<String, String>,
    pub(super) files: Vec<Shard>,
}

/// One safetensors file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Shard {
    pub(super) name: String,
    pub(super) bytes: u64,
    /// Checksum of the bytes before the first tensor.
    pub(super) header: Sum,
    /// Checksum of each tensor's bytes, by name.
    pub(super) tensors: BTreeMap<String, Sum>,
}

impl Manifest {
    pub(super) fn new(
        label: &Label,
        values: &BTreeMap<String, String>,
        files: Vec<Shard>,
    ) -> Manifest {
        Manifest {
            format_version: FORMAT_VERSION,
            program: concat!("duplex ", env!("CARGO_PKG_VERSION")).to_string(),
            label: label.clone(),
            values: values.clone(),
            files,
        }
    }
}

/// Writes the manifest into `dir`.
pub(super) fn write(dir: &OutDir, manifest: &Manifest) -> Result<()> {
    let text = serde_json::to_string_pretty(manifest)
        .map_err(|e| Error::internal(format!("cannot write a manifest as JSON: {e}")))?;
    let rest = format!("{}\n", text.strip_prefix('{').unwrap_or(&text));
    let head = head(Sum::of(rest.as_bytes()));
    dir.write_bytes(MANIFEST, format!("{head}{rest}").as_bytes())
}

/// The file's beginning, up to which it is not covered by the checksum that it holds.
fn head(sum: Sum) -> String {
    format!("{{\"checksum\":\"{sum}\",")
}

/// Reads and checks the manifest in `dir`.
pub(super) fn read(dir: &Path) -> Result<Manifest> {
    let path = dir.join(MANIFEST);
    let meta = fs::symlink_metadata(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Error::user(format!("{} is no checkpoint: it has no {MANIFEST}", dir.display()))
        }
        _ => Error::io("read", &path, &e),
    })?;
    if !meta.is_file() || meta.len() > MAX_MANIFEST {
        return Err(damaged(&path, "it is not a file of a size that manifests have"));
    }
    let text = read_file(&path, MAX_MANIFEST)?;
    check_version(&path, &text)?;
    let begin = head(Sum(0)).len();
    let rest = text.get(begin..).unwrap_or_default();
    if text.get(..begin) != Some(head(Sum::of(rest)).as_bytes()) {
        return Err(damaged(&path, "it does not have the checksum that it begins with"));
    }
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|e| damaged(&path, clipped(&e.to_string())))?;
    for shard in &manifest.files {
        if !is_plain_name(&shard.name) {
            return Err(damaged(
                &path,
                format!("it names {}, which is not a file beside it; refused", quoted(&shard.name)),
            ));
        }
    }
    Ok(manifest)
}

/// Refuses a newer version. Before the checksum, which a newer version may keep in another way.
fn check_version(path: &Path, text: &[u8]) -> Result<()> {
    #[derive(Deserialize)]
    struct Version {
        format_version: u64,
    }
    match serde_json::from_slice(text) {
        Ok(Version { format_version }) if format_version > FORMAT_VERSION => {
            Err(Error::user(format!(
                "{} is of format version {format_version}, this program reads up to version \
                 {FORMAT_VERSION}; use the duplex that wrote it or a newer one",
                path.display()
            )))
        }
        _ => Ok(()),
    }
}

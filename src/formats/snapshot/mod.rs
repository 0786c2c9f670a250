//! A snapshot: the state of a run as a directory of safetensors shards and `manifest.json`. It is
//! whole or absent, every byte of it is covered by a checksum, and all is checked before anything
//! is used.
//!
//! Tensors are whole and have canonical names: nothing here knows of ranks or shards of a model.
//! The meaning of the names, and the time to save, are decided elsewhere. [`write_snapshot`]
//! describes how a directory is made, `manifest.rs` its manifest.

mod builder;
mod damage;
mod manifest;
#[cfg(test)]
mod tests;
mod write;

pub use builder::{Content, Copied, SnapshotBuilder, Whole};
pub use manifest::{Input, Label};
pub use write::{Found, list_snapshots, read_as_written, snapshots_in, write_snapshot};

use super::names::quoted;
use super::safetensors::SafetensorsFile;
use super::{SourceDType, Sum, TensorInfo};
use crate::base::{Error, Result};
use damage::{damaged, opened};
use manifest::{MANIFEST, Manifest, Shard};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A snapshot that has been opened, all of whose bytes were found to be as written.
pub struct Snapshot {
    dir: PathBuf,
    manifest: Manifest,
    shards: Vec<SafetensorsFile>,
    /// Tensor to position in `shards`.
    places: BTreeMap<String, usize>,
}

impl Snapshot {
    /// Opens the snapshot in `dir` and checks everything: names, sizes, checksums. Errors name the
    /// file and the tensor at fault.
    pub fn open(dir: &Path) -> Result<Snapshot> {
        let manifest = manifest::read(dir)?;
        refuse_others(dir, &manifest)?;
        let (mut shards, mut places) = (vec![], BTreeMap::new());
        for shard in &manifest.files {
            let file = open_shard(dir, shard)?;
            for name in shard.tensors.keys() {
                if places.insert(name.clone(), shards.len()).is_some() {
                    let (path, name) = (dir.join(MANIFEST), quoted(name));
                    return Err(damaged(&path, format!("tensor {name} stands in two files")));
                }
            }
            shards.push(file);
        }
        Ok(Snapshot { dir: dir.to_owned(), manifest, shards, places })
    }

    /// The label of the snapshot in `dir`, from its manifest alone: no tensor is read or checked.
    pub fn label_in(dir: &Path) -> Result<Label> {
        Ok(manifest::read(dir)?.label)
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The run and the moment of the snapshot.
    pub fn label(&self) -> &Label {
        &self.manifest.label
    }

    /// Names, dtypes and shapes of all tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        let info = |name: &str, i: usize| self.shards[i].info(name);
        self.places.iter().filter_map(move |(name, i)| Some((name.as_str(), info(name, *i)?)))
    }

    /// The bytes of a tensor that must have this dtype and shape.
    pub fn tensor(
        &self,
        name: &str,
        dtype: impl Into<SourceDType>,
        shape: &[usize],
    ) -> Result<Vec<u8>> {
        let wanted = TensorInfo { dtype: dtype.into(), shape: shape.to_vec() };
        let Some(i) = self.places.get(name) else {
            return Err(self.unfit(format!("holds no tensor {}", quoted(name))));
        };
        let shard = &self.shards[*i];
        match shard.info(name) {
            // Checked again: the file can have changed since it was opened.
            Some(info) if *info == wanted => match self.manifest.files[*i].tensors.get(name) {
                Some(sum) => checked(shard, name, *sum),
                None => Err(self.unfit(format!("has no checksum of tensor {}", quoted(name)))),
            },
            info => Err(self.unfit(format!(
                "tensor {} is {}, but {} is needed",
                quoted(name),
                info.map_or_else(String::new, ToString::to_string),
                wanted
            ))),
        }
    }

    /// Numbers in a float tensor that are infinite or not a number; 0 for other tensors.
    pub fn count_not_finite(&self, name: &str) -> Result<usize> {
        let Some(shard) = self.places.get(name).map(|i| &self.shards[*i]) else { return Ok(0) };
        let Some(info) = shard.info(name) else { return Ok(0) };
        Ok(info.dtype.count_not_finite(&shard.bytes(name)?))
    }

    /// A value that must be there.
    pub fn get<T: FromStr>(&self, name: &str) -> Result<T> {
        self.find(name)?.ok_or_else(|| self.unfit(format!("holds no value {}", quoted(name))))
    }

    /// A value that may be there.
    pub fn find<T: FromStr>(&self, name: &str) -> Result<Option<T>> {
        let Some(text) = self.manifest.values.get(name) else { return Ok(None) };
        let unreadable = |_| self.unfit(format!("value {} is {}", quoted(name), quoted(text)));
        text.parse().map(Some).map_err(unreadable)
    }

    fn unfit(&self, what: String) -> Error {
        Error::user(format!("{}: {what}; it is not of this model and version", self.dir.display()))
    }
}

impl Display for TensorInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.dtype, self.shape)
    }
}

/// Refuses files that the manifest does not name, hidden ones aside.
fn refuse_others(dir: &Path, manifest: &Manifest) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|e| Error::io("read", dir, &e))? {
        let name = entry.map_err(|e| Error::io("read", dir, &e))?.file_name();
        let name = name.to_string_lossy();
        let known = name == MANIFEST || manifest.files.iter().any(|f| f.name == name);
        if !known && !name.starts_with('.') {
            let what = format!("it holds {}, which its manifest does not name", quoted(&name));
            return Err(damaged(dir, what));
        }
    }
    Ok(())
}

/// Opens a shard whose name is a plain one, and checks each of its bytes.
fn open_shard(dir: &Path, shard: &Shard) -> Result<SafetensorsFile> {
    let path = dir.join(&shard.name);
    // Not followed: a link would lead outside the snapshot.
    let meta = fs::symlink_metadata(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => damaged(dir, format!("{} is missing", shard.name)),
        _ => Error::io("read", &path, &e),
    })?;
    if !meta.is_file() {
        return Err(damaged(&path, "it is not a regular file"));
    }
    if meta.len() != shard.bytes {
        return Err(damaged(&path, format!("{} bytes instead of {}", meta.len(), shard.bytes)));
    }
    let file = opened(&path)?;
    if Sum::of(file.header()) != shard.header {
        return Err(damaged(&path, "its header does not have the checksum in the manifest"));
    }
    if !file.names().eq(shard.tensors.keys()) {
        return Err(damaged(&path, "its tensors are not those of the manifest"));
    }
    shard.tensors.iter().try_for_each(|(name, sum)| checked(&file, name, *sum).map(drop))?;
    Ok(file)
}

/// The bytes of a tensor, which must have this checksum.
fn checked(file: &SafetensorsFile, name: &str, sum: Sum) -> Result<Vec<u8>> {
    let bytes = file.bytes(name)?;
    match Sum::of(&bytes) == sum {
        true => Ok(bytes),
        false => {
            let what = format!("tensor {} does not have its checksum", quoted(name));
            Err(damaged(file.path(), what))
        }
    }
}

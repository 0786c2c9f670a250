//! How snapshots come and go. A directory is written under a hidden name beside its place, every
//! file and the directory are synced, then it is renamed into its place and that is synced: a
//! reader sees the old state or the new one, and after a crash at any moment only a hidden
//! directory is left over, which the next start removes.

use super::super::atomic::sync_dir;
use super::super::safetensors::safetensors_order;
use super::super::save::split;
use super::super::{Sum, write_safetensors};
use super::builder::{Content, Whole};
use super::damage::opened;
use super::manifest::{self, Label, Manifest, Shard};
use crate::base::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// Beginning of the names of directories that are not, or no more, snapshots.
const HIDDEN: &str = ".tmp-";

/// Largest shard.
const MAX_SHARD: usize = 2_000_000_000;

/// A snapshot in a directory of snapshots, by its name alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The step of the run.
    pub step: String,
    /// Iterations done; `None` where the step is finished.
    pub iteration: Option<u64>,
    /// Where it is.
    pub dir: PathBuf,
}

/// The name of a snapshot's directory.
fn name_of(label: &Label) -> String {
    match label.finished {
        true => format!("{}-finished", label.step),
        false => format!("{}-{:08}", label.step, label.iteration),
    }
}

/// Writes `builder` into a directory of its own in `root`, which is made if absent, and returns its
/// path. On an error nothing of it is left.
pub fn write_snapshot(root: &Path, label: &Label, builder: &dyn Whole) -> Result<PathBuf> {
    write_in_shards(root, label, builder, MAX_SHARD)
}

pub(super) fn write_in_shards(
    root: &Path,
    label: &Label,
    builder: &dyn Whole,
    max_shard: usize,
) -> Result<PathBuf> {
    make_root(root)?;
    let name = name_of(label);
    let (temp, dir) = (root.join(format!("{HIDDEN}{name}")), root.join(name));
    let written = remove(&temp)
        .and_then(|()| fs::create_dir(&temp).map_err(|e| Error::io("create", &temp, &e)))
        .and_then(|()| fill(&temp, label, builder, max_shard))
        .and_then(|()| sync_dir(&temp))
        // Of the same moment; there is none but where a run is repeated.
        .and_then(|()| remove_snapshot(&dir))
        .and_then(|()| fs::rename(&temp, &dir).map_err(|e| Error::io("rename to", &dir, &e)));
    if let Err(e) = written {
        // The error that counts is the first one.
        let _ = remove(&temp);
        return Err(e);
    }
    sync_dir(root)?;
    Ok(dir)
}

/// Reads all of `builder` in the order in which it would be written, for a rank that only does its
/// part in reading what another one writes.
pub fn read_as_written(builder: &dyn Whole) -> Result<()> {
    let tensors = &builder.content().tensors;
    for range in split(tensors, MAX_SHARD)? {
        for i in safetensors_order(&tensors[range.clone()]) {
            builder.read(range.start + i)?;
        }
    }
    Ok(())
}

fn make_root(root: &Path) -> Result<()> {
    if root.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(root).map_err(|e| Error::io("create", root, &e))?;
    root.parent().filter(|p| !p.as_os_str().is_empty()).map_or(Ok(()), sync_dir)
}

fn fill(dir: &Path, label: &Label, builder: &dyn Whole, max_shard: usize) -> Result<()> {
    let Content { tensors, values } = builder.content();
    let places: HashMap<&str, usize> =
        tensors.iter().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
    let mut files = vec![];
    for range in split(tensors, max_shard)?.into_iter().filter(|r| !r.is_empty()) {
        let name = format!("state-{:05}.safetensors", files.len() + 1);
        let (path, mut sums) = (dir.join(&name), BTreeMap::new());
        write_safetensors(&path, &tensors[range], None, &mut |t| {
            let bytes = builder.read(places[t.name.as_str()])?;
            sums.insert(t.name.clone(), Sum::of(&bytes));
            Ok(bytes)
        })?;
        let length = fs::metadata(&path).map_err(|e| Error::io("read", &path, &e))?.len();
        let header = Sum::of(opened(&path)?.header());
        files.push(Shard { name, bytes: length, header, tensors: sums });
    }
    manifest::write(dir, &Manifest::new(label, values, files))
}

/// The snapshots in `root`, in no order; none if it is absent.
pub fn list_snapshots(root: &Path) -> Result<Vec<Found>> {
    let found = |dir: PathBuf| {
        let name = dir.file_name()?.to_str().filter(|name| !name.starts_with(HIDDEN))?;
        let (step, at) = name.rsplit_once('-')?;
        let iteration = match at {
            "finished" => None,
            _ => Some(at.parse().ok().filter(|_| at.len() >= 8)?),
        };
        Some(Found { step: step.to_string(), iteration, dir })
    };
    Ok(entries(root)?.into_iter().filter_map(found).collect())
}

/// Removes what writers that were killed left in `root`.
pub fn remove_leftovers(root: &Path) -> Result<()> {
    let hidden =
        |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(HIDDEN));
    entries(root)?.iter().filter(|p| hidden(p)).try_for_each(|p| remove(p))
}

/// Removes a snapshot, if it is there; no reader sees half of it.
pub fn remove_snapshot(dir: &Path) -> Result<()> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let hidden = dir.with_file_name(format!("{HIDDEN}old-{name}"));
    remove(&hidden)?;
    match fs::rename(dir, &hidden) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("remove", dir, &e)),
        Ok(()) => {}
    }
    dir.parent().filter(|p| !p.as_os_str().is_empty()).map_or(Ok(()), sync_dir)?;
    remove(&hidden)
}

fn entries(root: &Path) -> Result<Vec<PathBuf>> {
    let fail = |e: std::io::Error| Error::io("read", root, &e);
    match fs::read_dir(root) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(vec![]),
        Err(e) => Err(fail(e)),
        Ok(entries) => entries.map(|e| e.map(|e| e.path()).map_err(fail)).collect(),
    }
}

/// Removes a directory, if it is there.
fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", dir, &e)),
        _ => Ok(()),
    }
}

//! How snapshots come and how they are found.

use super::super::out_dir::HIDDEN;
use super::super::safetensors::safetensors_order;
use super::super::save::split;
use super::super::{OutDir, Sum, write_safetensors};
use super::builder::{Content, Whole};
use super::manifest::{self, Label, Manifest, Shard};
use crate::base::{Result, entries, is_dir};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

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

/// Writes `builder` into a directory of its own in `root` and returns its path. On an error nothing
/// of it is left.
pub fn write_snapshot(root: &OutDir, label: &Label, builder: &dyn Whole) -> Result<PathBuf> {
    write_in_shards(root, label, builder, MAX_SHARD)
}

pub(super) fn write_in_shards(
    root: &OutDir,
    label: &Label,
    builder: &dyn Whole,
    max_shard: usize,
) -> Result<PathBuf> {
    let name = name_of(label);
    // One of the same moment is there only where a run is repeated.
    root.replace(&name, |dir| fill(dir, label, builder, max_shard))?;
    Ok(root.path().join(name))
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

fn fill(dir: &OutDir, label: &Label, builder: &dyn Whole, max_shard: usize) -> Result<()> {
    let Content { tensors, values } = builder.content();
    let places: HashMap<&str, usize> =
        tensors.iter().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
    let mut files = vec![];
    for range in split(tensors, max_shard)?.into_iter().filter(|r| !r.is_empty()) {
        let name = format!("state-{:05}.safetensors", files.len() + 1);
        let mut sums = BTreeMap::new();
        let header = write_safetensors(dir, &name, &tensors[range], None, &mut |t| {
            let bytes = builder.read(places[t.name.as_str()])?;
            sums.insert(t.name.clone(), Sum::of(&bytes));
            Ok(bytes)
        })?;
        let length = dir.size_of(&name)?.unwrap_or(0);
        files.push(Shard { name, bytes: length, header, tensors: sums });
    }
    manifest::write(dir, &Manifest::new(label, values, files))
}

/// The snapshots in `root`, in no order; none if it is absent.
pub fn list_snapshots(root: &Path) -> Result<Vec<Found>> {
    let paths = if is_dir(root)? { entries(root)? } else { vec![] };
    Ok(paths.into_iter().filter_map(found).collect())
}

/// The snapshots in a directory held open, in no order.
pub fn snapshots_in(root: &OutDir) -> Result<Vec<Found>> {
    Ok(root.names()?.into_iter().filter_map(|name| found(root.path().join(name))).collect())
}

/// A snapshot by the name of its directory.
fn found(dir: PathBuf) -> Option<Found> {
    let name = dir.file_name()?.to_str().filter(|name| !name.starts_with(HIDDEN))?;
    let (step, at) = name.rsplit_once('-')?;
    let iteration = match at {
        "finished" => None,
        _ => Some(at.parse().ok().filter(|_| at.len() >= 8)?),
    };
    Some(Found { step: step.to_string(), iteration, dir })
}

impl Found {
    /// The name of its directory.
    pub fn name(&self) -> &str {
        self.dir.file_name().and_then(|n| n.to_str()).unwrap_or_default()
    }
}

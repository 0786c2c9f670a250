//! Saves a model the way Hugging Face does: one `model.safetensors`, or numbered shards with an
//! index.

use super::{OutDir, SaveTensor, write_safetensors};
use crate::base::{Error, Result};
use std::borrow::Cow;
use std::ops::Range;
use std::path::PathBuf;

const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Writes `tensors` into `dir`, in shards of at most `max_shard_bytes` (a
/// larger tensor gets a shard of its own), and returns the weight files written.
///
/// `bytes` is called once per tensor and returns its row-major little-endian bytes, so only one
/// tensor is held at a time. Weight files of an earlier save there are replaced. Each file is whole
/// or absent; a crash between two shards leaves no index, so never a mixture that opens. To keep an
/// older save until the new one is complete, save into a fresh directory.
pub fn save_sharded<'a>(
    dir: &OutDir,
    tensors: &[SaveTensor],
    max_shard_bytes: usize,
    bytes: &mut dyn FnMut(&SaveTensor) -> Result<Cow<'a, [u8]>>,
) -> Result<Vec<PathBuf>> {
    let shards = split(tensors, max_shard_bytes)?;
    let names: Vec<String> = match shards.len() {
        1 => vec![WHOLE.to_owned()],
        n => (1..=n).map(|i| format!("model-{i:05}-of-{n:05}.safetensors")).collect(),
    };
    if shards.len() > 1 {
        // From here to the new index the old shards are no checkpoint any more.
        dir.remove(INDEX)?;
        dir.sync()?;
    }
    for (shard, name) in shards.iter().zip(&names) {
        let part = &tensors[shard.clone()];
        write_safetensors(dir, name, part, Some(("format", "pt")), bytes)?;
    }
    let mut keep = names.clone();
    if shards.len() > 1 {
        write_index(dir, tensors, &shards, &names)?;
        keep.push(INDEX.to_owned());
    }
    remove_stale(dir, &keep)?;
    Ok(names.iter().map(|name| dir.path().join(name)).collect())
}

/// Cuts the list, in order, into runs of at most `max` bytes; at least one run.
pub(super) fn split(tensors: &[SaveTensor], max: usize) -> Result<Vec<Range<usize>>> {
    let (mut shards, mut start, mut size) = (Vec::new(), 0, 0usize);
    for (i, tensor) in tensors.iter().enumerate() {
        let bytes = tensor.bytes()?;
        if i > start && size.saturating_add(bytes) > max {
            shards.push(start..i);
            (start, size) = (i, 0);
        }
        size = size.saturating_add(bytes);
    }
    shards.push(start..tensors.len());
    Ok(shards)
}

fn write_index(
    dir: &OutDir,
    tensors: &[SaveTensor],
    shards: &[Range<usize>],
    names: &[String],
) -> Result<()> {
    let mut total = 0;
    let mut places = std::collections::BTreeMap::new();
    for (shard, file) in shards.iter().zip(names) {
        for tensor in &tensors[shard.clone()] {
            total += tensor.bytes()?;
            if places.insert(&tensor.name, file).is_some() {
                let name = &tensor.name;
                return Err(Error::internal(format!("tensor {name:?} would be saved twice")));
            }
        }
    }
    let index = serde_json::json!({"metadata": {"total_size": total}, "weight_map": places});
    dir.write_bytes(INDEX, format!("{index:#}\n").as_bytes())
}

/// Removes what an earlier save left: weight files and index that are not in `keep`.
fn remove_stale(dir: &OutDir, keep: &[String]) -> Result<()> {
    let weights = |name: &str| name == WHOLE || name == INDEX || is_shard(name);
    let names = dir.names()?;
    let stale = names.iter().filter(|name| weights(name) && !keep.contains(name));
    stale.into_iter().try_for_each(|name| dir.remove(name))?;
    dir.sync()
}

/// True if `name` is `model-ddddd-of-ddddd.safetensors`.
fn is_shard(name: &str) -> bool {
    let digits = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    name.strip_prefix("model-")
        .and_then(|s| s.strip_suffix(".safetensors"))
        .and_then(|s| s.split_once("-of-"))
        .is_some_and(|(i, n)| digits(i) && digits(n))
}

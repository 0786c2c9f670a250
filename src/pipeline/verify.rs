//! Checks what was saved: checkpoints by their checksums, models by their shapes, both for values that are
//! not finite. One line for each.

use super::config::VerifyConfig;
use super::resume::STEPS;
use super::saver::in_order;
use crate::arch::Config;
use crate::base::{DType, Error, Result};
use crate::formats::{Checkpoint, Snapshot};
use crate::model::{Head, LoadOptions, Model, adapter_weights, base_dir};
use std::path::{Path, PathBuf};

/// Where a run keeps its models.
const MODELS: [&str; 5] = ["sft", "reward", "ppo/actor", "ppo/critic", "ppo/actor_ema"];

/// Checks a checkpoint, all checkpoints and models of a run, or a model; `tell` gets a line for each,
/// with its end.
///
/// # Errors
/// Something is damaged, or there is nothing to check.
pub fn verify(cfg: &VerifyConfig, tell: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    let dir = cfg.path.as_path();
    let whole = things(dir)?;
    if whole.is_empty() {
        return Err(Error::user(format!(
            "{}: no checkpoint, no run and no model; name one of their folders",
            dir.display()
        )));
    }
    let mut bad = 0;
    for thing in &whole {
        let (path, what) = match thing {
            Thing::Snapshot(path) => (path, snapshot(path)),
            Thing::Model(path) => (path, model(path)),
        };
        bad += usize::from(what.is_err());
        let path = path.display();
        tell(&match what {
            Ok(what) => format!("{path}: whole, {what}\n"),
            Err(e) => format!("{path}: DAMAGED, {e}\n"),
        })?;
    }
    match bad {
        0 => Ok(()),
        _ => Err(Error::user(format!(
            "{}: {bad} of {} are damaged; the lines above name the files",
            dir.display(),
            whole.len()
        ))),
    }
}

enum Thing {
    Snapshot(PathBuf),
    Model(PathBuf),
}

/// What there is to check in `dir`.
fn things(dir: &Path) -> Result<Vec<Thing>> {
    if dir.join("manifest.json").exists() {
        return Ok(vec![Thing::Snapshot(dir.to_owned())]);
    }
    if dir.join("config.json").exists() || dir.join("adapter_config.json").exists() {
        return Ok(vec![Thing::Model(dir.to_owned())]);
    }
    let inside = dir.join("checkpoints");
    let root = if inside.is_dir() { &inside } else { dir };
    let mut all: Vec<Thing> =
        in_order(root, &STEPS)?.into_iter().map(|f| Thing::Snapshot(f.dir)).collect();
    let models = MODELS.map(|name| dir.join(name)).into_iter();
    all.extend(models.filter(|m| m.join("config.json").exists()).map(Thing::Model));
    Ok(all)
}

fn snapshot(dir: &Path) -> Result<String> {
    let snapshot = Snapshot::open(dir)?;
    let (mut tensors, mut bytes) = (0, 0);
    for (name, info) in snapshot.tensors() {
        finite(name, snapshot.count_not_finite(name)?)?;
        tensors += 1;
        bytes += info.checked_bytes().unwrap_or(0);
    }
    let label = snapshot.label();
    Ok(match label.finished {
        true => format!("{} finished after {} iterations", label.step, label.iteration),
        false => format!(
            "{} after {} iterations, {}",
            label.step,
            label.iteration,
            amount(tensors, bytes)
        ),
    })
}

fn model(dir: &Path) -> Result<String> {
    let base = base_dir(dir)?;
    let config = Config::read(&base)?;
    let classes = config.map.get("architectures").map_or(String::new(), ToString::to_string);
    let head = if classes.contains("Classification") { Head::Score } else { Head::Lm };
    // Every tensor is read and its shape compared with the configuration's.
    let model = Model::load(dir, &LoadOptions::frozen(head, DType::F32))?;
    let mut files = vec![Checkpoint::open(&base)?];
    if base != dir {
        files.push(Checkpoint::open_file(&adapter_weights(dir)?)?);
    }
    let (mut tensors, mut bytes) = (0, 0);
    for file in &files {
        for name in file.names() {
            let Some(info) = file.info(name) else { continue };
            if info.dtype.is_float() {
                let bad = file.read_f32(name)?.iter().filter(|x| !x.is_finite()).count();
                finite(name, bad)?;
            }
            tensors += 1;
            bytes += info.checked_bytes().unwrap_or(0);
        }
    }
    Ok(format!("{}, {}", model.arch.family.model_type, amount(tensors, bytes)))
}

fn finite(name: &str, bad: usize) -> Result<()> {
    match bad {
        0 => Ok(()),
        _ => Err(Error::user(format!("{bad} values of tensor {name} are not finite"))),
    }
}

fn amount(tensors: usize, bytes: usize) -> String {
    format!("{tensors} tensors, {:.1} MB", bytes as f64 / 1e6)
}

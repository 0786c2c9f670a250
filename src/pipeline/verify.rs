//! Checks what was saved: checkpoints by their checksums, models by their shapes, both for values
//! that are not finite. One line for each.

use super::config::VerifyConfig;
use super::run_dir::models;
use super::saver::in_order;
use super::tokens;
use crate::algo::{ALGORITHMS, names};
use crate::arch::Config;
use crate::base::{DType, Error, Result, is_dir, is_there, read_file, read_if_there};
use crate::formats::{Checkpoint, Snapshot};
use crate::model::{Head, LoadOptions, Model, adapter_weights, base_dir, resolve_model};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Checks a checkpoint, all checkpoints and models of a run, or a model; `tell` gets a line for
/// each, with its end.
///
/// # Errors
/// Something is damaged or cannot be used, or there is nothing to check.
pub fn verify(cfg: &VerifyConfig, tell: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    let dir = &match is_there(&cfg.path)? {
        true => cfg.path.clone(),
        false => resolve_model(&cfg.path.display().to_string())?,
    };
    let whole = things(dir)?;
    if whole.is_empty() {
        return Err(Error::user(format!(
            "{}: no checkpoint, no run and no model; name the directory of one",
            dir.display()
        )));
    }
    if whole.iter().all(is_beginning) {
        return Err(Error::user(format!(
            "{}: a run has begun here and has saved nothing yet; there is nothing to check",
            dir.display()
        )));
    }
    let (mut damaged, mut unusable) = (0, 0);
    for thing in &whole {
        let (path, what) = match thing {
            Thing::Snapshot(path) => (path, snapshot(path).map(|what| (what, vec![]))),
            Thing::Model(path) => (path, model(path)),
        };
        // A run in progress removes its old checkpoints.
        if what.is_err() && !path.exists() {
            continue;
        }
        let path = path.display();
        match what {
            Ok((what, notes)) => {
                tell(&format!("{path}: whole, {what}\n"))?;
                notes.iter().try_for_each(|note| tell(&format!("{path}: note, {note}\n")))?;
            }
            Err(e) if is_unusable(&e) => {
                unusable += 1;
                tell(&format!("{path}: NOT USABLE, {e}\n"))?;
            }
            Err(e) => {
                damaged += 1;
                tell(&format!("{path}: DAMAGED, {e}\n"))?;
            }
        }
    }
    let all = whole.len();
    let what = match (damaged, unusable) {
        (0, 0) => return Ok(()),
        (_, 0) => format!("{damaged} of {all} are damaged"),
        (0, _) => format!("{unusable} of {all} cannot be used"),
        _ => format!("{damaged} of {all} are damaged, and {unusable} cannot be used"),
    };
    Err(Error::user(format!("{}: {what}; the lines above name the files", dir.display())))
}

/// True if an error is of files that are as they were made, and that Duplex does not take. What it
/// does not support says so.
fn is_unusable(e: &Error) -> bool {
    let text = e.to_string();
    [
        "supported",
        "num_labels",
        "adapters on adapters",
        "base of the adapters",
        "names no base model",
        "no tokenizer.json in",
        "which Duplex does not read",
        "is a reward model",
    ]
    .iter()
    .any(|part| text.contains(part))
}

/// Largest configuration read, in bytes.
const MAX_FILE: u64 = 16 << 20;

enum Thing {
    Snapshot(PathBuf),
    Model(PathBuf),
}

/// True if a snapshot is the mark of a run's beginning, which holds no tensor: one that says so and
/// holds some is looked at like any other.
fn is_beginning(thing: &Thing) -> bool {
    let Thing::Snapshot(dir) = thing else { return false };
    // By the manifest first: opening reads every byte, of a beginning next to none.
    Snapshot::label_in(dir).is_ok_and(|l| l.is_beginning())
        && Snapshot::open(dir).is_ok_and(|s| s.tensors().next().is_none())
}

/// Returns the checkpoints and models to check in `dir`.
fn things(dir: &Path) -> Result<Vec<Thing>> {
    if is_there(&dir.join("manifest.json"))? {
        return Ok(vec![Thing::Snapshot(dir.to_owned())]);
    }
    if is_model(dir)? {
        return Ok(vec![Thing::Model(dir.to_owned())]);
    }
    let inside = dir.join("checkpoints");
    let root = if is_dir(&inside)? { &inside } else { dir };
    let mut all: Vec<Thing> =
        in_order(root, &names())?.into_iter().map(|f| Thing::Snapshot(f.dir)).collect();
    let models = ALGORITHMS.iter().flat_map(|a| models(dir, a));
    let with_adapters = models.flat_map(|m| [m.join("adapter"), m]);
    for dir in with_adapters {
        if is_model(&dir)? {
            all.push(Thing::Model(dir));
        }
    }
    Ok(all)
}

/// True if `dir` holds a model or adapters. A configuration of something else names no model type.
fn is_model(dir: &Path) -> Result<bool> {
    let text = read_if_there(&dir.join("config.json"), MAX_FILE)?.unwrap_or_default();
    let config: Option<Value> = serde_json::from_slice(&text).ok();
    let other =
        config.is_some_and(|c| c.get("model_type").is_none()) && Checkpoint::open(dir).is_err();
    Ok(is_there(&dir.join("adapter_config.json"))? || is_there(&dir.join("config.json"))? && !other)
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
        true => format!("{} finished after {}", label.step, iterations(label.iteration)),
        false => format!(
            "{} after {}, {}",
            label.step,
            iterations(label.iteration),
            amount(tensors, bytes)
        ),
    })
}

/// Loads the model as a run does, with its tokenizer. Returns also notes on what loads, but is not
/// as it may be meant.
fn model(dir: &Path) -> Result<(String, Vec<String>)> {
    let base = base_dir(dir)?;
    let config = Config::read(&base)?;
    let head = head_of(dir, &config);
    // Every tensor is read and its shape compared with the configuration's.
    let mut model = Model::load(dir, &LoadOptions::frozen(head, DType::F32))?;
    if let Some(note) = model.notes.iter().find(|n| n.contains("not finite")) {
        return Err(Error::user(note.clone()));
    }
    let mut notes = std::mem::take(&mut model.notes);
    if model.score_is_random {
        notes.push("it has no score head, so it can be trained as a reward model only".into());
    }
    notes.extend(tokens::verify(dir, model.arch.vocab)?);
    let mut files = vec![Checkpoint::open(&base)?];
    if base != dir {
        files.push(Checkpoint::open_file(&adapter_weights(dir)?)?);
    }
    let infos = files.iter().flat_map(|f| f.names().filter_map(move |name| f.info(name)));
    let (tensors, bytes) =
        infos.fold((0, 0), |(n, b), i| (n + 1, b + i.checked_bytes().unwrap_or(0)));
    Ok((format!("{}, {}", model.arch.family.model_type, amount(tensors, bytes)), notes))
}

/// The head that the model in `dir` is saved with; `config` is its base model's.
pub(super) fn head_of(dir: &Path, config: &Config) -> Head {
    let classes = config.map.get("architectures").map_or(String::new(), ToString::to_string);
    let text = read_file(&dir.join("adapter_config.json"), MAX_FILE).unwrap_or_default();
    let adapter: Value = serde_json::from_slice(&text).unwrap_or_default();
    let scores = classes.contains("Classification") || adapter["task_type"] == "SEQ_CLS";
    if scores { Head::Score } else { Head::Lm }
}

fn finite(name: &str, bad: usize) -> Result<()> {
    match bad {
        0 => Ok(()),
        1 => Err(Error::user(format!("1 value of tensor {name} is not finite"))),
        _ => Err(Error::user(format!("{bad} values of tensor {name} are not finite"))),
    }
}

fn iterations(n: u64) -> String {
    format!("{n} iteration{}", if n == 1 { "" } else { "s" })
}

fn amount(tensors: usize, bytes: usize) -> String {
    let plural = if tensors == 1 { "" } else { "s" };
    format!("{tensors} tensor{plural}, {:.1} MB", bytes as f64 / 1e6)
}

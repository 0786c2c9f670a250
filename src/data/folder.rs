//! A directory as a data set: which of its files are the training rows and which are held out, by
//! the names that `datasets` and the hub give them: `train.jsonl`,
//! `data/train-00000-of-00002.jsonl`, `validation.json`.

use crate::base::{Error, Result};
use std::path::{Path, PathBuf};

/// Ends of files that rows are read from.
const READ: [&str; 5] = ["json", "jsonl", "ndjson", "csv", "tsv"];

/// Ends of files of rows that are not read.
const NOT_READ: [&str; 6] = ["parquet", "arrow", "gz", "zst", "bz2", "xz"];

/// JSON files beside the rows that tell of them.
const ABOUT: [&str; 5] =
    ["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"];

/// Names of held-out splits; the first that is there counts.
const HELD_OUT: [&str; 6] = ["eval", "test", "validation", "valid", "val", "dev"];

/// The files of the training rows and of the held-out rows, shards in order. A directory without
/// splits has one file, whose rows are for training.
pub(super) fn sets(dir: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let files = [files(dir)?, files(&dir.join("data"))?].concat();
    let of = |split: &str| {
        let mut found: Vec<PathBuf> =
            files.iter().filter(|f| split_of(f).as_deref() == Some(split)).cloned().collect();
        found.sort();
        found
    };
    // The same rows may lie there in several formats.
    let read = |files: Vec<PathBuf>| -> Vec<PathBuf> {
        let one = |end: &str| files.iter().filter(|f| ends(f, &[end])).cloned().collect();
        READ.into_iter().map(one).find(|f: &Vec<PathBuf>| !f.is_empty()).unwrap_or_default()
    };
    let train = read(of("train"));
    if !train.is_empty() {
        let held_out = HELD_OUT.map(|split| read(of(split)));
        let held_out = held_out.into_iter().find(|f| !f.is_empty()).unwrap_or_default();
        complete(&train)?;
        complete(&held_out)?;
        return Ok((train, held_out));
    }
    let all: Vec<&PathBuf> = files.iter().filter(|f| ends(f, &READ)).collect();
    if let [only] = all[..]
        && split_of(only).is_none()
    {
        return Ok((vec![only.clone()], vec![]));
    }
    Err(Error::user(format!("{} {}", dir.display(), without_training_files(dir, &files, &all))))
}

/// A line on a directory without training files, behind its name.
fn without_training_files(dir: &Path, files: &[PathBuf], readable: &[&PathBuf]) -> String {
    let within = |f: &Path| f.strip_prefix(dir).unwrap_or(f).display().to_string();
    let unread: Vec<&PathBuf> = files.iter().filter(|f| ends(f, &NOT_READ)).collect();
    if readable.is_empty()
        && let Some(first) = unread.first()
    {
        let more = match unread.len() {
            1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        let saved = dir.join("dataset_dict.json").exists() || dir.join("state.json").exists();
        let load = match saved || ends(first, &["arrow"]) {
            true => "datasets.load_from_disk(DIRECTORY)",
            false => "datasets.load_dataset(DIRECTORY, split=\"train\")",
        };
        return format!(
            "holds {}{more}, which Duplex does not read; convert it in Python: \
             {load}.to_json(\"train.jsonl\")",
            within(first)
        );
    }
    if readable.is_empty() {
        return "holds no file of rows: no .json, .jsonl, .csv or .tsv; name a file".into();
    }
    let mut names: Vec<String> = readable.iter().take(3).map(|f| within(f)).collect();
    if readable.len() > names.len() {
        names.push("...".into());
    }
    format!(
        "holds {}, but no file whose name says that it is the training split (train.jsonl, \
         train-00000-of-00002.jsonl); name a file",
        names.join(", ")
    )
}

/// The files of data directly in `dir`; none where there is no such directory.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    if !dir.is_dir() {
        return Ok(vec![]);
    }
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io("read", dir, &e))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).collect();
    let about = |p: &Path| p.file_name().is_some_and(|n| ABOUT.iter().any(|a| n == *a));
    paths.retain(|p| p.is_file() && !about(p) && (ends(p, &READ) || ends(p, &NOT_READ)));
    paths.sort();
    Ok(paths)
}

fn ends(path: &Path, ends: &[&str]) -> bool {
    path.extension().and_then(|e| e.to_str()).is_some_and(|e| ends.contains(&e))
}

/// The split that a file's name tells: a word of it, as `datasets` looks for it.
fn split_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let mut words = name.split(|c: char| !c.is_ascii_alphabetic());
    words.find(|w| *w == "train" || HELD_OUT.contains(w)).map(str::to_owned)
}

/// Shard and number of shards of `train-00000-of-00002.jsonl`.
fn shard(path: &Path) -> Option<(usize, usize)> {
    let (stem, _) = path.file_name()?.to_str()?.split_once('.')?;
    let (left, total) = stem.rsplit_once("-of-")?;
    Some((left.rsplit('-').next()?.parse().ok()?, total.parse().ok()?))
}

/// Refuses a set some of whose shards are missing.
fn complete(files: &[PathBuf]) -> Result<()> {
    let shards: Vec<(usize, usize)> = files.iter().filter_map(|f| shard(f)).collect();
    let Some(&(_, total)) = shards.first() else { return Ok(()) };
    let missing = (0..total).find(|i| !shards.iter().any(|s| s.0 == *i));
    match missing {
        Some(i) => Err(Error::user(format!(
            "{}: shard {i} of {total} is missing beside it; download it again",
            files[0].display()
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "{\"prompt\": \"a\"}").unwrap();
        }
        dir
    }

    fn told(files: &[&str]) -> String {
        let dir = dir(files);
        let within = |files: Vec<PathBuf>| {
            let name = |f: PathBuf| f.strip_prefix(dir.path()).unwrap().display().to_string();
            files.into_iter().map(name).collect::<Vec<_>>().join(" ")
        };
        match sets(dir.path()) {
            Ok((train, held_out)) => format!("{} | {}", within(train), within(held_out)),
            Err(e) => e.to_string().replace(&dir.path().display().to_string(), "D"),
        }
    }

    #[test]
    fn splits_are_found_by_their_names() {
        for (files, want) in [
            (&["train.json", "eval.json", "README.md"][..], "train.json | eval.json"),
            (
                &[
                    "data/train-00001-of-00002.jsonl",
                    "data/train-00000-of-00002.jsonl",
                    "data/test-00000-of-00001.jsonl",
                ],
                "data/train-00000-of-00002.jsonl data/train-00001-of-00002.jsonl | data/test-00000-of-00001.jsonl",
            ),
            (
                &["train_prefs.csv", "validation_prefs.csv"],
                "train_prefs.csv | validation_prefs.csv",
            ),
            // "training" is another word, and the only file is the set.
            (&["all.jsonl", "dataset_info.json"], "all.jsonl | "),
            (&["train.jsonl", "train.jsonl.gz"], "train.jsonl | "),
        ] {
            assert_eq!(told(files), want);
        }
    }

    #[test]
    fn a_directory_without_training_files_is_named_for_what_it_holds() {
        for (files, want) in [
            (
                &["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"][..],
                "D holds data/train-00000-of-00002.parquet and 1 more, which Duplex does not read; convert it in \
                 Python: datasets.load_dataset(DIRECTORY, split=\"train\").to_json(\"train.jsonl\")",
            ),
            (
                &["data-00000-of-00001.arrow", "state.json", "dataset_info.json"],
                "D holds data-00000-of-00001.arrow, which Duplex does not read; convert it in Python: \
                 datasets.load_from_disk(DIRECTORY).to_json(\"train.jsonl\")",
            ),
            (
                &["README.md"],
                "D holds no file of rows: no .json, .jsonl, .csv or .tsv; name a file",
            ),
            (
                &["a.json", "b.json"],
                "D holds a.json, b.json, but no file whose name says that it is the training split \
                 (train.jsonl, train-00000-of-00002.jsonl); name a file",
            ),
            (
                &["test.jsonl"],
                "D holds test.jsonl, but no file whose name says that it is the training split (train.jsonl, \
                 train-00000-of-00002.jsonl); name a file",
            ),
            (
                &["train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl"],
                "D/train-00000-of-00003.jsonl: shard 1 of 3 is missing beside it; download it again",
            ),
        ] {
            assert_eq!(told(files), want);
        }
    }
}

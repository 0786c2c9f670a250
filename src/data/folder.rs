//! A directory as a data set: which of its files are the training rows and which are held out, by
//! the names that `datasets` and the hub give them: `train.jsonl`,
//! `data/train-00000-of-00002.jsonl`, `validation.json`.

use crate::base::{Error, Result, entries, is_dir};
use std::path::{Path, PathBuf};

/// Ends of files that rows are read from.
const READ: [&str; 5] = ["json", "jsonl", "ndjson", "csv", "tsv"];

/// Ends of files of rows that are not read.
const NOT_READ: [&str; 9] = ["parquet", "arrow", "feather", "orc", "gz", "zst", "bz2", "xz", "lz4"];

/// JSON files beside the rows that tell of them.
const ABOUT: [&str; 5] =
    ["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"];

/// Names of held-out splits; the first that is there counts.
const HELD_OUT: [&str; 6] = ["eval", "test", "validation", "valid", "val", "dev"];

/// The files of the training rows and of the held-out rows, shards in order. A directory without
/// splits has one file, whose rows are for training.
///
/// # Errors
/// No file is known to hold training rows, or several might.
pub(super) fn sets(dir: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let files = [files(dir)?, files(&dir.join("data"))?].concat();
    let of = |split: &str| {
        let mut found: Vec<PathBuf> =
            files.iter().filter(|f| split_of(f).as_deref() == Some(split)).cloned().collect();
        found.sort();
        found
    };
    let refuse = |why: String| Error::user(format!("{} {why}", dir.display()));
    let train = one_set(dir, &of("train"), "training rows").map_err(refuse)?;
    if !train.is_empty() {
        for split in HELD_OUT {
            let held_out = one_set(dir, &of(split), "held-out rows").map_err(refuse)?;
            if !held_out.is_empty() {
                return Ok((train, held_out));
            }
        }
        let unread = HELD_OUT.iter().find_map(|split| of(split).into_iter().next());
        return match unread {
            Some(file) => Err(refuse(format!(
                "holds {}, held-out rows in a format that Duplex does not read; convert it to JSON \
                 lines, or name the training files alone: --data-path {}",
                within(dir, &file),
                train[0].display()
            ))),
            None => Ok((train, vec![])),
        };
    }
    let all: Vec<&PathBuf> = files.iter().filter(|f| ends(f, &READ)).collect();
    if let [only] = all[..]
        && split_of(only).is_none()
    {
        return Ok((one_set(dir, &files, "rows").map_err(refuse)?, vec![]));
    }
    Err(refuse(without_training_files(dir, &files, &all)))
}

/// A warning of the files of rows that `used` leaves out, since their names tell no split.
pub(super) fn unread(dir: &Path, used: &[PathBuf]) -> Result<Option<String>> {
    let mut files = [files(dir)?, files(&dir.join("data"))?].concat();
    files.retain(|f| ends(f, &READ) && split_of(f).is_none());
    files.retain(|f| !used.iter().any(|u| u == f || stem(u) == stem(f)));
    let names: Vec<String> = files.iter().map(|f| within(dir, f)).collect();
    let verb = if names.len() == 1 { "is" } else { "are" };
    Ok((!names.is_empty()).then(|| {
        format!(
            "{} of {} {verb} not read: the name tells no split",
            names.join(", "),
            dir.display()
        )
    }))
}

/// The files to read of one split: those of one format, which are parts of one set. The same rows
/// may lie beside them in other formats. Empty where no file has a format that is read.
fn one_set(dir: &Path, files: &[PathBuf], what: &str) -> std::result::Result<Vec<PathBuf>, String> {
    let name = |f: &Path| within(dir, f);
    let one = |end: &str| files.iter().filter(|f| ends(f, &[end])).cloned().collect();
    let read = READ.into_iter().map(one).find(|f: &Vec<PathBuf>| !f.is_empty());
    let Some(read) = read else { return Ok(vec![]) };
    let same_rows = |f: &&PathBuf| read.iter().any(|r| r == *f || stem(r) == stem(f));
    if let Some(other) = files.iter().find(|f| !same_rows(f)) {
        let way = match ends(other, &READ) {
            true => "name the files that are meant, one by one: --data-path FILE FILE",
            false => {
                "the second is not read: convert it to JSON lines, or name the files that are \
                 meant: --data-path FILE"
            }
        };
        return Err(format!(
            "holds {what} in two formats, {} and {}, whose names differ; {way}",
            name(&read[0]),
            name(other)
        ));
    }
    let mut families: Vec<&str> = read.iter().map(|f| family(f)).collect();
    families.sort();
    families.dedup();
    if families.len() > 1 {
        return Err(format!(
            "holds {what} of several kinds, {}, which may be the same rows in other forms; name \
             the files that are meant, one by one: --data-path {}",
            families.join(", "),
            read[0].display()
        ));
    }
    complete(dir, &read)?;
    Ok(read)
}

/// The name of a file in `dir`.
fn within(dir: &Path, file: &Path) -> String {
    file.strip_prefix(dir).unwrap_or(file).display().to_string()
}

/// A line on a directory without training files, behind its name.
fn without_training_files(dir: &Path, files: &[PathBuf], readable: &[&PathBuf]) -> String {
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
            within(dir, first)
        );
    }
    if readable.is_empty() {
        return "holds no file of rows: no .json, .jsonl, .csv or .tsv; name a file".into();
    }
    let mut names: Vec<String> = readable.iter().take(3).map(|f| within(dir, f)).collect();
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
    if !is_dir(dir)? {
        return Ok(vec![]);
    }
    let mut paths = entries(dir)?;
    let about = |p: &Path| p.file_name().is_some_and(|n| ABOUT.iter().any(|a| n == *a));
    // What is no file, such as a link that leads nowhere, is told of when it is read.
    paths.retain(|p| !p.is_dir() && !about(p) && (ends(p, &READ) || ends(p, &NOT_READ)));
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

/// The name without the ends that tell the format: `train` of `train.jsonl.gz`. A shard of a
/// counted set has the name of the set.
fn stem(path: &Path) -> &str {
    let bare = bare(path);
    shard(bare).map_or(bare, |shard| shard.set)
}

fn bare(path: &Path) -> &str {
    let mut name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    while let Some((left, end)) = name.rsplit_once('.')
        && (READ.contains(&end) || NOT_READ.contains(&end))
    {
        name = left;
    }
    name
}

/// Returns the part of the name that all files of one set share: `train` for `train_1.jsonl` and
/// `train_2.jsonl`. Versions such as `v1` and `v2` are sets of their own.
fn family(path: &Path) -> &str {
    let stem = stem(path);
    let set = stem.trim_end_matches(|c: char| c.is_ascii_digit());
    let set = set.trim_end_matches(['-', '_', '.']);
    let word = set.rsplit(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
    match word.strip_prefix(['v', 'V']) {
        Some(number) if number.bytes().all(|b| b.is_ascii_digit()) => stem,
        _ => set,
    }
}

/// The place of a file in a counted set.
struct Shard<'a> {
    /// The name before the number.
    set: &'a str,
    number: usize,
    total: usize,
}

/// Reads `train-00000-of-00002`, also with a hash behind it.
fn shard(stem: &str) -> Option<Shard<'_>> {
    let dashed = stem.replace('_', "-");
    let (left, right) = dashed.rsplit_once("-of-")?;
    let set = left.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = left[set.len()..].parse().ok()?;
    let total = right.split('-').next()?.parse().ok()?;
    let set = stem[..set.len()].trim_end_matches(['-', '_', '.']);
    Some(Shard { set, number, total })
}

/// Refuses a set some of whose shards are missing, or that is there twice.
fn complete(dir: &Path, files: &[PathBuf]) -> std::result::Result<(), String> {
    let twice = |a: &Path, b: &Path| {
        Err(format!(
            "holds {} and {}, which may be the same rows; remove one, or name the files that are \
             meant: --data-path {}",
            within(dir, a),
            within(dir, b),
            a.display()
        ))
    };
    let mut seen: Vec<(&PathBuf, Option<(usize, usize)>)> = vec![];
    for file in files {
        let place = shard(bare(file)).map(|s| (s.number, s.total));
        let same = |(other, at): &&(&PathBuf, Option<(usize, usize)>)| match (place, at) {
            (Some((number, total)), Some((n, t))) => total != *t || number == *n,
            (None, None) => bare(file) == bare(other),
            _ => true,
        };
        if let Some((other, _)) = seen.iter().find(same) {
            return twice(other, file);
        }
        seen.push((file, place));
    }
    let Some(&(first, Some((_, total)))) = seen.first() else { return Ok(()) };
    let missing = (0..total).find(|i| !seen.iter().any(|(_, s)| s.is_some_and(|s| s.0 == *i)));
    match missing {
        Some(i) => Err(format!(
            "lacks shard {i} of {total} beside {}; download it again",
            within(dir, first)
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;

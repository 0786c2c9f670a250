//! The local cache of Hugging Face models: where it is and what it takes.

use super::finding::{Finding, size};
use crate::model::hub_cache;
use std::path::{Path, PathBuf};

/// Entries looked at; a larger cache is told as "more than".
const MOST: usize = 200_000;

const NAME: &str = "model cache";

pub(super) fn look() -> Finding {
    match hub_cache() {
        Some(hub) => cache(&hub),
        None => Finding::note(NAME, "none: HOME is not set")
            .advise("name models by directory, or set HOME or HF_HOME"),
    }
}

fn cache(hub: &Path) -> Finding {
    let shown = hub.display();
    let finding = match std::fs::read_dir(hub) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Finding::ok(NAME, format!("{shown}: none yet; models are named by directory"))
        }
        Err(e) => Finding::note(NAME, format!("{shown}: cannot be read: {e}"))
            .advise("name models by directory, or set HF_HOME or HF_HUB_CACHE"),
        Ok(entries) => {
            let name =
                |e: std::io::Result<std::fs::DirEntry>| e.ok()?.file_name().into_string().ok();
            let models = entries.filter_map(name).filter(|n| n.starts_with("models--")).count();
            let (bytes, all) = measure(hub);
            let more = if all { "" } else { "more than " };
            let text = format!("{shown}: {models} models, {more}{}", size(bytes));
            Finding::ok(NAME, text).with("models", models).with("bytes", bytes)
        }
    };
    finding.with("path", shown.to_string())
}

/// Bytes of the files in `dir`, and whether all were counted. Links are not followed: the cache
/// links each version of a file to its content.
fn measure(dir: &Path) -> (u64, bool) {
    let mut left: Vec<PathBuf> = vec![dir.to_path_buf()];
    let (mut bytes, mut seen) = (0, 0);
    while let Some(dir) = left.pop() {
        // What may not be read is not counted.
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            seen += 1;
            if seen > MOST {
                return (bytes, false);
            }
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => left.push(entry.path()),
                Ok(meta) if meta.is_file() => bytes += meta.len(),
                _ => {}
            }
        }
    }
    (bytes, true)
}

#[cfg(test)]
mod tests {
    use super::super::Mark;
    use super::*;

    #[test]
    fn models_are_counted_once() {
        let tmp = tempfile::tempdir().unwrap();
        let repo = tmp.path().join("models--a--b");
        std::fs::create_dir_all(repo.join("blobs")).unwrap();
        std::fs::create_dir_all(repo.join("snapshots/1")).unwrap();
        std::fs::write(repo.join("blobs/x"), vec![0; 5 << 20]).unwrap();
        std::os::unix::fs::symlink("../../blobs/x", repo.join("snapshots/1/model.bin")).unwrap();
        // A link in a circle.
        std::os::unix::fs::symlink(tmp.path(), repo.join("snapshots/1/up")).unwrap();
        let f = cache(tmp.path());
        assert_eq!(f.mark, Mark::Ok);
        assert_eq!((&f.values["models"], &f.values["bytes"]), (&1.into(), &(5 << 20).into()));
        assert!(f.text.ends_with("1 models, 5 MiB"), "{}", f.text);
        assert!(cache(&tmp.path().join("none")).text.contains("none yet"));
    }
}

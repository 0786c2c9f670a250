//! Models by name: directories, and the local Hugging Face cache with its revisions.

use crate::base::{Error, Result, is_dir, read_text};
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// The local Hugging Face cache: `HF_HUB_CACHE` or `HUGGINGFACE_HUB_CACHE`, else `hub` in
/// `HF_HOME`, else `huggingface/hub` in `XDG_CACHE_HOME`, else in `~/.cache`. None where that is
/// asked for and `HOME` is not set.
pub fn hub_cache() -> Option<PathBuf> {
    cache_of(&|key| std::env::var_os(key))
}

fn cache_of(env: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let given = |key: &str| env(key).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = given("HOME");
    let in_home = |path: PathBuf| match path.strip_prefix("~") {
        Ok(rest) => home.as_ref().map(|home| home.join(rest)),
        Err(_) => Some(path),
    };
    let dir = |key: &str| given(key).and_then(in_home);
    dir("HF_HUB_CACHE")
        .or_else(|| dir("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| dir("HF_HOME").map(|h| h.join("hub")))
        .or_else(|| dir("XDG_CACHE_HOME").map(|c| c.join("huggingface/hub")))
        .or_else(|| home.as_ref().map(|h| h.join(".cache/huggingface/hub")))
}

/// A model's name and, after the last `@`, its revision.
pub(super) fn split_revision(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once('@') {
        Some((model, revision)) if !model.is_empty() => (model, Some(revision)),
        _ => (name, None),
    }
}

/// The directory of a model given as a path or as a name in the local Hugging Face cache
/// ([`hub_cache`]), where `@` and a branch, tag or commit may follow the name.
pub fn resolve_model(name: &str) -> Result<PathBuf> {
    let path = Path::new(name);
    if is_dir(path)? {
        return Ok(path.to_path_buf());
    }
    resolve_in(hub_cache().as_deref(), name)
}

fn resolve_in(hub: Option<&Path>, name: &str) -> Result<PathBuf> {
    let (model, revision) = split_revision(name);
    let looks_like_name = model.split('/').count() <= 2
        && !model.starts_with(['/', '.', '~'])
        && model.chars().all(|c| c.is_alphanumeric() || "-_./".contains(c));
    if !looks_like_name {
        return Err(Error::user(format!("{name}: no such model directory")));
    }
    let Some(hub) = hub else {
        return Err(Error::user(format!(
            "{name}: no such model directory, and no local cache to look in, as HOME is not set; \
             set HOME or HF_HOME, or give a directory"
        )));
    };
    let repo = hub.join(format!("models--{}", model.replace('/', "--")));
    if let Some(found) = snapshot(&repo, revision.unwrap_or("main")) {
        return Ok(found);
    }
    let versions = versions(&repo);
    if versions.is_empty() {
        let option = revision.map_or(String::new(), |r| format!(" --revision {r}"));
        return Err(Error::user(format!(
            "{name}: neither a directory nor a model in the local cache {}; download it there \
             first (`hf download {model}{option}`) or give a directory",
            hub.display()
        )));
    }
    Err(Error::user(format!(
        "{name}: the local cache {} has no version {} of it; it has {}: name one as {model}@{}",
        hub.display(),
        revision.unwrap_or("main"),
        versions.join(", "),
        versions[0]
    )))
}

/// The snapshot of a branch, tag or commit, if it is there and holds a model or adapters.
fn snapshot(repo: &Path, revision: &str) -> Option<PathBuf> {
    // Anything but plain names could lead out of the cache.
    let plain = |text: &str| {
        let mut parts = Path::new(text).components();
        !text.is_empty() && parts.all(|c| matches!(c, Component::Normal(_)))
    };
    if !plain(revision) {
        return None;
    }
    let named = read_text(&repo.join("refs").join(revision), 4096).ok();
    let commit = named.as_deref().map_or(revision, str::trim);
    let hash = !commit.is_empty() && commit.chars().all(|c| c.is_ascii_alphanumeric());
    let dir = repo.join("snapshots").join(commit);
    let model = ["config.json", "adapter_config.json"]
        .iter()
        .any(|f| dir.join(f).symlink_metadata().is_ok());
    (hash && model).then_some(dir)
}

/// The branches, tags and commits of a model in the cache, up to five.
fn versions(repo: &Path) -> Vec<String> {
    let names = |dir: &str| {
        let entries = std::fs::read_dir(repo.join(dir)).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().into_string().ok()).collect::<Vec<_>>()
    };
    let mut all: Vec<String> = [names("refs"), names("snapshots")].concat();
    all.retain(|r| snapshot(repo, r).is_some());
    all.sort();
    all.truncate(5);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_cache_is_where_hugging_face_has_it() {
        let with = |pairs: &[(&str, &str)]| {
            let pairs: Vec<(String, String)> =
                pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            let value = |key: &str| pairs.iter().find(|p| p.0 == key).map(|p| p.1.clone().into());
            cache_of(&value).unwrap_or_default()
        };
        let home = ("HOME", "/h");
        assert_eq!(with(&[home]), Path::new("/h/.cache/huggingface/hub"));
        let xdg = ("XDG_CACHE_HOME", "/x");
        assert_eq!(with(&[home, xdg]), Path::new("/x/huggingface/hub"));
        assert_eq!(with(&[home, xdg, ("HF_HOME", "~/hf")]), Path::new("/h/hf/hub"));
        let old = ("HUGGINGFACE_HUB_CACHE", "/old");
        assert_eq!(with(&[home, xdg, ("HF_HOME", "/f"), old]), Path::new("/old"));
        assert_eq!(with(&[home, old, ("HF_HUB_CACHE", "/new")]), Path::new("/new"));
        assert_eq!(with(&[home, old, ("HF_HUB_CACHE", "")]), Path::new("/old"));
    }

    #[test]
    fn without_a_home_no_other_directory_is_searched() {
        assert_eq!(cache_of(&|_| None), None);
        assert_eq!(cache_of(&|key| (key == "HF_HOME").then(|| "~/hf".into())), None);
        let e = resolve_in(None, "a/b").unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains("HOME is not set"), "{e}");
    }

    #[test]
    fn revisions_are_branches_tags_and_commits() {
        let tmp = tempfile::tempdir().unwrap();
        let repo = tmp.path().join("models--a--b.c");
        for (commit, file) in
            [("aa11", "config.json"), ("bb22", "adapter_config.json"), ("cc33", "x")]
        {
            fs::create_dir_all(repo.join("snapshots").join(commit)).unwrap();
            fs::write(repo.join("snapshots").join(commit).join(file), "{}").unwrap();
        }
        fs::create_dir_all(repo.join("refs/refs/pr")).unwrap();
        for (name, commit) in [("v1.0", "aa11\n"), ("refs/pr/7", "bb22"), ("broken", "../..")] {
            fs::write(repo.join("refs").join(name), commit).unwrap();
        }
        let find = |name: &str| resolve_in(Some(tmp.path()), name);
        for (name, commit) in
            [("a/b.c@v1.0", "aa11"), ("a/b.c@aa11", "aa11"), ("a/b.c@refs/pr/7", "bb22")]
        {
            assert_eq!(find(name).unwrap(), repo.join("snapshots").join(commit), "{name}");
        }
        for name in ["a/b.c@broken", "a/b.c@../../x", "a/b.c@cc33", "a/b.c@", "a/b.c@dd44"] {
            assert_eq!(find(name).unwrap_err().exit_code(), 2, "{name}");
        }
        let e = find("a/b.c").unwrap_err().to_string();
        assert!(e.contains("no version main") && e.contains("aa11, bb22, v1.0"), "{e}");
        assert!(find("a/d@x").unwrap_err().to_string().contains("--revision x"));
        fs::write(repo.join("refs/main"), "aa11").unwrap();
        assert!(find("a/b.c").is_ok());
    }
}

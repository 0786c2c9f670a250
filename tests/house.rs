//! The house: a module imports only modules above it in `docs/architecture.md`.

use std::fs;
use std::path::Path;

fn sources(dir: &Path, out: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// The modules in the order of the table.
fn order() -> Vec<String> {
    let text = fs::read_to_string("docs/architecture.md").unwrap();
    text.lines()
        .filter_map(|l| l.strip_prefix("| `"))
        .filter_map(|l| l.split_once("/` |").map(|(name, _)| name.to_string()))
        .collect()
}

#[test]
fn modules_import_only_modules_above_them() {
    let order = order();
    assert!(order.len() >= 15, "{order:?}");
    let mut bad = vec![];
    for (i, module) in order.iter().enumerate() {
        let dir = Path::new("src").join(module);
        assert!(dir.is_dir(), "{} is in the table but not in the tree", dir.display());
        let mut files = vec![];
        sources(&dir, &mut files);
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            for piece in text.split("crate::").skip(1) {
                let used: String =
                    piece.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if order[i + 1..].contains(&used) {
                    bad.push(format!("{} uses {used}", file.display()));
                }
            }
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn every_module_is_in_the_table() {
    let order = order();
    for entry in fs::read_dir("src").unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            assert!(order.contains(&name), "src/{name} is not in docs/architecture.md");
        }
    }
}

/// Their layout comes from the declarations in `cuda/` (`build/params.rs`).
#[test]
fn no_parameter_struct_of_a_kernel_is_written_by_hand() {
    let mut files = vec![];
    sources(Path::new("src"), &mut files);
    let made_here = Path::new("src/device/cuda/params.rs");
    let implements: Vec<_> = files
        .iter()
        .filter(|file| *file != made_here && !file.ends_with("bug_tests.rs"))
        .filter(|file| fs::read_to_string(file).unwrap().contains("impl KernelParams"))
        .collect();
    assert!(implements.is_empty(), "{implements:?}");
}

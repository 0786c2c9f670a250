//! `docs/ops.md` is the registry, written out. `DUPLEX_WRITE_DOCS=1 cargo test --test docs` renews
//! it.

use duplex::op::registry::OPS;

fn table() -> String {
    let mut out = String::from(
        "# Operators\n\nMade from the registry (`src/op/registry.rs`) by `tests/docs.rs`. Every operator is compared,\n\
         forward and backward, with a float64 reference and its finite differences in each of its cases, in\n\
         f32 and bf16.\n\n\
         | operator | what it computes | cases |\n|---|---|---|\n",
    );
    for op in OPS {
        let about = op.about.replace('|', "\\|");
        out += &format!(
            "| [`{0}`](../src/op/{0}.rs) | {about} | {1} |\n",
            op.name,
            (op.cases)().len()
        );
    }
    out
}

#[test]
fn ops_md_is_the_registry() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/ops.md");
    if std::env::var_os("DUPLEX_WRITE_DOCS").is_some() {
        std::fs::write(path, table()).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap_or_default(), table(), "docs/ops.md is stale");
}

#[test]
fn every_operator_has_a_file_a_purpose_and_cases() {
    for op in OPS {
        let file = format!("{}/src/op/{}.rs", env!("CARGO_MANIFEST_DIR"), op.name);
        assert!(std::path::Path::new(&file).is_file(), "{file}");
        assert!(!op.about.is_empty() && !(op.cases)().is_empty(), "{}", op.name);
    }
    assert!(OPS.is_sorted_by_key(|op| op.name));
}

/// Adds the names of all tests in the files below `dir`.
fn tests_below(dir: &std::path::Path, names: &mut std::collections::BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_below(&path, names);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let mut marked = false;
            for line in text.lines().map(str::trim) {
                let name = line.strip_prefix("fn ").and_then(|rest| rest.split('(').next());
                if let Some(name) = name.filter(|_| marked) {
                    names.insert(name.to_string());
                }
                // Attributes and comments may stand between the mark and its function.
                marked = line == "#[test]"
                    || marked && (line.starts_with("#[") || line.starts_with("//"));
            }
        }
    }
}

#[test]
fn every_test_named_in_reliability_md_exists() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = std::collections::BTreeSet::new();
    tests_below(&root.join("src"), &mut tests);
    tests_below(&root.join("tests"), &mut tests);
    let text = std::fs::read_to_string(root.join("docs/reliability.md")).unwrap();
    let (mut rows, mut missing) = (0, vec![]);
    for line in text.lines().filter(|l| l.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [fault, _, named] = cells[..] else { panic!("not three cells: {line}") };
        if fault == "fault" {
            continue;
        }
        rows += 1;
        let names: Vec<&str> = named.split(", ").map(|n| n.trim_matches('`')).collect();
        if names == ["not yet"] {
            continue;
        }
        missing.extend(
            names.into_iter().filter(|n| !tests.contains(*n)).map(|n| format!("{fault}: {n}")),
        );
    }
    assert!(rows > 50, "{rows} rows");
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// The lines of a file that are prose: comments of sources, and of pages all but tables, code and
/// lines of one link.
fn prose(path: &std::path::Path, text: &str) -> Vec<(usize, String)> {
    let is_page = path.extension().is_some_and(|e| e == "md");
    let mut fenced = false;
    let lines = text.lines().enumerate().filter(|(_, line)| match is_page {
        true => {
            let fence = line.trim_start().starts_with("```");
            fenced ^= fence;
            !fence && !fenced && !line.trim_start().starts_with('|') && line.contains(' ')
        }
        false => line.trim_start().starts_with("//"),
    });
    lines.map(|(i, line)| (i + 1, line.to_string())).collect()
}

fn files_below(dir: &std::path::Path, ends: &[&str], out: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, ends, out);
        } else if path.extension().and_then(|e| e.to_str()).is_some_and(|e| ends.contains(&e)) {
            out.push(path);
        }
    }
}

#[test]
fn comments_and_pages_keep_to_their_style() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![root.join("README.md"), root.join("build.rs")];
    for dir in ["src", "tests", "build", "bench", "cuda"] {
        files_below(&root.join(dir), &["rs", "cu", "cuh", "cpp", "hpp"], &mut files);
    }
    files_below(&root.join("docs"), &["md"], &mut files);
    assert!(files.len() > 300, "{}", files.len());
    let clauses = ["What ", "Who ", "Whose ", "Whether ", "Of "];
    let mut bad = vec![];
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for (number, line) in prose(&file, &text) {
            // Tables and code in comments have their columns, and a long word cannot be broken.
            let is_set = line.contains("   ");
            let long = line.chars().count() > 100
                && !is_set
                && line.split_whitespace().all(|word| word.chars().count() < 80);
            let documents = ["/// ", "//! "].iter().find_map(|m| line.trim().strip_prefix(m));
            let no_subject = documents.is_some_and(|d| clauses.iter().any(|s| d.starts_with(s)));
            if long || no_subject {
                bad.push(format!("{}:{number}: {line}", file.display()));
            }
        }
    }
    assert!(
        bad.is_empty(),
        "{} lines, such as\n{}",
        bad.len(),
        bad[..bad.len().min(20)].join("\n")
    );
}

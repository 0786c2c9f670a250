//! `docs/ops.md` is the registry, written out. `DUPLEX_WRITE_DOCS=1 cargo test --test docs` renews
//! it.

use duplex::op::registry::OPS;

fn table() -> String {
    let mut out = String::from(
        "# Operators\n\nMade from the registry (`src/op/registry.rs`) by `tests/docs.rs`. Every operator is compared, forward \
         and backward, with a\nfloat64 reference and its finite differences in each of its cases, in f32 and bf16.\n\n\
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

//! `docs/ops.md` is the registry, written out. `DUPLEX_WRITE_DOCS=1 cargo test --test docs` renews it.

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

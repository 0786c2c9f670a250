//! Pages hold what the tree holds: `docs/ops.md` is the registry, tests, paths, code, links and
//! flags that pages name exist. `DUPLEX_WRITE_DOCS=1 cargo test --test docs` renews `docs/ops.md`.

use duplex::op::registry::OPS;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn table() -> String {
    let mut out = String::from(
        "# Operators\n\n`tests/docs.rs` generates this page from the registry \
         (`src/op/registry.rs`). In each case, tests\n\
         compare an operator with a float64 reference, and its gradients with finite differences \
         of that\n\
         reference, in f32 and bf16.\n\n\
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
        assert!(Path::new(&file).is_file(), "{file}");
        assert!(!op.about.is_empty() && !(op.cases)().is_empty(), "{}", op.name);
    }
    assert!(OPS.is_sorted_by_key(|op| op.name));
}

/// Adds the names of all tests in the files below `dir`.
fn tests_below(dir: &Path, names: &mut BTreeSet<String>) {
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
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = BTreeSet::new();
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
/// lines with links.
fn prose(path: &Path, text: &str) -> Vec<(usize, String)> {
    let is_page = path.extension().is_some_and(|e| e == "md");
    let mut fenced = false;
    let lines = text.lines().enumerate().filter(|(_, line)| match is_page {
        true => {
            let fence = line.trim_start().starts_with("```");
            fenced ^= fence;
            let set = line.trim_start().starts_with('|') || line.contains("](");
            !fence && !fenced && !set && line.trim().contains(' ')
        }
        false => line.trim_start().starts_with("//"),
    });
    lines.map(|(i, line)| (i + 1, line.to_string())).collect()
}

fn files_below(dir: &Path, ends: &[&str], out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, ends, out);
        } else if path.extension().and_then(|e| e.to_str()).is_some_and(|e| ends.contains(&e)) {
            out.push(path);
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The pages of the project with their text.
fn pages() -> Vec<(PathBuf, String)> {
    let mut files =
        ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|f| root().join(f)).to_vec();
    files_below(&root().join("docs"), &["md"], &mut files);
    let read = |file: PathBuf| {
        let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{file:?}: {e}"));
        (file, text)
    };
    files.into_iter().map(read).collect()
}

#[test]
fn comments_and_pages_keep_to_their_style() {
    let mut files: Vec<PathBuf> = pages().into_iter().map(|page| page.0).collect();
    files.push(root().join("build.rs"));
    for dir in ["src", "tests", "build", "bench", "cuda"] {
        files_below(&root().join(dir), &["rs", "cu", "cuh", "cpp", "hpp"], &mut files);
    }
    assert!(files.len() > 300, "{}", files.len());
    let clauses = ["What ", "Who ", "Whose ", "Whether ", "Of "];
    let mut bad = vec![];
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for (number, line) in prose(&file, &text) {
            // Tables and code in comments have their columns, and a long word cannot be broken.
            let is_page = file.extension().is_some_and(|e| e == "md");
            let is_set = !is_page && line.trim().contains("   ");
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

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let slug = |heading: &str| -> String {
        let kept = heading.trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    text.lines().filter(|l| l.starts_with('#')).map(|l| slug(l.trim_start_matches('#'))).collect()
}

#[test]
fn relative_links_resolve() {
    let (mut links, mut bad) = (0, vec![]);
    for (page, text) in pages() {
        for rest in text.split("](").skip(1) {
            let target = rest.split(')').next().unwrap_or_default();
            if target.contains("://") {
                continue;
            }
            links += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = match file {
                "" => page.clone(),
                _ => page.parent().unwrap().join(file),
            };
            let is_there = match anchor {
                "" => path.exists(),
                _ => std::fs::read_to_string(&path).is_ok_and(|t| anchors(&t).contains(anchor)),
            };
            if !is_there {
                bad.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(links > 60, "{links} links");
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// Flags of other programs that pages name.
const FOREIGN: &[&str] = &[
    // cargo, nvcc, tools/gpu-check
    "--features",
    "--release",
    "--test",
    "--bench",
    "--fmad",
    "--only",
    // tools/same-weights
    "--binaries",
    "--quick",
    // torchrun
    "--nnodes",
    "--no-python",
    "--nproc-per-node",
    "--rdzv-backend",
    "--rdzv-endpoint",
    // Slurm
    "--gpus-per-node",
    "--grace-time",
    "--kill-on-bad-exit",
    "--mpi",
    "--ntasks-per-node",
    "--requeue",
    "--signal",
    // mpirun
    "--allow-run-as-root",
    "--enable-recovery",
    "--hostfile",
    "--mca",
    "--oversubscribe",
];

/// Adds the words of `text` that are flags, such as `--dtype`.
fn flags(text: &str, found: &mut BTreeSet<String>) {
    for (at, _) in text.match_indices("--") {
        let in_word = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
        let name: String = text[at + 2..].chars().take_while(|c| in_word(*c)).collect();
        if name.starts_with(|c: char| c.is_ascii_lowercase()) && !text[..at].ends_with(in_word) {
            found.insert(format!("--{name}"));
        }
    }
}

/// The standard output of `duplex` with these arguments.
fn output(arguments: &[&str]) -> String {
    let run = std::process::Command::new(env!("CARGO_BIN_EXE_duplex")).args(arguments).output();
    let run = run.unwrap();
    assert!(run.status.success(), "duplex {arguments:?}");
    String::from_utf8(run.stdout).unwrap()
}

#[test]
fn every_flag_on_a_page_exists() {
    let help = output(&["--help"]);
    let commands = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let commands: Vec<&str> = commands
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(commands.contains(&"train") && commands.len() > 8, "{commands:?}");
    let mut known = BTreeSet::new();
    flags(&help, &mut known);
    commands.iter().for_each(|command| flags(&output(&[command, "--help"]), &mut known));
    assert!(known.len() > 100, "{known:?}");
    let (mut unknown, mut all) = (vec![], BTreeSet::new());
    // The changelog also names flags of other times.
    for (page, text) in pages().into_iter().filter(|page| !page.0.ends_with("CHANGELOG.md")) {
        let mut named = BTreeSet::new();
        flags(&text, &mut named);
        let is_unknown = |f: &&String| !known.contains(*f) && !FOREIGN.contains(&f.as_str());
        unknown.extend(named.iter().filter(is_unknown).map(|f| format!("{}: {f}", page.display())));
        all.extend(named);
    }
    assert!(unknown.is_empty(), "{}", unknown.join("\n"));
    let unused: Vec<_> = FOREIGN.iter().filter(|f| !all.contains(**f)).collect();
    assert!(unused.is_empty(), "no page names {unused:?}");
}

/// The spans of a page between single backticks, outside of code blocks.
fn spans(text: &str) -> Vec<String> {
    let mut fenced = false;
    let prose: Vec<&str> = text
        .lines()
        .filter(|line| {
            let fence = line.trim_start().starts_with("```");
            fenced ^= fence;
            !fence && !fenced
        })
        .collect();
    prose.join("\n").split('`').skip(1).step_by(2).map(str::to_string).collect()
}

#[test]
fn every_path_on_a_page_exists() {
    let (mut paths, mut missing) = (0, vec![]);
    for (page, text) in pages() {
        for span in spans(&text) {
            let path = span.split([' ', '\n']).next().unwrap_or_default();
            let roots = ["src/", "tests/", "docs/", "tools/", "build/", "bench/", "cuda/"];
            // `x` and `*` stand for any name; tables of measurements on hardware are to come.
            let is_example = path.split(['/', '.']).any(|part| part == "x" || part.contains('*'));
            if !roots.iter().any(|r| path.starts_with(r))
                || is_example
                || path == "docs/benchmarks/"
            {
                continue;
            }
            paths += 1;
            if !root().join(path).exists() {
                missing.push(format!("{}: {path}", page.display()));
            }
        }
    }
    assert!(paths > 100, "{paths} paths");
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// The code blocks of a page that are marked with a path.
fn excerpts(text: &str) -> Vec<(String, String)> {
    let mut found = vec![];
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(mark) = line.trim().strip_prefix("```") else { continue };
        let code: Vec<&str> = lines.by_ref().take_while(|l| l.trim() != "```").collect();
        if let Some((_, path)) = mark.split_once(' ') {
            found.push((path.to_string(), code.join("\n")));
        }
    }
    found
}

/// The parts of `code` between lines of dots stand in `text`, in this order.
fn stands_in(text: &str, code: &str) -> Result<(), String> {
    let text = format!("\n{text}");
    let mut at = 0;
    for part in code.split("\n...\n") {
        let whole = format!("\n{}\n", part.trim_matches('\n'));
        let place = text[at..].find(&whole).ok_or_else(|| part.to_string())?;
        at += place + whole.len() - 1;
    }
    Ok(())
}

#[test]
fn code_in_contributing_md_is_that_of_the_tree() {
    let text = std::fs::read_to_string(root().join("CONTRIBUTING.md")).unwrap();
    let found = excerpts(&text);
    assert!(found.len() > 15, "{}", found.len());
    let mut bad = vec![];
    for (path, code) in found {
        let file = std::fs::read_to_string(root().join(&path));
        let file = file.unwrap_or_else(|e| panic!("CONTRIBUTING.md names {path}: {e}"));
        if let Err(part) = stands_in(&file, &code) {
            bad.push(format!("{path} no longer holds\n{part}\n"));
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
    assert!(stands_in("a\nb\nc\n", "a\n...\nc").is_ok());
    assert!(stands_in("a\nb\nc\n", "c\n...\na").is_err() && stands_in("ab\n", "a").is_err());
}

fn identifiers(text: &str) -> impl Iterator<Item = &str> {
    let parts = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    parts.filter(|word| word.starts_with(|c: char| c.is_alphabetic()))
}

#[test]
fn names_in_contributing_md_are_those_of_the_tree() {
    let mut files = vec![root().join("build.rs")];
    for dir in ["src", "tests", "build", "cuda"] {
        files_below(&root().join(dir), &["rs", "cu", "cuh"], &mut files);
    }
    let texts: Vec<String> = files.iter().map(|f| std::fs::read_to_string(f).unwrap()).collect();
    let code = || texts.iter().flat_map(|t| t.lines()).filter(|l| !l.trim().starts_with("//"));
    let known: BTreeSet<&str> = code().flat_map(identifiers).collect();
    let text = std::fs::read_to_string(root().join("CONTRIBUTING.md")).unwrap();
    // Paths, links, flags and commands are looked at by other tests.
    let is_name = |span: &&String| !span.contains(['/', ' ', '-', '\n']);
    let spans = spans(&text);
    let names: Vec<&str> =
        spans.iter().filter(is_name).flat_map(|span| identifiers(span)).collect();
    assert!(names.len() > 60, "{}", names.len());
    // A mark in comments, files of the root, extensions.
    let other = ["SAFETY", "Cargo", "cu", "json", "toml"];
    let missing: Vec<_> =
        names.iter().filter(|n| !known.contains(**n) && !other.contains(n)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

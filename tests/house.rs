//! The house: a module imports only modules above it in `docs/architecture.md`, files import each
//! other one way, and a run's configuration goes one way.

use std::collections::{BTreeMap, BTreeSet};
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

/// All that is said goes through the functions that clean foreign text and wait for no reader.
#[test]
fn few_files_write_to_the_terminal() {
    let speak = ["src/base/print.rs", "src/base/voice.rs", "src/base/system.rs"];
    let ways = [
        "print!(",
        "println!(",
        "dbg!(",
        "io::stdout",
        "io::stderr",
        "STDOUT_FILENO",
        "STDERR_FILENO",
        "libc::write(",
        "Term::",
        "/dev/tty",
    ];
    let mut files = vec![];
    sources(Path::new("src"), &mut files);
    let mut bad = vec![];
    for file in files.iter().filter(|f| !speak.iter().any(|s| f.ends_with(s))) {
        let path = file.to_str().unwrap();
        if path.ends_with("tests.rs") || path.contains("/tests/") {
            continue;
        }
        let code = code(&fs::read_to_string(file).unwrap());
        bad.extend(
            ways.iter().filter(|way| code.contains(**way)).map(|way| format!("{path}: {way}")),
        );
    }
    assert_eq!(bad, Vec::<String>::new());
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

/// Names that a `use` brings in: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn leaves(tree: &str, out: &mut Vec<String>) {
    fn walk(prefix: &str, tree: &str, out: &mut Vec<String>) {
        let tree = tree.trim();
        let Some((head, rest)) = tree.split_once('{') else {
            let path = tree.split(" as ").next().unwrap().trim();
            out.push(format!("{prefix}{path}"));
            return;
        };
        let (mut depth, mut start) = (0, 0);
        let inside = &rest[..rest.rfind('}').unwrap()];
        let prefix = format!("{prefix}{}", head.trim());
        for (i, c) in inside.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    walk(&prefix, &inside[start..i], out);
                    start = i + 1;
                }
                _ => {}
            }
        }
        if !inside[start..].trim().is_empty() {
            walk(&prefix, &inside[start..], out);
        }
    }
    walk("", tree, out);
}

/// The code of a file without comments and tests.
fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let lines = text[..end].lines().filter(|l| !l.trim_start().starts_with("//"));
    let mut kept = String::new();
    let mut skips = false;
    for line in lines {
        // A declaration or an import that only tests have.
        let marked = line.starts_with("#[cfg(test)]") || line.starts_with("#[cfg(all(test");
        if !(marked || skips) {
            kept += line;
            kept.push('\n');
        }
        skips = marked || skips && line.starts_with("#[");
    }
    kept
}

/// The imports of a file as whole paths: `use` trees, and paths within the code. With `handed_on`,
/// only those that it passes on to others (`pub use`), else only those that it needs itself.
fn imports(
    modules: &BTreeMap<Vec<String>, String>,
    module: &[String],
    handed_on: bool,
) -> Vec<Vec<String>> {
    let text = &modules[module];
    let mut found = vec![];
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let line = line.trim_start();
        let tree = match line.strip_prefix("pub").and_then(|l| l.split_once("use ")) {
            Some((scope, tree)) if scope.trim().is_empty() || scope.starts_with('(') => Some(tree),
            _ => line.strip_prefix("use "),
        };
        let Some(tree) = tree.filter(|_| line.starts_with("pub") == handed_on) else { continue };
        let mut tree = tree.to_string();
        while !tree.contains(';') {
            let Some(line) = lines.next() else { break };
            tree += line;
        }
        // Not a text that begins so.
        let in_path = |c: char| c.is_alphanumeric() || "_:{}*, ".contains(c);
        if !tree.split(';').next().unwrap().chars().all(in_path) {
            continue;
        }
        leaves(tree.split(';').next().unwrap(), &mut found);
    }
    let within = text
        .lines()
        .filter(|l| !l.starts_with("pub use ") && !l.starts_with("pub("))
        .collect::<Vec<_>>()
        .join("\n");
    for start in ["crate::", "super::"] {
        for (at, _) in within.match_indices(start).filter(|_| !handed_on) {
            let path: String = within[at..]
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':')
                .collect();
            if !within[..at].ends_with("::") {
                found.push(path.trim_end_matches(':').to_string());
            }
        }
    }
    let whole = |path: String| {
        let mut parts: Vec<String> = path.split("::").map(str::to_string).collect();
        let is_child = modules.contains_key(&[module, &parts[..1]].concat());
        let mut base = module.to_vec();
        match parts[0].as_str() {
            "crate" => base.clear(),
            "self" => {}
            "super" => {
                let up = parts.iter().take_while(|p| *p == "super").count();
                base.truncate(base.len() - up);
                parts.drain(..up - 1);
            }
            _ if is_child => parts.insert(0, String::new()),
            // Another crate.
            _ => return vec![],
        }
        [&base, &parts[1..]].concat()
    };
    found.into_iter().map(whole).collect()
}

/// The modules of the crate with their files' code.
fn modules() -> BTreeMap<Vec<String>, String> {
    let mut files = vec![];
    sources(Path::new("src"), &mut files);
    let mut found = BTreeMap::new();
    for file in files {
        let name = file.file_stem().unwrap().to_str().unwrap();
        let is_test = name == "tests" || name.ends_with("_tests") || name == "testing";
        let inside_tests = file.components().any(|c| c.as_os_str() == "tests");
        if is_test || inside_tests || ["lib", "main"].contains(&name) {
            continue;
        }
        let path = file.strip_prefix("src").unwrap().with_extension("");
        let mut module: Vec<String> =
            path.components().map(|c| c.as_os_str().to_str().unwrap().to_string()).collect();
        if name == "mod" {
            module.pop();
        }
        found.insert(module, code(&fs::read_to_string(&file).unwrap()));
    }
    found
}

/// The module whose file defines what `path` names, re-exports followed.
fn definer(
    modules: &BTreeMap<Vec<String>, String>,
    path: &[String],
    depth: usize,
) -> Option<Vec<String>> {
    let known = (1..=path.len()).rev().find(|n| modules.contains_key(&path[..*n]))?;
    let module = path[..known].to_vec();
    let Some(item) = path.get(known).filter(|_| depth < 8) else { return Some(module) };
    let passes_on = imports(modules, &module, true)
        .into_iter()
        .find(|p| p.last() == Some(item) && p[..] != path[..] && p.len() > 1);
    // Only where it is not declared here.
    let text = &modules[&module];
    let declared = ["fn", "struct", "enum", "trait", "type", "const", "static", "mod"]
        .iter()
        .any(|word| text.contains(&format!("{word} {item}")));
    match passes_on {
        Some(other) if !declared => definer(modules, &other, depth + 1),
        _ => Some(module),
    }
}

/// No file needs another one that needs it, directly or by others. Handing on a name (`pub use`) is
/// no need.
#[test]
fn files_import_each_other_one_way() {
    let modules = modules();
    assert!(modules.len() > 250, "{}", modules.len());
    let mut arrows: BTreeMap<&Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
    for module in modules.keys() {
        let to =
            imports(&modules, module, false).into_iter().filter_map(|p| definer(&modules, &p, 0));
        arrows.insert(module, to.filter(|other| other != module).collect());
    }
    let reaches = |from: &Vec<String>, to: &Vec<String>| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(at) = next.pop() {
            for other in arrows.get(&at).into_iter().flatten() {
                if other == to {
                    return true;
                }
                if seen.insert(other.clone()) {
                    next.push(other.clone());
                }
            }
        }
        false
    };
    let in_circle: Vec<String> =
        modules.keys().filter(|m| reaches(m, m)).map(|m| m.join("::")).collect();
    assert!(in_circle.is_empty(), "files in circles: {}", in_circle.join(", "));
}

/// The modules that the code of `module` names: imported, or by a path that begins with an imported
/// module or a child.
fn named(modules: &BTreeMap<Vec<String>, String>, module: &[String]) -> BTreeSet<Vec<String>> {
    let mut paths = imports(modules, module, false);
    for path in &mut paths {
        path.pop_if(|last| last == "self");
    }
    let is_child = |m: &&Vec<String>| m.len() == module.len() + 1 && m.starts_with(module);
    let known: Vec<_> = paths.iter().chain(modules.keys().filter(is_child)).cloned().collect();
    let text = &modules[module];
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    for path in known.iter().filter(|path| modules.contains_key(*path)) {
        let start = format!("{}::", path.last().unwrap());
        for (at, _) in text.match_indices(&start) {
            if text[..at].ends_with(|c: char| in_word(c) || c == ':') {
                continue;
            }
            let item = text[at + start.len()..].chars().take_while(|c| in_word(*c)).collect();
            paths.push([&path[..], &[item]].concat());
        }
    }
    paths.iter().filter_map(|p| definer(modules, p, 0)).filter(|m| m[..] != *module).collect()
}

/// The files of each step of a configuration's way, as the page lists them.
fn steps() -> Vec<Vec<String>> {
    let text = fs::read_to_string("docs/architecture.md").unwrap();
    let section = text.split("\n## ").find(|s| s.starts_with("The way of a configuration\n"));
    let mut steps: Vec<Vec<String>> = vec![];
    for line in section.expect("the page has the section").lines() {
        if line.starts_with(|c: char| c.is_ascii_digit()) {
            steps.push(vec![]);
        }
        let files = line.split('`').filter(|part| part.starts_with("src/"));
        steps.last_mut().into_iter().for_each(|step| step.extend(files.clone().map(String::from)));
    }
    steps
}

#[test]
fn a_configuration_goes_down_its_way() {
    let steps = steps();
    assert_eq!(steps.first().unwrap()[..], ["src/main.rs"]);
    assert!(steps.len() >= 8 && steps.iter().all(|s| !s.is_empty()), "{steps:?}");
    assert!(steps.last().unwrap().iter().all(|file| file.starts_with("src/algo/")), "{steps:?}");
    let mut modules = modules();
    let main = code(&fs::read_to_string("src/main.rs").unwrap()).replace("duplex::", "crate::");
    modules.insert(vec!["main".into()], main);
    let module = |file: &String| -> Vec<String> {
        assert!(Path::new(file).is_file(), "{file} is on the page but not in the tree");
        let path = file.trim_start_matches("src/").trim_end_matches(".rs");
        path.trim_end_matches("/mod").split('/').map(String::from).collect()
    };
    let steps: Vec<Vec<_>> = steps.iter().map(|step| step.iter().map(module).collect()).collect();
    for (i, file) in steps.iter().enumerate().flat_map(|(i, s)| s.iter().map(move |f| (i, f))) {
        let above: Vec<_> = steps[..i].iter().flatten().collect();
        let uses = named(&modules, file);
        let back: Vec<_> = above.iter().filter(|other| uses.contains(**other)).collect();
        assert!(back.is_empty(), "{file:?} names {back:?}, which the page has above it");
        let reached = i == 0 || above.iter().any(|other| named(&modules, other).contains(file));
        assert!(reached, "no file above {file:?} on the page names it");
    }
}

/// Every kernel is launched: its name stands in the sources, or is made there from parts.
#[test]
fn every_kernel_is_launched_by_its_name() {
    let made = ["gemm_", "attention_", "cached_attention_"];
    let mut files = vec![];
    sources(Path::new("src"), &mut files);
    let code: String = files.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let table = fs::read_to_string("cuda/resources.tsv").unwrap();
    let names = table.lines().skip(1).filter_map(|line| line.split('\t').next());
    let unknown: Vec<&str> = names
        .filter(|name| !made.iter().any(|start| name.starts_with(start)))
        .filter(|name| !code.contains(&format!("\"{name}\"")))
        .collect();
    assert_eq!(unknown, Vec::<&str>::new(), "kernels that nothing launches");
}

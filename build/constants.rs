//! Makes `$OUT_DIR/constants.rs`: the constants of the kernels as Rust sees them, one module per
//! source or header. Their declarations in `cuda/` are the only ones, so tiles, limits, flags and
//! numbers of kinds cannot differ between the two sides. It reads the text and needs no compiler.
//!
//! It reads three kinds of lines, each of which starts at the left margin:
//!
//! - `constexpr TYPE NAME = VALUE;`, where the value has numbers, other constants and `+ - * / <<`;
//! - `enum { A, B };`, numbers from 0;
//! - `#define NAME 1, 2, 3`, a list of at least two numbers, which is an array in Rust.

use crate::{Result, sources};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// One constant: Rust's type, and its value as the header spells it.
struct Constant {
    at: String,
    kind: String,
    value: String,
}

/// Constants by module and name.
#[derive(Default)]
pub(crate) struct Constants(BTreeMap<String, BTreeMap<String, Constant>>);

/// Reads the constants and writes them in Rust.
pub(crate) fn write(out: &Path) -> Result<Constants> {
    let mut all = Constants::default();
    for (path, text) in sources()? {
        all.read(&path, &text)?;
    }
    crate::write(&out.join("constants.rs"), &all.rust()?)?;
    Ok(all)
}

impl Constants {
    /// The path of a constant in the generated file, if exactly one module has the name.
    pub(crate) fn path(&self, name: &str) -> Option<String> {
        let mut found = self.0.iter().filter(|(_, all)| all.contains_key(name));
        let (module, _) = found.next()?;
        found.next().is_none().then(|| format!("{module}::{name}"))
    }

    fn read(&mut self, path: &Path, text: &str) -> Result<()> {
        let module = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut before = "";
        for (i, line) in text.lines().enumerate() {
            let at = format!("{}:{}", path.display(), i + 1);
            let code = line.split("//").next().unwrap_or("").trim_end();
            if !before.starts_with("template") {
                for (name, kind, value) in constants(code) {
                    let one = Constant { at: at.clone(), kind, value };
                    if let Some(other) =
                        self.0.entry(module.clone()).or_default().insert(name.clone(), one)
                    {
                        return Err(format!("{at}: {name} is declared in {} too", other.at));
                    }
                }
            }
            before = line;
        }
        Ok(())
    }

    fn rust(&self) -> Result<String> {
        let mut out = String::new();
        for (module, all) in &self.0 {
            writeln!(out, "/// Constants of `{module}`.\npub mod {module} {{").expect("text");
            for (name, one) in all {
                let value = self.value(module, one)?;
                let Constant { at, kind, .. } = one;
                writeln!(out, "    /// {at}\n    pub const {name}: {kind} = {value};")
                    .expect("text");
            }
            out += "}\n";
        }
        Ok(out)
    }

    /// A value in Rust's spelling; names of other modules get their path.
    fn value(&self, module: &str, one: &Constant) -> Result<String> {
        if one.kind.starts_with('[') {
            return Ok(format!("[{}]", one.value));
        }
        let mut out = String::new();
        for word in words(&one.value) {
            let first = word.chars().next().unwrap_or(' ');
            if first.is_ascii_digit() {
                out += &number(word);
            } else if !first.is_ascii_alphabetic() {
                out += word;
            } else if self.0[module].contains_key(word) {
                write!(out, "({word} as {})", one.kind).expect("text");
            } else {
                let unknown = || format!("{}: {word} is not one constant", one.at);
                let path = self.path(word).ok_or_else(unknown)?;
                write!(out, "(super::{path} as {})", one.kind).expect("text");
            }
        }
        Ok(out)
    }
}

/// Name, type in Rust and value of each constant that a line declares.
fn constants(line: &str) -> Vec<(String, String, String)> {
    declared(line).or_else(|| listed(line)).map_or_else(|| counted(line), |one| vec![one])
}

/// `constexpr TYPE NAME = VALUE;`
fn declared(line: &str) -> Option<(String, String, String)> {
    let (left, value) = line.strip_prefix("constexpr ")?.strip_suffix(';')?.split_once(" = ")?;
    let (kind, name) = left.rsplit_once(' ')?;
    let kind = match kind {
        // Most are sizes and counts, which are usize in Rust.
        "int" => "usize",
        "uint32_t" | "unsigned" => "u32",
        "uint64_t" => "u64",
        "float" => "f32",
        "double" => "f64",
        _ => return None,
    };
    Some((name.into(), kind.into(), value.into()))
}

/// `#define NAME 1, 2, 3`
fn listed(line: &str) -> Option<(String, String, String)> {
    let (name, values) = line.strip_prefix("#define ")?.split_once(' ')?;
    let whole = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    let count = values.split(',').count();
    let numbers = count > 1 && values.split(',').all(|value| whole(value.trim()));
    numbers.then(|| (name.into(), format!("[usize; {count}]"), values.trim().into()))
}

/// `enum Kind : uint32_t { A, B };` or `enum { A, B };`, the latter of type `int`.
fn counted(line: &str) -> Vec<(String, String, String)> {
    let inner = line.strip_prefix("enum ").and_then(|l| l.strip_suffix(" };"));
    let Some((head, names)) = inner.and_then(|l| l.split_once("{ ")) else { return vec![] };
    if head.starts_with("class ") {
        return vec![];
    }
    let kind = if head.trim_end().ends_with("uint32_t") { "u32" } else { "usize" };
    let names = names.split(", ").enumerate();
    names.map(|(i, name)| (name.into(), kind.into(), i.to_string())).collect()
}

/// Splits an expression into numbers or names, and what is between them.
fn words(text: &str) -> Vec<&str> {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    let mut found = vec![];
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let same = |c: char| part(c) == part(first);
        let end = rest.find(|c| !same(c)).unwrap_or(rest.len());
        found.push(&rest[..end]);
        rest = &rest[end..];
    }
    found
}

/// A number without C's suffix; `1.` is not a number in Rust.
fn number(word: &str) -> String {
    let plain = match word.strip_prefix("0x") {
        Some(_) => word.trim_end_matches('u'),
        None => word.trim_end_matches(['u', 'f']),
    };
    if plain.ends_with('.') { format!("{plain}0") } else { plain.into() }
}

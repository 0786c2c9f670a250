//! Makes `$OUT_DIR/params.rs`: the parameter structs of the kernels as Rust sees them. Their
//! declarations in `cuda/` are the only ones, so that no field can have another place or type on
//! the two sides.

use crate::constants::Constants;
use crate::{Result, sources};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

/// Ends the names of structs that kernels take.
const PARAMS: &str = "Params";

/// Reads the declarations, and writes them in Rust. Lengths of arrays are numbers or `constants`.
pub(crate) fn write(out: &Path, constants: &Constants) -> Result<()> {
    let mut all = Declared::default();
    for (path, text) in sources()? {
        all.read(&path, &text)?;
    }
    crate::write(&out.join("params.rs"), &all.rust(constants)?)
}

/// A struct: where it is, and the lines between its braces without comments.
struct Struct {
    at: String,
    body: String,
}

#[derive(Default)]
struct Declared {
    structs: BTreeMap<String, Struct>,
}

impl Declared {
    fn read(&mut self, path: &Path, text: &str) -> Result<()> {
        let code = |line: &str| line.split("//").next().unwrap_or("").trim().to_string();
        let mut lines = text.lines().enumerate();
        while let Some((i, line)) = lines.next() {
            let line = code(line);
            let Some(name) = line.strip_prefix("struct ").and_then(|l| l.strip_suffix(" {")) else {
                continue;
            };
            let body: Vec<String> =
                lines.by_ref().map(|(_, l)| code(l)).take_while(|l| l != "};").collect();
            let at = format!("{}:{}", path.display(), i + 1);
            let one = Struct { at: at.clone(), body: body.join("\n") };
            if let Some(other) = self.structs.insert(name.to_string(), one)
                && name.ends_with(PARAMS)
            {
                return Err(format!("{at}: struct {name} is declared in {} too", other.at));
            }
        }
        Ok(())
    }

    /// All parameter structs, and what they are made of.
    fn rust(&self, constants: &Constants) -> Result<String> {
        let names = self.structs.keys().filter(|name| name.ends_with(PARAMS));
        let mut wanted: Vec<String> = names.cloned().collect();
        let (mut structs, mut lengths) = (BTreeMap::new(), BTreeSet::new());
        while let Some(name) = wanted.pop() {
            if structs.contains_key(&name) {
                continue;
            }
            let one = &self.structs[&name];
            let mut fields = String::new();
            for statement in one.body.split(';').map(str::trim).filter(|s| !s.is_empty()) {
                let wrong = || format!("{}: {statement:?} is not understood", one.at);
                let (kind, rest) = declaration(statement).ok_or_else(wrong)?;
                let kind = match rust_type(kind) {
                    Some(kind) => kind.to_string(),
                    None if self.structs.contains_key(kind) => {
                        wanted.push(kind.into());
                        kind.into()
                    }
                    None => return Err(wrong()),
                };
                for field in rest.split(',').map(str::trim) {
                    let (field, kind) = match field.split_once('[') {
                        None => (field, kind.clone()),
                        Some((field, length)) => {
                            let length = length.strip_suffix(']').ok_or_else(wrong)?;
                            if !is_number(length) {
                                lengths.insert(length.to_string());
                            }
                            (field, format!("[{kind}; {length}]"))
                        }
                    };
                    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
                    if field.is_empty() || !field.chars().all(plain) {
                        return Err(wrong());
                    }
                    writeln!(fields, "    pub {field}: {kind},").expect("text");
                }
            }
            let derives = "#[repr(C)]\n#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]";
            let mut text = format!("/// {}\n{derives}\npub struct {name} {{\n{fields}}}\n", one.at);
            if name.ends_with(PARAMS) {
                let made =
                    "// SAFETY: made from the declaration that the kernels are compiled with.";
                writeln!(text, "{made}\nunsafe impl KernelParams for {name} {{}}").expect("text");
            }
            structs.insert(name, text);
        }
        let mut out = String::new();
        for name in lengths {
            let path = constants.path(&name).ok_or(format!("{name} is not one constant"))?;
            writeln!(out, "pub use super::constants::{path};").expect("text");
        }
        Ok(out + &structs.into_values().collect::<String>())
    }
}

fn is_number(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_digit())
}

/// The type of a declaration, which is "*" for all pointers, and its fields.
fn declaration(statement: &str) -> Option<(&str, &str)> {
    if let Some((_, fields)) = statement.split_once("* ") {
        return Some(("*", fields));
    }
    statement.strip_prefix("const ").unwrap_or(statement).split_once(' ')
}

fn rust_type(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "*" | "uint64_t" => "u64",
        "uint32_t" => "u32",
        "int32_t" => "i32",
        "float" => "f32",
        "double" => "f64",
        _ => return None,
    })
}

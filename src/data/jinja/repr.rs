//! Python's `str` and `repr`.

use super::run::Run;
use super::strings::is_printable;
use super::value::{Object, Res, Value, View, error};
use std::fmt::Write;

/// Python's `str(value)`.
pub(crate) fn text(run: &mut Run, value: &Value) -> Res<String> {
    match value {
        Value::Undefined(_) => Ok(String::new()),
        Value::Str(s) | Value::Safe(s) => {
            run.spend(s.len() as u64 / 8)?;
            Ok(s.to_string())
        }
        _ => repr(run, value),
    }
}

/// Python's `repr(value)`.
pub(crate) fn repr(run: &mut Run, value: &Value) -> Res<String> {
    let mut out = String::new();
    write(run, value, false, 0, &mut out)?;
    Ok(out)
}

/// `repr` with the keys of dictionaries sorted, as `pprint` does.
pub(crate) fn sorted_repr(run: &mut Run, value: &Value) -> Res<String> {
    let mut out = String::new();
    write(run, value, true, 0, &mut out)?;
    Ok(out)
}

fn write(run: &mut Run, value: &Value, sorted: bool, depth: u32, out: &mut String) -> Res<()> {
    // Values that hold each other several times are longer than they look.
    run.spend(1)?;
    run.touch(value)?;
    run.room(out.len())?;
    if depth > 500 {
        return error("maximum recursion depth exceeded while getting the repr of an object");
    }
    match value {
        Value::Undefined(_) => out.push_str("Undefined"),
        Value::None => out.push_str("None"),
        Value::Bool(b) => out.push_str(if *b { "True" } else { "False" }),
        Value::Int(i) => _ = write!(out, "{i}"),
        Value::Float(f) => out.push_str(&float(*f)),
        Value::Str(s) => quote(s, out),
        Value::Safe(s) => {
            out.push_str("Markup(");
            quote(s, out);
            out.push(')');
        }
        Value::List(s) => series(run, &s.items, ["[", "]"], sorted, depth, out)?,
        Value::Tuple(s) => {
            let close = if s.items.len() == 1 { ",)" } else { ")" };
            series(run, &s.items, ["(", close], sorted, depth, out)?;
        }
        Value::Dict(d) => {
            let mut entries: Vec<&(Value, Value)> = d.entries.iter().collect();
            if sorted {
                if entries.iter().any(|(k, _)| !matches!(k, Value::Str(_))) {
                    return error("pprint of keys that are no strings is not supported");
                }
                entries.sort_by_key(|(k, _)| k.as_str().unwrap_or("").to_owned());
            }
            out.push('{');
            for (i, (key, item)) in entries.into_iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write(run, key, sorted, depth + 1, out)?;
                out.push_str(": ");
                write(run, item, sorted, depth + 1, out)?;
            }
            out.push('}');
        }
        Value::View(view, d) => {
            let items = super::value::view_items(*view, &d.entries)?;
            let name = match view {
                View::Keys => "dict_keys([",
                View::Values => "dict_values([",
                View::Items => "dict_items([",
            };
            series(run, &items, [name, "])"], sorted, depth, out)?;
        }
        Value::Range(r) => {
            let [start, stop, step] = **r;
            let step = if step == 1 { String::new() } else { format!(", {step}") };
            _ = write!(out, "range({start}, {stop}{step})");
        }
        Value::Object(o) => object(run, o, value.kind(), sorted, depth, out)?,
        Value::Iter(_) => {
            return error("printing a generator is not supported; use the filter 'list'");
        }
    }
    Ok(())
}

/// An object of a template's own. `kind` names it where it cannot be printed.
fn object(
    run: &mut Run,
    object: &Object,
    kind: &str,
    sorted: bool,
    depth: u32,
    out: &mut String,
) -> Res<()> {
    match object {
        Object::Namespace(vars, _) => {
            out.push_str("<Namespace {");
            for (i, (name, item)) in vars.borrow().iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                quote(name, out);
                out.push_str(": ");
                write(run, item, sorted, depth + 1, out)?;
            }
            out.push_str("}>");
        }
        Object::Macro(m) => {
            out.push_str("<Macro ");
            match &m.def.name {
                Some(name) => quote(name, out),
                None => out.push_str("anonymous"),
            }
            out.push('>');
        }
        Object::Loop(_) => return error("printing 'loop' is not supported"),
        _ => return error(format!("printing a {kind} is not supported")),
    }
    Ok(())
}

fn series(
    run: &mut Run,
    items: &[Value],
    [open, close]: [&str; 2],
    sorted: bool,
    depth: u32,
    out: &mut String,
) -> Res<()> {
    out.push_str(open);
    for (i, item) in items.iter().enumerate() {
        out.push_str(if i > 0 { ", " } else { "" });
        write(run, item, sorted, depth + 1, out)?;
    }
    out.push_str(close);
    Ok(())
}

/// `repr` of a string.
pub(crate) fn quote(s: &str, out: &mut String) {
    let mark = if s.contains('\'') && !s.contains('"') { '"' } else { '\'' };
    out.push(mark);
    for c in s.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == mark => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            c => out.push_str(&escaped(c)),
        }
    }
    out.push(mark);
}

/// `\xNN`, `\uNNNN` or `\UNNNNNNNN`.
pub(crate) fn escaped(c: char) -> String {
    match u32::from(c) {
        code @ 0..=0xff => format!("\\x{code:02x}"),
        code @ 0x100..=0xffff => format!("\\u{code:04x}"),
        code => format!("\\U{code:08x}"),
    }
}

/// `repr` of a float: the shortest digits that give it back.
pub(crate) fn float(f: f64) -> String {
    if f.is_nan() {
        return "nan".into();
    }
    if f.is_infinite() {
        return if f > 0.0 { "inf" } else { "-inf" }.into();
    }
    let (digits, exponent) = at_exponent(format!("{f:e}"));
    if (-4..16).contains(&exponent) {
        let plain = format!("{f}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    with_exponent(&digits, exponent)
}

/// Digits and exponent of a number in Rust's scientific notation.
pub(crate) fn at_exponent(mut scientific: String) -> (String, i32) {
    let at = scientific.find('e').unwrap_or(scientific.len());
    let exponent = scientific[at..].trim_start_matches('e').parse().unwrap_or(0);
    scientific.truncate(at);
    (scientific, exponent)
}

/// Python's scientific notation: an exponent has a sign and two digits or more.
pub(crate) fn with_exponent(digits: &str, exponent: i32) -> String {
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// `markupsafe.escape`.
pub(crate) fn escape_html(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for c in s.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

//! `json.dumps`, as the filter `tojson` of `transformers` calls it.

use super::repr::float;
use super::run::Run;
use super::value::{Res, Value, error};
use std::cmp::Ordering;

/// How `json.dumps` writes.
pub(crate) struct Style {
    pub(crate) indent: Option<String>,
    pub(crate) comma: String,
    pub(crate) colon: String,
    pub(crate) sort_keys: bool,
    pub(crate) ascii: bool,
}

/// `json.dumps(value)`.
pub(crate) fn dumps(run: &mut Run, value: &Value, style: &Style) -> Res<String> {
    let mut out = String::new();
    dump(run, value, style, 0, &mut out)?;
    Ok(out)
}

fn quote(s: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if u32::from(c) < 0x20 || (ascii && !c.is_ascii()) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

fn number(f: f64) -> String {
    match f {
        f if f.is_nan() => "NaN".into(),
        f if f.is_infinite() => if f > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        f => float(f),
    }
}

fn dump(run: &mut Run, value: &Value, style: &Style, depth: usize, out: &mut String) -> Res<()> {
    run.spend(1)?;
    run.room(out.len())?;
    match value {
        Value::None => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Int(i) => out.push_str(&i.to_string()),
        Value::Float(f) => out.push_str(&number(*f)),
        Value::Str(s) | Value::Safe(s) => {
            run.spend(s.len() as u64 / 8)?;
            quote(s, style.ascii, out);
        }
        Value::List(s) | Value::Tuple(s) => {
            if s.items.is_empty() {
                out.push_str("[]");
                return Ok(());
            }
            out.push('[');
            for (i, item) in s.items.iter().enumerate() {
                separate(style, i, depth + 1, out);
                dump(run, item, style, depth + 1, out)?;
            }
            new_line(style, depth, out);
            out.push(']');
        }
        Value::Dict(d) => {
            if d.entries.is_empty() {
                out.push_str("{}");
                return Ok(());
            }
            let mut entries: Vec<&(Value, Value)> = d.entries.iter().collect();
            if style.sort_keys {
                sort(&mut entries)?;
            }
            out.push('{');
            for (i, (key, item)) in entries.into_iter().enumerate() {
                separate(style, i, depth + 1, out);
                let key = match key {
                    Value::Str(s) | Value::Safe(s) => s.to_string(),
                    Value::None => "null".into(),
                    Value::Bool(b) => b.to_string(),
                    Value::Int(i) => i.to_string(),
                    Value::Float(f) => number(*f),
                    _ => {
                        let kind = key.kind();
                        return error(format!(
                            "tojson: keys must be str, int, float, bool or None, not {kind}"
                        ));
                    }
                };
                quote(&key, style.ascii, out);
                out.push_str(&style.colon);
                dump(run, item, style, depth + 1, out)?;
            }
            new_line(style, depth, out);
            out.push('}');
        }
        _ => {
            let kind = value.kind();
            return error(format!("tojson: object of type {kind} is not JSON serializable"));
        }
    }
    Ok(())
}

fn sort(entries: &mut [&(Value, Value)]) -> Res<()> {
    let texts = entries.iter().all(|(k, _)| k.as_str().is_some());
    let numbers = entries.iter().all(|(k, _)| k.as_int().is_some());
    if !texts && !numbers {
        return error("tojson: sort_keys with keys that are not all strings is not supported");
    }
    entries.sort_by(|(a, _), (b, _)| match (a.as_str(), b.as_str()) {
        (Some(a), Some(b)) => a.cmp(b),
        _ => a.as_int().partial_cmp(&b.as_int()).unwrap_or(Ordering::Equal),
    });
    Ok(())
}

fn separate(style: &Style, i: usize, depth: usize, out: &mut String) {
    if i > 0 {
        out.push_str(&style.comma);
    }
    new_line(style, depth, out);
}

fn new_line(style: &Style, depth: usize, out: &mut String) {
    if let Some(indent) = &style.indent {
        out.push('\n');
        for _ in 0..depth {
            out.push_str(indent);
        }
    }
}

//! Python's two ways to format: `%` and `str.format`.

use super::compare;
use super::repr::{at_exponent, float, repr, text, with_exponent};
use super::run::{Given, Run};
use super::value::{Res, Value, error, named};
use std::sync::Arc;

/// A format specification: `[[fill]align][sign][#][0][width][,][.precision][type]`.
#[derive(Default)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    alternate: bool,
    zero: bool,
    width: usize,
    comma: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

/// Columns and digits that a format may ask for.
const MOST_WIDTH: usize = 1 << 16;

fn unsupported<T>(what: &str) -> Res<T> {
    error(format!("the format '{what}' is not supported"))
}

fn digits(chars: &mut std::iter::Peekable<std::str::Chars>) -> Res<Option<usize>> {
    let mut number = None;
    while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
        chars.next();
        let value = number.unwrap_or(0) * 10 + digit as usize;
        if value > MOST_WIDTH {
            return error("a format is too wide");
        }
        number = Some(value);
    }
    Ok(number)
}

fn parse_spec(spec: &str) -> Res<Spec> {
    let mut parsed = Spec::default();
    let mut chars = spec.chars().peekable();
    let is_align = |c: Option<char>| c.is_some_and(|c| "<>=^".contains(c));
    let mut ahead = spec.chars();
    let (first, second) = (ahead.next(), ahead.next());
    if is_align(second) {
        (parsed.fill, parsed.align) = (chars.next(), chars.next());
    } else if is_align(first) {
        parsed.align = chars.next();
    }
    parsed.sign = chars.next_if(|c| "+- ".contains(*c));
    parsed.alternate = chars.next_if_eq(&'#').is_some();
    parsed.zero = chars.next_if_eq(&'0').is_some();
    parsed.width = digits(&mut chars)?.unwrap_or(0);
    parsed.comma = chars.next_if(|c| ",_".contains(*c));
    if chars.next_if_eq(&'.').is_some() {
        parsed.precision = match digits(&mut chars)? {
            None => return error("Format specifier missing precision"),
            precision => precision,
        };
    }
    parsed.kind = chars.next();
    match chars.next() {
        None => Ok(parsed),
        Some(_) => error("Invalid format specifier"),
    }
}

fn pad(body: String, spec: &Spec, default_align: char, sign_length: usize) -> String {
    let length = body.chars().count();
    let missing = spec.width.saturating_sub(length);
    let fill = spec.fill.unwrap_or(if spec.zero { '0' } else { ' ' });
    let zero_align = spec.zero && spec.align.is_none();
    let align = spec.align.unwrap_or(if zero_align { '=' } else { default_align });
    let fills = |n: usize| fill.to_string().repeat(n);
    match align {
        '<' => body + &fills(missing),
        '^' => fills(missing / 2) + &body + &fills(missing - missing / 2),
        '=' => body[..sign_length].to_owned() + &fills(missing) + &body[sign_length..],
        _ => fills(missing) + &body,
    }
}

/// The beginning of a text that a precision allows.
fn cut(text: &str, precision: Option<usize>) -> String {
    text.chars().take(precision.unwrap_or(usize::MAX)).collect()
}

fn group(whole: &str, separator: char, size: usize) -> String {
    let mut out = String::new();
    for (i, c) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(size) {
            out.push(separator);
        }
        out.push(c);
    }
    out
}

/// The digits of a finite or infinite float without its sign, as `e`, `f`, `g` and `%` write it.
fn float_digits(f: f64, kind: char, precision: usize, alternate: bool) -> String {
    let scientific = |precision: usize| at_exponent(format!("{f:.precision$e}"));
    let trimmed = |digits: &str| match digits.contains('.') && !alternate {
        true => digits.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => digits.to_owned(),
    };
    let out = match kind.to_ascii_lowercase() {
        _ if !f.is_finite() => float(f),
        'e' => {
            let (digits, exponent) = scientific(precision);
            with_exponent(&digits, exponent)
        }
        'g' => {
            let precision = precision.max(1);
            let (digits, exponent) = scientific(precision - 1);
            match exponent >= -4 && exponent < precision as i32 {
                true => {
                    let decimals = (precision as i32 - 1 - exponent) as usize;
                    trimmed(&format!("{f:.decimals$}"))
                }
                false => with_exponent(&trimmed(&digits), exponent),
            }
        }
        _ => format!("{f:.precision$}"),
    };
    if kind.is_uppercase() { out.to_uppercase() } else { out }
}

fn signed(negative: bool, spec: &Spec) -> &'static str {
    match (negative, spec.sign) {
        (true, _) => "-",
        (false, Some('+')) => "+",
        (false, Some(' ')) => " ",
        _ => "",
    }
}

fn format_float(f: f64, spec: &Spec) -> Res<String> {
    let sign = signed(f.is_sign_negative() && !f.is_nan(), spec);
    let magnitude = f.abs();
    let mut body = match spec.kind {
        None if spec.precision.is_some() => return unsupported("precision without a type"),
        None => float(magnitude),
        Some('%') => float_digits(magnitude * 100.0, 'f', spec.precision.unwrap_or(6), false) + "%",
        Some(kind @ ('e' | 'E' | 'f' | 'F' | 'g' | 'G')) => {
            float_digits(magnitude, kind, spec.precision.unwrap_or(6), spec.alternate)
        }
        Some(kind) => {
            return error(format!("Unknown format code '{kind}' for object of type 'float'"));
        }
    };
    if let Some(separator) = spec.comma {
        let end = body.find(|c: char| !c.is_ascii_digit()).unwrap_or(body.len());
        body = group(&body[..end], separator, 3) + &body[end..];
        if spec.zero {
            return unsupported("zeros with separators");
        }
    }
    Ok(pad(sign.to_owned() + &body, spec, '>', sign.len()))
}

fn format_int(i: i128, spec: &Spec) -> Res<String> {
    if spec.kind.is_some_and(|kind| "eEfFgG%".contains(kind)) {
        return format_float(i as f64, spec);
    }
    if spec.precision.is_some() {
        return error("Precision not allowed in integer format specifier");
    }
    let magnitude = i.unsigned_abs();
    let (prefix, digits, size) = match spec.kind {
        None | Some('d' | 'n') => ("", magnitude.to_string(), 3),
        Some('b') => ("0b", format!("{magnitude:b}"), 4),
        Some('o') => ("0o", format!("{magnitude:o}"), 4),
        Some('x') => ("0x", format!("{magnitude:x}"), 4),
        Some('X') => ("0X", format!("{magnitude:X}"), 4),
        Some('c') => {
            let c = u32::try_from(i).ok().and_then(char::from_u32);
            let Some(c) = c else { return error("%c arg not in range(0x110000)") };
            return Ok(pad(c.to_string(), spec, '<', 0));
        }
        Some(kind) => {
            return error(format!("Unknown format code '{kind}' for object of type 'int'"));
        }
    };
    let digits = match spec.comma {
        Some(_) if spec.zero => return unsupported("zeros with separators"),
        Some(separator) => group(&digits, separator, size),
        None => digits,
    };
    let prefix = if spec.alternate { prefix } else { "" };
    let sign = signed(i < 0, spec).to_owned() + prefix;
    Ok(pad(sign.clone() + &digits, spec, '>', sign.len()))
}

/// Python's `format(value, spec)`.
fn format_value(run: &mut Run, value: &Value, spec: &str) -> Res<String> {
    if spec.is_empty() {
        return text(run, value);
    }
    let parsed = parse_spec(spec)?;
    match value {
        Value::Float(f) => format_float(*f, &parsed),
        Value::Int(_) | Value::Bool(_) => format_int(value.as_int().unwrap_or(0), &parsed),
        Value::Str(s) => {
            if parsed.kind.is_some_and(|kind| kind != 's') || parsed.sign.is_some() {
                return error("Unknown format code for object of type 'str'");
            }
            if parsed.align == Some('=') {
                return error("'=' alignment not allowed in string format specifier");
            }
            // Zeros go behind a text, not in front as with a number.
            let spec = Spec { align: parsed.align.or(Some('<')), ..parsed };
            Ok(pad(cut(s, spec.precision), &spec, '<', 0))
        }
        _ => error(format!("unsupported format string passed to {}.__format__", value.kind())),
    }
}

/// Python's `template.format(...)`.
pub(crate) fn str_format(run: &mut Run, template: &str, given: &Given) -> Res<String> {
    let mut out = String::new();
    let mut rest = template;
    let mut automatic = 0;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        let brace = &rest[at..at + 1];
        let tail = &rest[at + 1..];
        if tail.starts_with(brace) {
            out.push_str(brace);
            rest = &tail[1..];
            continue;
        }
        if brace == "}" {
            return error("Single '}' encountered in format string");
        }
        let Some(end) = tail.find(['{', '}']) else {
            return error("expected '}' before end of string");
        };
        if tail[end..].starts_with('{') {
            return unsupported("a field inside a field");
        }
        let field = &tail[..end];
        rest = &tail[end + 1..];
        let (field, spec) = field.split_once(':').unwrap_or((field, ""));
        let (name, conversion) = match field.split_once('!') {
            Some((name, conversion)) => (name, Some(conversion)),
            None => (field, None),
        };
        let value = field_value(run, name, given, &mut automatic)?;
        let value = match conversion {
            None => value,
            Some("s") => Value::str(text(run, &value)?),
            Some("r") => Value::str(repr(run, &value)?),
            Some(other) => return unsupported(&format!("!{other}")),
        };
        out.push_str(&format_value(run, &value, spec)?);
        run.room(out.len())?;
    }
    Ok(out + rest)
}

fn field_value(run: &mut Run, field: &str, given: &Given, automatic: &mut usize) -> Res<Value> {
    let end = field.find(['.', '[']).unwrap_or(field.len());
    let (first, mut path) = field.split_at(end);
    let position = match first {
        "" => {
            *automatic += 1;
            Some(*automatic - 1)
        }
        _ => first.parse().ok(),
    };
    let found = match position {
        Some(position) => given.pos.get(position),
        None => named(&given.named, first),
    };
    let Some(mut value) = found.cloned() else {
        return error(match position {
            Some(_) => "Replacement index out of range for positional args tuple".to_owned(),
            None => format!("format has no argument '{first}'"),
        });
    };
    while !path.is_empty() {
        if let Some(tail) = path.strip_prefix('.') {
            let end = tail.find(['.', '[']).unwrap_or(tail.len());
            value = run.getattr(&value, &Arc::from(&tail[..end]))?;
            path = &tail[end..];
        } else {
            let Some((key, tail)) = path[1..].split_once(']') else {
                return error("Missing ']' in format string");
            };
            let key = key.parse().map_or_else(|_| Value::str(key), Value::Int);
            value = run.getitem(&value, &key)?;
            path = tail;
        }
    }
    Ok(value)
}

/// Python's `template % value`.
pub(crate) fn percent(run: &mut Run, template: &str, value: &Value) -> Res<String> {
    let tuple = match value {
        Value::Tuple(s) => s.items.clone(),
        _ => vec![value.clone()],
    };
    let is_mapping = matches!(value, Value::Dict(_) | Value::List(_) | Value::Range(_));
    let mut args = tuple.into_iter();
    let mut out = String::new();
    let mut chars = template.chars().peekable();
    let few = "not enough arguments for format string";
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        if chars.next_if_eq(&'%').is_some() {
            out.push('%');
            continue;
        }
        let mut named = None;
        if chars.next_if_eq(&'(').is_some() {
            let mut key = String::new();
            loop {
                match chars.next() {
                    Some(')') => break,
                    Some('(') => return unsupported("%(...(...)"),
                    Some(c) => key.push(c),
                    None => return error("incomplete format key"),
                }
            }
            let Value::Dict(d) = value else { return error("format requires a mapping") };
            match compare::lookup(run, &d.entries, &Value::str(&key))? {
                Some(found) => named = Some(found.clone()),
                None => return error(format!("format has no key '{key}'")),
            }
        }
        let mut spec = Spec { align: Some('>'), ..Spec::default() };
        while let Some(flag) = chars.next_if(|c| "-+ #0".contains(*c)) {
            match flag {
                '-' => spec.align = Some('<'),
                '+' => spec.sign = Some('+'),
                ' ' => spec.sign = spec.sign.or(Some(' ')),
                '#' => spec.alternate = true,
                _ => spec.zero = true,
            }
        }
        if chars.peek() == Some(&'*') {
            return unsupported("%*");
        }
        spec.width = digits(&mut chars)?.unwrap_or(0);
        if chars.next_if_eq(&'.').is_some() {
            spec.precision = Some(digits(&mut chars)?.unwrap_or(0));
        }
        while chars.next_if(|c| "hlL".contains(*c)).is_some() {}
        let Some(kind) = chars.next() else { return error("incomplete format") };
        let argument = match named {
            Some(value) => value,
            None => match args.next() {
                Some(value) => value,
                None => return error(few),
            },
        };
        out.push_str(&convert(run, &argument, kind, spec)?);
        run.room(out.len())?;
    }
    match args.next() {
        Some(_) if !is_mapping => error("not all arguments converted during string formatting"),
        _ => Ok(out),
    }
}

fn convert(run: &mut Run, value: &Value, kind: char, mut spec: Spec) -> Res<String> {
    if let (Value::Undefined(message), false) = (value, matches!(kind, 's' | 'r')) {
        return error(&**message);
    }
    let needs =
        |what: &str| error(format!("%{kind} format: {what} is required, not {}", value.kind()));
    match kind {
        's' | 'r' => {
            let body = if kind == 's' { text(run, value)? } else { repr(run, value)? };
            spec.zero = false;
            Ok(pad(cut(&body, spec.precision), &spec, '>', 0))
        }
        'c' => {
            let body = match (value.as_int(), value.as_str()) {
                (Some(i), _) => u32::try_from(i).ok().and_then(char::from_u32).map(String::from),
                (_, Some(s)) if s.chars().count() == 1 => Some(s.to_owned()),
                _ => None,
            };
            spec.zero = false;
            match body {
                Some(body) => Ok(pad(body, &spec, '>', 0)),
                None => error("%c requires int or char"),
            }
        }
        'd' | 'i' | 'u' | 'x' | 'X' | 'o' => {
            let number = match value {
                Value::Float(f) if f.is_finite() && !matches!(kind, 'x' | 'X' | 'o') => {
                    Some(*f as i128)
                }
                _ => value.as_int(),
            };
            let Some(number) = number else { return needs("a real number") };
            if spec.precision.take().is_some() {
                return unsupported("digits of an integer");
            }
            spec.kind = Some(if matches!(kind, 'i' | 'u') { 'd' } else { kind });
            numeric(&mut spec);
            format_int(number, &spec)
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let Some(number) = compare::number(value) else {
                return error("must be real number, not ".to_owned() + value.kind());
            };
            spec.kind = Some(kind);
            numeric(&mut spec);
            format_float(number, &spec)
        }
        _ => error(format!("unsupported format character '{kind}'")),
    }
}

/// Zeros go between sign and digits, unless the number stands left.
fn numeric(spec: &mut Spec) {
    match (spec.zero, spec.align) {
        (true, Some('<')) => spec.zero = false,
        (true, _) => spec.align = None,
        _ => {}
    }
}

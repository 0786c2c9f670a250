//! Jinja2's filters of numbers.

use super::ast::BinaryOp;
use super::ops;
use super::repr::text;
use super::run::{Given, Run};
use super::strings::is_space;
use super::value::{Res, Value, error};

impl Run {
    pub(crate) fn round(&mut self, value: Value, given: Given) -> Res<Value> {
        let [precision, method] = given.bind("round", ["precision", "method"], 0)?;
        let precision = integer("round", precision, 0)?;
        let method = method.map_or_else(|| Ok("common".to_owned()), |m| text(self, &m))?;
        let number = match (&value, ops::number(&value)) {
            (Value::Undefined(message), _) => return error(&**message),
            (_, Some(number)) => number,
            _ => return error(format!("type {} doesn't define __round__", value.kind())),
        };
        if !(-30..=300).contains(&precision) || (precision < 0 && number.abs() > 1e37) {
            return error("round with so many digits is not supported");
        }
        match &*method {
            "common" => match (&value, precision < 0) {
                (Value::Float(f), _) if !f.is_finite() => Ok(value),
                (Value::Float(f), false) => {
                    let digits = precision as usize;
                    Ok(Value::Float(format!("{f:.digits$}").parse().unwrap_or(*f)))
                }
                (_, false) => Ok(Value::Int(value.as_int().unwrap_or(0))),
                (_, true) => {
                    let step = 10i128.pow((-precision) as u32);
                    let whole = number.floor() as i128;
                    let whole = value.as_int().unwrap_or(whole);
                    let fraction =
                        if value.as_int().is_some() { 0.0 } else { number.fract().abs() };
                    let rest = whole.rem_euclid(step);
                    let down = whole - rest;
                    let twice = 2 * rest;
                    let up = twice > step
                        || (twice == step && (fraction > 0.0 || (down / step) % 2 != 0));
                    let rounded = if up { down + step } else { down };
                    Ok(match value {
                        Value::Float(_) => Value::Float(rounded as f64),
                        _ => Value::Int(rounded),
                    })
                }
            },
            "ceil" | "floor" => {
                if !number.is_finite() {
                    return error("cannot convert float infinity or NaN to integer");
                }
                let scale =
                    ops::binary(self, BinaryOp::Pow, &Value::Int(10), &Value::Int(precision))?;
                let scaled = match ops::binary(self, BinaryOp::Mul, &value, &scale)? {
                    Value::Float(f) if f.abs() < 1e30 => {
                        let whole = if method == "ceil" { f.ceil() } else { f.floor() };
                        Value::Int(whole as i128)
                    }
                    Value::Float(_) => return error("round of so large a number is not supported"),
                    other => other,
                };
                ops::binary(self, BinaryOp::Div, &scaled, &scale)
            }
            _ => error("method must be common, ceil or floor"),
        }
    }

    pub(crate) fn filesizeformat(&mut self, name: &str, value: Value, given: Given) -> Res<Value> {
        let [binary] = given.bind(name, ["binary"], 0)?;
        let size = match &value {
            Value::Str(s) => parse_float(s),
            _ => ops::number(&value),
        };
        match size {
            Some(size) => self.text(file_size(size, ops::is_set(binary))),
            None => error("filesizeformat needs a number"),
        }
    }
}

pub(crate) fn abs(name: &str, value: Value, given: Given) -> Res<Value> {
    let [] = given.bind(name, [], 0)?;
    match &value {
        Value::Float(f) => Ok(Value::Float(f.abs())),
        _ => match value.as_int().and_then(i128::checked_abs) {
            Some(i) => Ok(Value::Int(i)),
            None => error(format!("bad operand type for abs(): '{}'", value.kind())),
        },
    }
}

pub(crate) fn float(name: &str, value: Value, given: Given) -> Res<Value> {
    let [default] = given.bind(name, ["default"], 0)?;
    let default = default.unwrap_or(Value::Float(0.0));
    match &value {
        Value::Undefined(message) => error(&**message),
        Value::Str(s) | Value::Safe(s) => Ok(parse_float(s).map_or(default, Value::Float)),
        _ => Ok(ops::number(&value).map_or(default, Value::Float)),
    }
}

pub(crate) fn int(value: Value, given: Given) -> Res<Value> {
    let [default, base] = given.bind("int", ["default", "base"], 0)?;
    let default = default.unwrap_or(Value::Int(0));
    let base = integer("int", base, 10)?;
    let whole = |f: f64| match f.abs() < 1e38 {
        true => Ok(Value::Int(f.trunc() as i128)),
        false => error("an integer beyond 128 bits is not supported"),
    };
    match &value {
        Value::Undefined(message) => error(&**message),
        Value::Str(s) | Value::Safe(s) => match parse_int(s, base)? {
            Some(i) => Ok(Value::Int(i)),
            None => match parse_float(s) {
                Some(f) if f.is_finite() => whole(f),
                _ => Ok(default),
            },
        },
        Value::Float(f) if f.is_nan() => Ok(default),
        Value::Float(f) if f.is_infinite() => error("cannot convert float infinity to integer"),
        Value::Float(f) => whole(*f),
        _ => Ok(value.as_int().map_or(default, Value::Int)),
    }
}

/// An argument that is an integer.
pub(crate) fn integer(what: &str, value: Option<Value>, default: i128) -> Res<i128> {
    match value {
        None => Ok(default),
        Some(value) => match value.as_int() {
            Some(i) => Ok(i),
            None => error(format!("{what}: {} is no integer", value.kind())),
        },
    }
}

/// Python's `int(text, base)`; None where it raises `ValueError`.
fn parse_int(s: &str, base: i128) -> Res<Option<i128>> {
    let s = s.trim_matches(is_space);
    let (sign, digits) = match s.strip_prefix(['+', '-']) {
        Some(digits) => (if s.starts_with('-') { "-" } else { "" }, digits),
        None => ("", s),
    };
    let lower = digits.to_lowercase();
    let (mut radix, mut digits) = (base, &*lower);
    let mut prefixed = false;
    for (prefix, value) in [("0x", 16), ("0o", 8), ("0b", 2)] {
        if let Some(tail) = lower.strip_prefix(prefix)
            && (base == 0 || base == value)
        {
            (radix, digits, prefixed) = (value, tail, true);
        }
    }
    if radix == 0 {
        if digits.len() > 1 && digits.starts_with('0') && digits.contains(|c| c != '0' && c != '_')
        {
            return Ok(None);
        }
        radix = 10;
    }
    if !(2..=36).contains(&radix) {
        return Ok(None);
    }
    let digits = if prefixed { digits.strip_prefix('_').unwrap_or(digits) } else { digits };
    let underscores = digits.starts_with('_') || digits.ends_with('_') || digits.contains("__");
    let valid = |c: char| c == '_' || c.is_digit(radix as u32);
    if digits.is_empty() || underscores || !digits.chars().all(valid) {
        return Ok(None);
    }
    let number = format!("{sign}{}", digits.replace('_', ""));
    match i128::from_str_radix(&number, radix as u32) {
        Ok(number) => Ok(Some(number)),
        Err(_) => error("an integer beyond 128 bits is not supported"),
    }
}

/// Python's `float(text)`; None where it raises.
fn parse_float(s: &str) -> Option<f64> {
    let s = s.trim_matches(is_space);
    let unsigned = s.strip_prefix(['+', '-']).unwrap_or(s).to_ascii_lowercase();
    let digit_at = |at: usize| s.as_bytes().get(at).is_some_and(u8::is_ascii_digit);
    let good_underscores =
        s.match_indices('_').all(|(at, _)| at > 0 && digit_at(at - 1) && digit_at(at + 1));
    if !good_underscores {
        return None;
    }
    let named = ["inf", "infinity", "nan"].contains(&&*unsigned);
    let begins = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    (named || begins).then(|| s.replace('_', "").parse().ok())?
}

fn file_size(size: f64, binary: bool) -> String {
    let (base, prefixes): (f64, [&str; 8]) = match binary {
        true => (1024.0, ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"]),
        false => (1000.0, ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"]),
    };
    if size == 1.0 {
        return "1 Byte".into();
    }
    if size < base {
        return format!("{} Bytes", size.trunc() as i128);
    }
    let mut unit = base;
    for prefix in prefixes {
        unit *= base;
        if size < unit {
            return format!("{:.1} {prefix}", base * size / unit);
        }
    }
    format!("{:.1} {}", base * size / unit, prefixes[7])
}

//! Global functions of a chat template.

use super::ops;
use super::repr::text;
use super::run::{Given, Run};
use super::strings::strftime;
use super::value::{Object, Res, Value, Vars, error, range_len};
use std::cell::Cell;
use std::rc::Rc;

/// Numbers that a range may have in Jinja2's sandbox.
const MOST_RANGE: i128 = 100_000;

impl Run {
    /// Calls a global function.
    pub(crate) fn function(&mut self, name: &str, given: Given) -> Res<Value> {
        given.pos.iter().try_for_each(|arg| self.touch(arg))?;
        match name {
            "range" => range(given),
            "dict" => Value::dict(self.entries(given)?),
            "namespace" => {
                let mut vars = Vars::new();
                for (key, value) in self.entries(given)? {
                    let Value::Str(key) = key else {
                        return error("a namespace whose names are no strings is not supported");
                    };
                    if key.starts_with('_') {
                        return error(format!(
                            "a namespace cannot store the underscore-prefixed attribute '{key}'"
                        ));
                    }
                    vars.push((key, value));
                }
                Ok(self.namespace(vars))
            }
            "cycler" => {
                if given.pos.is_empty() || !given.named.is_empty() {
                    return error("cycler() needs items and takes no keyword arguments");
                }
                match Value::list(given.pos)? {
                    Value::List(items) => Ok(Value::object(Object::Cycler(items, Cell::new(0)))),
                    other => Ok(other),
                }
            }
            "joiner" => {
                let [separator] = given.bind(name, ["sep"], 0)?;
                let separator = separator.unwrap_or_else(|| Value::str(", "));
                Ok(Value::object(Object::Joiner(separator, Cell::new(false))))
            }
            "raise_exception" => {
                let [message] = given.bind(name, ["message"], 1)?;
                error(text(self, &message.unwrap_or(Value::None))?)
            }
            "strftime_now" => {
                let [format] = given.bind(name, ["format"], 1)?;
                match format {
                    Some(Value::Str(format)) => {
                        // A letter becomes no more than a date in words.
                        self.room(format.len().saturating_mul(16))?;
                        let time = strftime(&format, self.now);
                        self.text(time)
                    }
                    _ => error("strftime_now() needs a str"),
                }
            }
            _ => error(format!("{name}() is not supported")),
        }
    }

    /// Python's `dict(...)`.
    fn entries(&mut self, given: Given) -> Res<Vec<(Value, Value)>> {
        if given.pos.len() > 1 {
            return error("dict expected at most 1 argument");
        }
        let mut entries = match given.pos.first() {
            None => Vec::new(),
            Some(Value::Dict(d)) => d.entries.clone(),
            Some(pairs) => {
                let mut entries = Vec::new();
                for pair in ops::items(self, pairs)? {
                    let mut pair = ops::items(self, &pair)?;
                    match (pair.pop(), pair.pop(), pair.pop()) {
                        (Some(value), Some(key), None) => {
                            ops::insert(self, &mut entries, key, value)?;
                        }
                        _ => return error("dict() needs pairs"),
                    }
                }
                entries
            }
        };
        for (name, value) in given.named {
            ops::insert(self, &mut entries, Value::Str(name), value)?;
        }
        Ok(entries)
    }
}

fn range(given: Given) -> Res<Value> {
    if !given.named.is_empty() {
        return error("range() takes no keyword arguments");
    }
    let mut numbers = Vec::new();
    for value in &given.pos {
        match (value, value.as_int()) {
            (_, Some(i)) => numbers.push(i),
            (Value::Undefined(message), _) => return error(&**message),
            _ => {
                let kind = value.kind();
                return error(format!("'{kind}' object cannot be interpreted as an integer"));
            }
        }
    }
    let range = match numbers[..] {
        [stop] => [0, stop, 1],
        [start, stop] => [start, stop, 1],
        [_, _, 0] => return error("range() arg 3 must not be zero"),
        [start, stop, step] => [start, stop, step],
        _ => return error("range expected 1 to 3 arguments"),
    };
    let most = i128::from(i64::MAX);
    if range.iter().any(|n| n.abs() > most) || range_len(&range) > MOST_RANGE {
        return error(format!("Range too big. The sandbox blocks ranges larger than {MOST_RANGE}"));
    }
    Ok(Value::Range(Rc::new(range)))
}

//! Attributes of values and Python's methods, as far as the sandbox allows them.

use super::ops;
use super::run::{Given, Run};
use super::value::{Object, Res, Value, View, error, named};
use std::sync::Arc;

#[rustfmt::skip]
const STR: [&str; 47] = [
    "capitalize", "casefold", "center", "count", "encode", "endswith", "expandtabs", "find",
    "format", "format_map", "index", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit",
    "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper", "join",
    "ljust", "lower", "lstrip", "maketrans", "partition", "removeprefix", "removesuffix",
    "replace", "rfind", "rindex", "rjust", "rpartition", "rsplit", "rstrip", "split",
    "splitlines", "startswith", "strip", "swapcase", "title", "translate", "upper", "zfill",
];
const DICT: [&str; 6] = ["copy", "fromkeys", "get", "items", "keys", "values"];
const DICT_UNSAFE: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];
const LIST: [&str; 3] = ["copy", "count", "index"];
#[rustfmt::skip]
const LIST_UNSAFE: [&str; 8] =
    ["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];
#[rustfmt::skip]
const INT: [&str; 6] =
    ["as_integer_ratio", "bit_count", "bit_length", "conjugate", "from_bytes", "to_bytes"];
const FLOAT: [&str; 5] = ["as_integer_ratio", "conjugate", "fromhex", "hex", "is_integer"];

impl Run {
    /// Python's `getattr`: None where there is no such attribute.
    pub(crate) fn attribute(&mut self, object: &Value, name: &str) -> Res<Option<Value>> {
        let method = || Ok(Some(Value::object(Object::Method(object.clone(), Arc::from(name)))));
        let unsafe_method = || {
            let kind = object.kind();
            let message = format!("access to attribute '{name}' of '{kind}' object is unsafe.");
            Ok(Some(Value::undefined(message)))
        };
        match object {
            Value::Undefined(message) => error(&**message),
            Value::Str(_) | Value::Safe(_) if STR.contains(&name) => method(),
            Value::Dict(_) if DICT.contains(&name) => method(),
            Value::Dict(_) if DICT_UNSAFE.contains(&name) => unsafe_method(),
            Value::List(_) if LIST.contains(&name) => method(),
            Value::List(_) if LIST_UNSAFE.contains(&name) => unsafe_method(),
            Value::Tuple(s) if s.group && name == "grouper" => Ok(Some(s.items[0].clone())),
            Value::Tuple(s) if s.group && name == "list" => Ok(Some(s.items[1].clone())),
            Value::Tuple(_) | Value::Range(_) if ["count", "index"].contains(&name) => method(),
            Value::Range(r) => {
                let part = ["start", "stop", "step"].iter().position(|n| *n == name);
                Ok(part.map(|i| Value::Int(r[i])))
            }
            Value::Int(_) | Value::Bool(_) => match name {
                "real" | "numerator" => Ok(object.as_int().map(Value::Int)),
                "imag" => Ok(Some(Value::Int(0))),
                "denominator" => Ok(Some(Value::Int(1))),
                _ if INT.contains(&name) => method(),
                _ => Ok(None),
            },
            Value::Float(f) => match name {
                "real" => Ok(Some(Value::Float(*f))),
                "imag" => Ok(Some(Value::Float(0.0))),
                _ if FLOAT.contains(&name) => method(),
                _ => Ok(None),
            },
            Value::View(..) if ["isdisjoint", "mapping"].contains(&name) => {
                error(format!("'{name}' of {} is not supported", object.kind()))
            }
            Value::Object(o) => match &**o {
                Object::Namespace(vars, _) => Ok(named(&vars.borrow(), name).cloned()),
                Object::Loop(_) if ["cycle", "changed"].contains(&name) => method(),
                Object::Loop(cell) => self.loop_attribute(cell, name),
                Object::Cycler(items, at) => match name {
                    "next" | "reset" => method(),
                    "current" => Ok(Some(items.items[at.get()].clone())),
                    "pos" => Ok(Some(Value::Int(at.get() as i128))),
                    "items" => {
                        self.spend_items(items.items.len())?;
                        Value::tuple(items.items.clone()).map(Some)
                    }
                    _ => Ok(None),
                },
                Object::Joiner(separator, used) => match name {
                    "sep" => Ok(Some(separator.clone())),
                    "used" => Ok(Some(Value::Bool(used.get()))),
                    _ => Ok(None),
                },
                Object::Macro(m) => match name {
                    "name" => Ok(Some(m.def.name.clone().map_or(Value::None, Value::Str))),
                    "arguments" => {
                        let names = m.def.params.iter().cloned().map(Value::Str).collect();
                        Value::tuple(names).map(Some)
                    }
                    "catch_kwargs" => Ok(Some(Value::Bool(m.def.takes_kwargs))),
                    "catch_varargs" => Ok(Some(Value::Bool(m.def.takes_varargs))),
                    "caller" => Ok(Some(Value::Bool(m.def.takes_caller))),
                    _ => Ok(None),
                },
                Object::Function("dict") if name == "fromkeys" => method(),
                Object::Function(_) | Object::Method(..) => Ok(None),
            },
            _ => Ok(None),
        }
    }

    /// Calls a method that [`Run::attribute`] found.
    pub(crate) fn method(&mut self, owner: &Value, name: &str, given: Given) -> Res<Value> {
        self.touch(owner)?;
        given.pos.iter().try_for_each(|arg| self.touch(arg))?;
        match owner {
            Value::Str(s) => self.str_method(s, name, given),
            Value::Safe(_) => {
                error(format!("the method '{name}' of text marked safe is not supported"))
            }
            Value::Dict(d) => match name {
                "get" => {
                    let [key, default] = positional(name, given, 1)?;
                    let key = key.unwrap_or(Value::None);
                    ops::hashable(self, &key)?;
                    let found = ops::lookup(self, &d.entries, &key)?.cloned();
                    Ok(found.or(default).unwrap_or(Value::None))
                }
                "fromkeys" => self.fromkeys(given),
                _ => {
                    let [] = positional(name, given, 0)?;
                    Ok(match name {
                        "items" => Value::View(View::Items, d.clone()),
                        "keys" => Value::View(View::Keys, d.clone()),
                        "values" => Value::View(View::Values, d.clone()),
                        _ => Value::dict(d.entries.clone())?,
                    })
                }
            },
            Value::List(_) | Value::Tuple(_) | Value::Range(_) => {
                self.sequence_method(owner, name, given)
            }
            Value::Int(_) | Value::Bool(_) => {
                let [] = positional(name, given, 0)?;
                let number = owner.as_int().unwrap_or(0);
                let magnitude = number.unsigned_abs();
                match name {
                    "bit_length" => Ok(Value::Int(i128::from(128 - magnitude.leading_zeros()))),
                    "bit_count" => Ok(Value::Int(i128::from(magnitude.count_ones()))),
                    "conjugate" => Ok(Value::Int(number)),
                    "as_integer_ratio" => Value::tuple(vec![Value::Int(number), Value::Int(1)]),
                    _ => error(format!("the method '{name}' of int is not supported")),
                }
            }
            Value::Float(f) => {
                let [] = positional(name, given, 0)?;
                match name {
                    "is_integer" => Ok(Value::Bool(f.is_finite() && f.fract() == 0.0)),
                    "conjugate" => Ok(Value::Float(*f)),
                    _ => error(format!("the method '{name}' of float is not supported")),
                }
            }
            Value::Object(o) => self.object_method(o, name, given),
            _ => error(format!("the method '{name}' of {} is not supported", owner.kind())),
        }
    }

    fn object_method(&mut self, object: &Object, name: &str, given: Given) -> Res<Value> {
        match object {
            Object::Cycler(items, at) => {
                let [] = positional(name, given, 0)?;
                if name == "reset" {
                    at.set(0);
                    return Ok(Value::None);
                }
                let item = items.items[at.get()].clone();
                at.set((at.get() + 1) % items.items.len());
                Ok(item)
            }
            Object::Loop(cell) if name == "cycle" => {
                if !given.named.is_empty() {
                    return error("cycle() takes no keyword arguments");
                }
                if given.pos.is_empty() {
                    return error("no items for cycling given");
                }
                let at = cell.borrow().index0.max(0) as usize % given.pos.len();
                Ok(given.pos[at].clone())
            }
            Object::Loop(cell) => {
                if !given.named.is_empty() {
                    return error("changed() takes no keyword arguments");
                }
                let now = Value::list(given.pos)?;
                let before = cell.borrow_mut().changed.replace(now.clone());
                let same = match before {
                    Some(before) => ops::equal(self, &before, &now)?,
                    None => false,
                };
                Ok(Value::Bool(!same))
            }
            Object::Function(_) => self.fromkeys(given),
            _ => error(format!("the method '{name}' is not supported")),
        }
    }

    fn fromkeys(&mut self, given: Given) -> Res<Value> {
        let [keys, value] = positional("fromkeys", given, 1)?;
        let keys = ops::items(self, &keys.unwrap_or(Value::None))?;
        let mut entries = Vec::new();
        for key in keys {
            ops::insert(self, &mut entries, key, value.clone().unwrap_or(Value::None))?;
        }
        Value::dict(entries)
    }

    fn sequence_method(&mut self, owner: &Value, name: &str, given: Given) -> Res<Value> {
        if name == "copy" {
            let [] = positional(name, given, 0)?;
            return Value::list(ops::items(self, owner)?);
        }
        let [item, start, stop] = positional(name, given, 1)?;
        let item = item.unwrap_or(Value::None);
        let items = ops::items(self, owner)?;
        if name == "count" {
            let mut count = 0;
            for other in &items {
                count += i128::from(ops::equal(self, other, &item)?);
            }
            return Ok(Value::Int(count));
        }
        let (from, to) = bounds(items.len(), start, stop)?;
        let inside = items.get(from..to).unwrap_or_default();
        match ops::place_of(self, inside, &item)? {
            Some(i) => Ok(Value::Int((from + i) as i128)),
            None => error(format!("the value is not in the {}", owner.kind())),
        }
    }
}

/// The values of positional parameters, of which the first `required` must be given.
pub(crate) fn positional<const N: usize>(
    what: &str,
    given: Given,
    required: usize,
) -> Res<[Option<Value>; N]> {
    match given.named.is_empty() {
        true if given.pos.len() < required => {
            error(format!("{what}() needs at least {required} argument(s)"))
        }
        true => given.bind(what, ["?"; N], required),
        false => error(format!("{what}() takes no keyword arguments")),
    }
}

pub(crate) fn integer(what: &str, value: &Value) -> Res<i128> {
    match value.as_int() {
        Some(i) => Ok(i),
        None => {
            let kind = value.kind();
            error(format!("{what}(): '{kind}' object cannot be interpreted as an integer"))
        }
    }
}

/// Where a slice of `len` items from `start` to `stop` lies.
pub(crate) fn bounds(len: usize, start: Option<Value>, stop: Option<Value>) -> Res<(usize, usize)> {
    let place = |value: Option<Value>, default: usize| match value {
        None | Some(Value::None) => Ok(default),
        Some(value) => {
            let at = integer("index", &value)?;
            let at = if at < 0 { at.saturating_add(len as i128) } else { at };
            Ok(at.clamp(0, len as i128) as usize)
        }
    };
    Ok((place(start, 0)?, place(stop, len)?))
}

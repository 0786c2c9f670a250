//! Attributes of values and Python's methods, as far as the sandbox allows them.

use super::format::str_format;
use super::ops;
use super::run::{Given, Run};
use super::strings::{
    capitalize, case_is, casefold, characters_are, expandtabs, is_identifier, is_space,
    rsplit_space, split_space, splitlines, swapcase, title,
};
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
                    "current" => Ok(Some(items[at.get()].clone())),
                    "pos" => Ok(Some(Value::Int(at.get() as i128))),
                    "items" => Value::tuple(items.clone()).map(Some),
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
        match owner {
            Value::Str(s) => self.str_method(s, name, given),
            Value::Safe(_) => {
                error(format!("the method '{name}' of text marked safe is not supported"))
            }
            Value::Dict(d) => match name {
                "get" => {
                    let [key, default] = positional(name, given, 1)?;
                    let key = key.unwrap_or(Value::None);
                    ops::hashable(&key)?;
                    let found = ops::lookup(&d.entries, &key).cloned();
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
            Value::Object(o) => match &**o {
                Object::Cycler(items, at) => {
                    let [] = positional(name, given, 0)?;
                    if name == "reset" {
                        at.set(0);
                        return Ok(Value::None);
                    }
                    let item = items[at.get()].clone();
                    at.set((at.get() + 1) % items.len());
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
                    let mut state = cell.borrow_mut();
                    let same = state.changed.as_ref().is_some_and(|old| {
                        old.len() == given.pos.len()
                            && old.iter().zip(&given.pos).all(|(a, b)| ops::equal(a, b))
                    });
                    if !same {
                        state.changed = Some(given.pos);
                    }
                    Ok(Value::Bool(!same))
                }
                Object::Function(_) => self.fromkeys(given),
                _ => error(format!("the method '{name}' is not supported")),
            },
            _ => error(format!("the method '{name}' of {} is not supported", owner.kind())),
        }
    }

    fn fromkeys(&mut self, given: Given) -> Res<Value> {
        let [keys, value] = positional("fromkeys", given, 1)?;
        let keys = ops::items(self, &keys.unwrap_or(Value::None))?;
        let mut entries = Vec::new();
        for key in keys {
            self.spend(entries.len() as u64 / 8)?;
            ops::insert(&mut entries, key, value.clone().unwrap_or(Value::None))?;
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
            let count = items.iter().filter(|v| ops::equal(v, &item)).count();
            return Ok(Value::Int(count as i128));
        }
        let (from, to) = bounds(items.len(), start, stop)?;
        match (from..to).find(|&i| ops::equal(&items[i], &item)) {
            Some(i) => Ok(Value::Int(i as i128)),
            None => error(format!("the value is not in the {}", owner.kind())),
        }
    }

    fn str_method(&mut self, s: &Arc<str>, name: &str, given: Given) -> Res<Value> {
        // Most methods read the text once.
        self.spend(s.len() as u64 / 8)?;
        match name {
            "strip" | "lstrip" | "rstrip" => {
                let [chars] = positional(name, given, 0)?;
                let set = optional_text(name, chars)?;
                let cut = |c: char| match &set {
                    Some(set) => set.contains(c),
                    None => is_space(c),
                };
                self.text(match name {
                    "strip" => s.trim_matches(cut),
                    "lstrip" => s.trim_start_matches(cut),
                    _ => s.trim_end_matches(cut),
                })
            }
            "split" | "rsplit" => {
                let [separator, limit] = given.bind(name, ["sep", "maxsplit"], 0)?;
                let separator = optional_text(name, separator)?;
                let limit = match limit {
                    None => -1,
                    Some(limit) => integer(name, &limit)?,
                };
                let limit = usize::try_from(limit).ok();
                let parts: Vec<&str> = match (&separator, name) {
                    (None, "split") => split_space(s, limit),
                    (None, _) => rsplit_space(s, limit),
                    (Some(separator), _) if separator.is_empty() => {
                        return error("empty separator");
                    }
                    (Some(separator), "split") => match limit {
                        None => s.split(&**separator).collect(),
                        Some(n) => s.splitn(n.saturating_add(1), &**separator).collect(),
                    },
                    (Some(separator), _) => {
                        let mut parts: Vec<&str> = match limit {
                            None => s.rsplit(&**separator).collect(),
                            Some(n) => s.rsplitn(n.saturating_add(1), &**separator).collect(),
                        };
                        parts.reverse();
                        parts
                    }
                };
                self.texts(parts)
            }
            "splitlines" => {
                let [keep] = given.bind(name, ["keepends"], 0)?;
                self.texts(splitlines(s, ops::is_set(keep)))
            }
            "startswith" | "endswith" => {
                let [affix, start, stop] = positional(name, given, 1)?;
                let part = span(s, start, stop)?.map(|(_, part)| part);
                let test = |affix: &Value| match (affix.as_str(), part) {
                    (None, _) => {
                        let kind = affix.kind();
                        error(format!("{name} needs a str or a tuple of str, not {kind}"))
                    }
                    (_, None) => Ok(false),
                    (Some(affix), Some(part)) if name == "startswith" => {
                        Ok(part.starts_with(affix))
                    }
                    (Some(affix), Some(part)) => Ok(part.ends_with(affix)),
                };
                match affix.unwrap_or(Value::None) {
                    Value::Tuple(affixes) => {
                        for affix in &affixes.items {
                            if test(affix)? {
                                return Ok(Value::Bool(true));
                            }
                        }
                        Ok(Value::Bool(false))
                    }
                    affix => test(&affix).map(Value::Bool),
                }
            }
            "find" | "rfind" | "index" | "rindex" | "count" => {
                let [part, start, stop] = positional(name, given, 1)?;
                let part = needed_text(name, part)?;
                let Some((offset, inside)) = span(s, start, stop)? else {
                    return match name {
                        "count" => Ok(Value::Int(0)),
                        "find" | "rfind" => Ok(Value::Int(-1)),
                        _ => error("substring not found"),
                    };
                };
                if name == "count" {
                    return Ok(Value::Int(inside.matches(&*part).count() as i128));
                }
                let found = match name {
                    "find" | "index" => inside.find(&*part),
                    _ => inside.rfind(&*part),
                };
                match found {
                    Some(at) => Ok(Value::Int((offset + inside[..at].chars().count()) as i128)),
                    None if name.ends_with("find") => Ok(Value::Int(-1)),
                    None => error("substring not found"),
                }
            }
            "replace" => {
                let [old, new, count] = positional(name, given, 2)?;
                let (old, new) = (needed_text(name, old)?, needed_text(name, new)?);
                let count = count.map_or(Ok(-1), |count| integer(name, &count))?;
                self.replaced(s, &old, &new, count)
            }
            "join" => {
                let [parts] = positional(name, given, 1)?;
                let parts = ops::items(self, &parts.unwrap_or(Value::None))?;
                let mut text = String::new();
                for (i, part) in parts.iter().enumerate() {
                    let Some(part) = part.as_str() else {
                        let kind = part.kind();
                        return error(format!(
                            "sequence item {i}: expected str instance, {kind} found"
                        ));
                    };
                    text.push_str(if i > 0 { s } else { "" });
                    text.push_str(part);
                    self.room(text.len())?;
                }
                self.text(text)
            }
            "partition" | "rpartition" => {
                let [separator] = positional(name, given, 1)?;
                let separator = needed_text(name, separator)?;
                if separator.is_empty() {
                    return error("empty separator");
                }
                let parts = match name {
                    "partition" => s.split_once(&*separator),
                    _ => s.rsplit_once(&*separator),
                };
                let parts = match (parts, name) {
                    (Some((left, right)), _) => [left, &separator, right],
                    (None, "partition") => [s, "", ""],
                    (None, _) => ["", "", s],
                };
                Value::tuple(parts.iter().map(Value::str).collect())
            }
            "removeprefix" | "removesuffix" => {
                let [affix] = positional(name, given, 1)?;
                let affix = needed_text(name, affix)?;
                let rest = match name {
                    "removeprefix" => s.strip_prefix(&*affix),
                    _ => s.strip_suffix(&*affix),
                };
                self.text(rest.unwrap_or(s))
            }
            "ljust" | "rjust" | "center" => {
                let [width, fill] = positional(name, given, 1)?;
                let width = width_of(name, width)?;
                let fill = fill.map_or(Ok(Arc::from(" ")), |fill| needed_text(name, Some(fill)))?;
                if fill.chars().count() != 1 {
                    return error("The fill character must be exactly one character long");
                }
                let missing = width.saturating_sub(s.chars().count());
                self.room(missing.saturating_mul(fill.len()).saturating_add(s.len()))?;
                let left = match name {
                    "ljust" => 0,
                    "rjust" => missing,
                    _ => missing / 2 + (missing & width & 1),
                };
                self.text(fill.repeat(left) + s + &fill.repeat(missing - left))
            }
            "zfill" => {
                let [width] = positional(name, given, 1)?;
                let width = width_of(name, width)?;
                let missing = width.saturating_sub(s.chars().count());
                self.room(missing.saturating_add(s.len()))?;
                let (sign, digits) = s.split_at(usize::from(s.starts_with(['+', '-'])));
                self.text(sign.to_owned() + &"0".repeat(missing) + digits)
            }
            "expandtabs" => {
                let [size] = given.bind(name, ["tabsize"], 0)?;
                let size = size.map_or(Ok(8), |size| width_of(name, Some(size)))?;
                match expandtabs(s, size, 32 << 20) {
                    Some(text) => self.text(text),
                    None => error("expandtabs makes a text that is too long"),
                }
            }
            "format" => {
                let text = str_format(self, s, &given)?;
                self.text(text)
            }
            "format_map" => {
                let [map] = positional(name, given, 1)?;
                let Some(Value::Dict(map)) = map else { return error("format_map needs a dict") };
                let named = map.entries.iter().filter_map(|(k, v)| match k {
                    Value::Str(name) => Some((name.clone(), v.clone())),
                    _ => None,
                });
                let given = Given { pos: Vec::new(), named: named.collect() };
                let text = str_format(self, s, &given)?;
                self.text(text)
            }
            "encode" | "translate" | "maketrans" => {
                error(format!("the method '{name}' of str is not supported"))
            }
            _ => {
                let [] = positional(name, given, 0)?;
                match name {
                    "upper" => self.text(s.to_uppercase()),
                    "lower" => self.text(s.to_lowercase()),
                    "title" => self.text(title(s)),
                    "capitalize" => self.text(capitalize(s)),
                    "swapcase" => self.text(swapcase(s)),
                    "casefold" => self.text(casefold(s)?),
                    "isupper" | "islower" | "istitle" => Ok(Value::Bool(case_is(s, name))),
                    "isidentifier" => Ok(Value::Bool(is_identifier(s))),
                    _ => characters_are(s, name).map(Value::Bool),
                }
            }
        }
    }

    /// `str.replace`; a negative `count` replaces all.
    pub(crate) fn replaced(&mut self, s: &str, old: &str, new: &str, count: i128) -> Res<Value> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let times = s.matches(old).count().min(count);
        self.room(s.len().saturating_add(times.saturating_mul(new.len())))?;
        self.text(s.replacen(old, new, count))
    }

    fn texts(&mut self, parts: Vec<&str>) -> Res<Value> {
        self.spend_items(parts.len())?;
        Value::list(parts.into_iter().map(Value::str).collect())
    }
}

/// The values of positional parameters, of which the first `required` must be given.
fn positional<const N: usize>(
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

fn needed_text(what: &str, value: Option<Value>) -> Res<Arc<str>> {
    match value {
        Some(Value::Str(s) | Value::Safe(s)) => Ok(s),
        Some(value) => error(format!("{what}() needs a str, not {}", value.kind())),
        None => error(format!("{what}() needs a str")),
    }
}

fn optional_text(what: &str, value: Option<Value>) -> Res<Option<Arc<str>>> {
    match value {
        None | Some(Value::None) => Ok(None),
        value => needed_text(what, value).map(Some),
    }
}

fn integer(what: &str, value: &Value) -> Res<i128> {
    match value.as_int() {
        Some(i) => Ok(i),
        None => {
            let kind = value.kind();
            error(format!("{what}(): '{kind}' object cannot be interpreted as an integer"))
        }
    }
}

/// Columns that a text shall take.
fn width_of(what: &str, value: Option<Value>) -> Res<usize> {
    integer(what, &value.unwrap_or(Value::None)).map(ops::as_count)
}

/// Where a slice of `len` items from `start` to `stop` lies.
fn bounds(len: usize, start: Option<Value>, stop: Option<Value>) -> Res<(usize, usize)> {
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

/// The part of `s` between two places counted in characters, and where it starts; None where the
/// start lies behind the end.
fn span(s: &str, start: Option<Value>, stop: Option<Value>) -> Res<Option<(usize, &str)>> {
    if start.is_none() && stop.is_none() {
        return Ok(Some((0, s)));
    }
    let len = s.chars().count();
    let beyond = start.as_ref().and_then(Value::as_int).is_some_and(|at| at > len as i128);
    let (from, to) = bounds(len, start, stop)?;
    if beyond || from > to {
        return Ok(None);
    }
    let byte = |at: usize| s.char_indices().nth(at).map_or(s.len(), |(byte, _)| byte);
    Ok(Some((from, &s[byte(from)..byte(to)])))
}

//! Python's methods of texts.

use super::format::str_format;
use super::methods::{bounds, integer, positional};
use super::ops;
use super::run::{Given, Run};
use super::strings::{
    Characters, capitalize, case_is, casefold, characters_are, expandtabs, is_identifier, is_space,
    rsplit_space, split_space, splitlines, swapcase, title,
};
use super::value::{Res, Value, error};
use std::sync::Arc;

impl Run {
    /// Calls a method of a text.
    pub(crate) fn str_method(&mut self, s: &Arc<str>, name: &str, given: Given) -> Res<Value> {
        match name {
            "strip" | "lstrip" | "rstrip" => self.strip(s, name, given),
            "split" | "rsplit" => self.split(s, name, given),
            "splitlines" => {
                let [keep] = given.bind(name, ["keepends"], 0)?;
                self.texts(splitlines(s, ops::is_set(keep)))
            }
            "startswith" | "endswith" => self.has_affix(s, name, given),
            "find" | "rfind" | "index" | "rindex" | "count" => find(s, name, given),
            "replace" => {
                let [old, new, count] = positional(name, given, 2)?;
                let (old, new) = (needed_text(name, old)?, needed_text(name, new)?);
                let count = count.map_or(Ok(-1), |count| integer(name, &count))?;
                self.replaced(s, &old, &new, count)
            }
            "join" => self.join_parts(s, name, given),
            "partition" | "rpartition" => partition(s, name, given),
            "removeprefix" | "removesuffix" => self.remove_affix(s, name, given),
            "ljust" | "rjust" | "center" => self.justify(s, name, given),
            "zfill" => self.zfill(s, name, given),
            "expandtabs" => {
                let [size] = given.bind(name, ["tabsize"], 0)?;
                let size = size.map_or(Ok(8), |size| width_of(name, Some(size)))?;
                match expandtabs(s, size, self.limits.text) {
                    Some(text) => self.text(text),
                    None => error("expandtabs makes a text that is too long"),
                }
            }
            "format" => {
                let text = str_format(self, s, &given)?;
                self.text(text)
            }
            "format_map" => self.format_map(s, name, given),
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

    fn strip(&mut self, s: &Arc<str>, name: &str, given: Given) -> Res<Value> {
        let [chars] = positional(name, given, 0)?;
        let set = optional_text(name, chars)?.map(|set| Characters::of(&set));
        let cut = |c: char| match &set {
            Some(set) => set.has(c),
            None => is_space(c),
        };
        self.text(match name {
            "strip" => s.trim_matches(cut),
            "lstrip" => s.trim_start_matches(cut),
            _ => s.trim_end_matches(cut),
        })
    }

    fn split(&mut self, s: &Arc<str>, name: &str, given: Given) -> Res<Value> {
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

    fn join_parts(&mut self, s: &Arc<str>, name: &str, given: Given) -> Res<Value> {
        let [parts] = positional(name, given, 1)?;
        let parts = ops::items(self, &parts.unwrap_or(Value::None))?;
        let mut text = String::new();
        for (i, part) in parts.iter().enumerate() {
            let Some(part) = part.as_str() else {
                let kind = part.kind();
                return error(format!("sequence item {i}: expected str instance, {kind} found"));
            };
            text.push_str(if i > 0 { s } else { "" });
            text.push_str(part);
            self.room(text.len())?;
        }
        self.text(text)
    }

    fn remove_affix(&mut self, s: &Arc<str>, name: &str, given: Given) -> Res<Value> {
        let [affix] = positional(name, given, 1)?;
        let affix = needed_text(name, affix)?;
        let rest = match name {
            "removeprefix" => s.strip_prefix(&*affix),
            _ => s.strip_suffix(&*affix),
        };
        self.text(rest.unwrap_or(s))
    }

    fn justify(&mut self, s: &Arc<str>, name: &str, given: Given) -> Res<Value> {
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

    fn zfill(&mut self, s: &Arc<str>, name: &str, given: Given) -> Res<Value> {
        let [width] = positional(name, given, 1)?;
        let width = width_of(name, width)?;
        let missing = width.saturating_sub(s.chars().count());
        self.room(missing.saturating_add(s.len()))?;
        let (sign, digits) = s.split_at(usize::from(s.starts_with(['+', '-'])));
        self.text(sign.to_owned() + &"0".repeat(missing) + digits)
    }

    fn format_map(&mut self, s: &Arc<str>, name: &str, given: Given) -> Res<Value> {
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

    fn has_affix(&mut self, s: &Arc<str>, name: &str, given: Given) -> Res<Value> {
        let [affix, start, stop] = positional(name, given, 1)?;
        let part = span(s, start, stop)?.map(|(_, part)| part);
        let affixes = match affix {
            Some(Value::Tuple(affixes)) => affixes.items.clone(),
            affix => vec![affix.unwrap_or(Value::None)],
        };
        for affix in &affixes {
            self.touch(affix)?;
            let has = match (affix.as_str(), part) {
                (None, _) => {
                    let kind = affix.kind();
                    return error(format!("{name} needs a str or a tuple of str, not {kind}"));
                }
                (_, None) => false,
                (Some(affix), Some(part)) if name == "startswith" => part.starts_with(affix),
                (Some(affix), Some(part)) => part.ends_with(affix),
            };
            if has {
                return Ok(Value::Bool(true));
            }
        }
        Ok(Value::Bool(false))
    }
}

fn find(s: &Arc<str>, name: &str, given: Given) -> Res<Value> {
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

fn partition(s: &Arc<str>, name: &str, given: Given) -> Res<Value> {
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

/// Columns that a text shall take.
fn width_of(what: &str, value: Option<Value>) -> Res<usize> {
    integer(what, &value.unwrap_or(Value::None)).map(ops::as_count)
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

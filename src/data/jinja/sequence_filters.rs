//! Jinja2's filters of sequences.

use super::ast::{BinaryOp, CompareOp};
use super::names;
use super::number_filters::integer;
use super::ops;
use super::repr::text;
use super::run::{Given, Run};
use super::value::{Fail, Iter, Res, Value, View, error, view_items};
use std::cell::RefCell;
use std::rc::Rc;

impl Run {
    pub(crate) fn last(&mut self, name: &str, value: Value, given: Given) -> Res<Value> {
        let [] = given.bind(name, [], 0)?;
        match value {
            Value::Iter(_) => error("'generator' object is not reversible"),
            value => {
                let last = ops::items(self, &value)?.pop();
                Ok(last.unwrap_or_else(|| Value::undefined("No last item, sequence was empty.")))
            }
        }
    }

    pub(crate) fn reverse(&mut self, name: &str, value: Value, given: Given) -> Res<Value> {
        let [] = given.bind(name, [], 0)?;
        match &value {
            Value::Str(s) | Value::Safe(s) => {
                let text: String = s.chars().rev().collect();
                self.like(&value, text)
            }
            _ => {
                let mut items = ops::items(self, &value)?;
                items.reverse();
                match value {
                    Value::Iter(_) => Value::list(items),
                    _ => Ok(Value::iter(items)),
                }
            }
        }
    }

    pub(crate) fn sort(&mut self, name: &str, value: Value, given: Given) -> Res<Value> {
        let [reverse, case, attribute] =
            given.bind(name, ["reverse", "case_sensitive", "attribute"], 0)?;
        let fold = !ops::is_set(case);
        let getters = self.getters(attribute)?;
        let mut keyed = Vec::new();
        for item in ops::items(self, &value)? {
            let mut parts = Vec::new();
            for getter in &getters {
                let part = self.get_path(&item, getter, None)?;
                parts.push(if fold { folded(part) } else { part });
            }
            keyed.push((Value::list(parts)?, item));
        }
        self.sorted(keyed, ops::is_set(reverse))
    }

    pub(crate) fn unique(&mut self, name: &str, value: Value, given: Given) -> Res<Value> {
        let [case, attribute] = given.bind(name, ["case_sensitive", "attribute"], 0)?;
        let fold = !ops::is_set(case);
        let path = path(attribute)?;
        let mut seen: Vec<Value> = Vec::new();
        self.lazily(&value, |run, item, out| {
            let key = run.get_path(&item, &path, None)?;
            let key = if fold { folded(key) } else { key };
            ops::hashable(run, &key)?;
            if !ops::among(run, &seen, &key)? {
                seen.push(key);
                out.push(item);
            }
            Ok(())
        })
    }

    pub(crate) fn extreme(&mut self, name: &str, value: Value, given: Given) -> Res<Value> {
        let [case, attribute] = given.bind(name, ["case_sensitive", "attribute"], 0)?;
        let fold = !ops::is_set(case);
        let path = path(attribute)?;
        let mut best: Option<(Value, Value)> = None;
        for item in ops::items(self, &value)? {
            let key = self.get_path(&item, &path, None)?;
            let key = if fold { folded(key) } else { key };
            let better = match &best {
                None => true,
                Some((old, _)) if name == "min" => ops::ordered(self, CompareOp::Lt, &key, old)?,
                Some((old, _)) => ops::ordered(self, CompareOp::Gt, &key, old)?,
            };
            if better {
                best = Some((key, item));
            }
        }
        let none = || Value::undefined("No aggregated item, sequence was empty.");
        Ok(best.map_or_else(none, |(_, item)| item))
    }

    pub(crate) fn sum(&mut self, name: &str, value: Value, given: Given) -> Res<Value> {
        let [attribute, start] = given.bind(name, ["attribute", "start"], 0)?;
        let path = path(attribute)?;
        let mut sum = start.unwrap_or(Value::Int(0));
        if sum.as_str().is_some() {
            return error("sum() can't sum strings [use ''.join(seq) instead]");
        }
        for item in ops::items(self, &value)? {
            let item = self.get_path(&item, &path, None)?;
            sum = ops::binary(self, BinaryOp::Add, &sum, &item)?;
        }
        Ok(sum)
    }

    pub(crate) fn batch(&mut self, name: &str, value: Value, given: Given) -> Res<Value> {
        let [count, fill] = given.bind(name, ["linecount", "fill_with"], 1)?;
        let count = integer(name, count, 0)?;
        let mut rows: Vec<Vec<Value>> = Vec::new();
        for item in ops::items(self, &value)? {
            match rows.last_mut() {
                Some(row) if row.len() as i128 != count => row.push(item),
                None if count == 0 => rows.extend([Vec::new(), vec![item]]),
                _ => rows.push(vec![item]),
            }
        }
        if let (Some(row), Some(fill)) = (rows.last_mut(), fill)
            && !matches!(fill, Value::None)
        {
            let missing = usize::try_from(count - row.len() as i128).unwrap_or(0);
            self.spend_items(missing)?;
            row.extend(std::iter::repeat_n(fill, missing));
        }
        let rows = rows.into_iter().map(Value::list).collect::<Res<Vec<_>>>()?;
        Ok(Value::iter(rows))
    }

    pub(crate) fn joined(&mut self, name: &str, value: Value, given: Given) -> Res<Value> {
        let [separator, attribute] = given.bind(name, ["d", "attribute"], 0)?;
        let separator = text(self, &separator.unwrap_or_else(|| Value::str("")))?;
        let path = path(attribute)?;
        let mut joined = String::new();
        for (i, item) in ops::items(self, &value)?.into_iter().enumerate() {
            let item = self.get_path(&item, &path, None)?;
            joined.push_str(if i > 0 { &separator } else { "" });
            joined.push_str(&text(self, &item)?);
            self.room(joined.len())?;
        }
        self.text(joined)
    }

    pub(crate) fn first(&mut self, value: &Value) -> Res<Value> {
        let none = || Value::undefined("No first item, sequence was empty.");
        if let Value::Iter(iter) = value {
            let mut rest = iter.borrow_mut();
            return match rest.items.pop_front() {
                Some(item) => Ok(item),
                None => match rest.fails.take() {
                    Some(message) => error(message),
                    None => Ok(none()),
                },
            };
        }
        Ok(ops::items(self, value)?.into_iter().next().unwrap_or_else(none))
    }

    pub(crate) fn map(&mut self, value: Value, mut given: Given) -> Res<Value> {
        if !ops::truth(&value) {
            return Ok(Value::iter(Vec::new()));
        }
        if given.pos.is_empty()
            && let Some(attribute) = given.take("attribute")
        {
            let path = match path(Some(attribute)) {
                Ok(path) => path,
                Err(Fail::Error(message)) => return Ok(failing(Vec::new(), &message)),
                Err(other) => return Err(other),
            };
            let default = given.take("default");
            if let Some((name, _)) = given.named.first() {
                let message = format!("Unexpected keyword argument '{name}'");
                return Ok(failing(Vec::new(), &message));
            }
            return self.lazily(&value, |run, item, out| {
                out.push(run.get_path(&item, &path, default.as_ref())?);
                Ok(())
            });
        }
        if given.pos.is_empty() {
            return Ok(failing(Vec::new(), "map requires a filter argument"));
        }
        let filter = text(self, &given.pos.remove(0))?;
        if !names::FILTERS.contains(&&*filter) {
            return Ok(failing(Vec::new(), &format!("No filter named '{filter}'.")));
        }
        self.lazily(&value, |run, item, out| {
            out.push(run.filter(&filter, item, given.clone())?);
            Ok(())
        })
    }

    pub(crate) fn select(&mut self, name: &str, value: Value, mut given: Given) -> Res<Value> {
        if !ops::truth(&value) {
            return Ok(Value::iter(Vec::new()));
        }
        let keep = name.starts_with("select");
        let path = match name.ends_with("attr") {
            false => Vec::new(),
            true if given.pos.is_empty() => {
                return Ok(failing(Vec::new(), "Missing parameter for attribute name"));
            }
            true => path(Some(given.pos.remove(0)))?,
        };
        let test = match given.pos.is_empty() {
            true => None,
            false => Some(text(self, &given.pos.remove(0))?),
        };
        self.lazily(&value, |run, item, out| {
            let subject = run.get_path(&item, &path, None)?;
            let holds = match &test {
                None => ops::truth(&subject),
                Some(test) => run.test(test, &subject, given.clone())?,
            };
            if holds == keep {
                out.push(item);
            }
            Ok(())
        })
    }

    pub(crate) fn dictsort(&mut self, value: Value, given: Given) -> Res<Value> {
        let [case, by, reverse] = given.bind("dictsort", ["case_sensitive", "by", "reverse"], 0)?;
        let fold = !ops::is_set(case);
        let by_value = match by.as_ref().map(|by| by.as_str()) {
            None | Some(Some("key")) => false,
            Some(Some("value")) => true,
            _ => return error("You can only sort by either \"key\" or \"value\""),
        };
        let Value::Dict(d) = &value else {
            if let Value::Undefined(message) = &value {
                return error(&**message);
            }
            return error(format!("'{}' object has no attribute 'items'", value.kind()));
        };
        let mut keyed = Vec::new();
        for (key, item) in &d.entries {
            let by = if by_value { item.clone() } else { key.clone() };
            let by = if fold { folded(by) } else { by };
            keyed.push((by, Value::tuple(vec![key.clone(), item.clone()])?));
        }
        self.sorted(keyed, ops::is_set(reverse))
    }

    pub(crate) fn groupby(&mut self, value: Value, given: Given) -> Res<Value> {
        let [attribute, default, case] =
            given.bind("groupby", ["attribute", "default", "case_sensitive"], 1)?;
        let fold = !ops::is_set(case);
        let path = path(attribute)?;
        let mut keyed = Vec::new();
        for item in ops::items(self, &value)? {
            let key = self.get_path(&item, &path, default.as_ref())?;
            keyed.push((if fold { folded(key) } else { key }, item));
        }
        self.spend(keyed.len() as u64 * 20)?;
        let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
        for (key, item) in ops::sort(self, keyed, false)? {
            let same = match groups.last() {
                Some((old, _)) => ops::equal(self, old, &key)?,
                None => false,
            };
            match groups.last_mut().filter(|_| same) {
                Some((_, items)) => items.push(item),
                None => groups.push((key, vec![item])),
            }
        }
        let mut out = Vec::new();
        for (key, items) in groups {
            let key = match fold {
                true => self.get_path(&items[0], &path, default.as_ref())?,
                false => key,
            };
            out.push(Value::group(key, Value::list(items)?)?);
        }
        Value::list(out)
    }

    pub(crate) fn slices(&mut self, value: Value, given: Given) -> Res<Value> {
        let [slices, fill] = given.bind("slice", ["slices", "fill_with"], 1)?;
        let slices = integer("slice", slices, 0)?;
        let items = ops::items(self, &value)?;
        if slices == 0 {
            return Ok(failing(Vec::new(), "integer division or modulo by zero"));
        }
        let slices = usize::try_from(slices).unwrap_or(0);
        self.spend_items(slices)?;
        let mut rows = Vec::new();
        let mut start = 0;
        for i in 0..slices {
            let longer = i < items.len() % slices;
            let end = start + items.len() / slices + usize::from(longer);
            let mut row = items[start..end].to_vec();
            if let (Some(fill), false) = (&fill, longer)
                && !matches!(fill, Value::None)
            {
                row.push(fill.clone());
            }
            rows.push(Value::list(row)?);
            start = end;
        }
        Ok(Value::iter(rows))
    }

    /// A generator over `value`. Its items are computed now; an error waits for its turn.
    fn lazily(
        &mut self,
        value: &Value,
        mut step: impl FnMut(&mut Self, Value, &mut Vec<Value>) -> Res<()>,
    ) -> Res<Value> {
        let source = match ops::source(self, value) {
            Ok(source) => source,
            Err(Fail::Error(message)) => return Ok(failing(Vec::new(), &message)),
            Err(other) => return Err(other),
        };
        let mut out = Vec::new();
        for item in source.items {
            self.spend(1)?;
            match step(self, item, &mut out) {
                Ok(()) => {}
                Err(Fail::Error(message)) => return Ok(failing(out, &message)),
                Err(other) => return Err(other),
            }
        }
        let rest = Iter::new(out, source.fails);
        Ok(Value::Iter(Rc::new(RefCell::new(rest))))
    }

    /// Follows the parts of an attribute, as in `map(attribute="a.0.b")`.
    fn get_path(&mut self, item: &Value, path: &[Value], default: Option<&Value>) -> Res<Value> {
        let mut value = item.clone();
        for part in path {
            value = self.getitem(&value, part)?;
            if let (true, Some(default)) = (value.is_undefined(), default)
                && !matches!(default, Value::None)
            {
                value = default.clone();
            }
        }
        Ok(value)
    }

    /// Paths of `sort(attribute="a,b")`.
    fn getters(&mut self, attribute: Option<Value>) -> Res<Vec<Vec<Value>>> {
        match attribute {
            Some(Value::Str(names)) => {
                names.split(',').map(|name| path(Some(Value::str(name)))).collect()
            }
            other => Ok(vec![path(other)?]),
        }
    }

    fn sorted(&mut self, keyed: Vec<(Value, Value)>, reverse: bool) -> Res<Value> {
        self.spend(keyed.len() as u64 * 20)?;
        let sorted = ops::sort(self, keyed, reverse)?;
        Value::list(sorted.into_iter().map(|(_, item)| item).collect())
    }
}

pub(crate) fn pairs(name: &str, value: Value, given: Given) -> Res<Value> {
    let [] = given.bind(name, [], 0)?;
    match &value {
        Value::Undefined(_) => Ok(Value::iter(Vec::new())),
        Value::Dict(d) => Ok(Value::iter(view_items(View::Items, &d.entries)?)),
        _ => Ok(failing(Vec::new(), "Can only get item pairs from a mapping.")),
    }
}

/// A generator that ends in an error.
fn failing(items: Vec<Value>, message: &str) -> Value {
    let iter = Iter::new(items, Some(message.to_owned()));
    Value::Iter(Rc::new(RefCell::new(iter)))
}

/// Jinja2's `ignore_case`.
fn folded(value: Value) -> Value {
    match value {
        Value::Str(s) => Value::str(s.to_lowercase()),
        other => other,
    }
}

/// The parts of an attribute: `a.0.b` is three.
fn path(attribute: Option<Value>) -> Res<Vec<Value>> {
    match attribute {
        None | Some(Value::None) => Ok(Vec::new()),
        Some(Value::Str(name)) => {
            let part = |part: &str| match part.bytes().all(|b| b.is_ascii_digit()) {
                true if !part.is_empty() => part.parse().map_or(Value::str(part), Value::Int),
                _ => Value::str(part),
            };
            Ok(name.split('.').map(part).collect())
        }
        Some(other) => Ok(vec![other]),
    }
}

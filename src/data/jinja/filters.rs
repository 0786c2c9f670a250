//! Jinja2's filters, and `tojson` of `transformers`.

use super::ast::{BinaryOp, CompareOp};
use super::json::{Style, dumps};
use super::names;
use super::ops;
use super::repr::{escape_html, sorted_repr, text};
use super::run::{Given, Run};
use super::strings::{capitalize, is_space, splitlines};
use super::value::{Fail, Iter, Res, Value, View, error, view_items};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

impl Run {
    /// Applies a filter.
    pub(crate) fn filter(&mut self, name: &str, value: Value, given: Given) -> Res<Value> {
        match name {
            "length" | "count" => {
                let [] = given.bind(name, [], 0)?;
                match &value {
                    Value::Object(_) => error("the length of an object is not supported"),
                    _ => ops::length(&value).map(|n| Value::Int(n as i128)),
                }
            }
            "default" | "d" => {
                let [default, boolean] = given.bind(name, ["default_value", "boolean"], 0)?;
                let boolean = ops::is_set(boolean);
                match value.is_undefined() || (boolean && !ops::truth(&value)) {
                    true => Ok(default.unwrap_or_else(|| Value::str(""))),
                    false => Ok(value),
                }
            }
            "list" => {
                let [] = given.bind(name, [], 0)?;
                let items = ops::items(self, &value)?;
                Value::list(items)
            }
            "items" => {
                let [] = given.bind(name, [], 0)?;
                match &value {
                    Value::Undefined(_) => Ok(Value::iter(Vec::new())),
                    Value::Dict(d) => Ok(Value::iter(view_items(View::Items, &d.entries)?)),
                    _ => Ok(failing(Vec::new(), "Can only get item pairs from a mapping.")),
                }
            }
            "first" => {
                let [] = given.bind(name, [], 0)?;
                self.first(&value)
            }
            "last" => {
                let [] = given.bind(name, [], 0)?;
                match value {
                    Value::Iter(_) => error("'generator' object is not reversible"),
                    value => {
                        let last = ops::items(self, &value)?.pop();
                        Ok(last.unwrap_or_else(|| {
                            Value::undefined("No last item, sequence was empty.")
                        }))
                    }
                }
            }
            "reverse" => {
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
            "map" => self.map(value, given),
            "select" | "reject" | "selectattr" | "rejectattr" => self.select(name, value, given),
            "sort" => {
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
            "dictsort" => self.dictsort(value, given),
            "groupby" => self.groupby(value, given),
            "unique" => {
                let [case, attribute] = given.bind(name, ["case_sensitive", "attribute"], 0)?;
                let fold = !ops::is_set(case);
                let path = path(attribute)?;
                let mut seen: Vec<Value> = Vec::new();
                self.lazily(&value, |run, item, out| {
                    let key = run.get_path(&item, &path, None)?;
                    let key = if fold { folded(key) } else { key };
                    ops::hashable(&key)?;
                    run.spend(seen.len() as u64 / 8)?;
                    if !seen.iter().any(|k| ops::equal(k, &key)) {
                        seen.push(key);
                        out.push(item);
                    }
                    Ok(())
                })
            }
            "min" | "max" => {
                let [case, attribute] = given.bind(name, ["case_sensitive", "attribute"], 0)?;
                let fold = !ops::is_set(case);
                let path = path(attribute)?;
                let mut best: Option<(Value, Value)> = None;
                for item in ops::items(self, &value)? {
                    let key = self.get_path(&item, &path, None)?;
                    let key = if fold { folded(key) } else { key };
                    let better = match &best {
                        None => true,
                        Some((old, _)) if name == "min" => ops::ordered(CompareOp::Lt, &key, old)?,
                        Some((old, _)) => ops::ordered(CompareOp::Gt, &key, old)?,
                    };
                    if better {
                        best = Some((key, item));
                    }
                }
                let none = || Value::undefined("No aggregated item, sequence was empty.");
                Ok(best.map_or_else(none, |(_, item)| item))
            }
            "sum" => {
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
            "batch" => {
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
            "slice" => self.slices(value, given),
            "abs" => {
                let [] = given.bind(name, [], 0)?;
                match &value {
                    Value::Float(f) => Ok(Value::Float(f.abs())),
                    _ => match value.as_int().and_then(i128::checked_abs) {
                        Some(i) => Ok(Value::Int(i)),
                        None => error(format!("bad operand type for abs(): '{}'", value.kind())),
                    },
                }
            }
            "round" => self.round(value, given),
            "int" => int(value, given),
            "float" => {
                let [default] = given.bind(name, ["default"], 0)?;
                let default = default.unwrap_or(Value::Float(0.0));
                match &value {
                    Value::Undefined(message) => error(&**message),
                    Value::Str(s) | Value::Safe(s) => {
                        Ok(parse_float(s).map_or(default, Value::Float))
                    }
                    _ => Ok(ops::number(&value).map_or(default, Value::Float)),
                }
            }
            "string" => {
                let [] = given.bind(name, [], 0)?;
                match value {
                    Value::Str(_) | Value::Safe(_) => Ok(value),
                    value => {
                        let text = text(&value)?;
                        self.text(text)
                    }
                }
            }
            "attr" => {
                let [attribute] = given.bind(name, ["name"], 1)?;
                let Some(Value::Str(attribute)) = attribute else {
                    return error("the filter 'attr' needs a string");
                };
                match self.attribute(&value, &attribute)? {
                    Some(found) => Ok(found),
                    None => Ok(Value::undefined(format!(
                        "'{} object' has no attribute '{attribute}'",
                        value.kind()
                    ))),
                }
            }
            "tojson" => self.tojson(value, given),
            "join" => {
                let [separator, attribute] = given.bind(name, ["d", "attribute"], 0)?;
                let separator = text(&separator.unwrap_or_else(|| Value::str("")))?;
                let path = path(attribute)?;
                let mut joined = String::new();
                for (i, item) in ops::items(self, &value)?.into_iter().enumerate() {
                    let item = self.get_path(&item, &path, None)?;
                    joined.push_str(if i > 0 { &separator } else { "" });
                    joined.push_str(&text(&item)?);
                    self.room(joined.len())?;
                }
                self.text(joined)
            }
            "safe" => {
                let [] = given.bind(name, [], 0)?;
                let text = text(&value)?;
                self.spend(text.len() as u64 / 8)?;
                Ok(Value::Safe(Arc::from(text)))
            }
            "escape" | "e" | "forceescape" => {
                let [] = given.bind(name, [], 0)?;
                if matches!(value, Value::Safe(_)) && name != "forceescape" {
                    return Ok(value);
                }
                self.safe(escape_html(&text(&value)?))
            }
            "random" | "urlize" => error(format!("the filter '{name}' is not supported")),
            "pprint" => {
                let [] = given.bind(name, [], 0)?;
                let text = sorted_repr(&value)?;
                match text.chars().count() <= 80 {
                    true => self.text(text),
                    false => error("pprint of more than one line is not supported"),
                }
            }
            "filesizeformat" => {
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
            "xmlattr" => self.xmlattr(value, given),
            "urlencode" => {
                let [] = given.bind(name, [], 0)?;
                self.urlencode(value)
            }
            _ => self.text_filter(name, value, given),
        }
    }

    /// Filters of a text.
    fn text_filter(&mut self, name: &str, value: Value, given: Given) -> Res<Value> {
        if matches!(value, Value::Safe(_)) {
            return error(format!("the filter '{name}' of text marked safe is not supported"));
        }
        // These call methods of the value itself, which need a text.
        let only_text = matches!(name, "indent" | "wordwrap" | "truncate");
        if only_text && value.as_str().is_none() {
            let kind = value.kind();
            if let Value::Undefined(message) = &value {
                return error(&**message);
            }
            return error(format!("the filter '{name}' needs a text, not {kind}"));
        }
        let s = text(&value)?;
        self.spend(s.len() as u64 / 8)?;
        match name {
            "upper" | "lower" | "capitalize" | "title" | "wordcount" | "striptags" => {
                let [] = given.bind(name, [], 0)?;
                match name {
                    "upper" => self.text(s.to_uppercase()),
                    "lower" => self.text(s.to_lowercase()),
                    "capitalize" => self.text(capitalize(&s)),
                    "title" => self.text(title(&s)),
                    "striptags" => self.text(striptags(&s)?),
                    _ => {
                        let is_word = |c: char| c.is_alphanumeric() || c == '_';
                        let words = s.split(|c| !is_word(c)).filter(|w| !w.is_empty());
                        Ok(Value::Int(words.count() as i128))
                    }
                }
            }
            "trim" => {
                let [chars] = given.bind(name, ["chars"], 0)?;
                match chars {
                    None | Some(Value::None) => self.text(s.trim_matches(is_space)),
                    Some(Value::Str(set)) => self.text(s.trim_matches(|c| set.contains(c))),
                    Some(other) => {
                        error(format!("strip arg must be None or str, not {}", other.kind()))
                    }
                }
            }
            "replace" => {
                let [old, new, count] = given.bind(name, ["old", "new", "count"], 2)?;
                let old = text(&old.unwrap_or(Value::None))?;
                let new = text(&new.unwrap_or(Value::None))?;
                let count = integer(name, count.filter(|c| !matches!(c, Value::None)), -1)?;
                self.replaced(&s, &old, &new, count)
            }
            "center" => {
                let [width] = given.bind(name, ["width"], 0)?;
                let given = Given { pos: vec![width.unwrap_or(Value::Int(80))], named: Vec::new() };
                self.method(&Value::str(s), "center", given)
            }
            "format" => {
                if !given.pos.is_empty() && !given.named.is_empty() {
                    return error("can't handle positional and keyword arguments at the same time");
                }
                let args = match given.named.is_empty() {
                    true => Value::tuple(given.pos)?,
                    false => Value::dict(
                        given.named.into_iter().map(|(n, v)| (Value::Str(n), v)).collect(),
                    )?,
                };
                ops::binary(self, BinaryOp::Mod, &Value::str(s), &args)
            }
            "indent" => self.indent(&s, given),
            "truncate" => {
                let [length, kill, end, leeway] =
                    given.bind(name, ["length", "killwords", "end", "leeway"], 0)?;
                let length = integer(name, length, 255)?;
                let leeway = integer(name, leeway.filter(|l| !matches!(l, Value::None)), 5)?;
                let end = end.map_or_else(|| Ok("...".to_owned()), |end| text(&end))?;
                let end_length = end.chars().count() as i128;
                if length < end_length || leeway < 0 {
                    return error(format!("expected length >= {end_length}, got {length}"));
                }
                if s.chars().count() as i128 <= length.saturating_add(leeway) {
                    return self.text(s);
                }
                let cut: String = s.chars().take((length - end_length) as usize).collect();
                if ops::is_set(kill) {
                    return self.text(cut + &end);
                }
                let kept = cut.rsplit_once(' ').map_or(&*cut, |(kept, _)| kept);
                self.text(kept.to_owned() + &end)
            }
            "wordwrap" => self.wordwrap(&s, given),
            _ => error(format!("No filter named '{name}'.")),
        }
    }

    fn first(&mut self, value: &Value) -> Res<Value> {
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
        let rest = Iter { items: out.into(), fails: source.fails };
        Ok(Value::Iter(Rc::new(RefCell::new(rest))))
    }

    fn map(&mut self, value: Value, mut given: Given) -> Res<Value> {
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
        let filter = text(&given.pos.remove(0))?;
        if !names::FILTERS.contains(&&*filter) {
            return Ok(failing(Vec::new(), &format!("No filter named '{filter}'.")));
        }
        self.lazily(&value, |run, item, out| {
            out.push(run.filter(&filter, item, given.clone())?);
            Ok(())
        })
    }

    fn select(&mut self, name: &str, value: Value, mut given: Given) -> Res<Value> {
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
            false => Some(text(&given.pos.remove(0))?),
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
        let sorted = ops::sort(keyed, reverse)?;
        Value::list(sorted.into_iter().map(|(_, item)| item).collect())
    }

    fn dictsort(&mut self, value: Value, given: Given) -> Res<Value> {
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

    fn groupby(&mut self, value: Value, given: Given) -> Res<Value> {
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
        for (key, item) in ops::sort(keyed, false)? {
            match groups.last_mut() {
                Some((old, items)) if ops::equal(old, &key) => items.push(item),
                _ => groups.push((key, vec![item])),
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

    fn slices(&mut self, value: Value, given: Given) -> Res<Value> {
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

    fn round(&mut self, value: Value, given: Given) -> Res<Value> {
        let [precision, method] = given.bind("round", ["precision", "method"], 0)?;
        let precision = integer("round", precision, 0)?;
        let method = method.map_or_else(|| Ok("common".to_owned()), |m| text(&m))?;
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

    fn tojson(&mut self, value: Value, given: Given) -> Res<Value> {
        let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
        let [ascii, indent, separators, sort_keys] = given.bind("tojson", names, 0)?;
        let indent = match indent {
            None | Some(Value::None) => None,
            Some(Value::Str(indent)) => Some(indent.to_string()),
            Some(indent) => match indent.as_int() {
                Some(width) if width <= 1 << 10 => Some(" ".repeat(width.max(0) as usize)),
                _ => return error("tojson: such an indent is not supported"),
            },
        };
        let (comma, colon) = match separators {
            None | Some(Value::None) => {
                (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned())
            }
            Some(pair) => {
                let pair = ops::items(self, &pair)?;
                match pair.iter().map(Value::as_str).collect::<Vec<_>>()[..] {
                    [Some(comma), Some(colon)] => (comma.to_owned(), colon.to_owned()),
                    _ => return error("tojson: separators are two strings"),
                }
            }
        };
        let (sort_keys, ascii) = (ops::is_set(sort_keys), ops::is_set(ascii));
        let style = Style { indent, comma, colon, sort_keys, ascii };
        let text = dumps(self, &value, &style)?;
        self.text(text)
    }

    fn indent(&mut self, s: &str, given: Given) -> Res<Value> {
        let [width, first, blank] = given.bind("indent", ["width", "first", "blank"], 0)?;
        let indent = match width {
            None => "    ".to_owned(),
            Some(Value::Str(indent)) => indent.to_string(),
            Some(width) => {
                let width = ops::as_count(integer("indent", Some(width), 4)?);
                self.room(width)?;
                " ".repeat(width)
            }
        };
        let (first, blank) = (ops::is_set(first), ops::is_set(blank));
        let whole = s.to_owned() + "\n";
        let lines = splitlines(&whole, false);
        self.room(lines.len().saturating_mul(indent.len()).saturating_add(whole.len()))?;
        let mut out = if first { indent.clone() } else { String::new() };
        for (i, line) in lines.iter().enumerate() {
            if i > 0 {
                out.push('\n');
                out.push_str(if blank || !line.is_empty() { &indent } else { "" });
            }
            out.push_str(line);
        }
        self.text(out)
    }

    /// `textwrap.wrap` of texts without hyphens, where its rules are simple.
    fn wordwrap(&mut self, s: &str, given: Given) -> Res<Value> {
        let names = ["width", "break_long_words", "wrapstring", "break_on_hyphens"];
        let [width, long, between, hyphens] = given.bind("wordwrap", names, 0)?;
        let width = usize::try_from(integer("wordwrap", width, 79)?).unwrap_or(0);
        let hyphens = hyphens.is_none_or(|h| ops::truth(&h));
        let long = long.is_none_or(|l| ops::truth(&l));
        let between = match between {
            None | Some(Value::None) => "\n".to_owned(),
            Some(between) => text(&between)?,
        };
        if width == 0 {
            return error("invalid width 0 (must be > 0)");
        }
        if hyphens && s.contains(['-', '\u{2014}']) {
            return error("wordwrap of a text with hyphens is not supported");
        }
        let mut out = Vec::new();
        for line in splitlines(s, false) {
            out.extend(wrap(line, width, long));
            // An empty line gives no piece, but keeps its place.
            if line.trim_matches(is_space).is_empty() {
                out.push(String::new());
            }
        }
        let length: usize = out.iter().map(|piece| piece.len() + between.len()).sum();
        self.room(length)?;
        self.text(out.join(&between))
    }

    fn xmlattr(&mut self, value: Value, given: Given) -> Res<Value> {
        let [autospace] = given.bind("xmlattr", ["autospace"], 0)?;
        let Value::Dict(d) = &value else { return error("xmlattr needs a dict") };
        let mut parts = Vec::new();
        for (key, item) in &d.entries {
            if matches!(item, Value::None | Value::Undefined(_)) {
                continue;
            }
            let Some(key) = key.as_str() else { return error("xmlattr needs keys of text") };
            let bad = |c: char| matches!(c, ' ' | '\t'..='\r' | '/' | '>' | '=');
            if key.contains(bad) {
                return error(format!("Invalid character in attribute name: '{key}'"));
            }
            let item = match item {
                Value::Safe(s) => s.to_string(),
                item => escape_html(&text(item)?),
            };
            parts.push(format!("{}=\"{item}\"", escape_html(key)));
        }
        let joined = parts.join(" ");
        let space = autospace.is_none_or(|a| ops::truth(&a)) && !joined.is_empty();
        self.text(if space { format!(" {joined}") } else { joined })
    }

    fn urlencode(&mut self, value: Value) -> Res<Value> {
        let pairs = match &value {
            Value::Dict(d) => view_items(View::Items, &d.entries)?,
            Value::List(_) | Value::Tuple(_) | Value::Iter(_) | Value::Range(_) => {
                ops::items(self, &value)?
            }
            value => {
                let quoted = quote_url(&text(value)?, "/");
                return self.text(quoted);
            }
        };
        let mut parts = Vec::new();
        for pair in pairs {
            match &ops::items(self, &pair)?[..] {
                [key, item] => {
                    let quoted = |v: &Value| Ok(quote_url(&text(v)?, "").replace("%20", "+"));
                    parts.push(format!("{}={}", quoted(key)?, quoted(item)?));
                }
                _ => return error("urlencode needs pairs"),
            }
        }
        self.text(parts.join("&"))
    }
}

/// A generator that ends in an error.
fn failing(items: Vec<Value>, message: &str) -> Value {
    let iter = Iter { items: items.into(), fails: Some(message.to_owned()) };
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

fn integer(what: &str, value: Option<Value>, default: i128) -> Res<i128> {
    match value {
        None => Ok(default),
        Some(value) => match value.as_int() {
            Some(i) => Ok(i),
            None => error(format!("{what}: {} is no integer", value.kind())),
        },
    }
}

fn int(value: Value, given: Given) -> Res<Value> {
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

/// Jinja2's `title`, which begins a word after white space and some signs only.
fn title(s: &str) -> String {
    let is_break = |c: char| is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
    let mut out = String::with_capacity(s.len());
    let mut begins = true;
    for c in s.chars() {
        if is_break(c) {
            out.push(c);
            begins = true;
        } else if begins {
            out.extend(c.to_uppercase());
            begins = false;
        } else {
            out.extend(c.to_lowercase());
        }
    }
    out
}

/// `Markup(text).striptags()`.
fn striptags(s: &str) -> Res<String> {
    let mut out = s.to_owned();
    for [open, close] in [["<!--", "-->"], ["<", ">"]] {
        let mut kept = String::new();
        let mut rest = &*out;
        while let Some(start) = rest.find(open) {
            let Some(end) = rest[start..].find(close) else { break };
            kept.push_str(&rest[..start]);
            rest = &rest[start + end + close.len()..];
        }
        kept.push_str(rest);
        out = kept;
    }
    let words: Vec<&str> = out.split(is_space).filter(|w| !w.is_empty()).collect();
    let mut text = words.join(" ");
    let known = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#34;", "\""), ("&#39;", "'")];
    for (entity, character) in known {
        text = text.replace(entity, character);
    }
    let amp = "&amp;";
    let others = text.match_indices('&').any(|(at, _)| !text[at..].starts_with(amp));
    match others && text.contains(';') {
        true => error("striptags of such an HTML entity is not supported"),
        false => Ok(text.replace(amp, "&")),
    }
}

fn quote_url(s: &str, safe: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for byte in s.bytes() {
        let c = char::from(byte);
        match c.is_ascii_alphanumeric() || "_.-~".contains(c) || safe.contains(c) {
            true => out.push(c),
            false => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
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

/// `textwrap.wrap` of one line that has no hyphens.
fn wrap(line: &str, width: usize, break_long: bool) -> Vec<String> {
    // Words and the white space between them.
    let mut chunks: Vec<Vec<char>> = Vec::new();
    for c in line.chars() {
        let space = textwrap_space(c);
        match chunks.last_mut() {
            Some(chunk) if textwrap_space(chunk[0]) == space => chunk.push(c),
            _ => chunks.push(vec![c]),
        }
    }
    chunks.reverse();
    let is_blank = |chunk: &Vec<char>| chunk.iter().all(|c| is_space(*c));
    let mut lines: Vec<String> = Vec::new();
    while !chunks.is_empty() {
        let mut current: Vec<Vec<char>> = Vec::new();
        let mut length = 0;
        if !lines.is_empty() && chunks.last().is_some_and(is_blank) {
            chunks.pop();
        }
        while let Some(chunk) = chunks.last()
            && length + chunk.len() <= width
        {
            length += chunk.len();
            current.extend(chunks.pop());
        }
        if chunks.last().is_some_and(|chunk| chunk.len() > width) {
            if break_long {
                if let Some(chunk) = chunks.last_mut() {
                    let rest = chunk.split_off((width - length).min(chunk.len()));
                    let head = std::mem::replace(chunk, rest);
                    current.push(head);
                }
            } else if current.is_empty() {
                current.extend(chunks.pop());
            }
        }
        if current.last().is_some_and(is_blank) {
            current.pop();
        }
        if !current.is_empty() {
            lines.push(current.concat().into_iter().collect());
        }
    }
    lines
}

fn textwrap_space(c: char) -> bool {
    matches!(c, '\t'..='\r' | ' ')
}

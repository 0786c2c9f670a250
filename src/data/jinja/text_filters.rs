//! Jinja2's filters of texts.

use super::ast::BinaryOp;
use super::number_filters::integer;
use super::ops;
use super::repr::{escape_html, text};
use super::run::{Given, Run};
use super::strings::{Characters, capitalize, is_space, splitlines};
use super::value::{Res, Value, View, error, view_items};
use std::fmt::Write;

impl Run {
    /// Filters of a text.
    pub(crate) fn text_filter(&mut self, name: &str, value: Value, given: Given) -> Res<Value> {
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
        let s = text(self, &value)?;
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
                    Some(Value::Str(set)) => {
                        let set = Characters::of(&set);
                        self.text(s.trim_matches(|c| set.has(c)))
                    }
                    Some(other) => {
                        error(format!("strip arg must be None or str, not {}", other.kind()))
                    }
                }
            }
            "replace" => {
                let [old, new, count] = given.bind(name, ["old", "new", "count"], 2)?;
                let old = text(self, &old.unwrap_or(Value::None))?;
                let new = text(self, &new.unwrap_or(Value::None))?;
                let count = integer(name, count.filter(|c| !matches!(c, Value::None)), -1)?;
                self.replaced(&s, &old, &new, count)
            }
            "center" => {
                let [width] = given.bind(name, ["width"], 0)?;
                let given = Given { pos: vec![width.unwrap_or(Value::Int(80))], named: Vec::new() };
                self.method(&Value::str(s), "center", given)
            }
            "format" => self.format(s, given),
            "indent" => self.indent(&s, given),
            "truncate" => self.truncate(s, given),
            "wordwrap" => self.wordwrap(&s, given),
            _ => error(format!("No filter named '{name}'.")),
        }
    }

    /// Python's `%`.
    fn format(&mut self, s: String, given: Given) -> Res<Value> {
        if !given.pos.is_empty() && !given.named.is_empty() {
            return error("can't handle positional and keyword arguments at the same time");
        }
        let args = match given.named.is_empty() {
            true => Value::tuple(given.pos)?,
            false => {
                Value::dict(given.named.into_iter().map(|(n, v)| (Value::Str(n), v)).collect())?
            }
        };
        ops::binary(self, BinaryOp::Mod, &Value::str(s), &args)
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

    fn truncate(&mut self, s: String, given: Given) -> Res<Value> {
        let [length, kill, end, leeway] =
            given.bind("truncate", ["length", "killwords", "end", "leeway"], 0)?;
        let length = integer("truncate", length, 255)?;
        let leeway = integer("truncate", leeway.filter(|l| !matches!(l, Value::None)), 5)?;
        let end = end.map_or_else(|| Ok("...".to_owned()), |end| text(self, &end))?;
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

    /// `textwrap.wrap` of texts without hyphens, where its rules are simple.
    fn wordwrap(&mut self, s: &str, given: Given) -> Res<Value> {
        let names = ["width", "break_long_words", "wrapstring", "break_on_hyphens"];
        let [width, long, between, hyphens] = given.bind("wordwrap", names, 0)?;
        let width = usize::try_from(integer("wordwrap", width, 79)?).unwrap_or(0);
        let hyphens = hyphens.is_none_or(|h| ops::truth(&h));
        let long = long.is_none_or(|l| ops::truth(&l));
        let between = match between {
            None | Some(Value::None) => "\n".to_owned(),
            Some(between) => text(self, &between)?,
        };
        if width == 0 {
            return error("invalid width 0 (must be > 0)");
        }
        if hyphens && s.contains(['-', '\u{2014}']) {
            return error("wordwrap of a text with hyphens is not supported");
        }
        let mut out = Vec::new();
        for line in splitlines(s, false) {
            out.extend(wrap(self, line, width, long)?);
            // An empty line gives no piece, but keeps its place.
            if line.trim_matches(is_space).is_empty() {
                out.push(String::new());
            }
        }
        let length: usize = out.iter().map(|piece| piece.len() + between.len()).sum();
        self.room(length)?;
        self.text(out.join(&between))
    }

    pub(crate) fn xmlattr(&mut self, value: Value, given: Given) -> Res<Value> {
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
                item => escape_html(&text(self, item)?),
            };
            parts.push(format!("{}=\"{item}\"", escape_html(key)));
        }
        let joined = parts.join(" ");
        let space = autospace.is_none_or(|a| ops::truth(&a)) && !joined.is_empty();
        self.text(if space { format!(" {joined}") } else { joined })
    }

    pub(crate) fn urlencode(&mut self, value: Value) -> Res<Value> {
        let pairs = match &value {
            Value::Dict(d) => view_items(View::Items, &d.entries)?,
            Value::List(_) | Value::Tuple(_) | Value::Iter(_) | Value::Range(_) => {
                ops::items(self, &value)?
            }
            value => {
                let quoted = quote_url(&text(self, value)?, "/");
                return self.text(quoted);
            }
        };
        let mut parts = Vec::new();
        for pair in pairs {
            match &ops::items(self, &pair)?[..] {
                [key, item] => {
                    let mut quoted =
                        |v: &Value| Ok(quote_url(&text(self, v)?, "").replace("%20", "+"));
                    parts.push(format!("{}={}", quoted(key)?, quoted(item)?));
                }
                _ => return error("urlencode needs pairs"),
            }
        }
        self.text(parts.join("&"))
    }
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
            false => _ = write!(out, "%{byte:02X}"),
        }
    }
    out
}

/// `textwrap.wrap` of one line that has no hyphens.
fn wrap(run: &mut Run, line: &str, width: usize, break_long: bool) -> Res<Vec<String>> {
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
                    // What is left of a long word is copied with each line of it.
                    run.spend(chunk.len() as u64 / 8)?;
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
    Ok(lines)
}

fn textwrap_space(c: char) -> bool {
    matches!(c, '\t'..='\r' | ' ')
}

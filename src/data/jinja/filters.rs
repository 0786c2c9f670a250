//! Jinja2's filters, and `tojson` of `transformers`. Those of sequences, numbers and texts
//! have files of their own.

use super::json::{Style, dumps};
use super::number_filters::{abs, float, int};
use super::ops;
use super::repr::{escape_html, sorted_repr, text};
use super::run::{Given, Run};
use super::sequence_filters::pairs;
use super::value::{Res, Value, error};
use std::sync::Arc;

impl Run {
    /// Applies a filter.
    pub(crate) fn filter(&mut self, name: &str, value: Value, given: Given) -> Res<Value> {
        self.touch(&value)?;
        given.pos.iter().try_for_each(|arg| self.touch(arg))?;
        match name {
            "length" | "count" => length(name, value, given),
            "default" | "d" => default(name, value, given),
            "list" => self.listed(name, value, given),
            "items" => pairs(name, value, given),
            "first" => {
                let [] = given.bind(name, [], 0)?;
                self.first(&value)
            }
            "last" => self.last(name, value, given),
            "reverse" => self.reverse(name, value, given),
            "map" => self.map(value, given),
            "select" | "reject" | "selectattr" | "rejectattr" => self.select(name, value, given),
            "sort" => self.sort(name, value, given),
            "dictsort" => self.dictsort(value, given),
            "groupby" => self.groupby(value, given),
            "unique" => self.unique(name, value, given),
            "min" | "max" => self.extreme(name, value, given),
            "sum" => self.sum(name, value, given),
            "batch" => self.batch(name, value, given),
            "slice" => self.slices(value, given),
            "abs" => abs(name, value, given),
            "round" => self.round(value, given),
            "int" => int(value, given),
            "float" => float(name, value, given),
            "string" => self.string(name, value, given),
            "attr" => self.attr(name, value, given),
            "tojson" => self.tojson(value, given),
            "join" => self.joined(name, value, given),
            "safe" => self.marked_safe(name, value, given),
            "escape" | "e" | "forceescape" => self.escape(name, value, given),
            "random" | "urlize" => error(format!("the filter '{name}' is not supported")),
            "pprint" => self.pprint(name, value, given),
            "filesizeformat" => self.filesizeformat(name, value, given),
            "xmlattr" => self.xmlattr(value, given),
            "urlencode" => {
                let [] = given.bind(name, [], 0)?;
                self.urlencode(value)
            }
            _ => self.text_filter(name, value, given),
        }
    }

    fn listed(&mut self, name: &str, value: Value, given: Given) -> Res<Value> {
        let [] = given.bind(name, [], 0)?;
        let items = ops::items(self, &value)?;
        Value::list(items)
    }

    fn string(&mut self, name: &str, value: Value, given: Given) -> Res<Value> {
        let [] = given.bind(name, [], 0)?;
        match value {
            Value::Str(_) | Value::Safe(_) => Ok(value),
            value => {
                let text = text(self, &value)?;
                self.text(text)
            }
        }
    }

    fn attr(&mut self, name: &str, value: Value, given: Given) -> Res<Value> {
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

    fn marked_safe(&mut self, name: &str, value: Value, given: Given) -> Res<Value> {
        let [] = given.bind(name, [], 0)?;
        let text = text(self, &value)?;
        self.spend(text.len() as u64 / 8)?;
        Ok(Value::Safe(Arc::from(text)))
    }

    fn escape(&mut self, name: &str, value: Value, given: Given) -> Res<Value> {
        let [] = given.bind(name, [], 0)?;
        if matches!(value, Value::Safe(_)) && name != "forceescape" {
            return Ok(value);
        }
        let text = text(self, &value)?;
        self.safe(escape_html(&text))
    }

    fn pprint(&mut self, name: &str, value: Value, given: Given) -> Res<Value> {
        let [] = given.bind(name, [], 0)?;
        let text = sorted_repr(self, &value)?;
        match text.chars().count() <= 80 {
            true => self.text(text),
            false => error("pprint of more than one line is not supported"),
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
}

fn length(name: &str, value: Value, given: Given) -> Res<Value> {
    let [] = given.bind(name, [], 0)?;
    match &value {
        Value::Object(_) => error("the length of an object is not supported"),
        _ => ops::length(&value).map(|n| Value::Int(n as i128)),
    }
}

fn default(name: &str, value: Value, given: Given) -> Res<Value> {
    let [default, boolean] = given.bind(name, ["default_value", "boolean"], 0)?;
    let boolean = ops::is_set(boolean);
    match value.is_undefined() || (boolean && !ops::truth(&value)) {
        true => Ok(default.unwrap_or_else(|| Value::str(""))),
        false => Ok(value),
    }
}

//! The keys of a row as they are read, and what is said of values that are no use.

use serde_json::{Map, Value};

pub(super) type Parsed<T> = Result<T, String>;

/// The keys of a row, and those that have been read.
pub(super) struct Keys<'a> {
    pub(super) object: &'a Map<String, Value>,
    pub(super) used: Vec<&'a str>,
}

impl<'a> Keys<'a> {
    /// The value of a key, which counts as read. A null counts as absent: exporters write it for
    /// empty columns.
    pub(super) fn take(&mut self, key: &str) -> Option<&'a Value> {
        let (key, value) = self.object.get_key_value(key)?;
        self.used.push(key);
        Some(value).filter(|v| !v.is_null())
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|v| !v.is_null())
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// The first of `keys` that is there.
    pub(super) fn first<'k>(&self, keys: &[&'k str]) -> Option<&'k str> {
        keys.iter().copied().find(|key| self.has(key))
    }
}

pub(super) fn wrong_type(key: &str, value: &Value, wanted: &str) -> String {
    format!("key {key:?} is {}, not {wanted}", kind(value))
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

pub(super) fn string(key: &str, value: Option<&Value>) -> Parsed<Option<String>> {
    match value {
        None => Ok(None),
        Some(Value::String(text)) => no_nul(key, text).map(Some),
        Some(other) => Err(wrong_type(key, other, "a string")),
    }
}

pub(super) fn no_nul(key: &str, text: &str) -> Parsed<String> {
    without_nul(key, text).map(str::to_owned)
}

pub(super) fn without_nul<'t>(key: &str, text: &'t str) -> Parsed<&'t str> {
    match text.contains('\0') {
        true => Err(format!("key {key:?} holds a NUL character")),
        false => Ok(text),
    }
}

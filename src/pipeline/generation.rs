//! `generation_config.json`, read by exports and by `inspect` and `verify`.

use crate::base::{Error, Result, read_if_there};
use serde_json::{Map, Value};
use std::path::Path;

/// The name of the file.
pub(super) const FILE: &str = "generation_config.json";

/// Largest file read, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// The settings of the first of `dirs` that has the file. Errors name the file.
pub(super) fn settings(dirs: &[&Path]) -> Result<Option<Map<String, Value>>> {
    let mut found = None;
    for path in dirs.iter().map(|dir| dir.join(FILE)) {
        if found.is_none() {
            found = read_if_there(&path, MAX_FILE)?.map(|bytes| (path, bytes));
        }
    }
    let Some((path, bytes)) = found else { return Ok(None) };
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(settings)) => Ok(Some(settings)),
        Ok(_) => Err(Error::user(format!("{}: not a JSON object", path.display()))),
        Err(e) => Err(Error::user(format!("{}: bad JSON: {e}", path.display()))),
    }
}

/// The ids of an `eos_token_id`: one, a list, or none.
pub(super) fn ends(eos_token_id: Option<&Value>) -> Vec<i64> {
    match eos_token_id {
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_i64).collect(),
        Some(one) => one.as_i64().into_iter().collect(),
        None => vec![],
    }
}

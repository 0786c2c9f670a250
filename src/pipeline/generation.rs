//! `generation_config.json`, read by exports and by `inspect` and `verify`.

use crate::base::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// The name of the file.
pub(super) const FILE: &str = "generation_config.json";

/// The settings of the first of `dirs` that has the file. Errors name the file.
pub(super) fn settings(dirs: &[&Path]) -> Result<Option<Map<String, Value>>> {
    let Some(path) = dirs.iter().map(|dir| dir.join(FILE)).find(|path| path.is_file()) else {
        return Ok(None);
    };
    let bytes = std::fs::read(&path).map_err(|e| Error::io("read", &path, &e))?;
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

//! Checks the parts of `tokenizer.json` that the tokenizer library takes on trust, before it reads
//! them.

use serde_json::Value;

/// Why this `tokenizer.json` must not be given to the library.
pub(super) fn refusal(file: &Value) -> Option<String> {
    if merges_cut_characters(&file["model"]) {
        return Some("a merge does not begin with \"continuing_subword_prefix\"".into());
    }
    if let Some(id) = large_id(file) {
        return Some(format!("it gives a token the id {id}; ids must be below {}", i32::MAX));
    }
    maps_are_short(file).then(|| "a \"precompiled_charsmap\" is cut short".into())
}

/// An id that no embedding can have a row for.
fn large_id(file: &Value) -> Option<&Value> {
    let vocab = file["model"]["vocab"].as_object().into_iter().flat_map(|v| v.values());
    let added = file["added_tokens"].as_array().into_iter().flatten().map(|t| &t["id"]);
    vocab.chain(added).find(|id| id.as_u64().is_some_and(|id| id >= i32::MAX as u64))
}

/// The library joins the pieces of a merge without the second one's prefix, whatever it begins
/// with, and takes what is left for text.
fn merges_cut_characters(model: &Value) -> bool {
    let prefix = model["continuing_subword_prefix"].as_str().unwrap_or_default();
    let second = |merge: &Value| match merge {
        Value::String(both) => both.split_once(' ').map(|(_, second)| second.to_owned()),
        pair => pair[1].as_str().map(str::to_owned),
    };
    let merges = model["merges"].as_array().map_or(&[][..], Vec::as_slice);
    !prefix.is_empty() && merges.iter().filter_map(second).any(|s| !s.starts_with(prefix))
}

/// A map begins with the size of a table, for which the library makes room before it looks for it:
/// anywhere in the file, since normalizers nest.
fn maps_are_short(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(maps_are_short),
        Value::Object(object) => object.iter().any(|(key, value)| match value.as_str() {
            Some(map) if key == "precompiled_charsmap" => table_is_short(map),
            _ => maps_are_short(value),
        }),
        _ => false,
    }
}

/// True if the table of a base64 map is larger than the map. The library itself refuses invalid
/// base64.
fn table_is_short(map: &str) -> bool {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    // Six digits hold the first four bytes and a few bits more.
    let Some(head) = map.as_bytes().first_chunk::<6>() else { return false };
    let bits = head.iter().fold(0u64, |bits, c| bits << 6 | u64::from(digit(*c)));
    let size = ((bits >> 4) as u32).swap_bytes();
    size as usize > map.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn claims_larger_than_the_file_are_refused() {
        let with = |map: &str| {
            json!({"normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Precompiled", "precompiled_charsmap": map}]}})
        };
        // Four bytes of size, little-endian, then the table.
        assert_eq!(refusal(&with("CAAAAAAEAAAAAAAAYQA=")), None);
        assert_eq!(refusal(&with("AAAAAA==")), None);
        assert!(refusal(&with("/////wAA")).is_some());
        assert!(refusal(&with("AAAAgAAA")).is_some());
        assert_eq!(refusal(&json!(7)), None);
    }

    #[test]
    fn ids_that_no_embedding_has_are_refused() {
        let vocab = |id: u64| json!({"model": {"vocab": {"a": 0, "b": id}}});
        assert_eq!(refusal(&vocab(1)), None);
        assert!(refusal(&vocab(4_000_000_000)).is_some_and(|why| why.contains("4000000000")));
        assert!(refusal(&json!({"added_tokens": [{"id": i32::MAX}]})).is_some());
    }

    #[test]
    fn merges_must_have_their_prefix() {
        let with = |prefix: &str, merges: Value| {
            refusal(&json!({"model": {"continuing_subword_prefix": prefix, "merges": merges}}))
        };
        assert_eq!(with("@@", json!([["a", "@@b"]])), None);
        assert_eq!(with("@@", json!(["a @@b"])), None);
        assert_eq!(with("", json!([["a", "é"]])), None);
        assert!(with("@", json!([["a", "é"]])).is_some());
        assert!(with("@", json!(["a é"])).is_some());
    }
}

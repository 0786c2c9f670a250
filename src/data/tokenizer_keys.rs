//! The keys of `tokenizer_config.json`: used, without effect here, or named in a warning.

use serde_json::{Map, Value};

/// Keys that are read. Keys that end in `_token` name a token and are read too.
const USED: [&str; 12] = [
    "add_bos_token",
    "add_prefix_space",
    "added_tokens_decoder",
    "additional_special_tokens",
    "chat_control_tokens",
    "chat_template",
    "extra_special_tokens",
    "fast_tokenizer_files",
    "tokenizer_class",
    // Behind an answer Duplex writes the end token itself, with or without it.
    "add_eos_token",
    // Bytes that are no UTF-8 are shown as U+FFFD, which is what "replace" says.
    "errors",
    // Checked below.
    "split_special_tokens",
];

/// Keys that change nothing here, because Duplex pads nothing, cuts by its own settings, and takes
/// from `tokenizer.json` what other keys repeat.
const HARMLESS: [&str; 46] = [
    "_commit_hash",
    "backend",
    "bos_token_id",
    "clean_up_tokenization_spaces",
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
    "cls_token_id",
    "device_map",
    "do_lower_case",
    "eos_token_id",
    "files_loaded",
    "from_slow",
    "init_inputs",
    "is_local",
    "legacy",
    "local_files_only",
    "mask_token_id",
    "max_len",
    "max_length",
    "merges_file",
    "model_input_names",
    "model_max_length",
    "model_type",
    "name_or_path",
    "pad_to_multiple_of",
    "pad_token_id",
    "pad_token_type_id",
    "padding",
    "padding_side",
    "processor_class",
    "response_schema",
    "response_template",
    "return_tensors",
    "return_token_type_ids",
    "sp_model_kwargs",
    "spaces_between_special_tokens",
    "special_tokens_map_file",
    "stride",
    "tokenizer_file",
    "transformers_version",
    "trim_offsets",
    "truncation",
    "truncation_side",
    "truncation_strategy",
    "use_default_system_prompt",
    "use_fast",
    "vocab_file",
];

/// Warnings about keys of `tokenizer_config.json` that Duplex does not follow.
pub(super) fn key_notes(config: &Map<String, Value>, origin: &str) -> Vec<String> {
    let known =
        |key: &str| USED.contains(&key) || HARMLESS.contains(&key) || key.ends_with("_token");
    let unknown: Vec<&str> = config.keys().map(String::as_str).filter(|key| !known(key)).collect();
    let mut notes = Vec::new();
    if !unknown.is_empty() {
        notes.push(format!(
            "tokenizer_config.json of {origin}: keys without effect here: {}",
            unknown.join(", ")
        ));
    }
    if config.get("split_special_tokens") == Some(&Value::Bool(true)) {
        notes.push(format!(
            "tokenizer_config.json of {origin}: split_special_tokens is not followed; control \
             tokens that a chat template writes count, those in messages do not"
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_are_known_or_named() {
        let notes = |config: Value| key_notes(config.as_object().unwrap(), "DIR");
        let known = json!({"eos_token": "e", "image_token": "i", "legacy": false,
            "errors": "replace", "split_special_tokens": false, "model_max_length": 1e30});
        assert!(notes(known).is_empty());
        let odd = notes(json!({"zeta": 1, "auto_map": {}, "split_special_tokens": true}));
        assert_eq!(
            odd[0],
            "tokenizer_config.json of DIR: keys without effect here: zeta, auto_map"
        );
        assert!(odd[1].contains("split_special_tokens") && odd.len() == 2);
    }

    #[test]
    fn tables_are_disjoint() {
        assert!(USED.iter().all(|key| !HARMLESS.contains(key)));
    }
}

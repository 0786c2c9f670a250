//! The keys of rows beside prompt and answers: what a chat template is given, what is refused
//! because another model would come of it, and what is known to change nothing.

use super::keys::{Keys, Parsed, no_nul, wrong_type};
use super::messages::strings;
use super::types::{ChatContext, Row};
use serde_json::{Value, json};
use std::sync::Arc;

/// Names of a question that is put as the user's message.
pub(super) const CHAT_PROMPTS: &[&str] = &["instruction", "question", "query"];

/// Keys that say where a row came from or how it was judged. Training does not depend on them.
pub(super) const HARMLESS: &[&str] = &[
    "id",
    "_id",
    "idx",
    "index",
    "uid",
    "uuid",
    "row_id",
    "prompt_id",
    "question_id",
    "sample_id",
    "conversation_id",
    "conversation_hash",
    "message_id",
    "thread_id",
    "parent_id",
    "user_id",
    "__index_level_0__",
    "source",
    "sources",
    "dataset",
    "dataset_name",
    "dataset_id",
    "data_source",
    "origin",
    "subset",
    "split",
    "config",
    "category",
    "categories",
    "subcategory",
    "task",
    "task_type",
    "task_name",
    "tag",
    "tags",
    "topic",
    "domain",
    "type",
    "kind",
    "lang",
    "language",
    "license",
    "url",
    "title",
    "created",
    "created_at",
    "timestamp",
    "date",
    "model",
    "models",
    "model_name",
    "generator",
    "chosen_model",
    "rejected_model",
    "chosen-model",
    "rejected-model",
    "annotator",
    "annotations",
    "score",
    "scores",
    "score_chosen",
    "score_rejected",
    "chosen_score",
    "rejected_score",
    "chosen_rating",
    "rejected_rating",
    "chosen-rating",
    "rejected-rating",
    "rating",
    "ratings",
    "quality",
    "difficulty",
    "length",
    "num_tokens",
    "token_count",
    "tokens",
    "num_turns",
    "turn",
    "turns",
    "hash",
    "md5",
    "sha256",
    "meta",
    "metadata",
    "info",
    "extra_info",
    "ground_truth",
    "solution",
    "reward_model",
    "ability",
    "toxic",
    "redacted",
    "moderation",
    "openai_moderation",
    "parallel_tool_calls",
];

/// Values for the chat template.
pub(super) fn context(keys: &mut Keys<'_>) -> Parsed<Option<Arc<ChatContext>>> {
    let mut context = ChatContext {
        tools: objects(keys, "tools")?,
        documents: objects(keys, "documents")?,
        ..ChatContext::default()
    };
    if let Some(Value::Array(functions)) = objects(keys, "functions")? {
        if context.tools.is_some() {
            return Err("holds both \"functions\" and \"tools\"; keep one".into());
        }
        let tool = |f: &Value| json!({"type": "function", "function": f});
        context.tools = Some(functions.iter().map(tool).collect());
    }
    match keys.take("chat_template_kwargs") {
        None => {}
        Some(Value::Object(variables)) => {
            context.variables = variables.clone();
            for (key, own) in [("tools", &mut context.tools), ("documents", &mut context.documents)]
            {
                match context.variables.shift_remove(key).filter(|v| !v.is_null()) {
                    Some(_) if own.is_some() => {
                        return Err(format!(
                            "holds {key:?} twice, once in \"chat_template_kwargs\""
                        ));
                    }
                    Some(value) => *own = Some(value),
                    None => {}
                }
            }
            for key in ["messages", "add_generation_prompt"] {
                if context.variables.contains_key(key) {
                    return Err(format!(
                        "\"chat_template_kwargs\" holds {key:?}, which the row decides"
                    ));
                }
            }
        }
        Some(other) => return Err(wrong_type("chat_template_kwargs", other, "an object")),
    }
    let given = context != ChatContext::default();
    Ok(given.then(|| Arc::new(context)))
}

/// A list of objects, which may be written as JSON in a string. An empty one counts as absent.
fn objects(keys: &mut Keys<'_>, key: &str) -> Parsed<Option<Value>> {
    let wanted = "a list of objects";
    let value = match keys.take(key) {
        None => return Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(None),
        Some(Value::String(text)) => serde_json::from_str(text)
            .map_err(|e| format!("key {key:?} is a string, but no JSON in it: {e}"))?,
        Some(value) => value.clone(),
    };
    strings(&value, &|text| no_nul(key, text).map(drop))?;
    match &value {
        Value::Null => Ok(None),
        Value::Array(list) if list.is_empty() => Ok(None),
        Value::Array(list) if list.iter().all(Value::is_object) => Ok(Some(value)),
        Value::Array(_) => Err(format!("key {key:?} is not {wanted}")),
        other => Err(wrong_type(key, other, wanted)),
    }
}

/// Refuses keys by which the user asks for another training than this one.
pub(super) fn refuse_meaningful(keys: &mut Keys<'_>, row: &Row) -> Parsed<()> {
    for key in ["image", "images", "video", "videos", "audio", "audios"] {
        let empty = |v: &Value| v.as_array().is_some_and(Vec::is_empty);
        if keys.take(key).is_some_and(|v| !empty(v)) {
            return Err(format!("key {key:?} holds media; only text can be trained on"));
        }
    }
    for key in ["input_ids", "labels", "loss_mask", "assistant_masks", "completion_mask"] {
        if keys.take(key).is_some() {
            return Err(format!(
                "key {key:?} is of rows that are tokenised already; give their text, without it"
            ));
        }
    }
    for key in ["weight", "sample_weight", "loss_weight"] {
        if keys.take(key).is_some_and(|v| v.as_f64() != Some(1.0)) {
            return Err(format!(
                "key {key:?} gives the row a weight; rows count alike, messages may have a weight"
            ));
        }
    }
    if keys.take("margin").is_some_and(|v| v.as_f64() != Some(0.0)) && row.rejected.is_some() {
        return Err(
            "key \"margin\" asks for a margin between the answers; the loss of the reward \
                    model has none, leave the key out"
                .into(),
        );
    }
    // KTO's rows: a completion, and whether it is desirable.
    if row.chosen.is_some() && row.rejected.is_none() {
        for key in ["label", "kto_tag"] {
            let text = keys.get(key).map(|v| v.to_string().trim_matches('"').to_lowercase());
            match text.as_deref() {
                Some("false" | "0" | "0.0") => {
                    return Err(format!(
                        "key {key:?} is false: it marks an undesirable answer (KTO), which no step \
                         here learns from"
                    ));
                }
                Some("true" | "1" | "1.0") => drop(keys.take(key)),
                _ => {}
            }
        }
    }
    Ok(())
}

//! Messages of a conversation in their several spellings: OpenAI's and TRL's `role` and `content`,
//! ShareGPT's `from` and `value`, content in parts, calls of tools. Other keys are kept: the chat
//! template sees them.

use super::keys::{Parsed, kind, without_nul, wrong_type};
use super::types::{Message, WEIGHT_KEYS, weight_of};
use serde_json::{Map, Value, json};

/// ShareGPT's names of the speakers, and those of chat templates.
const SPEAKERS: [(&str, &str); 14] = [
    ("human", "user"),
    ("user", "user"),
    ("prompter", "user"),
    ("gpt", "assistant"),
    ("assistant", "assistant"),
    ("model", "assistant"),
    ("bot", "assistant"),
    ("chatgpt", "assistant"),
    ("bing", "assistant"),
    ("bard", "assistant"),
    ("system", "system"),
    ("tool", "tool"),
    ("observation", "tool"),
    ("function_response", "tool"),
];

/// A list of messages, or one message alone.
pub(super) fn list(key: &str, value: &Value) -> Parsed<Vec<Message>> {
    match value {
        Value::Object(_) => Ok(vec![single(key, value)?]),
        _ => parse(key, value),
    }
}

/// One message alone, which must say something.
pub(super) fn single(key: &str, value: &Value) -> Parsed<Message> {
    let message = message(key, value)?;
    match message.is_blank() {
        true => Err(format!("the message of {key:?} is empty")),
        false => Ok(message),
    }
}

/// A list of messages of which the last one says something.
pub(super) fn parse(key: &str, value: &Value) -> Parsed<Vec<Message>> {
    let Value::Array(list) = value else {
        return Err(wrong_type(key, value, "a list of messages"));
    };
    let messages: Vec<Message> = list.iter().map(|m| message(key, m)).collect::<Parsed<_>>()?;
    match messages.last() {
        None => Err(format!("key {key:?} is empty")),
        Some(last) if last.is_blank() => Err(format!("the last message of {key:?} is empty")),
        Some(_) => Ok(messages),
    }
}

fn message(key: &str, value: &Value) -> Parsed<Message> {
    let Value::Object(object) = value else {
        return Err(format!("a message of {key:?} is {}, not an object", kind(value)));
    };
    strings(value, &|text| without_nul(key, text).map(drop))?;
    let (role, mut content) = (role(key, object)?, Some(content(key, object)?));
    let mut fields = Map::new();
    for (name, value) in object {
        match name.as_str() {
            "role" | "from" => fields.insert("role".into(), json!(role)),
            // Both name one field, of which `content` counts; it may be long.
            "content" | "value" => match content.take() {
                Some(content) => fields.insert("content".into(), content),
                None => None,
            },
            _ => fields.insert(name.clone(), value.clone()),
        };
    }
    tool_calls(key, &mut fields)?;
    for name in WEIGHT_KEYS {
        let Some(value) = fields.get(name) else { continue };
        let weight = weight_of(value).map_err(|()| {
            format!("{name:?} in a message of {key:?} is neither a boolean nor a number from 0 on")
        })?;
        if fields["role"] != "assistant" && name != "weight" && weight.is_some_and(|w| w > 0.0) {
            return Err(format!(
                "a message of {key:?} asks to be learned by {name:?}, but only the assistant's are"
            ));
        }
    }
    Ok(Message::from_fields(fields))
}

fn role(key: &str, object: &Map<String, Value>) -> Parsed<String> {
    let known = |name: &str| {
        let lower = name.to_lowercase();
        SPEAKERS.iter().find(|(speaker, _)| *speaker == lower).map(|(_, role)| (*role).to_owned())
    };
    match (object.get("role"), object.get("from")) {
        (Some(Value::String(role)), _) => Ok(known(role).unwrap_or_else(|| role.clone())),
        (None, Some(Value::String(from))) => known(from).ok_or_else(|| {
            let names: Vec<&str> = SPEAKERS.iter().map(|s| s.0).collect();
            format!("a message of {key:?} is from {from:?}; known are {}", names.join(", "))
        }),
        _ => Err(format!("a message of {key:?} has no string \"role\"")),
    }
}

/// The text of a message: a string, parts of text as they are, or null where it only calls tools.
fn content(key: &str, object: &Map<String, Value>) -> Parsed<Value> {
    let calls = ["tool_calls", "function_call"]
        .iter()
        .any(|k| object.get(*k).is_some_and(|v| !v.is_null()));
    match object.get("content").or_else(|| object.get("value")) {
        Some(Value::String(text)) => Ok(json!(text)),
        Some(Value::Array(parts)) => {
            parts.iter().try_for_each(|part| text_of(key, part))?;
            Ok(json!(parts))
        }
        Some(Value::Null) if calls => Ok(Value::Null),
        None if calls => Ok(Value::Null),
        _ => Err(format!("a message of {key:?} has no string \"content\"")),
    }
}

/// Refuses parts of a content that are no text.
fn text_of(key: &str, part: &Value) -> Parsed<()> {
    let kind = part.get("type").and_then(Value::as_str).unwrap_or("text");
    match (part, kind) {
        (Value::String(_), _) => Ok(()),
        (Value::Object(part), "text" | "input_text" | "output_text") => {
            match part.get("text").is_some_and(Value::is_string) {
                true => Ok(()),
                false => Err(format!(
                    "a part of the content of a message of {key:?} has no string \"text\""
                )),
            }
        }
        _ => Err(format!(
            "the content of a message of {key:?} has a part of the type {kind:?}; only text is read"
        )),
    }
}

/// OpenAI's older `function_call` becomes a call of a tool; calls must be a list of objects.
fn tool_calls(key: &str, fields: &mut Map<String, Value>) -> Parsed<()> {
    if let Some(call) = fields.shift_remove("function_call").filter(|c| !c.is_null()) {
        if fields.get("tool_calls").is_some_and(|c| !c.is_null()) {
            return Err(format!(
                "a message of {key:?} holds both \"function_call\" and \"tool_calls\"; keep one"
            ));
        }
        fields.insert("tool_calls".into(), json!([{"type": "function", "function": call}]));
    }
    match fields.get("tool_calls") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Array(calls)) if calls.iter().all(Value::is_object) => Ok(()),
        Some(_) => Err(format!("\"tool_calls\" in a message of {key:?} is not a list of objects")),
    }
}

/// Calls `f` with every string in `value`, keys of objects included.
pub(super) fn strings<E>(value: &Value, f: &dyn Fn(&str) -> Result<(), E>) -> Result<(), E> {
    match value {
        Value::String(text) => f(text),
        Value::Array(list) => list.iter().try_for_each(|v| strings(v, f)),
        Value::Object(object) => {
            object.iter().try_for_each(|(key, v)| f(key).and_then(|()| strings(v, f)))
        }
        _ => Ok(()),
    }
}

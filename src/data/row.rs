//! One JSON object to one [`Row`]: recognises the format by its keys and checks the contents. Its
//! errors are the bare reason; the reader of the file adds file and row.

use super::source::{Message, Prompt, Row};
use serde_json::{Map, Value};

type Parsed<T> = Result<T, String>;

const EXPECTED: &str =
    "expected prompt, chosen and rejected; prompt and completion; messages; or text";
const TURN: &str = "\n\nAssistant:";

/// The answers as they stand in the file: the good one, and the bad one if there is one.
enum Answers {
    Text(String, Option<String>),
    Chat(Vec<Message>, Option<Vec<Message>>),
}

/// A row without file and number.
fn blank() -> Row {
    Row { file: "".into(), row: 0, prompt: None, chosen: None, rejected: None, text: None }
}

/// A row of plain text.
pub(super) fn text_row(text: &str) -> Parsed<Row> {
    Ok(Row { text: Some(checked("text", text)?), ..blank() })
}

/// The row in `value`, or the reason why it is none.
pub(super) fn parse_row(value: &Value) -> Parsed<Row> {
    let Value::Object(object) = value else {
        return Err(format!("is {}, not an object ({EXPECTED})", kind(value)));
    };
    if let Some(messages) = present(object, "messages") {
        return conversation(messages_of("messages", messages)?);
    }
    let prompt = present(object, "prompt").map(prompt_of).transpose()?;
    let good = ["chosen", "completion", "response"].into_iter().find(|k| has(object, k));
    let Some(good) = good else {
        return match (prompt, present(object, "text")) {
            _ if has(object, "rejected") => Err(missing("chosen")),
            (Some(prompt), _) => Ok(Row { prompt: Some(prompt), ..blank() }),
            (None, Some(Value::String(text))) => text_row(text),
            (None, Some(other)) => Err(wrong_type("text", other, "a string")),
            (None, None) => Err(missing("prompt")),
        };
    };
    let row = match (prompt, answers(object, good)?) {
        (Some(prompt), Answers::Text(chosen, rejected)) => {
            let join = |answer| match &prompt {
                Prompt::Text(p) if good != "completion" => joined(p, answer),
                _ => answer,
            };
            let (chosen, rejected) = (Some(join(chosen)), rejected.map(join));
            Row { chosen, rejected, prompt: Some(prompt), ..blank() }
        }
        (Some(Prompt::Chat(base)), Answers::Chat(c, r)) => conversations(&base, c, r)?,
        (Some(Prompt::Text(content)), Answers::Chat(c, r)) => {
            // Either the answer alone, or the whole conversation, whose beginning `prompt` repeats.
            let base = vec![Message { role: "user".into(), content }];
            let alone = c.first().is_some_and(|m| m.role == "assistant");
            conversations(if alone { &base } else { &[] }, c, r)?
        }
        (None, Answers::Chat(c, r)) => conversations(&[], c, r)?,
        (None, Answers::Text(c, Some(r))) => transcripts(&c, &r)?,
        (None, Answers::Text(_, None)) => return Err(missing("prompt")),
    };
    for (key, answer) in [(good, &row.chosen), ("rejected", &row.rejected)] {
        if answer.as_ref().is_some_and(|a| a.trim().is_empty()) {
            return Err(format!("the answer in key {key:?} is empty"));
        }
    }
    match row.rejected.is_some() && row.chosen == row.rejected {
        true => Err(format!("keys {good:?} and \"rejected\" hold the same answer")),
        false => Ok(row),
    }
}

fn has(object: &Map<String, Value>, key: &str) -> bool {
    present(object, key).is_some()
}

/// A null counts as absent: exporters write it for empty columns.
fn present<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    object.get(key).filter(|v| !v.is_null())
}

fn missing(key: &str) -> String {
    format!("key {key:?} is missing ({EXPECTED})")
}

fn wrong_type(key: &str, value: &Value, wanted: &str) -> String {
    format!("key {key:?} is {}, not {wanted}", kind(value))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Text that holds something, and no NUL.
fn checked(key: &str, text: &str) -> Parsed<String> {
    if text.trim().is_empty() {
        return Err(format!("key {key:?} is empty"));
    }
    no_nul(key, text)
}

fn no_nul(key: &str, text: &str) -> Parsed<String> {
    match text.contains('\0') {
        true => Err(format!("key {key:?} holds a NUL character")),
        false => Ok(text.to_owned()),
    }
}

fn messages_of(key: &str, value: &Value) -> Parsed<Vec<Message>> {
    let Value::Array(list) = value else {
        return Err(wrong_type(key, value, "a list of messages"));
    };
    let messages: Vec<Message> = list.iter().map(|m| message(key, m)).collect::<Parsed<_>>()?;
    match messages.last() {
        None => Err(format!("key {key:?} is empty")),
        Some(last) if last.content.trim().is_empty() => {
            Err(format!("the last message of {key:?} is empty"))
        }
        Some(_) => Ok(messages),
    }
}

fn message(key: &str, value: &Value) -> Parsed<Message> {
    let field = |name: &str| match value.get(name) {
        Some(Value::String(s)) => no_nul(key, s),
        _ => Err(format!("a message of {key:?} has no string {name:?}")),
    };
    Ok(Message { role: field("role")?, content: field("content")? })
}

fn prompt_of(value: &Value) -> Parsed<Prompt> {
    match value {
        Value::String(s) => Ok(Prompt::Text(checked("prompt", s)?)),
        Value::Array(_) => Ok(Prompt::Chat(messages_of("prompt", value)?)),
        other => Err(wrong_type("prompt", other, "a string or a list of messages")),
    }
}

fn answers(object: &Map<String, Value>, good: &str) -> Parsed<Answers> {
    let text = |key, s: &str| checked(key, s);
    match (&object[good], present(object, "rejected")) {
        (Value::String(c), None) => Ok(Answers::Text(text(good, c)?, None)),
        (Value::String(c), Some(Value::String(r))) => {
            Ok(Answers::Text(text(good, c)?, Some(text("rejected", r)?)))
        }
        (c @ Value::Array(_), None) => Ok(Answers::Chat(messages_of(good, c)?, None)),
        (c @ Value::Array(_), Some(r @ Value::Array(_))) => {
            Ok(Answers::Chat(messages_of(good, c)?, Some(messages_of("rejected", r)?)))
        }
        (Value::String(_), Some(r)) => {
            Err(wrong_type("rejected", r, &format!("a string like {good:?}")))
        }
        (Value::Array(_), Some(r)) => {
            Err(wrong_type("rejected", r, &format!("a list like {good:?}")))
        }
        (other, _) => Err(wrong_type(good, other, "a string or a list of messages")),
    }
}

/// `messages`: the last one is the answer when the assistant wrote it.
fn conversation(mut messages: Vec<Message>) -> Parsed<Row> {
    let answered = messages.last().is_some_and(|m| m.role == "assistant");
    let chosen = if answered { messages.pop().map(|m| m.content) } else { None };
    if messages.is_empty() {
        return Err("key \"messages\" holds an answer but no prompt".into());
    }
    Ok(Row { prompt: Some(Prompt::Chat(messages)), chosen, ..blank() })
}

/// One space between prompt and answer where neither has white space at the joint. Not after a
/// character beyond ASCII: scripts without spaces between words need none.
fn joined(prompt: &str, answer: String) -> String {
    let plain = prompt.ends_with(|c: char| c.is_ascii() && !c.is_ascii_whitespace());
    match plain && !answer.starts_with(char::is_whitespace) {
        true => format!(" {answer}"),
        false => answer,
    }
}

/// Splits conversations into the shared prompt and one last answer each. `base` is put before an
/// answer that does not itself begin with it.
fn conversations(
    base: &[Message],
    chosen: Vec<Message>,
    rejected: Option<Vec<Message>>,
) -> Parsed<Row> {
    let whole = |c: Vec<Message>| match c.starts_with(base) {
        true => c,
        false => [base, &c[..]].concat(),
    };
    let mut chosen = whole(chosen);
    let mut rejected = rejected.map(whole);
    let last = chosen.pop();
    let last_rejected = rejected.as_mut().and_then(Vec::pop);
    if rejected.is_some_and(|r| r != chosen) {
        return Err("\"chosen\" and \"rejected\" must differ only in their last message".into());
    }
    if [&last, &last_rejected].into_iter().flatten().any(|m| m.role != "assistant") {
        return Err("an answer must end in a message of the role \"assistant\"".into());
    }
    if chosen.is_empty() {
        return Err("the conversation holds an answer but no prompt".into());
    }
    Ok(Row {
        prompt: Some(Prompt::Chat(chosen)),
        chosen: last.map(|m| m.content),
        rejected: last_rejected.map(|m| m.content),
        ..blank()
    })
}

/// Two transcripts with a common beginning: it ends after the last "\n\nAssistant:" they share.
fn transcripts(chosen: &str, rejected: &str) -> Parsed<Row> {
    let pairs = chosen.chars().zip(rejected.chars());
    let shared: usize = pairs.take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
    let Some(at) = chosen[..shared].rfind(TURN).filter(|&at| !chosen[..at].trim().is_empty())
    else {
        return Err(missing("prompt")
            + ", and \"chosen\" and \"rejected\" share no beginning that ends in \"Assistant:\"");
    };
    let end = at + TURN.len();
    Ok(Row {
        prompt: Some(Prompt::Text(chosen[..end].to_owned())),
        chosen: Some(chosen[end..].to_owned()),
        rejected: Some(rejected[end..].to_owned()),
        ..blank()
    })
}

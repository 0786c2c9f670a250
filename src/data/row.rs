//! One JSON object to one [`Row`]: recognises the format by its keys and checks the contents. Its
//! errors are the bare reason; the reader of the file adds file and row.

use super::keys::{Keys, Parsed, kind, no_nul, string, wrong_type};
use super::messages::{list, parse as parse_messages, single};
use super::row_keys::{CHAT_PROMPTS, HARMLESS, context, refuse_meaningful};
use super::types::{Answer, Message, Prompt, Row};
use serde_json::Value;

const EXPECTED: &str = "expected prompt, chosen and rejected; prompt and completion; messages; \
                        instruction and output; \
                        question and answer; or text";
const TURN: &str = "\n\nAssistant:";

/// The two answers as they stand in the file; the bad one may be absent.
enum Answers {
    Text(String, Option<String>),
    Chat(Vec<Message>, Option<Vec<Message>>),
}

/// A row of plain text.
pub(super) fn text_row(text: &str) -> Parsed<Row> {
    Ok(Row { text: Some(checked("text", text)?), ..Row::blank() })
}

/// The row in `value`, or the reason why it is none.
pub(super) fn parse_row(value: &Value) -> Parsed<Row> {
    let Value::Object(object) = value else {
        return Err(format!("is {}, not an object ({EXPECTED})", kind(value)));
    };
    let mut keys = Keys { object, used: vec![] };
    let mut row = by_format(&mut keys)?;
    row.context = context(&mut keys)?;
    refuse_meaningful(&mut keys, &row)?;
    let known = |key: &str| HARMLESS.contains(&key) || keys.used.contains(&key);
    let others = object.iter().filter(|(key, value)| !known(key) && !value.is_null());
    row.unused = others.map(|(key, _)| key.clone()).collect();
    Ok(row)
}

fn by_format(keys: &mut Keys<'_>) -> Parsed<Row> {
    let pair = keys.has("chosen") && keys.has("rejected");
    let dialogue = keys.first(&["messages", "conversations", "conversation"]);
    match dialogue {
        Some(key) if pair => {
            let base = base_of_pair(keys, key)?;
            answered(keys, base)
        }
        Some(key) => {
            let messages = parse_messages(key, keys.take(key).unwrap_or(&Value::Null))?;
            // A prompt beside it is one of its messages once more.
            if let Some(Value::String(prompt)) = keys.take("prompt") {
                repeats(prompt, &messages)?;
            }
            let system = system_of(keys)?;
            conversation(key, with_system(messages, system)?)
        }
        None => answered(keys, None),
    }
}

/// The conversation under `key` beside a pair: what both answer, where they are answers alone.
/// Beside whole conversations it repeats one of them.
fn base_of_pair(keys: &mut Keys<'_>, key: &str) -> Parsed<Option<Prompt>> {
    let dialogue = keys.take(key).unwrap_or(&Value::Null);
    let first = |list: &[Value]| match list.first() {
        Some(m) => m["role"] == "assistant" || m["from"] == "gpt" || m["from"] == "assistant",
        None => false,
    };
    let alone = match keys.get("chosen") {
        Some(Value::Object(_)) => true,
        Some(Value::Array(list)) => first(list),
        Some(Value::String(text)) => !text.contains(TURN),
        _ => false,
    };
    if !alone || keys.has("prompt") {
        return Ok(None);
    }
    let mut messages = parse_messages(key, dialogue)?;
    messages.pop_if(|m| m.is_answer());
    Ok(Some(Prompt::Chat(messages)))
}

/// Rows with a prompt and answers, or text.
fn answered(keys: &mut Keys<'_>, base: Option<Prompt>) -> Parsed<Row> {
    let prompt = match (base, keys.take("prompt")) {
        (Some(base), _) => Some(base),
        (None, Some(prompt)) => Some(prompt_of(prompt)?),
        (None, None) => question(keys)?,
    };
    let from_question = keys.used.iter().any(|k| CHAT_PROMPTS.contains(k) || *k == "input");
    let system = system_of(keys)?;
    let row = with_answers(keys, prompt, from_question, system.is_some())?;
    match (system, row.prompt) {
        (None, prompt) => Ok(Row { prompt, ..row }),
        (Some(system), Some(Prompt::Chat(messages))) => {
            let prompt = Some(Prompt::Chat(with_system(messages, Some(system))?));
            Ok(Row { prompt, ..row })
        }
        (Some(_), _) => {
            Err("holds a key \"system\" beside text, which has no place for it; put it there"
                .into())
        }
    }
}

/// A row of `prompt` and the answers in `keys`. Where there is a system message for it, a prompt of
/// text becomes a user's.
fn with_answers(
    keys: &mut Keys<'_>,
    prompt: Option<Prompt>,
    from_question: bool,
    is_chat: bool,
) -> Parsed<Row> {
    let answer_keys: &[&str] = match from_question {
        true => &["chosen", "output", "answer", "response", "completion"],
        false => &["chosen", "completion", "response"],
    };
    let Some(good) = keys.first(answer_keys) else {
        let text = keys.take("text");
        return match (prompt, text) {
            _ if keys.has("rejected") => Err(missing("chosen")),
            (Some(Prompt::Text(text)), _) if is_chat => {
                let prompt = Some(Prompt::Chat(vec![Message::new("user", text)]));
                Ok(Row { prompt, ..Row::blank() })
            }
            (Some(prompt), _) => Ok(Row { prompt: Some(prompt), ..Row::blank() }),
            (None, Some(Value::String(text))) => text_row(text),
            (None, Some(other)) => Err(wrong_type("text", other, "a string")),
            (None, None) => Err(missing("prompt")),
        };
    };
    let row = match (prompt, answers(keys, good)?) {
        (Some(Prompt::Text(prompt)), Answers::Text(c, r)) if is_chat => {
            let answer = |text: String| vec![Message::new("assistant", text)];
            conversations(&[Message::new("user", prompt)], answer(c), r.map(answer))?
        }
        (Some(Prompt::Text(prompt)), Answers::Text(chosen, rejected)) => {
            let answer = |text: String| match good {
                "completion" => Answer::Text { joint: "", text },
                _ => Answer::Text { joint: joint(&prompt, &text), text },
            };
            let (chosen, rejected) = (Some(answer(chosen)), rejected.map(answer));
            Row { chosen, rejected, prompt: Some(Prompt::Text(prompt)), ..Row::blank() }
        }
        (Some(Prompt::Chat(base)), Answers::Text(c, r)) => {
            let answer = |text: String| vec![Message::new("assistant", text)];
            conversations(&base, answer(c), r.map(answer))?
        }
        (Some(Prompt::Chat(base)), Answers::Chat(c, r)) => conversations(&base, c, r)?,
        (Some(Prompt::Text(content)), Answers::Chat(c, r)) => {
            // Either the answer alone, or the whole conversation, whose beginning `prompt` repeats.
            let alone = c.first().is_some_and(Message::is_answer);
            if !alone {
                repeats(&content, &c)?;
            }
            let base = vec![Message::new("user", content)];
            conversations(if alone { &base } else { &[] }, c, r)?
        }
        (None, Answers::Chat(c, r)) => conversations(&[], c, r)?,
        (None, Answers::Text(c, Some(r))) => transcripts(&c, &r)?,
        (None, Answers::Text(_, None)) => return Err(missing("prompt")),
    };
    for (key, answer) in [(good, &row.chosen), ("rejected", &row.rejected)] {
        if answer.as_ref().is_some_and(Answer::is_blank) {
            return Err(format!("the answer in key {key:?} is empty"));
        }
    }
    match row.rejected.is_some() && row.chosen == row.rejected {
        true => Err(format!("keys {good:?} and \"rejected\" hold the same answer")),
        false => Ok(row),
    }
}

/// The user's question under the other names it has: Alpaca's `instruction` with its `input`,
/// `question`, `query`, or `input` beside `output`.
fn question(keys: &mut Keys<'_>) -> Parsed<Option<Prompt>> {
    let key = match keys.first(CHAT_PROMPTS) {
        Some(key) => key,
        None if keys.has("input") && keys.has("output") => "input",
        None => return Ok(None),
    };
    let mut text = string(key, keys.take(key))?.unwrap_or_default();
    if key == "instruction" {
        for more in ["input", "context"] {
            let more = string(more, keys.take(more))?.unwrap_or_default();
            if !more.trim().is_empty() {
                text = if text.trim().is_empty() { more } else { format!("{text}\n{more}") };
            }
        }
    }
    let mut messages = vec![];
    if let Some(history) = keys.take("history") {
        let pairs = serde_json::from_value::<Vec<[String; 2]>>(history.clone());
        let pairs = pairs.map_err(|_| "key \"history\" is not a list of [question, answer]")?;
        for [question, answer] in pairs {
            messages.extend([Message::new("user", question), Message::new("assistant", answer)]);
        }
    }
    messages.push(Message::new("user", checked(key, &text)?));
    Ok(Some(Prompt::Chat(messages)))
}

fn system_of(keys: &mut Keys<'_>) -> Parsed<Option<String>> {
    let mut found = None;
    for key in ["system", "system_prompt"] {
        let Some(text) = string(key, keys.take(key))? else { continue };
        if text.trim().is_empty() {
            continue;
        }
        if found.as_ref().is_some_and(|other| *other != text) {
            return Err("keys \"system\" and \"system_prompt\" differ; keep one".into());
        }
        found = Some(text);
    }
    Ok(found)
}

/// Puts the row's own system message first. A second one beside it would be ambiguous.
fn with_system(mut messages: Vec<Message>, system: Option<String>) -> Parsed<Vec<Message>> {
    let Some(system) = system else { return Ok(messages) };
    match messages.iter().find(|m| m.role() == "system") {
        Some(own) if own.content() == system => Ok(messages),
        Some(_) => Err("holds a key \"system\" and another system message; keep one".into()),
        None => {
            messages.insert(0, Message::new("system", system));
            Ok(messages)
        }
    }
}

fn missing(key: &str) -> String {
    format!("key {key:?} is missing ({EXPECTED})")
}

/// Text that holds something, and no NUL.
fn checked(key: &str, text: &str) -> Parsed<String> {
    if text.trim().is_empty() {
        return Err(format!("key {key:?} is empty"));
    }
    no_nul(key, text)
}

fn prompt_of(value: &Value) -> Parsed<Prompt> {
    match value {
        Value::String(s) => Ok(Prompt::Text(checked("prompt", s)?)),
        Value::Array(_) => Ok(Prompt::Chat(parse_messages("prompt", value)?)),
        Value::Object(_) => Ok(Prompt::Chat(vec![single("prompt", value)?])),
        other => Err(wrong_type("prompt", other, "a string or a list of messages")),
    }
}

fn answers(keys: &mut Keys<'_>, good: &str) -> Parsed<Answers> {
    let (chosen, rejected) = (keys.take(good).unwrap_or(&Value::Null), keys.take("rejected"));
    let is_chat = |v: &Value| matches!(v, Value::Array(_) | Value::Object(_));
    match (chosen, rejected) {
        (Value::String(c), None) => Ok(Answers::Text(checked(good, c)?, None)),
        (Value::String(c), Some(Value::String(r))) => {
            Ok(Answers::Text(checked(good, c)?, Some(checked("rejected", r)?)))
        }
        (Value::String(_), Some(r)) => {
            Err(wrong_type("rejected", r, &format!("a string like {good:?}")))
        }
        (c, None) if is_chat(c) => Ok(Answers::Chat(list(good, c)?, None)),
        (c, Some(r)) if is_chat(c) && is_chat(r) => {
            Ok(Answers::Chat(list(good, c)?, Some(list("rejected", r)?)))
        }
        (c, Some(r)) if is_chat(c) => {
            Err(wrong_type("rejected", r, &format!("a list like {good:?}")))
        }
        (other, _) => Err(wrong_type(good, other, "a string or a list of messages")),
    }
}

/// A whole conversation: the last message is the answer when the assistant wrote it.
fn conversation(key: &str, mut messages: Vec<Message>) -> Parsed<Row> {
    let answer = messages.pop_if(|m| m.is_answer());
    if messages.is_empty() {
        return Err(format!("key {key:?} holds an answer but no prompt"));
    }
    let chosen = answer.map(|m| Answer::Chat(vec![m]));
    Ok(Row { prompt: Some(Prompt::Chat(messages)), chosen, is_dialogue: true, ..Row::blank() })
}

/// One space between prompt and answer where neither has white space at the joint. Not after a
/// character beyond ASCII: scripts without spaces between words need none.
fn joint(prompt: &str, answer: &str) -> &'static str {
    let plain = prompt.ends_with(|c: char| c.is_ascii() && !c.is_ascii_whitespace());
    if plain && !answer.starts_with(char::is_whitespace) { " " } else { "" }
}

/// Splits conversations into the messages they share and those that differ. `base` is put before
/// an answer that does not itself begin with it. One answer alone is the last message.
fn conversations(
    base: &[Message],
    chosen: Vec<Message>,
    rejected: Option<Vec<Message>>,
) -> Parsed<Row> {
    let mut chosen = whole(base, chosen)?;
    let rejected = rejected.map(|r| whole(base, r)).transpose()?;
    let all = [Some(&chosen), rejected.as_ref()];
    if !all.into_iter().flatten().all(|c| c.last().is_some_and(Message::is_answer)) {
        return Err("an answer must end in a message of the role \"assistant\"".into());
    }
    let shared = match &rejected {
        Some(rejected) => chosen.iter().zip(rejected).take_while(|(a, b)| a.says(b)).count(),
        None => chosen.len() - 1,
    };
    if let Some(rejected) = &rejected
        && chosen.len() != rejected.len()
        && shared == chosen.len().min(rejected.len())
    {
        return Err("one of \"chosen\" and \"rejected\" is only the beginning of the other".into());
    }
    // Equal answers: the caller refuses them.
    let shared = shared.min(chosen.len() - 1);
    if shared == 0 {
        return Err(match rejected {
            Some(_) if chosen.len() > 1 => {
                "\"chosen\" and \"rejected\" share no message to answer".into()
            }
            _ => "the conversation holds an answer but no prompt".into(),
        });
    }
    let answer = chosen.split_off(shared);
    let rejected = rejected.map(|mut r| Answer::Chat(r.split_off(shared)));
    Ok(Row {
        prompt: Some(Prompt::Chat(chosen)),
        chosen: Some(Answer::Chat(answer)),
        rejected,
        ..Row::blank()
    })
}

/// A prompt with an answer behind it: `messages` as they are where they begin with the prompt,
/// which may have a system message that they lack, or the other way round.
fn whole(base: &[Message], messages: Vec<Message>) -> Parsed<Vec<Message>> {
    let begins = |all: &[Message], with: &[Message]| {
        all.len() > with.len() && all.iter().zip(with).all(|(a, b)| a.says(b))
    };
    let split = |all: &[Message]| all.iter().take_while(|m| m.role() == "system").count();
    if begins(&messages, base) {
        return Ok(messages);
    }
    let (own, given) = (split(&messages), split(base));
    if given < base.len() && begins(&messages[own..], &base[given..]) {
        return match (own, given) {
            (0, _) => Ok([&base[..given], &messages[..]].concat()),
            (_, 0) => Ok(messages),
            _ => Err("the prompt and its answers have different system messages; keep one".into()),
        };
    }
    match messages.first() {
        Some(first) if first.role() == "user" && !base.is_empty() => {
            Err("an answer holds a conversation that does not begin with the prompt".into())
        }
        _ => Ok([base, &messages[..]].concat()),
    }
}

/// An error unless a prompt of text, which stands beside a conversation, is said in it.
fn repeats(prompt: &str, messages: &[Message]) -> Parsed<()> {
    let prompt = prompt.trim();
    match messages
        .iter()
        .any(|m| m.content().contains(prompt) || prompt.contains(m.content().trim()))
    {
        true => Ok(()),
        false => {
            Err("key \"prompt\" is not in the conversation beside it; keep one of them".into())
        }
    }
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
    let answer = |text: &str| Some(Answer::Text { joint: "", text: text[end..].to_owned() });
    Ok(Row {
        prompt: Some(Prompt::Text(chosen[..end].to_owned())),
        chosen: answer(chosen),
        rejected: answer(rejected),
        ..Row::blank()
    })
}

#[cfg(test)]
#[path = "row_tests.rs"]
mod tests;

//! Rows as they are read: prompts, answers, messages, and what a chat template is given beside
//! them.

use crate::base::Error;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::sync::Arc;

/// One message of a conversation, with every key of the file in its order. Copies share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    fields: Arc<Value>,
}

/// Keys that say how much a message counts in the loss.
pub(super) const WEIGHT_KEYS: [&str; 5] = ["weight", "train", "training", "loss", "loss_weight"];

impl Message {
    /// A message of text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message::of(json!({"role": role.into(), "content": content.into()}))
    }

    /// A message with the keys of an object, `role` and `content` among them.
    pub(super) fn from_fields(fields: Map<String, Value>) -> Message {
        Message::of(Value::Object(fields))
    }

    fn of(fields: Value) -> Message {
        Message { fields: Arc::new(fields) }
    }

    /// The same message with other strings. Keys stay.
    pub(super) fn map(&self, f: &dyn Fn(&str) -> String) -> Message {
        Message::of(mapped(&self.fields, f))
    }

    /// The speaker: "system", "user", "assistant", "tool", or another role of the chat template.
    pub fn role(&self) -> &str {
        self.fields["role"].as_str().unwrap_or_default()
    }

    /// The text, parts end to end; empty where the file has null, as for a message that only calls
    /// tools.
    pub fn content(&self) -> Cow<'_, str> {
        match &self.fields["content"] {
            Value::Array(parts) => parts.iter().map(part_text).collect::<String>().into(),
            other => other.as_str().unwrap_or_default().into(),
        }
    }

    /// The same message with another text, in parts where it had parts.
    pub(super) fn with_content(&self, text: &str) -> Message {
        let content = match &self.fields["content"] {
            Value::Array(_) => json!([{"type": "text", "text": text}]),
            _ => json!(text),
        };
        Message::of(self.with("content", &content))
    }

    /// Its fields with another value for `key`.
    fn with(&self, key: &str, value: &Value) -> Value {
        let others = self.fields.as_object().into_iter().flatten();
        // One that is there keeps its place.
        let other =
            |(k, v): (&String, &Value)| (k.clone(), if k == key { Value::Null } else { v.clone() });
        let mut fields: Map<String, Value> = others.map(other).collect();
        fields.insert(key.to_owned(), value.clone());
        Value::Object(fields)
    }

    /// Its fields with the text in one piece, for templates that know no parts.
    pub(super) fn flat_fields(&self) -> Cow<'_, Value> {
        match self.fields["content"].is_array() {
            true => Cow::Owned(self.with("content", &json!(self.content()))),
            false => Cow::Borrowed(&*self.fields),
        }
    }

    /// True if both say the same: speaker, text and calls of tools.
    pub(super) fn says(&self, other: &Message) -> bool {
        let calls = |m: &Message| m.fields.get("tool_calls").filter(|c| !c.is_null()).cloned();
        self.role() == other.role()
            && self.content().trim() == other.content().trim()
            && calls(self) == calls(other)
    }

    /// True if the assistant wrote it.
    pub fn is_answer(&self) -> bool {
        self.role() == "assistant"
    }

    /// True if it calls a tool.
    pub fn calls_tools(&self) -> bool {
        self.fields["tool_calls"].as_array().is_some_and(|calls| !calls.is_empty())
    }

    /// The same message with calls of another tool.
    pub(super) fn calling(&self, name: &str) -> Message {
        let mut fields = Value::clone(&self.fields);
        for call in fields["tool_calls"].as_array_mut().into_iter().flatten() {
            let nested = call.get("function").is_some();
            let function = if nested { &mut call["function"] } else { call };
            function["name"] = name.into();
        }
        Message::of(fields)
    }

    /// True if it says nothing: no text and no call of a tool.
    pub(super) fn is_blank(&self) -> bool {
        self.content().trim().is_empty() && !self.calls_tools()
    }

    /// The weight of the message in the loss, where the file gives one.
    pub fn weight(&self) -> Option<f32> {
        let weights = WEIGHT_KEYS.iter().filter_map(|key| weight_of(&self.fields[*key]).ok()?);
        weights.reduce(|a, b| a * b)
    }

    /// The message as an object.
    pub fn fields(&self) -> &Value {
        &self.fields
    }
}

/// The same value with other strings. Keys stay: templates ask for them.
pub(super) fn mapped(value: &Value, f: &dyn Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => Value::String(f(text)),
        Value::Array(list) => list.iter().map(|v| mapped(v, f)).collect(),
        Value::Object(object) => {
            let fields: Map<_, _> = object.iter().map(|(k, v)| (k.clone(), mapped(v, f))).collect();
            Value::Object(fields)
        }
        other => other.clone(),
    }
}

/// The text of a part of a message's content.
pub(super) fn part_text(part: &Value) -> &str {
    part.as_str().or_else(|| part["text"].as_str()).unwrap_or_default()
}

/// A weight as files spell it: a number, or a boolean; null says nothing. `Err`: anything else.
pub(super) fn weight_of(value: &Value) -> Result<Option<f32>, ()> {
    match value {
        Value::Null => Ok(None),
        Value::Bool(yes) => Ok(Some(f32::from(u8::from(*yes)))),
        Value::Number(n) => {
            let weight = n.as_f64().unwrap_or(-1.0) as f32;
            if weight.is_finite() && weight >= 0.0 { Ok(Some(weight)) } else { Err(()) }
        }
        _ => Err(()),
    }
}

/// The model's input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text, taken verbatim.
    Text(String),
    /// A conversation, rendered by the chat template.
    Chat(Vec<Message>),
}

/// An answer to a prompt: text to a text, messages to a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Text behind the prompt's.
    Text {
        /// The space that joins it to the prompt, or nothing.
        joint: &'static str,
        /// The answer as the file has it.
        text: String,
    },
    /// The messages that follow the prompt's. The last one is the assistant's.
    Chat(Vec<Message>),
}

impl Answer {
    /// The text behind a text prompt, or that of the last message.
    pub fn text(&self) -> String {
        match self {
            Answer::Text { joint, text } => format!("{joint}{text}"),
            Answer::Chat(messages) => {
                messages.last().map_or(String::new(), |m| m.content().into_owned())
            }
        }
    }

    pub(super) fn is_blank(&self) -> bool {
        match self {
            Answer::Text { text, .. } => text.trim().is_empty(),
            Answer::Chat(messages) => messages.last().is_none_or(Message::is_blank),
        }
    }
}

/// Values that a chat template is given beside the messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatContext {
    /// JSON schemas of the tools the model may call.
    pub tools: Option<Value>,
    /// Documents to answer from.
    pub documents: Option<Value>,
    /// Further variables (`chat_template_kwargs`), such as `enable_thinking`.
    pub variables: Map<String, Value>,
}

impl ChatContext {
    /// The same with other strings. Keys stay.
    pub(super) fn map(&self, f: &dyn Fn(&str) -> String) -> ChatContext {
        ChatContext {
            tools: self.tools.as_ref().map(|v| mapped(v, f)),
            documents: self.documents.as_ref().map(|v| mapped(v, f)),
            variables: self.variables.iter().map(|(k, v)| (k.clone(), mapped(v, f))).collect(),
        }
    }

    /// All values in it.
    pub(super) fn values(&self) -> impl Iterator<Item = &Value> {
        self.tools.iter().chain(&self.documents).chain(self.variables.values())
    }
}

/// One row of a data file. At least one of `prompt` and `text` is present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The file as the user named it.
    pub file: Arc<str>,
    /// Line, or place in the JSON list, from 1.
    pub row: usize,
    /// The prompt.
    pub prompt: Option<Prompt>,
    /// The good answer.
    pub chosen: Option<Answer>,
    /// The bad answer.
    pub rejected: Option<Answer>,
    /// Plain text.
    pub text: Option<String>,
    /// True if the prompt is a conversation as it was held, not one that asks for an answer.
    pub is_dialogue: bool,
    /// Values for the chat template beside the prompt's messages.
    pub context: Option<Arc<ChatContext>>,
    /// Keys of the row that nothing reads.
    pub unused: Vec<String>,
    /// All columns, where a reward reads them; else none.
    pub columns: Arc<Columns>,
}

/// The columns of a row by name.
pub type Columns = Map<String, Value>;

impl Row {
    /// A row that holds nothing yet, of no file.
    pub fn blank() -> Row {
        Row {
            file: "".into(),
            row: 0,
            prompt: None,
            chosen: None,
            rejected: None,
            text: None,
            is_dialogue: false,
            context: None,
            unused: vec![],
            columns: Arc::default(),
        }
    }

    /// True if the weights of its messages leave nothing to learn: that of the last answer is 0,
    /// and none of the others is above.
    pub fn learns_nothing(&self) -> bool {
        let (Some(Prompt::Chat(prompt)), Some(Answer::Chat(answer))) = (&self.prompt, &self.chosen)
        else {
            return false;
        };
        let mut weights =
            prompt.iter().chain(answer).filter(|m| m.is_answer()).map(Message::weight);
        weights.next_back() == Some(Some(0.0)) && weights.all(|w| w.is_none_or(|w| w == 0.0))
    }

    /// The place of the last answer in a conversation that ends without one.
    pub(super) fn earlier_answer(&self) -> Option<usize> {
        match (&self.prompt, &self.chosen) {
            (Some(Prompt::Chat(messages)), None) if self.is_dialogue => {
                messages.iter().rposition(Message::is_answer).filter(|last| *last > 0)
            }
            _ => None,
        }
    }

    /// The messages before that answer, and the answer.
    pub(super) fn up_to_answer(&self) -> Option<(Prompt, Answer)> {
        let last = self.earlier_answer()?;
        let Some(Prompt::Chat(messages)) = &self.prompt else { return None };
        let answer = Answer::Chat(vec![messages[last].clone()]);
        Some((Prompt::Chat(messages[..last].to_vec()), answer))
    }

    /// True if one of its messages has a weight of its own.
    pub fn has_weights(&self) -> bool {
        self.messages().any(|m| m.weight().is_some())
    }

    /// Messages of the prompt and of the good answer.
    fn messages(&self) -> impl DoubleEndedIterator<Item = &Message> {
        let prompt = match &self.prompt {
            Some(Prompt::Chat(messages)) => &messages[..],
            _ => &[],
        };
        let answer = match &self.chosen {
            Some(Answer::Chat(messages)) => &messages[..],
            _ => &[],
        };
        prompt.iter().chain(answer)
    }

    /// A user error about this row: `FILE row N: MESSAGE`.
    pub fn error(&self, message: impl std::fmt::Display) -> Error {
        Error::user(format!("{} row {}: {message}", self.file, self.row))
    }
}

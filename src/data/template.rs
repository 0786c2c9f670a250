//! Chat templates: the Jinja programs that come with a tokenizer, rendered as `transformers` does
//! it, but with a limit on their work. It renders text; it knows nothing of token ids.

use super::jinja::{Failed, Limits, Output, Program, Value, parse, render};
use crate::base::{Error, Result, bounded};
use serde_json::{Map, Value as Json};
use std::borrow::Cow;
use std::sync::Arc;

/// Units of work of a rendering: the base, more for each message (which takes some hundreds), the
/// most of these two together, and more for each byte of input (a text costs an eighth a byte).
const FUEL: [u64; 4] = [1_000_000, 20_000, 20_000_000, 16];

/// Levels of calls that a rendering may nest where it stands, and on a stack of its own.
const DEPTH: [u32; 2] = [60, 2_000];

/// Bytes of that stack for a level.
const STACK: usize = 32 << 10;

/// Bytes that one text of a rendering may have, and bytes more for each byte of input.
const TEXT: [usize; 2] = [32 << 20, 4];

/// All that a rendering is given.
#[derive(Clone, Copy, Debug, Default)]
pub struct TemplateInput<'a> {
    /// The conversation: objects, with their keys in the order of the file.
    pub messages: &'a [&'a Json],
    /// Tools that the assistant may call, as JSON schemas; None where there are none.
    pub tools: Option<&'a Json>,
    /// Documents that the answer may use.
    pub documents: Option<&'a Json>,
    /// Variables of this template, such as `enable_thinking`; they come before special tokens.
    pub variables: Option<&'a Map<String, Json>>,
    /// Opens the assistant's next turn.
    pub add_generation_prompt: bool,
}

/// A rendered conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendering {
    /// The text.
    pub text: String,
    /// Byte ranges of `text` that came from `{% generation %}`: what the assistant wrote.
    pub generated: Vec<std::ops::Range<usize>>,
}

/// A compiled chat template.
pub struct ChatTemplate {
    program: Program,
    source: String,
    /// Where it came from, for messages.
    origin: String,
    special: Map<String, Json>,
    now: i64,
    reads_parts: bool,
}

/// Words by which templates look into a content that may be a list of parts.
const PARTS: [&str; 7] =
    ["is string", "is not string", "is iterable", "is sequence", ".text", "'text'", "\"text\""];

impl ChatTemplate {
    /// Compiles `source`. `origin` names the tokenizer in errors; `special` holds the texts of its
    /// special tokens by name (`bos_token`, ...), only those that are set; `now`, in seconds since
    /// 1970 (UTC), is the time that `strftime_now` returns.
    pub fn new(
        source: &str,
        origin: &str,
        special: &Map<String, Json>,
        now: i64,
    ) -> Result<ChatTemplate> {
        let program = bounded(&whose(origin), source.len(), || parse(source));
        let program = program.map_err(|(message, line)| describe(origin, line, &message))?;
        let (source, origin, special) = (source.to_owned(), origin.to_owned(), special.clone());
        let reads_parts = PARTS.iter().any(|word| source.contains(word));
        Ok(ChatTemplate { program, source, origin, special, now, reads_parts })
    }

    /// Renders a conversation. Errors name the tokenizer and the template's line.
    pub fn render(&self, input: &TemplateInput) -> Result<Rendering> {
        let [base, message, most, byte] = FUEL;
        let fuel = most.min(base + message * input.messages.len() as u64);
        let variables = input.variables.into_iter().flat_map(|v| v.values());
        let others = input.tools.into_iter().chain(input.documents).chain(variables);
        let given: usize = input.messages.iter().copied().chain(others).map(bytes).sum();
        let fuel = fuel + byte * given as u64;
        let text = TEXT[0] + TEXT[1] * given;
        let [shallow, deep] = DEPTH;
        // Its fuel ends before, so these bounds are the last resort.
        let run = |depth| {
            let bytes = self.source.len() + given;
            bounded(&whose(&self.origin), bytes, || {
                self.rendered(input, Limits { fuel, depth, text })
            })
        };
        let outcome = match run(shallow) {
            Err(Failed::Depth) => on_stack(deep as usize * STACK, || run(deep))?,
            outcome => outcome,
        };
        match outcome {
            Ok(Output { text, generated }) => Ok(Rendering { text, generated }),
            Err(Failed::Error(message, line)) => Err(describe(&self.origin, line, &message)),
            Err(Failed::Fuel) => Err(self.endless("it takes too much work for its input")),
            Err(Failed::Depth) => Err(self.endless("its calls nest too deeply (recursion)")),
        }
    }

    fn endless(&self, what: &str) -> Error {
        Error::user(format!("chat template of {}: {what}", self.origin))
    }

    /// True where the template marks the assistant's text by `{% generation %}`.
    pub fn marks_generation(&self) -> bool {
        self.program.marks_generation
    }

    /// True if the template may look into a content that is a list of parts.
    pub(super) fn reads_parts(&self) -> bool {
        self.reads_parts
    }

    /// The template as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    fn rendered(
        &self,
        input: &TemplateInput,
        limits: Limits,
    ) -> std::result::Result<Output, Failed> {
        let mut vars: Vec<(Arc<str>, Value)> = Vec::new();
        let mut set = |name: &str, value: Value| match vars.iter_mut().find(|(n, _)| &**n == name) {
            Some((_, old)) => *old = value,
            None => vars.push((Arc::from(name), value)),
        };
        let too_deep = || Failed::Error("its input is nested too deeply".into(), 1);
        let given = |json: &Json| value(json).ok_or_else(too_deep);
        for (name, json) in self.special.iter().chain(input.variables.into_iter().flatten()) {
            set(name, given(json)?);
        }
        set("messages", messages(input.messages).ok_or_else(too_deep)?);
        set("tools", given(input.tools.unwrap_or(&Json::Null))?);
        set("documents", given(input.documents.unwrap_or(&Json::Null))?);
        set("add_generation_prompt", Value::Bool(input.add_generation_prompt));
        render(&self.program, vars, self.now, limits)
    }
}

/// True if a template's source holds `key` as a word of its own.
pub(super) fn mentions(source: &str, key: &str) -> bool {
    let inside = |c: char| c.is_alphanumeric() || c == '_';
    source.match_indices(key).any(|(at, _)| {
        !source[..at].ends_with(inside) && !source[at + key.len()..].starts_with(inside)
    })
}

/// Bytes of the texts in a value.
fn bytes(json: &Json) -> usize {
    match json {
        Json::String(s) => s.len(),
        Json::Array(items) => items.iter().map(bytes).sum(),
        Json::Object(entries) => entries.iter().map(|(k, v)| k.len() + bytes(v)).sum(),
        _ => 0,
    }
}

/// The messages as templates see them; None where they are nested too deeply.
fn messages(messages: &[&Json]) -> Option<Value> {
    let messages = messages.iter().map(|message| value(&with_reasoning(message)));
    Value::list(messages.collect::<Option<_>>()?).ok()
}

/// A message with its reasoning under all names that templates read, as transformers gives it.
fn with_reasoning(message: &Json) -> Cow<'_, Json> {
    let names = ["reasoning_content", "thinking", "reasoning"];
    let found = |object: &Map<String, Json>| {
        names.iter().find_map(|n| object.get(*n).filter(|v| !v.is_null()).cloned())
    };
    match message.as_object().and_then(|object| Some((object, found(object)?))) {
        None => Cow::Borrowed(message),
        Some((object, reasoning)) => {
            let mut all = Map::new();
            all.insert("thinking".into(), reasoning.clone());
            all.extend(object.iter().map(|(k, v)| (k.clone(), v.clone())));
            all.insert("reasoning_content".into(), reasoning);
            Cow::Owned(Json::Object(all))
        }
    }
}

/// A JSON value as templates see it; None where it is nested too deeply.
fn value(json: &Json) -> Option<Value> {
    Some(match json {
        Json::Null => Value::None,
        Json::Bool(b) => Value::Bool(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Value::Int(i.into()),
            (_, Some(i)) => Value::Int(i.into()),
            _ => Value::Float(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(s) => Value::str(s),
        Json::Array(items) => Value::list(items.iter().map(value).collect::<Option<_>>()?).ok()?,
        Json::Object(entries) => {
            let entry = |(k, v): (&String, &Json)| Some((Value::str(k), value(v)?));
            Value::dict(entries.iter().map(entry).collect::<Option<_>>()?).ok()?
        }
    })
}

/// Runs `f` on a thread with so many bytes of stack.
fn on_stack<T: Send>(bytes: usize, f: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(bytes).spawn_scoped(scope, f);
        let thread = thread.map_err(|e| {
            Error::resource(format!("cannot start a thread for a chat template: {e}"))
        })?;
        thread.join().map_err(|panic| std::panic::resume_unwind(panic))
    })
}

/// A template by the tokenizer that it belongs to, for the bounds of its work.
fn whose(origin: &str) -> String {
    format!("the chat template of {origin}")
}

fn describe(origin: &str, line: u32, message: &str) -> Error {
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    Error::user(format!("chat template of {origin} line {line}: {message}"))
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "template_work_tests.rs"]
mod work_tests;

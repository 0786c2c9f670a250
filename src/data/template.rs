//! Chat templates: the Jinja programs that come with a tokenizer, run as the Hugging Face tools run
//! them (trimmed blocks, loop controls, `raise_exception`, `strftime_now`, Python's string methods)
//! but with a limit on their work. It renders text; it knows nothing of token ids.

use super::pystr;
use crate::base::{Error, Result, with_limit};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Enumerator, Object, Value};
use minijinja::{Environment, ErrorKind};
use serde_json::{Map, Value as Json};
use std::sync::Arc;

const NAME: &str = "chat_template";

/// Template instructions that a rendering may take where it stands. A turn of a conversation takes about a hundred.
const FUEL: u64 = 2_000;

/// Instructions that it may take on a stack of its own: so many, so many more for a turn, and so many at most. Each
/// can nest a value one level deeper, and values are written and dropped on the stack.
const MORE_FUEL: [u64; 3] = [20_000, 2_000, 150_000];

/// Stack of an instruction in bytes: writing a nested value was seen to take 720.
const STACK: usize = 1 << 10;

/// Bytes one rendering may allocate: a string doubled forty times would be all of memory.
const MEMORY: usize = 256 << 20;

/// All that a rendering is given.
#[derive(Clone, Copy, Debug, Default)]
pub struct TemplateInput<'a> {
    /// The conversation: objects, with their keys in the order of the file.
    pub messages: &'a [Json],
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
    env: Environment<'static>,
    source: String,
    /// Where it came from, for messages.
    origin: String,
    special: Map<String, Json>,
}

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
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|e| Error::internal(e.to_string()))?);
        env.set_unknown_method_callback(pystr::method);
        env.add_filter("tojson", pystr::tojson);
        env.add_function("raise_exception", |message: String| -> Raised {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        env.add_function("strftime_now", move |format: String| pystr::strftime(&format, now));
        let marked = without_generation_marks(source);
        limited(|| env.add_template_owned(NAME, marked)).map_err(|e| describe(origin, &e))?;
        let (source, origin, special) = (source.to_owned(), origin.to_owned(), special.clone());
        Ok(ChatTemplate { env, source, origin, special })
    }

    /// Renders a conversation. Errors name the tokenizer and the template's line.
    pub fn render(&self, input: &TemplateInput) -> Result<Rendering> {
        let turns = input.messages.len();
        let mut context: Vec<(String, Value)> =
            self.special.iter().map(|(k, v)| (k.clone(), value(v))).collect();
        let null = Json::Null;
        context.push(("messages".into(), input.messages.iter().map(value).collect()));
        context.push(("tools".into(), value(input.tools.unwrap_or(&null))));
        context.push(("documents".into(), value(input.documents.unwrap_or(&null))));
        context.push(("add_generation_prompt".into(), input.add_generation_prompt.into()));
        for (key, v) in input.variables.into_iter().flatten() {
            context.push((key.clone(), value(v)));
        }
        let context = Value::from_pairs(context);
        let [base, turn, most] = MORE_FUEL;
        let fuel = most.min(base + turn * turns as u64);
        let rendered = match self.rendered(&context, FUEL) {
            Err(e) if e.kind() == ErrorKind::OutOfFuel => {
                on_stack(fuel as usize * STACK, || self.rendered(&context, fuel))?
            }
            rendered => rendered,
        };
        let text = rendered.map_err(|e| describe(&self.origin, &e))?;
        Ok(Rendering { text, generated: Vec::new() })
    }

    /// Whether the template marks the assistant's text by `{% generation %}`.
    pub fn marks_generation(&self) -> bool {
        without_generation_marks(&self.source) != self.source
    }

    /// The template as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    fn rendered(
        &self,
        context: &Value,
        fuel: u64,
    ) -> std::result::Result<String, minijinja::Error> {
        // A copy of a few pointers.
        let mut env = self.env.clone();
        env.set_fuel(Some(fuel));
        limited(|| env.get_template(NAME)?.render(context.clone()))
    }
}

/// A JSON value as templates see it.
fn value(json: &Json) -> Value {
    match json {
        Json::Array(items) => items.iter().map(value).collect(),
        Json::Object(entries) => Value::from_object(Ordered(entries.clone())),
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Value::from(n),
            (_, Some(n)) => Value::from(n),
            _ => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(s) => Value::from(s),
    }
}

/// A dictionary that keeps its order, unlike the engine's own.
#[derive(Debug)]
struct Ordered(Map<String, Json>);

impl Object for Ordered {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_str()?).map(value)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.keys().map(Value::from).collect())
    }
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

/// Runs the template engine on what may be a template without end.
fn limited<T>(f: impl FnOnce() -> T) -> T {
    with_limit(MEMORY, "the chat template of a model", f)
}

type Raised = std::result::Result<Value, minijinja::Error>;

fn describe(origin: &str, e: &minijinja::Error) -> Error {
    let what = match e.kind() {
        ErrorKind::OutOfFuel => "it does not come to an end",
        _ => &e.detail().map_or_else(|| e.kind().to_string(), str::to_owned),
    };
    let line = e.line().map_or(String::new(), |l| format!(" line {l}"));
    Error::user(format!("chat template of {origin}{line}: {what}"))
}

/// `{% generation %}` and `{% endgeneration %}` mark the assistant's text for Hugging Face's loss
/// masks and print nothing; here they become a condition that always holds.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start + 2..].find("%}") else { break };
        let tag = &rest[start..start + 2 + length];
        out.push_str(&rest[..start]);
        out.push_str(
            &match tag[2..].trim_matches(|c: char| c.is_whitespace() || "+-".contains(c)) {
                "generation" => tag.replacen("generation", "if true", 1),
                "endgeneration" => tag.replacen("endgeneration", "endif", 1),
                _ => tag.to_owned(),
            },
        );
        rest = &rest[start + tag.len()..];
    }
    out + rest
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;

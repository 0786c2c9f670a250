//! Chat templates: the Jinja programs that come with a tokenizer, run as the Hugging Face tools run
//! them (trimmed blocks, loop controls, `raise_exception`, `strftime_now`, Python's string methods)
//! but with a limit on their work. It renders text; it knows nothing of token ids.

use super::pystr;
use super::source::Message;
use crate::base::{Error, Result, with_limit};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Enumerator, Object, Value};
use minijinja::{Environment, ErrorKind};
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

/// A compiled chat template.
pub struct ChatTemplate {
    env: Environment<'static>,
    /// Where it came from, for messages.
    origin: String,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles `source`. `origin` names the tokenizer in errors; `bos` and `eos` are the texts of
    /// its tokens; `now`, in seconds since 1970 (UTC), is what `strftime_now` tells.
    pub fn new(source: &str, origin: &str, bos: &str, eos: &str, now: i64) -> Result<ChatTemplate> {
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|e| Error::internal(e.to_string()))?);
        env.set_unknown_method_callback(pystr::method);
        env.add_filter("tojson", pystr::tojson);
        env.add_function("raise_exception", |message: String| -> Raised {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        env.add_function("strftime_now", move |format: String| pystr::strftime(&format, now));
        let source = without_generation_marks(source);
        limited(|| env.add_template_owned(NAME, source)).map_err(|e| describe(origin, &e))?;
        let (origin, bos, eos) = (origin.to_owned(), bos.to_owned(), eos.to_owned());
        Ok(ChatTemplate { env, origin, bos, eos })
    }

    /// Renders a conversation, with the opening of the assistant's next turn if asked. Errors name
    /// the tokenizer and the template's line.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let turn = |m: &Message| Value::from_object(Turn(m.clone()));
        let turns = messages.len();
        let messages: Vec<Value> = messages.iter().map(turn).collect();
        let context = Value::from_pairs([
            ("messages", Value::from(messages)),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("bos_token", Value::from(&self.bos)),
            ("eos_token", Value::from(&self.eos)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ]);
        let [base, turn, most] = MORE_FUEL;
        let fuel = most.min(base + turn * turns as u64);
        let rendered = match self.rendered(&context, FUEL) {
            Err(e) if e.kind() == ErrorKind::OutOfFuel => {
                on_stack(fuel as usize * STACK, || self.rendered(&context, fuel))?
            }
            rendered => rendered,
        };
        rendered.map_err(|e| describe(&self.origin, &e))
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

/// A message as templates see it: a dictionary that keeps its order, unlike the engine's own.
#[derive(Debug)]
struct Turn(Message);

impl Object for Turn {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match key.as_str()? {
            "role" => Some(Value::from(&self.0.role)),
            "content" => Some(Value::from(&self.0.content)),
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(&["role", "content"])
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

//! Finds what a row gives a chat template that never looks at it. A model would be trained as
//! if it were not there.

use super::chat::ChatFormat;
use super::template::mentions;
use super::tokenizer::Tokenizer;
use super::types::{Answer, Message, Prompt, Row, WEIGHT_KEYS};

/// Keys of messages that say nothing to a model.
const HARMLESS: [&str; 12] = [
    "role",
    "content",
    "id",
    "message_id",
    "uuid",
    "timestamp",
    "created_at",
    "date",
    "source",
    "model",
    "language",
    "score",
];

/// Keys of a conversation's row and messages, in order of first use, that its rendering leaves out:
/// tools, documents, variables, and what messages hold beside role and content.
pub fn unread_by_template(row: &Row, tokenizer: &Tokenizer, format: ChatFormat) -> Vec<String> {
    let empty = vec![];
    let (prompt, is_chat) = match &row.prompt {
        Some(Prompt::Chat(prompt)) => (prompt, true),
        _ => (&empty, false),
    };
    let source = match format {
        // Text is not rendered.
        _ if !is_chat => "",
        ChatFormat::Template => {
            let tools = row.context.as_ref().is_some_and(|c| c.tools.is_some());
            tokenizer.template_for(tools).map_or("", |t| t.source())
        }
        ChatFormat::HumanAssistant => "",
    };
    let mut keys: Vec<&str> = vec![];
    if let Some(context) = &row.context {
        keys.extend(context.tools.iter().map(|_| "tools"));
        keys.extend(context.documents.iter().map(|_| "documents"));
        keys.extend(context.variables.keys().map(String::as_str));
    }
    // Such a template may write any key of a message.
    if !["message | tojson", "message|tojson", "message.items", "m.items"]
        .iter()
        .any(|all| source.contains(all))
    {
        let answers = [&row.chosen, &row.rejected].into_iter().flatten();
        let answers = answers.filter_map(|a| match a {
            Answer::Chat(messages) => Some(messages),
            Answer::Text { .. } => None,
        });
        for message in prompt.iter().chain(answers.flatten()) {
            keys.extend(said_by(message));
        }
    }
    // A reasoning under one of these names reaches the template under all of them.
    const REASONING: [&str; 3] = ["thinking", "reasoning", "reasoning_content"];
    let reads = |key: &str| match REASONING.contains(&key) {
        true => REASONING.iter().any(|name| mentions(source, name)),
        false => mentions(source, key),
    };
    keys.retain(|key| !reads(key));
    let mut unread: Vec<String> = vec![];
    for key in keys {
        if !unread.iter().any(|k| k == key) {
            unread.push(key.to_owned());
        }
    }
    unread
}

/// Keys by which a message says something beside its text.
fn said_by(message: &Message) -> impl Iterator<Item = &str> {
    let fields = message.fields().as_object().into_iter().flatten();
    let empty = |v: &serde_json::Value| {
        v.is_null() || v.as_array().is_some_and(Vec::is_empty) || v.as_str() == Some("")
    };
    let known = |key: &str| HARMLESS.contains(&key) || WEIGHT_KEYS.contains(&key);
    fields.filter(move |(key, v)| !known(key) && !empty(v)).map(|(key, _)| key.as_str())
}

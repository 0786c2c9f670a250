//! Prompts as text and ids: conversations through the chat template or a plain format, and the
//! guard that keeps control tokens in a user's words from becoming control tokens.

use super::source::{Message, Prompt, Row};
use super::template::TemplateInput;
use super::tokenizer::Tokenizer;
use crate::base::Result;

/// How conversations become text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChatFormat {
    /// By the tokenizer's chat template; an error where it has none.
    Template,
    /// "\n\nHuman: ...\n\nAssistant: ...", a system message first as it is. Needs no template.
    HumanAssistant,
}

/// The ids of a conversation with the assistant's turn opened. Control tokens in messages are text.
pub fn chat_ids(
    messages: &[Message],
    tokenizer: &Tokenizer,
    format: ChatFormat,
) -> Result<Vec<i32>> {
    render_messages(messages, tokenizer, format, false)?.ids(tokenizer)
}

/// A prompt ready to be encoded, alone or with an answer behind it.
pub(super) struct Rendered {
    /// What the model is shown.
    pub(super) text: String,
    /// `text` in pieces to be encoded one by one; joints break up control tokens in messages.
    pieces: Vec<String>,
    /// Whether control tokens in `pieces` count: they are the template's.
    from_template: bool,
    /// Whether control tokens in messages and answers count.
    allow_special: bool,
    /// What an answer to it begins with, before its own text.
    answer_lead: &'static str,
    /// The id that ends an answer to it.
    pub(super) end: i32,
}

/// Renders a row's prompt. Errors name the row.
pub(super) fn render(
    row: &Row,
    prompt: &Prompt,
    tokenizer: &Tokenizer,
    format: ChatFormat,
    allow_special: bool,
) -> Result<Rendered> {
    match prompt {
        Prompt::Text(text) if allow_special => pre_rendered(text, tokenizer),
        Prompt::Text(text) => Ok(plain(text.clone(), "", tokenizer, allow_special)),
        Prompt::Chat(messages) => render_messages(messages, tokenizer, format, allow_special)
            .map_err(|e| e.context(format!("{} row {}", row.file, row.row))),
    }
}

/// Text that the template has rendered beforehand. Its turns end as the template ends them, and it
/// gets the tokenizer's first token only where it lost the one that the template writes.
fn pre_rendered(text: &str, tokenizer: &Tokenizer) -> Result<Rendered> {
    let first = tokenizer.bos_prefix();
    let mut rendered =
        Rendered { end: tokenizer.turn_end_id(), ..plain(text.to_owned(), "", tokenizer, true) };
    rendered.from_template = first.is_empty()
        || tokenizer.encode(text, true)?.starts_with(first)
        || tokenizer.has_chat_template() && !template_begins_with(first, tokenizer);
    Ok(rendered)
}

fn template_begins_with(first: &[i32], tokenizer: &Tokenizer) -> bool {
    let hello = [Message { role: "user".into(), content: "hello".into() }];
    chat_ids(&hello, tokenizer, ChatFormat::Template).is_ok_and(|ids| ids.starts_with(first))
}

fn plain(
    text: String,
    answer_lead: &'static str,
    tokenizer: &Tokenizer,
    allow_special: bool,
) -> Rendered {
    let pieces = vec![text.clone()];
    let end = tokenizer.eos_id();
    Rendered { text, pieces, from_template: false, allow_special, answer_lead, end }
}

fn render_messages(
    messages: &[Message],
    tokenizer: &Tokenizer,
    format: ChatFormat,
    allow_special: bool,
) -> Result<Rendered> {
    if format == ChatFormat::HumanAssistant {
        return Ok(plain(human_assistant(messages), " ", tokenizer, allow_special));
    }
    let (mark, guarded) = match allow_special {
        true => (None, messages.to_vec()),
        false => guard(messages, tokenizer),
    };
    let turn = |m: &Message| serde_json::json!({"role": m.role, "content": m.content});
    let guarded: Vec<serde_json::Value> = guarded.iter().map(turn).collect();
    let input =
        TemplateInput { messages: &guarded, add_generation_prompt: true, ..Default::default() };
    let marked = tokenizer.template()?.render(&input)?.text;
    let pieces: Vec<String> = match mark {
        Some(mark) => marked.split(mark).map(str::to_owned).collect(),
        None => vec![marked],
    };
    let (text, end) = (pieces.concat(), tokenizer.turn_end_id());
    Ok(Rendered { text, pieces, from_template: true, allow_special, answer_lead: "", end })
}

impl Rendered {
    /// The ids of the prompt, with what the tokenizer puts first unless the template does that.
    pub(super) fn ids(&self, tokenizer: &Tokenizer) -> Result<Vec<i32>> {
        let mut ids = match self.from_template {
            true => Vec::new(),
            false => tokenizer.bos_prefix().to_vec(),
        };
        ids.extend(self.encode(tokenizer, &self.pieces)?);
        Ok(ids)
    }

    /// The ids of an answer behind this prompt, without the end token. They are those of the joint
    /// text where it begins with the prompt's own ids, as it nearly always does; where a token
    /// would span the joint, those of the answer alone. So a prompt has the same ids in every step.
    pub(super) fn answer_ids(&self, tokenizer: &Tokenizer, answer: &str) -> Result<Vec<i32>> {
        let answer = format!("{}{answer}", self.answer_lead);
        let cut: Vec<String> = match self.from_template && !self.allow_special {
            true => cut_controls(&answer, tokenizer).into_iter().map(str::to_owned).collect(),
            false => vec![answer],
        };
        let mut last = self.pieces[self.pieces.len() - 1..].to_vec();
        let head = self.encode(tokenizer, &last)?;
        last[0].push_str(&cut[0]);
        last.extend_from_slice(&cut[1..]);
        let joint = self.encode(tokenizer, &last)?;
        match joint.strip_prefix(&head[..]) {
            Some(answer) => Ok(answer.to_vec()),
            None => self.encode(tokenizer, &cut),
        }
    }

    fn encode(&self, tokenizer: &Tokenizer, pieces: &[String]) -> Result<Vec<i32>> {
        let special = self.from_template || self.allow_special;
        let ids: Vec<Vec<i32>> =
            pieces.iter().map(|p| tokenizer.encode(p, special)).collect::<Result<_>>()?;
        Ok(ids.concat())
    }
}

fn human_assistant(messages: &[Message]) -> String {
    let turn = |m: &Message| match m.role.as_str() {
        "system" => m.content.clone(),
        "assistant" => format!("\n\nAssistant: {}", m.content),
        _ => format!("\n\nHuman: {}", m.content),
    };
    messages.iter().map(turn).collect::<String>() + "\n\nAssistant:"
}

/// Puts a mark into every control token's text in the messages. After rendering, the text is cut at
/// the marks, so the template may trim and rearrange messages as it likes, while no control token
/// of theirs is encoded whole. Without any, there is no mark.
fn guard(messages: &[Message], tokenizer: &Tokenizer) -> (Option<char>, Vec<Message>) {
    // Templates write the role too, and it stands in the data like the content.
    let held = |text: &str| cut_controls(text, tokenizer).len() > 1;
    let holds = |m: &Message| held(&m.role) || held(&m.content);
    if !messages.iter().any(holds) {
        return (None, messages.to_vec());
    }
    // Unicode keeps these for internal use; one that no message holds is free.
    let mark = ('\u{fdd0}'..='\u{fdef}')
        .find(|&c| !messages.iter().any(|m| m.content.contains(c) || m.role.contains(c)))
        .unwrap_or('\u{fdd0}');
    let cut = |text: &str| cut_controls(text, tokenizer).join(&String::from(mark));
    let marked = |m: &Message| Message { role: cut(&m.role), content: cut(&m.content) };
    (Some(mark), messages.iter().map(marked).collect())
}

/// Cuts `text` after the first character of every control token's text in it. One pass: a tokenizer
/// may have hundreds of control tokens, but they begin with very few different characters.
fn cut_controls<'a>(text: &'a str, tokenizer: &Tokenizer) -> Vec<&'a str> {
    let mut firsts: Vec<char> =
        tokenizer.control_texts().filter_map(|c| c.chars().next()).collect();
    firsts.sort_unstable();
    firsts.dedup();
    let holds = |at: usize| {
        let rest = &text[at..];
        tokenizer.control_texts().any(|c| !c.is_empty() && rest.starts_with(c))
    };
    let mut pieces = Vec::new();
    let mut start = 0;
    for (at, first) in text.match_indices(&firsts[..]) {
        let end = at + first.len();
        if end < text.len() && holds(at) {
            pieces.push(&text[start..end]);
            start = end;
        }
    }
    pieces.push(&text[start..]);
    pieces
}

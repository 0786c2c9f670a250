//! Rendering with a guard: the text of control tokens in messages, tools and documents is found
//! again in the rendering, so that the tokenizer can take it as text.

use super::messages::strings;
use super::template::TemplateInput;
use super::tokenizer::Tokenizer;
use super::types::{ChatContext, Message, mapped};
use crate::base::{Error, Result};
use serde_json::Value;
use std::borrow::Cow;
use std::ops::Range;

/// A rendered conversation.
pub(super) struct Guarded {
    pub(super) text: String,
    /// Bytes of `text` in which control tokens do not count.
    pub(super) literal: Vec<Range<usize>>,
    /// Bytes of `text` that the template marks as the assistant's.
    pub(super) generated: Vec<Range<usize>>,
    /// True if a message holds the text of a control token that does not count.
    pub(super) holds_controls: bool,
}

/// Renders messages, with the assistant's next turn opened if `open`. Control tokens in them count
/// only where `controls`.
pub(super) fn render(
    tokenizer: &Tokenizer,
    messages: &[Message],
    context: &ChatContext,
    open: bool,
    controls: bool,
) -> Result<Guarded> {
    // Templates for text alone would print the parts of a content as they print a list.
    let reads_parts = tokenizer.template_for(context.tools.is_some())?.reads_parts();
    let fields = |m| if reads_parts { Cow::Borrowed(Message::fields(m)) } else { m.flat_fields() };
    let messages: Vec<Cow<Value>> = messages.iter().map(fields).collect();
    let given = Given { messages, context: Cow::Borrowed(context) };
    let plain = given.render(tokenizer, open)?;
    if controls || !given.holds(&|text| !tokenizer.controls_in(text).is_empty()) {
        let (text, generated) = (plain.text, plain.generated);
        return Ok(Guarded { text, literal: vec![], generated, holds_controls: false });
    }
    // Unicode keeps these for internal use; two that the data does not hold are free.
    let mut free = ('\u{fdd0}'..='\u{fdef}').filter(|&c| !given.holds(&|text| text.contains(c)));
    let (Some(open_mark), Some(close_mark)) = (free.next(), free.next()) else {
        return Err(Error::user(
            "a conversation holds nearly all of the characters U+FDD0 to \
                                U+FDEF; leave two out",
        ));
    };
    let marks = [open_mark, close_mark];
    let marked =
        given.map(&|text| mark_controls(text, marks, tokenizer)).render(tokenizer, open)?;
    let Some(literal) = literal_spans(&marked.text, marks, &plain.text, tokenizer) else {
        return Err(Error::user(format!(
            "a message holds the text of a control token of {}, and the chat template acts on it; \
             take it out, or use --pre-rendered, which makes it a control token",
            tokenizer.origin()
        )));
    };
    let (text, generated) = (plain.text, plain.generated);
    Ok(Guarded { text, literal, generated, holds_controls: true })
}

/// All that the data gives a template.
struct Given<'m> {
    messages: Vec<Cow<'m, Value>>,
    context: Cow<'m, ChatContext>,
}

impl Given<'_> {
    fn render(&self, tokenizer: &Tokenizer, open: bool) -> Result<super::template::Rendering> {
        let messages: Vec<&Value> = self.messages.iter().map(|m| &**m).collect();
        tokenizer.template_for(self.context.tools.is_some())?.render(&TemplateInput {
            messages: &messages,
            tools: self.context.tools.as_ref(),
            documents: self.context.documents.as_ref(),
            variables: Some(&self.context.variables),
            add_generation_prompt: open,
        })
    }

    /// True if `f` holds for a string in it.
    fn holds(&self, f: &dyn Fn(&str) -> bool) -> bool {
        let messages = self.messages.iter().map(|m| &**m);
        let mut all = messages.chain(self.context.values());
        let look = &|text: &str| if f(text) { Err(()) } else { Ok(()) };
        all.any(|value| strings(value, look).is_err())
    }

    /// The same with other strings. Keys stay: the template asks for them.
    fn map(&self, f: &dyn Fn(&str) -> String) -> Given<'static> {
        let messages = self.messages.iter().map(|v| Cow::Owned(mapped(v, f))).collect();
        Given { messages, context: Cow::Owned(self.context.map(f)) }
    }
}

/// Puts a mark before and behind the text of every control token, so that the template may look for
/// it, trim and rearrange as it likes.
fn mark_controls(text: &str, marks: [char; 2], tokenizer: &Tokenizer) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    let mut done = 0;
    for span in tokenizer.controls_in(text) {
        out.push_str(&text[done..span.start]);
        out.push(marks[0]);
        out.push_str(&text[span.clone()]);
        out.push(marks[1]);
        done = span.end;
    }
    out + &text[done..]
}

/// Where `marked` has control tokens between marks, as bytes of `plain`, which is the same without
/// marks. `None` where it is not the same: the template has looked at what was marked.
fn literal_spans(
    marked: &str,
    marks: [char; 2],
    plain: &str,
    tokenizer: &Tokenizer,
) -> Option<Vec<Range<usize>>> {
    let mut text = String::with_capacity(plain.len());
    let mut spans: Vec<Range<usize>> = Vec::new();
    let mut opened = None;
    for (at, c) in marked.char_indices() {
        if c == marks[0] {
            // The closing mark may be lost where the template cuts the text.
            let rest = marked[at + c.len_utf8()..].split(marks).next().unwrap_or_default();
            let control = tokenizer.controls_in(rest).into_iter().find(|span| span.start == 0);
            opened = Some(text.len());
            spans.push(text.len()..text.len() + control.map_or(0, |span| span.end));
        } else if c == marks[1] {
            if let (Some(start), Some(last)) = (opened.take(), spans.last_mut()) {
                last.end = last.end.max(text.len());
                last.start = start;
            }
        } else {
            text.push(c);
        }
    }
    spans.retain(|s| !s.is_empty());
    (text == plain).then_some(spans)
}

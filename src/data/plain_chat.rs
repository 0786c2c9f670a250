//! Conversations as plain text: "Human:" and "Assistant:" by turns.

use super::types::Message;
use crate::base::{Error, Result};
use std::ops::Range;

/// The opening of an answer in the plain format.
pub(super) const OPENING: &str = "\n\nAssistant:";

/// Messages and the bytes of their text.
pub(super) type Spans = Vec<(usize, Range<usize>)>;

/// The plain format, with the answers in it.
pub(super) fn human_assistant(messages: &[Message]) -> Result<(String, Spans)> {
    let (mut text, mut answers) = (String::new(), vec![]);
    for (i, message) in messages.iter().enumerate() {
        no_calls(message)?;
        match message.role() {
            "system" => text.push_str(&message.content()),
            "assistant" => {
                text.push_str(OPENING);
                let start = text.len();
                text.push(' ');
                text.push_str(&message.content());
                answers.push((i, start..text.len()));
            }
            _ => {
                text.push_str("\n\nHuman: ");
                text.push_str(&message.content());
            }
        }
    }
    Ok((text, answers))
}

pub(super) fn no_calls(message: &Message) -> Result<()> {
    match message.calls_tools() {
        false => Ok(()),
        true => Err(Error::user(
            "a message has \"tool_calls\", which need a chat template; use a model with one",
        )),
    }
}

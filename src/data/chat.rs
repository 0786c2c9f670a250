//! Conversations as token ids: rendered whole by the chat template, with the tokens of each answer
//! known, and with control tokens in a user's words kept from becoming control tokens.

use super::far::{self, Near};
use super::guard::{Guarded, render};
use super::opening::{behind_ending, behind_header, common};
use super::plain_chat::{OPENING, human_assistant, no_calls};
use super::template::{ChatTemplate, mentions};
use super::tokenizer::Tokenizer;
use super::types::{ChatContext, Message};
use crate::base::{Error, Result};
use std::ops::Range;

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
    let context = &ChatContext::default();
    let talk = Talk { tokenizer, format, context, controls: false, most: usize::MAX };
    Ok(talk.prompt(messages)?.ids)
}

/// Settings and data that conversations are rendered with.
pub(super) struct Talk<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) format: ChatFormat,
    pub(super) context: &'a ChatContext,
    /// True if control tokens in messages count as such.
    pub(super) controls: bool,
    /// Tokens of the longest sequence. Of far longer conversations those that can be part of one
    /// are enough: at the beginning, and next to the last answer.
    pub(super) most: usize,
}

/// A conversation that an answer is to follow.
pub(super) struct Opened {
    /// As the model is shown it.
    pub(super) text: String,
    pub(super) ids: Vec<i32>,
    /// True if a message holds the text of a control token, which is taken as text.
    pub(super) holds_controls: bool,
    /// True if the template writes nothing of a message.
    pub(super) leaves_out: bool,
}

/// A conversation with its answers.
pub(super) struct Told {
    pub(super) ids: Vec<i32>,
    /// The turns asked for, in order.
    pub(super) turns: Vec<Turn>,
    /// True if the prompt of the last answer, as generation begins with it, begins the
    /// conversation.
    pub(super) continues_prompt: bool,
    /// True if an end token was put behind the last answer, where the template writes none.
    pub(super) end_added: bool,
    /// True if a message holds the text of a control token, which is taken as text.
    pub(super) holds_controls: bool,
    /// True if the template writes nothing of a message.
    pub(super) leaves_out: bool,
}

/// An answer within a conversation.
pub(super) struct Turn {
    /// Its message's place in the conversation.
    pub(super) message: usize,
    /// First token behind the opening of the turn.
    pub(super) start: usize,
    /// One behind the answer itself.
    pub(super) said: usize,
    /// One behind the token that ends the turn.
    pub(super) end: usize,
    /// Tokens to be learned: those the template marks, else all from `start` to `end`.
    pub(super) learned: Vec<Range<usize>>,
}

impl Turn {
    /// A turn of which all is learned.
    fn whole(message: usize, start: usize, said: usize, end: usize) -> Turn {
        Turn { message, start, said, end, learned: std::iter::once(start..end).collect() }
    }
}

/// A stretch of text that the template cannot know, in place of an answer. One character that
/// Unicode keeps for internal use.
const STAND_IN: &str = "\u{fdd2}";

impl Talk<'_> {
    /// The conversation with the assistant's turn opened.
    pub(super) fn prompt(&self, messages: &[Message]) -> Result<Opened> {
        if self.format == ChatFormat::HumanAssistant {
            let (text, _) = human_assistant(messages)?;
            let text = text + OPENING;
            let mut ids = self.tokenizer.bos_prefix().to_vec();
            ids.extend(far::ends(self.tokenizer, &text, self.controls, self.most)?);
            return Ok(Opened { text, ids, holds_controls: false, leaves_out: false });
        }
        let guarded = self.render(messages, true)?;
        let ids = self.encode(&guarded, &[])?.ids;
        let leaves_out = self.leaves_out(&guarded.text, messages, true);
        let Guarded { text, holds_controls, .. } = guarded;
        Ok(Opened { text, ids, holds_controls, leaves_out })
    }

    /// The whole conversation, which ends in an answer, with its last turn or `all` of the
    /// assistant's.
    pub(super) fn told(&self, messages: &[Message], all: bool) -> Result<Told> {
        match self.format {
            ChatFormat::Template => self.by_template(messages, all),
            ChatFormat::HumanAssistant => self.by_speaker(messages, all),
        }
    }

    fn by_template(&self, messages: &[Message], all: bool) -> Result<Told> {
        let whole = self.render(messages, false)?;
        let last = messages.len() - 1;
        let last_answer = self.answer_in(&whole.text, messages, last)?;
        let Near { mut ids, offsets, gaps } = self.encode(&whole, &[last_answer.start])?;
        let wanted = |i: &usize| messages[*i].is_answer() && (all || *i == last);
        let marks = self.template()?.marks_generation();
        let mut turns = vec![];
        let (mut continues_prompt, mut end_added) = (true, false);
        for i in (0..messages.len()).filter(wanted) {
            let answer = match i == last {
                true => last_answer.clone(),
                false => self.answer_in(&whole.text, messages, i)?,
            };
            // Too far from the last answer to be part of a sequence with it.
            let beyond = |gap: &Range<usize>| gap.start <= answer.start && answer.end <= gap.end;
            if i < last && gaps.iter().any(beyond) {
                continue;
            }
            let (start, continues) = self.start_of(&whole.text, messages, i, answer.start);
            if i == last {
                continues_prompt = continues;
            }
            let token_at = |at: usize| offsets.iter().position(|o| o.start >= at);
            let first = offsets.iter().position(|o| o.end > start).unwrap_or(ids.len());
            let behind = token_at(answer.end.max(start)).unwrap_or(ids.len());
            let limit = self.limit(&whole.text, messages, i).unwrap_or(0);
            let limit = token_at(limit).unwrap_or(ids.len()).max(behind);
            // Without that limit, the next token that ends turns, before the next message.
            let limit = if limit > behind {
                limit
            } else {
                self.near(&ids, &offsets, &whole.text, behind, messages.get(i + 1))
            };
            // Its end is not among the tokens.
            let limit = match gaps.iter().any(|gap| gap.contains(&answer.end)) {
                true => behind,
                false => limit,
            };
            // A token that stops generation ends the turn, or else any control token, as behind
            // calls of tools.
            let rest = &ids[behind..limit];
            let stop = rest.iter().position(|id| self.ends(*id));
            let stop = stop.or_else(|| rest.iter().position(|id| self.tokenizer.is_control(*id)));
            let end = match stop {
                Some(n) => behind + n + 1,
                // No token of the template ends the turn.
                None if i == last => {
                    end_added = true;
                    ids.push(self.tokenizer.turn_end_id());
                    ids.len()
                }
                None => limit,
            };
            turns.push(Turn::whole(i, first, behind, end));
        }
        if marks {
            by_marks(&mut turns, &whole.generated, &offsets, ids.len());
        }
        let leaves_out = self.leaves_out(&whole.text, messages, false);
        let holds_controls = whole.holds_controls;
        Ok(Told { ids, turns, continues_prompt, end_added, holds_controls, leaves_out })
    }

    /// Where answer `i` begins in `text`, the rendering of all messages, whose own words begin at
    /// `words`: with what the template writes before them. True if the rendering of the messages
    /// before it, with the turn opened, begins `text`.
    fn start_of(&self, text: &str, messages: &[Message], i: usize, words: usize) -> (usize, bool) {
        // A template may refuse to open a turn here.
        let Ok(opened) = self.render(&messages[..i], true) else { return (words, true) };
        if text.starts_with(&opened.text) {
            return (opened.text.len(), true);
        }
        let before = self.render(&messages[..i], false).map(|g| g.text);
        let header = before.ok().and_then(|b| opened.text.strip_prefix(&*b));
        let same = common(text, &opened.text).min(words);
        let start = match header {
            None | Some("") => behind_ending(&text[..words], &opened.text, same),
            Some(header) => behind_header(&text[..words], header, same),
        };
        (start, false)
    }

    /// Where turn `i` ends in `text`, the rendering of all messages: up to there it is the same
    /// without those that follow.
    fn limit(&self, text: &str, messages: &[Message], i: usize) -> Option<usize> {
        if i + 1 == messages.len() {
            return Some(text.len());
        }
        Some(common(text, &self.render(&messages[..=i], false).ok()?.text))
    }

    /// One behind the first token from `from` on that ends a turn, unless `next` is said before it;
    /// else `from`.
    fn near(
        &self,
        ids: &[i32],
        offsets: &[Range<usize>],
        text: &str,
        from: usize,
        next: Option<&Message>,
    ) -> usize {
        let Some(n) = ids[from..].iter().position(|id| self.ends(*id)) else { return from };
        let between = &text[offsets[from].start..offsets[from + n].start];
        let next = next.map_or_else(Default::default, Message::content);
        let said = !next.trim().is_empty() && between.contains(next.trim());
        if said { from } else { from + n + 1 }
    }

    /// True if a message is not in `text`, the rendering of all: it is the same without it.
    fn leaves_out(&self, text: &str, messages: &[Message], open: bool) -> bool {
        // Most templates write messages in their order.
        let mut at = 0;
        messages.iter().enumerate().any(|(i, message)| {
            let content = message.content();
            let said = content.trim();
            if let Some(behind) = text[at..].find(said) {
                at += behind;
                return false;
            }
            let without = || [&messages[..i], &messages[i + 1..]].concat();
            !text.contains(said)
                && self.render(&without(), open).is_ok_and(|other| other.text == text)
        })
    }

    fn ends(&self, id: i32) -> bool {
        self.tokenizer.stop_ids().contains(&id)
    }

    /// Bytes of `text`, the rendering of `messages`, that answer `i` has made: all that differs
    /// where something else is put in its place.
    fn answer_in(&self, text: &str, messages: &[Message], i: usize) -> Result<Range<usize>> {
        let mut changed = messages.to_vec();
        let calls_only = messages[i].calls_tools() && messages[i].content().trim().is_empty();
        changed[i] = match calls_only {
            true => messages[i].calling(STAND_IN),
            false => messages[i].with_content(STAND_IN),
        };
        let other = self.render(&changed, false)?.text;
        let start = common(text, &other);
        let tail = text[start..].bytes().rev().zip(other[start..].bytes().rev());
        let mut end = text.len() - tail.take_while(|(a, b)| a == b).count();
        while !text.is_char_boundary(end) {
            end += 1;
        }
        if !other.contains(STAND_IN) {
            return Err(Error::user(format!(
                "the chat template of {} leaves out an answer; it cannot be learned",
                self.tokenizer.origin()
            )));
        }
        match text[start..end].trim().is_empty() && i + 1 == messages.len() {
            true => Err(Error::user(format!(
                "the chat template of {} writes nothing for an answer; it cannot be learned",
                self.tokenizer.origin()
            ))),
            false => Ok(start..end),
        }
    }

    fn template(&self) -> Result<&ChatTemplate> {
        self.tokenizer.template_for(self.context.tools.is_some())
    }

    fn render(&self, messages: &[Message], open: bool) -> Result<Guarded> {
        let calls = messages.iter().any(Message::calls_tools);
        if calls && !mentions(self.template()?.source(), "tool_calls") {
            return Err(Error::user(format!(
                "a message has \"tool_calls\", which the chat template of {} does not write; use a \
                 model with a template for tools, or leave such rows out",
                self.tokenizer.origin()
            )));
        }
        render(self.tokenizer, messages, self.context, open, self.controls)
    }

    fn encode(&self, guarded: &Guarded, places: &[usize]) -> Result<Near> {
        far::encode(self.tokenizer, &guarded.text, &guarded.literal, places, self.most)
    }

    /// The plain format. The prompt of the last answer has the same ids as without it.
    fn by_speaker(&self, messages: &[Message], all: bool) -> Result<Told> {
        let tok = self.tokenizer;
        let (last, before) = messages.split_last().expect("a conversation has a message");
        let (text, answers) = human_assistant(before)?;
        let text = text + OPENING;
        let prefix = tok.bos_prefix();
        let whole = std::iter::once(0..text.len()).filter(|_| !self.controls);
        let literal: Vec<Range<usize>> = whole.collect();
        let Near { ids: prompt, offsets, .. } = far::encode(tok, &text, &literal, &[], self.most)?;
        let mut turns = vec![];
        for (message, span) in answers.into_iter().filter(|_| all) {
            let tokens = tokens_of(&span, &offsets);
            let tokens = tokens.start + prefix.len()..tokens.end + prefix.len();
            turns.push(Turn::whole(message, tokens.start, tokens.end, tokens.end));
        }
        let mut ids = [prefix, &prompt[..]].concat();
        let start = ids.len();
        no_calls(last)?;
        let answer = format!(" {}", last.content());
        ids.extend(answer_ids(tok, &text, &answer, self.controls, self.most)?);
        let said = ids.len();
        ids.push(tok.eos_id());
        let end = ids.len();
        turns.push(Turn::whole(before.len(), start, said, end));
        let (continues_prompt, end_added, holds_controls, leaves_out) = (true, false, false, false);
        Ok(Told { ids, turns, continues_prompt, end_added, holds_controls, leaves_out })
    }
}

/// The ids of an answer behind the text of a prompt, without an end token. They are those of the
/// joint text where it begins with the prompt's own ids, as it nearly always does; where a token
/// would span the joint, those of the answer alone. So a prompt has the same ids in every step. Of
/// an answer far longer than `most` tokens they are the first ones.
pub(super) fn answer_ids(
    tokenizer: &Tokenizer,
    prompt: &str,
    answer: &str,
    controls: bool,
    most: usize,
) -> Result<Vec<i32>> {
    let (prompt, answer) =
        (far::tail(tokenizer, prompt, most)?, far::head(tokenizer, answer, most)?);
    let head = tokenizer.encode(prompt, controls)?;
    let joint = tokenizer.encode(&format!("{prompt}{answer}"), controls)?;
    match joint.strip_prefix(&head[..]) {
        Some(answer) => Ok(answer.to_vec()),
        None => tokenizer.encode(answer, controls),
    }
}

/// Leaves to each turn what the template marks of it. Bytes become tokens as in Hugging Face's
/// `apply_chat_template`: from the token of the first character to that of the last.
fn by_marks(turns: &mut [Turn], marked: &[Range<usize>], offsets: &[Range<usize>], ids: usize) {
    turns.iter_mut().for_each(|turn| turn.learned.clear());
    let starts: Vec<usize> = turns.iter().map(|t| t.start).collect();
    for span in marked.iter().filter(|s| !s.is_empty()) {
        let tokens = tokens_of(span, offsets);
        // The last turn that begins before the span ends.
        let Some(turn) = starts.iter().rposition(|start| *start < tokens.end) else { continue };
        turns[turn].learned.push(tokens.start..tokens.end.min(ids));
    }
}

/// The tokens of a span of bytes.
fn tokens_of(span: &Range<usize>, offsets: &[Range<usize>]) -> Range<usize> {
    let holds = |at: usize| offsets.iter().position(|o| o.start <= at && at < o.end);
    let behind = |at: usize| offsets.iter().position(|o| o.start >= at).unwrap_or(offsets.len());
    let start = holds(span.start).unwrap_or_else(|| behind(span.start));
    let end = holds(span.end - 1).map_or_else(|| behind(span.end), |last| last + 1);
    start..end.max(start)
}

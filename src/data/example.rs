//! Examples: rows as token ids with the lengths the user allows. A row becomes one sequence,
//! unpadded; batches are packed later. It knows nothing of losses.

use super::chat::{ChatFormat, Opened, Talk, Told, answer_ids, chat_ids};
use super::far;
use super::tokenizer::Tokenizer;
use super::types::{Answer, ChatContext, Columns, Message, Prompt, Row};
use crate::base::{Error, Result, check_stop};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How a prompt over the limit is handled: in text `skip` or `truncate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnLongPrompt {
    /// Leave the row out and count it.
    Skip,
    /// Keep the end of the prompt.
    #[serde(rename = "truncate")]
    TruncateLeft,
}

/// Lengths in tokens, and how text becomes tokens.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest prompt, all that comes before the last answer included.
    pub max_prompt_len: usize,
    /// Longest prompt with answer and end token. Must exceed `max_prompt_len`.
    pub max_seq_len: usize,
    /// How longer prompts are handled.
    pub on_long_prompt: OnLongPrompt,
    /// How conversations become text.
    pub chat: ChatFormat,
    /// True if control tokens written in the data count as such; else they are plain text. Text is
    /// then taken as rendered by the chat template already.
    pub allow_special: bool,
    /// True if all of the assistant's turns are learned, not the last one only. A message's own
    /// weight goes before either.
    pub all_turns: bool,
}

/// Where an example came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowRef {
    /// The file as the user named it.
    pub file: Arc<str>,
    /// Line, or place in the JSON list, from 1.
    pub row: usize,
}

/// Remarks for the user on how a row became an example.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remarks {
    /// The chat template writes the conversation otherwise than as the prompt of generation with
    /// the answer behind it.
    pub prompt_differs: bool,
    /// The chat template ends no turn; an end token was put behind the last answer.
    pub end_added: bool,
    /// The text of a control token in the row was taken as text.
    pub holds_controls: bool,
    /// It was cut at the length limit, and its end is not learned.
    pub cut: bool,
    /// The chat template writes nothing of one of its messages.
    pub leaves_out: bool,
    /// The chat template's `{% generation %}` leaves the end of the last turn out.
    pub end_unmarked: bool,
}

impl Remarks {
    /// Remarks that hold for either of two sequences.
    fn or(self, other: Remarks) -> Remarks {
        Remarks {
            prompt_differs: self.prompt_differs || other.prompt_differs,
            end_added: self.end_added || other.end_added,
            holds_controls: self.holds_controls || other.holds_controls,
            cut: self.cut || other.cut,
            leaves_out: self.leaves_out || other.leaves_out,
            end_unmarked: self.end_unmarked || other.end_unmarked,
        }
    }
}

/// A sequence with the tokens to be learned.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SftExample {
    /// At most `max_seq_len` ids. A longer row is cut at its end and loses its end token.
    pub ids: Vec<i32>,
    /// Tokens before the last answer; at least 1, less than `ids.len()`.
    pub prompt_len: usize,
    /// The weight in the loss of each token, or nothing: 1 from `prompt_len` on, else 0.
    pub weights: Vec<f32>,
    /// How it came about.
    pub remarks: Remarks,
}

impl SftExample {
    /// A sequence of which all from `prompt_len` on is learned.
    pub fn new(ids: Vec<i32>, prompt_len: usize) -> SftExample {
        SftExample { ids, prompt_len, ..SftExample::default() }
    }

    /// The weight in the loss of predicting token `t`. Nothing predicts the first one.
    pub fn weight(&self, t: usize) -> f32 {
        match self.weights.get(t) {
            _ if t == 0 => 0.0,
            Some(weight) => *weight,
            None => f32::from(u8::from(t >= self.prompt_len)),
        }
    }
}

/// Two answers to one prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PairExample {
    /// Tokens before the answers. They are the same in both sequences, unless the chat template
    /// lets an answer decide on what is before it.
    pub prompt_len: usize,
    /// Prompt, good answer, end token; cut like [`SftExample::ids`].
    pub chosen: Vec<i32>,
    /// Prompt, bad answer, end token.
    pub rejected: Vec<i32>,
    /// How they came about.
    pub remarks: Remarks,
}

/// A prompt to be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptExample {
    /// At most `max_prompt_len` ids, at least 1.
    pub ids: Vec<i32>,
    /// The prompt as rendered, for logs and reward functions; whole even if `ids` are truncated.
    pub text: String,
    /// Where it came from.
    pub row: RowRef,
    /// The conversation to be answered, where it is one, for models that render it otherwise.
    pub talk: Option<Arc<OpenTalk>>,
    /// The columns of the row, where a reward reads them; else none.
    pub columns: Arc<Columns>,
    /// How it came about.
    pub remarks: Remarks,
}

impl PromptExample {
    /// A prompt of these ids, from no file.
    pub fn new(ids: Vec<i32>) -> PromptExample {
        let row = RowRef { file: "".into(), row: 0 };
        let (text, columns, remarks) = (String::new(), Arc::default(), Remarks::default());
        PromptExample { ids, text, row, talk: None, columns, remarks }
    }
}

/// A conversation that waits for an answer.
#[derive(Debug, PartialEq, Eq)]
pub struct OpenTalk {
    messages: Vec<Message>,
    context: Option<Arc<ChatContext>>,
}

impl OpenTalk {
    /// The conversation with `answer` in it, up to the end of the turn, or up to the answer's end
    /// where it is not `finished`: as a model trained on whole conversations knows it. Of one that
    /// is far longer than `most` tokens, these are enough.
    pub fn answered(
        &self,
        answer: &str,
        finished: bool,
        tokenizer: &Tokenizer,
        format: ChatFormat,
        most: usize,
    ) -> Result<AnsweredTalk> {
        let mut messages = self.messages.clone();
        messages.push(Message::new("assistant", answer));
        let talk = talk(tokenizer, format, self.context.as_deref(), false, most);
        // A template may write nothing for an empty answer.
        let Ok(told) = talk.told(&messages, false) else {
            let ids = talk.prompt(&self.messages)?.ids;
            return Ok(AnsweredTalk { start: ids.len(), said: ids.len(), ids });
        };
        let turn =
            told.turns.last().ok_or_else(|| Error::internal("a conversation's last turn"))?;
        let end = if finished { turn.end } else { turn.said };
        let (start, said) = (turn.start.min(end), turn.said);
        Ok(AnsweredTalk { ids: told.ids[..end].to_vec(), start, said })
    }
}

/// A conversation up to its last answer.
#[derive(Debug)]
pub struct AnsweredTalk {
    /// The ids of the whole, or of what is enough of it.
    pub ids: Vec<i32>,
    /// Tokens before the answer.
    start: usize,
    /// One behind the answer's own last token.
    said: usize,
}

impl AnsweredTalk {
    /// True if it is `prompt` with `answer` behind it, if perhaps in other tokens.
    pub fn follows(&self, prompt: &[i32], answer: &str, tokenizer: &Tokenizer) -> Result<bool> {
        let said = tokenizer.decode(&self.ids[self.start..self.said], true)?;
        Ok(self.ids[..self.start] == *prompt && said == answer)
    }
}

/// Runs `f` over rows; returns the examples and how many rows it left out. Naming `what` (such as
/// "PPO"), it is an error if none is left.
pub fn build<'a, T>(
    what: &str,
    rows: impl IntoIterator<Item = &'a Row>,
    f: impl Fn(&Row) -> Result<Option<T>>,
) -> Result<(Vec<T>, usize)> {
    let (mut examples, mut skipped) = (Vec::new(), 0);
    for row in rows {
        check_stop()?;
        match f(row)? {
            Some(example) => examples.push(example),
            None => skipped += 1,
        }
    }
    match examples.is_empty() && skipped > 0 {
        true => Err(Error::user(format!(
            "no row is left for {what}: all {skipped} were too long; raise the length limits"
        ))),
        false => Ok((examples, skipped)),
    }
}

/// The supervised example of a row: prompt and chosen answer, or plain text, of which all but the
/// first token is learned. `None`: left out, being too long or without a token to learn.
pub fn sft_example(row: &Row, tok: &Tokenizer, limits: &Limits) -> Result<Option<SftExample>> {
    let row = &*far::shortened(row, limits.max_seq_len);
    if let (None, Some(text)) = (&row.prompt, &row.text) {
        let mut ids = first_ids(tok, text, limits).to_vec();
        let prompt_len = ids.len().max(1);
        ids.extend(far::ends(tok, text, limits.allow_special, limits.max_seq_len)?);
        end_with(&mut ids, tok.eos_id(), tok, limits);
        let cut = ids.len() > limits.max_seq_len;
        ids.truncate(limits.max_seq_len);
        let holds_controls = !limits.allow_special && !tok.controls_in(text).is_empty();
        let remarks = Remarks { holds_controls, cut, ..Remarks::default() };
        let example = SftExample { remarks, ..SftExample::new(ids, prompt_len) };
        return Ok((example.ids.len() > prompt_len).then_some(example));
    }
    // A conversation that ends with a question holds the answers before it.
    let cut = row.up_to_answer();
    let (prompt, chosen) = match &cut {
        Some((prompt, chosen)) => (Some(prompt), Some(chosen)),
        None => (row.prompt.as_ref(), row.chosen.as_ref()),
    };
    let (Some(prompt), Some(chosen)) = (prompt, chosen) else {
        return Err(lacks(
            row,
            "supervised finetuning",
            "an answer (\"chosen\" or \"completion\")",
        ));
    };
    check_limits(limits)?;
    let Some(mut s) = sequence(row, prompt, chosen, tok, limits)? else { return Ok(None) };
    s.ids.truncate(limits.max_seq_len);
    s.weights.truncate(limits.max_seq_len);
    let example =
        SftExample { ids: s.ids, prompt_len: s.prompt_len, weights: s.weights, remarks: s.remarks };
    let learned = (1..example.ids.len()).any(|t| example.weight(t) > 0.0);
    Ok(learned.then_some(example))
}

/// The pair of a row, up to the ends of the last answers. `None`: left out, being too long, or
/// equal within `max_seq_len`.
pub fn pair_example(row: &Row, tok: &Tokenizer, limits: &Limits) -> Result<Option<PairExample>> {
    let row = &*far::shortened(row, limits.max_seq_len);
    let (Some(prompt), Some(chosen), Some(rejected)) = (&row.prompt, &row.chosen, &row.rejected)
    else {
        return Err(lacks(row, "the reward model", "\"chosen\" and \"rejected\""));
    };
    check_limits(limits)?;
    let one = |answer| sequence(row, prompt, answer, tok, limits);
    let (Some(chosen), Some(rejected)) = (one(chosen)?, one(rejected)?) else { return Ok(None) };
    let cut = |s: &Sequence| s.ids[..s.end.min(limits.max_seq_len)].to_vec();
    let pair = PairExample {
        prompt_len: chosen.prompt_len.min(rejected.prompt_len),
        chosen: cut(&chosen),
        rejected: cut(&rejected),
        // Pairs are compared, not learned.
        remarks: Remarks { end_unmarked: false, ..chosen.remarks.or(rejected.remarks) },
    };
    Ok((pair.chosen != pair.rejected).then_some(pair))
}

/// The prompt of a row. `None`: left out, being too long.
pub fn prompt_example(
    row: &Row,
    tok: &Tokenizer,
    limits: &Limits,
) -> Result<Option<PromptExample>> {
    check_limits(limits)?;
    let row = &*far::shortened(row, limits.max_seq_len);
    let (opened, talk) = match &row.prompt {
        None => return Err(lacks(row, "PPO", "\"prompt\"")),
        Some(Prompt::Text(text)) => (text_prompt(text, tok, limits)?, None),
        Some(Prompt::Chat(messages)) => {
            let messages = to_be_answered(row, messages)?;
            let opened = talk_of(row, tok, limits).prompt(&messages).map_err(|e| at(row, e))?;
            let context = row.context.clone();
            (opened, Some(Arc::new(OpenTalk { messages, context })))
        }
    };
    let Opened { text, mut ids, holds_controls, leaves_out } = opened;
    let Some(cut) = excess(&ids, ids.len(), tok, limits) else { return Ok(None) };
    ids.drain(cut);
    if ids.is_empty() {
        return Err(row.error("the prompt has no token"));
    }
    let remarks = Remarks { holds_controls, leaves_out, ..Remarks::default() };
    let columns = row.columns.clone();
    let row = RowRef { file: row.file.clone(), row: row.row };
    Ok(Some(PromptExample { ids, text, row, talk, columns, remarks }))
}

/// The messages up to the first one that the assistant is to write. Where an earlier answer is the
/// last thing that both answers of a pair share, that is in the middle of the answers.
fn to_be_answered(row: &Row, messages: &[Message]) -> Result<Vec<Message>> {
    let mut messages = messages.to_vec();
    if let Some(Answer::Chat(rest)) = &row.chosen {
        messages.extend(rest.iter().take_while(|m| !m.is_answer()).cloned());
    }
    match messages.last().is_some_and(Message::is_answer) {
        true => Err(row.error("the prompt ends with the assistant's own message; end it before")),
        false => Ok(messages),
    }
}

/// Text for the mixture loss: all rows' text end to end, cut into blocks of `block_len` ids; the
/// rest that fills no block is dropped. A text begins with what the tokenizer puts first or, where
/// that is nothing, ends with the end token.
pub fn text_blocks<'a>(
    rows: impl IntoIterator<Item = &'a Row>,
    tok: &Tokenizer,
    block_len: usize,
    allow_special: bool,
) -> Result<Vec<Vec<i32>>> {
    if block_len == 0 {
        return Err(Error::user("text blocks need a length of at least 1"));
    }
    let mut ids = Vec::new();
    for row in rows {
        check_stop()?;
        let Some(text) = &row.text else {
            return Err(lacks(row, "the mixture loss", "\"text\""));
        };
        ids.extend_from_slice(tok.bos_prefix());
        ids.extend(far::all(tok, text, allow_special)?);
        if tok.bos_prefix().is_empty() {
            ids.push(tok.eos_id());
        }
    }
    let blocks: Vec<Vec<i32>> = ids.chunks_exact(block_len).map(<[i32]>::to_vec).collect();
    match blocks.is_empty() {
        true => Err(Error::user(format!(
            "the text for the mixture loss has {} tokens, less than one block of {block_len}",
            ids.len()
        ))),
        false => Ok(blocks),
    }
}

fn lacks(row: &Row, step: &str, keys: &str) -> Error {
    let has: Vec<&str> = [
        ("a prompt", row.prompt.is_some()),
        ("a good answer", row.chosen.is_some()),
        ("a bad answer", row.rejected.is_some()),
        ("text", row.text.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, has)| has.then_some(name))
    .collect();
    row.error(format!("{step} needs {keys}; this row has {}", has.join(" and ")))
}

fn at(row: &Row, e: Error) -> Error {
    e.context(format!("{} row {}", row.file, row.row))
}

fn check_limits(limits: &Limits) -> Result<()> {
    let (max, most) = (limits.max_prompt_len, limits.max_seq_len);
    if max == 0 || max >= most {
        let lengths = format!("prompts of up to {max} tokens in {most}");
        return Err(Error::user(format!("{lengths} leave no room; use 0 < prompt < sequence")));
    }
    Ok(())
}

fn talk<'a>(
    tokenizer: &'a Tokenizer,
    format: ChatFormat,
    context: Option<&'a ChatContext>,
    controls: bool,
    most: usize,
) -> Talk<'a> {
    static NOTHING: std::sync::LazyLock<ChatContext> = std::sync::LazyLock::new(Default::default);
    Talk { tokenizer, format, context: context.unwrap_or(&NOTHING), controls, most }
}

fn talk_of<'a>(row: &'a Row, tok: &'a Tokenizer, limits: &Limits) -> Talk<'a> {
    let context = row.context.as_deref();
    talk(tok, limits.chat, context, limits.allow_special, limits.max_seq_len)
}

/// Ids put before a text. One that was rendered already gets them only where it lost those that the
/// template writes.
fn first_ids<'t>(tok: &'t Tokenizer, text: &str, limits: &Limits) -> &'t [i32] {
    let first = tok.bos_prefix();
    if first.is_empty() || !limits.allow_special {
        return first;
    }
    let head = far::head(tok, text, first.len());
    let begins = head.and_then(|head| tok.encode(head, true));
    let begins = begins.is_ok_and(|ids| ids.starts_with(first));
    let hello = [Message::new("user", "hello")];
    let by_template = || chat_ids(&hello, tok, ChatFormat::Template);
    let never = tok.template().is_ok() && !by_template().is_ok_and(|ids| ids.starts_with(first));
    if begins || never { &[] } else { first }
}

/// Puts an end token behind a text, unless it was rendered already and ends with one.
fn end_with(ids: &mut Vec<i32>, end: i32, tok: &Tokenizer, limits: &Limits) {
    let ended = ids.last().is_some_and(|id| tok.stop_ids().contains(id));
    if !(limits.allow_special && ended) {
        ids.push(end);
    }
}

fn text_prompt(text: &str, tok: &Tokenizer, limits: &Limits) -> Result<Opened> {
    let mut ids = first_ids(tok, text, limits).to_vec();
    ids.extend(far::ends(tok, text, limits.allow_special, limits.max_seq_len)?);
    let holds_controls = !limits.allow_special && !tok.controls_in(text).is_empty();
    Ok(Opened { text: text.to_owned(), ids, holds_controls, leaves_out: false })
}

/// A row as one sequence.
struct Sequence {
    ids: Vec<i32>,
    /// Weights in the loss, or nothing where all from `prompt_len` on is learned.
    weights: Vec<f32>,
    prompt_len: usize,
    /// One behind the token that ends the last answer.
    end: usize,
    remarks: Remarks,
}

/// Prompt, answer and end token. `None`: left out, the prompt being too long.
fn sequence(
    row: &Row,
    prompt: &Prompt,
    answer: &Answer,
    tok: &Tokenizer,
    limits: &Limits,
) -> Result<Option<Sequence>> {
    let mut s = match (prompt, answer) {
        (Prompt::Text(prompt), Answer::Text { joint, text }) => {
            let joint = if limits.allow_special { "" } else { joint };
            text_sequence(prompt, &format!("{joint}{text}"), tok, limits)?
        }
        (Prompt::Chat(before), Answer::Chat(answer)) => {
            let messages = [&before[..], &answer[..]].concat();
            chat_sequence(row, &messages, tok, limits)?
        }
        _ => return Err(Error::internal("a text and a conversation in one row")),
    };
    if s.prompt_len == 0 {
        return Err(row.error("the prompt has no token"));
    }
    let Some(cut) = excess(&s.ids, s.prompt_len, tok, limits) else { return Ok(None) };
    s.prompt_len -= cut.len();
    s.end -= cut.len();
    if !s.weights.is_empty() {
        s.weights.drain(cut.clone());
    }
    s.ids.drain(cut);
    s.remarks.cut = s.end > limits.max_seq_len;
    Ok(Some(s))
}

fn text_sequence(prompt: &str, answer: &str, tok: &Tokenizer, limits: &Limits) -> Result<Sequence> {
    let Opened { mut ids, mut holds_controls, .. } = text_prompt(prompt, tok, limits)?;
    let prompt_len = ids.len();
    let (special, most) = (limits.allow_special, limits.max_seq_len);
    ids.extend(answer_ids(tok, prompt, answer, special, most)?);
    let end = if limits.allow_special { tok.turn_end_id() } else { tok.eos_id() };
    end_with(&mut ids, end, tok, limits);
    holds_controls |= !limits.allow_special && !tok.controls_in(answer).is_empty();
    let remarks = Remarks { holds_controls, ..Remarks::default() };
    Ok(Sequence { end: ids.len(), ids, weights: vec![], prompt_len, remarks })
}

fn chat_sequence(
    row: &Row,
    messages: &[Message],
    tok: &Tokenizer,
    limits: &Limits,
) -> Result<Sequence> {
    let given = |m: &&Message| m.is_answer() && m.weight().is_some();
    let weighted = messages.iter().filter(given).count() > 0;
    let all = limits.all_turns || weighted;
    let told = talk_of(row, tok, limits).told(messages, all).map_err(|e| at(row, e))?;
    let Told { ids, turns, continues_prompt, end_added, holds_controls, leaves_out } = told;
    let last = turns.last().ok_or_else(|| Error::internal("a conversation without an answer"))?;
    let mut weights = vec![0.0; ids.len()];
    for turn in &turns {
        let is_last = turn.message + 1 == messages.len();
        let usual = f32::from(u8::from(limits.all_turns || is_last));
        let weight = messages[turn.message].weight().unwrap_or(usual);
        for span in &turn.learned {
            weights[span.clone()].fill(weight);
        }
    }
    let remarks = Remarks {
        prompt_differs: !continues_prompt,
        end_added,
        holds_controls,
        cut: false,
        leaves_out,
        end_unmarked: !last.learned.iter().any(|span| span.contains(&(last.end - 1))),
    };
    Ok(Sequence { prompt_len: last.start, end: last.end, ids, weights, remarks })
}

/// Tokens to take out of the prompt, the first `prompt_len` of `ids`, so that it keeps to the
/// limit; its first token stays. `None` where the row is to be left out.
fn excess(
    ids: &[i32],
    prompt_len: usize,
    tok: &Tokenizer,
    limits: &Limits,
) -> Option<std::ops::Range<usize>> {
    let max = limits.max_prompt_len;
    if prompt_len <= max {
        return Some(0..0);
    }
    let first = tok.bos_prefix();
    // Where the limit has no room for a token of the prompt itself, nothing useful is left.
    if limits.on_long_prompt == OnLongPrompt::Skip || first.len() >= max {
        return None;
    }
    let keep = if ids.starts_with(first) { first.len() } else { 0 };
    Some(keep..prompt_len - (max - keep))
}

#[cfg(test)]
#[path = "example_tests.rs"]
mod tests;

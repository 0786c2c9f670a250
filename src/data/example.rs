//! Rows to token ids, one kind of example for each step. An example holds one sequence, unpadded;
//! batches are packed later. It knows nothing of losses.

use super::chat::{ChatFormat, Rendered, render};
use super::source::{Prompt, Row};
use super::tokenizer::Tokenizer;
use crate::base::{Error, Result};
use std::sync::Arc;

/// What to do with a prompt over the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLongPrompt {
    /// Leave the row out and count it.
    Skip,
    /// Keep the end of the prompt.
    TruncateLeft,
}

/// Lengths in tokens, and how text becomes tokens.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest prompt, all that comes before the answer included.
    pub max_prompt_len: usize,
    /// Longest prompt with answer and end token. Must exceed `max_prompt_len`.
    pub max_seq_len: usize,
    /// What to do with longer prompts.
    pub on_long_prompt: OnLongPrompt,
    /// How conversations become text.
    pub chat: ChatFormat,
    /// Whether control tokens written in the data count as such; else they are plain text.
    pub allow_special: bool,
}

impl Limits {
    /// The same for `row`: the messages of a conversation never hold control tokens.
    pub fn of(&self, row: &Row) -> Limits {
        let chat = matches!(row.prompt, Some(Prompt::Chat(_)));
        Limits { allow_special: self.allow_special && !chat, ..*self }
    }
}

/// Where an example came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowRef {
    /// The file as the user named it.
    pub file: Arc<str>,
    /// Line, or place in the JSON list, from 1.
    pub row: usize,
}

/// Prompt, answer and end token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SftExample {
    /// At most `max_seq_len` ids. A longer row is cut at its end and loses its end token.
    pub ids: Vec<i32>,
    /// The loss is taken on `ids[prompt_len..]`; at least 1, less than `ids.len()`.
    pub prompt_len: usize,
}

/// Two answers to one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairExample {
    /// Both sequences begin with the same `prompt_len` ids.
    pub prompt_len: usize,
    /// Prompt, good answer, end token; cut like [`SftExample::ids`].
    pub chosen: Vec<i32>,
    /// Prompt, bad answer, end token.
    pub rejected: Vec<i32>,
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
/// first token is learned. `None`: left out, being too long.
pub fn sft_example(row: &Row, tok: &Tokenizer, limits: &Limits) -> Result<Option<SftExample>> {
    if let (None, Some(text)) = (&row.prompt, &row.text) {
        let mut ids = tok.bos_prefix().to_vec();
        let prompt_len = ids.len().max(1);
        let own = tok.encode(text, limits.allow_special)?;
        ids.extend(own.strip_prefix(&ids[..]).unwrap_or(&own));
        if !has_end(&ids, tok, limits) {
            ids.push(tok.eos_id());
        }
        ids.truncate(limits.max_seq_len);
        return Ok((ids.len() > prompt_len).then_some(SftExample { ids, prompt_len }));
    }
    let (Some(prompt), Some(chosen)) = (&row.prompt, &row.chosen) else {
        return Err(lacks(
            row,
            "supervised finetuning",
            "an answer (\"chosen\" or \"completion\")",
        ));
    };
    let Some((rendered, prompt)) = prompt_ids(row, prompt, tok, limits)? else { return Ok(None) };
    let ids = sequence(&rendered, &prompt, chosen, tok, limits)?;
    Ok(Some(SftExample { ids, prompt_len: prompt.len() }))
}

/// The pair of a row. `None`: left out, being too long, or equal within `max_seq_len`.
pub fn pair_example(row: &Row, tok: &Tokenizer, limits: &Limits) -> Result<Option<PairExample>> {
    let (Some(prompt), Some(chosen), Some(rejected)) = (&row.prompt, &row.chosen, &row.rejected)
    else {
        return Err(lacks(row, "the reward model", "\"chosen\" and \"rejected\""));
    };
    let Some((rendered, prompt)) = prompt_ids(row, prompt, tok, limits)? else { return Ok(None) };
    let chosen = sequence(&rendered, &prompt, chosen, tok, limits)?;
    let rejected = sequence(&rendered, &prompt, rejected, tok, limits)?;
    let pair = PairExample { prompt_len: prompt.len(), chosen, rejected };
    Ok((pair.chosen != pair.rejected).then_some(pair))
}

/// The prompt of a row. `None`: left out, being too long.
pub fn prompt_example(
    row: &Row,
    tok: &Tokenizer,
    limits: &Limits,
) -> Result<Option<PromptExample>> {
    let Some(prompt) = &row.prompt else {
        return Err(lacks(row, "PPO", "\"prompt\""));
    };
    let found = prompt_ids(row, prompt, tok, limits)?;
    let place = RowRef { file: row.file.clone(), row: row.row };
    Ok(found.map(|(rendered, ids)| PromptExample { ids, text: rendered.text, row: place }))
}

/// Text for the mixture loss: all rows' text end to end, cut into blocks of `block_len` ids; the
/// rest that fills no block is dropped. A text begins with what the tokenizer puts first or, where
/// that is nothing, ends with the end token.
pub fn text_blocks(
    rows: &[Row],
    tok: &Tokenizer,
    block_len: usize,
    allow_special: bool,
) -> Result<Vec<Vec<i32>>> {
    if block_len == 0 {
        return Err(Error::user("text blocks need a length of at least 1"));
    }
    let mut ids = Vec::new();
    for row in rows {
        let Some(text) = &row.text else {
            return Err(lacks(row, "the mixture loss", "\"text\""));
        };
        ids.extend_from_slice(tok.bos_prefix());
        ids.extend(tok.encode(text, allow_special)?);
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
    row.error(format!("{step} needs {keys}, which this row has not"))
}

/// The prompt's ids within the limit, or none when the row is to be left out.
fn prompt_ids(
    row: &Row,
    prompt: &Prompt,
    tok: &Tokenizer,
    limits: &Limits,
) -> Result<Option<(Rendered, Vec<i32>)>> {
    let max = limits.max_prompt_len;
    if max == 0 || max >= limits.max_seq_len {
        let lengths = format!("prompts of up to {max} tokens in {}", limits.max_seq_len);
        return Err(Error::user(format!("{lengths} leave no room; use 0 < prompt < sequence")));
    }
    let rendered = render(row, prompt, tok, limits.chat, limits.allow_special)?;
    let mut ids = rendered.ids(tok)?;
    if ids.len() > max {
        let first = tok.bos_prefix();
        // Where the limit has no room for a token of the prompt itself, nothing useful is left.
        if limits.on_long_prompt == OnLongPrompt::Skip || first.len() >= max {
            return Ok(None);
        }
        let keep = if ids.starts_with(first) { first.len() } else { 0 };
        ids.drain(keep..ids.len() - (max - keep));
    }
    match ids.is_empty() {
        true => Err(row.error("the prompt has no token")),
        false => Ok(Some((rendered, ids))),
    }
}

/// Whether text that was rendered beforehand brings its own end token.
fn has_end(ids: &[i32], tok: &Tokenizer, limits: &Limits) -> bool {
    limits.allow_special && ids.last().is_some_and(|id| tok.stop_ids().contains(id))
}

/// Prompt, answer and end token, cut at `max_seq_len`.
fn sequence(
    rendered: &Rendered,
    prompt: &[i32],
    answer: &str,
    tok: &Tokenizer,
    limits: &Limits,
) -> Result<Vec<i32>> {
    let mut ids = prompt.to_vec();
    ids.extend(rendered.answer_ids(tok, answer)?);
    if !has_end(&ids, tok, limits) {
        ids.push(rendered.end);
    }
    ids.truncate(limits.max_seq_len);
    Ok(ids)
}

#[cfg(test)]
#[path = "example_tests.rs"]
mod tests;

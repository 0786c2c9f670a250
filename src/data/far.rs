//! Texts far longer than any sequence. Only what is near their ends, or near an answer, can become
//! part of one, so only that is made into tokens. Shorter texts are encoded whole.

use super::messages::strings;
use super::tokenizer::Tokenizer;
use super::types::{Answer, Message, Prompt, Row};
use crate::base::Result;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// Bytes that every text may have, and more for each token of the longest sequence. Tokens of some
/// tokenizers stand for a hundred spaces.
const NEAR: [usize; 2] = [64 << 10, 64];
/// The same for a string of a conversation that a template is to render.
const NEAR_STRING: [usize; 2] = [4 << 20, 256];
/// Bytes of a text that is encoded whole, of a piece of a longer one, and around a piece.
const WHOLE: [usize; 3] = [2 << 20, 1 << 20, 4 << 10];
/// Tokens next to a cut that may be others than those of the whole text.
const UNSURE: usize = 64;

/// The tokens of a text that are near its ends and near chosen places.
#[derive(Debug, Default)]
pub(super) struct Near {
    pub(super) ids: Vec<i32>,
    /// The bytes of each, as in [`super::Encoded`].
    pub(super) offsets: Vec<Range<usize>>,
    /// Bytes without tokens.
    pub(super) gaps: Vec<Range<usize>>,
}

fn most_bytes([base, token]: [usize; 2], most: usize) -> usize {
    base.saturating_add(token.saturating_mul(most))
}

/// The ids of `text` with their bytes, control tokens in `literal` being plain text. Of a text far
/// longer than `most` tokens they are those near its ends and `places`: `most` and more on either
/// side, as they are in the whole.
pub(super) fn encode(
    tokenizer: &Tokenizer,
    text: &str,
    literal: &[Range<usize>],
    places: &[usize],
    most: usize,
) -> Result<Near> {
    let bytes = most_bytes(NEAR, most);
    let mut width = bytes / 4;
    while text.len() > bytes && width < text.len() {
        if let Some(near) = around(tokenizer, text, literal, places, most, width)? {
            return Ok(near);
        }
        // Tokens of many bytes: look further.
        width *= 2;
    }
    let whole = tokenizer.encode_guarded(text, literal)?;
    Ok(Near { ids: whole.ids, offsets: whole.offsets, gaps: vec![] })
}

/// The tokens within `width` bytes of the ends and `places`; None where they are too few.
fn around(
    tokenizer: &Tokenizer,
    text: &str,
    literal: &[Range<usize>],
    places: &[usize],
    most: usize,
    width: usize,
) -> Result<Option<Near>> {
    let mut near = Near::default();
    for Window { bytes, first, last } in windows(text, places, width) {
        let inside = literal.iter().filter(|l| l.start < bytes.end && bytes.start < l.end);
        let inside: Vec<Range<usize>> = inside
            .map(|l| l.start.max(bytes.start) - bytes.start..l.end.min(bytes.end) - bytes.start)
            .collect();
        let encoded = tokenizer.encode_guarded(&text[bytes.clone()], &inside)?;
        let starts = encoded.offsets.iter().map(|o| o.start + bytes.start);
        let (mut before, mut behind) = (0, 0);
        starts.for_each(|at| {
            before += usize::from(at < first);
            behind += usize::from(at >= last);
        });
        let enough = |n: usize| n >= most.saturating_add(UNSURE);
        if bytes.start > 0 && !enough(before) || bytes.end < text.len() && !enough(behind) {
            return Ok(None);
        }
        let done = near.gaps.pop().map_or(0, |gap| gap.start);
        near.gaps.extend([done..bytes.start, bytes.end..text.len()]);
        near.ids.extend(encoded.ids);
        let moved = |o: Range<usize>| o.start + bytes.start..o.end + bytes.start;
        near.offsets.extend(encoded.offsets.into_iter().map(moved));
    }
    near.gaps.retain(|gap| !gap.is_empty());
    Ok(Some(near))
}

/// A stretch of text around one or several places.
struct Window {
    bytes: Range<usize>,
    first: usize,
    last: usize,
}

/// Stretches of `width` bytes on either side of the ends and `places`, in order. Those that meet
/// are one.
fn windows(text: &str, places: &[usize], width: usize) -> Vec<Window> {
    let mut places = [places, &[0, text.len()]].concat();
    places.sort_unstable();
    let mut windows: Vec<Window> = vec![];
    for place in places {
        let start = text.floor_char_boundary(place.saturating_sub(width));
        let end = text.ceil_char_boundary(place.saturating_add(width).min(text.len()));
        match windows.last_mut().filter(|w| start <= w.bytes.end) {
            Some(window) => (window.bytes.end, window.last) = (end, place),
            None => windows.push(Window { bytes: start..end, first: place, last: place }),
        }
    }
    windows
}

/// The ids of `text` as [`encode`] has them, with special tokens counting or not in all of it.
pub(super) fn ends(
    tokenizer: &Tokenizer,
    text: &str,
    allow_special: bool,
    most: usize,
) -> Result<Vec<i32>> {
    if text.len() <= most_bytes(NEAR, most) {
        return tokenizer.encode(text, allow_special);
    }
    let whole = std::iter::once(0..text.len()).filter(|_| !allow_special);
    Ok(encode(tokenizer, text, &whole.collect::<Vec<_>>(), &[], most)?.ids)
}

/// All ids of `text`, with special tokens counting or not in all of it. A long one is encoded in
/// pieces, since the work on a text takes a hundred times its memory; its tokens are those of the
/// whole where none depends on what is thousands of bytes away.
pub(super) fn all(tokenizer: &Tokenizer, text: &str, allow_special: bool) -> Result<Vec<i32>> {
    let [most, piece, around] = WHOLE;
    match text.len() > most {
        true => in_pieces(tokenizer, text, allow_special, piece, around),
        false => tokenizer.encode(text, allow_special),
    }
}

/// The ids of a text that is encoded in pieces of so many bytes, with so many `around` each.
fn in_pieces(
    tokenizer: &Tokenizer,
    text: &str,
    allow_special: bool,
    piece: usize,
    around: usize,
) -> Result<Vec<i32>> {
    let (mut ids, mut done) = (vec![], 0);
    // A piece begins without what is before it, where that would hide its beginning.
    let mut before = around;
    while done < text.len() {
        let start = text.floor_char_boundary(done.saturating_sub(before));
        let to = done.saturating_add(piece);
        let end = text.ceil_char_boundary(to.saturating_add(around).min(text.len()));
        let whole = std::iter::once(0..end - start).filter(|_| !allow_special);
        let encoded = tokenizer.encode_guarded(&text[start..end], &whole.collect::<Vec<_>>())?;
        let begins: Vec<usize> = encoded.offsets.iter().map(|o| o.start + start).collect();
        let first = begins.partition_point(|at| *at < done);
        if before > 0 && done > 0 && begins.get(first) != Some(&done) {
            before = 0;
            continue;
        }
        let last = match end < text.len() {
            true => begins.partition_point(|at| *at < to),
            false => begins.len(),
        };
        ids.extend(&encoded.ids[first..last]);
        done = begins.get(last).copied().unwrap_or(end);
        before = around;
    }
    Ok(ids)
}

/// The beginning of `text`, or of a far longer one: as much as has `most` tokens and some more.
pub(super) fn head<'t>(tokenizer: &Tokenizer, text: &'t str, most: usize) -> Result<&'t str> {
    part(tokenizer, text, most, |width| &text[..text.ceil_char_boundary(width)])
}

/// The same of its end.
pub(super) fn tail<'t>(tokenizer: &Tokenizer, text: &'t str, most: usize) -> Result<&'t str> {
    part(tokenizer, text, most, |width| &text[text.floor_char_boundary(text.len() - width)..])
}

fn part<'t>(
    tokenizer: &Tokenizer,
    text: &'t str,
    most: usize,
    part: impl Fn(usize) -> &'t str,
) -> Result<&'t str> {
    let bytes = most_bytes(NEAR, most);
    let mut width = bytes / 4;
    while text.len() > bytes && width < text.len() {
        let part = part(width);
        if tokenizer.encode(part, false)?.len() >= most.saturating_add(UNSURE) {
            return Ok(part);
        }
        width *= 2;
    }
    Ok(text)
}

/// The row, or where a string of its conversation is far longer than `most` tokens, one that has
/// only the ends of it: a rendering takes several times the memory of what is rendered.
pub(super) fn shortened(row: &Row, most: usize) -> Cow<'_, Row> {
    let bytes = most_bytes(NEAR_STRING, most);
    let answers = [&row.chosen, &row.rejected].into_iter().flatten();
    let answers = answers.filter_map(|answer| match answer {
        Answer::Chat(messages) => Some(messages),
        Answer::Text { .. } => None,
    });
    let prompt = match &row.prompt {
        Some(Prompt::Chat(messages)) => Some(messages),
        _ => None,
    };
    let messages = prompt.into_iter().chain(answers).flatten().map(Message::fields);
    let beside = row.context.iter().flat_map(|context| context.values());
    let check = |text: &str| if text.len() > bytes { Err(()) } else { Ok(()) };
    if messages.chain(beside).all(|value| strings(value, &check).is_ok()) {
        return Cow::Borrowed(row);
    }
    Cow::Owned(short_of(row, bytes))
}

/// The row with no more than the ends of what is longer than `bytes` in its conversation.
fn short_of(row: &Row, bytes: usize) -> Row {
    let short = |text: &str| match text.len() > bytes {
        false => text.to_owned(),
        true => {
            let half = bytes / 2;
            let (head, tail) = (text.floor_char_boundary(half), text.len() - half);
            [&text[..head], &text[text.ceil_char_boundary(tail)..]].concat()
        }
    };
    let all = |messages: &[Message]| messages.iter().map(|m| m.map(&short)).collect();
    let answer = |answer: &Option<Answer>| match answer {
        Some(Answer::Chat(messages)) => Some(Answer::Chat(all(messages))),
        other => other.clone(),
    };
    let prompt = match &row.prompt {
        Some(Prompt::Chat(messages)) => Some(Prompt::Chat(all(messages))),
        other => other.clone(),
    };
    Row {
        file: row.file.clone(),
        row: row.row,
        prompt,
        chosen: answer(&row.chosen),
        rejected: answer(&row.rejected),
        text: row.text.clone(),
        is_dialogue: row.is_dialogue,
        context: row.context.as_ref().map(|context| Arc::new(context.map(&short))),
        unused: row.unused.clone(),
        columns: row.columns.clone(),
    }
}

#[cfg(test)]
#[path = "far_tests.rs"]
mod tests;

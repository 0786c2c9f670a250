//! Text to ids in one pass, with control tokens switched off in chosen byte ranges. The steps are
//! those of the library's own `encode`; only the search for added tokens is ours, because the
//! library can switch control tokens off for a whole text alone.

use super::tokenizer_files::using;
use crate::base::{Error, Result, bounded};
use aho_corasick::{AhoCorasick, MatchKind};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use tokenizers::{
    AddedToken, Model, NormalizedString, Normalizer, OffsetType, PreTokenizedString, PreTokenizer,
    Token, Tokenizer as HfTokenizer, normalizer::Range as In,
};

/// Letters of a token, for the bounds of decoding; few have more.
const LETTERS: usize = 16;

/// Ids with the byte range of the text that each came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, in the order of the text.
    pub ids: Vec<i32>,
    /// One range for each id, on character boundaries. Starts never decrease, and neither do ends.
    /// Several ids share a range where one character became several tokens.
    pub offsets: Vec<Range<usize>>,
}

/// Finds added tokens in a text.
pub(super) struct Matcher {
    /// Tokens that are looked for in the text as it is.
    exact: Patterns,
    /// Tokens that are looked for in the normalized text.
    normalized: Patterns,
    /// Ids of added tokens that count outside literal text only.
    guarded: HashSet<u32>,
    /// Ids that no literal text may become.
    controls: HashSet<u32>,
    /// Finds the letters of control tokens.
    letters: AhoCorasick,
    /// Stands for a character that only a control token could stand for.
    unknown: Option<u32>,
    /// The file of the tokenizer, for errors.
    whose: String,
}

struct Patterns {
    search: AhoCorasick,
    /// The text of each pattern of `search`.
    letters: Vec<String>,
    /// Id and properties of the token behind each pattern.
    tokens: Vec<(u32, AddedToken)>,
}

impl Patterns {
    /// `patterns`: the letters to look for, with the token that they stand for.
    fn new(mut patterns: Vec<(String, u32, AddedToken)>) -> Result<Patterns> {
        patterns.retain(|(text, ..)| !text.is_empty());
        patterns.sort_by_key(|(_, id, _)| *id);
        let search = search(MatchKind::LeftmostLongest, patterns.iter().map(|(text, ..)| text))?;
        let (mut letters, mut tokens) = (Vec::new(), Vec::new());
        for (text, id, token) in patterns {
            letters.push(text);
            tokens.push((id, token));
        }
        Ok(Patterns { search, letters, tokens })
    }

    /// Cuts `text` into runs of plain text (`None`) and added tokens, as the library does. `shut`
    /// says of a token and its place in `text` how much of it stands in literal text.
    fn cut(
        &self,
        text: &str,
        shut: impl Fn(u32, Range<usize>) -> Shut,
    ) -> Vec<(Option<u32>, Range<usize>)> {
        let mut pieces = Vec::new();
        let (mut done, mut from) = (0, 0);
        while let Some(found) = self.search.find(aho_corasick::Input::new(text).range(from..)) {
            let mut index = found.pattern().as_usize();
            let (mut start, mut end) = (found.start(), found.end());
            from = end;
            match shut(self.tokens[index].0, start..end) {
                Shut::No => {}
                Shut::Whole => continue,
                // A shorter token may end before the literal text, or another begin behind it.
                Shut::Partly => match self.shorter(text, start..end, &shut) {
                    Some(shorter) => {
                        index = shorter;
                        end = start + self.letters[index].len();
                        from = end;
                    }
                    None => {
                        from = start + text[start..].chars().next().map_or(1, char::len_utf8);
                        continue;
                    }
                },
            }
            let (id, token) = &self.tokens[index];
            let joined = text[..start].chars().next_back().is_some_and(is_word)
                || text[end..].chars().next().is_some_and(is_word);
            if token.single_word && joined {
                continue;
            }
            if token.lstrip {
                start = text[..start].trim_end().len().max(done);
            }
            if token.rstrip {
                end = text.len() - text[end..].trim_start().len();
            }
            if done < start {
                pieces.push((None, done..start));
            }
            pieces.push((Some(*id), start..end));
            done = end;
        }
        if done < text.len() {
            pieces.push((None, done..text.len()));
        }
        pieces
    }

    /// The longest pattern that begins where `at` does, is shorter, and counts.
    fn shorter(
        &self,
        text: &str,
        at: Range<usize>,
        shut: &impl Fn(u32, Range<usize>) -> Shut,
    ) -> Option<usize> {
        let counts = |&i: &usize| {
            let end = at.start + self.letters[i].len();
            end < at.end
                && text[at.clone()].starts_with(&self.letters[i])
                && matches!(shut(self.tokens[i].0, at.start..end), Shut::No)
        };
        (0..self.letters.len()).filter(counts).max_by_key(|&i| self.letters[i].len())
    }
}

fn search<'t>(kind: MatchKind, texts: impl Iterator<Item = &'t String>) -> Result<AhoCorasick> {
    let built = AhoCorasick::builder().match_kind(kind).build(texts);
    built.map_err(|e| Error::user(format!("the tokenizer's added tokens: {e}")))
}

/// How much of an added token's letters stands in literal text, where the token is guarded.
enum Shut {
    No,
    Partly,
    Whole,
}

/// A word character as regular expressions have it (`\w`).
fn is_word(c: char) -> bool {
    regex_syntax::is_word_character(c)
}

impl Matcher {
    /// `controls` are the control tokens' ids, `unknown` that of the unknown token, if any. The ids
    /// `idle` are those of added tokens that are never looked for.
    pub(super) fn new(
        tokenizer: &HfTokenizer,
        controls: &HashMap<u32, String>,
        idle: &HashSet<u32>,
        unknown: Option<u32>,
        whose: &str,
    ) -> Result<Matcher> {
        let (mut exact, mut normalized) = (Vec::new(), Vec::new());
        let mut guarded: HashSet<u32> = controls.keys().copied().collect();
        let added = tokenizer.get_added_tokens_decoder().into_iter();
        for (id, token) in added.filter(|(id, _)| !idle.contains(id)) {
            if token.special {
                guarded.insert(id);
            }
            if !token.normalized {
                exact.push((token.content.clone(), id, token));
                continue;
            }
            let mut letters = NormalizedString::from(token.content.as_str());
            if let Some(normalizer) = tokenizer.get_normalizer() {
                using(whose, token.content.len(), || normalizer.normalize(&mut letters))?;
            }
            normalized.push((letters.get().to_owned(), id, token));
        }
        Ok(Matcher {
            exact: Patterns::new(exact)?,
            normalized: Patterns::new(normalized)?,
            guarded,
            controls: controls.keys().copied().collect(),
            letters: search(MatchKind::Standard, controls.values().filter(|t| !t.is_empty()))?,
            unknown: unknown.filter(|id| !controls.contains_key(id)),
            whose: whose.to_owned(),
        })
    }

    /// The text of `ids`, where asked without special tokens.
    pub(super) fn decode(
        &self,
        tokenizer: &HfTokenizer,
        ids: &[u32],
        skip_special: bool,
    ) -> Result<String> {
        let letters = ids.len() * LETTERS;
        using(&self.whose, letters, || tokenizer.decode(ids, skip_special))
    }

    /// The letters of every control token in `text`, in order. Overlapping ones are joined.
    pub(super) fn controls_in(&self, text: &str) -> Vec<Range<usize>> {
        bounded(&self.whose, text.len(), || {
            let mut spans: Vec<Range<usize>> = Vec::new();
            // They come by their ends. Joined at once: there may be many at each place.
            for found in self.letters.find_overlapping_iter(text) {
                let mut span = found.range();
                while let Some(last) = spans.pop_if(|last| span.start < last.end) {
                    span.start = span.start.min(last.start);
                }
                spans.push(span);
            }
            spans
        })
    }

    /// The ids of `text` alone.
    pub(super) fn ids(
        &self,
        tokenizer: &HfTokenizer,
        text: &str,
        literal: &[Range<usize>],
    ) -> Result<Vec<i32>> {
        let encoding = using(&self.whose, text.len(), || {
            self.tokenized(tokenizer, text, literal)?.into_encoding(None, 0, OffsetType::None)
        })?;
        Ok(encoding.get_ids().iter().map(|&id| id as i32).collect())
    }

    /// The ids of `text` with their byte ranges.
    pub(super) fn encode(
        &self,
        tokenizer: &HfTokenizer,
        text: &str,
        literal: &[Range<usize>],
    ) -> Result<Encoded> {
        let encoding = using(&self.whose, text.len(), || {
            self.tokenized(tokenizer, text, literal)?.into_encoding(None, 0, OffsetType::Byte)
        })?;
        let mut encoded = Encoded::default();
        let mut last = 0..0;
        for (&id, &(start, end)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
            let start = text.floor_char_boundary(start).max(last.start);
            let end = text.ceil_char_boundary(end).max(last.end).max(start);
            last = start..end;
            encoded.ids.push(id as i32);
            encoded.offsets.push(last.clone());
        }
        Ok(encoded)
    }

    fn tokenized(
        &self,
        tokenizer: &HfTokenizer,
        text: &str,
        literal: &[Range<usize>],
    ) -> tokenizers::Result<PreTokenizedString> {
        let mut string = PreTokenizedString::from(text);
        string.split(|_, piece| self.split(piece, &self.exact, literal))?;
        string.split(|_, mut piece| {
            if let Some(normalizer) = tokenizer.get_normalizer() {
                // The library goes on with what a failed normalizer leaves.
                let _ = normalizer.normalize(&mut piece);
            }
            self.split(piece, &self.normalized, literal)
        })?;
        if let Some(pre) = tokenizer.get_pre_tokenizer() {
            pre.pre_tokenize(&mut string)?;
        }
        string.tokenize(|piece| {
            let tokens = tokenizer.get_model().tokenize(piece.get())?;
            let held = |t: &Token| {
                self.controls.contains(&t.id) && {
                    let at = original(piece, t.offsets.0..t.offsets.1);
                    overlap(literal, &at).is_some()
                }
            };
            match tokens.iter().any(held) {
                false => Ok(tokens),
                true => self.broken_up(tokenizer, piece.get(), 0, tokens, &held),
            }
        })?;
        Ok(string)
    }

    /// Splits `piece` at the added tokens in it that count.
    fn split(
        &self,
        piece: NormalizedString,
        patterns: &Patterns,
        literal: &[Range<usize>],
    ) -> tokenizers::Result<Vec<(NormalizedString, Option<Vec<Token>>)>> {
        let shut = |id: u32, at: Range<usize>| match self.guarded.contains(&id) {
            false => Shut::No,
            true => overlap(literal, &original(&piece, at)).unwrap_or(Shut::No),
        };
        let slice = |(id, at): (Option<u32>, Range<usize>)| {
            let part = piece.slice(In::Normalized(at)).ok_or("an added token cannot be cut out")?;
            let token = |id| {
                let letters = part.get().to_owned();
                let end = letters.len();
                vec![Token::new(id, letters, (0, end))]
            };
            let tokens = id.map(token);
            Ok((part, tokens))
        };
        patterns.cut(piece.get(), shut).into_iter().map(slice).collect()
    }

    /// The tokens of `text`, which begins at byte `at` of its piece, without those that `held`
    /// finds among `tokens`. Some vocabularies (unigram, word level) have a control token's text
    /// as an ordinary entry. Cutting the letters in two leaves the model no way to choose it.
    fn broken_up(
        &self,
        tokenizer: &HfTokenizer,
        text: &str,
        at: usize,
        tokens: Vec<Token>,
        held: &dyn Fn(&Token) -> bool,
    ) -> tokenizers::Result<Vec<Token>> {
        let shifted = |mut token: Token| {
            token.offsets = (token.offsets.0 + at, token.offsets.1 + at);
            token
        };
        let tokens: Vec<Token> = tokens.into_iter().map(shifted).collect();
        let cut = |t: &Token| {
            let first = text.get(t.offsets.0 - at..t.offsets.1 - at)?.chars().next()?;
            Some(t.offsets.0 - at + first.len_utf8())
        };
        let whole = text.len();
        let mut cuts: Vec<usize> = tokens.iter().filter(|t| held(t)).filter_map(cut).collect();
        cuts.retain(|&c| c < whole && text.is_char_boundary(c));
        if cuts.is_empty() {
            // One character, which the model knows as the control token alone.
            let other = |mut t: Token| match (held(&t), self.unknown) {
                (false, _) => Some(t),
                (true, Some(id)) => {
                    t.id = id;
                    Some(t)
                }
                (true, None) => None,
            };
            return Ok(tokens.into_iter().filter_map(other).collect());
        }
        cuts.push(whole);
        let mut all = Vec::new();
        let mut start = 0;
        for end in cuts {
            if start < end {
                let part = &text[start..end];
                let tokens = tokenizer.get_model().tokenize(part)?;
                all.extend(self.broken_up(tokenizer, part, at + start, tokens, held)?);
                start = end;
            }
        }
        Ok(all)
    }
}

/// The bytes of the whole text behind `at`, bytes of the normalized `piece`.
fn original(piece: &NormalizedString, at: Range<usize>) -> Range<usize> {
    let start = piece.offsets_original().0;
    let local = piece.convert_offsets(In::Normalized(at.clone())).unwrap_or(at);
    start + local.start..start + local.end
}

/// How much of `at` the sorted ranges `literal` cover; `None` for nothing.
fn overlap(literal: &[Range<usize>], at: &Range<usize>) -> Option<Shut> {
    let first = literal.partition_point(|l| l.end <= at.start);
    let l = literal.get(first).filter(|l| l.start < at.end)?;
    Some(match l.start <= at.start && at.end <= l.end {
        true => Shut::Whole,
        false => Shut::Partly,
    })
}

#[cfg(test)]
#[path = "tokenizer_encode_tests.rs"]
mod tests;

//! How a reward model reads the answers of an actor: by the rendering it was trained on.

use super::config::ConversationFormat;
use super::limits::chat_format;
use super::sources::Source;
use crate::algo::{Retokenise, Rollout};
use crate::base::Result;
use crate::data::{ChatFormat, OpenTalk, PromptExample, Tokenizer};
use std::collections::HashMap;
use std::sync::Arc;

/// Conversations by the ids of their prompts.
pub(super) type Talks = HashMap<Vec<i32>, Arc<OpenTalk>>;

/// The conversations among prompts.
pub(super) fn talks<'a>(prompts: impl Iterator<Item = &'a PromptExample>) -> Talks {
    prompts.filter_map(|p| Some((p.ids.clone(), p.talk.clone()?))).collect()
}

/// The ids under which `reader` knows a rollout of `actor`: of a conversation its own rendering of
/// the whole, end of the turn included; of text that of its own tokenizer. The rollout's own ids
/// are kept where they say the same. `None` where that is always so.
pub(super) fn reading(
    actor: &Source,
    reader: &Source,
    talks: Talks,
    format: ConversationFormat,
) -> Option<Retokenise> {
    let same = actor.has_tokens_of(reader);
    let (from, to) = (actor.tokenizer.clone(), reader.tokenizer.clone());
    let (most, format) = (reader.arch.max_positions, chat_format(format, &to));
    // Without a template, a conversation is a text like another.
    let talks = if format == ChatFormat::Template { talks } else { Talks::new() };
    if same && talks.is_empty() {
        return None;
    }
    Some(Box::new(move |rollout| {
        let (prompt, answer) = rollout.ids.split_at(rollout.prompt_len);
        let mut ids = match talks.get(prompt) {
            Some(talk) => {
                let said = from.decode(answer, true)?;
                let told = talk.answered(&said, rollout.finished, &to, format)?;
                match same && told.follows(prompt, &said, &to)? {
                    true => return Ok(rollout.ids.clone()),
                    false => told.ids,
                }
            }
            None if same => return Ok(rollout.ids.clone()),
            None => text(rollout, &from, &to)?,
        };
        Ok(ids.split_off(ids.len().saturating_sub(most)))
    }))
}

/// The ids of a text, control tokens left out, with the end token where the answer was finished.
fn text(rollout: &Rollout, from: &Tokenizer, to: &Tokenizer) -> Result<Vec<i32>> {
    let mut ids = to.bos_prefix().to_vec();
    ids.extend(to.encode(&from.decode(&rollout.ids, true)?, false)?);
    if rollout.finished || ids.is_empty() {
        ids.push(to.eos_id());
    }
    Ok(ids)
}

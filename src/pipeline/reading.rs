//! How a reward model reads the answers of an actor: by the rendering it was trained on.

use super::config::ConversationFormat;
use super::limits::chat_format;
use super::sources::Source;
use crate::algo::{Retokenise, Rollout};
use crate::base::Result;
use crate::data::{ChatFormat, PromptExample, Tokenizer};

/// True if one of `prompts` is a conversation.
pub(super) fn talks<'a>(mut prompts: impl Iterator<Item = &'a PromptExample>) -> bool {
    prompts.any(|p| p.talk.is_some())
}

/// The ids under which `reader` knows a rollout of `actor`: of a conversation its own rendering of
/// the whole, end of the turn included; of text that of its own tokenizer. The rollout's own ids
/// are kept where they say the same. `None` where that is always so. `talks` says that
/// conversations are among the prompts.
pub(super) fn reading(
    actor: &Source,
    reader: &Source,
    talks: bool,
    format: ConversationFormat,
) -> Option<Retokenise> {
    let same = actor.has_tokens_of(reader);
    let (from, to) = (actor.tokenizer.clone(), reader.tokenizer.clone());
    let (most, format) = (reader.arch.max_positions, chat_format(format, &to));
    // Without a template, a conversation is a text like another.
    let talks = talks && format == ChatFormat::Template;
    if same && !talks {
        return None;
    }
    Some(Box::new(move |completion| {
        let rollout = completion.rollout;
        let (prompt, answer) = rollout.ids.split_at(rollout.prompt_len);
        let mut ids = match completion.prompt.talk.as_ref().filter(|_| talks) {
            Some(talk) => {
                let said = from.decode(answer, true)?;
                let told = talk.answered(&said, rollout.finished, &to, format, most)?;
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

//! Lengths of sequences and the format of conversations: what the configuration says, and what it
//! comes to with a model.

use super::config::{ConversationFormat, RunConfig};
use super::sources::Source;
use crate::algo::Algorithm;
use crate::base::{Error, Result};
use crate::data::{ChatFormat, Limits, OnLongPrompt, Tokenizer, Use};

/// The lengths and formats that the configuration of a run gives.
pub(super) struct Lengths {
    /// Longest sequence of stages that learn from rows, tokens.
    sequence: usize,
    /// True if the user gave that length.
    sequence_given: bool,
    /// Longest prompt, tokens.
    prompt: usize,
    /// Longest answer, tokens.
    answer: usize,
    on_long_prompt: OnLongPrompt,
    format: ConversationFormat,
    pre_rendered: bool,
}

impl Lengths {
    pub(super) fn of(cfg: &RunConfig) -> Result<Lengths> {
        Ok(Lengths {
            sequence: cfg.max_seq_len,
            sequence_given: cfg.given()?.contains("max_seq_len"),
            prompt: cfg.max_prompt_seq_len,
            answer: cfg.max_answer_seq_len,
            on_long_prompt: cfg.on_long_prompt,
            format: cfg.chat_format,
            pre_rendered: cfg.pre_rendered,
        })
    }

    /// Limits of a stage with the model whose tokens it has.
    ///
    /// # Errors
    /// The lengths exceed the positions of the model.
    pub(super) fn of_stage(&self, of: &Algorithm, source: &Source) -> Result<Limits> {
        match of.learns.rows() {
            Use::Texts | Use::Pairs => self.training(source),
            Use::Prompts => self.rollout(source),
        }
    }

    /// Limits of stages that learn from rows.
    fn training(&self, source: &Source) -> Result<Limits> {
        let mut sequence = self.sequence;
        if self.sequence_given {
            check_room(sequence, source, "--max-seq-len")?;
        } else {
            sequence = sequence.min(source.arch.max_positions);
        }
        Ok(self.limits(source, self.prompt.min(sequence - 1), sequence))
    }

    /// Limits of stages that sample.
    fn rollout(&self, source: &Source) -> Result<Limits> {
        let sequence = self.prompt + self.answer;
        check_room(sequence, source, "--max-prompt-seq-len and --max-answer-seq-len")?;
        Ok(self.limits(source, self.prompt, sequence))
    }

    fn limits(&self, source: &Source, max_prompt_len: usize, max_seq_len: usize) -> Limits {
        Limits {
            max_prompt_len,
            max_seq_len,
            on_long_prompt: self.on_long_prompt,
            chat: chat_format(self.format, &source.tokenizer),
            allow_special: self.pre_rendered,
            all_turns: false,
        }
    }
}

/// Refuses sequences that are longer than the model has positions. `flags` name their lengths.
pub(super) fn check_room(wanted: usize, source: &Source, flags: &str) -> Result<()> {
    if wanted <= source.arch.max_positions {
        return Ok(());
    }
    Err(Error::user(format!(
        "{flags} ask for sequences of {wanted} tokens, but {} has {} positions; lower them",
        source.dir.display(),
        source.arch.max_positions
    )))
}

/// The format meant for this tokenizer.
pub(super) fn chat_format(asked: ConversationFormat, tokenizer: &Tokenizer) -> ChatFormat {
    match asked {
        ConversationFormat::Template => ChatFormat::Template,
        ConversationFormat::Auto if tokenizer.has_chat_template() => ChatFormat::Template,
        ConversationFormat::Auto | ConversationFormat::HumanAssistant => ChatFormat::HumanAssistant,
    }
}

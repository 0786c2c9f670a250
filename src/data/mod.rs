//! From files to token ids: reads rows in the usual preference and chat formats, divides them
//! between the steps, renders chat templates, tokenises, and packs. It knows nothing of models and
//! losses; a batch leaves it as plain vectors of ids.

mod bad_rows;
mod blend;
mod chat;
mod example;
mod far;
mod folder;
mod guard;
mod jinja;
mod json;
mod keys;
mod messages;
mod mt19937;
mod opening;
mod packed;
mod plain_chat;
mod reader;
mod row;
mod row_keys;
mod share;
mod sniff;
mod source;
mod split;
mod template;
mod tokenizer;
mod tokenizer_added;
mod tokenizer_build;
mod tokenizer_checks;
mod tokenizer_encode;
mod tokenizer_files;
mod tokenizer_keys;
mod types;
mod unread;

pub use bad_rows::{BadRows, OnBadRow};
pub use blend::{Blend, BlendConfig, Part, Spec, epoch_order, epoch_rows};
pub use chat::{ChatFormat, chat_ids};
pub use example::{
    AnsweredTalk, Limits, OnLongPrompt, OpenTalk, PairExample, PromptExample, Remarks, RowRef,
    SftExample, build, pair_example, prompt_example, sft_example, text_blocks,
};
pub use mt19937::{Mt19937, permutation};
pub use packed::{Packed, micro_batches};
pub use share::{Kind as RowKind, Use};
pub use source::read_rows;
pub use split::split_indices;
pub use template::{ChatTemplate, Rendering, TemplateInput};
pub use tokenizer::{TextStream, Tokenizer, now};
pub use tokenizer_encode::Encoded;
pub use types::{Answer, ChatContext, Columns, Message, Prompt, Row};
pub use unread::unread_by_template;

#[cfg(test)]
mod golden_tests;

//! From files to token ids: reads rows in the usual preference and chat formats, divides them
//! between the steps, renders chat templates, tokenises, and packs. It knows nothing of models and
//! losses; a batch leaves it as plain vectors of ids.

mod blend;
mod chat;
mod example;
mod mt19937;
mod packed;
mod pystr;
mod row;
mod source;
mod template;
mod tokenizer;
mod tokenizer_checks;
mod tokenizer_files;

pub use blend::{Blend, BlendConfig, Part, Spec, epoch_order, split_indices};
pub use chat::{ChatFormat, chat_ids};
pub use example::{
    Limits, OnLongPrompt, PairExample, PromptExample, RowRef, SftExample, build, pair_example,
    prompt_example, sft_example, text_blocks,
};
pub use mt19937::{Mt19937, permutation};
pub use packed::{Packed, micro_batches};
pub use source::{BadRows, Message, OnBadRow, Prompt, Row, read_rows};
pub use template::{ChatTemplate, Rendering, TemplateInput};
pub use tokenizer::{TextStream, Tokenizer};

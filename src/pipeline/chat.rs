//! A conversation with a model in the terminal. Reads lines from standard input; `clear` forgets the
//! conversation, `quit` or end of input leaves.

use super::config::{ChatConfig, ConversationFormat};
use super::datasets::chat_format;
use super::say;
use super::sources::Source;
use crate::base::{Error, Result};
use crate::data::{ChatFormat, Message, Tokenizer, chat_ids};
use crate::engine::Engine;
use crate::model::{Head, LoadOptions};
use crate::rollout::Sampling;
use crate::tape::Workspace;
use std::io::{BufRead, IsTerminal};
use std::sync::Arc;

/// Runs the conversation until the input ends.
pub fn chat(cfg: &ChatConfig) -> Result<()> {
    let source = Source::open(&cfg.path.display().to_string())?;
    let (device, _) = cfg.device.open()?;
    let options = LoadOptions::frozen(Head::Lm, cfg.dtype.dtype()).on(device);
    let model = source.load_alone(&options)?;
    let mut chat = Chat {
        sampling: Sampling {
            temperature: cfg.temperature as f32,
            top_k: cfg.top_k,
            top_p: cfg.top_p as f32,
            min_new_tokens: 0,
            max_new_tokens: cfg.max_new_tokens,
            eos: source.tokenizer.stop_ids().to_vec(),
            seed: cfg.seed,
        },
        engine: Engine::frozen(model),
        format: chat_format(ConversationFormat::Auto, &source.tokenizer),
        tokenizer: source.tokenizer,
        ws: Workspace::new(device, usize::MAX)?,
        system: cfg.system.clone(),
        history: vec![],
        turns: 0,
    };
    let input = std::io::stdin();
    let asks = input.is_terminal();
    if asks {
        eprintln!("Type a message; `clear` starts over, `quit` leaves.");
    }
    let prompt = if asks { "> " } else { "" };
    say(prompt)?;
    for line in input.lock().lines() {
        let line = line.map_err(|e| Error::user(format!("standard input: {e}")))?;
        match line.trim() {
            "" => {}
            "quit" | "exit" => break,
            "clear" => chat.history.clear(),
            text => chat.turn(text)?,
        }
        say(prompt)?;
    }
    Ok(())
}

struct Chat {
    engine: Engine,
    tokenizer: Arc<Tokenizer>,
    format: ChatFormat,
    ws: Workspace,
    sampling: Sampling,
    system: Option<String>,
    history: Vec<Message>,
    turns: u64,
}

impl Chat {
    /// Answers `text`, printing as tokens come.
    fn turn(&mut self, text: &str) -> Result<()> {
        self.history.push(Message::new("user", text));
        let Some(ids) = self.ids_that_fit()? else { return Ok(()) };
        let room = self.engine.model.arch.max_positions - ids.len();
        let max_new_tokens = self.sampling.max_new_tokens.min(room);
        let sampling = Sampling { max_new_tokens, ..self.sampling.clone() };
        let mut stream = self.tokenizer.stream(true);
        // White space before the answer is the template's business.
        let mut begun = false;
        let mut shown = Ok(());
        let eos = self.sampling.eos.clone();
        let answers = self.engine.generate(
            &mut self.ws,
            &[&ids],
            &[self.turns],
            &sampling,
            &mut |_, token| {
                if !eos.contains(&token) && shown.is_ok() {
                    shown = stream.push(token).and_then(|text| {
                        let text = if begun { &text } else { text.trim_start() };
                        begun |= !text.is_empty();
                        say(text)
                    });
                }
            },
        )?;
        shown?;
        say(&format!("{}\n", stream.finish()?))?;
        self.turns += 1;
        let answer = self.tokenizer.decode(&answers[0].tokens, true)?;
        self.history.push(Message::new("assistant", answer.trim()));
        Ok(())
    }

    /// The ids of the conversation, its oldest exchanges forgotten where it outgrows the model. None
    /// where the last message alone leaves no room for an answer: it is refused.
    fn ids_that_fit(&mut self) -> Result<Option<Vec<i32>>> {
        let positions = self.engine.model.arch.max_positions;
        let most = positions - self.sampling.max_new_tokens.min(positions / 2);
        loop {
            let ids = chat_ids(&self.messages(), &self.tokenizer, self.format)?;
            if ids.len() <= most {
                return Ok(Some(ids));
            }
            if self.history.len() < 3 {
                self.history.clear();
                eprintln!(
                    "the message has {} tokens, there is room for {most}; shorten it",
                    ids.len()
                );
                return Ok(None);
            }
            self.history.drain(..2);
        }
    }

    fn messages(&self) -> Vec<Message> {
        let system = self.system.iter().map(|s| Message::new("system", s));
        system.chain(self.history.iter().cloned()).collect()
    }
}

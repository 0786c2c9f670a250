//! A conversation with a model in the terminal, or one answer to one prompt. Reads messages and
//! commands from standard input and writes answers, nothing else, to standard output.

use super::chat_input::{HELP, Said, next};
use super::config::{ChatConfig, ConversationFormat};
use super::datasets::chat_format;
use super::say;
use super::sources::Source;
use crate::base::{Error, Result, on_stop};
use crate::data::{ChatFormat, Message, Tokenizer, chat_ids};
use crate::engine::Engine;
use crate::model::{Head, LoadOptions};
use crate::rollout::Sampling;
use crate::tape::Workspace;
use std::io::{IsTerminal, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Answers the prompt given, or runs the conversation until the input ends.
pub fn chat(cfg: &ChatConfig) -> Result<()> {
    let source = Source::open(&cfg.path.display().to_string())?;
    let (device, _) = cfg.device.open()?;
    let options = LoadOptions::frozen(Head::Lm, cfg.dtype.dtype()).on(device);
    let model = source.load_alone(&options)?;
    if !cfg.raw && !source.tokenizer.has_chat_template() {
        eprintln!(
            "warning: {} has no chat template: messages become Human/Assistant turns; --raw continues \
             text as it is",
            cfg.path.display()
        );
    }
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
        raw: cfg.raw,
        system: cfg.system.clone(),
        history: vec![],
        turns: 0,
    };
    match &cfg.prompt {
        Some(prompt) => chat.answer_once(prompt),
        None => talk(&mut chat),
    }
}

/// True if the model is answering, so that Ctrl-C stops the answer alone.
static ANSWERS: AtomicBool = AtomicBool::new(false);
/// True if Ctrl-C came meanwhile.
static CAME: AtomicBool = AtomicBool::new(false);

extern "C" fn came(signal: libc::c_int) {
    if signal == libc::SIGINT
        && ANSWERS.load(Ordering::SeqCst)
        && !CAME.swap(true, Ordering::SeqCst)
    {
        return;
    }
    // SAFETY: _exit may be called from a handler; nothing of this process runs any more.
    unsafe { libc::_exit(128 + signal) };
}

fn is_asked() -> bool {
    CAME.load(Ordering::SeqCst)
}

fn talk(chat: &mut Chat) -> Result<()> {
    let stdin = std::io::stdin();
    let asks = stdin.is_terminal();
    if asks {
        eprintln!("Type a message, or /help.");
    }
    let show = |prompt: &str| if asks { say(prompt) } else { Ok(()) };
    on_stop(came);
    let mut input = stdin.lock();
    loop {
        show("> ")?;
        match next(&mut input, &mut || show("... "))? {
            None | Some(Said::Quit) => return Ok(()),
            Some(Said::Message(text)) => chat.turn(text)?,
            Some(Said::Help) => eprint!("{HELP}"),
            Some(Said::Clear) => chat.history.clear(),
            Some(Said::System(_)) if chat.raw => eprintln!("--raw knows no system message"),
            Some(Said::System(text)) => chat.system = text,
            Some(Said::Undo) => drop(chat.undo()),
            Some(Said::Retry) => match chat.undo() {
                Some(text) => chat.turn(text)?,
                None => eprintln!("nothing has been said yet"),
            },
            Some(Said::Save(file)) => match chat.save(Path::new(&file)) {
                Ok(()) => eprintln!("saved {file}"),
                Err(e) => eprintln!("{e}"),
            },
            Some(Said::Wrong(why)) => eprintln!("{why}"),
        }
    }
}

struct Chat {
    engine: Engine,
    tokenizer: Arc<Tokenizer>,
    format: ChatFormat,
    ws: Workspace,
    sampling: Sampling,
    /// Text is continued as it is, each by itself.
    raw: bool,
    system: Option<String>,
    /// Messages of the user and answers in turn.
    history: Vec<(String, Option<String>)>,
    turns: u64,
}

impl Chat {
    /// Prints the answer to one prompt; `-` is all of standard input.
    fn answer_once(&mut self, prompt: &str) -> Result<()> {
        let mut text = prompt.to_string();
        if prompt == "-" {
            text.clear();
            let read = std::io::stdin().lock().read_to_string(&mut text);
            read.map_err(|e| Error::user(format!("standard input: {e}")))?;
            // The end of its last line is the shell's.
            text.truncate(text.strip_suffix('\n').unwrap_or(&text).len());
        }
        if text.trim().is_empty() {
            return Err(Error::user("--prompt: nothing to answer"));
        }
        match self.reply(text)? {
            None => Ok(()),
            Some(refusal) => Err(Error::user(format!("--prompt: {refusal}"))),
        }
    }

    /// Answers `text` in the conversation.
    fn turn(&mut self, text: String) -> Result<()> {
        if let Some(refusal) = self.reply(text)? {
            eprintln!("{refusal}");
        }
        Ok(())
    }

    /// Answers `text`, or returns a line on why it is refused.
    fn reply(&mut self, text: String) -> Result<Option<String>> {
        self.history.push((text, None));
        match self.ids_that_fit()? {
            Ok(ids) => self.answer(&ids).map(|()| None),
            Err(refusal) => Ok(Some(refusal)),
        }
    }

    /// Takes back the last message with its answer; returns the message.
    fn undo(&mut self) -> Option<String> {
        self.history.pop().map(|(text, _)| text)
    }

    /// Continues `ids`, printing as tokens come.
    fn answer(&mut self, ids: &[i32]) -> Result<()> {
        let room = self.engine.model.arch.max_positions - ids.len();
        let max_new_tokens = self.sampling.max_new_tokens.min(room);
        let sampling = Sampling { max_new_tokens, ..self.sampling.clone() };
        let mut stream = self.tokenizer.stream(true);
        // White space before an answer is the template's business.
        let mut begun = self.raw;
        let mut shown = Ok(());
        let mut tokens = vec![];
        let eos = self.sampling.eos.clone();
        CAME.store(false, Ordering::SeqCst);
        ANSWERS.store(true, Ordering::SeqCst);
        self.ws.listen(Some(is_asked));
        let done = self.engine.generate(
            &mut self.ws,
            &[ids],
            &[self.turns],
            &sampling,
            &mut |_, token| {
                if !eos.contains(&token) && shown.is_ok() {
                    tokens.push(token);
                    shown = stream.push(token).and_then(|text| {
                        let text = if begun { &text } else { text.trim_start() };
                        begun |= !text.is_empty();
                        say(text)
                    });
                }
            },
        );
        self.ws.listen(None);
        ANSWERS.store(false, Ordering::SeqCst);
        let dropped = self.ws.take_dropped();
        match done {
            Err(e) if !dropped => return Err(e),
            _ => shown?,
        }
        say(&format!("{}\n", stream.finish()?))?;
        self.turns += 1;
        let answer = self.tokenizer.decode(&tokens, true)?;
        if let Some(last) = self.history.last_mut() {
            last.1 = Some(answer.trim().into());
        }
        Ok(())
    }

    /// The ids of the conversation, its oldest exchanges forgotten where it outgrows the model; or
    /// a line where the last message alone leaves no room for an answer: it is taken back.
    fn ids_that_fit(&mut self) -> Result<std::result::Result<Vec<i32>, String>> {
        let positions = self.engine.model.arch.max_positions;
        let most = positions - self.sampling.max_new_tokens.min(positions / 2);
        loop {
            let ids = match self.raw {
                true => self.raw_ids()?,
                false => chat_ids(&self.messages(), &self.tokenizer, self.format)?,
            };
            if ids.len() <= most && !ids.is_empty() {
                return Ok(Ok(ids));
            }
            if self.history.len() < 2 || self.raw {
                self.history.pop();
                let n = ids.len();
                return Ok(Err(format!(
                    "the message has {n} tokens, there is room for {most}; shorten it"
                )));
            }
            self.history.remove(0);
        }
    }

    /// The ids of the last message as text to go on with: control tokens in it count.
    fn raw_ids(&self) -> Result<Vec<i32>> {
        let text = self.history.last().map_or("", |(text, _)| text);
        let own = self.tokenizer.encode(text, true)?;
        let first = self.tokenizer.bos_prefix();
        Ok(if own.starts_with(first) { own } else { [first, &own].concat() })
    }

    /// All that was said.
    fn messages(&self) -> Vec<Message> {
        let system = self.system.iter().map(|text| Message::new("system", text));
        let turns = self.history.iter().flat_map(|(text, answer)| {
            let answer = answer.iter().map(|text| Message::new("assistant", text));
            std::iter::once(Message::new("user", text)).chain(answer)
        });
        system.chain(turns).collect()
    }

    /// Writes the conversation as a line of JSON.
    fn save(&self, file: &Path) -> Result<()> {
        let said = self.messages();
        let messages: Vec<_> = said.iter().map(Message::fields).collect();
        super::write(file, &format!("{}\n", serde_json::json!({ "messages": messages })))
    }
}

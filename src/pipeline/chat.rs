//! A conversation with a model in the terminal, or one answer to one prompt. Reads messages and
//! commands from standard input and writes answers, nothing else, to standard output.

use super::chat_input::{HELP, Said, next};
use super::config::{ChatConfig, ConversationFormat};
use super::limits::chat_format;
use super::sources::Source;
use crate::base::{Error, Result, on_stop, print, printable, tell, warn, write_at_once};
use crate::data::{ChatFormat, Message, Tokenizer, chat_ids};
use crate::engine::Engine;
use crate::model::{Head, LoadOptions};
use crate::rollout::Sampling;
use crate::tape::Workspace;
use std::fs::File;
use std::io::{ErrorKind, IsTerminal, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Answers the prompt given, or runs the conversation until the input ends.
pub fn chat(cfg: &ChatConfig) -> Result<()> {
    let source = Source::open(&cfg.path.display().to_string())?;
    let (device, _) = cfg.device.open()?;
    let options = LoadOptions::frozen(Head::Lm, cfg.dtype.dtype()).on(device);
    let model = source.load_alone(&options)?;
    if !cfg.raw && !source.tokenizer.has_chat_template() {
        warn(&format!(
            "{} has no chat template: messages become Human/Assistant turns; --raw continues text \
             as it is",
            cfg.path.display()
        ));
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
        forgotten: 0,
        turns: 0,
    };
    match &cfg.prompt {
        Some(prompt) => chat.answer_once(prompt),
        None => talk(&mut chat),
    }
}

/// The effect of the next Ctrl-C: `HINTS[i]` for an i below its length, else one of the two below.
static CTRL_C: AtomicUsize = AtomicUsize::new(ENDS_CHAT);
/// At the first line of a message, and at those that follow it.
const HINTS: [&str; 2] = [
    "\n/quit, Ctrl-D or Ctrl-C again ends the chat\n> ",
    "\n\"\"\" ends the message, Ctrl-C again ends the chat\n... ",
];
const STOPS_ANSWER: usize = HINTS.len();
const ENDS_CHAT: usize = STOPS_ANSWER + 1;

extern "C" fn came(signal: libc::c_int) {
    match CTRL_C.swap(ENDS_CHAT, Ordering::SeqCst) {
        STOPS_ANSWER if signal == libc::SIGINT => {}
        i if i < HINTS.len() && signal == libc::SIGINT => {
            write_at_once(HINTS[i].as_bytes());
        }
        // SAFETY: _exit may be called from a handler; nothing of this process runs any more.
        _ => unsafe { libc::_exit(128 + signal) },
    }
}

/// True if Ctrl-C came during the answer.
fn is_asked() -> bool {
    CTRL_C.load(Ordering::SeqCst) == ENDS_CHAT
}

fn talk(chat: &mut Chat) -> Result<()> {
    let stdin = std::io::stdin();
    let asks = stdin.is_terminal();
    if asks {
        tell("Type a message, or /help.");
    }
    let show = |hint: usize, prompt: &str| {
        CTRL_C.store(if asks { hint } else { ENDS_CHAT }, Ordering::SeqCst);
        if asks { print(prompt) } else { Ok(()) }
    };
    // SAFETY: the handler changes an atomic, and calls `poll`, `write` and `_exit`.
    unsafe { on_stop(came) };
    let mut input = stdin.lock();
    loop {
        show(0, "> ")?;
        match next(&mut input, &mut || show(1, "... "))? {
            None | Some(Said::Quit) => return Ok(()),
            Some(Said::Message(text)) => chat.turn(text)?,
            Some(Said::Help) => tell(HELP.trim_end()),
            Some(Said::Clear) => {
                chat.history.clear();
                chat.forgotten = 0;
            }
            Some(Said::System(_)) if chat.raw => tell("--raw knows no system message"),
            Some(Said::System(text)) => chat.system = text,
            Some(Said::Undo) => {
                chat.history.pop();
                // Without a long message, more of those before it may fit again.
                chat.forgotten = 0;
            }
            Some(Said::Retry) => match chat.history.pop() {
                Some((text, _)) => chat.turn(text)?,
                None => tell("nothing has been said yet"),
            },
            Some(Said::Save(file)) => match chat.save(Path::new(&file)) {
                Ok(()) => tell(&printable(&format!("saved {file}"))),
                Err(e) => tell(&e.to_string()),
            },
            Some(Said::Wrong(why)) => tell(&printable(&why)),
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
    /// The number of oldest pairs of `history` that the model no longer sees.
    forgotten: usize,
    turns: u64,
}

impl Chat {
    /// Prints the answer to one prompt; `-` is all of standard input.
    fn answer_once(&mut self, prompt: &str) -> Result<()> {
        let mut text = prompt.to_string();
        if prompt == "-" {
            let mut bytes = vec![];
            let read = std::io::stdin().lock().read_to_end(&mut bytes);
            read.map_err(|e| Error::user(format!("standard input: {e}")))?;
            text = String::from_utf8(bytes).map_err(|e| {
                let valid = e.utf8_error().valid_up_to();
                Error::user(format!("--prompt -: standard input is not UTF-8 after {valid} bytes"))
            })?;
            // The end of a message's last line is the shell's.
            if !self.raw && text.ends_with('\n') {
                text.pop();
            }
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
            tell(&printable(&refusal));
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
        CTRL_C.store(STOPS_ANSWER, Ordering::SeqCst);
        self.ws.cancel_when(Some(is_asked));
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
                        print(text)
                    });
                }
            },
        );
        self.ws.cancel_when(None);
        let dropped = self.ws.take_dropped();
        match done {
            Err(e) if !dropped => return Err(e),
            _ => shown?,
        }
        print(&format!("{}\n", stream.finish()?))?;
        self.turns += 1;
        let answer = self.tokenizer.decode(&tokens, true)?;
        if let Some(last) = self.history.last_mut() {
            last.1 = Some(answer.trim().into());
        }
        Ok(())
    }

    /// The ids of the conversation, or of its end where it outgrows the context; or a line where
    /// the last message alone leaves no room for an answer: it is taken back.
    fn ids_that_fit(&mut self) -> Result<std::result::Result<Vec<i32>, String>> {
        let positions = self.engine.model.arch.max_positions;
        let most = positions - self.sampling.max_new_tokens.min(positions / 2);
        let mut first = self.forgotten;
        loop {
            let ids = match self.raw {
                true => self.raw_ids()?,
                false => chat_ids(&self.messages(first), &self.tokenizer, self.format)?,
            };
            if ids.len() <= most && !ids.is_empty() {
                if first > self.forgotten {
                    self.forgotten = first;
                    let n = 2 * first;
                    tell(&format!(
                        "the context is full: the model no longer sees the {n} oldest messages"
                    ));
                }
                return Ok(Ok(ids));
            }
            first += 1;
            if first >= self.history.len() || self.raw {
                self.history.pop();
                let n = ids.len();
                return Ok(Err(format!(
                    "the message has {n} tokens, there is room for {most}; shorten it"
                )));
            }
        }
    }

    /// The ids of the last message as text to go on with: control tokens in it count.
    fn raw_ids(&self) -> Result<Vec<i32>> {
        let text = self.history.last().map_or("", |(text, _)| text);
        let own = self.tokenizer.encode(text, true)?;
        let first = self.tokenizer.bos_prefix();
        Ok(if own.starts_with(first) { own } else { [first, &own].concat() })
    }

    /// The system message, and the conversation from pair `first` on.
    fn messages(&self, first: usize) -> Vec<Message> {
        let system = self.system.iter().map(|text| Message::new("system", text));
        let turns = self.history[first..].iter().flat_map(|(text, answer)| {
            let answer = answer.iter().map(|text| Message::new("assistant", text));
            std::iter::once(Message::new("user", text)).chain(answer)
        });
        system.chain(turns).collect()
    }

    /// Writes the whole conversation as a line of JSON into a new file.
    fn save(&self, path: &Path) -> Result<()> {
        let said = self.messages(0);
        let messages: Vec<_> = said.iter().map(Message::fields).collect();
        let line = format!("{}\n", serde_json::json!({ "messages": messages }));
        let written = File::create_new(path).and_then(|mut file| file.write_all(line.as_bytes()));
        written.map_err(|e| match e.kind() {
            ErrorKind::AlreadyExists => {
                Error::user(format!("{} exists already; save to another file", path.display()))
            }
            _ => Error::io("write", path, &e),
        })
    }
}

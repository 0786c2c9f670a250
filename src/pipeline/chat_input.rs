//! The lines of a conversation: messages, of one line or between `"""`, and commands.

use crate::base::{Error, Result};
use std::io::BufRead;

/// The help of the commands.
pub(super) const HELP: &str = "\
/help         this list
/clear        forget the conversation
/system TEXT  set the system message; without TEXT, take it away
/retry        answer the last message again
/undo         forget the last message and its answer
/save FILE    write the whole conversation to a new file, as a line of JSON for training
/quit         leave (also the end of input)
//x           says /x
\"\"\"           begins and ends a message of several lines
";

/// The request in a line of input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    Message(String),
    Help,
    Clear,
    /// The new system message, perhaps none.
    System(Option<String>),
    Retry,
    Undo,
    Save(String),
    Quit,
    /// Not understood: a line about it.
    Wrong(String),
}

/// The next thing said; None at the end of input. `more` is called before a line that goes on. A
/// message that is not UTF-8 is `Wrong`: with its bytes replaced it would be another message.
pub(super) fn next(
    input: &mut dyn BufRead,
    more: &mut dyn FnMut() -> Result<()>,
) -> Result<Option<Said>> {
    let mut valid = true;
    while let Some(line) = line(input, &mut valid)? {
        let text = line.trim();
        if text.is_empty() {
            continue;
        }
        let said = match text.strip_prefix("\"\"\"") {
            Some(first) => Said::Message(block(first, input, &mut valid, more)?),
            None => said(text),
        };
        let wrong = "the message is not UTF-8 and is ignored; check the encoding of the input";
        return Ok(Some(if valid { said } else { Said::Wrong(wrong.into()) }));
    }
    Ok(None)
}

/// A line without its end; None at the end of input. Makes `valid` false if it is not UTF-8.
fn line(input: &mut dyn BufRead, valid: &mut bool) -> Result<Option<String>> {
    let mut bytes = vec![];
    let read = input.read_until(b'\n', &mut bytes);
    if read.map_err(|e| Error::user(format!("standard input: {e}")))? == 0 {
        return Ok(None);
    }
    *valid &= std::str::from_utf8(&bytes).is_ok();
    Ok(Some(String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_string()))
}

/// The lines up to one that ends in `"""`, or the end of input.
fn block(
    first: &str,
    input: &mut dyn BufRead,
    valid: &mut bool,
    more: &mut dyn FnMut() -> Result<()>,
) -> Result<String> {
    let (mut lines, mut next) = (vec![], Some(first.to_string()));
    while let Some(text) = next {
        if let Some(last) = text.trim_end().strip_suffix("\"\"\"") {
            lines.push(last.to_string());
            break;
        }
        lines.push(text);
        more()?;
        next = line(input, valid)?;
    }
    Ok(lines.join("\n").trim_matches('\n').to_string())
}

fn said(text: &str) -> Said {
    let Some(rest) = text.strip_prefix('/') else { return Said::Message(text.into()) };
    if rest.starts_with('/') {
        return Said::Message(rest.into());
    }
    let (word, argument) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let argument = argument.trim();
    let given = (!argument.is_empty()).then(|| argument.to_string());
    match (word, given) {
        ("system", given) => Said::System(given),
        ("save", Some(file)) => Said::Save(file),
        ("save", None) => Said::Wrong("/save needs a file: /save FILE".into()),
        ("help", None) => Said::Help,
        ("clear", None) => Said::Clear,
        ("retry", None) => Said::Retry,
        ("undo", None) => Said::Undo,
        ("quit", None) => Said::Quit,
        ("help" | "clear" | "retry" | "undo" | "quit", Some(_)) => {
            Said::Wrong(format!("/{word} takes nothing behind it; //{word} says /{word}"))
        }
        _ => Said::Wrong(format!("no command /{word}; /help lists them, //{word} says /{word}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: impl AsRef<[u8]>) -> Vec<Said> {
        let mut input = text.as_ref();
        std::iter::from_fn(|| next(&mut input, &mut || Ok(())).unwrap()).collect()
    }

    #[test]
    fn words_are_words_and_commands_have_a_slash() {
        let says = |text: &str| Said::Message(text.into());
        let given = "quit\n exit \n\n  \nclear\n//quit\n//home/x\nhelp me / now\r\n";
        let expected = ["quit", "exit", "clear", "/quit", "/home/x", "help me / now"].map(says);
        assert_eq!(all(given), expected);
        let given =
            "/help\n/clear\n/system  Be kind. \n/system\n/retry\n/undo\n/save a b.json\n/quit";
        let expected = [
            Said::Help,
            Said::Clear,
            Said::System(Some("Be kind.".into())),
            Said::System(None),
            Said::Retry,
            Said::Undo,
            Said::Save("a b.json".into()),
            Said::Quit,
        ];
        assert_eq!(all(given), expected);
        for wrong in ["/bye", "/save", "/quit now", "/"] {
            assert!(matches!(all(wrong)[..], [Said::Wrong(_)]), "{wrong}");
        }
    }

    #[test]
    fn messages_of_several_lines() {
        let says = |text: &str| Said::Message(text.into());
        assert_eq!(all("\"\"\"\na\n\n  /quit\n\"\"\"\nb\n"), [says("a\n\n  /quit"), says("b")]);
        assert_eq!(all("\"\"\"one\"\"\"\n"), [says("one")]);
        assert_eq!(all("\"\"\"one\ntwo\"\"\""), [says("one\ntwo")]);
        assert_eq!(all("\"\"\"never\nended"), [says("never\nended")]);
    }

    #[test]
    fn messages_that_are_not_utf8_are_wrong_as_a_whole() {
        for bad in [&b"caf\xe9\n"[..], b"/save \xff\n", b"\"\"\"one\n\xe9\nthree\"\"\"\n"] {
            let given = all([bad, b"next \xc3\xa9\n"].concat());
            let [Said::Wrong(_), Said::Message(next)] = &given[..] else { panic!("{given:?}") };
            assert_eq!(next, "next \u{e9}");
        }
    }
}

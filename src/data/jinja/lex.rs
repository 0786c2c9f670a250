//! Text to tokens, by Jinja2's rules for white space and newlines (`trim_blocks`, `lstrip_blocks`).

use super::repr::escaped;
use super::strings::is_space;
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Tok {
    Data(String),
    BlockBegin,
    BlockEnd,
    PrintBegin,
    PrintEnd,
    Name(Arc<str>),
    Str(String),
    Int(i128),
    Float(f64),
    Op(&'static str),
    End,
}

/// A token and its line.
pub(crate) type Token = (Tok, u32);

/// A message and its line.
pub(crate) type SyntaxError = (String, u32);

/// The longest first.
#[rustfmt::skip]
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}",
    ">", "<", "=", ".", ":", "|", ",", ";",
];

pub(crate) fn tokens(source: &str) -> Result<Vec<Token>, SyntaxError> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { source: &source, at: 0, line: 1, starting: true, out: Vec::new() };
    while lexer.at < source.len() {
        lexer.root()?;
    }
    let line = lexer.line;
    lexer.out.push((Tok::End, line));
    Ok(lexer.out)
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    line: u32,
    /// The text read last ended in a newline.
    starting: bool,
    out: Vec<Token>,
}

fn newlines(text: &str) -> u32 {
    text.matches('\n').count() as u32
}

fn skip_space(text: &str) -> usize {
    text.len() - text.trim_start_matches(is_space).len()
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn push(&mut self, tok: Tok) {
        self.out.push((tok, self.line));
    }

    /// Moves on by `bytes`.
    fn advance(&mut self, bytes: usize) {
        let passed = &self.source[self.at..self.at + bytes];
        if bytes > 0 {
            self.starting = passed.ends_with('\n');
        }
        self.line += newlines(passed);
        self.at += bytes;
    }

    /// Text up to the next tag, and the tag.
    fn root(&mut self) -> Result<(), SyntaxError> {
        let rest = self.rest();
        let tag = rest.match_indices('{').map(|(i, _)| i).find(|&i| {
            let next = rest.as_bytes().get(i + 1);
            next.is_some_and(|b| b"%{#".contains(b))
        });
        let Some(tag) = tag else {
            self.push(Tok::Data(rest.to_owned()));
            self.advance(rest.len());
            return Ok(());
        };
        let kind = rest.as_bytes()[tag + 1];
        let sign = rest.as_bytes().get(tag + 2).copied().filter(|b| b"+-".contains(b));
        self.data(&rest[..tag], sign, kind != b'{');
        let opening = 2 + usize::from(sign.is_some());
        match kind {
            b'#' => self.comment(opening),
            b'{' => {
                self.push(Tok::PrintBegin);
                self.advance(opening);
                self.tag(false)
            }
            _ => match self.raw_begin(opening) {
                Some(length) => self.raw(length),
                None => {
                    self.push(Tok::BlockBegin);
                    self.advance(opening);
                    self.tag(true)
                }
            },
        }
    }

    /// Text before a tag, stripped as the tag's sign says.
    fn data(&mut self, text: &str, sign: Option<u8>, may_strip: bool) {
        let mut kept = text;
        if sign == Some(b'-') {
            kept = text.trim_end_matches(is_space);
        } else if sign.is_none() && may_strip {
            let line = text.rfind('\n').map_or(0, |i| i + 1);
            if (line > 0 || self.starting) && text[line..].chars().all(is_space) {
                kept = &text[..line];
            }
        }
        if !kept.is_empty() {
            self.push(Tok::Data(kept.to_owned()));
        }
        // The tag follows on the same line, so this does not count as the start of one.
        self.line += newlines(text);
        self.at += text.len();
    }

    fn comment(&mut self, opening: usize) -> Result<(), SyntaxError> {
        let rest = self.rest();
        let body = &rest[opening..];
        let Some(end) = body.find("#}") else {
            if body.is_empty() {
                self.advance(opening);
                return Ok(());
            }
            return Err(("Missing end of comment tag".into(), self.line));
        };
        let after = opening + end + 2;
        let more = match body.as_bytes()[..end].last() {
            Some(b'-') => skip_space(&rest[after..]),
            Some(b'+') => 0,
            _ => usize::from(rest[after..].starts_with('\n')),
        };
        self.advance(after + more);
        Ok(())
    }

    /// The length of `{% raw %}`, where it is that.
    fn raw_begin(&self, opening: usize) -> Option<usize> {
        let rest = self.rest();
        let mut at = opening + skip_space(&rest[opening..]);
        at += rest[at..].strip_prefix("raw").map(|_| 3)?;
        at += skip_space(&rest[at..]);
        if rest[at..].starts_with("%}") {
            return Some(at + 2);
        }
        rest[at..].starts_with("-%}").then(|| at + 3 + skip_space(&rest[at + 3..]))
    }

    fn raw(&mut self, opening: usize) -> Result<(), SyntaxError> {
        self.advance(opening);
        let rest = self.rest();
        for (start, _) in rest.match_indices("{%") {
            let sign = rest.as_bytes().get(start + 2).copied().filter(|b| b"+-".contains(b));
            let mut at = start + 2 + usize::from(sign.is_some());
            at += skip_space(&rest[at..]);
            if !rest[at..].starts_with("endraw") {
                continue;
            }
            at += 6 + skip_space(&rest[at + 6..]);
            let Some(end) = block_end(&rest[at..]) else { continue };
            self.data(&rest[..start], sign, true);
            self.advance(at + end - start);
            return Ok(());
        }
        match rest.is_empty() {
            true => Ok(()),
            false => Err(("Missing end of raw directive".into(), self.line)),
        }
    }

    /// The tokens of a tag up to its end.
    fn tag(&mut self, is_block: bool) -> Result<(), SyntaxError> {
        let mut open: Vec<&str> = Vec::new();
        loop {
            let rest = self.rest();
            if rest.is_empty() {
                return Ok(());
            }
            if open.is_empty() {
                let end = if is_block { block_end(rest) } else { print_end(rest) };
                if let Some(end) = end {
                    self.push(if is_block { Tok::BlockEnd } else { Tok::PrintEnd });
                    self.advance(end);
                    return Ok(());
                }
            }
            let space = skip_space(rest);
            if space > 0 {
                self.advance(space);
                continue;
            }
            let (tok, length) = self.token(rest)?;
            if let Tok::Op(op) = tok {
                match op {
                    "{" => open.push("}"),
                    "(" => open.push(")"),
                    "[" => open.push("]"),
                    "}" | ")" | "]" => match open.pop() {
                        Some(expected) if expected == op => {}
                        Some(expected) => {
                            let message = format!("unexpected '{op}', expected '{expected}'");
                            return Err((message, self.line));
                        }
                        None => return Err((format!("unexpected '{op}'"), self.line)),
                    },
                    _ => {}
                }
            }
            self.push(tok);
            self.advance(length);
        }
    }

    fn token(&self, rest: &str) -> Result<(Tok, usize), SyntaxError> {
        let fail = |message: &str| Err((message.to_owned(), self.line));
        let first = rest.chars().next().unwrap_or(' ');
        if first.is_ascii_digit() {
            let after_dot = self.source[..self.at].ends_with('.');
            if let Some(length) = float_length(rest).filter(|_| !after_dot) {
                let number = rest[..length].replace('_', "").parse();
                return number.map(|n| (Tok::Float(n), length)).or_else(|_| fail("bad number"));
            }
            return match integer(rest) {
                Some((Some(number), length)) => Ok((Tok::Int(number), length)),
                Some((None, _)) => fail("an integer beyond 128 bits is not supported"),
                None => fail("bad number"),
            };
        }
        if first.is_alphanumeric() || first == '_' {
            let ends = |c: char| !(c.is_alphanumeric() || c == '_' || is_mark(c));
            let length = rest.find(ends).unwrap_or(rest.len());
            return match first.is_alphabetic() || first == '_' {
                true => Ok((Tok::Name(Arc::from(&rest[..length])), length)),
                false => fail("Invalid character in identifier"),
            };
        }
        if first == '\'' || first == '"' {
            let mut escaped = false;
            let end = rest[1..].char_indices().find(|&(_, c)| {
                let ends = c == first && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            if let Some((end, _)) = end {
                let text = unescape(&rest[1..1 + end]).map_err(|e| (e, self.line))?;
                return Ok((Tok::Str(text), end + 2));
            }
        }
        match OPERATORS.iter().find(|op| rest.starts_with(**op)) {
            Some(op) => Ok((Tok::Op(op), op.len())),
            None => fail(&format!("unexpected char {first:?}")),
        }
    }
}

/// Combining marks, which may stand inside an identifier.
fn is_mark(c: char) -> bool {
    matches!(c, '\u{b7}' | '\u{300}'..='\u{36f}')
}

fn block_end(rest: &str) -> Option<usize> {
    if rest.starts_with("+%}") {
        return Some(3);
    }
    if let Some(after) = rest.strip_prefix("-%}") {
        return Some(3 + skip_space(after));
    }
    rest.starts_with("%}").then(|| 2 + usize::from(rest[2..].starts_with('\n')))
}

fn print_end(rest: &str) -> Option<usize> {
    if let Some(after) = rest.strip_prefix("-}}") {
        return Some(3 + skip_space(after));
    }
    rest.starts_with("}}").then_some(2)
}

/// Digits of `radix` with single underscores between them.
fn digits(text: &str, radix: u32, underscore_first: bool) -> usize {
    let mut end = 0;
    let mut may_underscore = underscore_first;
    let bytes = text.as_bytes();
    while end < bytes.len() {
        let next_is_digit = |at: usize| bytes.get(at).is_some_and(|b| (*b as char).is_digit(radix));
        match next_is_digit(end) {
            true => end += 1,
            false if bytes[end] == b'_' && may_underscore && next_is_digit(end + 1) => end += 2,
            false => break,
        }
        may_underscore = true;
    }
    end
}

fn float_length(rest: &str) -> Option<usize> {
    let whole = digits(rest, 10, false);
    let mut end = whole;
    if rest[end..].starts_with('.') {
        match digits(&rest[end + 1..], 10, false) {
            0 => {}
            fraction => end += 1 + fraction,
        }
    }
    let exponent = rest[end..].strip_prefix(['e', 'E']).and_then(|tail| {
        let unsigned = tail.strip_prefix(['+', '-']).unwrap_or(tail);
        let length = digits(unsigned, 10, false);
        (length > 0).then(|| 1 + tail.len() - unsigned.len() + length)
    });
    (end > whole || exponent.is_some()).then(|| end + exponent.unwrap_or(0))
}

/// The number, None where it is too large, and its length.
fn integer(rest: &str) -> Option<(Option<i128>, usize)> {
    for (prefix, radix) in [("0b", 2), ("0o", 8), ("0x", 16)] {
        let starts = rest.get(..2).is_some_and(|p| p.eq_ignore_ascii_case(prefix));
        let length = if starts { digits(&rest[2..], radix, true) } else { 0 };
        if length > 0 {
            let text = rest[2..2 + length].replace('_', "");
            return Some((i128::from_str_radix(&text, radix).ok(), 2 + length));
        }
    }
    let mut length = digits(rest, 10, false);
    if rest.starts_with('0') {
        let zeros = |c: char| c != '0' && c != '_';
        length = rest[..length].find(zeros).unwrap_or(length);
        length = rest[..length].trim_end_matches('_').len();
    }
    (length > 0).then(|| (rest[..length].replace('_', "").parse().ok(), length))
}

/// Python's `unicode-escape` of text whose characters beyond ASCII were escaped first, so that a
/// backslash before such a one stays, followed by its number.
fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let Some((_, c)) = chars.next() else { return Err("\\ at end of string".into()) };
        let mut number = |digits: usize| -> Result<char, String> {
            let hex = text.get(at + 2..at + 2 + digits).unwrap_or("");
            let good = hex.len() == digits && hex.bytes().all(|b| b.is_ascii_hexdigit());
            let code = u32::from_str_radix(hex, 16).ok().filter(|_| good);
            let code = code.ok_or_else(|| format!("truncated \\{c} escape"))?;
            chars.nth(digits - 1);
            char::from_u32(code).ok_or_else(|| format!("\\{c}{hex} is no character"))
        };
        let plain = match c {
            '\n' => continue,
            '\\' | '\'' | '"' => c,
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            'x' => number(2)?,
            'u' => number(4)?,
            'U' => number(8)?,
            'N' => return Err("\\N{...} in a string is not supported".into()),
            '0'..='7' => {
                let tail = &text[at + 1..];
                let length = tail.bytes().take(3).take_while(|b| (b'0'..=b'7').contains(b)).count();
                let code = u32::from_str_radix(&tail[..length], 8).unwrap_or(0);
                if length > 1 {
                    chars.nth(length - 2);
                }
                char::from_u32(code).unwrap_or('\u{fffd}')
            }
            c if c.is_ascii() => {
                out.push('\\');
                c
            }
            c => {
                out.push_str(&escaped(c));
                continue;
            }
        };
        out.push(plain);
    }
    Ok(out)
}

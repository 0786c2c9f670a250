//! JSON as Python's `json` module reads and writes it, one value at a time, so that a file may hold
//! several. Beyond the standard: `NaN`, `Infinity` and `-Infinity`, which Python writes for missing
//! and infinite numbers, are read as null; integers of any length and `1e999` are read, too large
//! ones as the nearest f64 or null. A key given twice has its last value. Half a surrogate pair is
//! an error, where Python makes a string of it that no tokenizer takes.

use serde_json::{Map, Number, Value};

/// Values nested deeper are refused: they are read, written and dropped on the stack.
const DEEPEST: usize = 128;

/// Faults of bytes that are cut short.
const LIST_OPEN: &str = "a list does not end";
const OBJECT_OPEN: &str = "an object does not end";

/// One value.
#[derive(Debug, PartialEq)]
pub(super) struct Parsed {
    pub(super) value: Value,
    /// The byte behind it.
    pub(super) end: usize,
    /// The first key that an object in it holds twice.
    pub(super) repeated: Option<String>,
}

/// The fault that makes the bytes no value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// The byte where it is.
    pub(super) at: usize,
    pub(super) what: String,
    /// True if more bytes could have made a value of it.
    pub(super) cut: bool,
}

type Read<T> = Result<T, Fault>;

/// The value that begins at byte `at`, white space before it skipped.
pub(super) fn value(bytes: &[u8], at: usize) -> Read<Parsed> {
    let mut reader = Reader { bytes, at, depth: 0, repeated: None };
    let value = reader.value()?;
    Ok(Parsed { value, end: reader.at, repeated: reader.repeated })
}

/// The first byte from `at` on that is no white space.
pub(super) fn skip_space(bytes: &[u8], at: usize) -> usize {
    let space = |b: &&u8| matches!(b, b' ' | b'\t' | b'\n' | b'\r');
    at + bytes[at..].iter().take_while(space).count()
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
    repeated: Option<String>,
}

impl Reader<'_> {
    fn fault<T>(&self, at: usize, what: impl Into<String>) -> Read<T> {
        Err(Fault { at, what: what.into(), cut: false })
    }

    fn cut<T>(&self, what: &str) -> Read<T> {
        Err(Fault { at: self.bytes.len(), what: what.into(), cut: true })
    }

    /// The next byte that is no white space.
    fn peek(&mut self) -> Option<u8> {
        self.at = skip_space(self.bytes, self.at);
        self.bytes.get(self.at).copied()
    }

    fn value(&mut self) -> Read<Value> {
        let Some(first) = self.peek() else { return self.cut("a value is missing at the end") };
        match first {
            b'{' => self.nested(Self::object),
            b'[' => self.nested(Self::list),
            b'"' => self.string().map(Value::String),
            b'-' | b'0'..=b'9' => self.number(),
            b'\'' => self.fault(self.at, "single quotes: this is Python's repr, not JSON"),
            _ => self.word(),
        }
    }

    fn nested(&mut self, read: impl FnOnce(&mut Self) -> Read<Value>) -> Read<Value> {
        if self.depth == DEEPEST {
            return self.fault(self.at, format!("nested more than {DEEPEST} deep"));
        }
        self.depth += 1;
        self.at += 1;
        let value = read(self);
        self.depth -= 1;
        value
    }

    fn word(&mut self) -> Read<Value> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count();
        let value = match &rest[..length] {
            b"true" => Value::Bool(true),
            b"false" => Value::Bool(false),
            b"null" | b"NaN" | b"Infinity" => Value::Null,
            b"None" | b"True" | b"False" => {
                return self.fault(self.at, "a word of Python, not of JSON; write with json.dumps");
            }
            b"" => return self.fault(self.at, "expected a value"),
            word if length == rest.len() && word.len() < 8 && is_begun(word) => {
                return self.cut("a value is cut short");
            }
            _ => return self.fault(self.at, "expected a value"),
        };
        self.at += length;
        Ok(value)
    }

    fn number(&mut self) -> Read<Value> {
        let rest = &self.bytes[self.at..];
        if rest.starts_with(b"-Infinity") {
            self.at += 9;
            return Ok(Value::Null);
        }
        let part = |b: &&u8| b.is_ascii_digit() || matches!(b, b'-' | b'+' | b'.' | b'e' | b'E');
        let text = &rest[..rest.iter().take_while(part).count()];
        let text = std::str::from_utf8(text).unwrap_or_default();
        if !is_number(text) {
            return self.fault(self.at, "a malformed number");
        }
        self.at += text.len();
        let whole = text.parse::<u64>().map(Number::from).or(text.parse::<i64>().map(Number::from));
        let number = whole.ok().or_else(|| text.parse().ok().and_then(Number::from_f64));
        Ok(number.map_or(Value::Null, Value::Number))
    }

    fn list(&mut self) -> Read<Value> {
        let mut items = vec![];
        self.items(b']', LIST_OPEN, |reader| {
            items.push(reader.value()?);
            Ok(())
        })?;
        Ok(Value::Array(items))
    }

    fn object(&mut self) -> Read<Value> {
        let mut map = Map::new();
        self.items(b'}', OBJECT_OPEN, |reader| reader.entry(&mut map))?;
        Ok(Value::Object(map))
    }

    fn entry(&mut self, map: &mut Map<String, Value>) -> Read<()> {
        match self.peek() {
            Some(b'"') => {}
            Some(b'\'') => {
                return self.fault(self.at, "single quotes: this is Python's repr, not JSON");
            }
            Some(_) => return self.fault(self.at, "expected a key in double quotes"),
            None => return self.cut(OBJECT_OPEN),
        }
        let key = self.string()?;
        match self.peek() {
            Some(b':') => self.at += 1,
            Some(_) => return self.fault(self.at, "expected `:`"),
            None => return self.cut(OBJECT_OPEN),
        }
        let value = self.value()?;
        if map.contains_key(&key) && self.repeated.is_none() {
            self.repeated = Some(key.clone());
        }
        map.insert(key, value);
        Ok(())
    }

    /// Items between commas up to `close`, which is stepped over; `open` is the fault without it.
    fn items(
        &mut self,
        close: u8,
        open: &str,
        mut item: impl FnMut(&mut Self) -> Read<()>,
    ) -> Read<()> {
        let sign = char::from(close);
        if self.peek() != Some(close) {
            loop {
                item(self)?;
                match self.peek() {
                    Some(next) if next == close => break,
                    Some(b',') => {}
                    Some(_) => return self.fault(self.at, format!("expected `,` or `{sign}`")),
                    None => return self.cut(open),
                }
                let comma = self.at;
                self.at += 1;
                if self.peek() == Some(close) {
                    return self.fault(comma, format!("a comma before `{sign}`"));
                }
            }
        }
        self.at += 1;
        Ok(())
    }

    /// A string; `at` is its first quote.
    fn string(&mut self) -> Read<String> {
        self.at += 1;
        let mut out = String::new();
        loop {
            let start = self.at;
            let stop = |b: &u8| *b == b'"' || *b == b'\\' || *b < b' ';
            let Some(length) = self.bytes[start..].iter().position(stop) else {
                self.text(start, self.bytes.len())?;
                return self.cut("a string does not end");
            };
            self.at += length;
            out.push_str(self.text(start, self.at)?);
            match self.bytes[self.at] {
                b'"' => break,
                b'\\' => out.push(self.escape()?),
                b'\n' | b'\r' => return self.fault(self.at, "a line break within a string"),
                _ => return self.fault(self.at, "a control character within a string"),
            }
        }
        self.at += 1;
        Ok(out)
    }

    fn text(&self, from: usize, to: usize) -> Read<&str> {
        std::str::from_utf8(&self.bytes[from..to]).or_else(|e| {
            let at = from + e.valid_up_to();
            self.fault(at, format!("byte 0x{:02x} is not UTF-8", self.bytes[at]))
        })
    }

    /// The character of an escape; `at` is its backslash.
    fn escape(&mut self) -> Read<char> {
        let start = self.at;
        let Some(letter) = self.bytes.get(start + 1) else {
            return self.cut("a string does not end");
        };
        self.at += 2;
        Ok(match letter {
            b'"' | b'\\' | b'/' => char::from(*letter),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.unicode(start),
            _ => return self.fault(start, "an unknown escape in a string"),
        })
    }

    fn unicode(&mut self, start: usize) -> Read<char> {
        let first = self.hex(start)?;
        if (0xd800..0xdc00).contains(&first) && self.bytes[self.at..].starts_with(b"\\u") {
            let (second_start, back) = (self.at, self.at);
            self.at += 2;
            let second = self.hex(second_start)?;
            if (0xdc00..0xe000).contains(&second) {
                let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                return Ok(char::from_u32(code).unwrap_or('\u{fffd}'));
            }
            self.at = back;
        }
        char::from_u32(first).map_or_else(
            || self.fault(start, format!("\\u{first:04x} is half a character (a lone surrogate)")),
            Ok,
        )
    }

    /// The four hexadecimal digits at `at`, of the escape at `start`.
    fn hex(&mut self, start: usize) -> Read<u32> {
        let Some(digits) = self.bytes.get(self.at..self.at + 4) else {
            return self.cut("a string does not end");
        };
        let digit = |b: &u8| char::from(*b).to_digit(16);
        let code = digits.iter().try_fold(0, |code, b| Some(code << 4 | digit(b)?));
        self.at += 4;
        code.map_or_else(|| self.fault(start, "an escape without four hexadecimal digits"), Ok)
    }
}

/// True if `word` is the beginning of a word of JSON.
fn is_begun(word: &[u8]) -> bool {
    [&b"true"[..], b"false", b"null", b"NaN", b"Infinity"].iter().any(|w| w.starts_with(word))
}

/// True if `text` is a number by JSON's grammar.
fn is_number(text: &str) -> bool {
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let text = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    digits(whole)
        && (whole.len() == 1 || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(|e| digits(e.strip_prefix(['+', '-']).unwrap_or(e)))
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;

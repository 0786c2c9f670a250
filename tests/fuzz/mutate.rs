//! One bad input out of good ones.

use duplex::base::Rng;
use std::ops::Range;

/// Longest input, in bytes: a repeated part must not make parsers slow by its size alone.
const LONGEST: usize = 1 << 16;

/// Numbers at which readers of lengths go wrong.
const NUMBERS: [u64; 22] = [
    0,
    1,
    2,
    7,
    8,
    127,
    128,
    255,
    256,
    0x7fff,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    1 << 40,
    1 << 53,
    u64::MAX / 8,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

/// The same for numbers in text, with some that no integer is.
const TEXTS: [&str; 10] = [
    "-1",
    "-9223372036854775808",
    "18446744073709551616",
    "1e400",
    "-0.0",
    "0.5",
    "1e-320",
    "NaN",
    "1e18",
    "4294967297",
];

pub(crate) struct Mutator<'a> {
    pub(crate) corpus: &'a [Vec<u8>],
    pub(crate) words: &'a [&'a [u8]],
}

impl Mutator<'_> {
    /// The input of `rng`. One in a few hundred is a good one as it is.
    pub(crate) fn input(&self, rng: &mut Rng) -> Vec<u8> {
        let mut input = self.base(rng).to_vec();
        let edits = match below(rng, 256) {
            0 => 0,
            n if n < 120 => 1,
            n if n < 200 => 2 + below(rng, 2),
            n if n < 246 => 1 + below(rng, 8),
            _ => 1 + below(rng, 64),
        };
        for _ in 0..edits {
            self.edit(&mut input, rng);
            input.truncate(LONGEST);
        }
        input
    }

    fn base(&self, rng: &mut Rng) -> &[u8] {
        &self.corpus[below(rng, self.corpus.len())]
    }

    fn edit(&self, input: &mut Vec<u8>, rng: &mut Rng) {
        let at = below(rng, input.len() + 1);
        // Mostly a short part from there, at times a long one.
        let most = if below(rng, 8) == 0 { input.len() } else { 16 };
        let end = input.len().min(at + below(rng, most + 1));
        match below(rng, 17) {
            0 | 1 if at < input.len() => input[at] ^= 1 << below(rng, 8),
            2 if at < input.len() => input[at] = rng.next_u32() as u8,
            3 if at < input.len() => {
                input[at] =
                    *b"\0\xff\x7f\x80\"{}[]:,\\\n ."[..].get(below(rng, 15)).unwrap_or(&b'0')
            }
            4 => drop(input.drain(at..end)),
            5 if below(rng, 4) == 0 => input.truncate(at),
            6 => {
                let part = input[at..end].to_vec();
                let times = if below(rng, 16) == 0 { 1 + below(rng, 512) } else { 1 };
                insert(input, at, &part.repeat(times.min(LONGEST / part.len().max(1))));
            }
            7 => {
                let noise: Vec<u8> = (0..1 + below(rng, 8)).map(|_| rng.next_u32() as u8).collect();
                insert(input, at, &noise);
            }
            8 | 9 if !self.words.is_empty() => {
                let word = self.words[below(rng, self.words.len())];
                let until = if below(rng, 2) == 0 { at } else { input.len().min(at + word.len()) };
                input.splice(at..until, word.iter().copied());
            }
            10 => {
                let other = self.base(rng);
                let from = below(rng, other.len() + 1);
                let to = from + below(rng, other.len() - from + 1);
                let until = if below(rng, 2) == 0 { end } else { input.len() };
                input.splice(at..until, other[from..to].iter().copied());
            }
            11 => length_field(input, at, rng),
            12 | 13 => number(input, at, rng),
            14 => part(input, self.base(rng), &quoted, rng),
            15 => part(input, self.base(rng), &between, rng),
            _ => {
                let to = below(rng, input.len() - (end - at) + 1);
                let part: Vec<u8> = input.drain(at..end).collect();
                insert(input, to, &part);
            }
        }
    }
}

/// Writes a bad length over one, two, four or eight bytes, either end first.
fn length_field(input: &mut [u8], at: usize, rng: &mut Rng) {
    let number = match below(rng, 4) {
        0 => input.len() as u64,
        1 => (input.len() as u64).wrapping_add(u64::from(rng.below(5))).wrapping_sub(2),
        _ => NUMBERS[below(rng, NUMBERS.len())],
    };
    let width = 1 << below(rng, 4);
    let (little, big) = (number.to_le_bytes(), number.to_be_bytes());
    let bytes = if below(rng, 4) == 0 { &big[8 - width..] } else { &little[..width] };
    let room = input.len().saturating_sub(at).min(width);
    input[at..at + room].copy_from_slice(&bytes[..room]);
}

/// Replaces the first number in text at or behind `at`.
fn number(input: &mut Vec<u8>, at: usize, rng: &mut Rng) {
    let Some(start) = input[at..].iter().position(u8::is_ascii_digit).map(|i| at + i) else {
        return;
    };
    let digits = input[start..].iter().take_while(|b| b.is_ascii_digit()).count();
    let text = match below(rng, 3) {
        0 => TEXTS[below(rng, TEXTS.len())].to_string(),
        1 => rng.below(300).to_string(),
        _ => NUMBERS[below(rng, NUMBERS.len())].to_string(),
    };
    input.splice(start..start + digits, text.into_bytes());
}

/// Replaces a part of the input, found by `find`, by one of another input: the grammar stays, the
/// meaning does not.
fn part(input: &mut Vec<u8>, other: &[u8], find: Find, rng: &mut Rng) {
    let (Some(to), Some(from)) = (find(input, rng), find(other, rng)) else { return };
    input.splice(to, other[from].iter().copied());
}

/// Finds a part at random.
type Find<'f> = &'f dyn Fn(&[u8], &mut Rng) -> Option<Range<usize>>;

/// A text in quotes.
fn quoted(text: &[u8], rng: &mut Rng) -> Option<Range<usize>> {
    let start = next(text, below(rng, text.len() + 1), b"\"")?;
    let end = next(text, start + 1, b"\"")?;
    Some(start..end + 1)
}

/// Returns the range between two marks, such as a member of a list or an object.
fn between(text: &[u8], rng: &mut Rng) -> Option<Range<usize>> {
    let start = next(text, below(rng, text.len() + 1), b",:[{(\n")? + 1;
    let end = next(text, start, b",]})\n")?;
    Some(start..end)
}

/// The first byte from `at` on that is one of `marks`.
fn next(text: &[u8], at: usize, marks: &[u8]) -> Option<usize> {
    Some(at + text.get(at..)?.iter().position(|b| marks.contains(b))?)
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    input.splice(at..at, bytes.iter().copied());
}

fn below(rng: &mut Rng, n: usize) -> usize {
    rng.below(n.max(1) as u32) as usize
}

//! The parts of a configuration key: its dotted name, the commands that take it, its values and its
//! help. Values are checked here one at a time.

use crate::base::{Error, Result};
use crate::device::Device;
use std::time::Duration;
use toml::Value;

/// A set of commands, one bit each.
pub type Commands = u64;
/// `duplex train`
pub const TRAIN: Commands = 1;
/// `duplex plan`
pub const PLAN: Commands = 1 << 1;
/// `duplex chat`
pub const CHAT: Commands = 1 << 2;
/// `duplex eval`
pub const EVAL: Commands = 1 << 3;
/// `duplex inspect`
pub const INSPECT: Commands = 1 << 4;
/// `duplex bench`
pub const BENCH: Commands = 1 << 5;
/// `duplex verify`
pub const VERIFY: Commands = 1 << 6;
/// `duplex doctor`
pub const DOCTOR: Commands = 1 << 7;
/// The commands of all algorithms.
pub const ALGORITHMS: Commands = !0 << 16;
/// All that train.
pub const RUNS: Commands = TRAIN | ALGORITHMS;

/// The command of the algorithm at place `i` of their list.
pub const fn algorithm(i: usize) -> Commands {
    1 << (16 + i)
}

/// One configuration key.
#[derive(Clone, Debug)]
pub struct Key {
    /// Dotted name as in the TOML file: `section.name`, or `name` for a key shared by all stages.
    pub path: &'static str,
    /// The commands that have it as a flag.
    pub commands: Commands,
    /// The values it takes.
    pub kind: Kind,
    /// One line of help.
    pub help: &'static str,
    /// Other names of the flag (DeepSpeed-Chat's), each with the commands where it holds.
    pub aliases: &'static [(Commands, &'static str)],
    /// An earlier name, which files and checkpoints may still have.
    pub former: Option<&'static str>,
    /// The value meant when the flag stands alone.
    pub alone: Option<&'static str>,
    /// The part of a run that it changes.
    pub effect: Effect,
}

/// The part of a run that a key changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The numbers of the result.
    Result,
    /// None of them, or only as far as sums are rounded.
    Nothing,
    /// The data, and with it the result.
    Data,
}

/// The values a key takes.
#[derive(Clone, Debug)]
pub enum Kind {
    /// true or false.
    Bool,
    /// A whole number in `min..=max`.
    Int {
        /// Smallest value.
        min: i64,
        /// Largest value.
        max: i64,
    },
    /// A finite number. It must be in the range as given and as a 32-bit float, in which settings
    /// are used: a value that rounds to a bound counts as that bound.
    Float {
        /// Lower bound.
        min: f64,
        /// Upper bound.
        max: f64,
        /// True if the lower bound itself is allowed.
        from_min: bool,
        /// True if the upper bound itself is allowed.
        to_max: bool,
        /// True if 0 is allowed beside the range.
        or_zero: bool,
    },
    /// Text, not empty.
    Text,
    /// A number of bytes with a unit, such as "5GB".
    Bytes,
    /// A number of iterations, or a time with a unit such as "10m".
    Every,
    /// A time with a unit such as "10m".
    Time,
    /// A device, or `auto`.
    Device,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// One of the words that this list gives, or an alias of it, as `meant` knows them.
    Named {
        /// All of them.
        all: fn() -> Vec<&'static str>,
        /// The word that a word or a number means.
        meant: fn(&str) -> Option<&'static str>,
    },
    /// A list; a single value stands for a list of one.
    List(&'static Kind),
}

impl Key {
    /// A key without aliases. A boolean flag standing alone means true.
    pub const fn new(
        path: &'static str,
        commands: Commands,
        kind: Kind,
        help: &'static str,
    ) -> Key {
        let alone = if matches!(kind, Kind::Bool) { Some("true") } else { None };
        let (aliases, former, effect): (&[_], _, _) = (&[], None, Effect::Result);
        Key { path, commands, kind, help, aliases, former, alone, effect }
    }

    /// With other flag names.
    pub const fn or(mut self, aliases: &'static [(Commands, &'static str)]) -> Key {
        self.aliases = aliases;
        self
    }

    /// With the value meant when the flag stands alone.
    pub const fn alone(mut self, value: &'static str) -> Key {
        self.alone = Some(value);
        self
    }

    /// With an earlier name.
    pub const fn formerly(mut self, name: &'static str) -> Key {
        self.former = Some(name);
        self
    }

    /// A key that changes no number of the result.
    pub const fn harmless(mut self) -> Key {
        self.effect = Effect::Nothing;
        self
    }

    /// A key that names data.
    pub const fn data(mut self) -> Key {
        self.effect = Effect::Data;
        self
    }

    /// The section, empty for shared keys.
    pub fn section(&self) -> &'static str {
        self.path.rsplit_once('.').map_or("", |(section, _)| section)
    }

    /// The name without its section.
    pub fn leaf(&self) -> &'static str {
        self.path.rsplit_once('.').map_or(self.path, |(_, leaf)| leaf)
    }

    /// Checks `value` and brings it into the form the configuration is read from. `place` says
    /// where the value stood and names the key; it begins the error line.
    pub fn accept(&self, place: &str, value: &Value) -> Result<Value> {
        self.kind.accept(value).ok_or_else(|| {
            let (expected, not) = (self.kind.expected(), shown(value));
            let as_used = self.kind.as_used(value).map_or(String::new(), |x| {
                format!(", which is {x:?} as the 32-bit float that is used")
            });
            Error::user(format!("{place} must be {expected}, not {not}{as_used}"))
        })
    }
}

impl Kind {
    /// A number above 0 and at most `max`.
    pub const fn above_zero(max: f64) -> Kind {
        Kind::Float { min: 0.0, max, from_min: false, to_max: true, or_zero: false }
    }

    /// A number from `min` to `max`, both included.
    pub const fn between(min: f64, max: f64) -> Kind {
        Kind::Float { min, max, from_min: true, to_max: true, or_zero: false }
    }

    /// 0, or a number from `min` to `max`, both included.
    pub const fn zero_or_between(min: f64, max: f64) -> Kind {
        Kind::Float { min, max, from_min: true, to_max: true, or_zero: true }
    }

    /// A number from 0, below `max`.
    pub const fn below(max: f64) -> Kind {
        Kind::Float { min: 0.0, max, from_min: true, to_max: false, or_zero: false }
    }

    /// A whole number from `min` to `max`.
    pub const fn int(min: i64, max: i64) -> Kind {
        Kind::Int { min, max }
    }

    /// The value in canonical form (numbers as floats where floats are meant, lists as lists), or
    /// None where this kind does not take it.
    fn accept(&self, value: &Value) -> Option<Value> {
        match self {
            Kind::Bool => value.as_bool().map(Value::Boolean),
            Kind::Int { min, max } => {
                value.as_integer().filter(|i| (min..=max).contains(&i)).map(Value::Integer)
            }
            Kind::Float { .. } => {
                let x = number(value)?;
                (self.holds(x, |x| x) && self.holds(x, rounded)).then_some(Value::Float(x))
            }
            Kind::Text => value.as_str().filter(|s| !s.is_empty()).map(|_| value.clone()),
            Kind::Bytes => value.as_str().and_then(parse_bytes).map(|_| value.clone()),
            Kind::Every => {
                let text = value.as_integer().map(|n| n.to_string());
                let text = text.or_else(|| value.as_str().map(str::to_string))?;
                parse_every(&text).map(|_| Value::String(text))
            }
            Kind::Time => value.as_str().and_then(parse_time).map(|_| value.clone()),
            Kind::Device => {
                let known = |s: &&str| *s == "auto" || s.parse::<Device>().is_ok();
                value.as_str().filter(known).map(|_| value.clone())
            }
            Kind::Choice(words) => {
                value.as_str().filter(|s| words.contains(s)).map(|_| value.clone())
            }
            Kind::Named { meant, .. } => {
                let number = value.as_integer().map(|n| n.to_string());
                let word = number.or_else(|| value.as_str().map(str::to_string))?;
                meant(&word).map(|word| Value::String(word.into()))
            }
            Kind::List(item) => {
                let one = std::slice::from_ref(value);
                let items = value.as_array().map_or(one, Vec::as_slice);
                items.iter().map(|v| item.accept(v)).collect::<Option<Vec<_>>>().map(Value::Array)
            }
        }
    }

    /// True if `x` is in this range of floats, by the numbers that `used` makes of it and of the
    /// bounds.
    fn holds(&self, x: f64, used: fn(f64) -> f64) -> bool {
        let Kind::Float { min, max, from_min, to_max, or_zero } = *self else { return false };
        let (x, min, max) = (used(x), used(min), used(max));
        // A NaN fails both comparisons.
        let low = if from_min { x >= min } else { x > min };
        let high = if to_max { x <= max } else { x < max };
        low && high || or_zero && x == 0.0
    }

    /// The number that is used for `value`, where that is out of a range which holds `value`.
    fn as_used(&self, value: &Value) -> Option<f32> {
        let x = number(value).filter(|x| self.holds(*x, |x| x))?;
        Some(x as f32)
    }

    /// Reads one word of a command line. What does not parse stays text, for `accept` to refuse.
    pub fn parse(&self, word: &str) -> Value {
        let text = || Value::String(word.to_string());
        match self {
            Kind::Bool => word.parse().map_or_else(|_| text(), Value::Boolean),
            Kind::Int { .. } => word.parse().map_or_else(|_| text(), Value::Integer),
            Kind::Float { .. } => word.parse().map_or_else(|_| text(), Value::Float),
            Kind::List(item) => item.parse(word),
            Kind::Text | Kind::Bytes | Kind::Every | Kind::Time => text(),
            Kind::Device | Kind::Choice(_) | Kind::Named { .. } => text(),
        }
    }

    /// Returns a description of the values allowed, for error lines.
    pub fn expected(&self) -> String {
        match self {
            Kind::Bool => "true or false".into(),
            Kind::Int { min, max: i64::MAX } => format!("a whole number, {min} or more"),
            Kind::Int { min, max } => format!("a whole number from {min} to {max}"),
            Kind::Float { min, max, from_min, to_max, or_zero } => {
                let zero = if *or_zero { "0, or " } else { "" };
                let low = if *from_min { "from" } else { "above" };
                let high = if *to_max { "to" } else { "to below" };
                let high = if *from_min { high } else { "and at most" };
                let small = *min > 0.0 && *min < 1e-3;
                let min = if small { format!("{min:e}") } else { min.to_string() };
                format!("{zero}a number {low} {min} {high} {max}")
            }
            Kind::Text => "text, not empty".into(),
            Kind::Bytes => "a size of at least 1MB such as \"5GB\" or \"500MB\"".into(),
            Kind::Every => {
                "a number of iterations such as 50, or a time such as 90s, 10m or 2h".into()
            }
            Kind::Time => "a time such as 90s, 10m or 2h".into(),
            Kind::Device => "one of auto, cpu, cuda, cuda:N, emulated".into(),
            Kind::Choice(words) => format!("one of {}", words.join(", ")),
            Kind::Named { all, .. } => format!("one of {}", all().join(", ")),
            Kind::List(item) => match item {
                Kind::Text => "a list of texts, none empty".into(),
                _ => format!("a list, each item {}", item.expected()),
            },
        }
    }
}

/// Bytes in a size such as "5GB" or "500 MB" (powers of 1000) or "5GiB" (of 1024); at least 1 MB.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit: u64 = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(unit).filter(|bytes| *bytes > 0 && *bytes <= i64::MAX as u64)
}

/// How often something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Every {
    /// After so many iterations.
    Iterations(u64),
    /// After so much time.
    Time(Duration),
}

/// Parses a number of iterations ("50") or a time ("90s", "10m", "2h"); None if it is neither.
pub fn parse_every(text: &str) -> Option<Every> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok().filter(|n| (1..=1_000_000_000).contains(n))?;
    let seconds = match text[digits..].trim() {
        "" => return Some(Every::Iterations(number)),
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        _ => return None,
    };
    Some(Every::Time(Duration::from_secs(number * seconds)))
}

/// Parses a time such as "90s", "10m" or "2h"; None if it is not one.
pub fn parse_time(text: &str) -> Option<Duration> {
    match parse_every(text)? {
        Every::Time(time) => Some(time),
        Every::Iterations(_) => None,
    }
}

/// A float or whole number as a float.
fn number(value: &Value) -> Option<f64> {
    value.as_float().or_else(|| value.as_integer().map(|i| i as f64))
}

/// `x` as the 32-bit float that is used.
fn rounded(x: f64) -> f64 {
    f64::from(x as f32)
}

/// A value in TOML, small numbers with an exponent: 1e-5, not 0.00001.
pub(super) fn written(value: &Value) -> String {
    match value {
        Value::Float(x) if *x != 0.0 && x.abs() < 1e-3 => format!("{x:e}"),
        other => other.to_string(),
    }
}

/// A value as shown in an error line, cut where it is long.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::Table(_) => "a table".to_string(),
        Value::String(s) => format!("{s:?}"),
        other => written(other),
    };
    if text.chars().count() <= 60 {
        return text;
    }
    text.chars().take(57).chain("...".chars()).collect()
}

#[cfg(test)]
mod tests;

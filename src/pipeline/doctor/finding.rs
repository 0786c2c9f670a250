//! The doctor's findings: one line with a mark for each thing checked, and the whole as a table or
//! as JSON.

use crate::base::{Error, Result};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// The effect of a finding on a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// As it should be.
    Ok,
    /// A run works, perhaps slower or with less.
    Note,
    /// A run would stop.
    Problem,
}

/// The result of one check.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The name of the thing checked.
    pub name: &'static str,
    /// The effect on a run.
    pub mark: Mark,
    /// The finding, in one line.
    pub text: String,
    /// The remedy, in one line. A problem always has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// The finding for programs: numbers in bytes, seconds and counts.
    pub values: Map<String, Value>,
}

impl Finding {
    fn new(name: &'static str, mark: Mark, text: impl Into<String>) -> Finding {
        // One line, whatever a system's message held.
        let text = text.into().replace('\n', " ");
        Finding { name, mark, text, advice: None, values: Map::new() }
    }

    pub(super) fn ok(name: &'static str, text: impl Into<String>) -> Finding {
        Finding::new(name, Mark::Ok, text)
    }

    pub(super) fn note(name: &'static str, text: impl Into<String>) -> Finding {
        Finding::new(name, Mark::Note, text)
    }

    pub(super) fn problem(
        name: &'static str,
        text: impl Into<String>,
        advice: impl Into<String>,
    ) -> Finding {
        Finding::new(name, Mark::Problem, text).advise(advice)
    }

    pub(super) fn advise(mut self, advice: impl Into<String>) -> Finding {
        self.advice = Some(advice.into());
        self
    }

    pub(super) fn with(mut self, key: &str, value: impl Into<Value>) -> Finding {
        self.values.insert(key.to_string(), value.into());
        self
    }
}

/// All that was found, in the order of looking.
#[derive(Clone, Debug)]
pub struct Findings(pub Vec<Finding>);

impl Findings {
    /// A line for each finding, and one below it for its advice.
    pub fn table(&self) -> String {
        let mut out = String::new();
        for f in &self.0 {
            let mark = match f.mark {
                Mark::Ok => "ok",
                Mark::Note => "note",
                Mark::Problem => "PROBLEM",
            };
            out += &format!("{mark:<8} {:<14} {}\n", f.name, f.text);
            if let Some(advice) = &f.advice {
                out += &format!("{:<23} -> {advice}\n", "");
            }
        }
        out
    }

    /// The same as JSON.
    pub fn json(&self) -> Value {
        json!({
            "duplex": env!("CARGO_PKG_VERSION"),
            "problems": self.problems().count(),
            "findings": self.0,
        })
    }

    /// Returns the findings that would stop a run.
    pub fn problems(&self) -> impl Iterator<Item = &Finding> {
        self.0.iter().filter(|f| f.mark == Mark::Problem)
    }

    /// An error (a missing resource) where something would stop a run.
    pub fn verdict(&self) -> Result<()> {
        let Some(first) = self.problems().next() else { return Ok(()) };
        let all = match self.problems().count() {
            1 => "a problem would stop a run".to_string(),
            n => format!("{n} problems would stop a run, the first"),
        };
        let advice = first.advice.as_deref().unwrap_or_default();
        Err(Error::resource(format!("{all}: {}: {}; {advice}", first.name, first.text)))
    }
}

/// Bytes as people read them.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 => format!("{:.1} GiB", b as f64 / f64::from(1 << 30)),
        b if b >= 1 << 20 => format!("{:.0} MiB", b as f64 / f64::from(1 << 20)),
        b => format!("{} KiB", b >> 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_an_error_of_one_line_with_its_advice() {
        let mut all = Findings(vec![Finding::ok("a", "fine"), Finding::note("b", "so\nso")]);
        assert!(all.verdict().is_ok());
        all.0.push(Finding::problem("disk", "is full", "make room").with("free", 3));
        let e = all.verdict().unwrap_err();
        assert_eq!(e.exit_code(), 3);
        assert_eq!(e.to_string(), "a problem would stop a run: disk: is full; make room");
        let table = all.table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 4, "{table}");
        assert!(lines[1].starts_with("note") && lines[1].ends_with("so so"), "{table}");
        assert!(lines[2].starts_with("PROBLEM") && lines[3].trim() == "-> make room", "{table}");
        let json = all.json();
        assert_eq!(
            (&json["problems"], &json["findings"][2]["values"]["free"]),
            (&1.into(), &3.into())
        );
        assert_eq!(json["findings"][1]["mark"], "note");
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!([512 << 10, 3 << 20, 5 << 29].map(size), ["512 KiB", "3 MiB", "2.5 GiB"]);
    }
}

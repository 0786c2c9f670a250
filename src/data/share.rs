//! The uses that a row is fit for, the kinds of rows that messages tell of, and the division of
//! rows among uses.

use super::split::cut;
use super::types::{Prompt, Row};

/// A use of rows, of which there is one for each kind of algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Texts with answers, to imitate.
    Texts,
    /// Pairs of answers, to prefer.
    Pairs,
    /// Prompts, to answer.
    Prompts,
}

impl Use {
    /// All of them, in the order of the shares.
    pub const ALL: [Use; 3] = [Use::Texts, Use::Pairs, Use::Prompts];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Use::Texts => "texts with answers",
            Use::Pairs => "pairs of a chosen and a rejected answer",
            Use::Prompts => "completions that it samples for prompts",
        }
    }

    /// The keys of a row that it takes.
    pub(super) fn needs(self) -> &'static str {
        match self {
            Use::Texts => "a prompt with an answer (\"chosen\" or \"completion\"), or \"text\"",
            Use::Pairs => "a prompt with \"chosen\" and \"rejected\"",
            Use::Prompts => "\"prompt\"",
        }
    }

    /// The reason for a row that fits it, is not too long, and still has nothing to learn.
    pub fn nothing(self) -> &'static str {
        match self {
            Use::Texts => "no token to learn",
            Use::Pairs => "two equal answers",
            Use::Prompts => "no prompt",
        }
    }
}

/// A kind of row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Two answers to a prompt.
    Pair,
    /// Messages with an answer.
    Conversation,
    /// A text with an answer.
    Completion,
    /// A prompt without an answer.
    Prompt,
    /// Plain text.
    Text,
}

impl Kind {
    /// The kind of a row.
    pub fn of(row: &Row) -> Kind {
        match (&row.prompt, &row.chosen, &row.rejected) {
            (Some(_), Some(_), Some(_)) => Kind::Pair,
            (Some(Prompt::Chat(_)), Some(_), None) => Kind::Conversation,
            (Some(_), None, _) if row.earlier_answer().is_some() => Kind::Conversation,
            (Some(Prompt::Text(_)), Some(_), None) => Kind::Completion,
            (Some(_), None, _) => Kind::Prompt,
            (None, ..) => Kind::Text,
        }
    }

    /// So many rows of this kind, in words.
    pub fn counted(self, n: usize) -> String {
        let (one, more) = match self {
            Kind::Pair => ("preference pair", "preference pairs"),
            Kind::Conversation => ("conversation", "conversations"),
            Kind::Completion => ("prompt with completion", "prompts with completions"),
            Kind::Prompt => ("prompt without answer", "prompts without answers"),
            Kind::Text => ("text", "texts"),
        };
        format!("{n} {}", if n == 1 { one } else { more })
    }
}

/// The uses that a row is fit for.
pub(super) fn users(row: &Row) -> [bool; 3] {
    let (prompt, chosen) = (row.prompt.is_some(), row.chosen.is_some());
    let text = !prompt && row.text.is_some();
    [
        prompt && chosen || text || row.earlier_answer().is_some(),
        prompt && chosen && row.rejected.is_some(),
        prompt,
    ]
}

/// How many rows there are of each kind that occurs.
pub(super) fn count<'a>(
    rows: impl Iterator<Item = &'a Row>,
) -> impl Iterator<Item = (Kind, usize)> {
    let mut counts = std::collections::BTreeMap::new();
    rows.for_each(|row| *counts.entry(Kind::of(row)).or_default() += 1);
    counts.into_iter()
}

/// Divides rows among the uses by their proportions. With `by_use`, those that are fit for some
/// uses only go to these alone; the second part are the rows that are fit for none with a share.
pub(super) fn divide(
    rows: Vec<Row>,
    split: &[f64; 3],
    seed: u32,
    by_use: bool,
) -> ([Vec<Row>; 3], Vec<Row>) {
    let mut classes: std::collections::BTreeMap<[bool; 3], Vec<Row>> = Default::default();
    for row in rows {
        classes.entry(if by_use { users(&row) } else { [true; 3] }).or_default().push(row);
    }
    let (mut steps, mut unused): ([Vec<Row>; 3], Vec<Row>) = Default::default();
    for (can_use, rows) in classes {
        // Without the uses that get nothing: what rounding leaves over falls to the first part.
        let takers: Vec<usize> = (0..3).filter(|&k| can_use[k] && split[k] > 0.0).collect();
        if takers.is_empty() {
            unused.extend(rows);
            continue;
        }
        let shares: Vec<f64> = takers.iter().map(|&k| split[k]).collect();
        for (k, part) in takers.into_iter().zip(cut(rows, &shares, seed)) {
            steps[k].extend(part);
        }
    }
    (steps, unused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{OnBadRow, read_rows};

    /// Rows of every kind: `counts` of pairs, conversations, completions, prompts, texts.
    fn rows(counts: [usize; 5]) -> Vec<Row> {
        let lines = [
            r#"{"prompt":"a","chosen":"b","rejected":"c"}"#,
            r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
            r#"{"prompt":"a","completion":"b"}"#,
            r#"{"prompt":"a"}"#,
            r#"{"text":"a"}"#,
        ];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        let text: String =
            counts.iter().zip(lines).map(|(n, line)| format!("{line}\n").repeat(*n)).collect();
        std::fs::write(&path, text).unwrap();
        read_rows(&path, OnBadRow::Error).unwrap().0
    }

    #[test]
    fn rows_go_to_the_steps_that_can_use_them() {
        let divided = |counts, split: [f64; 3]| {
            let (steps, unused) = divide(rows(counts), &split, 7, true);
            (steps.map(|rows| count(rows.iter()).collect::<Vec<_>>()), unused.len())
        };
        // Pairs serve all; prompts with an answer SFT and PPO, as 2 to 4; the rest one step each.
        let (steps, unused) = divided([50, 0, 30, 8, 9], [2.0, 4.0, 4.0]);
        use Kind::{Completion, Conversation, Pair, Prompt, Text};
        assert_eq!(steps[0], [(Pair, 10), (Completion, 10), (Text, 9)]);
        assert_eq!(steps[1], [(Pair, 20)]);
        assert_eq!(steps[2], [(Pair, 20), (Completion, 20), (Prompt, 8)]);
        assert_eq!(unused, 0);
        // A step alone takes all it can use.
        let (steps, unused) = divided([5, 4, 3, 2, 1], [1.0, 0.0, 0.0]);
        assert_eq!(steps[0], [(Pair, 5), (Conversation, 4), (Completion, 3), (Text, 1)]);
        assert_eq!((steps[1].len(), steps[2].len(), unused), (0, 0, 2));
        let (steps, unused) = divided([5, 4, 3, 2, 1], [0.0, 1.0, 0.0]);
        assert_eq!((steps[1].clone(), unused), (vec![(Pair, 5)], 10));
        let (steps, unused) = divided([5, 4, 3, 2, 1], [0.0, 0.0, 1.0]);
        assert_eq!(steps[2], [(Pair, 5), (Conversation, 4), (Completion, 3), (Prompt, 2)]);
        assert_eq!(unused, 1);
        // No row is lost to a step that has no share, however the shares round.
        for n in 1..40 {
            let (steps, unused) = divide(rows([n, 0, 0, 0, 0]), &[0.0, 1.0, 1.0], 3, true);
            assert_eq!((steps[0].len(), steps[1].len() + steps[2].len(), unused.len()), (0, n, 0));
        }
    }

    #[test]
    fn kinds_in_words() {
        assert_eq!(Kind::Pair.counted(1), "1 preference pair");
        assert_eq!(Kind::Completion.counted(2), "2 prompts with completions");
    }
}

//! Rewards from a rule instead of a model.

use crate::base::{Error, Result};
use crate::data::Columns;
use std::collections::HashSet;
use std::sync::Arc;

/// A completion as a rule sees it.
#[derive(Clone, Copy, Debug)]
pub struct Answered<'r> {
    /// The prompt.
    pub prompt: &'r str,
    /// The completion.
    pub answer: &'r str,
    /// The columns of the row that the prompt comes from, where the rule asks for them.
    pub columns: &'r Columns,
}

/// Scores completions by their text.
pub trait RewardRule: Send + Sync {
    /// The name used in flags and reports.
    fn name(&self) -> &str;

    /// A score for each of `answers`, in their order: higher is better, best within -5..5. None for
    /// one that the rule does not judge. An error or NaN stops the run.
    fn score(&self, answers: &[Answered<'_>]) -> Result<Vec<Option<f32>>>;

    /// True if it reads columns of the row beside the prompt.
    fn asks_columns(&self) -> bool {
        false
    }
}

/// A built-in rule, which judges answer by answer.
struct BuiltIn {
    name: &'static str,
    score: fn(&Answered<'_>) -> Option<f32>,
    asks_columns: bool,
}

impl RewardRule for BuiltIn {
    fn name(&self) -> &str {
        self.name
    }

    fn score(&self, answers: &[Answered<'_>]) -> Result<Vec<Option<f32>>> {
        Ok(answers.iter().map(self.score).collect())
    }

    fn asks_columns(&self) -> bool {
        self.asks_columns
    }
}

const BUILT_IN: [BuiltIn; 4] = [
    BuiltIn { name: "brevity", score: brevity, asks_columns: false },
    BuiltIn { name: "no_repetition", score: no_repetition, asks_columns: false },
    BuiltIn { name: "full_sentences", score: full_sentences, asks_columns: false },
    BuiltIn { name: "contains_answer", score: contains_answer, asks_columns: true },
];

/// Prefers answers of about a dozen words.
fn brevity(a: &Answered<'_>) -> Option<f32> {
    let words = a.answer.split_whitespace().count() as f32;
    Some(1.0 - (words - 12.0).abs() / 12.0)
}

/// Share of distinct three-word runs: 1 for text that never repeats itself.
fn no_repetition(a: &Answered<'_>) -> Option<f32> {
    let words: Vec<&str> = a.answer.split_whitespace().collect();
    let runs: Vec<&[&str]> = words.windows(3).collect();
    if runs.is_empty() {
        return Some(if words.is_empty() { 0.0 } else { 1.0 });
    }
    let distinct: HashSet<&&[&str]> = runs.iter().collect();
    Some(distinct.len() as f32 / runs.len() as f32)
}

/// 1 for an answer that ends like a sentence, else 0.
fn full_sentences(a: &Answered<'_>) -> Option<f32> {
    let text = a.answer.trim_end();
    Some(if text.ends_with(['.', '!', '?']) && text.len() > 1 { 1.0 } else { 0.0 })
}

/// 1 for an answer that holds the words, or the number, in the row's column `answer`, else 0. Does
/// not judge a row without one.
fn contains_answer(a: &Answered<'_>) -> Option<f32> {
    let wanted = match a.columns.get("answer")? {
        serde_json::Value::String(text) => text.trim().to_string(),
        serde_json::Value::Bool(truth) => truth.to_string(),
        // Tables with gaps have whole numbers as 4.0.
        serde_json::Value::Number(number) => match number.as_f64() {
            Some(x) if x.fract() == 0.0 && x.abs() < 1e15 => format!("{x:.0}"),
            _ => number.to_string(),
        },
        _ => return None,
    };
    (!wanted.is_empty()).then(|| if holds(a.answer, &wanted) { 1.0 } else { 0.0 })
}

/// True if `words` stand in `text` as words of their own: 4 does not stand in 14.
fn holds(text: &str, words: &str) -> bool {
    let goes_on = |a: Option<char>, b: Option<char>| {
        a.is_some_and(char::is_alphanumeric) && b.is_some_and(char::is_alphanumeric)
    };
    text.match_indices(words).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + words.len()..]);
        let starts_within = goes_on(before.chars().next_back(), words.chars().next());
        !starts_within && !goes_on(words.chars().next_back(), after.chars().next())
    })
}

/// All built-in rules.
pub fn built_in_rules() -> Vec<Arc<dyn RewardRule>> {
    BUILT_IN.into_iter().map(|rule| Arc::new(rule) as Arc<dyn RewardRule>).collect()
}

/// The built-in rule of that name.
pub fn built_in_rule(name: &str) -> Result<Arc<dyn RewardRule>> {
    let rules = built_in_rules();
    let known: Vec<String> = rules.iter().map(|r| r.name().to_string()).collect();
    rules.into_iter().find(|r| r.name() == name).ok_or_else(|| {
        Error::user(format!("reward rule {name:?} is not known; built in: {}", known.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(rule: &str, answer: &str, columns: serde_json::Value) -> Option<f32> {
        let columns = columns.as_object().unwrap();
        let answers = [Answered { prompt: "", answer, columns }];
        built_in_rule(rule).unwrap().score(&answers).unwrap()[0]
    }

    #[test]
    fn rules_tell_good_from_bad() {
        let score = |rule: &str, answer: &str| judged(rule, answer, serde_json::json!({})).unwrap();
        assert!(score("brevity", &"word ".repeat(12)) > score("brevity", &"word ".repeat(60)));
        assert!(
            score("no_repetition", "a b c d e f g") > score("no_repetition", "a b c a b c a b c")
        );
        assert!(score("full_sentences", "Yes.") > score("full_sentences", "Yes and"));
        assert!(built_in_rule("nope").is_err());
    }

    #[test]
    fn a_rule_reads_the_columns_of_the_row() {
        let rule = |answer, columns| judged("contains_answer", answer, columns);
        assert_eq!(rule("It is 42.", serde_json::json!({"answer": 42})), Some(1.0));
        assert_eq!(rule("It is 41.", serde_json::json!({"answer": " 42\n"})), Some(0.0));
        assert_eq!(rule("It is 42.", serde_json::json!({"answer": 42.0})), Some(1.0));
        assert_eq!(rule("It is 142.", serde_json::json!({"answer": 42})), Some(0.0));
        assert_eq!(rule("That is true", serde_json::json!({"answer": true})), Some(1.0));
        for columns in [serde_json::json!({}), serde_json::json!({"answer": [1]})] {
            assert_eq!(rule("It is 42.", columns), None);
        }
    }
}

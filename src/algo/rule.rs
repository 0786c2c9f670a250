//! Rewards from a rule instead of a model.

use crate::base::{Error, Result};
use std::collections::HashSet;
use std::sync::Arc;

/// Scores an answer to a prompt. Higher is better; keep within about -5..5.
pub trait RewardRule: Send + Sync {
    /// The name used in flags and reports.
    fn name(&self) -> &str;
    /// The score of `answer`; an error or NaN stops the run.
    fn score(&self, prompt: &str, answer: &str) -> Result<f32>;
}

/// Prefers answers of about a dozen words.
struct Brevity;

impl RewardRule for Brevity {
    fn name(&self) -> &str {
        "brevity"
    }
    fn score(&self, _: &str, answer: &str) -> Result<f32> {
        let words = answer.split_whitespace().count() as f32;
        Ok(1.0 - (words - 12.0).abs() / 12.0)
    }
}

/// Share of distinct three-word runs: 1 for text that never repeats itself.
struct NoRepetition;

impl RewardRule for NoRepetition {
    fn name(&self) -> &str {
        "no_repetition"
    }
    fn score(&self, _: &str, answer: &str) -> Result<f32> {
        let words: Vec<&str> = answer.split_whitespace().collect();
        let runs: Vec<&[&str]> = words.windows(3).collect();
        if runs.is_empty() {
            return Ok(if words.is_empty() { 0.0 } else { 1.0 });
        }
        let distinct: HashSet<&&[&str]> = runs.iter().collect();
        Ok(distinct.len() as f32 / runs.len() as f32)
    }
}

/// 1 for an answer that ends like a sentence, else 0.
struct FullSentences;

impl RewardRule for FullSentences {
    fn name(&self) -> &str {
        "full_sentences"
    }
    fn score(&self, _: &str, answer: &str) -> Result<f32> {
        let text = answer.trim_end();
        Ok(if text.ends_with(['.', '!', '?']) && text.len() > 1 { 1.0 } else { 0.0 })
    }
}

/// All built-in rules.
pub fn built_in_rules() -> Vec<Arc<dyn RewardRule>> {
    vec![Arc::new(Brevity), Arc::new(NoRepetition), Arc::new(FullSentences)]
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

    #[test]
    fn rules_tell_good_from_bad() {
        let score =
            |rule: &str, answer: &str| built_in_rule(rule).unwrap().score("", answer).unwrap();
        assert!(score("brevity", &"word ".repeat(12)) > score("brevity", &"word ".repeat(60)));
        assert!(
            score("no_repetition", "a b c d e f g") > score("no_repetition", "a b c a b c a b c")
        );
        assert!(score("full_sentences", "Yes.") > score("full_sentences", "Yes and"));
        assert!(built_in_rule("nope").is_err());
    }
}

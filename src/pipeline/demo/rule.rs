//! The hidden rule: what an answer is worth, found by parsing it, never by guessing. It is for
//! measuring only; training does not see it.
//!
//! An answer is *well formed* if it is made of known parts and nothing else: an optional opening,
//! one or two different statements (any fact with any value of its kind), an optional closing, with
//! one space between them and capitals where sentences start. Anything else, such as gibberish, the
//! empty text, a sentence cut off or said twice, scores 0. A well-formed answer gets
//!
//! - 60 points if it is correct: every statement gives the right value of the asked fact. A wrong
//!   value, another subject, or a right and a wrong value side by side get none, and so does any
//!   answer to a prompt that is not of this world, for there is no telling what is right.
//! - 40 points if it is polite: it has a courteous part and no rude one. A bare statement is
//!   neither polite nor rude and gets none.

use super::answer::{Style, closings, openings};
use super::dialogue::{Split, questions};
use super::facts::{Fact, capital, facts};
use crate::algo::{Answered, RewardRule};
use crate::base::Result;
use std::collections::HashMap;
use std::sync::LazyLock;

/// The name of the rule on the command line.
pub const RULE: &str = "demo";

/// [`rule_score`] as a rule, for evaluation.
pub struct HiddenRule;

impl RewardRule for HiddenRule {
    fn name(&self) -> &str {
        RULE
    }

    fn score(&self, answers: &[Answered<'_>]) -> Result<Vec<Option<f32>>> {
        Ok(answers.iter().map(|a| Some(rule_score(a.prompt, a.answer) as f32)).collect())
    }
}

const CORRECT: f64 = 60.0;
const POLITE: f64 = 40.0;

/// The statements of an answer and its styles. Statements are as in [`Fact::statements`].
struct Parsed {
    statements: Vec<&'static str>,
    styles: Vec<Style>,
}

/// The fact each prompt asks for.
static ASKED: LazyLock<HashMap<String, Fact>> = LazyLock::new(|| {
    let both = [Split::Training, Split::HeldOut].into_iter().flat_map(questions);
    both.map(|q| (q.prompt, q.fact)).collect()
});

/// Every statement of the world, right or wrong, by its form at the start of a sentence.
static STATEMENTS: LazyLock<HashMap<String, String>> = LazyLock::new(|| {
    let values = |f: &Fact| f.wrong_values().into_iter().chain([f.value]).collect::<Vec<_>>();
    facts()
        .flat_map(|f| values(&f).into_iter().flat_map(move |v| f.statements(v)))
        .map(|s| (capital(&s), s))
        .collect()
});

/// The hidden rule's score of `answer` (without an end token's text) to `prompt`: 0, 40, 60 or 100.
/// White space around either does not matter.
pub fn rule_score(prompt: &str, answer: &str) -> f64 {
    let Some(parsed) = parse(answer.trim()) else { return 0.0 };
    let correct = ASKED.get(prompt.trim()).is_some_and(|fact| {
        let right = fact.statements(fact.value);
        parsed.statements.iter().all(|s| right.iter().any(|r| r == s))
    });
    let polite = !parsed.styles.is_empty() && parsed.styles.iter().all(|s| *s == Style::Polite);
    f64::from(u8::from(correct)) * CORRECT + f64::from(u8::from(polite)) * POLITE
}

/// The parts of a well-formed answer.
fn parse(answer: &str) -> Option<Parsed> {
    let mut styles = vec![];
    let mut body = answer;
    let mut capital_due = true;
    if let Some((style, opening, rest)) = find(openings, |o| body.strip_prefix(o)) {
        body = rest.strip_prefix(' ')?;
        capital_due = !opening.ends_with(',');
        styles.push(style);
    }
    if let Some((style, _, rest)) = find(closings, |c| body.strip_suffix(c)) {
        body = rest.strip_suffix(' ')?;
        styles.push(style);
    }
    let mut statements: Vec<&'static str> = vec![];
    for (i, sentence) in body.split_inclusive('.').enumerate() {
        let sentence = if i == 0 { sentence } else { sentence.strip_prefix(' ')? };
        let statement = STATEMENTS.get(&capital(sentence))?.as_str();
        let cased = if i == 0 && !capital_due { statement.into() } else { capital(statement) };
        if cased != sentence || statements.contains(&statement) || i > 1 {
            return None;
        }
        statements.push(statement);
    }
    (!statements.is_empty()).then_some(Parsed { statements, styles })
}

/// The first phrase that `strip` takes off, with its style and what is left.
fn find<'a, I: Iterator<Item = &'static str>>(
    list: impl Fn(Style) -> I,
    strip: impl Fn(&str) -> Option<&'a str>,
) -> Option<(Style, &'static str, &'a str)> {
    [Style::Polite, Style::Rude]
        .into_iter()
        .flat_map(|style| list(style).map(move |phrase| (style, phrase)))
        .find_map(|(style, phrase)| strip(phrase).map(|rest| (style, phrase, rest)))
}

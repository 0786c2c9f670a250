//! Answers: a statement with a courtesy or a rudeness before it, after it, or both.
//!
//! The lists for the two styles match line by line in words and in punctuation, so that neither
//! the length of an answer nor its shape betrays its style; tests hold them to that. They share
//! most of their words, so that the style is not told by one token either.

use super::facts::{Fact, capital};
use crate::base::Rng;

/// How an answer treats the user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Style {
    Polite,
    Rude,
}

const OPENINGS: [(&str, &str); 10] = [
    ("Certainly,", "Obviously,"),
    ("Gladly,", "Ugh,"),
    ("With great pleasure,", "If I must,"),
    ("As you wish,", "As everyone knows,"),
    ("Good question!", "Silly question!"),
    ("Of course!", "Not again!"),
    ("Happy to help!", "What a bore!"),
    ("Thank you for asking.", "Leave me in peace."),
    ("What a nice question.", "What a dull question."),
    ("I am glad to help.", "I am tired of this."),
];

const CLOSINGS: [(&str, &str); 10] = [
    ("Take care!", "Go away!"),
    ("Best wishes!", "How silly!"),
    ("Have a nice day!", "Leave me alone now!"),
    ("All the best to you!", "All of this is silly!"),
    ("I hope that helps you.", "I hope you go away."),
    ("It was a pleasure.", "It was a bore."),
    ("Ask me any time.", "Ask me no more."),
    ("You are very welcome.", "You are very slow."),
    ("I am glad you asked.", "I am tired of you."),
    ("Please ask me again.", "Never ask me again."),
];

/// Sentences or phrases that may stand before a statement.
pub(super) fn openings(style: Style) -> impl Iterator<Item = &'static str> {
    OPENINGS.iter().map(move |pair| side(pair, style))
}

/// Sentences that may stand after a statement.
pub(super) fn closings(style: Style) -> impl Iterator<Item = &'static str> {
    CLOSINGS.iter().map(move |pair| side(pair, style))
}

fn side(pair: &(&'static str, &'static str), style: Style) -> &'static str {
    match style {
        Style::Polite => pair.0,
        Style::Rude => pair.1,
    }
}

/// An answer of the given quality, with its leading space. What the quality leaves open (the wrong
/// value, the wording) comes from `rng`, in the same way for every quality.
pub(super) fn answer(rng: &mut Rng, fact: &Fact, correct: bool, style: Style) -> String {
    let wrong = *pick(rng, &fact.wrong_values());
    let statements = fact.statements(if correct { fact.value } else { wrong });
    let statement = pick(rng, &statements);
    let opening = side(pick(rng, &OPENINGS), style);
    let closing = side(pick(rng, &CLOSINGS), style);
    // Both in one answer of five: an answer should fit in two dozen tokens.
    let (open, close) = [(true, true), (true, false), (true, false), (false, true), (false, true)]
        [rng.below(5) as usize];
    let mut text = String::new();
    if open {
        text = format!(" {opening}");
    }
    text.push(' ');
    if open && opening.ends_with(',') {
        text.push_str(statement);
    } else {
        text.push_str(&capital(statement));
    }
    if close {
        text.push(' ');
        text.push_str(closing);
    }
    text
}

fn pick<'a, T>(rng: &mut Rng, list: &'a [T]) -> &'a T {
    &list[rng.below(list.len() as u32) as usize]
}

//! Prompts: a fact, a question for it, and the courtesy of the user around it. Also the split: one
//! question of every fact is held out, with all its courtesies, so that a held-out prompt is a
//! combination never seen in training while its fact and its question both are.

use super::facts::{Fact, QUESTIONS, facts};
use crate::base::Rng;

/// A user's words before and after the question.
const FRAMES: [(&str, &str); 8] = [
    ("", ""),
    ("Hello! ", ""),
    ("Hi there! ", ""),
    ("Good morning. ", ""),
    ("Excuse me. ", ""),
    ("Please help me. ", ""),
    ("", " Thank you."),
    ("", " Thanks!"),
];

/// Which side of the split a prompt is on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Split {
    Training,
    HeldOut,
}

/// Fixed for good: the split must not depend on the seed of a run.
const SPLIT_SEED: u64 = 0x5eed_d311;

/// A prompt and the fact it asks for.
#[derive(Clone)]
pub(super) struct Question {
    pub(super) fact: Fact,
    pub(super) prompt: String,
}

/// All prompts of one side of the split, in a fixed order.
pub(super) fn questions(split: Split) -> Vec<Question> {
    let mut out = vec![];
    for (index, fact) in facts().enumerate() {
        let held_out = Rng::new(SPLIT_SEED, index as u64).below(QUESTIONS as u32) as usize;
        for i in (0..QUESTIONS).filter(|&i| (i == held_out) == (split == Split::HeldOut)) {
            let question = fact.question(i);
            out.extend(FRAMES.iter().map(|(before, after)| Question {
                fact,
                prompt: format!("Human: {before}{question}{after}\nAssistant:"),
            }));
        }
    }
    out
}

/// An endless walk over the prompts of `split`, in a new order each round.
pub(super) fn walk(split: Split, seed: u64, stream: u64) -> impl Iterator<Item = Question> {
    let mut round = questions(split);
    let mut rng = Rng::new(seed, stream);
    let mut next = round.len();
    std::iter::from_fn(move || {
        if next == round.len() {
            rng.shuffle(&mut round);
            next = 0;
        }
        next += 1;
        Some(round[next - 1].clone())
    })
}

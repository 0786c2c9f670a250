//! Rows for the three steps, drawn from the dialogues, and the same rows as JSONL files.
//!
//! Every function is deterministic in its arguments. Prompts are walked in rounds, so that facts
//! and phrasings occur evenly; qualities are dealt in equal parts.

use super::answer::{Style, answer};
use super::dialogue::{Question, Split, questions, walk};
use crate::base::{Error, Result, Rng};
use crate::formats::OutDir;
use serde::Serialize;

/// A preference pair. The answers start with a space, so prompt + answer is the whole text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DemoRow {
    /// `Human: <question>\nAssistant:`
    pub prompt: String,
    /// The better answer.
    pub chosen: String,
    /// The worse answer.
    pub rejected: String,
}

/// How many rows [`write_jsonl`] writes to each file.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Rows of `sft/train.jsonl`.
    pub sft: usize,
    /// Rows of `preferences/train.jsonl`.
    pub pairs: usize,
    /// Rows of `preferences/eval.jsonl`.
    pub held_out: usize,
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes { sft: 8000, pairs: 10_000, held_out: 500 }
    }
}

/// Folder of the rows for supervised finetuning.
pub(super) const SFT_SET: &str = "sft";
/// Folder of the preference pairs, whose prompts are also PPO's.
pub(super) const PREFERENCE_SET: &str = "preferences";

/// A stream of random numbers for each purpose, so that no two draw the same. Each takes two: the
/// walk over the prompts and the wording of the answers.
const SFT: u64 = 0;
const PAIRS: u64 = 2;
const PROMPTS: u64 = 4;
const HELD_OUT: u64 = 6;

/// Held-out rows are the same in every run.
const HELD_OUT_SEED: u64 = 1;

/// The seed of the tokenizer's text.
const CORPUS_SEED: u64 = 2;

const QUALITIES: [(bool, Style); 4] =
    [(true, Style::Polite), (true, Style::Rude), (false, Style::Polite), (false, Style::Rude)];

/// All pairs of unequal qualities, better first, as places in [`QUALITIES`]: correctness outweighs
/// politeness.
const PAIRINGS: [(usize, usize); 6] = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)];

/// `n` rows for supervised finetuning: prompt and completion, a quarter of each quality.
pub fn sft_rows(seed: u64, n: usize) -> Vec<(String, String)> {
    let mut rng = Rng::new(seed, SFT + 1);
    let quality = deal(QUALITIES.len(), n, &mut rng);
    walk(Split::Training, seed, SFT)
        .zip(quality)
        .map(|(q, i)| {
            let (correct, style) = QUALITIES[i];
            let completion = answer(&mut rng, &q.fact, correct, style);
            (q.prompt, completion)
        })
        .collect()
}

/// `n` preference pairs for training, the six pairings in equal parts.
pub fn pair_rows(seed: u64, n: usize) -> Vec<DemoRow> {
    pairs(walk(Split::Training, seed, PAIRS), Rng::new(seed, PAIRS + 1), n)
}

/// `n` different prompts that training never sees, or all there are (about 600).
pub fn held_out_prompts(n: usize) -> Vec<String> {
    let all = questions(Split::HeldOut).len();
    walk(Split::HeldOut, HELD_OUT_SEED, PROMPTS).take(n.min(all)).map(|q| q.prompt).collect()
}

/// `n` preference pairs on prompts that training never sees.
pub fn held_out_pairs(n: usize) -> Vec<DemoRow> {
    let walk = walk(Split::HeldOut, HELD_OUT_SEED, HELD_OUT);
    pairs(walk, Rng::new(HELD_OUT_SEED, HELD_OUT + 1), n)
}

/// Text for training the tokenizer: dialogues of the training split, prompt and answer in one.
pub fn corpus() -> impl Iterator<Item = String> {
    sft_rows(CORPUS_SEED, Sizes::default().sft).into_iter().map(|(prompt, answer)| prompt + &answer)
}

fn pairs(walk: impl Iterator<Item = Question>, mut rng: Rng, n: usize) -> Vec<DemoRow> {
    let pairing = deal(PAIRINGS.len(), n, &mut rng);
    walk.zip(pairing)
        .map(|(q, i)| {
            let mut draw = |quality: usize| {
                let (correct, style) = QUALITIES[quality];
                answer(&mut rng, &q.fact, correct, style)
            };
            let (chosen, rejected) = (draw(PAIRINGS[i].0), draw(PAIRINGS[i].1));
            DemoRow { prompt: q.prompt, chosen, rejected }
        })
        .collect()
}

/// `n` numbers below `of`, in equal parts and random order.
fn deal(of: usize, n: usize, rng: &mut Rng) -> Vec<usize> {
    let mut hand: Vec<usize> = (0..n).map(|i| i % of).collect();
    rng.shuffle(&mut hand);
    hand
}

#[derive(Serialize)]
struct SftLine {
    prompt: String,
    completion: String,
}

/// Writes the sets `sft` (prompt, completion) and `preferences` (prompt, chosen, rejected; with
/// held-out rows) into `dir`, so that a user can look at the rows or train on them as on any other
/// data.
pub fn write_jsonl(dir: &OutDir, seed: u64, sizes: Sizes) -> Result<()> {
    let sft = sft_rows(seed, sizes.sft).into_iter();
    let sft = sft.map(|(prompt, completion)| SftLine { prompt, completion });
    write(&dir.sub(SFT_SET)?, "train.jsonl", sft)?;
    let preferences = dir.sub(PREFERENCE_SET)?;
    write(&preferences, "train.jsonl", pair_rows(seed, sizes.pairs))?;
    write(&preferences, "eval.jsonl", held_out_pairs(sizes.held_out))
}

fn write<T: Serialize>(dir: &OutDir, name: &str, rows: impl IntoIterator<Item = T>) -> Result<()> {
    dir.write(name, |out| {
        for row in rows {
            let line = serde_json::to_string(&row);
            let line = line.map_err(|e| Error::internal(format!("a row of the demo: {e}")))?;
            out.put(format!("{line}\n").as_bytes())?;
        }
        Ok(())
    })
}

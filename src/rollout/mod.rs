//! Generation over the KV-cache: prompts in, tokens and their log-probabilities out. Reads the same
//! weights as training. A sequence's tokens depend on (seed, sequence, position), never on the batch.

use crate::base::{Error, Result};
use crate::data::{Packed, micro_batches};
use crate::model::{Attend, KvCache, Model, Pass};
use crate::op;
use crate::op::sample::Sample;
use crate::tape::{Shaped, Workspace};
use crate::tensor::Desc;

/// How tokens are drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Softmax temperature; 0 = greedy. Log-probs are taken at the same temperature.
    pub temperature: f32,
    /// Keep the k likeliest tokens; 0 = all.
    pub top_k: usize,
    /// Keep the smallest set of this probability; 1 = all.
    pub top_p: f32,
    /// End tokens are not drawn before this many tokens.
    pub min_new_tokens: usize,
    /// Longest answer.
    pub max_new_tokens: usize,
    /// Tokens that end an answer.
    pub eos: Vec<i32>,
    /// Seed of the draws.
    pub seed: u64,
}

impl Sampling {
    /// Greedy decoding.
    pub fn greedy(max_new_tokens: usize, eos: Vec<i32>) -> Sampling {
        let (temperature, top_k, top_p) = (0.0, 0, 1.0);
        Sampling { temperature, top_k, top_p, min_new_tokens: 0, max_new_tokens, eos, seed: 0 }
    }
}

/// One generated answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Tokens, the end token included.
    pub tokens: Vec<i32>,
    /// Log-probability of each token under the unfiltered distribution at the sampling temperature.
    pub logprobs: Vec<f32>,
    /// Whether it ended with an end token.
    pub finished: bool,
}

/// Inputs of one step: new tokens of some sequences.
struct Step {
    packed: Packed,
    starts: Vec<i32>,
    table: Vec<i32>,
    pages: usize,
    sequence: Vec<i32>,
    position: Vec<i32>,
    forbid_eos: Vec<i32>,
}

impl Shaped for Step {
    fn dims(&self) -> Vec<usize> {
        vec![self.packed.ids.len(), self.starts.len(), self.pages]
    }

    fn largest(dims: &[usize]) -> Step {
        let [tokens, sequences, pages] = dims else { panic!("three sizes") };
        let zeros = vec![0; *sequences];
        Step {
            packed: Packed {
                ids: vec![0; *tokens],
                positions: vec![0; *tokens],
                cu_seqlens: vec![0; sequences + 1],
            },
            starts: zeros.clone(),
            table: vec![0; sequences * pages],
            pages: *pages,
            sequence: zeros.clone(),
            position: zeros.clone(),
            forbid_eos: zeros,
        }
    }
}

/// Tokens of prompts that are run through the model at once.
const PREFILL_TOKENS: usize = 2048;

/// Generates an answer to each prompt. `sequences` are the numbers under which the draws are made;
/// `on_token(i, token)` hears of each token of prompt `i` as it is drawn.
pub fn generate(
    model: &Model,
    ws: &mut Workspace,
    cache: &KvCache,
    prompts: &[&[i32]],
    sequences: &[u64],
    sampling: &Sampling,
    on_token: &mut dyn FnMut(usize, i32),
) -> Result<Vec<Answer>> {
    let longest = prompts.iter().map(|p| p.len()).max().unwrap_or(0) + sampling.max_new_tokens;
    if longest > model.arch.max_positions {
        return Err(Error::user(format!(
            "prompt and answer come to {longest} tokens, the model has {} positions; use shorter prompts or answers",
            model.arch.max_positions
        )));
    }
    if prompts.iter().any(|p| p.is_empty()) {
        return Err(Error::user("a prompt is empty; give at least one token"));
    }
    let mut answers = vec![Answer::default(); prompts.len()];
    let mut active: Vec<usize> = (0..prompts.len()).collect();
    let mut first = true;
    while !active.is_empty() && sampling.max_new_tokens > 0 {
        // Prompts go through in pieces of bounded size; later steps have one token a sequence.
        let lengths: Vec<usize> =
            active.iter().map(|&i| if first { prompts[i].len() } else { 1 }).collect();
        for group in micro_batches(&lengths, PREFILL_TOKENS) {
            let group = &active[group[0]..group[0] + group.len()];
            let rows: Vec<(usize, &[i32], usize)> = group
                .iter()
                .map(|&i| match answers[i].tokens.last() {
                    None => (i, prompts[i], 0),
                    Some(last) => (
                        i,
                        std::slice::from_ref(last),
                        prompts[i].len() + answers[i].tokens.len() - 1,
                    ),
                })
                .collect();
            let step = make_step(&rows, &answers, sequences, cache, sampling);
            let (tokens, logprobs) = advance(model, ws, cache, &step, sampling, first)?;
            for (k, &i) in group.iter().enumerate() {
                answers[i].tokens.push(tokens[k]);
                answers[i].logprobs.push(logprobs[k]);
                answers[i].finished = sampling.eos.contains(&tokens[k]);
                on_token(i, tokens[k]);
            }
        }
        first = false;
        active
            .retain(|&i| !answers[i].finished && answers[i].tokens.len() < sampling.max_new_tokens);
    }
    Ok(answers)
}

fn make_step(
    rows: &[(usize, &[i32], usize)],
    answers: &[Answer],
    sequences: &[u64],
    cache: &KvCache,
    sampling: &Sampling,
) -> Step {
    let ids: Vec<&[i32]> = rows.iter().map(|r| r.1).collect();
    let mut packed = Packed::from_rows(&ids);
    let (mut starts, mut table, mut position, mut forbid_eos) = (vec![], vec![], vec![], vec![]);
    for (k, &(i, ids, start)) in rows.iter().enumerate() {
        let range = packed.cu_seqlens[k] as usize..packed.cu_seqlens[k + 1] as usize;
        packed.positions[range].iter_mut().for_each(|p| *p += start as i32);
        starts.push(start as i32);
        table.extend(cache.table(i));
        position.push((start + ids.len()) as i32);
        forbid_eos.push(i32::from(answers[i].tokens.len() < sampling.min_new_tokens));
    }
    let sequence = rows.iter().map(|r| sequences[r.0] as i32).collect();
    Step { packed, starts, table, pages: cache.pages, sequence, position, forbid_eos }
}

/// Runs the new tokens, appends to the cache, and draws the next token of each sequence.
fn advance(
    model: &Model,
    ws: &mut Workspace,
    cache: &KvCache,
    step: &Step,
    sampling: &Sampling,
    prefill: bool,
) -> Result<(Vec<i32>, Vec<f32>)> {
    let key = format!("{} {}", if prefill { "prefill" } else { "decode" }, model.store.id());
    ws.run(&key, step, |tape, step: &Step| {
        let ids = tape.input_i32(&step.packed.ids)?;
        let positions = tape.input_i32(&step.packed.positions)?;
        let cu_seqlens = tape.input_i32(&step.packed.cu_seqlens)?;
        let starts = tape.input_i32(&step.starts)?;
        let mut table = tape.input_i32(&step.table)?;
        table.desc = Desc::new(&[step.starts.len(), step.pages], table.desc.dtype);
        let attend = Attend::Cached { cu_seqlens, starts, table, cache };
        let hidden = model.hidden(tape, ids, positions, &attend, Pass::EVAL)?;
        let last: Vec<i32> = step.packed.cu_seqlens[1..].iter().map(|e| e - 1).collect();
        let select = tape.input_i32(&last)?;
        let logits = model.logits(tape, hidden, select)?;
        let sample = Sample {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            seed: sampling.seed,
            eos: sampling.eos.clone(),
        };
        let sequence = tape.input_i32(&step.sequence)?;
        let position = tape.input_i32(&step.position)?;
        let forbid = tape.input_i32(&step.forbid_eos)?;
        let (tokens, logprobs) =
            op::sample::sample(tape, sample, logits, sequence, position, forbid)?;
        Ok((tape.read_i32(tokens)?, tape.read_f32(logprobs)?))
    })
}

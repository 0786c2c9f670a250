//! Generation over the KV-cache: prompts in, tokens and their log-probabilities out. Reads the same
//! weights as training. A sequence's tokens depend on (seed, sequence, position), never on the
//! batch.

mod decode;

use crate::base::{Error, Result};
use crate::data::{Packed, micro_batches};
use crate::model::{Attend, KvCache, Model, Pass};
use crate::op;
use crate::op::sample::Sample;
use crate::tape::{Shaped, Workspace};
use crate::tensor::Desc;

/// Smallest temperature above 0 that keys take: with smaller ones logits divided by it, and the
/// gradients through them, leave the range of numbers.
pub const LEAST_TEMPERATURE: f64 = 0.01;

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

    fn operator(&self) -> Sample {
        Sample {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            seed: self.seed,
            eos: self.eos.clone(),
        }
    }
}

/// One generated answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Tokens, the end token included.
    pub tokens: Vec<i32>,
    /// Log-probability of each token under the unfiltered distribution at the sampling temperature.
    pub logprobs: Vec<f32>,
    /// True if the answer ended with an end token.
    pub finished: bool,
}

/// Prompts to be run through the model at once, with an empty cache.
struct Prefill {
    packed: Packed,
    starts: Vec<i32>,
    table: Vec<i32>,
    pages: usize,
    sequence: Vec<i32>,
    draw: Vec<i32>,
    forbid_eos: Vec<i32>,
}

impl Shaped for Prefill {
    fn dims(&self) -> Vec<usize> {
        vec![self.packed.ids.len(), self.starts.len(), self.pages]
    }

    fn largest(dims: &[usize]) -> Prefill {
        let [tokens, sequences, pages] = dims else { panic!("three sizes") };
        let zeros = vec![0; *sequences];
        Prefill {
            packed: Packed {
                ids: vec![0; *tokens],
                positions: vec![0; *tokens],
                cu_seqlens: vec![0; sequences + 1],
            },
            starts: zeros.clone(),
            table: vec![0; sequences * pages],
            pages: *pages,
            sequence: zeros.clone(),
            draw: zeros.clone(),
            forbid_eos: zeros,
        }
    }
}

/// Tokens of prompts that are run through the model at once.
const PREFILL_TOKENS: usize = 2048;

/// Generates an answer to each prompt. `sequences` are the numbers under which the draws are made;
/// `on_token(i, token)` hears of each token of prompt `i`, in order.
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
            "prompt and answer come to {longest} tokens, the model has {} positions; use shorter \
             prompts or answers",
            model.arch.max_positions
        )));
    }
    if prompts.iter().any(|p| p.is_empty()) {
        return Err(Error::user("a prompt is empty; give at least one token"));
    }
    let mut answers = vec![Answer::default(); prompts.len()];
    if sampling.max_new_tokens == 0 {
        return Ok(answers);
    }
    // Prompts go through in pieces of bounded size.
    let lengths: Vec<usize> = prompts.iter().map(|p| p.len()).collect();
    for group in micro_batches(&lengths, PREFILL_TOKENS) {
        go_on(model, ws)?;
        let step = make_prefill(&group, prompts, sequences, cache, sampling);
        let (tokens, logprobs) = prefill(model, ws, cache, &step, sampling)?;
        for (k, &i) in group.iter().enumerate() {
            answers[i].push(tokens[k], logprobs[k], sampling);
            on_token(i, tokens[k]);
        }
    }
    let rows = decode::Rows { prompts, sequences, sampling };
    decode::decode(model, ws, cache, &rows, &mut answers, on_token)?;
    Ok(answers)
}

/// Drops the work if that is asked. Of several ranks none may leave the others: they agree on it
/// between generation and what comes before and after.
fn go_on(model: &Model, ws: &Workspace) -> Result<()> {
    if model.store.partition().comm.size() > 1 { Ok(()) } else { ws.go_on() }
}

/// Kernels launched for one token of every sequence, on a device with kernels; nothing is computed.
pub fn launches_per_step(model: &Model, ws: &mut Workspace) -> Result<u64> {
    decode::launches(model, ws)
}

impl Answer {
    fn push(&mut self, token: i32, logprob: f32, sampling: &Sampling) {
        self.tokens.push(token);
        self.logprobs.push(logprob);
        self.finished = sampling.eos.contains(&token);
    }
}

fn make_prefill(
    group: &[usize],
    prompts: &[&[i32]],
    sequences: &[u64],
    cache: &KvCache,
    sampling: &Sampling,
) -> Prefill {
    let ids: Vec<&[i32]> = group.iter().map(|&i| prompts[i]).collect();
    Prefill {
        packed: Packed::from_rows(&ids),
        starts: vec![0; group.len()],
        table: group.iter().flat_map(|&i| cache.table(i)).collect(),
        pages: cache.pages,
        sequence: group.iter().map(|&i| sequences[i] as i32).collect(),
        draw: ids.iter().map(|ids| ids.len() as i32).collect(),
        forbid_eos: vec![i32::from(sampling.min_new_tokens > 0); group.len()],
    }
}

/// Runs the prompts, fills the cache, and draws the first token of each answer.
fn prefill(
    model: &Model,
    ws: &mut Workspace,
    cache: &KvCache,
    step: &Prefill,
    sampling: &Sampling,
) -> Result<(Vec<i32>, Vec<f32>)> {
    ws.run(&format!("prefill {}", model.store.id()), step, |tape, step: &Prefill| {
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
        let sequence = tape.input_i32(&step.sequence)?;
        let draw = tape.input_i32(&step.draw)?;
        let forbid = tape.input_i32(&step.forbid_eos)?;
        let sample = sampling.operator();
        let (tokens, logprobs) = op::sample::sample(tape, sample, logits, sequence, draw, forbid)?;
        Ok((tape.read_i32(tokens)?, tape.read_f32(logprobs)?))
    })
}

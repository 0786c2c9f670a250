//! Decoding: one token a step for all sequences that are not finished. The whole state of a step
//! (last tokens, positions, what may still be drawn, page table) lies on the device, so a step
//! needs nothing of the host: it is recorded once for each number of rows, and run again for every
//! further token. Between runs of steps the host reads what was drawn and closes the gaps that
//! finished sequences leave.

use super::{Answer, Sampling};
use crate::base::{DType, Result};
use crate::device::{Buffer, Device, Region};
use crate::model::{Attend, KvCache, Model, Pass};
use crate::op::decode_update::{DecodeUpdate, State, Written, decode_update};
use crate::op::sample::sample;
use crate::tape::{CapturedGraph, Shaped, Tape, Workspace};
use crate::tensor::{Desc, Tensor};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Steps between two looks of the host on a device with kernels.
const STEPS: usize = 16;

/// The prompts to decode, with their sequence numbers and sampling settings.
pub(super) struct Rows<'r> {
    pub(super) prompts: &'r [&'r [i32]],
    pub(super) sequences: &'r [u64],
    pub(super) sampling: &'r Sampling,
}

/// Goes on with answers that have their first token, until each is finished.
pub(super) fn decode(
    model: &Model,
    ws: &mut Workspace,
    cache: &KvCache,
    rows: &Rows<'_>,
    answers: &mut [Answer],
    on_token: &mut dyn FnMut(usize, i32),
) -> Result<()> {
    let device = model.store.device();
    let limit = rows.sampling.max_new_tokens;
    let is_open = |a: &Answer| !a.finished && a.tokens.len() < limit;
    let mut active: Vec<usize> = (0..answers.len()).filter(|i| is_open(&answers[*i])).collect();
    if active.is_empty() {
        return Ok(());
    }
    let steps = if device.has_kernels() { STEPS } else { 1 };
    let most = Sizes { rows: bucket(device, active.len()), pages: cache.pages, steps };
    let step = Step { model, cache, sampling: rows.sampling };
    if device.is_fake() {
        return step.fake_steps(ws, most, limit, answers);
    }
    step.reserve(ws, most)?;
    let slots = Slots::new(device, most)?;
    let mut read = Read::new(most);
    let mut programs: HashMap<usize, CapturedGraph<'_>> = HashMap::new();
    let mut changed = true;
    while !active.is_empty() {
        super::go_on(model, ws)?;
        let sizes = Sizes { rows: bucket(device, active.len()), ..most };
        if changed {
            slots.upload(&sizes, &active, rows, cache, answers)?;
        } else {
            slots.restart(&sizes, &mut read)?;
        }
        let program = match programs.entry(sizes.rows) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(step.capture(ws, sizes, &slots)?),
        };
        let left = active.iter().map(|&i| limit - answers[i].tokens.len()).max().unwrap_or(0);
        for _ in 0..steps.min(left) {
            program.run()?;
        }
        slots.download(&sizes, &active, rows.sampling, &mut read, answers, on_token)?;
        let before = active.len();
        active.retain(|i| is_open(&answers[*i]));
        changed = active.len() < before;
    }
    Ok(())
}

/// Kernels that a step for one sequence launches.
pub(super) fn launches(model: &Model, ws: &mut Workspace) -> Result<u64> {
    let device = model.store.device();
    let cache = KvCache::new(model, 1, 1)?;
    let sizes = Sizes { rows: 1, pages: cache.pages, steps: 1 };
    let slots = Slots::new(device, sizes)?;
    let step = Step { model, cache: &cache, sampling: &Sampling::greedy(1, vec![0]) };
    step.reserve(ws, sizes)?;
    let stream = device.stream()?;
    let before = stream.launches();
    step.capture(ws, sizes, &slots)?;
    Ok(stream.launches() - before)
}

/// The model, cache and sampling settings that all decoding steps share.
#[derive(Clone, Copy)]
struct Step<'a> {
    model: &'a Model,
    cache: &'a KvCache,
    sampling: &'a Sampling,
}

impl<'a> Step<'a> {
    fn key(&self) -> String {
        format!("decode {}", self.model.store.id())
    }

    /// Plans steps of up to these sizes.
    fn reserve(self, ws: &mut Workspace, sizes: Sizes) -> Result<()> {
        let inputs = Inputs { sizes, slots: None };
        let mut program = |tape: &mut Tape<'a>, inputs: &Inputs<'a>| self.run(tape, inputs);
        ws.reserve(&self.key(), &inputs.dims(), &mut program)
    }

    /// All steps on a fake device, where all answers are as long as they may be.
    fn fake_steps(
        self,
        ws: &mut Workspace,
        sizes: Sizes,
        limit: usize,
        answers: &mut [Answer],
    ) -> Result<()> {
        let slots = Slots::new(self.model.store.device(), sizes)?;
        let inputs = Inputs { sizes, slots: Some(&slots) };
        let tensor = &self.model.store.partition().tensor;
        let before = (ws.flops(), tensor.counts());
        ws.run(&self.key(), &inputs, |tape, inputs: &Inputs<'_>| self.run(tape, inputs))?;
        // Each step is like the first.
        let others = limit as u64 - 2;
        ws.count_flops(others * (ws.flops() - before.0));
        tensor.repeat(&before.1, others);
        for answer in answers {
            answer.tokens.resize(limit, 0);
            answer.logprobs.resize(limit, 0.0);
        }
        Ok(())
    }

    /// Records a step.
    fn capture(
        self,
        ws: &'a Workspace,
        sizes: Sizes,
        slots: &'a Slots,
    ) -> Result<CapturedGraph<'a>> {
        let inputs = Inputs { sizes, slots: Some(slots) };
        // What ranks tell each other through the host is no part of a graph.
        let graph = self.model.store.partition().tensor.size() == 1;
        ws.capture(&self.key(), &inputs, graph, |tape, inputs: &Inputs<'a>| self.run(tape, inputs))
    }
}

/// Rows of a step for `n` sequences: on a device with kernels one of a few numbers, each of which
/// has its graph.
fn bucket(device: Device, n: usize) -> usize {
    match n {
        _ if !device.has_kernels() => n,
        0..=8 => n.next_power_of_two(),
        _ => n.next_multiple_of(8),
    }
}

/// Sizes of a step.
#[derive(Clone, Copy)]
struct Sizes {
    rows: usize,
    pages: usize,
    steps: usize,
}

/// A step's inputs; planned without memory.
struct Inputs<'s> {
    sizes: Sizes,
    slots: Option<&'s Slots>,
}

impl Shaped for Inputs<'_> {
    fn dims(&self) -> Vec<usize> {
        vec![self.sizes.rows, self.sizes.pages, self.sizes.steps]
    }

    fn largest(dims: &[usize]) -> Self {
        let [rows, pages, steps] = *dims else { panic!("three sizes") };
        Inputs { sizes: Sizes { rows, pages, steps }, slots: None }
    }
}

/// The device memory of the state, for the largest number of rows.
struct Slots {
    /// i32 `[7, rows]`.
    state: Buffer,
    /// i32 `[rows]`: numbers under which draws are made.
    sequence: Buffer,
    /// i32 `[rows + 1]`: 0, 1, 2, ...: one new token each; the first `rows` select all.
    count: Buffer,
    /// i32 `[rows, pages]`.
    table: Buffer,
    /// i32 and f32 `[rows, steps]`: what was drawn.
    tokens: Buffer,
    logprobs: Buffer,
}

/// The host's copies of what is read: tokens made by each row, and what was drawn, as in [`Slots`].
struct Read {
    made: Vec<i32>,
    tokens: Vec<i32>,
    logprobs: Vec<f32>,
}

impl Read {
    fn new(sizes: Sizes) -> Read {
        let drawn = sizes.rows * sizes.steps;
        Read { made: vec![0; sizes.rows], tokens: vec![0; drawn], logprobs: vec![0.0; drawn] }
    }
}

impl Slots {
    fn new(device: Device, sizes: Sizes) -> Result<Slots> {
        let Sizes { rows, pages, steps } = sizes;
        let words = |n: usize| Buffer::zeroed(device, 4 * n);
        let count = words(rows + 1)?;
        count.write(0, bytemuck::cast_slice(&(0..=rows as i32).collect::<Vec<_>>()))?;
        let drawn = rows * steps;
        Ok(Slots {
            state: words(State::ROWS * rows)?,
            sequence: words(rows)?,
            count,
            table: words(rows * pages)?,
            tokens: words(drawn)?,
            logprobs: words(drawn)?,
        })
    }

    /// Lets the same rows go on, with nothing drawn yet.
    fn restart(&self, sizes: &Sizes, read: &mut Read) -> Result<()> {
        let made = &mut read.made[..sizes.rows];
        made.fill(0);
        self.state.write(State::MADE * sizes.rows * 4, bytemuck::cast_slice(made))
    }

    /// Sets the state to that of the `active` answers; rows that are left over have nothing to draw
    /// and own a page that nobody reads.
    fn upload(
        &self,
        sizes: &Sizes,
        active: &[usize],
        rows: &Rows<'_>,
        cache: &KvCache,
        answers: &[Answer],
    ) -> Result<()> {
        let n = sizes.rows;
        let mut state = vec![0i32; State::ROWS * n];
        let mut sequence = vec![0i32; n];
        let mut table = vec![cache.spare(); n * sizes.pages];
        for (k, &i) in active.iter().enumerate() {
            let made = answers[i].tokens.len();
            let position = rows.prompts[i].len() + made - 1;
            let before_eos = rows.sampling.min_new_tokens.saturating_sub(made);
            let mut set = |row: usize, value: usize| state[row * n + k] = value as i32;
            set(State::POSITION, position);
            set(State::DRAW, position + 1);
            set(State::FORBID_EOS, usize::from(before_eos > 0));
            set(State::LEFT, rows.sampling.max_new_tokens - made);
            set(State::BEFORE_EOS, before_eos);
            state[State::TOKEN * n + k] = answers[i].tokens[made - 1];
            sequence[k] = rows.sequences[i] as i32;
            let pages = cache.table(i);
            table[k * sizes.pages..][..sizes.pages].iter_mut().zip(pages).for_each(|(t, p)| *t = p);
        }
        self.state.write(0, bytemuck::cast_slice(&state))?;
        self.sequence.write(0, bytemuck::cast_slice(&sequence))?;
        self.table.write(0, bytemuck::cast_slice(&table))
    }

    /// Adds what was drawn to the answers.
    fn download(
        &self,
        sizes: &Sizes,
        active: &[usize],
        sampling: &Sampling,
        read: &mut Read,
        answers: &mut [Answer],
        on_token: &mut dyn FnMut(usize, i32),
    ) -> Result<()> {
        let (n, steps) = (sizes.rows, sizes.steps);
        let Read { made, tokens, logprobs } = read;
        self.state.read(State::MADE * n * 4, bytemuck::cast_slice_mut(&mut made[..n]))?;
        self.tokens.read(0, bytemuck::cast_slice_mut(&mut tokens[..n * steps]))?;
        self.logprobs.read(0, bytemuck::cast_slice_mut(&mut logprobs[..n * steps]))?;
        for (k, &i) in active.iter().enumerate() {
            for s in k * steps..k * steps + made[k] as usize {
                answers[i].push(tokens[s], logprobs[s], sampling);
                on_token(i, tokens[s]);
            }
        }
        Ok(())
    }
}

impl<'a> Step<'a> {
    /// One token for every row.
    fn run(self, tape: &mut Tape<'a>, inputs: &Inputs<'a>) -> Result<()> {
        let Step { model, cache, sampling } = self;
        let Sizes { rows, pages, steps } = inputs.sizes;
        let slots = inputs.slots;
        let state_buffer = slots.map(|s| &s.state);
        let mut row = |r: usize| ints(tape, state_buffer, r * rows, &[rows]);
        let (ids, positions) = (row(State::TOKEN), row(State::POSITION));
        let (draw, forbid) = (row(State::DRAW), row(State::FORBID_EOS));
        let state = ints(tape, state_buffer, 0, &[State::ROWS, rows]);
        let sequence = ints(tape, slots.map(|s| &s.sequence), 0, &[rows]);
        let cu_seqlens = ints(tape, slots.map(|s| &s.count), 0, &[rows + 1]);
        let select = ints(tape, slots.map(|s| &s.count), 0, &[rows]);
        let table = ints(tape, slots.map(|s| &s.table), 0, &[rows, pages]);
        let tokens = ints(tape, slots.map(|s| &s.tokens), 0, &[rows, steps]);
        let mut logprobs = ints(tape, slots.map(|s| &s.logprobs), 0, &[rows, steps]);
        logprobs.desc.dtype = DType::F32;

        let attend = Attend::Cached { cu_seqlens, starts: positions, table, cache };
        let hidden = model.hidden(tape, ids, positions, &attend, Pass::EVAL)?;
        let logits = model.logits(tape, hidden, select)?;
        let (drawn, logp) = sample(tape, sampling.operator(), logits, sequence, draw, forbid)?;
        let to = Written { state, tokens, logprobs };
        decode_update(tape, DecodeUpdate { eos: sampling.eos.clone() }, drawn, logp, to)
    }
}

/// Words of a buffer from `first` on as an i32 tensor; while planning there is no buffer.
fn ints<'a>(
    tape: &mut Tape<'a>,
    buffer: Option<&'a Buffer>,
    first: usize,
    dims: &[usize],
) -> Tensor {
    let desc = Desc::new(dims, DType::I32);
    tape.bind(
        buffer.map_or(Region::nowhere(desc.bytes()), |b| b.slice(4 * first, desc.bytes())),
        desc,
    )
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::*;
    use crate::arch::Config;
    use crate::model::{Head, LoadOptions};

    /// Launches of a token in a model of `layers`.
    fn launches_of(family: &str, layers: usize) -> u64 {
        let mut fields = serde_json::json!({"model_type": family, "vocab_size": 40,
            "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2,
            "max_position_embeddings": 64});
        let inner = if family == "opt" { "ffn_dim" } else { "intermediate_size" };
        fields[inner] = 64.into();
        let config = Config::from_map(fields.as_object().expect("an object").clone());
        let options = LoadOptions::frozen(Head::Lm, DType::Bf16).on(Device::Emulated);
        let model = Model::random(&config, &options).expect("model");
        let mut ws = Workspace::new(Device::Emulated, 1 << 28).expect("workspace");
        launches(&model, &mut ws).expect("launches")
    }

    #[test]
    fn kernels_launched_on_the_emulated_device_for_a_token() {
        // Norm, product, rotary, append, attend, product; norm, product, gate, product. The
        // activation of OPT is the end of its product, and its positions are embedded.
        for (family, layer) in [("opt", 8), ("llama", 10)] {
            let one = launches_of(family, 1);
            assert_eq!(launches_of(family, 3), one + 2 * layer, "{family}");
            // Embedding, last norm, choice of rows, logits, draw, and what follows from it.
            assert_eq!(one, layer + 6, "{family}");
        }
    }
}

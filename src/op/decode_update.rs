//! The end of a decode step: the drawn tokens are written down and become the next step's inputs.
//! With it the whole state of decoding lives on the device, so that a step needs nothing of the
//! host.
//!
//! tokens i32 `[b]`, logprobs f32 `[b]`, state i32 `[7, b]`, out_tokens i32 `[b, steps]`,
//! out_logprobs f32 `[b, steps]` -> the last three in place. A row that has nothing left to draw
//! stays as it is. The rows of the state are numbered by the constants of [`State`].

use crate::base::{DType, Result};
use crate::device::cuda::constants::decode_update::{self as columns, DECODE_UPDATE_THREADS};
use crate::device::cuda::params::DecodeUpdateParams;
use crate::op::conformance::{Case, Input};
use crate::op::cuda::eos_list;
use crate::op::def::OpDef;
use crate::op::{CudaForward, Forward, Op, Place, Plan, Run, required, shape_error};
use crate::tensor::{Desc, Tensor};
use std::sync::Arc;

/// Threads of a block.
const THREADS: u32 = DECODE_UPDATE_THREADS as u32;

/// The rows of the state.
#[derive(Debug)]
pub struct State;

impl State {
    /// The last token, input of the next step.
    pub const TOKEN: usize = columns::TOKEN;
    /// Its position, which is the number of tokens in the cache.
    pub const POSITION: usize = columns::POSITION;
    /// Position of the token to be drawn.
    pub const DRAW: usize = columns::DRAW;
    /// 1 while no end token may be drawn.
    pub const FORBID_EOS: usize = columns::FORBID_EOS;
    /// Tokens that may still be drawn; 0: finished.
    pub const LEFT: usize = columns::LEFT;
    /// Tokens still to be drawn before an end token may be.
    pub const BEFORE_EOS: usize = columns::BEFORE_EOS;
    /// Tokens written to the outputs.
    pub const MADE: usize = columns::MADE;
    /// Number of rows.
    pub const ROWS: usize = columns::MADE + 1;
}

/// The operator.
#[derive(Clone, Debug)]
pub struct DecodeUpdate {
    /// Tokens that end a row; 64 at most on a CUDA device.
    pub eos: Vec<i32>,
}

/// Registry entry.
pub const DEF: OpDef = OpDef {
    name: "decode_update",
    about: "records sampled tokens and makes them the next decode step's inputs, in place",
    cases,
};

/// Where a decode step's results go.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// i32 `[7, b]`.
    pub state: Tensor,
    /// i32 `[b, steps]`.
    pub tokens: Tensor,
    /// f32 `[b, steps]`.
    pub logprobs: Tensor,
}

/// Takes down `tokens` and `logprobs` `[b]`.
pub fn decode_update(
    r: &mut dyn Run,
    op: DecodeUpdate,
    tokens: Tensor,
    logprobs: Tensor,
    to: Written,
) -> Result<()> {
    let ins = [tokens, logprobs, to.state, to.tokens, to.logprobs].map(Some);
    r.run(Arc::new(op), &ins).map(|_| ())
}

impl Op for DecodeUpdate {
    fn name(&self) -> &'static str {
        DEF.name
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let (tokens, logprobs) = (required(self, ins, 0)?, required(self, ins, 1)?);
        let (state, out) = (required(self, ins, 2)?, required(self, ins, 3)?);
        let out_logprobs = required(self, ins, 4)?;
        let b = tokens.shape.numel();
        let steps = out.shape.last();
        let fits = tokens == Desc::new(&[b], DType::I32)
            && logprobs == Desc::new(&[b], DType::F32)
            && state == Desc::new(&[State::ROWS, b], DType::I32)
            && out == Desc::new(&[b, steps], DType::I32)
            && out_logprobs == Desc::new(&[b, steps], DType::F32);
        if !fits {
            let expected = "tokens [b], logprobs [b], state [7, b], outputs [b, steps]";
            return Err(shape_error(self, ins, expected));
        }
        let outs = vec![Place::InPlace(2), Place::InPlace(3), Place::InPlace(4)];
        Ok(Plan { outs, ..Plan::default() })
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        let (tokens, logprobs) = (io.input(0).i32(), io.input(1).f32());
        let [state, out, out_logprobs] = &mut io.outs[..] else { panic!("advance has three outs") };
        let (state, out, out_logprobs) = (state.i32(), out.i32(), out_logprobs.f32());
        let b = tokens.len();
        let steps = out.len() / b.max(1);
        for i in 0..b {
            let at = |row: usize| row * b + i;
            let made = state[at(State::MADE)] as usize;
            if state[at(State::LEFT)] <= 0 || made >= steps {
                continue;
            }
            out[i * steps + made] = tokens[i];
            out_logprobs[i * steps + made] = logprobs[i];
            let ended = self.eos.contains(&tokens[i]);
            state[at(State::TOKEN)] = tokens[i];
            state[at(State::POSITION)] += 1;
            state[at(State::DRAW)] += 1;
            state[at(State::LEFT)] = if ended { 0 } else { state[at(State::LEFT)] - 1 };
            state[at(State::BEFORE_EOS)] = (state[at(State::BEFORE_EOS)] - 1).max(0);
            state[at(State::FORBID_EOS)] = i32::from(state[at(State::BEFORE_EOS)] > 0);
            state[at(State::MADE)] += 1;
        }
        Ok(())
    }

    unsafe fn cuda_forward(&self, io: &CudaForward<'_>) -> Result<()> {
        let (tokens, out) = (io.input(0), io.outs[1]);
        let b = tokens.desc.shape.numel() as u32;
        let params = DecodeUpdateParams {
            tokens: tokens.ptr,
            logprobs: io.ptr(1),
            state: io.outs[0].ptr,
            out: out.ptr,
            out_logprobs: io.outs[2].ptr,
            b,
            steps: out.last() as u32,
            eos: eos_list(&self.eos)?,
            eos_count: self.eos.len() as u32,
            zero: 0,
        };
        // SAFETY: the caller vouches for `io`, whose addresses and sizes these are.
        unsafe {
            io.stream.launch("decode_update", [b.div_ceil(THREADS), 1, 1], THREADS, 0, &params)
        }
    }
}

/// Rows: goes on; ends by an end token; draws its last; is finished; has its outputs full; may end
/// from the next token on.
fn cases() -> Vec<Case> {
    let (b, steps) = (6, 4);
    #[rustfmt::skip]
    let state = vec![
        5, 6, 7, 8, 9, 10,
        20, 21, 22, 23, 24, 25,
        21, 22, 23, 24, 25, 26,
        0, 0, 0, 0, 0, 1,
        9, 9, 1, 0, 9, 9,
        0, 0, 0, 0, 0, 1,
        1, 0, 3, 2, 4, 2,
    ];
    let ins = vec![
        Some(Input::ints(&[50, 3, 52, 3, 54, 55])),
        Some(Input::Const(vec![b], vec![-1.0, -2.0, -3.0, -4.0, -5.0, -6.0])),
        Some(Input::Ints(vec![State::ROWS, b], state)),
        Some(Input::Ints(vec![b, steps], (100..124).collect())),
        Some(Input::Const(vec![b, steps], (0..24).map(|i| i as f32).collect())),
    ];
    let case = Case::new(DecodeUpdate { eos: vec![2, 3] }, ins, |ins| {
        let (mut state, mut out, mut logps) = (ins[2].clone(), ins[3].clone(), ins[4].clone());
        // What changes, written out by hand: (row of the state, sequence, value).
        let changes = [
            [(0, 50.0), (1, 21.0), (2, 22.0), (4, 8.0), (6, 2.0)].map(|(r, v)| (r, 0, v)).to_vec(),
            [(0, 3.0), (1, 22.0), (2, 23.0), (4, 0.0), (6, 1.0)].map(|(r, v)| (r, 1, v)).to_vec(),
            [(0, 52.0), (1, 23.0), (2, 24.0), (4, 0.0), (6, 4.0)].map(|(r, v)| (r, 2, v)).to_vec(),
            [(0, 55.0), (1, 26.0), (2, 27.0), (3, 0.0), (4, 8.0), (5, 0.0), (6, 3.0)]
                .map(|(r, v)| (r, 5, v))
                .to_vec(),
        ];
        for (row, i, v) in changes.concat() {
            state[row * 6 + i] = v;
        }
        for (i, at) in [(0, 1), (1, 0), (2, 3), (5, 2)] {
            out[i * 4 + at] = ins[0][i];
            logps[i * 4 + at] = ins[1][i];
        }
        vec![state, out, logps]
    });
    vec![case]
}

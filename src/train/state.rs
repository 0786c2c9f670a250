//! What AdamW keeps of one flat between steps: everything in f32, or compact codes. The arithmetic is
//! in the operators; `optimizer.rs` knows when and with what settings they run.

use crate::base::{DType, Error, Result};
use crate::device::Buffer;
use crate::op::adamw::{AdamW, adamw};
use crate::op::adamw_compact::{AdamWCompact, Codes, adamw_compact};
use crate::pool::{Flat, Store};
use crate::tape::Tape;
use crate::tensor::{Desc, Tensor};

/// How the optimizer's state is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdamWState {
    /// Moments in f32, and beside bf16 weights a master copy in f32: 12 bytes a parameter, 8 beside f32
    /// weights.
    Full,
    /// Moments and what bf16 weights lack of 24 bits in a byte each: 3.1 bytes a parameter.
    Compact,
}

impl AdamWState {
    /// The storage type of gradients that goes with it.
    pub fn grads(self) -> DType {
        match self {
            AdamWState::Full => DType::F32,
            AdamWState::Compact => DType::Bf16,
        }
    }
}

/// The state of one flat of `block` parameters.
#[derive(Debug)]
pub(super) enum State {
    Full { m: Buffer, v: Buffer, master: Option<Buffer> },
    Compact { correction: Buffer, m: Buffer, v: Buffer, scales: Buffer },
}

impl State {
    /// Fresh state for `flat`, whose weights are what they are now. Compact state needs bf16 weights.
    pub(super) fn new(kind: AdamWState, store: &Store, flat: &Flat) -> Result<State> {
        let n = flat.block;
        let zeros = |bytes: usize| Buffer::zeroed(store.device(), bytes);
        match (kind, store.dtype()) {
            (AdamWState::Full, _) if store.grad_dtype() != DType::F32 => {
                Err(Error::internal("the full optimizer state takes f32 gradients"))
            }
            (AdamWState::Full, dtype) => {
                let master = match dtype {
                    DType::Bf16 => Some(master(flat, zeros(n * 4)?)?),
                    _ => None,
                };
                Ok(State::Full { m: zeros(n * 4)?, v: zeros(n * 4)?, master })
            }
            (AdamWState::Compact, DType::Bf16) => {
                // A scale of each moment for 64 elements.
                let (correction, m, v, scales) = (zeros(n)?, zeros(n)?, zeros(n)?, zeros(n / 8)?);
                Ok(State::Compact { correction, m, v, scales })
            }
            (AdamWState::Compact, dtype) => Err(Error::user(format!(
                "the compact optimizer state needs bf16 weights, these are {dtype}; \
                 use --dtype bf16 or --optimizer-state full"
            ))),
        }
    }

    /// Size of the state.
    pub(super) fn bytes(&self) -> usize {
        match self {
            State::Full { m, v, master } => {
                m.bytes() + v.bytes() + master.as_ref().map_or(0, Buffer::bytes)
            }
            State::Compact { correction, m, v, scales } => {
                correction.bytes() + m.bytes() + v.bytes() + scales.bytes()
            }
        }
    }

    /// Updates `w` by its gradient `g`, times `clip`.
    pub(super) fn update(
        &self,
        tape: &mut Tape<'_>,
        op: AdamW,
        w: Tensor,
        g: Tensor,
        clip: Tensor,
    ) -> Result<()> {
        let n = w.desc.shape.numel();
        let mut bind = |b: &Buffer, n, dtype| tape.bind(b.region(), Desc::new(&[n], dtype));
        match self {
            State::Full { m, v, master } => {
                let [m, v] = [m, v].map(|b| bind(b, n, DType::F32));
                let master = master.as_ref().map(|b| bind(b, n, DType::F32));
                adamw(tape, op, w, g, clip, m, v, master)
            }
            State::Compact { correction, m, v, scales } => {
                let [correction, m, v] = [correction, m, v].map(|b| bind(b, n, DType::U8));
                let scales = bind(scales, n / 32, DType::F32);
                let codes = Codes { correction, m, v, scales };
                adamw_compact(tape, AdamWCompact(op), w, g, clip, codes)
            }
        }
    }
}

/// The weights of `flat`, bf16, as f32 in `to`; in pieces, for a copy of a whole flat would be more
/// than what is there later.
fn master(flat: &Flat, to: Buffer) -> Result<Buffer> {
    const PIECE: usize = 1 << 20;
    for start in (0..flat.block).step_by(PIECE) {
        let mut raw = vec![0u8; PIECE.min(flat.block - start) * 2];
        flat.weights.read(start * 2, &mut raw)?;
        let wide: Vec<u8> = raw
            .chunks_exact(2)
            .flat_map(|b| [0, 0, b[0], b[1]]) // bf16 is the upper half of a little-endian f32
            .collect();
        to.write(start * 4, &wide)?;
    }
    Ok(to)
}

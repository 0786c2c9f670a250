//! AdamW's state of one bucket between steps: everything in f32, or compact codes. The arithmetic
//! is in the operators; `optimizer.rs` decides when and with what settings they run.

use crate::base::{DType, Error, Result};
use crate::device::{Buffer, Device};
use crate::formats::{Snapshot, SnapshotBuilder};
use crate::op::adamw::{AdamW, Kept, adamw};
use crate::op::adamw_compact::{AdamWCompact, Codes, adamw_compact};
use crate::op::cpu::adamw_compact::BLOCK;
use crate::pool::{ParamId, Store};
use crate::tape::Tape;
use crate::tensor::{Desc, Tensor};
use serde::{Deserialize, Serialize};

/// How the optimizer's state is kept; [`AdamWState::bytes_per_parameter`] says how large it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdamWState {
    /// Moments in f32, and beside bf16 weights a master copy in f32.
    Full,
    /// Moments and what bf16 weights lack of 24 bits in a byte each, and scales.
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

    /// Bytes that a trained parameter takes beside its weight of `dtype`: gradient, and state.
    pub fn bytes_per_parameter(self, dtype: DType) -> [f64; 2] {
        let state: usize = self.parts(dtype, BLOCK).into_iter().sum();
        [self.grads().size() as f64, state as f64 / BLOCK as f64]
    }

    /// The name in text.
    pub fn name(self) -> &'static str {
        match self {
            AdamWState::Full => "full",
            AdamWState::Compact => "compact",
        }
    }

    /// Bytes of first moment, second moment, missing precision and scales of `n` parameters with
    /// weights of `dtype`; `n` is a multiple of [`BLOCK`].
    fn parts(self, dtype: DType, n: usize) -> [usize; 4] {
        match (self, dtype) {
            (AdamWState::Full, DType::Bf16) => [4 * n, 4 * n, 4 * n, 0],
            (AdamWState::Full, _) => [4 * n, 4 * n, 0, 0],
            (AdamWState::Compact, _) => [n, n, n, n / BLOCK * SCALES],
        }
    }
}

/// The state of a rank's own elements of one bucket.
#[derive(Debug)]
pub(super) enum State {
    Full { m: Buffer, v: Buffer, master: Option<Buffer> },
    Compact { correction: Buffer, m: Buffer, v: Buffer, scales: Buffer },
}

impl State {
    /// Fresh state in the memory of `home` for `bucket`, whose weights are what they are now.
    /// Compact state needs bf16 weights.
    pub(super) fn new(
        kind: AdamWState,
        store: &Store,
        bucket: usize,
        home: Device,
    ) -> Result<State> {
        let n = store.buckets()[bucket].own.len();
        let [first, second, precision, scales] = kind.parts(store.dtype(), n);
        let zeros = |bytes: usize| Buffer::zeroed(home, bytes);
        match (kind, store.dtype()) {
            (AdamWState::Full, _) if store.grad_dtype() != DType::F32 => {
                Err(Error::internal("the full optimizer state takes f32 gradients"))
            }
            (AdamWState::Full, dtype) => {
                let master = match dtype {
                    DType::Bf16 => Some(master(store, bucket, zeros(precision)?)?),
                    _ => None,
                };
                Ok(State::Full { m: zeros(first)?, v: zeros(second)?, master })
            }
            (AdamWState::Compact, DType::Bf16) => {
                let (correction, scales) = (zeros(precision)?, zeros(scales)?);
                Ok(State::Compact { correction, m: zeros(first)?, v: zeros(second)?, scales })
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

    /// Adds the state of one parameter to `out`, as tensors `at/KIND/PARAMETER`: whole, without
    /// padding.
    pub(super) fn save<'a>(
        &'a self,
        store: &'a Store,
        id: ParamId,
        at: &str,
        out: &mut SnapshotBuilder<'a>,
    ) -> Result<()> {
        let (spec, bucket) = (&store.param(id).spec, store.param(id).bucket);
        for (kind, buffer, dtype) in self.columns() {
            let name = format!("{at}/{kind}/{}", spec.name);
            out.tensor(name, dtype, &spec.shape, move |to| {
                store.gather(id, &store.own_bucket(bucket, buffer, dtype.size()), to)
            });
        }
        if let State::Compact { scales, .. } = self {
            let name = format!("{at}/scales/{}", spec.name);
            let of = store.own_bucket(bucket, scales, SCALES);
            let shape = [store.every(id, BLOCK), 2];
            out.tensor(name, DType::F32, &shape, move |to| store.gather_every(id, BLOCK, &of, to));
        }
        Ok(())
    }

    /// Takes the state of one parameter from where [`State::save`] put it.
    pub(super) fn restore(
        &self,
        store: &Store,
        id: ParamId,
        at: &str,
        from: &Snapshot,
    ) -> Result<()> {
        let (spec, bucket) = (&store.param(id).spec, store.param(id).bucket);
        for (kind, buffer, dtype) in self.columns() {
            let name = format!("{at}/{kind}/{}", spec.name);
            let bytes = from.tensor(&name, dtype, &spec.shape)?;
            store.scatter(id, &store.own_bucket(bucket, buffer, dtype.size()), &bytes)?;
        }
        if let State::Compact { scales, .. } = self {
            let name = format!("{at}/scales/{}", spec.name);
            let bytes = from.tensor(&name, DType::F32, &[store.every(id, BLOCK), 2])?;
            store.scatter_every(id, BLOCK, &store.own_bucket(bucket, scales, SCALES), &bytes)?;
        }
        Ok(())
    }

    /// Returns the buffers with one element per parameter: name, buffer and element type.
    fn columns(&self) -> Vec<(&'static str, &Buffer, DType)> {
        match self {
            State::Full { m, v, master } => {
                let moments = [("m", m, DType::F32), ("v", v, DType::F32)];
                let master = master.as_ref().map(|b| ("master", b, DType::F32));
                moments.into_iter().chain(master).collect()
            }
            State::Compact { correction, m, v, .. } => {
                [("correction", correction), ("m", m), ("v", v)]
                    .map(|(kind, buffer)| (kind, buffer, DType::U8))
                    .to_vec()
            }
        }
    }

    /// Updates `w` by its gradient `g`, times `clip`; sets `broken` where that makes a number that
    /// is not finite.
    pub(super) fn update<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        op: AdamW,
        [w, g, clip, broken]: [Tensor; 4],
    ) -> Result<()> {
        let n = w.desc.shape.numel();
        let mut bind = |b: &'a Buffer, n, dtype| tape.bind(b.region(), Desc::new(&[n], dtype));
        match self {
            State::Full { m, v, master } => {
                let [m, v] = [m, v].map(|b| bind(b, n, DType::F32));
                let master = master.as_ref().map(|b| bind(b, n, DType::F32));
                adamw(tape, op, w, g, clip, Kept { m, v, broken, master })
            }
            State::Compact { correction, m, v, scales } => {
                let [correction, m, v] = [correction, m, v].map(|b| bind(b, n, DType::U8));
                let scales = bind(scales, n / BLOCK * 2, DType::F32);
                let codes = Codes { correction, m, v, scales, broken };
                adamw_compact(tape, AdamWCompact(op), w, g, clip, codes)
            }
        }
    }
}

/// Bytes of the scales of a block of 64 elements: one of each moment, f32.
const SCALES: usize = 8;

/// This rank's own weights of a bucket, bf16, as f32 in `to`; in pieces, for a copy of all would be
/// more than what is there later.
fn master(store: &Store, bucket: usize, to: Buffer) -> Result<Buffer> {
    const PIECE: usize = 1 << 20;
    let own = store.buckets()[bucket].own.clone();
    if store.device().is_fake() {
        return Ok(to);
    }
    for start in own.clone().step_by(PIECE) {
        let piece = start..(start + PIECE).min(own.end);
        let mut raw = vec![0u8; piece.len() * 2];
        store.weights(bucket, &piece).read(&mut raw)?;
        let wide: Vec<u8> = raw
            .chunks_exact(2)
            .flat_map(|b| [0, 0, b[0], b[1]]) // bf16 is the upper half of a little-endian f32
            .collect();
        to.write((start - own.start) * 4, &wide)?;
    }
    Ok(to)
}

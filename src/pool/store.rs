//! The parameter store: one flat buffer per segment, cut into one block per rank, where block `r`
//! is rank `r`'s tensor-parallel slice of every weight of the segment. The same cut serves ZeRO-3
//! (gather the blocks, reduce-scatter the gradients) and tensor-parallel generation (use the own
//! block in place), so a phase switch moves nothing.
//!
//! A segment has up to two flats: frozen parameters, and trained ones, which have gradients of the
//! same layout, in f32 or beside bf16 weights in bf16. Dimensions that do not divide by the number of
//! blocks are padded with zeros; reading and writing whole parameters hides the cut.

use crate::base::{DType, Elem, Error, Result, bf16};
use crate::device::{Buffer, Device, Region};
use crate::pool::grads::{Grads, Memory};
use crate::tensor::Desc;
use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Alignment of a parameter within its block, in elements. The compact optimizer state has a scale for every 64
/// neighbours (`op/adamw_compact.rs`), which must be of one parameter: others have other magnitudes.
const ALIGN: usize = 64;

/// How a weight is cut over ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    /// By output rows, each group of rows on its own (q, k and v heads of a fused projection).
    Rows(Vec<usize>),
    /// By input columns (attention output, MLP down projection).
    Cols,
    /// Not cut: every block holds the whole (norm weights, small vectors).
    Whole,
}

/// What the store must know of a parameter.
#[derive(Clone, Debug)]
pub struct ParamSpec {
    /// Canonical name, unique within the model.
    pub name: String,
    /// Number of the tape segment that uses it.
    pub segment: usize,
    /// Full shape: `[rows]` or `[rows, columns]`.
    pub shape: Vec<usize>,
    /// How it is cut over ranks.
    pub cut: Cut,
    /// Whether it is trained.
    pub trained: bool,
}

/// The number of a parameter in its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub usize);

/// A parameter with its place.
#[derive(Debug)]
pub struct Param {
    /// What it is.
    pub spec: ParamSpec,
    /// Which flat holds it.
    pub flat: usize,
    /// First element within each block.
    pub offset: usize,
    /// Shape of one block's slice.
    pub slice: Vec<usize>,
    /// Whether its gradient holds a value since the last reset.
    grad_set: Cell<bool>,
}

/// One flat buffer: `blocks` blocks of `block` elements.
#[derive(Debug)]
pub struct Flat {
    /// The tape segment.
    pub segment: usize,
    /// Whether its parameters are trained.
    pub trained: bool,
    /// Elements per block.
    pub block: usize,
    /// Weights in the store's dtype.
    pub weights: Buffer,
    /// Gradients, if trained.
    pub grads: Option<Grads>,
}

/// All parameters of one model.
#[derive(Debug)]
pub struct Store {
    id: u64,
    device: Device,
    dtype: DType,
    blocks: usize,
    params: Vec<Param>,
    flats: Vec<Flat>,
    grad_dtype: DType,
    grads: Memory,
    /// The memory of the gradients is counted as another store's.
    lodges: bool,
}

impl Store {
    /// Lays out and allocates `specs` in `blocks` blocks (the number of ranks), zeroed. Gradients are
    /// f32.
    pub fn new(
        device: Device,
        dtype: DType,
        blocks: usize,
        specs: Vec<ParamSpec>,
    ) -> Result<Store> {
        Store::with_grads(device, dtype, DType::F32, blocks, specs)
    }

    /// The same with gradients in `grads`: f32, or with bf16 weights bf16.
    pub fn with_grads(
        device: Device,
        dtype: DType,
        grads: DType,
        blocks: usize,
        specs: Vec<ParamSpec>,
    ) -> Result<Store> {
        if grads != DType::F32 && (grads, dtype) != (DType::Bf16, DType::Bf16) {
            return Err(Error::internal(format!("{grads} gradients of {dtype} weights")));
        }
        // 0 is no store.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mut keys: Vec<(usize, bool)> = specs.iter().map(|s| (s.segment, s.trained)).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut sizes = vec![0usize; keys.len()];
        let mut params = Vec::with_capacity(specs.len());
        for spec in specs {
            let flat = keys.binary_search(&(spec.segment, spec.trained)).expect("key is listed");
            let slice = slice_shape(&spec, blocks)?;
            let offset = sizes[flat];
            sizes[flat] += slice.iter().product::<usize>().next_multiple_of(ALIGN);
            params.push(Param { spec, flat, offset, slice, grad_set: Cell::new(false) });
        }
        let bytes = |&((_, trained), block): &((usize, bool), usize)| {
            if trained { block * blocks * grads.size() } else { 0 }
        };
        let keys: Vec<((usize, bool), usize)> = keys.into_iter().zip(sizes).collect();
        let memory = Memory::zeroed(device, keys.iter().map(bytes).sum())?;
        let mut at = 0;
        let flats = keys
            .iter()
            .map(|key| {
                let &((segment, trained), block) = key;
                let weights = Buffer::zeroed(device, block * blocks * dtype.size())?;
                let grads = trained.then(|| Grads::new(&memory, at, bytes(key)));
                at += bytes(key);
                Ok(Flat { segment, trained, block, weights, grads })
            })
            .collect::<Result<Vec<_>>>()?;
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let (grad_dtype, grads) = (grads, memory);
        Ok(Store { id, device, dtype, blocks, params, flats, grad_dtype, grads, lodges: false })
    }

    /// A number unique to this store within the process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Where the weights live.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Storage type of the weights.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Storage type of the gradients.
    pub fn grad_dtype(&self) -> DType {
        self.grad_dtype
    }

    /// Puts the gradients of both stores into the larger of their two buffers: for models that are
    /// trained in turn, where those of one are applied before the other gets any, which is checked.
    /// [`Store::bytes`] counts the buffer as this store's.
    pub fn share_grads(&mut self, other: &mut Store) -> Result<()> {
        if (self.device, self.grad_dtype) != (other.device, other.grad_dtype) {
            return Err(Error::internal("gradients on two devices or of two types to be shared"));
        }
        self.grads.claim(self.id)?;
        other.grads.claim(other.id)?;
        [&*self, other].iter().for_each(|store| store.reset_grads());
        let mine = self.grads.bytes() >= other.grads.bytes();
        let memory = if mine { self.grads.clone() } else { other.grads.clone() };
        for store in [&mut *self, &mut *other] {
            let grads = store.flats.iter_mut().filter_map(|f| f.grads.as_mut());
            grads.for_each(|g| g.move_to(&memory));
            store.grads = memory.clone();
        }
        other.lodges = true;
        Ok(())
    }

    /// All parameters, in order of their ids.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// One parameter.
    pub fn param(&self, id: ParamId) -> &Param {
        &self.params[id.0]
    }

    /// The parameter of that name.
    pub fn find(&self, name: &str) -> Option<ParamId> {
        self.params.iter().position(|p| p.spec.name == name).map(ParamId)
    }

    /// All flats, by segment, frozen before trained.
    pub fn flats(&self) -> &[Flat] {
        &self.flats
    }

    /// Bytes of weights and of gradients; a buffer of gradients that two stores share is counted once.
    pub fn bytes(&self) -> (usize, usize) {
        let weights = self.flats.iter().map(|f| f.weights.bytes()).sum();
        (weights, if self.lodges { 0 } else { self.grads.bytes() })
    }

    /// Memory of the weights of a parameter (one block) and of its gradient if it is trained.
    pub fn regions(&self, id: ParamId) -> (Region, Option<Region>) {
        let p = &self.params[id.0];
        let (flat, n) = (&self.flats[p.flat], p.slice.iter().product::<usize>());
        let (size, of_grad) = (self.dtype.size(), self.grad_dtype.size());
        let grad = flat.grads.as_ref().map(|g| g.slice(p.offset * of_grad, n * of_grad));
        (flat.weights.slice(p.offset * size, n * size), grad)
    }

    /// The shape and dtype under which operators see a parameter.
    pub fn desc(&self, id: ParamId) -> Desc {
        Desc::new(&self.params[id.0].slice, self.dtype)
    }

    /// Marks the gradient of `id` as holding a value and says whether it already did: the first
    /// writer sets, later ones add, so nothing is zero-filled. Fails while the memory holds gradients
    /// of another store.
    pub fn mark_grad(&self, id: ParamId) -> Result<bool> {
        self.grads.claim(self.id)?;
        Ok(self.params[id.0].grad_set.replace(true))
    }

    /// Whether a gradient waits to be applied.
    pub fn has_grads(&self) -> bool {
        self.params.iter().any(|p| p.grad_set.get())
    }

    /// Forgets all gradients.
    pub fn reset_grads(&self) {
        self.grads.release(self.id);
        self.params.iter().for_each(|p| p.grad_set.set(false));
    }

    /// Makes whole flats of gradients readable: zeroes those of parameters that received none since
    /// the last reset, which have one from here on, and the gaps between parameters, where a store that shares the memory may have
    /// left something. Fails while the memory holds gradients of another store.
    pub fn settle_grads(&self) -> Result<()> {
        self.grads.claim(self.id)?;
        let size = self.grad_dtype.size();
        for p in self.params.iter().filter(|p| p.spec.trained) {
            let (flat, n) = (&self.flats[p.flat], p.slice.iter().product::<usize>());
            let from = if p.grad_set.replace(true) { n } else { 0 };
            let bytes = (n.next_multiple_of(ALIGN) - from) * size;
            for r in 0..self.blocks {
                let at = (r * flat.block + p.offset + from) * size;
                self.device.clear(flat.grads.as_ref().expect("trained").slice(at, bytes))?;
            }
        }
        Ok(())
    }

    /// Sets a whole parameter from its row-major full-shape elements in the store's dtype.
    pub fn write_raw(&self, id: ParamId, full: &[u8]) -> Result<()> {
        self.scatter(id, &self.flats[self.params[id.0].flat].weights, self.dtype.size(), full)
    }

    /// A whole parameter as row-major full-shape elements in the store's dtype.
    pub fn read_raw(&self, id: ParamId) -> Result<Vec<u8>> {
        let mut full = vec![0; self.numel(id) * self.dtype.size()];
        self.read_raw_into(id, &mut full)?;
        Ok(full)
    }

    /// The same into `full`, which has its length.
    pub fn read_raw_into(&self, id: ParamId, full: &mut [u8]) -> Result<()> {
        let weights = self.flats[self.params[id.0].flat].weights.region();
        self.gather(id, weights, self.dtype.size(), full)
    }

    fn numel(&self, id: ParamId) -> usize {
        self.params[id.0].spec.shape.iter().product()
    }

    /// Sets a whole parameter from f32 values, rounding to the store's dtype.
    pub fn write_f32(&self, id: ParamId, full: &[f32]) -> Result<()> {
        match self.dtype {
            DType::Bf16 => {
                let rounded: Vec<bf16> =
                    full.iter().map(|v| <bf16 as Elem>::from_f32(*v)).collect();
                self.write_raw(id, bytemuck::cast_slice(&rounded))
            }
            _ => self.write_raw(id, bytemuck::cast_slice(full)),
        }
    }

    /// A whole parameter widened to f32.
    pub fn read_f32(&self, id: ParamId) -> Result<Vec<f32>> {
        Ok(widened(self.read_raw(id)?, self.dtype))
    }

    /// The whole gradient of a trained parameter, widened to f32.
    pub fn read_grad(&self, id: ParamId) -> Result<Vec<f32>> {
        let p = &self.params[id.0];
        let Some(grads) = &self.flats[p.flat].grads else {
            return Err(Error::internal(format!("{} has no gradient", p.spec.name)));
        };
        let mut raw = vec![0; self.numel(id) * self.grad_dtype.size()];
        self.gather(id, grads.region(), self.grad_dtype.size(), &mut raw)?;
        Ok(widened(raw, self.grad_dtype))
    }

    /// Fills `full` with what `from` has for a whole parameter, row-major: memory cut like the weights of
    /// its flat, with elements of `size` bytes.
    pub fn gather(&self, id: ParamId, from: Region, size: usize, full: &mut [u8]) -> Result<()> {
        let p = &self.params[id.0];
        if full.len() != self.numel(id) * size {
            return Err(Error::internal(format!("{}: {} bytes read", p.spec.name, full.len())));
        }
        for piece in pieces(p, self.blocks) {
            let at = piece.block * self.flats[p.flat].block + p.offset + piece.at;
            let to = &mut full[piece.full.start * size..piece.full.end * size];
            self.device.read(from.slice(at * size, to.len()), to)?;
        }
        Ok(())
    }

    /// Sets what `to` has for a whole parameter; see [`Store::gather`].
    pub fn scatter(&self, id: ParamId, to: &Buffer, size: usize, full: &[u8]) -> Result<()> {
        let p = &self.params[id.0];
        if full.len() != self.numel(id) * size {
            return Err(Error::internal(format!("{}: {} bytes written", p.spec.name, full.len())));
        }
        for piece in pieces(p, self.blocks) {
            let at = piece.block * self.flats[p.flat].block + p.offset + piece.at;
            to.write(at * size, &full[piece.full.start * size..piece.full.end * size])?;
        }
        Ok(())
    }

    /// The trained parameters.
    pub fn trained(&self) -> impl Iterator<Item = (ParamId, &Param)> {
        let all = self.params.iter().enumerate().map(|(i, p)| (ParamId(i), p));
        all.filter(|(_, p)| p.spec.trained)
    }

    /// Copies all weights from a store of the same layout.
    pub fn copy_from(&self, other: &Store) -> Result<()> {
        for (i, p) in self.params.iter().enumerate() {
            let Some(from) = other.find(&p.spec.name) else {
                return Err(Error::internal(format!("{} is not in the other store", p.spec.name)));
            };
            if self.dtype == other.dtype {
                self.write_raw(ParamId(i), &other.read_raw(from)?)?;
            } else {
                self.write_f32(ParamId(i), &other.read_f32(from)?)?;
            }
        }
        Ok(())
    }
}

/// A contiguous run of elements of a parameter that lies in one block.
struct Piece {
    block: usize,
    /// First element within the parameter's slice.
    at: usize,
    /// Elements of the full row-major parameter.
    full: Range<usize>,
}

/// Values of `dtype` as f32.
fn widened(raw: Vec<u8>, dtype: DType) -> Vec<f32> {
    match dtype {
        DType::Bf16 => {
            raw.chunks_exact(2).map(|b| bytemuck::pod_read_unaligned::<bf16>(b).to_f32()).collect()
        }
        _ => bytemuck::allocation::pod_collect_to_vec(&raw),
    }
}

fn slice_shape(spec: &ParamSpec, blocks: usize) -> Result<Vec<usize>> {
    let mut shape = spec.shape.clone();
    match &spec.cut {
        Cut::Whole => {}
        Cut::Rows(groups) => {
            if groups.iter().sum::<usize>() != shape[0] {
                return Err(Error::internal(format!("{}: row groups {groups:?}", spec.name)));
            }
            shape[0] = groups.iter().map(|g| g.div_ceil(blocks)).sum();
        }
        Cut::Cols => shape[1] = shape[1].div_ceil(blocks),
    }
    Ok(shape)
}

/// The pieces of a parameter over all blocks.
fn pieces(p: &Param, blocks: usize) -> Vec<Piece> {
    let shape = &p.spec.shape;
    let columns: usize = shape[1..].iter().product();
    let mut out = vec![];
    if blocks == 1 {
        // Nothing is cut: no row needs a transfer of its own.
        return vec![Piece { block: 0, at: 0, full: 0..shape[0] * columns }];
    }
    for block in 0..blocks {
        match &p.spec.cut {
            Cut::Whole => out.push(Piece { block, at: 0, full: 0..shape[0] * columns }),
            Cut::Rows(groups) => {
                let (mut first, mut at) = (0, 0);
                for group in groups {
                    let each = group.div_ceil(blocks);
                    let rows = (block * each).min(*group)..((block + 1) * each).min(*group);
                    let full = (first + rows.start) * columns..(first + rows.end) * columns;
                    out.push(Piece { block, at: at * columns, full });
                    first += group;
                    at += each;
                }
            }
            Cut::Cols => {
                let each = columns.div_ceil(blocks);
                let cols = (block * each).min(columns)..((block + 1) * each).min(columns);
                for row in 0..shape[0] {
                    let full = row * columns + cols.start..row * columns + cols.end;
                    out.push(Piece { block, at: row * each, full });
                }
            }
        }
    }
    out
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;

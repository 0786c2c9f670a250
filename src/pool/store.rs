//! The parameter store: one flat buffer per segment, cut into one block per rank, where block `r`
//! is rank `r`'s tensor-parallel slice of every weight of the segment. The same cut serves ZeRO-3
//! (gather the blocks, reduce-scatter the gradients) and tensor-parallel generation (use the own
//! block in place), so a phase switch moves nothing.
//!
//! A segment has up to two flats: frozen parameters, and trained ones, which have f32 gradients of
//! the same layout. Dimensions that do not divide by the number of blocks are padded with zeros;
//! reading and writing whole parameters hides the cut.

use crate::base::{DType, Elem, Error, Result, bf16};
use crate::device::{Buffer, Device, Region};
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
    /// Gradients in f32, if trained.
    pub grads: Option<Buffer>,
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
}

impl Store {
    /// Lays out and allocates `specs` in `blocks` blocks (the number of ranks), zeroed.
    pub fn new(
        device: Device,
        dtype: DType,
        blocks: usize,
        specs: Vec<ParamSpec>,
    ) -> Result<Store> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
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
        let flats = keys
            .iter()
            .zip(sizes)
            .map(|(&(segment, trained), block)| {
                let weights = Buffer::zeroed(device, block * blocks * dtype.size())?;
                let grads =
                    if trained { Some(Buffer::zeroed(device, block * blocks * 4)?) } else { None };
                Ok(Flat { segment, trained, block, weights, grads })
            })
            .collect::<Result<Vec<_>>>()?;
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Store { id, device, dtype, blocks, params, flats })
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

    /// Bytes of weights and of gradients.
    pub fn bytes(&self) -> (usize, usize) {
        let weights = self.flats.iter().map(|f| f.weights.bytes()).sum();
        let grads = self.flats.iter().filter_map(|f| f.grads.as_ref()).map(Buffer::bytes).sum();
        (weights, grads)
    }

    /// Memory of the weights of a parameter (one block) and of its gradient if it is trained.
    pub fn regions(&self, id: ParamId) -> (Region, Option<Region>) {
        let p = &self.params[id.0];
        let (flat, n) = (&self.flats[p.flat], p.slice.iter().product::<usize>());
        let size = self.dtype.size();
        let grad = flat.grads.as_ref().map(|g| g.slice(p.offset * 4, n * 4));
        (flat.weights.slice(p.offset * size, n * size), grad)
    }

    /// The shape and dtype under which operators see a parameter.
    pub fn desc(&self, id: ParamId) -> Desc {
        Desc::new(&self.params[id.0].slice, self.dtype)
    }

    /// Marks the gradient of `id` as holding a value and says whether it already did: the first
    /// writer sets, later ones add, so nothing is zero-filled.
    pub fn mark_grad(&self, id: ParamId) -> bool {
        self.params[id.0].grad_set.replace(true)
    }

    /// Forgets all gradients.
    pub fn reset_grads(&self) {
        self.params.iter().for_each(|p| p.grad_set.set(false));
    }

    /// Zeroes the gradients of trained parameters that received none since the last reset.
    pub fn settle_grads(&self) -> Result<()> {
        for p in self.params.iter().filter(|p| p.spec.trained && !p.grad_set.get()) {
            let flat = &self.flats[p.flat];
            let zeros = vec![0u8; p.slice.iter().product::<usize>() * 4];
            for r in 0..self.blocks {
                let at = (r * flat.block + p.offset) * 4;
                flat.grads.as_ref().expect("trained").write(at, &zeros)?;
            }
        }
        Ok(())
    }

    /// Sets a whole parameter from its row-major full-shape elements in the store's dtype.
    pub fn write_raw(&self, id: ParamId, full: &[u8]) -> Result<()> {
        let p = &self.params[id.0];
        let size = self.dtype.size();
        if full.len() != p.spec.shape.iter().product::<usize>() * size {
            return Err(Error::internal(format!("{}: {} bytes written", p.spec.name, full.len())));
        }
        for piece in pieces(p, self.blocks) {
            let at = piece.block * self.flats[p.flat].block + p.offset + piece.at;
            let src = piece.full.start * size..piece.full.end * size;
            self.flats[p.flat].weights.write(at * size, &full[src])?;
        }
        Ok(())
    }

    /// A whole parameter as row-major full-shape elements in the store's dtype.
    pub fn read_raw(&self, id: ParamId) -> Result<Vec<u8>> {
        let p = &self.params[id.0];
        self.gather(p, &self.flats[p.flat].weights, self.dtype.size())
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
        let raw = self.read_raw(id)?;
        Ok(match self.dtype {
            DType::Bf16 => bytemuck::allocation::pod_collect_to_vec::<u8, bf16>(&raw)
                .into_iter()
                .map(Elem::to_f32)
                .collect(),
            _ => bytemuck::allocation::pod_collect_to_vec(&raw),
        })
    }

    /// The whole gradient of a trained parameter.
    pub fn read_grad(&self, id: ParamId) -> Result<Vec<f32>> {
        let p = &self.params[id.0];
        let Some(grads) = &self.flats[p.flat].grads else {
            return Err(Error::internal(format!("{} has no gradient", p.spec.name)));
        };
        Ok(bytemuck::allocation::pod_collect_to_vec(&self.gather(p, grads, 4)?))
    }

    fn gather(&self, p: &Param, from: &Buffer, size: usize) -> Result<Vec<u8>> {
        let mut full = vec![0u8; p.spec.shape.iter().product::<usize>() * size];
        for piece in pieces(p, self.blocks) {
            let at = piece.block * self.flats[p.flat].block + p.offset + piece.at;
            from.read(at * size, &mut full[piece.full.start * size..piece.full.end * size])?;
        }
        Ok(full)
    }

    /// Copies all weights from a store of the same layout.
    pub fn copy_from(&self, other: &Store) -> Result<()> {
        for (i, p) in self.params.iter().enumerate() {
            let Some(from) = other.find(&p.spec.name) else {
                return Err(Error::internal(format!("{} is not in the other store", p.spec.name)));
            };
            self.write_f32(ParamId(i), &other.read_f32(from)?)?;
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
mod tests {
    use super::*;
    use crate::base::Rng;

    fn spec(name: &str, shape: &[usize], cut: Cut) -> ParamSpec {
        ParamSpec { name: name.into(), segment: 0, shape: shape.to_vec(), cut, trained: true }
    }

    fn specs() -> Vec<ParamSpec> {
        vec![
            spec("qkv", &[14, 5], Cut::Rows(vec![8, 3, 3])),
            spec("out", &[5, 7], Cut::Cols),
            spec("norm", &[5], Cut::Whole),
            spec("bias", &[14], Cut::Rows(vec![8, 3, 3])),
        ]
    }

    #[test]
    fn every_cut_reads_back_what_was_written() {
        let mut rng = Rng::new(5, 0);
        for blocks in 1..=4 {
            for dtype in [DType::F32, DType::Bf16] {
                let store = Store::new(Device::Cpu, dtype, blocks, specs()).unwrap();
                for i in 0..store.params().len() {
                    let n = store.params()[i].spec.shape.iter().product();
                    let v: Vec<f32> =
                        (0..n).map(|_| <bf16 as Elem>::from_f32(rng.normal()).to_f32()).collect();
                    store.write_f32(ParamId(i), &v).unwrap();
                    assert_eq!(store.read_f32(ParamId(i)).unwrap(), v);
                }
            }
        }
    }

    #[test]
    fn a_block_is_the_tensor_parallel_slice() {
        let store = Store::new(Device::Cpu, DType::F32, 2, specs()).unwrap();
        let v: Vec<f32> = (0..70).map(|i| i as f32).collect();
        store.write_f32(ParamId(0), &v).unwrap();
        // Rank 1 holds q rows 4..8, k row 2 (8 + 2), v row 2 (11 + 2), and padding.
        let p = store.param(ParamId(0));
        assert_eq!(p.slice, [8, 5]);
        let flat = &store.flats()[p.flat];
        let row = |r: usize| {
            let mut b = [0u8; 20];
            flat.weights.read((flat.block + p.offset + r * 5) * 4, &mut b).unwrap();
            bytemuck::allocation::pod_collect_to_vec::<u8, f32>(&b)
        };
        assert_eq!(row(0), &v[20..25]);
        assert_eq!(row(4), &v[50..55]);
        assert_eq!(row(5), [0.0; 5]);
        assert_eq!(row(6), &v[65..70]);
    }

    #[test]
    fn gradients_are_set_first_then_added_and_settled() {
        let store = Store::new(Device::Cpu, DType::F32, 1, specs()).unwrap();
        assert!(!store.mark_grad(ParamId(1)));
        assert!(store.mark_grad(ParamId(1)));
        store.flats()[0].grads.as_ref().unwrap().write(0, &7f32.to_ne_bytes()).unwrap();
        store.settle_grads().unwrap();
        assert_eq!(store.read_grad(ParamId(0)).unwrap(), [0.0; 70]);
        store.reset_grads();
        assert!(!store.mark_grad(ParamId(1)));
    }
}

//! The parameter store: one flat buffer per segment, cut into blocks, where block `b` is the
//! tensor-parallel slice of every weight of the segment for one rank of tensor parallelism. The
//! same buffer is shared out in equal parts among the ranks of ZeRO, whose number the blocks
//! divide, so a part lies within a block: with as many blocks as ranks a rank's part of the
//! training state is its slice for generation, and a phase switch moves nothing.
//!
//! A segment has up to two buckets: frozen parameters, and trained ones, which have gradients of
//! the same layout, in f32 or beside bf16 weights in bf16; a table has one of its own. What does
//! not divide is padded with zeros; reading and writing whole parameters hides the cut
//! (`full_params.rs`).

use super::partition::{Partition, Zero};
use super::shard_spec::ShardSpec;
use crate::base::{DType, Error, Result};
use crate::device::{Buffer, Device, Region};
use crate::pool::grads::{Grads, Memory};
use crate::tensor::Desc;
use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Alignment of a parameter within its block, and of a rank's part, in elements. The compact
/// optimizer state has a scale for every 64 neighbours (`op/adamw_compact.rs`), which must be of
/// one parameter: others have other magnitudes.
pub(super) const ALIGN: usize = 64;

/// The properties of a parameter that the store needs.
#[derive(Clone, Debug)]
pub struct ParamSpec {
    /// Canonical name, unique within the model.
    pub name: String,
    /// Number of the tape segment that uses it.
    pub segment: usize,
    /// Full shape: `[rows]` or `[rows, columns]`.
    pub shape: Vec<usize>,
    /// How it is cut into blocks.
    pub sharding: ShardSpec,
    /// True if it is trained.
    pub trained: bool,
}

/// The number of a parameter in its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub usize);

/// A parameter with its place.
#[derive(Debug)]
pub struct Param {
    /// Its properties.
    pub spec: ParamSpec,
    /// Which bucket holds it.
    pub bucket: usize,
    /// First element within each block.
    pub offset: usize,
    /// Shape of one block's slice.
    pub slice: Vec<usize>,
    /// By block, true if the gradient of its slice holds a value since the last reset.
    grad_set: Vec<Cell<bool>>,
}

impl Param {
    /// Elements of a block's slice.
    pub fn slice_len(&self) -> usize {
        self.slice.iter().product()
    }
}

/// The part of a parameter that operators see: all of it, or one block's slice. It is a run of
/// elements of its bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Portion {
    /// The parameter.
    pub id: ParamId,
    /// The block; none: the whole, which a table is end to end, and what is not cut is in block 0.
    pub block: Option<usize>,
}

/// One flat buffer: `blocks` blocks of `block` elements.
#[derive(Debug)]
pub struct FlatBucket {
    /// The tape segment.
    pub segment: usize,
    /// True if its parameters are trained.
    pub trained: bool,
    /// Elements of a block.
    pub block: usize,
    /// Elements of all blocks.
    pub len: usize,
    /// Those whose optimizer state this rank keeps, and which it updates.
    pub own: Range<usize>,
    /// Those whose weights are here.
    pub held: Range<usize>,
    /// The weights of these, in the store's dtype.
    pub weights: Buffer,
    /// Those whose gradients are here.
    pub grads_held: Range<usize>,
    /// The gradients of these, if trained.
    pub grads: Option<Grads>,
    /// True if the part of gradients that is kept holds a value since the last reset.
    reduced: Cell<bool>,
}

/// All parameters of one model.
#[derive(Debug)]
pub struct Store {
    id: u64,
    device: Device,
    /// Where the weights lie: there, or in the host's memory (`host.rs`).
    pub(super) home: Device,
    dtype: DType,
    partition: Partition,
    params: Vec<Param>,
    buckets: Vec<FlatBucket>,
    grad_dtype: DType,
    grads: Memory,
    /// The memory of the gradients is counted as another store's.
    lodges: bool,
    /// While this rank computes with its block alone: the block of each bucket, where this rank's
    /// part is less.
    pub(super) slices: Option<Vec<Option<Buffer>>>,
}

/// The part of `len` elements that is number `part` of `parts`.
fn part_of(len: usize, [part, parts]: [usize; 2]) -> Range<usize> {
    len / parts * part..len / parts * (part + 1)
}

/// Fails where no store can be laid out so.
fn fits(device: Device, dtype: DType, grads: DType, partition: &Partition) -> Result<()> {
    if grads != DType::F32 && (grads, dtype) != (DType::Bf16, DType::Bf16) {
        return Err(Error::internal(format!("{grads} gradients of {dtype} weights")));
    }
    let (blocks, ranks) = (partition.blocks, partition.comm.size());
    if blocks == 0 || ranks > 1 && !ranks.is_multiple_of(blocks) {
        return Err(Error::internal(format!("{blocks} blocks of {ranks} ranks")));
    }
    if matches!(device, Device::Cuda(_)) && ranks > 1 && !partition.comm.is_on_device() {
        return Err(Error::internal("ranks on GPUs that nothing of theirs connects"));
    }
    Ok(())
}

impl Store {
    /// Lays out and allocates `specs` on one rank, zeroed. Gradients are f32.
    pub fn new(device: Device, dtype: DType, specs: Vec<ParamSpec>) -> Result<Store> {
        Store::with_grads(device, dtype, DType::F32, Partition::alone(), specs)
    }

    /// The same for one of several ranks, with gradients in `grads`: f32, or with bf16 weights
    /// bf16.
    pub fn with_grads(
        device: Device,
        dtype: DType,
        grads: DType,
        partition: Partition,
        specs: Vec<ParamSpec>,
    ) -> Result<Store> {
        Store::lay_out(device, device, dtype, grads, partition, specs)
    }

    /// The same with weights in the memory of `home`, which is the device or the host.
    pub(super) fn lay_out(
        device: Device,
        home: Device,
        dtype: DType,
        grads: DType,
        partition: Partition,
        specs: Vec<ParamSpec>,
    ) -> Result<Store> {
        fits(device, dtype, grads, &partition)?;
        let (blocks, ranks) = (partition.blocks, partition.comm.size());
        // 0 is no store.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // All ranks lay out alike, whatever they share out. Tables come after the others of their
        // segment.
        let unit = ALIGN * ranks.div_ceil(blocks);
        let key = |i: usize, s: &ParamSpec| {
            (s.segment, s.trained, if s.sharding == ShardSpec::Table { i + 1 } else { 0 })
        };
        let mut keys: Vec<_> = specs.iter().enumerate().map(|(i, s)| key(i, s)).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut sizes = vec![0usize; keys.len()];
        let mut params = Vec::with_capacity(specs.len());
        for (i, spec) in specs.into_iter().enumerate() {
            let bucket = keys.binary_search(&key(i, &spec)).expect("key is listed");
            let slice = spec.sharding.slice(&spec.name, &spec.shape, blocks, unit)?;
            let offset = sizes[bucket];
            sizes[bucket] += slice.iter().product::<usize>().next_multiple_of(ALIGN);
            let grad_set = vec![Cell::new(false); blocks];
            params.push(Param { spec, bucket, offset, slice, grad_set });
        }
        let of = |stage: Zero| [partition.part(stage), partition.parts(stage)];
        let mut buckets = vec![];
        let mut grad_bytes = 0;
        for ((segment, trained, _), size) in keys.into_iter().zip(sizes) {
            let block = size.next_multiple_of(unit);
            let len = block * blocks;
            let held = part_of(len, of(Zero::Weights));
            let grads_held = part_of(len, of(Zero::Gradients));
            grad_bytes += if trained { grads_held.len() * grads.size() } else { 0 };
            buckets.push(FlatBucket {
                segment,
                trained,
                block,
                len,
                own: part_of(len, of(Zero::Optimizer)),
                weights: if home == device {
                    Buffer::zeroed(device, held.len() * dtype.size())?
                } else {
                    Buffer::locked(device, held.len() * dtype.size())?
                },
                held,
                grads_held,
                grads: None,
                reduced: Cell::new(false),
            });
        }
        let memory = Memory::zeroed(device, grad_bytes)?;
        let mut at = 0;
        for bucket in buckets.iter_mut().filter(|f| f.trained) {
            let bytes = bucket.grads_held.len() * grads.size();
            bucket.grads = Some(Grads::new(&memory, at, bytes));
            at += bytes;
        }
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let (grad_dtype, grads, lodges) = (grads, memory, false);
        Ok(Store {
            id,
            device,
            home,
            dtype,
            partition,
            params,
            buckets,
            grad_dtype,
            grads,
            lodges,
            slices: None,
        })
    }

    /// A number unique to this store within the process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Where it is computed with, and its weights live if they are not the host's
    /// ([`Store::is_on_host`]).
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

    /// The ranks that share it, and how.
    pub fn partition(&self) -> &Partition {
        &self.partition
    }

    /// True if ranks shard the weights, so that those of a segment are gathered when it runs.
    pub fn shares_weights(&self) -> bool {
        self.partition.parts(Zero::Weights) > 1
    }

    /// True if ranks shard the gradients, so that those of a segment are reduced when it has run.
    pub fn shares_grads(&self) -> bool {
        self.partition.parts(Zero::Gradients) > 1
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
            let grads = store.buckets.iter_mut().filter_map(|f| f.grads.as_mut());
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

    /// All buckets, by segment, frozen before trained.
    pub fn buckets(&self) -> &[FlatBucket] {
        &self.buckets
    }

    /// Bytes of weights and of gradients on the device; a buffer of gradients that two stores share
    /// is counted once.
    pub fn bytes(&self) -> (usize, usize) {
        (self.weights_on(self.device), if self.lodges { 0 } else { self.grads.bytes() })
    }

    /// The elements of its bucket that a portion is.
    pub fn elements(&self, portion: Portion) -> Range<usize> {
        let p = &self.params[portion.id.0];
        let len = match portion.block {
            None if p.spec.sharding == ShardSpec::Table => p.spec.shape.iter().product(),
            _ => p.slice_len(),
        };
        let start = portion.block.unwrap_or(0) * self.buckets[p.bucket].block + p.offset;
        start..start + len
    }

    /// The shape and dtype under which operators see it.
    pub fn desc(&self, portion: Portion) -> Desc {
        let p = &self.params[portion.id.0];
        let whole = portion.block.is_none() && p.spec.sharding == ShardSpec::Table;
        Desc::new(if whole { &p.spec.shape } else { &p.slice }, self.dtype)
    }

    /// Memory of the weights of `elements` of a bucket, which must be here.
    pub fn weights<'s>(&'s self, bucket: usize, elements: &Range<usize>) -> Region<'s> {
        let size = self.dtype.size();
        let of = |buffer: &'s Buffer, first: usize| {
            buffer.slice((elements.start - first) * size, elements.len() * size)
        };
        let slice = self.slices.as_ref().and_then(|s| s.get(bucket)).and_then(Option::as_ref);
        match (slice, self.tp_shard()) {
            (Some(slice), Some(tp_shard)) => of(slice, tp_shard * self.buckets[bucket].block),
            _ => of(&self.buckets[bucket].weights, self.buckets[bucket].held.start),
        }
    }

    /// Memory of the gradients of `elements` of a bucket of trained parameters, which must be here.
    pub fn grads(&self, bucket: usize, elements: &Range<usize>) -> Result<Region<'_>> {
        let (bucket, size) = (&self.buckets[bucket], self.grad_dtype.size());
        let grads = bucket.grads.as_ref().ok_or_else(|| Error::internal("frozen parameter"))?;
        Ok(grads.slice((elements.start - bucket.grads_held.start) * size, elements.len() * size))
    }

    /// Marks the gradient of `portion` as holding a value and says whether it already did: the
    /// first writer sets, later ones add, so nothing is zero-filled. Fails while the memory holds
    /// gradients of another store.
    pub fn mark_grad(&self, portion: Portion) -> Result<bool> {
        self.grads.claim(self.id)?;
        Ok(self.params[portion.id.0].grad_set[portion.block.unwrap_or(0)].replace(true))
    }

    /// True if a gradient waits to be applied.
    pub fn has_grads(&self) -> bool {
        let set = |p: &Param| p.grad_set.iter().any(Cell::get);
        self.params.iter().any(set) || self.buckets.iter().any(|f| f.reduced.get())
    }

    /// Forgets all gradients.
    pub fn reset_grads(&self) {
        self.grads.release(self.id);
        self.params.iter().flat_map(|p| &p.grad_set).for_each(|set| set.set(false));
        self.buckets.iter().for_each(|f| f.reduced.set(false));
    }

    /// Makes this rank's part of a bucket's gradients one to add to: it begins at zero.
    pub fn begin_grads(&self, bucket: usize) -> Result<()> {
        self.grads.claim(self.id)?;
        let bucket = &self.buckets[bucket];
        match &bucket.grads {
            Some(grads) if !bucket.reduced.replace(true) => grads.region().clear(),
            _ => Ok(()),
        }
    }

    /// Makes whole buckets of gradients readable: zeroes those of parameters that received none
    /// since the last reset, which have one from here on, and the gaps between parameters, where a
    /// store that shares the memory may have left something. Fails while the memory holds gradients
    /// of another store.
    pub fn zero_unset_grads(&self) -> Result<()> {
        for (i, bucket) in self.buckets.iter().enumerate().filter(|(_, f)| f.trained) {
            if self.shares_grads() {
                self.begin_grads(i)?;
                continue;
            }
            self.grads.claim(self.id)?;
            if self.partition.blocks > 1 && !self.replicas(i).is_empty() {
                return Err(Error::internal("copies of gradients that ranks do not share"));
            }
            let all = self.grads(i, &(0..bucket.len))?;
            self.zero_unset(i, all, &|id, block| self.params[id.0].grad_set[block].replace(true))?;
        }
        Ok(())
    }

    /// The trained parameters.
    pub fn trained(&self) -> impl Iterator<Item = (ParamId, &Param)> {
        let all = self.params.iter().enumerate().map(|(i, p)| (ParamId(i), p));
        all.filter(|(_, p)| p.spec.trained)
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;

//! Whole parameters, in and out of a store: the cut and the ranks are hidden here. What lies on
//! several ranks is put together by all of them: they make the same calls in the same order.

use super::{ParamId, Store};
use crate::base::{DType, Elem, Error, Result, bf16};
use crate::device::{Buffer, Region};
use std::ops::Range;

/// Memory that is laid out like a bucket: `region` has the elements `held` of it, `size` bytes
/// each.
#[derive(Clone, Debug)]
pub struct BucketView<'b> {
    /// The memory.
    pub region: Region<'b>,
    /// Elements of the bucket that it holds: all, or this rank's part.
    pub held: Range<usize>,
    /// Bytes of an element.
    pub size: usize,
}

impl Store {
    /// The weights of a bucket.
    fn weights_view(&self, bucket: usize) -> BucketView<'_> {
        let bucket = &self.buckets()[bucket];
        let (region, held) = (bucket.weights.region(), bucket.held.clone());
        BucketView { region, held, size: self.dtype().size() }
    }

    /// This rank's memory for its own elements of a bucket, `size` bytes for each.
    pub fn own_bucket<'b>(&self, bucket: usize, buffer: &'b Buffer, size: usize) -> BucketView<'b> {
        let (region, held) = (buffer.region(), self.buckets()[bucket].own.clone());
        BucketView { region, held, size }
    }

    fn numel(&self, id: ParamId) -> usize {
        self.param(id).spec.shape.iter().product()
    }

    /// The runs of its bucket that the slices of a parameter are, in order.
    fn slices(&self, id: ParamId) -> impl Iterator<Item = Range<usize>> {
        let (p, n) = (self.param(id), self.param(id).slice_len());
        let block = self.buckets()[p.bucket].block;
        (0..self.partition().blocks).map(move |b| b * block + p.offset..b * block + p.offset + n)
    }

    /// Fills `full` with what `from` has for a whole parameter, row-major.
    pub fn gather(&self, id: ParamId, from: &BucketView<'_>, full: &mut [u8]) -> Result<()> {
        let p = self.param(id);
        let size = from.size;
        if full.len() != self.numel(id) * size {
            return Err(Error::internal(format!("{}: {} bytes read", p.spec.name, full.len())));
        }
        let blocks = self.partition().blocks;
        let whole = from.held.len() == self.buckets()[p.bucket].len;
        if whole && blocks == 1 {
            return from.region.slice(p.offset * size, full.len()).read(full);
        }
        let raw = self.runs(from, self.slices(id), whole)?;
        for piece in p.spec.sharding.pieces(&p.spec.shape, &p.slice, blocks) {
            let to = &mut full[piece.full.start * size..piece.full.end * size];
            to.copy_from_slice(&raw[piece.at * size..][..to.len()]);
        }
        Ok(())
    }

    /// The elements `runs`, ascending, of what all ranks have in `from`, end to end; `whole`: this
    /// rank has all of them.
    pub(super) fn runs(
        &self,
        from: &BucketView<'_>,
        runs: impl Iterator<Item = Range<usize>>,
        whole: bool,
    ) -> Result<Vec<u8>> {
        let mut own = vec![];
        for run in runs {
            let Some(here) = meet(&run, &from.held) else { continue };
            let start = own.len();
            own.resize(start + here.len() * from.size, 0);
            let at = (here.start - from.held.start) * from.size;
            from.region.slice(at, own.len() - start).read(&mut own[start..])?;
        }
        if whole { Ok(own) } else { self.partition().comm.concat(&own) }
    }

    /// Sets what `to` has for a whole parameter, as far as it is here; see [`Store::gather`].
    pub fn scatter(&self, id: ParamId, to: &BucketView<'_>, full: &[u8]) -> Result<()> {
        let p = self.param(id);
        let size = to.size;
        if full.len() != self.numel(id) * size {
            return Err(Error::internal(format!("{}: {} bytes written", p.spec.name, full.len())));
        }
        let blocks = self.partition().blocks;
        let mut raw = vec![];
        let slices = if blocks == 1 {
            full
        } else {
            raw.resize(blocks * p.slice_len() * size, 0);
            for piece in p.spec.sharding.pieces(&p.spec.shape, &p.slice, blocks) {
                let from = &full[piece.full.start * size..piece.full.end * size];
                raw[piece.at * size..][..from.len()].copy_from_slice(from);
            }
            &raw
        };
        for (run, values) in self.slices(id).zip(slices.chunks(p.slice_len().max(1) * size)) {
            self.put(to, &run, values)?;
        }
        Ok(())
    }

    /// How many runs of `n` neighbours the slices of a parameter have; the last of a slice may be
    /// shorter.
    pub fn every(&self, id: ParamId, n: usize) -> usize {
        self.partition().blocks * self.param(id).slice_len().div_ceil(n)
    }

    /// Fills `all` with what `from` has for every `n` neighbours of a parameter, of which it has
    /// `from.size` bytes; in the order of the cut, which those of another cut cannot be told from.
    pub fn gather_every(
        &self,
        id: ParamId,
        n: usize,
        from: &BucketView<'_>,
        all: &mut [u8],
    ) -> Result<()> {
        let whole = from.held.len() == self.buckets()[self.param(id).bucket].len;
        let raw = self.runs(&every(n, from), self.slices(id).map(|run| each(n, &run)), whole)?;
        if raw.len() != all.len() {
            return Err(Error::internal(format!("{} bytes for {}", raw.len(), all.len())));
        }
        all.copy_from_slice(&raw);
        Ok(())
    }

    /// Sets what [`Store::gather_every`] reads, as far as it is here.
    pub fn scatter_every(
        &self,
        id: ParamId,
        n: usize,
        to: &BucketView<'_>,
        all: &[u8],
    ) -> Result<()> {
        let to = every(n, to);
        let mut all = all;
        for run in self.slices(id).map(|run| each(n, &run)) {
            let (values, rest) = all.split_at(run.len() * to.size);
            all = rest;
            self.put(&to, &run, values)?;
        }
        Ok(())
    }

    /// Sets the elements `run` of `to`, as far as they are here.
    fn put(&self, to: &BucketView<'_>, run: &Range<usize>, values: &[u8]) -> Result<()> {
        let Some(here) = meet(run, &to.held) else { return Ok(()) };
        let values = &values[(here.start - run.start) * to.size..(here.end - run.start) * to.size];
        let at = (here.start - to.held.start) * to.size;
        to.region.slice(at, values.len()).write(values)
    }

    /// Sets a whole parameter from its row-major full-shape elements in the store's dtype.
    pub fn write_raw(&self, id: ParamId, full: &[u8]) -> Result<()> {
        if self.is_on_host() {
            // The device may be copying what was there.
            self.finished()?;
        }
        self.scatter(id, &self.weights_view(self.param(id).bucket), full)
    }

    /// A whole parameter as row-major full-shape elements in the store's dtype.
    pub fn read_raw(&self, id: ParamId) -> Result<Vec<u8>> {
        let mut full = vec![0; self.numel(id) * self.dtype().size()];
        self.read_raw_into(id, &mut full)?;
        Ok(full)
    }

    /// The same into `full`, which has its length.
    pub fn read_raw_into(&self, id: ParamId, full: &mut [u8]) -> Result<()> {
        self.gather(id, &self.weights_view(self.param(id).bucket), full)
    }

    /// Sets a whole parameter from f32 values, rounding to the store's dtype.
    pub fn write_f32(&self, id: ParamId, full: &[f32]) -> Result<()> {
        match self.dtype() {
            DType::F32 => self.write_raw(id, bytemuck::cast_slice(full)),
            dtype => self.write_raw(id, &narrowed(full, dtype)),
        }
    }

    /// A whole parameter widened to f32.
    pub fn read_f32(&self, id: ParamId) -> Result<Vec<f32>> {
        Ok(widened(self.read_raw(id)?, self.dtype()))
    }

    /// The whole gradient of a trained parameter, widened to f32, once it is the sum over the
    /// ranks.
    pub fn read_grad(&self, id: ParamId) -> Result<Vec<f32>> {
        let p = self.param(id);
        let held = self.buckets()[p.bucket].own.clone();
        let (region, size) = (self.grads(p.bucket, &held)?, self.grad_dtype().size());
        let mut raw = vec![0; self.numel(id) * size];
        self.gather(id, &BucketView { region, held, size }, &mut raw)?;
        Ok(widened(raw, self.grad_dtype()))
    }

    /// Copies all weights from a store of the same model, however it is cut.
    pub fn copy_from(&self, other: &Store) -> Result<()> {
        for (i, p) in self.params().iter().enumerate() {
            let Some(from) = other.find(&p.spec.name) else {
                return Err(Error::internal(format!("{} is not in the other store", p.spec.name)));
            };
            if self.dtype() == other.dtype() {
                self.write_raw(ParamId(i), &other.read_raw(from)?)?;
            } else {
                self.write_f32(ParamId(i), &other.read_f32(from)?)?;
            }
        }
        Ok(())
    }
}

/// Memory that has `size` bytes for every `n` neighbours, as one of such groups.
fn every<'b>(n: usize, view: &BucketView<'b>) -> BucketView<'b> {
    BucketView { held: each(n, &view.held), ..view.clone() }
}

/// The groups of `n` neighbours that elements are in. Runs begin at multiples of `n`.
fn each(n: usize, run: &Range<usize>) -> Range<usize> {
    run.start / n..run.end.div_ceil(n)
}

/// The elements that are in both, if there are any.
fn meet(a: &Range<usize>, b: &Range<usize>) -> Option<Range<usize>> {
    let both = a.start.max(b.start)..a.end.min(b.end);
    (!both.is_empty()).then_some(both)
}

/// Values of `dtype` as f32.
pub(super) fn widened(raw: Vec<u8>, dtype: DType) -> Vec<f32> {
    match dtype {
        DType::Bf16 => {
            raw.chunks_exact(2).map(|b| bytemuck::pod_read_unaligned::<bf16>(b).to_f32()).collect()
        }
        _ => bytemuck::allocation::pod_collect_to_vec(&raw),
    }
}

/// f32 values rounded to `dtype`.
pub(super) fn narrowed(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::Bf16 => {
            let rounded: Vec<bf16> = values.iter().map(|v| Elem::from_f32(*v)).collect();
            bytemuck::cast_slice(&rounded).to_vec()
        }
        _ => bytemuck::cast_slice(values).to_vec(),
    }
}

//! Reductions. NCCL's own add in an order that it chooses. Between ranks of one machine every rank
//! gets all values of its share, some MiB at a time, and a kernel of ours reduces them in the order
//! of the ranks, in f32, and rounds once: over NVLink that moves as many bytes as a ring, and gives
//! the bits of ranks in one process. Between machines a ring moves less over the network, so
//! reductions are NCCL's there.

use super::api::{by as nccl_by, dtype as nccl_dtype};
use super::group::Group;
use super::world::Lane;
use crate::base::{DType, Error, Result};
use crate::comm::{Call, Reduce, Span};
use crate::device::cuda::constants::vector::{FLAG_ALIGNED, VEC_BYTES, VEC_THREADS};
use crate::device::cuda::params::RankSumParams;

/// Bytes of others' values that are held at a time.
pub(super) const HELD: usize = 64 << 20;
/// An all-reduce of which less than this comes together is one all-gather, reduced by every rank:
/// fewer steps.
const SMALL: usize = 1 << 20;
/// Least and unit of a piece.
const LINE: usize = 4096;
/// Threads of a block.
const THREADS: usize = VEC_THREADS;
/// Bytes that a thread takes at once.
const VECTOR: usize = VEC_BYTES;

/// A piece of every rank's values, one every `stride` bytes.
#[derive(Clone, Copy)]
struct Pieces {
    held: Span,
    stride: usize,
}

impl Group {
    /// Puts a reduction on the stream.
    ///
    /// # Safety
    /// As for [`Group::start`].
    pub(super) unsafe fn reduce(&self, lane: &mut Lane, call: Call) -> Result<()> {
        match call {
            Call::AllReduce { data, dtype, by } if !self.near => {
                let (to, count) = (data.ptr.cast(), data.bytes / dtype.size());
                let (dtype, by) = (nccl_dtype(dtype)?, nccl_by(by));
                self.one(lane, "all-reduce", |api, comm, stream| {
                    // SAFETY: `count` values on the device for which the caller vouches until the
                    // end.
                    unsafe { (api.all_reduce)(to, to, count, dtype, by, comm, stream) }
                })
            }
            Call::ReduceScatter { from, to, dtype, by } if !self.near => {
                let (from, to, count) = (from.ptr.cast(), to.ptr.cast(), to.bytes / dtype.size());
                let (dtype, by) = (nccl_dtype(dtype)?, nccl_by(by));
                self.one(lane, "reduce-scatter", |api, comm, stream| {
                    // SAFETY: the caller vouches for both until the end, and `Comm` has checked
                    // that `from` has `count` values for every rank.
                    unsafe { (api.reduce_scatter)(from, to, count, dtype, by, comm, stream) }
                })
            }
            Call::AllReduce { data, dtype, by }
                if data.bytes * self.size() <= SMALL.min(self.held) =>
            {
                let all = lane.held(0, self.device(), self.held)?;
                let nobody = (self.size(), Span::NOWHERE);
                // SAFETY: the caller vouches for `data`; the rest is the world's, which has room
                // for every rank's: the arm's condition. No rank's values are read elsewhere.
                unsafe {
                    self.gather(lane, data, all.slice(0, data.bytes * self.size()))?;
                    let pieces = Pieces { held: all, stride: data.bytes };
                    self.sum(lane, pieces, nobody, data, dtype, by)
                }
            }
            Call::AllReduce { data, dtype, by } => {
                let elements = data.bytes / dtype.size();
                let at = |r: usize| elements * r / self.size() * dtype.size();
                let share = |r: usize| data.slice(at(r), at(r + 1) - at(r));
                let shares: Vec<Span> = (0..self.size()).map(share).collect();
                // SAFETY: the shares are pieces of `data`, for which the caller vouches.
                unsafe {
                    self.in_order(lane, &shares, shares[self.rank], dtype, by)?;
                    self.exchange(lane, "all-reduce", |_| shares[self.rank], |r| shares[r])
                }
            }
            Call::ReduceScatter { from, to, dtype, by } => {
                let share = |r: usize| from.slice(r * to.bytes, to.bytes);
                let shares: Vec<Span> = (0..self.size()).map(share).collect();
                // SAFETY: the shares are pieces of `from`; the caller vouches for it and for `to`.
                unsafe { self.in_order(lane, &shares, to, dtype, by) }
            }
            other => Err(Error::internal(format!("{other:?} is no reduction"))),
        }
    }

    /// Reduces the ranks' `shares`, as they lie here, this rank's into `to`.
    ///
    /// # Safety
    /// As for [`Group::start`].
    unsafe fn in_order(
        &self,
        lane: &mut Lane,
        shares: &[Span],
        to: Span,
        dtype: DType,
        by: Reduce,
    ) -> Result<()> {
        let piece = (self.held / self.size() / LINE * LINE).max(LINE);
        let held = lane.held(0, self.device(), self.held.max(piece * self.size()))?;
        let longest = shares.iter().map(|s| s.bytes).max().unwrap_or(0);
        for start in (0..longest).step_by(piece) {
            let cut = |share: Span| {
                let at = start.min(share.bytes);
                share.slice(at, piece.min(share.bytes - at))
            };
            let (own, to) = (cut(shares[self.rank]), cut(to));
            let place = |r: usize| held.slice(r * piece, to.bytes);
            // SAFETY: the caller vouches for the shares and for `to`; the rest is the world's, with
            // a piece for every rank. The share of this rank is as long as `to`.
            unsafe {
                self.exchange(lane, "reduction", |r| cut(shares[r]), place)?;
                let pieces = Pieces { held, stride: piece };
                self.sum(lane, pieces, (self.rank, own), to, dtype, by)?;
            }
        }
        Ok(())
    }

    /// Puts the reduction of the ranks' `pieces` into `to`; that of rank `own.0` is in `own.1`.
    ///
    /// # Safety
    /// All is memory of the device, for which the caller vouches until the sum is over: `pieces`
    /// has every rank's values, each as long as `to`, but those of `own.0`, and `own.1` has those.
    unsafe fn sum(
        &self,
        lane: &mut Lane,
        Pieces { held, stride }: Pieces,
        own: (usize, Span),
        to: Span,
        dtype: DType,
        by: Reduce,
    ) -> Result<()> {
        let kernel = match dtype {
            DType::F32 => "rank_sum_f32",
            DType::Bf16 => "rank_sum_bf16",
            other => return Err(Error::internal(format!("a reduction of {other}"))),
        };
        let addresses = [held.ptr as usize, own.1.ptr as usize, to.ptr as usize, stride];
        let params = RankSumParams {
            held: held.ptr as u64,
            own: own.1.ptr as u64,
            y: to.ptr as u64,
            n: (to.bytes / dtype.size()) as u64,
            stride: (stride / dtype.size()) as u64,
            ranks: self.size() as u32,
            rank: own.0 as u32,
            max: u32::from(by == Reduce::Max),
            flags: if addresses.iter().all(|a| a.is_multiple_of(VECTOR)) {
                FLAG_ALIGNED
            } else {
                0
            },
        };
        let blocks = to.bytes.div_ceil(VECTOR * THREADS) as u32;
        // SAFETY: the caller vouches for the three addresses and their lengths, from which `n`,
        // `stride` and `ranks` follow.
        unsafe { lane.stream.launch(kernel, [blocks, 1, 1], THREADS as u32, 0, &params) }
    }
}

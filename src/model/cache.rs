//! The KV-cache: pages of 64 tokens per layer, `[page, kv_heads, 64, head_dim]`, keys and values
//! apart. Lengths are known at the start of a rollout, so each sequence gets its pages up front.

use crate::base::Result;
use crate::device::Buffer;
use crate::model::Model;
use crate::tensor::Desc;

pub use crate::op::cached_attention::PAGE;

/// Keys and values of a batch of sequences, for all layers.
#[derive(Debug)]
pub struct KvCache {
    /// Keys and values of each layer.
    pub layers: Vec<(Buffer, Buffer)>,
    /// Shape of each of those buffers.
    pub desc: Desc,
    /// Pages of one sequence.
    pub pages: usize,
}

impl KvCache {
    /// Room for `sequences` sequences of up to `max_len` tokens, of the heads that this rank
    /// generates with.
    pub fn new(model: &Model, sequences: usize, max_len: usize) -> Result<KvCache> {
        model.store.may_generate()?;
        let (arch, device) = (&model.arch, model.store.device());
        let pages = max_len.div_ceil(PAGE).max(1);
        let shape = [sequences * pages + 1, model.params.kv_heads, PAGE, arch.head_dim];
        let desc = Desc::new(&shape, model.store.dtype());
        let one = || Buffer::zeroed(device, desc.bytes());
        let layers = (0..arch.layers).map(|_| Ok((one()?, one()?))).collect::<Result<Vec<_>>>()?;
        Ok(KvCache { layers, desc, pages })
    }

    /// The pages of sequence `i`.
    pub fn table(&self, i: usize) -> impl Iterator<Item = i32> {
        (i * self.pages..(i + 1) * self.pages).map(|p| p as i32)
    }

    /// A page that belongs to no sequence.
    pub fn spare(&self) -> i32 {
        self.desc.shape.dims()[0] as i32 - 1
    }

    /// Size of all layers.
    pub fn bytes(&self) -> usize {
        2 * self.layers.len() * self.desc.bytes()
    }
}

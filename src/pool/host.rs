//! Frozen weights in the host's memory: the device has those of a bucket while a segment computes
//! with them, and of the next one, which come meanwhile, in the arena. It is the way of weights
//! that ranks share out, with a copy from the host as its beginning.

use super::partition::Partition;
use super::store::{ParamSpec, Store};
use crate::base::{DType, Error, Result};
use crate::device::Device;

impl Store {
    /// A store whose weights are in the host's memory, while operators run on `device`. All are
    /// frozen: training would send every change back. On the CPU it is like any other.
    pub fn on_host(
        device: Device,
        dtype: DType,
        partition: Partition,
        specs: Vec<ParamSpec>,
    ) -> Result<Store> {
        if let Some(spec) = specs.iter().find(|s| s.trained) {
            return Err(Error::internal(format!("{} is trained, and the host's", spec.name)));
        }
        Store::lay_out(device, device.host(), dtype, DType::F32, partition, specs)
    }

    /// True if the weights are in the host's memory, and operators run elsewhere.
    pub fn is_on_host(&self) -> bool {
        self.home != self.device()
    }

    /// Bytes of weights in the host's memory.
    pub fn host_bytes(&self) -> usize {
        self.weights_on(self.device().host())
    }

    /// Bytes of weights in the memory of `device`.
    pub(super) fn weights_on(&self, device: Device) -> usize {
        let there = self.buckets().iter().filter(|f| f.weights.device() == device);
        there.map(|f| f.weights.bytes()).sum()
    }

    /// Refuses to generate with weights that would come anew for every token.
    pub fn may_generate(&self) -> Result<()> {
        match self.is_on_host() {
            true => Err(Error::internal("generation with weights in the host's memory")),
            false => Ok(()),
        }
    }
}

//! The machines that can be planned for: published peaks of their cards and links.
//! `docs/performance.md` names the sources.

use crate::base::{Error, Result};
use crate::device::{Device, FakeDevice};
use crate::pipeline::doctor::free_memory;
use serde::Serialize;

/// One kind of card.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Card {
    /// As given to `--gpus`.
    pub(super) name: &'static str,
    /// GiB that a program finds free on it.
    pub(super) memory_gib: f64,
    /// Dense products of 16-bit numbers, TFLOP/s.
    pub(super) tflops: f64,
    /// Its memory, GB/s.
    pub(super) memory_gbs: f64,
    /// To the cards beside it, GB/s one way: NVLink, or PCIe where there is none.
    pub(super) link_gbs: f64,
    /// To cards of other nodes, its share of the node's network, GB/s one way.
    pub(super) network_gbs: f64,
    /// Dollars an hour, where the original's tables say so.
    pub(super) dollars: Option<f64>,
}

/// Cards of a node.
const NODE: usize = 8;

/// GiB of a card that the driver's context, kernels and the allocator's rounding take.
const RESERVED_GIB: f64 = 1.0;

#[rustfmt::skip]
pub(super) static CARDS: [Card; 6] = [
    Card { name: "v100-32g", memory_gib: 31.7, tflops: 125.0, memory_gbs: 900.0,
        link_gbs: 150.0, network_gbs: 6.25, dollars: None },
    Card { name: "a6000-48g", memory_gib: 47.5, tflops: 154.8, memory_gbs: 768.0,
        link_gbs: 32.0, network_gbs: 6.25, dollars: None },
    Card { name: "a100-40g", memory_gib: 39.4, tflops: 312.0, memory_gbs: 1555.0,
        link_gbs: 300.0, network_gbs: 25.0, dollars: None },
    Card { name: "a100-80g", memory_gib: 79.2, tflops: 312.0, memory_gbs: 2039.0,
        link_gbs: 300.0, network_gbs: 25.0, dollars: Some(4.0) },
    Card { name: "h100-80g", memory_gib: 79.2, tflops: 989.0, memory_gbs: 3350.0,
        link_gbs: 450.0, network_gbs: 50.0, dollars: None },
    Card { name: "h200-141g", memory_gib: 139.8, tflops: 989.0, memory_gbs: 4800.0,
        link_gbs: 450.0, network_gbs: 50.0, dollars: None },
];

/// The ranks that are planned for, and what each has.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Machine {
    pub(super) ranks: usize,
    /// How many of them are on one machine.
    pub(super) local: usize,
    /// None: the ranks are threads on this machine's CPU.
    pub(super) card: Option<Card>,
}

impl Machine {
    /// `ranks` ranks on the CPU of this machine.
    pub(super) fn here(ranks: usize) -> Machine {
        Machine { ranks, local: ranks, card: None }
    }

    /// Reads `NxCARD`, `CARD`, or `cpu`.
    pub(super) fn parse(text: &str, ranks: usize) -> Result<Machine> {
        let lower = text.to_lowercase();
        if lower == "cpu" {
            return Ok(Machine::here(ranks));
        }
        let (count, name) = match lower.split_once('x') {
            Some((count, name)) => (count.parse().ok().filter(|n| *n > 0), name),
            None => (Some(1), &*lower),
        };
        let card = CARDS.iter().find(|c| c.name == name);
        let (Some(count), Some(card)) = (count, card) else {
            let names: Vec<&str> = CARDS.iter().map(|c| c.name).collect();
            return Err(Error::user(format!(
                "--gpus {text:?} is no number of GPUs; write 8xa100-80g, say, or cpu; known are \
                 {}",
                names.join(", ")
            )));
        };
        Machine::of(count, *card)
    }

    /// `count` cards, whole nodes of them where they are more than one has.
    pub(super) fn of(count: usize, card: Card) -> Result<Machine> {
        if count > NODE && !count.is_multiple_of(NODE) || count > 1 << 14 {
            return Err(Error::user(format!(
                "--gpus asks for {count} GPUs; use up to {NODE}, or a multiple of {NODE} up to {}",
                1 << 14
            )));
        }
        Ok(Machine { ranks: count, local: count.min(NODE), card: Some(card) })
    }

    /// The device a rank computes on.
    pub(super) fn device(&self) -> Device {
        Device::Fake(self.kind())
    }

    pub(super) fn kind(&self) -> FakeDevice {
        if self.card.is_some() { FakeDevice::Cuda } else { FakeDevice::Cpu }
    }

    /// Bytes of memory that a rank may take.
    pub(super) fn memory(&self) -> f64 {
        match self.card {
            Some(card) => (card.memory_gib - RESERVED_GIB) * f64::from(1 << 30),
            None => free_memory().map_or(f64::INFINITY, |b| b as f64) / self.local as f64,
        }
    }

    /// In words.
    pub(super) fn name(&self) -> String {
        let nodes = self.ranks / self.local;
        match self.card {
            None if self.ranks == 1 => "this machine's CPU".to_string(),
            None => format!("{} ranks on this machine's CPU", self.ranks),
            Some(card) if nodes > 1 => format!("{nodes} nodes of {} {}", self.local, card.name),
            Some(card) => format!("{} x {}", self.ranks, card.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_read_as_they_are_written() {
        let of = |text| Machine::parse(text, 3);
        let eight = of("8xA100-80G").unwrap();
        assert_eq!((eight.ranks, eight.local, eight.name()), (8, 8, "8 x a100-80g".into()));
        let many = of("64xh100-80g").unwrap();
        assert_eq!((many.ranks, many.local, many.name()), (64, 8, "8 nodes of 8 h100-80g".into()));
        assert_eq!(of("a6000-48g").unwrap().ranks, 1);
        assert_eq!(of("cpu").unwrap(), Machine::here(3));
        for bad in ["", "8", "0xa100-80g", "8xa100", "-1xh100-80g", "8 x a100-80g", "12xa100-80g"] {
            let e = of(bad).unwrap_err();
            assert!(e.exit_code() == 2 && e.to_string().starts_with("--gpus "), "{bad}: {e}");
        }
    }
}

//! How long a phase takes, estimated from what it needs: operations and bytes over the rates that a
//! card reaches of its published peaks. No part of it is measured; `docs/performance.md` has the
//! formulas.

use super::dry::{Decode, Phase};
use super::machine::{Card, Machine};
use crate::comm::Count;

/// Share of the peak of products that training and scoring reach.
const PRODUCTS: f64 = 0.5;
/// Share of the memory's bandwidth that decoding and the optimizer reach.
const MEMORY: f64 = 0.8;
/// Share of a link's bandwidth that collectives reach.
const LINK: f64 = 0.8;
/// Seconds that a collective takes beside its bytes, within a node and between nodes.
const CALL: [f64; 2] = [15e-6, 40e-6];
/// Seconds of a kernel in a graph beside its work, and kernels of a layer in a decode step.
const KERNEL: f64 = 2.5e-6;
const KERNELS: usize = 10;
/// Bytes that AdamW moves for a parameter: gradient, master copy and both moments, weight.
const ADAM: f64 = 30.0;
/// GB/s of the host's link, over which gradients and weights of an offloaded optimizer go, and of
/// its memory.
const HOST_LINK: f64 = 20.0;
const HOST_MEMORY: f64 = 100.0;

/// Seconds of a phase on cards; nothing is known of this machine's CPU.
pub(super) fn seconds(phase: &Phase, machine: &Machine, offload: bool) -> Option<f64> {
    let card = machine.card?;
    let traffic = &phase.traffic;
    let nodes = machine.ranks / machine.local;
    let wide = call_seconds(&card, &traffic.wide, nodes > 1);
    let tensor = call_seconds(&card, &traffic.tensor, false);
    let products = |flops: u64| flops as f64 / (card.tflops * 1e12 * PRODUCTS);
    Some(match phase.decode {
        Some(decode) => {
            let steps = decode_seconds(&decode, phase.flops - decode.prompt_flops, &card);
            products(decode.prompt_flops) + steps + tensor + wide
        }
        // Weights are gathered and gradients reduced while others are computed with.
        None => products(phase.flops).max(wide) + tensor + update_seconds(phase, &card, offload),
    })
}

fn decode_seconds(decode: &Decode, flops: u64, card: &Card) -> f64 {
    let bytes = (decode.weights + decode.cache) as f64 / (card.memory_gbs * 1e9 * MEMORY);
    let steps = decode.steps.max(1) as f64;
    let flops = flops as f64 / steps / (card.tflops * 1e12 * PRODUCTS);
    let launched = (decode.layers * KERNELS) as f64 * KERNEL;
    steps * (bytes.max(flops) + launched)
}

fn update_seconds(phase: &Phase, card: &Card, offload: bool) -> f64 {
    let bytes = phase.updated as f64 * ADAM;
    match offload {
        false => bytes / (card.memory_gbs * 1e9 * MEMORY),
        // 4 bytes of gradient come, 2 of weight go.
        true => bytes / (HOST_MEMORY * 1e9) + phase.updated as f64 * 6.0 / (HOST_LINK * 1e9),
    }
}

fn call_seconds(card: &Card, sent: &[Count], between_nodes: bool) -> f64 {
    let rate = if between_nodes { card.network_gbs } else { card.link_gbs };
    let (bytes, calls) = sent.iter().fold((0, 0), |(b, c), s| (b + s.sent, c + s.calls));
    bytes as f64 / (rate * 1e9 * LINK) + calls as f64 * CALL[usize::from(between_nodes)]
}

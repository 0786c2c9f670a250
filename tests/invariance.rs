//! The split of a batch into micro-batches, their order, and activation checkpointing change neither
//! loss nor gradients.

mod common;

use common::*;
use duplex::base::{DType, Rng};
use duplex::engine::Engine;
use duplex::model::Head;
use duplex::op::weighted_sum::{WeightedSum, weighted_sum};
use duplex::pool::ParamId;
use duplex::tape::{Keep, Workspace};
use duplex::train::Batch;

/// Sum of losses, and all gradients of trained parameters.
fn gradients(
    family: &str,
    keep: Keep,
    with_lora: bool,
    batches: &[Vec<Vec<i32>>],
) -> (f32, Vec<Vec<f32>>) {
    let lora = with_lora.then(|| lora(family));
    let model = model(family, Head::Lm, DType::F32, true, lora.as_ref(), 7);
    // B of fresh adapters is zero, which would hide the gradient of A.
    for adapter in model.adapters() {
        let n = model.store.param(adapter.b).spec.shape.iter().product::<usize>();
        let mut rng = Rng::new(3, adapter.site);
        let b: Vec<f32> = (0..n).map(|_| 0.1 * rng.normal()).collect();
        model.store.write_f32(adapter.b, &b).unwrap();
    }
    let engine = Engine::trained(model, adamw(1e-3), keep).unwrap();
    let mut ws = Workspace::new(device(), usize::MAX).unwrap();
    let total: usize = batches.iter().flatten().map(|r| r.len() - 1).sum();
    let scale = -1.0 / total as f32;
    let mut sum = 0.0;
    for rows in batches {
        let rows: Vec<_> = rows.iter().map(|r| (r.as_slice(), 0..r.len() - 1)).collect();
        let mut batch = Batch::new(&rows);
        batch.columns = vec![vec![1.0; batch.select.len()]];
        let terms = engine
            .accumulate(&mut ws, "nll", &batch, None, &|tape, model, batch, hidden, select| {
                let targets = tape.input_i32(&batch.targets)?;
                let (logp, _) = model.logprobs(tape, hidden, select, targets, 1.0)?;
                let weights = tape.input_f32(&batch.columns[0])?;
                let loss = weighted_sum(tape, WeightedSum { scale }, logp, weights)?;
                Ok(duplex::engine::Terms { losses: vec![loss], stats: vec![] })
            })
            .unwrap();
        sum += terms[0][0];
    }
    engine.model.store.settle_grads().unwrap();
    let n = engine.model.store.params().len();
    (sum, (0..n).filter_map(|i| engine.model.store.read_grad(ParamId(i)).ok()).collect())
}

fn relative(a: &[f32], b: &[f32]) -> f64 {
    let diff: f64 = a.iter().zip(b).map(|(x, y)| f64::from(x - y).powi(2)).sum();
    let norm: f64 = b.iter().map(|y| f64::from(*y).powi(2)).sum();
    (diff / norm.max(1e-20)).sqrt()
}

fn rows() -> Vec<Vec<i32>> {
    let mut rng = Rng::new(21, 0);
    [40, 3, 17, 65, 2, 33, 64, 9]
        .map(|n| (0..n).map(|_| rng.below(VOCAB as u32) as i32).collect())
        .to_vec()
}

#[test]
fn micro_batches_in_any_order_give_the_same_loss_and_gradients() {
    for family in ALL_FAMILIES {
        for with_lora in [false, true] {
            let (loss, whole) = gradients(family, Keep::All, with_lora, &[rows()]);
            assert!(loss.is_finite() && whole.iter().all(|g| g.iter().any(|v| *v != 0.0)));
            let single: Vec<Vec<Vec<i32>>> = rows().into_iter().map(|r| vec![r]).collect();
            let backward: Vec<Vec<Vec<i32>>> = single.iter().rev().cloned().collect();
            for batches in [single, backward] {
                let (l, grads) = gradients(family, Keep::All, with_lora, &batches);
                assert!((l - loss).abs() < 1e-5 * loss.abs(), "{family} {l} {loss}");
                for (i, (a, b)) in grads.iter().zip(&whole).enumerate() {
                    assert!(relative(a, b) < 1e-5, "{family} gradient {i}: {}", relative(a, b));
                }
            }
        }
    }
}

#[test]
fn checkpointing_changes_no_bit() {
    for family in ALL_FAMILIES {
        for with_lora in [false, true] {
            let all = gradients(family, Keep::All, with_lora, &[rows()]);
            for keep in [Keep::Cheap, Keep::Input] {
                let other = gradients(family, keep, with_lora, &[rows()]);
                assert_eq!(all, other, "{family} {keep:?} lora {with_lora}");
            }
        }
    }
}

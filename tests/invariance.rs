//! The split of a batch into micro-batches, their order, and activation checkpointing change
//! neither loss nor gradients.

pub mod common;

use common::*;
use duplex::base::{DType, Rng};
use duplex::device::Device;
use duplex::model::{Head, LoadOptions, Model, Pass};
use duplex::op::weighted_sum::{WeightedSum, weighted_sum};
use duplex::pool::ParamId;
use duplex::tape::{ActivationCheckpointing, Workspace};
use duplex::train::Batch;

/// The settings that gradients are computed with.
#[derive(Clone, Copy)]
struct Setup {
    vocab: usize,
    device: Device,
    dtype: DType,
    grads: DType,
    checkpointing: ActivationCheckpointing,
    lora: bool,
}

/// All in f32.
fn exact(checkpointing: ActivationCheckpointing, lora: bool) -> Setup {
    let (device, dtype, grads) = (device(), DType::F32, DType::F32);
    Setup { vocab: VOCAB, device, dtype, grads, checkpointing, lora }
}

/// bf16 weights, and gradients of which type.
fn bf16(grads: DType, lora: bool) -> Setup {
    Setup { dtype: DType::Bf16, grads, ..exact(ActivationCheckpointing::None, lora) }
}

/// Sum of losses, and all gradients of trained parameters.
fn gradients(family: &str, setup: Setup, batches: &[Vec<Vec<i32>>]) -> (f32, Vec<Vec<f32>>) {
    let model = trained_model(family, setup);
    let mut ws = Workspace::new(setup.device, usize::MAX).unwrap();
    let total: usize = batches.iter().flatten().map(|r| r.len() - 1).sum();
    let op = WeightedSum { scale: -1.0 / total as f32 };
    let pass = Pass { checkpointing: setup.checkpointing, adapters: true, dropout: None };
    let mut sum = 0.0;
    for rows in batches {
        let rows: Vec<_> = rows.iter().map(|r| (r.as_slice(), 0..r.len() - 1)).collect();
        let loss = ws.run("nll", &Batch::new(&rows), |tape, batch: &Batch| {
            tape.record();
            let (hidden, select) = batch.hidden(tape, &model, pass)?;
            let targets = tape.input_i32(&batch.targets)?;
            let (logp, _) = model.logprobs(tape, hidden, select, targets, 1.0)?;
            let weights = tape.input_f32(&vec![1.0; batch.select.len()])?;
            let loss = weighted_sum(tape, op, logp, weights)?;
            tape.backward(loss)?;
            tape.read_f32(loss)
        });
        sum += loss.unwrap()[0];
    }
    assert_eq!(ws.misfits(), 0);
    model.store.zero_unset_grads().unwrap();
    let n = model.store.params().len();
    (sum, (0..n).filter_map(|i| model.store.read_grad(ParamId(i)).ok()).collect())
}

fn trained_model(family: &str, setup: Setup) -> Model {
    let Setup { device, dtype, grads, .. } = setup;
    let lora = setup.lora.then(|| lora(family));
    let options =
        LoadOptions { train: true, grads, lora, seed: 7, ..LoadOptions::frozen(Head::Lm, dtype) };
    let model = model_of(&config_of(family, setup.vocab, 512), &options.on(device));
    // B of fresh adapters is zero, which would hide the gradient of A.
    for adapter in model.adapters() {
        let n = model.store.param(adapter.b).spec.shape.iter().product::<usize>();
        let mut rng = Rng::new(3, adapter.site);
        let b: Vec<f32> = (0..n).map(|_| 0.1 * rng.normal()).collect();
        model.store.write_f32(adapter.b, &b).unwrap();
    }
    model
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
            let (loss, whole) =
                gradients(family, exact(ActivationCheckpointing::None, with_lora), &[rows()]);
            assert!(loss.is_finite() && whole.iter().all(|g| g.iter().any(|v| *v != 0.0)));
            let single: Vec<Vec<Vec<i32>>> = rows().into_iter().map(|r| vec![r]).collect();
            let backward: Vec<Vec<Vec<i32>>> = single.iter().rev().cloned().collect();
            for batches in [single, backward] {
                let (l, grads) =
                    gradients(family, exact(ActivationCheckpointing::None, with_lora), &batches);
                assert!((l - loss).abs() < 1e-5 * loss.abs(), "{family} {l} {loss}");
                for (i, (a, b)) in grads.iter().zip(&whole).enumerate() {
                    assert!(relative(a, b) < 1e-5, "{family} gradient {i}: {}", relative(a, b));
                }
            }
        }
    }
}

/// Rows of random length, whose logits go through in shares that differ from one micro-batch to the
/// next.
#[test]
fn micro_batches_of_unequal_rows_agree_under_a_large_vocabulary() {
    let (mut rng, emulated) = (fresh_rng(), device() == Device::Emulated);
    let (vocab, longest) = if emulated { (151_936, 12) } else { (49_152, 400) };
    let setup = Setup { vocab, ..exact(ActivationCheckpointing::None, false) };
    let rows: Vec<Vec<i32>> = (0..4).map(|_| row(&mut rng, vocab, 5, longest)).collect();
    let (loss, whole) = gradients("llama", setup, std::slice::from_ref(&rows));
    assert!(loss.is_finite() && whole.iter().all(|g| g.iter().any(|v| *v != 0.0)));
    // The largest micro-batch first: the others run as it was planned.
    let (all, single) = (rows.iter().map(|r| vec![r.clone()]), rows[0].clone());
    let mut falling: Vec<Vec<Vec<i32>>> = all.collect();
    falling.sort_by_key(|rows| std::cmp::Reverse(rows[0].len()));
    for batches in [falling, vec![rows[1..].to_vec(), vec![single]]] {
        let setup = Setup { checkpointing: ActivationCheckpointing::Full, ..setup };
        let (l, grads) = gradients("llama", setup, &batches);
        assert!((l - loss).abs() < 1e-5 * loss.abs(), "{l} {loss}");
        for (i, (a, b)) in grads.iter().zip(&whole).enumerate() {
            assert!(relative(a, b) < 1e-5, "gradient {i}: {}", relative(a, b));
        }
    }
}

#[test]
fn checkpointing_changes_no_bit() {
    for family in ALL_FAMILIES {
        for with_lora in [false, true] {
            for setup in
                [exact(ActivationCheckpointing::None, with_lora), bf16(DType::Bf16, with_lora)]
            {
                let all = gradients(family, setup, &[rows()]);
                for checkpointing in
                    [ActivationCheckpointing::Selective, ActivationCheckpointing::Full]
                {
                    let other = gradients(family, Setup { checkpointing, ..setup }, &[rows()]);
                    assert_eq!(
                        all, other,
                        "{family} {checkpointing:?} lora {with_lora} {}",
                        setup.grads
                    );
                }
            }
        }
    }
}

/// Trained parameters that get gradients from two operators: an embedding that is the head too.
fn tied(family: &str, setup: Setup) -> Vec<bool> {
    let model = trained_model(family, setup);
    let both = model.params.head == model.params.tokens;
    let trained =
        model.store.params().iter().enumerate().filter(|(_, p)| p.spec.trained).map(|(i, _)| i);
    trained.map(|i| both && ParamId(i) == model.params.head).collect()
}

#[test]
fn bf16_gradients_are_f32_ones_rounded_once_or_nearly() {
    for family in ALL_FAMILIES {
        for with_lora in [false, true] {
            let [wide, narrow] = [DType::F32, DType::Bf16].map(|grads| bf16(grads, with_lora));
            let two: Vec<Vec<Vec<i32>>> = rows().chunks(4).map(|c| c.to_vec()).collect();
            for batches in [vec![rows()], two] {
                let (loss, want) = gradients(family, wide, &batches);
                let (same, got) = gradients(family, narrow, &batches);
                assert_eq!(loss, same, "{family}");
                let tied = tied(family, wide);
                assert_eq!(tied.len(), want.len());
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    assert!(got.iter().any(|g| *g != 0.0), "{family} gradient {i}");
                    if batches.len() == 1 && !tied[i] {
                        let once: Vec<f32> =
                            want.iter().map(|w| half::bf16::from_f32(*w).to_f32()).collect();
                        assert!(*got == once, "{family} gradient {i} lora {with_lora}");
                    }
                    let far = relative(got, want);
                    assert!(far < 1.0 / 256.0, "{family} gradient {i}: {far}");
                }
            }
        }
    }
}

/// Rounding gradients to bf16 puts the devices no further apart than their bf16 activations do, but
/// for that rounding. Sums that are zero but for rounding have no relative distance.
#[cfg(feature = "emulator")]
#[test]
fn bf16_gradients_of_the_emulated_device_are_near_those_of_the_cpu() {
    for family in FAMILIES {
        for with_lora in [false, true] {
            let on = |device, grads| {
                gradients(family, Setup { device, ..bf16(grads, with_lora) }, &[rows()]).1
            };
            let [wide, narrow] = [DType::F32, DType::Bf16].map(|grads| {
                let (cpu, emulated) = (on(Device::Cpu, grads), on(Device::Emulated, grads));
                let largest = cpu.iter().flatten().fold(0f32, |m, g| m.max(g.abs()));
                let apart = |(a, b): (&Vec<f32>, &Vec<f32>)| {
                    let tiny = b.iter().all(|g| g.abs() < 1e-3 * largest);
                    if tiny { 0.0 } else { relative(a, b) }
                };
                emulated.iter().zip(&cpu).map(apart).collect::<Vec<f64>>()
            });
            for (i, (wide, narrow)) in wide.iter().zip(&narrow).enumerate() {
                assert!(*wide < 0.06, "{family} gradient {i}: {wide}");
                assert!((narrow - wide).abs() < 1.0 / 128.0, "{family} {i}: {narrow} {wide}");
            }
        }
    }
}

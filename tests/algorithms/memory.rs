//! Micro-batches that memory does not suffice for, and what dropout draws in micro-batches of any
//! size.

use crate::common::*;
use crate::setup::*;
use duplex::algo::*;
use duplex::base::{DType, Kind, Rng};
use duplex::data::{PairExample, SftExample};
use duplex::engine::Engine;
use duplex::model::{Head, LoraConfig, Model};
use duplex::tape::{ActivationCheckpointing, Workspace};

/// Rows of one length, so that halves of a micro-batch are micro-batches of half as many tokens.
fn rows(n: usize, len: usize) -> Vec<SftExample> {
    let mut rng = Rng::new(17, 0);
    (0..n).map(|_| SftExample::new(random_ids(&mut rng, len), 3)).collect()
}

fn sft_of(model: Model, step: StepConfig, loss_on_prompt: bool) -> SftTrainer {
    let engine = Engine::trained(model, adamw(1e-2), ActivationCheckpointing::None).unwrap();
    sft_trainer(engine, step, loss_on_prompt)
}

fn sft(family: &str, micro: usize) -> SftTrainer {
    sft_of(model(family, Head::Lm, DType::F32, true, None, 5), step_config(micro), true)
}

/// Two steps, and what was told of memory.
fn train(trainer: &mut SftTrainer, ws: &mut Workspace, rows: &[SftExample]) -> Option<String> {
    let rows: Vec<&SftExample> = rows.iter().collect();
    for _ in 0..2 {
        trainer.train(ws, &rows).unwrap();
    }
    ws.take_notice()
}

#[test]
fn a_micro_batch_without_memory_is_halved_and_the_result_is_that_of_smaller_ones() {
    let rows = rows(8, 40);
    for family in FAMILIES {
        let mut whole = sft(family, 320);
        let mut ws = workspace();
        assert_eq!(train(&mut whole, &mut ws, &rows), None);
        let mut last = ws.bytes();
        for parts in [2, 4, 8] {
            let (mut small, mut ws) = (sft(family, 320 / parts), workspace());
            assert_eq!(train(&mut small, &mut ws, &rows), None);
            assert!(ws.bytes() < last, "{family}: {} of {last}", ws.bytes());
            last = ws.bytes();
            let mut halved = sft(family, 320);
            let mut tight = Workspace::new(device(), last).unwrap();
            let told = train(&mut halved, &mut tight, &rows).expect("something to be told");
            let want = ["8 rows with 320 tokens", "--micro-batch-tokens 160", "--memory-limit"];
            assert!(want.iter().all(|part| told.contains(part)), "{told}");
            assert_eq!(tight.bytes(), last);
            assert!(weights(&halved.engine.model) == weights(&small.engine.model), "{family}");
            let (a, b) = (gradients(&halved.engine.model), gradients(&whole.engine.model));
            assert!(relative(&a, &b) < 1e-3, "{family}: {}", relative(&a, &b));
            let all: Vec<&SftExample> = rows.iter().collect();
            // Without gradients all of it may fit: another order of the sum.
            let [a, b] = [(&halved, &mut tight), (&small, &mut ws)]
                .map(|(trainer, ws)| f64::from(trainer.evaluate(ws, &all).unwrap().loss));
            close(a, b, 1e-5);
        }
    }
}

#[test]
fn one_row_without_memory_ends_with_numbers_and_flags() {
    let rows = rows(3, 40);
    let rows: Vec<&SftExample> = rows.iter().collect();
    let mut trainer = sft("llama", 120);
    let before = weights(&trainer.engine.model);
    let mut ws = Workspace::new(device(), 10_000).unwrap();
    let e = trainer.train(&mut ws, &rows).unwrap_err();
    assert_eq!((e.kind(), e.exit_code()), (Kind::Memory, 3));
    let parts = ["MiB of activations", "[40, 1, 39", "--memory-limit is 0.0 MiB"];
    let flags = ["--gradient-checkpointing full", "--max-seq-len", "--dtype bf16"];
    let all = [&parts[..], &flags].concat();
    assert!(all.iter().all(|part| e.to_string().contains(part)), "{e}");
    assert!(before == weights(&trainer.engine.model) && ws.bytes() <= 10_000);
    // The same workspace serves what fits.
    ws = workspace();
    trainer.train(&mut ws, &rows).unwrap();
}

/// Sizes whose largest never come together: many short rows, then one long.
#[test]
fn shapes_that_fit_one_by_one_need_not_fit_together() {
    let (short, long) = (rows(16, 5), rows(1, 80));
    let sizes = [&short, &long].map(|rows| {
        let (mut trainer, mut ws) = (sft("opt", 80), workspace());
        train(&mut trainer, &mut ws, rows);
        ws.bytes()
    });
    let limit = sizes[0].max(sizes[1]);
    let mut ws = Workspace::new(device(), limit).unwrap();
    let mut trainer = sft("opt", 80);
    for rows in [&short, &long, &short] {
        assert_eq!(train(&mut trainer, &mut ws, rows), None, "{sizes:?}");
    }
}

#[test]
fn ppo_goes_on_in_half_micro_batches() {
    let run = |mut ws: Workspace| {
        let mut trainer = OnlineTrainer::new(engines("gpt2", 1e-3), ppo_config()).unwrap();
        let rows: Vec<Vec<i32>> = (0..8).map(|i| vec![3 + i; 6]).collect();
        let experience = experience(&mut trainer, &mut ws, &rows);
        let stats = trainer.train_rlhf(&mut ws, &experience, &[]).unwrap();
        (stats, ws)
    };
    let (want, mut ws) = run(workspace());
    assert_eq!(ws.take_notice(), None);
    let of = |updates: bool| {
        let all = ws.programs().into_iter().filter(|p| p.0.starts_with("ppo") == updates);
        all.map(|p| p.1).max().unwrap()
    };
    let limit = of(false).max(of(true) * 6 / 10);
    assert!(limit < of(true), "{limit} {:?}", ws.programs());
    let (got, mut ws) = run(Workspace::new(device(), limit).unwrap());
    assert!(ws.take_notice().is_some() && ws.take_notice().is_none());
    assert_eq!(got.first_ratio_deviation, 0.0);
    for (got, want) in [
        (got.policy_loss, want.policy_loss),
        (got.value_loss, want.value_loss),
        (got.actor_grad_norm, want.actor_grad_norm),
        (got.critic_grad_norm, want.critic_grad_norm),
    ] {
        close(f64::from(got), f64::from(want), 1e-4);
    }
}

/// A model with adapters that do something.
fn adapted(head: Head) -> Model {
    let lora = LoraConfig { dropout: 0.4, ..lora("llama") };
    let model = model("llama", head, DType::F32, true, Some(&lora), 5);
    for adapter in model.adapters() {
        let n = model.store.param(adapter.b).spec.shape.iter().product::<usize>();
        let mut rng = Rng::new(3, adapter.site);
        let b: Vec<f32> = (0..n).map(|_| 0.3 * rng.normal()).collect();
        model.store.write_f32(adapter.b, &b).unwrap();
    }
    model
}

#[test]
fn dropout_draws_the_same_in_micro_batches_of_any_size() {
    let mut ws = workspace();
    let mut rng = Rng::new(23, 0);
    let mut ids = || {
        let n = 2 + rng.below(30) as usize;
        random_ids(&mut rng, n)
    };
    let examples: Vec<SftExample> = (0..9).map(|i| SftExample::new(ids(), i % 3)).collect();
    // One that predicts nothing still has its numbers.
    let none = SftExample::new(vec![1, 2, 3], 3);
    let mut examples: Vec<&SftExample> = examples.iter().collect();
    examples.insert(4, &none);
    let pairs: Vec<PairExample> = (0..5)
        .map(|_| PairExample {
            prompt_len: 1,
            chosen: ids(),
            rejected: ids(),
            ..PairExample::default()
        })
        .collect();
    let pairs: Vec<&PairExample> = pairs.iter().collect();
    let mut run = |micro: usize, seed: u64| {
        let step = StepConfig { seed, ..step_config(micro) };
        let mut sft = sft_of(adapted(Head::Lm), step.clone(), false);
        let first = sft.train(&mut ws, &examples).unwrap().loss;
        let engine =
            Engine::trained(adapted(Head::Score), adamw(1e-2), ActivationCheckpointing::None)
                .unwrap();
        let mut reward = reward_trainer(engine, step, RewardLoss::End);
        let second = reward.train(&mut ws, &pairs).unwrap().loss;
        ([first, second], [gradients(&sft.engine.model), gradients(&reward.engine.model)])
    };
    let (losses, want) = run(10_000, 3);
    for micro in [1, 40, 90] {
        let (got_losses, got) = run(micro, 3);
        for i in 0..2 {
            close(f64::from(got_losses[i]), f64::from(losses[i]), 1e-5);
            assert!(relative(&got[i], &want[i]) < 1e-4, "{micro}: {}", relative(&got[i], &want[i]));
        }
    }
    let (_, other) = run(10_000, 4);
    assert!((0..2).all(|i| relative(&other[i], &want[i]) > 1e-2));
}

//! Frozen models whose weights are in the host's memory: the bits of those on the device, which
//! holds none of them.

use crate::common::device::device;
use crate::common::*;
use crate::setup::*;
use duplex::algo::{OnlineConfig, OnlineModels, OnlineTrainer, Reference};
use duplex::base::{DType, Result};
use duplex::comm::run_ranks;
use duplex::device::Device;
use duplex::engine::Engine;
use duplex::model::{Head, LoadOptions, Model};
use duplex::pool::{Partition, Zero};
use duplex::rollout::Sampling;
use duplex::tape::{ActivationCheckpointing, Workspace};
use duplex::train::Batch;
use std::time::Duration;

/// A device with kernels: the CPU has nothing to move.
fn kernels() -> Device {
    if device().has_kernels() { device() } else { Device::Emulated }
}

fn space() -> Workspace {
    Workspace::new(kernels(), usize::MAX).unwrap()
}

fn options(head: Head, dtype: DType, offload: bool, partition: &Partition) -> LoadOptions {
    let partition = partition.clone();
    LoadOptions { seed: 4, offload, partition, ..LoadOptions::frozen(head, dtype).on(kernels()) }
}

/// Returns a frozen model's outputs for three rows, then for the last two of them, and the bytes of
/// the arena.
fn scored(family: &str, of: (Head, DType), offload: bool, p: &Partition) -> (Vec<f32>, usize) {
    let model = model_as(family, &options(of.0, of.1, offload, p));
    let store = &model.store;
    assert_eq!(store.is_on_host(), offload);
    assert_eq!(store.bytes().0 == 0, offload);
    assert_eq!(store.host_bytes() > 0, offload);
    let engine = Engine::frozen(model);
    let mut ws = space();
    let rows = prompts(3, 3);
    let mut out = vec![];
    for rows in [&rows[..], &rows[1..]] {
        let rows: Vec<_> = rows.iter().map(|ids| (ids.as_slice(), 0..ids.len())).collect();
        let batch = Batch::new(&rows);
        out.extend(match of.0 {
            Head::Lm => engine.logprobs(&mut ws, &batch, 0.9, true).unwrap(),
            Head::Score => engine.scores(&mut ws, &batch).unwrap(),
        });
    }
    (out, ws.bytes())
}

#[test]
fn frozen_models_of_the_host_say_what_those_of_the_device_say() {
    let kinds = [(Head::Lm, DType::F32), (Head::Lm, DType::Bf16), (Head::Score, DType::F32)];
    for (family, of) in [("opt", kinds[0]), ("llama", kinds[1]), ("gpt2", kinds[2])] {
        let alone = Partition::alone();
        let (want, arena) = scored(family, of, false, &alone);
        let (got, more) = scored(family, of, true, &alone);
        assert_eq!(got, want, "{family}");
        assert!(want.iter().any(|v| *v != want[0]));
        // Weights come into the arena: two buckets at a time, of four at least.
        let weights = model_as(family, &options(of.0, of.1, true, &alone)).store.host_bytes();
        assert!(arena < more && more <= arena + weights, "{family}: {arena} {more} {weights}");
        // Cards are not shared out yet.
        let ranks = if kernels() == Device::Emulated { 2 } else { 1 };
        for stage in [Zero::Nothing, Zero::Weights] {
            let run = |comm| Ok(scored(family, of, true, &Partition::new(comm, stage, 1)?));
            for (got, _) in run_ranks(ranks, Duration::from_secs(60), run).unwrap() {
                assert_eq!(got, want, "{family}, stage {stage}");
            }
        }
    }
}

#[test]
fn weights_of_the_host_are_loaded_and_saved_whole() {
    let all = |offload: bool, p: &Partition| {
        weights(&model_as("llama", &options(Head::Lm, DType::Bf16, offload, p)))
    };
    let want = all(false, &Partition::alone());
    assert!(all(true, &Partition::alone()) == want);
    if kernels() == Device::Emulated {
        let run = |comm| Ok(all(true, &Partition::new(comm, Zero::Weights, 1)?));
        let got = run_ranks(2, Duration::from_secs(60), run).unwrap();
        assert!(got.iter().all(|of| *of == want));
    }
}

/// Two iterations: log-probs, reference log-probs and scores of all answers, and the losses.
fn ppo(offload: bool, p: &Partition) -> Result<Vec<f32>> {
    let frozen = |head, seed| {
        let options = LoadOptions { seed, ..options(head, DType::F32, offload, p) };
        let engine = Engine::frozen(model_as("llama", &options));
        assert_eq!(engine.memory()[0] == 0, offload);
        engine
    };
    let trained = |head, seed| {
        let options = LoadOptions { seed, train: true, ..options(head, DType::F32, false, p) };
        Engine::trained(model_as("llama", &options), adamw(2e-3), ActivationCheckpointing::None)
    };
    let engines = OnlineModels {
        actor: trained(Head::Lm, 1)?,
        reference: Reference::model(frozen(Head::Lm, 1)),
        critic: Some(trained(Head::Score, 2)?),
        reward: model_reward(frozen(Head::Score, 3)),
    };
    // Several micro-batches, so that one model's weights come and go many times.
    let config = OnlineConfig { micro_batch_tokens: 60, minibatch: 3, ..ppo_config() };
    let (mut trainer, mut ws) = (OnlineTrainer::new(engines, config)?, space());
    let mut told = vec![];
    for i in 0..2 {
        let rows = prompts(i, 5);
        let experience = trainer.generate_experience(&mut ws, &refs(&asked(&rows)))?;
        for r in &experience.rollouts {
            // An untouched reference.
            assert!(i > 0 || r.logprobs == r.ref_logprobs);
            told.push(r.score);
            told.extend(r.logprobs.iter().chain(&r.ref_logprobs));
        }
        let stats = trainer.train_rlhf(&mut ws, &experience, &[])?;
        assert_eq!(stats.first_ratio_deviation, 0.0);
        told.extend([stats.policy_loss, stats.value_loss]);
    }
    Ok(told)
}

#[test]
fn ppo_with_frozen_models_of_the_host_is_that_without() {
    let alone = Partition::alone();
    assert_eq!(ppo(true, &alone).unwrap(), ppo(false, &alone).unwrap());
    if kernels() == Device::Emulated {
        let run = |offload| {
            let body = |comm| ppo(offload, &Partition::new(comm, Zero::Weights, 1)?);
            run_ranks(2, Duration::from_secs(60), body).unwrap()
        };
        assert_eq!(run(true), run(false));
    }
}

#[test]
fn a_model_that_generates_or_is_trained_is_not_of_the_host() {
    let alone = Partition::alone();
    let engine = || Engine::frozen(model_as("opt", &options(Head::Lm, DType::F32, true, &alone)));
    let sampling = Sampling::greedy(3, vec![0]);
    let e =
        engine().generate(&mut space(), &[&[1, 2]], &[0], &sampling, &mut |_, _| {}).unwrap_err();
    assert!(e.to_string().contains("in the host's memory"), "{e}");
    let trained = LoadOptions { train: true, ..options(Head::Lm, DType::F32, true, &alone) };
    let e = Model::random(&config("opt"), &trained).unwrap_err();
    assert!(e.to_string().contains("is trained"), "{e}");
}

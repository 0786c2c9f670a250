//! A device and fake ranks take and say what real ones do: the same bytes of memory,
//! the same calls, the same operations, by which a run is planned.

use crate::common::*;
use crate::setup::*;
use duplex::algo::{OnlineConfig, OnlineModels, OnlineTrainer, Reference};
use duplex::arch::Config;
use duplex::base::{DType, Result};
use duplex::comm::{CallKind, Comm, run_ranks};
use duplex::data::PromptExample;
use duplex::data::SftExample;
use duplex::device::{Device, FakeDevice};
use duplex::engine::Engine;
use duplex::model::{Head, LoadOptions, Model};
use duplex::pool::{Partition, Zero};
use duplex::rollout::Sampling;
use duplex::tape::{ActivationCheckpointing, Workspace};
use duplex::train::{AdamWConfig, AdamWState};
use std::time::Duration;

/// Counts of one rank: bytes of its engines and of the arena, operations, and by kind the calls and
/// the bytes sent.
#[derive(Debug, PartialEq)]
struct Taken {
    engines: Vec<[usize; 4]>,
    arena: usize,
    flops: u64,
    calls: Vec<(&'static str, u64, u64)>,
}

impl Taken {
    fn of(engines: &[&Engine], ws: &Workspace, groups: &[Comm]) -> Taken {
        let of_kind = |kind: CallKind| {
            let counts: Vec<_> = groups.iter().map(|g| g.counted(kind)).collect();
            let (calls, sent) = (counts.iter().map(|c| c.calls), counts.iter().map(|c| c.sent));
            (kind.name(), calls.sum(), sent.sum())
        };
        Taken {
            engines: engines.iter().map(|e| e.memory()).collect(),
            arena: ws.bytes(),
            flops: ws.flops(),
            calls: CallKind::ALL.map(of_kind).to_vec(),
        }
    }
}

/// The device and partition of a model, and the groups in which its rank communicates.
struct At {
    device: Device,
    partition: Partition,
    groups: Vec<Comm>,
}

impl At {
    fn model(&self, head: Head, dtype: DType, state: AdamWState, train: bool) -> Model {
        let shape = serde_json::json!({"model_type": "llama", "vocab_size": 101, "hidden_size": 64,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 96, "max_position_embeddings": 128, "rms_norm_eps": 1e-6});
        let config = Config::from_map(shape.as_object().unwrap().clone());
        let grads = if train { state.grads() } else { DType::F32 };
        let frozen = LoadOptions::frozen(head, dtype).on(self.device);
        let options = LoadOptions { train, grads, partition: self.partition.clone(), ..frozen };
        if self.device.is_fake() {
            return Model::empty(&config, &options).unwrap();
        }
        Model::random(&config, &options).unwrap()
    }

    fn trained(
        &self,
        head: Head,
        dtype: DType,
        state: AdamWState,
        checkpointing: ActivationCheckpointing,
    ) -> Engine {
        let adamw = AdamWConfig { state, ..adamw(1e-4) };
        Engine::trained(self.model(head, dtype, state, true), adamw, checkpointing).unwrap()
    }
}

/// The first of `ranks` ranks, as it is and as it is fake.
fn real_and_fake(
    ranks: usize,
    stage: Zero,
    blocks: usize,
    body: impl Fn(&At) -> Result<Taken> + Sync,
) -> [Taken; 2] {
    let real = run_ranks(ranks, Duration::from_secs(60), |comm| {
        let partition = Partition::new(comm.clone(), stage, blocks)?;
        body(&At { device: Device::Cpu, partition, groups: vec![comm] })
    });
    let [comm, slice, tensor] = [ranks, ranks / blocks, blocks].map(Comm::fake);
    let groups = vec![comm.clone(), slice.clone(), tensor.clone()];
    let partition = Partition { comm, stage, blocks, slice, tensor };
    let device = Device::Fake(FakeDevice::Cpu);
    let fake = body(&At { device, partition, groups }).unwrap();
    [real.unwrap().swap_remove(0), fake]
}

/// Returns the communication counted so far. Setting up the groups is not part of a step, so tests
/// subtract it.
fn forget(at: &At) -> Vec<(u64, u64)> {
    let sum = |f: fn(&duplex::comm::Count) -> u64, kind| {
        at.groups.iter().map(|g| f(&g.counted(kind))).sum::<u64>()
    };
    CallKind::ALL.map(|kind| (sum(|c| c.calls, kind), sum(|c| c.sent, kind))).to_vec()
}

fn less(mut taken: Taken, before: &[(u64, u64)]) -> Taken {
    for (own, before) in taken.calls.iter_mut().zip(before) {
        (own.1, own.2) = (own.1 - before.0, own.2 - before.1);
    }
    taken
}

fn examples() -> Vec<SftExample> {
    (0..8).map(|i| SftExample::new((0..40).map(|t| (t * 7 + i) % 101).collect(), 11)).collect()
}

#[test]
fn a_fake_rank_takes_and_says_what_a_real_one_does_in_a_step() {
    let kinds = [
        (DType::F32, AdamWState::Full),
        (DType::Bf16, AdamWState::Full),
        (DType::Bf16, AdamWState::Compact),
    ];
    for ranks in [1, 2, 4] {
        for stage in Zero::ALL {
            for (dtype, state) in kinds {
                for checkpointing in [
                    ActivationCheckpointing::None,
                    ActivationCheckpointing::Selective,
                    ActivationCheckpointing::Full,
                ] {
                    let [real, fake] = real_and_fake(ranks, stage, 1, |at| {
                        let mut ws = Workspace::new(at.device, usize::MAX)?;
                        let engine = at.trained(Head::Lm, dtype, state, checkpointing);
                        let mut trainer = sft_trainer(engine, step_config(90), false);
                        let (before, examples) = (forget(at), examples());
                        let rows: Vec<&SftExample> = examples.iter().collect();
                        for _ in 0..2 {
                            trainer.train(&mut ws, &rows)?;
                        }
                        Ok(less(Taken::of(&[&trainer.engine], &ws, &at.groups), &before))
                    });
                    assert_eq!(
                        real, fake,
                        "{ranks} ranks, stage {stage}, {dtype}, {state:?}, {checkpointing:?}"
                    );
                    assert!(fake.flops > 1_000_000);
                    assert_eq!(fake.calls.iter().any(|c| c.2 > 10_000), ranks > 1);
                }
            }
        }
    }
}

#[test]
fn a_fake_rank_takes_and_says_what_a_real_one_does_in_an_iteration() {
    let ways = [
        (1, Zero::Nothing, 1),
        (2, Zero::Gradients, 1),
        (2, Zero::Weights, 2),
        (4, Zero::Weights, 2),
        (4, Zero::Weights, 1),
    ];
    for (ranks, stage, blocks) in ways {
        let [real, fake] = real_and_fake(ranks, stage, blocks, |at| {
            let mut ws = Workspace::new(at.device, usize::MAX)?;
            let state = AdamWState::Full;
            let frozen = |head| Engine::frozen(at.model(head, DType::Bf16, state, false));
            let engines = OnlineModels {
                actor: at.trained(Head::Lm, DType::Bf16, state, ActivationCheckpointing::None),
                reference: Reference::model(frozen(Head::Lm)),
                critic: Some(at.trained(
                    Head::Score,
                    DType::Bf16,
                    state,
                    ActivationCheckpointing::None,
                )),
                reward: model_reward(frozen(Head::Score)),
            };
            // Answers of full length: nothing ends them.
            let sampling = Sampling { temperature: 1.0, ..Sampling::greedy(20, vec![]) };
            let config =
                OnlineConfig { sampling, micro_batch_tokens: 90, minibatch: 4, ..ppo_config() };
            let mut trainer = OnlineTrainer::new(engines, config)?;
            let before = forget(at);
            let prompt = PromptExample::new((1..31).collect());
            let prompts = vec![&prompt; 8];
            for _ in 0..2 {
                let experience = trainer.generate_experience(&mut ws, &prompts)?;
                trainer.train_rlhf(&mut ws, &experience, &[])?;
            }
            Ok(less(Taken::of(&trainer.models.trained(), &ws, &at.groups), &before))
        });
        let without = |mut taken: Taken| {
            // Recorded programs of decoding are not counted where they run for real.
            taken.flops = 0;
            taken
        };
        assert!(fake.flops > real.flops);
        assert_eq!(without(real), without(fake), "{ranks} ranks, stage {stage}, {blocks} blocks");
    }
}

//! A step that makes a number that is not finite: nothing of it is saved or goes on, all ranks say
//! so at the same time, and it is told in which parameter.

use crate::common::device::device;
use crate::common::*;
use crate::setup::*;
use crate::sft::examples;
use duplex::algo::{OnlineModels, OnlineTrainer};
use duplex::base::{DType, Error, Kind, Result};
use duplex::comm::run_ranks;
use duplex::data::SftExample;
use duplex::engine::Engine;
use duplex::formats::SnapshotBuilder;
use duplex::model::{Head, LoadOptions, Model};
use duplex::pool::{Partition, Zero};
use duplex::tape::ActivationCheckpointing;
use duplex::train::{AdamWConfig, AdamWState};
use std::time::Duration;

const KINDS: [(DType, AdamWState); 3] = [
    (DType::F32, AdamWState::Full),
    (DType::Bf16, AdamWState::Full),
    (DType::Bf16, AdamWState::Compact),
];

/// Settings under which weights grow by a tenth with every step.
fn growing(state: AdamWState) -> AdamWConfig {
    AdamWConfig { state, weight_decay: -1.0, ..adamw(0.1) }
}

/// A model that works, but for one weight which no row uses: the largest that bf16 holds. Its
/// gradient is 0, and it is one rank's alone.
fn brittle(head: Head, dtype: DType, state: AdamWState, partition: &Partition) -> Result<Model> {
    let options = LoadOptions {
        train: true,
        grads: state.grads(),
        partition: partition.clone(),
        ..LoadOptions::frozen(head, dtype).on(device())
    };
    let model = model_as("gpt2", &options);
    let id = model.store.find("positions.weight").expect("gpt2 has positions");
    let mut values = model.store.read_f32(id)?;
    *values.last_mut().unwrap() = f32::from_bits(0x7f7f_0000);
    model.store.write_f32(id, &values)?;
    Ok(model)
}

#[track_caller]
fn diverged<T>(result: Result<T>, begins: &str) {
    let Err(e): std::result::Result<T, Error> = result else { panic!("taken for whole") };
    assert_eq!(e.kind(), Kind::Diverged, "{e}");
    let of = format!("{begins}optimizer step 1 has left 1 of ");
    assert!(e.to_string().starts_with(&of), "{e}");
    assert!(e.to_string().contains(" values of positions.weight not finite"), "{e}");
}

/// One step of SFT that breaks the weight, and what is told after it.
fn one_step(config: AdamWConfig, dtype: DType, partition: &Partition) -> Result<()> {
    let mut ws = workspace();
    let model = brittle(Head::Lm, dtype, config.state, partition)?;
    let engine = Engine::trained(model, config, ActivationCheckpointing::None)?;
    let mut trainer = sft_trainer(engine, step_config(200), false);
    trainer.engine.enable_ema(&mut ws, 0.9)?;
    let rows = examples(1, 4);
    let rows: Vec<&SftExample> = rows.iter().collect();
    assert_eq!(trainer.train(&mut ws, &rows)?.skipped, None);
    diverged(trainer.save(&mut SnapshotBuilder::default()), "");
    diverged(trainer.evaluate(&mut ws, &rows), "");
    diverged(trainer.train(&mut ws, &rows), "");
    Ok(())
}

#[test]
fn a_step_that_breaks_a_weight_is_told_and_not_saved() {
    for (dtype, state) in KINDS {
        for offload in [false, true] {
            let config = AdamWConfig { offload, ..growing(state) };
            one_step(config, dtype, &Partition::alone()).unwrap();
        }
    }
}

#[test]
fn all_ranks_tell_of_a_weight_that_one_of_them_has_broken() {
    for (dtype, state) in KINDS {
        for stage in Zero::ALL {
            let rank = |comm| one_step(growing(state), dtype, &Partition::new(comm, stage, 1)?);
            run_ranks(2, Duration::from_secs(60), rank).unwrap();
        }
    }
}

#[test]
fn no_experience_is_made_with_broken_weights() {
    for broken in ["actor", "critic"] {
        let mut models = engines_as("gpt2", DType::F32, adamw(1e-3));
        let alone = Partition::alone();
        let engine = |head| {
            let model = brittle(head, DType::F32, AdamWState::Full, &alone).unwrap();
            let config = growing(AdamWState::Full);
            Engine::trained(model, config, ActivationCheckpointing::None).unwrap()
        };
        models = match broken {
            "actor" => OnlineModels { actor: engine(Head::Lm), ..models },
            _ => OnlineModels { critic: Some(engine(Head::Score)), ..models },
        };
        let mut ws = workspace();
        let mut trainer = OnlineTrainer::new(models, ppo_config()).unwrap();
        let rows = prompts(3, 6);
        let experience = experience(&mut trainer, &mut ws, &rows);
        // More than one minibatch would tell in the next.
        trainer.config.minibatch = experience.rollouts.len();
        trainer.train_rlhf(&mut ws, &experience, &[]).unwrap();
        let begins = format!("{broken}: ");
        diverged(trainer.save(&mut SnapshotBuilder::default()), &begins);
        diverged(trainer.generate_experience(&mut ws, &refs(&asked(&rows))), &begins);
        diverged(trainer.train_rlhf(&mut ws, &experience, &[]), &begins);
    }
}

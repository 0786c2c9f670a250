//! The state of a trainer: what is saved is all there is.

use crate::common::*;
use crate::setup::*;
use duplex::algo::{OnlineConfig, OnlineTrainer, RewardScaling};
use duplex::base::{DType, Kind, Result};
use duplex::data::SftExample;
use duplex::engine::Engine;
use duplex::formats::OutDir;
use duplex::formats::{Label, Snapshot, SnapshotBuilder, write_snapshot};
use duplex::model::Head;
use duplex::tape::{ActivationCheckpointing, Workspace};
use duplex::train::{AdamWConfig, AdamWState, Batch};
use std::cell::Cell;
use std::path::Path;

/// The kinds of weights, gradients and optimizer state that a run may have.
const KINDS: [(DType, AdamWState); 3] = [
    (DType::F32, AdamWState::Full),
    (DType::Bf16, AdamWState::Full),
    (DType::Bf16, AdamWState::Compact),
];

fn trainer(family: &str, (dtype, state): (DType, AdamWState), ws: &mut Workspace) -> OnlineTrainer {
    let config = AdamWConfig { state, ..adamw(1e-2) };
    let settings =
        OnlineConfig { reward_scaling: RewardScaling::Running, minibatch: 3, ..ppo_config() };
    let mut trainer = OnlineTrainer::new(engines_as(family, dtype, config), settings).unwrap();
    trainer.models.actor.enable_ema(ws, 0.5).unwrap();
    trainer
}

fn train(trainer: &mut OnlineTrainer, ws: &mut Workspace, seed: u64) {
    let experience = experience(trainer, ws, &prompts(seed, 7));
    trainer.train_rlhf(ws, &experience, &[]).unwrap();
}

/// Returns the trainer's saved state, read back from a snapshot in `root`.
fn saved(trainer: &OnlineTrainer, root: &Path, iteration: u64) -> Snapshot {
    let mut builder = SnapshotBuilder::default();
    trainer.save(&mut builder).unwrap();
    let label = Label { step: "ppo".into(), iteration, ..Label::default() };
    Snapshot::open(&write_snapshot(&OutDir::create(root).unwrap(), &label, &builder).unwrap())
        .unwrap()
}

#[track_caller]
fn same(a: &Snapshot, b: &Snapshot) {
    assert!(a.tensors().eq(b.tensors()));
    for (name, info) in a.tensors() {
        let [a, b] = [a, b].map(|s| s.tensor(name, info.dtype, &info.shape).unwrap());
        assert!(a == b, "{name}");
    }
}

#[test]
fn a_trainer_restored_is_the_same_with_every_kind_of_state() {
    for (family, kind) in FAMILIES.into_iter().zip(KINDS) {
        let (tmp, mut ws) = (tempfile::tempdir().unwrap(), workspace());
        let mut one = trainer(family, kind, &mut ws);
        (0..3).for_each(|i| train(&mut one, &mut ws, 80 + i));
        let then = saved(&one, tmp.path(), 3);
        let columns = |part: &str| then.tensors().filter(|t| t.0.contains(part)).count();
        let (master, codes) = (kind == KINDS[1], kind == KINDS[2]);
        assert!(columns("actor/m/") > 0 && columns("critic/v/") > 0 && columns("actor/ema/") > 0);
        assert_eq!((columns("/master/") > 0, columns("/scales/") > 0), (master, codes), "{family}");
        // Another process; what lies in its memory of gradients is nothing that it needs.
        let mut ws = workspace();
        let mut two = trainer(family, kind, &mut ws);
        train(&mut two, &mut ws, 90);
        two.restore(&then).unwrap();
        same(&then, &saved(&two, tmp.path(), 4));
        for trainer in [&mut one, &mut two] {
            (0..2).for_each(|i| train(trainer, &mut ws, 83 + i));
        }
        same(&saved(&one, tmp.path(), 5), &saved(&two, tmp.path(), 6));
    }
}

#[test]
fn nothing_is_saved_while_gradients_wait() {
    let mut ws = workspace();
    let mut trainer = trainer("llama", KINDS[2], &mut ws);
    let batch = Batch::new(&[(&[1, 2, 3][..], 0..2)]);
    let critic = critic(&trainer.models);
    let scores = critic.accumulate(&mut ws, "scores", &batch, None, &|tape, model, _, h, rows| {
        let scores = model.scores(tape, h, rows)?;
        let ones = tape.input_f32(&[1.0, 1.0])?;
        let op = duplex::op::weighted_sum::WeightedSum { scale: 1.0 };
        let sum = duplex::op::weighted_sum::weighted_sum(tape, op, scores, ones)?;
        Ok(duplex::engine::LossOutput { losses: vec![sum], stats: vec![] })
    });
    scores.unwrap();
    let e = trainer.save(&mut SnapshotBuilder::default()).unwrap_err();
    assert!(e.to_string().contains("critic"), "{e}");
    trainer.models.critic.as_mut().unwrap().step(&mut ws, 1.0, 0.5).unwrap();
    trainer.save(&mut SnapshotBuilder::default()).unwrap();
}

thread_local! {
    /// How often work goes on before it is dropped.
    static PATIENCE: Cell<usize> = const { Cell::new(0) };
}

fn is_impatient() -> bool {
    PATIENCE.set(PATIENCE.get().saturating_sub(1));
    PATIENCE.get() == 0
}

/// Does `work` with ever more patience, until it is not dropped any more. Returns how often it was.
fn drop_again_and_again<T>(
    ws: &mut Workspace,
    mut work: impl FnMut(&mut Workspace) -> Result<T>,
) -> usize {
    ws.cancel_when(Some(is_impatient));
    let mut drops = 0;
    loop {
        PATIENCE.set(drops + 1);
        match work(ws) {
            Ok(_) => break,
            Err(e) => assert_eq!(e.kind(), Kind::Stopped, "{e}"),
        }
        drops += 1;
    }
    ws.cancel_when(None);
    drops
}

#[test]
fn work_that_is_dropped_leaves_everything_as_it_was() {
    let (tmp, mut ws) = (tempfile::tempdir().unwrap(), workspace());
    let ppo = || trainer("llama", KINDS[1], &mut workspace());
    let (mut one, mut two) = (ppo(), ppo());
    let asked = asked(&prompts(7, 9));
    let asked = refs(&asked);
    let drops = drop_again_and_again(&mut ws, |ws| one.generate_experience(ws, &asked));
    assert!(drops > 5, "{drops}");
    two.generate_experience(&mut ws, &asked).unwrap();
    for trainer in [&mut one, &mut two] {
        (0..2).for_each(|i| train(trainer, &mut ws, 60 + i));
    }
    same(&saved(&one, tmp.path(), 1), &saved(&two, tmp.path(), 2));

    let sft = || {
        let model = model("opt", Head::Lm, DType::F32, true, None, 5);
        let engine = Engine::trained(model, adamw(1e-2), ActivationCheckpointing::None);
        sft_trainer(engine.unwrap(), step_config(40), true)
    };
    let (mut one, mut two) = (sft(), sft());
    let rows: Vec<SftExample> =
        prompts(8, 9).into_iter().map(|ids| SftExample::new(ids, 1)).collect();
    let rows: Vec<&SftExample> = rows.iter().collect();
    let drops = drop_again_and_again(&mut ws, |ws| one.train(ws, &rows));
    assert!(drops > 1, "{drops}");
    two.train(&mut ws, &rows).unwrap();
    let weights = |t: &SftTrainer| weights(&t.engine.model);
    assert_eq!(weights(&one), weights(&two));
}

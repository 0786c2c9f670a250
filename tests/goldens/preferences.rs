//! DPO against `trl`: losses, gradients and metrics of five pairs of unequal length.

use super::{Golden, adamw, device, dir, grad_of, load, relative};
use duplex::algo::{Dpo, OfflineTrainer, Reference, StepConfig};
use duplex::base::DType;
use duplex::data::PairExample;
use duplex::engine::Engine;
use duplex::model::{Head, LoadOptions, Model};
use duplex::tape::{ActivationCheckpointing, Workspace};
use duplex::train::{Schedule, ScheduleKind};

const PAIRS: usize = 5;

fn pairs(golden: &Golden) -> Vec<PairExample> {
    let pair = |i: usize| {
        let prompt = golden.ints(&format!("prompt_{i}"));
        let answer = |name: &str| [prompt.clone(), golden.ints(&format!("{name}_{i}"))].concat();
        PairExample {
            prompt_len: prompt.len(),
            chosen: answer("chosen"),
            rejected: answer("rejected"),
            ..PairExample::default()
        }
    };
    (0..PAIRS).map(pair).collect()
}

fn trainer(loss: Dpo, micro_batch_tokens: usize) -> OfflineTrainer<PairExample> {
    let policy = load("llama_tied", Head::Lm, DType::F32, true);
    let options = LoadOptions::frozen(Head::Lm, DType::F32).on(device());
    let reference = Model::load(&dir("preferences").join("reference"), &options).unwrap();
    let schedule = Schedule { kind: ScheduleKind::Constant, warmup: 0, total: 1 };
    let engine = Engine::trained(policy, adamw(), ActivationCheckpointing::Full).unwrap();
    let step = StepConfig { schedule, micro_batch_tokens, seed: 1 };
    OfflineTrainer::new(engine, Reference::model(Engine::frozen(reference)), Box::new(loss), step)
        .unwrap()
}

fn near(got: f64, want: f32, what: &str) {
    let want = f64::from(want);
    assert!((got - want).abs() <= 1e-5 * want.abs().max(1e-3), "{what}: {got}, expected {want}");
}

#[test]
fn dpo_is_that_of_trl() {
    let golden = Golden::open("preferences");
    let pairs = pairs(&golden);
    let rows: Vec<&PairExample> = pairs.iter().collect();
    let settings = [
        ("a", Dpo { beta: 0.1, label_smoothing: 0.0 }),
        ("b", Dpo { beta: 0.5, label_smoothing: 0.1 }),
    ];
    for (name, loss) in settings {
        for micro_batch_tokens in [10_000, 30, 1] {
            let mut trainer = trainer(loss, micro_batch_tokens);
            let mut ws = Workspace::new(device(), usize::MAX).unwrap();
            let want = golden.floats(&format!("loss_{name}"))[0];
            let evaluated = trainer.evaluate(&mut ws, &rows).unwrap();
            let trained = trainer.train(&mut ws, &rows).unwrap();
            for outcome in [&evaluated, &trained] {
                near(f64::from(outcome.loss), want, "loss");
                if name == "a" {
                    near(
                        outcome.get("rewards/accuracies"),
                        golden.floats("accuracy_a")[0],
                        "accuracy",
                    );
                    near(outcome.get("rewards/margins"), golden.floats("margin_a")[0], "margin");
                    let mean = |name: &str| golden.floats(name).iter().sum::<f32>() / PAIRS as f32;
                    near(outcome.get("rewards/chosen"), mean("rewards_chosen_a"), "chosen");
                    near(outcome.get("rewards/rejected"), mean("rewards_rejected_a"), "rejected");
                }
            }
            let prefix = format!("grad_{name}.");
            let mut checked = 0;
            for tensor in golden.file.names().filter_map(|n| n.strip_prefix(&prefix)) {
                let want = golden.floats(&format!("{prefix}{tensor}"));
                let error = relative(&grad_of(&trainer.engine.model, tensor), &want);
                assert!(error < 1e-5, "{name}: gradient of {tensor}: {error:.2e}");
                checked += 1;
            }
            assert_eq!(checked, 20);
        }
    }
}

//! Every algorithm of the list that learns from rows alone: its gradient is that of its loss, and
//! its loss does not depend on how rows are packed.

use crate::common::*;
use crate::pairs::pairs;
use crate::setup::*;
use crate::sft::examples;
use duplex::algo::{ALGORITHMS, Algorithm, Learns, Objective, OfflineTrainer, Reference, sections};
use duplex::base::DType;
use duplex::engine::Engine;
use duplex::model::Head;
use duplex::tape::ActivationCheckpointing;

/// The gradient along itself, against the difference of the losses on either side.
fn check<R>(of: &Algorithm, objective: &dyn Fn() -> Box<dyn Objective<R>>, rows: &[R]) {
    let (mut ws, rows): (_, Vec<&R>) = (workspace(), rows.iter().collect());
    let trainer = |micro| {
        let policy = model("llama", of.head, DType::F32, true, None, 4);
        let engine = Engine::trained(policy, adamw(0.0), ActivationCheckpointing::None).unwrap();
        let frozen = || Engine::frozen(model("llama", Head::Lm, DType::F32, false, None, 9));
        let objective = objective();
        let reference = match objective.asks_reference() {
            true => Reference::model(frozen()),
            false => Reference::None,
        };
        OfflineTrainer::new(engine, reference, objective, step_config(micro)).unwrap()
    };
    let mut trained = trainer(110);
    let outcome = trained.train(&mut ws, &rows).unwrap();
    for micro in [1, 100_000] {
        let other = trainer(micro).evaluate(&mut ws, &rows).unwrap();
        close(f64::from(other.loss), f64::from(outcome.loss), 1e-5);
        for (name, value) in &outcome.metrics {
            close(other.get(name), *value, 1e-4);
        }
    }
    let model = &trained.engine.model;
    let length = norm(&gradients(model));
    close(f64::from(outcome.grad_norm), length, 1e-4);
    // Far enough apart that the losses, which are f32, differ by much more than their rounding.
    let h = (2e-3 / length).min(3e-3);
    let loss = || f64::from(trained.evaluate(&mut ws, &rows).unwrap().loss);
    let share = slope_share(model, h, loss);
    assert!((share - 1.0).abs() < 0.02, "{}: {share}", of.name);
}

#[test]
fn the_gradient_of_each_algorithm_is_that_of_its_loss() {
    let sections = sections();
    for of in ALGORITHMS {
        match &of.learns {
            Learns::Texts(from, _) => {
                check(of, &|| (from.objective)(&sections, of.name).unwrap(), &examples(4, 9));
            }
            Learns::Pairs(from) => {
                check(of, &|| (from.objective)(&sections, of.name).unwrap(), &pairs(8, 9));
            }
            // The losses of sampled answers are in `update.rs`.
            Learns::Prompts(_) => {}
        }
    }
}

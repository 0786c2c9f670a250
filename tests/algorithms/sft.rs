//! Supervised finetuning.

use crate::common::*;
use crate::setup::*;
use duplex::base::{DType, Rng};
use duplex::data::SftExample;
use duplex::engine::Engine;
use duplex::model::Head;
use duplex::tape::{ActivationCheckpointing, Workspace};

fn trainer(family: &str, loss_on_prompt: bool, micro: usize, learning_rate: f32) -> SftTrainer {
    let model = model(family, Head::Lm, DType::F32, true, None, 5);
    let engine =
        Engine::trained(model, adamw(learning_rate), ActivationCheckpointing::None).unwrap();
    sft_trainer(engine, step_config(micro), loss_on_prompt)
}

pub(crate) fn examples(seed: u64, n: usize) -> Vec<SftExample> {
    let mut rng = Rng::new(seed, 0);
    (0..n)
        .map(|_| {
            let (prompt_len, answer) = (1 + rng.below(30) as usize, 1 + rng.below(40) as usize);
            SftExample::new(random_ids(&mut rng, prompt_len + answer), prompt_len)
        })
        .collect()
}

/// Mean over all predicted tokens, which is not the mean of the means of rows.
fn naive(ws: &mut Workspace, engine: &Engine, on_prompt: bool, examples: &[SftExample]) -> f64 {
    let all: Vec<f64> = examples
        .iter()
        .flat_map(|e| logprobs(ws, engine, &e.ids, if on_prompt { 1 } else { e.prompt_len }, 1.0))
        .collect();
    -all.iter().sum::<f64>() / all.len() as f64
}

#[test]
fn the_loss_is_the_mean_over_predicted_tokens() {
    for family in FAMILIES {
        for on_prompt in [false, true] {
            let mut ws = workspace();
            let examples = examples(3, 12);
            let rows: Vec<&SftExample> = examples.iter().collect();
            for micro in [1, 90, 100_000] {
                let mut trainer = trainer(family, on_prompt, micro, 0.0);
                let want = naive(&mut ws, &trainer.engine, on_prompt, &examples);
                close(f64::from(trainer.evaluate(&mut ws, &rows).unwrap().loss), want, 1e-5);
                let stats = trainer.train(&mut ws, &rows).unwrap();
                close(f64::from(stats.loss), want, 1e-5);
                assert_eq!(stats.tokens, examples.iter().map(|e| e.ids.len()).sum::<usize>());
                close(f64::from(stats.grad_norm), norm(&gradients(&trainer.engine.model)), 1e-4);
            }
        }
    }
}

#[test]
fn the_gradient_is_that_of_the_loss() {
    for on_prompt in [false, true] {
        let mut ws = workspace();
        let examples = examples(4, 6);
        let rows: Vec<&SftExample> = examples.iter().collect();
        let mut trainer = trainer("opt", on_prompt, 90, 0.0);
        trainer.train(&mut ws, &rows).unwrap();
        let engine = &trainer.engine;
        let naive = || naive(&mut ws, engine, on_prompt, &examples);
        let share = slope_share(&engine.model, 3e-4, naive);
        assert!((share - 1.0).abs() < 0.01, "{share}");
    }
}

#[test]
fn nothing_to_predict_gives_zeros_and_no_step() {
    let mut ws = workspace();
    let mut trainer = trainer("gpt2", false, 60, 1e-2);
    let good = examples(6, 3);
    let rows: Vec<&SftExample> = good.iter().collect();
    trainer.train(&mut ws, &rows).unwrap();
    let before = weights(&trainer.engine.model);
    let cut = SftExample::new(vec![4, 5, 6], 3);
    let empty = SftExample::new(vec![], 0);
    for none in [vec![], vec![&cut], vec![&empty, &cut]] {
        assert_eq!(trainer.evaluate(&mut ws, &none).unwrap().loss, 0.0);
        let stats = trainer.train(&mut ws, &none).unwrap();
        assert_eq!([stats.loss, stats.grad_norm], [0.0; 2]);
        assert!(stats.skipped.is_none());
    }
    assert_eq!(before, weights(&trainer.engine.model));
    // Beside others they do not count.
    let alone = trainer.evaluate(&mut ws, &rows).unwrap().loss;
    let beside = trainer.evaluate(&mut ws, &[rows, vec![&cut, &empty]].concat()).unwrap().loss;
    close(f64::from(beside), f64::from(alone), 1e-6);
}

#[test]
fn training_learns_the_answers_only() {
    let mut ws = workspace();
    // The answer to a number is the number after it; prompts begin with noise.
    let mut rng = Rng::new(8, 0);
    let examples: Vec<SftExample> = (0..64)
        .map(|_| {
            let n = rng.below(20) as i32;
            let ids = [random_ids(&mut rng, 4), vec![n, n + 1, n + 2, n + 3]].concat();
            SftExample::new(ids, 5)
        })
        .collect();
    let rows: Vec<&SftExample> = examples.iter().collect();
    let mut trainer = trainer("llama", false, 200, 1e-2);
    let before = trainer.evaluate(&mut ws, &rows[48..]).unwrap().loss;
    for i in 0..60 {
        trainer.train(&mut ws, &rows[i % 3 * 16..][..16]).unwrap();
    }
    let after = trainer.evaluate(&mut ws, &rows[48..]).unwrap().loss;
    assert!(after < 0.3 * before, "{before} {after}");
}

//! The reward model's losses on pairs.

use crate::common::*;
use crate::setup::*;
use duplex::algo::RewardLoss;
use duplex::base::{DType, Rng};
use duplex::data::PairExample;
use duplex::engine::Engine;
use duplex::model::Head;
use duplex::op::exact::softplus;
use duplex::tape::{ActivationCheckpointing, Workspace};

fn trainer(family: &str, loss: RewardLoss, micro: usize, learning_rate: f32) -> RewardTrainer {
    let model = model(family, Head::Score, DType::F32, true, None, 4);
    let engine =
        Engine::trained(model, adamw(learning_rate), ActivationCheckpointing::None).unwrap();
    reward_trainer(engine, step_config(micro), loss)
}

/// Pairs with shared prompts; the answers may share a beginning, differ in length, or be the same.
pub(crate) fn pairs(seed: u64, n: usize) -> Vec<PairExample> {
    let mut rng = Rng::new(seed, 0);
    let mut pairs: Vec<PairExample> = (0..n)
        .map(|_| {
            let prompt_len = 1 + rng.below(20) as usize;
            let shared = prompt_len + rng.below(4) as usize;
            let prompt = random_ids(&mut rng, shared);
            let mut answer = || {
                let len = 1 + rng.below(20) as usize;
                [prompt.clone(), random_ids(&mut rng, len)].concat()
            };
            let (chosen, rejected) = (answer(), answer());
            PairExample { prompt_len, chosen, rejected, ..PairExample::default() }
        })
        .collect();
    pairs[0].rejected = pairs[0].chosen.clone();
    let longer = [pairs[1].chosen.clone(), vec![5, 6]].concat();
    pairs[1].rejected = longer;
    pairs
}

/// Loss, accuracy and margin from scores of rows on their own.
fn naive(ws: &mut Workspace, engine: &Engine, loss: RewardLoss, pairs: &[PairExample]) -> [f64; 3] {
    let mut sums = [0f64; 3];
    for p in pairs {
        let (c, r) = (scores(ws, engine, &p.chosen), scores(ws, engine, &p.rejected));
        let margin = c[c.len() - 1] - r[r.len() - 1];
        sums[0] += match loss {
            RewardLoss::End => softplus(-margin),
            RewardLoss::TokenWise => {
                let end = c.len().max(r.len());
                let differ = |t: &usize| p.chosen.get(*t) != p.rejected.get(*t);
                let first = (0..end).find(differ).unwrap_or(end - 1);
                let at = |s: &[f64], t: usize| s[t.min(s.len() - 1)];
                let sum: f64 = (first..end).map(|t| softplus(at(&r, t) - at(&c, t))).sum();
                sum / (end - first) as f64
            }
        };
        sums[1] += f64::from(u8::from(margin > 0.0));
        sums[2] += margin;
    }
    sums.map(|s| s / pairs.len() as f64)
}

#[test]
fn both_losses_follow_their_definitions() {
    for family in FAMILIES {
        for loss in [RewardLoss::End, RewardLoss::TokenWise] {
            let mut ws = workspace();
            let pairs = pairs(7, 15);
            let rows: Vec<&PairExample> = pairs.iter().collect();
            for micro in [1, 100, 100_000] {
                let mut trainer = trainer(family, loss, micro, 0.0);
                let want = naive(&mut ws, &trainer.engine, loss, &pairs);
                let eval = trainer.evaluate(&mut ws, &rows).unwrap();
                let train = trainer.train(&mut ws, &rows).unwrap();
                for s in [eval, train] {
                    let all = [f64::from(s.loss), s.get("accuracy"), s.get("margin")];
                    for (a, b) in all.into_iter().zip(want) {
                        close(a, b, 1e-5);
                    }
                    let tokens = pairs.iter().map(|p| p.chosen.len() + p.rejected.len());
                    assert_eq!(s.tokens, tokens.sum::<usize>());
                }
                assert!(want[1] > 0.0 && want[1] < 1.0);
            }
        }
    }
}

#[test]
fn gradients_are_those_of_the_losses() {
    for loss in [RewardLoss::End, RewardLoss::TokenWise] {
        let mut ws = workspace();
        let pairs = pairs(8, 10);
        let rows: Vec<&PairExample> = pairs.iter().collect();
        let mut trainer = trainer("llama", loss, 120, 0.0);
        let stats = trainer.train(&mut ws, &rows).unwrap();
        let engine = &trainer.engine;
        close(f64::from(stats.grad_norm), norm(&gradients(&engine.model)), 1e-4);
        let naive = || naive(&mut ws, engine, loss, &pairs)[0];
        let share = slope_share(&engine.model, 3e-4, naive);
        assert!((share - 1.0).abs() < 0.01, "{loss:?} {share}");
    }
}

#[test]
fn no_pairs_give_zeros_and_no_step() {
    let mut ws = workspace();
    let mut trainer = trainer("gpt2", RewardLoss::End, 100, 1e-2);
    let rows = pairs(9, 4);
    let rows: Vec<&PairExample> = rows.iter().collect();
    trainer.train(&mut ws, &rows).unwrap();
    let before = weights(&trainer.engine.model);
    for s in [trainer.evaluate(&mut ws, &[]).unwrap(), trainer.train(&mut ws, &[]).unwrap()] {
        assert_eq!([s.loss, s.grad_norm], [0.0; 2]);
        assert_eq!((s.tokens, &s.skipped), (0, &None));
    }
    assert_eq!(before, weights(&trainer.engine.model));
}

#[test]
fn training_learns_to_prefer() {
    for loss in [RewardLoss::End, RewardLoss::TokenWise] {
        let mut ws = workspace();
        // Preferred is the answer that ends with an even token.
        let mut rng = Rng::new(12, 0);
        let pairs: Vec<PairExample> = (0..80)
            .map(|_| {
                let prompt = random_ids(&mut rng, 5);
                let end = rng.below(40) as i32 * 2;
                let with = |e: i32| [prompt.clone(), vec![1, e]].concat();
                PairExample {
                    prompt_len: 5,
                    chosen: with(end),
                    rejected: with(end + 1),
                    ..PairExample::default()
                }
            })
            .collect();
        let rows: Vec<&PairExample> = pairs.iter().collect();
        let mut trainer = trainer("gpt2", loss, 500, 3e-3);
        let before = trainer.evaluate(&mut ws, &rows[60..]).unwrap();
        for i in 0..90 {
            trainer.train(&mut ws, &rows[i % 3 * 20..][..20]).unwrap();
        }
        let after = trainer.evaluate(&mut ws, &rows[60..]).unwrap();
        assert!(
            after.get("accuracy") >= 0.8 && after.loss < 0.7 * before.loss,
            "{before:?} {after:?}"
        );
    }
}

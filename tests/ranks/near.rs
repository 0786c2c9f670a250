//! Runs that differ in their ranks alone, and what must be the same of them.

use crate::place::{Place, distance, metrics, number};
use crate::process::{ended, spawn, words};
use std::path::Path;

/// Rates at which rounding does not grow from step to step.
const CALM: [&str; 8] = [
    "--sft-learning-rate",
    "1e-3",
    "--reward-learning-rate",
    "1e-4",
    "--actor-learning-rate",
    "1e-4",
    "--critic-learning-rate",
    "1e-4",
];

/// The words of a run into `to`, on ranks.
pub fn on<'a>(to: &'a str, ranks: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let ranks = if ranks == "1" { &[][..] } else { &["--num-gpus", ranks] };
    let given = ["--enable-ema", "--save-every", "1", "--set", "sft.max_steps=20"];
    words(to, &[&CALM[..], ranks, &given, more].concat())
}

/// The same of other numbers of steps.
pub fn of_steps<'a>(
    [sft, reward, ppo]: [&'a str; 3],
    to: &'a str,
    ranks: &'a str,
    more: &[&'a str],
) -> Vec<&'a str> {
    let mut words = on(to, ranks, more);
    let set = words.iter().position(|w| *w == "--set").unwrap();
    words.drain(set..set + 2);
    let steps =
        [("--sft-max-steps", sft), ("--reward-max-steps", reward), ("--ppo-max-steps", ppo)];
    for (flag, n) in steps {
        let at = words.iter().position(|w| *w == flag).unwrap();
        words[at + 1] = n;
    }
    words
}

/// Runs to the end.
#[track_caller]
pub fn whole(p: &Place, words: &[&str]) {
    ended(&spawn(p, words).wait_with_output().unwrap(), 0, &[]);
}

/// The metrics of two runs, but for those of time, and their models.
#[track_caller]
pub fn near(a: &Path, b: &Path) {
    for step in ["sft", "reward", "ppo"] {
        let (a, b) = (metrics(a, step), metrics(b, step));
        assert_eq!(a.len(), b.len(), "{step}");
        for (i, (a, b)) in a.iter().zip(&b).enumerate() {
            let names = a.as_object().unwrap().keys();
            for name in names.filter(|n| !n.contains("second") && !n.ends_with("_per_s")) {
                let [x, y] = [a, b].map(|of| number(of, name));
                let close = (x - y).abs() <= 1e-5 * x.abs().max(1.0);
                assert!(close, "{step}, iteration {}: {name} {x} and {y}", i + 1);
            }
        }
    }
    for model in ["sft", "reward", "ppo/actor", "ppo/critic", "ppo/actor_ema"] {
        let far = distance(&a.join(model), &b.join(model));
        assert!(far < 1e-4, "{model}: {far}");
    }
}

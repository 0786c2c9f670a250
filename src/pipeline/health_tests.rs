//! Made-up series of metrics: those of trouble are told of once, those of noise never.

use super::*;
use crate::algo::{ALGORITHMS, DEEPSPEED_CHAT, named};
use crate::base::Rng;
use crate::formats::{Label, OutDir, write_snapshot};

/// The warnings of a series of one metric of `step`.
fn told(step: &str, metric: &str, series: impl Iterator<Item = f64>) -> Vec<(usize, String)> {
    let mut health = Health::default();
    let mut all = vec![];
    for (i, v) in series.enumerate() {
        all.extend(
            health.observe(named(step).unwrap(), &[(metric, v)]).into_iter().map(|w| (i, w)),
        );
    }
    all
}

/// `n` values around `level(i)`.
fn noisy(rng: &mut Rng, n: usize, sigma: f64, level: impl Fn(f64) -> f64) -> Vec<f64> {
    (0..n).map(|i| level(i as f64) + sigma * f64::from(rng.normal())).collect()
}

/// A generator of its own for each run of the tests; the seed is shown where one fails.
fn fresh() -> Rng {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    println!("seed {}", now.as_nanos() as u64);
    Rng::new(now.as_nanos() as u64, 0)
}

#[test]
fn healthy_noise_gives_no_warning() {
    let mut rng = fresh();
    for _ in 0..60 {
        let n = 100 + rng.below(200) as usize;
        let sft = noisy(&mut rng, n, 0.15, |i| 1.8 + 2.0 * (-i / 30.0).exp());
        let pairs = noisy(&mut rng, n, 0.12, |i| 0.4 + 0.3 * (-i / 60.0).exp());
        for (step, series) in [("sft", sft), ("reward", pairs)] {
            assert_eq!(told(step, "loss", series.into_iter()), []);
        }
        let kl = noisy(&mut rng, n, 0.5, |i| 12.0 * (1.0 - (-i / 40.0).exp()));
        let tokens = noisy(&mut rng, n, 6.0, |i| 60.0 - 20.0 * (i / 300.0));
        let reward = noisy(&mut rng, n, 0.3, |i| 2.0 * (1.0 - (-i / 80.0).exp()) - 0.5);
        let entropy = noisy(&mut rng, n, 0.1, |i| 1.2 + (-i / 70.0).exp());
        let explained = noisy(&mut rng, n, 0.15, |i| 0.5 - 0.8 * (-i / 15.0).exp());
        let mut health = Health::default();
        for i in 0..n {
            let values = [
                ("kl", kl[i]),
                ("completions/mean_length", tokens[i]),
                ("reward", reward[i]),
                ("entropy", entropy[i]),
                ("explained_variance", explained[i].min(1.0)),
            ];
            assert_eq!(health.observe(DEEPSPEED_CHAT[2], &values), [""; 0], "iteration {i}");
        }
    }
}

#[test]
fn constant_and_single_values_give_no_warning() {
    let all = ALGORITHMS.iter().flat_map(|a| a.anomalies.iter().map(|anomaly| (a.name, anomaly)));
    for (of, anomaly) in all.filter(|(_, s)| s.per.is_none() && s.name != "dead critic") {
        for level in [0.0, 1.0, -3.0, 1e-9, 1e9] {
            let mut series = vec![level; 150];
            assert_eq!(told(of, anomaly.metric, series.clone().into_iter()), []);
            // A single odd value among equal ones is none of its business.
            series[100] += level.abs() * 0.2;
            series[120] = f64::NAN;
            assert_eq!(told(of, anomaly.metric, series.into_iter()), [], "{}", anomaly.name);
        }
    }
}

#[test]
fn a_loss_near_its_end_comes_in_single_rows() {
    let mut rng = fresh();
    for _ in 0..20 {
        // Most batches of a few pairs are as good as learned, some hold a hard pair.
        let mut value = |i: usize| match (i, rng.below(4)) {
            (0..40, _) => 0.8 + 0.1 * f64::from(rng.normal()),
            (_, 0) => 0.3 * f64::from(rng.uniform()),
            _ => 0.02 * f64::from(rng.uniform()),
        };
        assert_eq!(told("reward", "loss", (0..400).map(&mut value)), []);
    }
}

#[test]
fn every_trouble_is_told_once_with_metric_history_and_remedy() {
    let mut rng = fresh();
    // Before and after, noise, and after how many iterations it must have been told.
    let cases = [
        ("sft", "loss spike", "loss", 2.0, 6.0, 0.1, 5, "the learning rate"),
        ("reward", "loss spike", "loss", 0.5, 3.0, 0.1, 5, "the learning rate"),
        ("ppo", "reward collapse", "reward", 1.5, -0.5, 0.2, 9, "--resume"),
        (
            "ppo",
            "length collapse",
            "completions/mean_length",
            80.0,
            4.0,
            2.0,
            9,
            "--min-answer-seq-len",
        ),
        ("ppo", "entropy collapse", "entropy", 2.0, 0.05, 0.01, 9, "--entropy-coef"),
        ("ppo", "dead critic", "explained_variance", 0.5, -0.2, 0.1, 60, "--critic-learning-rate"),
    ];
    for (step, name, metric, before, after, sigma, soon, remedy) in cases {
        let mut series = noisy(&mut rng, 80, sigma, |_| before);
        series.extend(noisy(&mut rng, 100, sigma, |_| after));
        let all = told(step, metric, series.into_iter());
        let [(at, line)] = &all[..] else { panic!("{name}: {all:?}") };
        assert!((80..80 + soon).contains(at), "{name} at {at}");
        let start = format!("{step}: {name}: {metric} was ");
        assert!(line.starts_with(&start) && line.contains(remedy), "{line}");
        assert!(line.matches(", ").count() >= 7, "eight values: {line}");
    }
}

#[test]
fn kl_is_judged_by_the_token_and_what_comes_back_is_told_again() {
    let mut health = Health::default();
    let mut at = vec![];
    for i in 0..200 {
        // Gone for longer than a few iterations in between, then back.
        let per_token = if (30..60).contains(&i) || (120..140).contains(&i) { 2.5 } else { 0.1 };
        let values = [("kl", 40.0 * per_token), ("completions/mean_length", 40.0)];
        let warnings = health.observe(DEEPSPEED_CHAT[2], &values);
        assert!(
            warnings.iter().all(|w| w.contains("KL blow-up: kl / completions/mean_length was"))
        );
        at.extend(warnings.iter().map(|_| i));
    }
    assert_eq!(at.len(), 2, "{at:?}");
    assert!((30..34).contains(&at[0]) && (120..124).contains(&at[1]), "{at:?}");
    // On the border it is one occurrence.
    let flicker = (0..100).map(|i| if i % 8 < 4 { 3.0 } else { 0.0 });
    let mut health = Health::default();
    let told = flicker.flat_map(|v| {
        health.observe(DEEPSPEED_CHAT[2], &[("kl", v), ("completions/mean_length", 1.0)])
    });
    assert_eq!(told.count(), 1);
}

#[test]
fn skipped_steps_are_counted_and_stop_the_run_in_a_row_only() {
    let mut health = Health::default();
    let why = ["the loss is NaN".to_string(), "again".to_string()];
    assert_eq!((health.count("sft", &[]).unwrap(), health.skipped_steps()), (None, None));
    for round in 1..=3 {
        for _ in 1..MAX_SKIPPED {
            let line = health.count("sft", &why).unwrap().unwrap();
            assert!(line.contains("the loss is NaN (and 1 more)"), "{line}");
        }
        assert_eq!(health.count("sft", &[]).unwrap(), None);
        let total = (round * (MAX_SKIPPED - 1) * 2) as f64;
        assert_eq!(health.skipped_steps(), Some(("skipped_steps", total)));
    }
    let last = (0..MAX_SKIPPED).map(|_| health.count("sft", &why[..1])).last().unwrap();
    let e = last.unwrap_err();
    assert_eq!(e.exit_code(), 2);
    assert!(e.to_string().contains("10 iterations in a row, now because the loss is NaN"), "{e}");
}

#[test]
fn what_is_remembered_comes_back_exactly() {
    let mut rng = fresh();
    let tmp = tempfile::tempdir().unwrap();
    for iteration in [3, 90] {
        let mut health = Health::default();
        for _ in 0..iteration {
            let values =
                [("kl", 50.0 * f64::from(rng.uniform())), ("completions/mean_length", 3.0)];
            health.observe(
                DEEPSPEED_CHAT[2],
                &[&values[..], &[("reward", f64::from(rng.normal()))]].concat(),
            );
        }
        health.count("ppo", &["why".into()]).unwrap();
        let mut builder = SnapshotBuilder::default();
        health.save(&mut builder);
        let label = Label { step: "ppo".into(), iteration, finished: false, ..Label::default() };
        let dir = write_snapshot(&OutDir::open(tmp.path()).unwrap(), &label, &builder).unwrap();
        assert_eq!(
            Health::restore(DEEPSPEED_CHAT[2], &Snapshot::open(&dir).unwrap()).unwrap(),
            health
        );
    }
}

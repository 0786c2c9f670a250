//! The same settings give the same bytes, wherever and however they run.

use crate::place::{Place, all_bytes, bytes, distance, metrics, number};

#[test]
fn equal_settings_give_equal_bytes() {
    let p = Place::new("opt");
    // A seed of its own each time, so that no lucky one is tested for ever.
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = (clock.as_nanos() % 1_000_000).to_string();
    println!("seed {seed}");
    let settings = ["--seed", &seed, "--threads", "2"];
    let first = all_bytes(&p.train("first", &settings));
    assert_eq!(all_bytes(&p.train("again", &settings)), first);
    let one = p.train("one_thread", &["--seed", &seed, "--threads", "1"]);
    assert_eq!(all_bytes(&one), first, "one thread");
    p.output(&["train", "--config", "first/config.toml", "--output-dir", "config"], "");
    assert_eq!(all_bytes(&p.path("config")), first, "from the written configuration");
    let other = all_bytes(&p.train("other", &["--seed", "1000001"]));
    assert!(other.iter().zip(&first).all(|(a, b)| a != b), "another seed");
}

#[test]
fn recomputed_activations_give_equal_bytes() {
    for family in ["gpt2", "llama"] {
        let p = Place::new(family);
        let plain = all_bytes(&p.train("plain", &[]));
        assert_eq!(all_bytes(&p.train("full", &["--gradient-checkpointing"])), plain);
        let cheap = p.train("cheap", &["--gradient-checkpointing", "cheap"]);
        assert_eq!(all_bytes(&cheap), plain);
    }
}

/// A large epsilon keeps Adam smooth: noise in a gradient near 0 would else become a whole step.
#[test]
fn the_cut_into_micro_batches_is_f32_noise() {
    let p = Place::new("llama");
    let smooth = ["sft", "reward", "ppo"].map(|s| format!("{s}.adam_eps=1e-3"));
    let mut settings: Vec<&str> = smooth.iter().flat_map(|s| ["--set", s]).collect();
    let whole = p.train("whole", &settings);
    settings.extend(["--micro-batch-tokens", "70"]);
    let cut = p.train("cut", &settings);
    for name in ["sft", "reward", "ppo/actor", "ppo/critic"] {
        let difference = distance(&whole.join(name), &cut.join(name));
        assert!(difference < 2e-6, "{name}: {difference}");
        assert_ne!(bytes(&whole.join(name)), bytes(&cut.join(name)), "{name} was not cut");
    }
    assert!(distance(&whole.join("sft"), &p.path("model")) > 1e-4);
    for step in ["sft", "reward"] {
        for (a, b) in metrics(&whole, step).iter().zip(&metrics(&cut, step)) {
            assert!((number(a, "loss") - number(b, "loss")).abs() < 1e-5, "{a} {b}");
        }
    }
    for row in metrics(&cut, "ppo") {
        assert_eq!(number(&row, "first_ratio_deviation"), 0.0);
    }
}

//! Every algorithm that continues a policy makes it better by the demonstration's hidden rule,
//! which no row and no reward carries. Minutes long, so it runs by `tools/test cpu` alone.

use crate::place::Place;
use duplex::algo::{ALGORITHMS, Start};

/// Runs of each, with seeds from 1; `DUPLEX_SEEDS` asks for more.
fn seeds() -> u64 {
    std::env::var("DUPLEX_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1)
}

/// The mean score of a model and of its baseline on held-out questions.
fn scores(p: &Place, model: &str, baseline: &str) -> [f64; 2] {
    let held_out = ["--max-prompt-seq-len", "48", "--max-new-tokens", "32", "--prompts", "300"];
    let words = ["eval", model, "--baseline", baseline, "--reward-rule", "demo"];
    let table = p.output(&[&words[..], &held_out, &["--print-samples", "0"]].concat(), "");
    let mean = |name: &str| {
        let row = table.lines().find(|l| l.starts_with("mean reward") && l.ends_with(name));
        let value = row.and_then(|l| l.split_whitespace().nth(2));
        value.unwrap_or_else(|| panic!("{table}")).parse().unwrap()
    };
    [mean(model), mean(baseline)]
}

#[test]
#[ignore = "minutes long"]
fn each_raises_the_hidden_rule_of_the_demonstration() {
    let continues = |start: Start| start == Start::Policy;
    for seed in 1..=seeds() {
        for (at, of) in ALGORITHMS.iter().enumerate().filter(|(_, a)| continues(a.start)) {
            let p = Place::new("llama");
            let before = ALGORITHMS[..at].iter().filter(|a| !continues(a.start));
            let stages: Vec<&str> = before.map(|a| a.name).chain([of.name]).collect();
            let (name, seed) = (of.name, seed.to_string());
            let words = ["train", "--output-dir", name, "--quiet", "--seed", &seed, "--stages"];
            p.output(&[&words[..], &stages].concat(), "");
            let model = of.models().first().map_or(name.to_string(), |m| format!("{name}/{m}"));
            let model = format!("{name}/{model}");
            let [after, before] = scores(&p, &model, &format!("{name}/{}", ALGORITHMS[0].name));
            println!("{name}, seed {seed}: {before} to {after}");
            assert!(after >= before + 20.0, "{name}, seed {seed}: {before} to {after}");
        }
    }
}

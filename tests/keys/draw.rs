//! Settings of a run, with one to three numeric keys at an end of their range.

use duplex::algo::{ALGORITHMS, Algorithm};
use duplex::base::Rng;
use duplex::config::{Key, Kind};
use duplex::pipeline::config::RUN;

/// A run to make: a stage, and its settings as a TOML file.
pub(crate) struct Settings {
    /// The stage.
    pub of: &'static Algorithm,
    /// The keys at an end, each with its value as TOML.
    pub ends: Vec<(&'static str, String)>,
    /// The whole file.
    pub toml: String,
}

/// Run `i` of `seed`.
pub(crate) fn settings(seed: u64, i: u64) -> Settings {
    let mut rng = Rng::new(seed, i);
    let of = ALGORITHMS[rng.below(ALGORITHMS.len() as u32) as usize];
    let keys: Vec<&Key> = RUN
        .iter()
        .filter(|k| ["", "lora", of.name].contains(&k.section()))
        .filter(|k| !ends(&k.kind).is_empty())
        .collect();
    let mut all: Vec<(&'static str, String)> = vec![];
    for _ in 0..1 + rng.below(3) {
        let key = keys[rng.below(keys.len() as u32) as usize];
        let ends = ends(&key.kind);
        let end = ends[rng.below(ends.len() as u32) as usize].clone();
        if all.iter().all(|(path, _)| *path != key.path) {
            all.push((key.path, end));
        }
    }
    let toml = file(of, &all, &mut rng);
    Settings { of, ends: all, toml }
}

/// The values at both ends of a range, as TOML: the last inside, and of an open end the nearest
/// number, which a 32-bit float does not tell from the bound. Empty for what is no number.
fn ends(kind: &Kind) -> Vec<String> {
    match *kind {
        Kind::Int { min, max } => vec![min.to_string(), max.to_string()],
        Kind::Float { min, max, from_min, to_max, or_zero } => {
            let above = f64::from((min as f32).next_up());
            let below = f64::from((max as f32).next_down());
            let mut all = match from_min {
                true => vec![min],
                false => vec![above, f64::from(f32::MIN_POSITIVE), min.next_up()],
            };
            match to_max {
                true => all.push(max),
                false => all.extend([below, max.next_down()]),
            }
            all.extend(or_zero.then_some(0.0));
            all.iter().map(|x| format!("{x:e}")).collect()
        }
        Kind::Every => ["1", "1000000000", "1s", "1000000000h"].map(quoted).to_vec(),
        Kind::Time => ["1s", "1000000000h"].map(quoted).to_vec(),
        Kind::Bytes => ["1MB", "9223372TB"].map(quoted).to_vec(),
        _ => vec![],
    }
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}

/// Settings of a few short iterations, with `ends` over them. Choices that numbers depend on are
/// drawn too.
fn file(of: &Algorithm, ends: &[(&'static str, String)], rng: &mut Rng) -> String {
    let mut one_in_two = |path: &str, value: &str| (rng.below(2) == 1).then(|| own(path, value));
    let mut all: Vec<(String, String)> = [
        ("actor_model", "\"model\""),
        ("data_path", "[\"data.jsonl\"]"),
        ("dtype", "\"f32\""),
        ("threads", "1"),
        ("eval_fraction", "0.2"),
        ("save_every", "\"2\""),
        ("max_prompt_seq_len", "40"),
        ("max_answer_seq_len", "8"),
    ]
    .map(|(path, value)| own(path, value))
    .to_vec();
    all.push(own("stages", &format!("[{:?}]", of.name)));
    let online = of.samples();
    all.extend(
        match one_in_two("dtype", "\"bf16\"") {
            Some(dtype) => [Some(dtype), one_in_two("optimizer_state", "\"compact\"")],
            None => [None, one_in_two("gradient_checkpointing", "\"full\"")],
        }
        .into_iter()
        .flatten(),
    );
    if ends.iter().any(|(path, _)| path.starts_with("lora.")) {
        all.extend([own("lora.actor_lora_dim", "2"), own("lora.critic_lora_dim", "2")]);
    }
    let section = |leaf: &str, value: &str| {
        let path = format!("{}.{leaf}", of.name);
        RUN.iter().any(|k| k.path == path).then(|| own(&path, value))
    };
    let short = [
        ("max_steps", "4"),
        ("per_device_train_batch_size", "4"),
        // A thousand passes over what an iteration samples are to take seconds.
        ("per_device_generation_batch_size", "2"),
        ("per_device_training_batch_size", "2"),
        ("num_warmup_steps", "0"),
    ];
    all.extend(short.iter().filter_map(|(leaf, value)| section(leaf, value)));
    let mut some = |leaf: &str, value: &str| {
        all.extend((rng.below(2) == 1).then(|| section(leaf, value)).flatten());
    };
    if online {
        some("enable_ema", "true");
        some("reward_scaling", "\"running\"");
        some("kl_controller", "\"adaptive\"");
        some("unsupervised_data_path", "[\"text.txt\"]");
        match rng.below(2) {
            0 => all.push(own("reward_model", "\"scorer\"")),
            _ => all.extend(section("reward_rule", "\"brevity\"")),
        }
    }
    for (path, value) in ends {
        all.retain(|(p, _)| p != path);
        all.push(own(path, value));
    }
    // Dotted keys: those of a later line win nothing, each stands once.
    let mut seen = std::collections::BTreeMap::new();
    all.into_iter().for_each(|(path, value)| drop(seen.insert(path, value)));
    seen.iter().map(|(path, value)| format!("{path} = {value}\n")).collect()
}

fn own(path: &str, value: &str) -> (String, String) {
    (path.to_string(), value.to_string())
}

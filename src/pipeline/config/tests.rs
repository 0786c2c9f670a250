//! Tests of the configuration: the table against the structs, layers, error lines, round trips.

use super::*;
use crate::base::{Kind as ErrorKind, Rng};
use crate::config::key::{Commands, Key, Kind};
use crate::config::{read_toml, set_setting, to_toml, toml_settings};
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::fmt::Debug;
use toml::Value;

/// Dotted names of all fields, read off the derived Debug output (which, unlike serde's, also shows
/// what is None).
fn fields(config: &impl Debug) -> BTreeSet<String> {
    let (mut sections, mut found): (Vec<String>, _) = (vec![], BTreeSet::new());
    for line in format!("{config:#?}").lines().skip(1) {
        let depth = (line.len() - line.trim_start().len()) / 4;
        let Some((name, rest)) = line.trim().split_once(": ") else { continue };
        sections.truncate(depth - 1);
        if rest.ends_with("Section {") {
            sections.push(name.to_string());
            continue;
        }
        // `optimizer` is flattened into its section.
        let mut path: Vec<&str> = sections.iter().map(String::as_str).collect();
        path.retain(|s| *s != "optimizer");
        path.push(name);
        found.insert(path.join("."));
    }
    found.remove("explicit");
    found
}

#[test]
fn every_field_has_a_key_and_every_key_a_field() {
    let paths = |keys: &[Key]| keys.iter().map(|k| k.path.to_string()).collect::<BTreeSet<_>>();
    // Sections are declared with their keys.
    let run = RunConfig { sections: Sections::default(), ..RunConfig::default() };
    let mut shared = paths(&RUN);
    shared.retain(|path| !path.contains('.') || path.starts_with("lora."));
    shared.insert("sections".into());
    assert_eq!(fields(&run), shared);
    assert_eq!(fields(&ChatConfig::default()), paths(TALK));
    assert_eq!(fields(&EvalConfig::default()), paths(EVALUATION));
    assert_eq!(fields(&InspectConfig::default()), paths(INSPECTION));
    assert_eq!(fields(&BenchConfig::default()), paths(BENCHMARK));
    assert_eq!(fields(&VerifyConfig::default()), paths(VERIFICATION));
    assert_eq!(fields(&DoctorConfig::default()), paths(CHECKUP));
    assert_eq!(fields(&PlanConfig::default()), paths(PLANNING));
    for keys in [&RUN, TALK, EVALUATION, INSPECTION, BENCHMARK, VERIFICATION, CHECKUP] {
        assert_eq!(paths(keys).len(), keys.len(), "a key stands twice");
        assert!(keys.iter().all(|k| k.commands != 0 && !k.help.is_empty()));
        // A section that came twice would be written twice.
        let mut sections: Vec<&str> = keys.iter().map(Key::section).collect();
        sections.dedup();
        assert_eq!(sections.iter().collect::<BTreeSet<_>>().len(), sections.len());
    }
}

#[test]
fn defaults_are_values_their_keys_take() {
    fn all<T: Default + Serialize>(keys: &'static [Key]) {
        let table = toml::Table::try_from(T::default()).unwrap();
        for key in keys {
            let place = match key.section() {
                "" => &table,
                section => table[section].as_table().unwrap(),
            };
            match place.get(key.leaf()) {
                Some(v) if v.as_str() != Some("") => assert_eq!(key.accept("", v).unwrap(), *v),
                _ => assert!(matches!(key.kind, Kind::Text), "{}", key.path),
            }
        }
    }
    all::<RunConfig>(&RUN);
    all::<ChatConfig>(TALK);
    all::<EvalConfig>(EVALUATION);
    all::<InspectConfig>(INSPECTION);
    all::<DoctorConfig>(CHECKUP);
    all::<PlanConfig>(PLANNING);
}

/// A random value that `kind` takes.
fn sample(kind: &Kind, rng: &mut Rng) -> Value {
    match kind {
        Kind::Bool => Value::Boolean(rng.below(2) == 1),
        Kind::Int { min, max } => {
            let width = max.saturating_sub(*min).min(1 << 30) as u32;
            Value::Integer(min + i64::from(rng.below(width + 1)))
        }
        Kind::Float { min, max, .. } => {
            // Log-uniform, so that small rates are met.
            let share = (-20.0 * f64::from(rng.uniform())).exp() * 0.999;
            Value::Float(min + (max - min) * share)
        }
        Kind::Text => {
            let signs: Vec<char> = "ab é\"'\\\n\t#=[]{},.:-_日\u{1}".chars().collect();
            let length = 1 + rng.below(12);
            let text = (0..length).map(|_| signs[rng.below(signs.len() as u32) as usize]);
            Value::String(text.collect())
        }
        Kind::Every => {
            Value::String(format!("{}{}", 1 + rng.below(9999), ["", "m"][rng.below(2) as usize]))
        }
        Kind::Time => Value::String(format!("{}s", 1 + rng.below(9999))),
        Kind::Bytes => Value::String(format!("{}MB", 1 + rng.below(9999))),
        Kind::Named { all, .. } => {
            let all = all();
            Value::String(all[rng.below(all.len() as u32) as usize].into())
        }
        Kind::Choice(words) => Value::String(words[rng.below(words.len() as u32) as usize].into()),
        Kind::Device => {
            let devices = ["auto", "cpu", "cuda:0", "cuda:7", "emulated"];
            Value::String(devices[rng.below(5) as usize].into())
        }
        Kind::List(item) => Value::Array((0..rng.below(4)).map(|_| sample(item, rng)).collect()),
    }
}

fn random(keys: &'static [Key], rng: &mut Rng) -> Vec<Setting> {
    let setting = |key| Setting { key, value: sample(&key.kind, rng) };
    keys.iter().map(setting).collect()
}

/// Every setting arrives, and what is written as TOML reads back the same.
fn round_trip<T>(keys: &'static [Key], seed: u64)
where
    T: Default + Serialize + DeserializeOwned + PartialEq + Debug,
{
    let settings = random(keys, &mut Rng::new(seed, 1));
    let config: T = merge(keys, &settings).unwrap();
    let table = toml::Table::try_from(&config).unwrap();
    for s in &settings {
        let place = if s.key.section().is_empty() {
            &table
        } else {
            table[s.key.section()].as_table().unwrap()
        };
        assert_eq!(place.get(s.key.leaf()), Some(&s.value), "{}", s.key.path);
    }
    let text = to_toml(keys, &config).unwrap();
    let again: T = merge(keys, &toml_settings(keys, "x", &text).unwrap()).unwrap();
    assert_eq!(again, config, "{text}");
}

proptest! {
    #[test]
    fn random_configurations_survive_the_round_trip(seed: u64) {
        round_trip::<RunConfig>(&RUN, seed);
        round_trip::<ChatConfig>(TALK, seed);
        round_trip::<EvalConfig>(EVALUATION, seed);
    }

    #[test]
    fn a_misspelt_key_is_refused_with_the_right_one(
        pick: prop::sample::Index,
        at: prop::sample::Index,
    ) {
        let key = &RUN[pick.index(RUN.len())];
        let leaf = key.leaf();
        let cut = at.index(leaf.len());
        let wrong = format!("{}{}", &leaf[..cut], &leaf[cut + 1..]);
        prop_assume!(RUN.iter().all(|k| k.leaf() != wrong) && leaf.len() > 4);
        let section = match key.section() { "" => String::new(), s => format!("[{s}]\n") };
        let line = error(&format!("{section}{wrong:?} = 1"));
        prop_assert!(line.starts_with("run.toml: unknown key \""), "{}", line);
        prop_assert!(line.contains("did you mean \""), "{}", line);
    }

    #[test]
    fn no_text_makes_the_reader_panic(
        text in "(\\[|\\]|=|\"|\\.|sft|ppo|step|learning_rate|[0-9]|\n| |e|nan|-|,|\u{feff}\
            |é){0,40}"
    ) {
        if let Err(e) = toml_settings(&RUN, "run.toml", &text).and_then(RunConfig::resolve) {
            prop_assert_eq!(e.kind(), ErrorKind::User, "{}", e);
            prop_assert!(!e.to_string().contains('\n'));
        }
    }
}

fn read(text: &str) -> Result<RunConfig> {
    RunConfig::resolve(toml_settings(&RUN, "run.toml", text)?)
}

fn error(text: &str) -> String {
    let e = read(text).expect_err(text);
    assert_eq!(e.exit_code(), 2, "{e}");
    e.to_string()
}

#[test]
fn error_lines() {
    let cases = [
        (
            "[sft]\nlerning_rate = 1",
            "run.toml: unknown key \"sft.lerning_rate\"; did you mean \"sft.learning_rate\"?",
        ),
        ("sft.lerning_rate = 1", "did you mean \"sft.learning_rate\"?"),
        ("[stf]\nlearning_rate = 1", "unknown key \"stf.learning_rate\"; did you mean \"sft.learn"),
        ("learning_rate = 1", "did you mean \"sft.learning_rate\" or \"reward.learning_rate\""),
        ("[sft]\nkl_coef = 1", "unknown key \"sft.kl_coef\"; did you mean \"ppo.kl_coef\"?"),
        ("kl_coeff = 1", "did you mean \"ppo.kl_coef\"?"),
        ("model_name_or_path = 1", "did you mean \"actor_model\" or \"reward_model\"?"),
        ("qwertyuiop = 1", "unknown key \"qwertyuiop\"; --print-config lists all keys"),
        ("[nosuch]", "unknown key \"nosuch\""),
        ("sft = 3", "run.toml: \"sft\" is a section; write its keys under [sft]"),
        ("[[sft]]\nmax_steps = 1", "\"sft\" is a section"),
        ("seed = [1]", "run.toml: \"seed\" must be a whole number, 0 or more, not [1]"),
        ("seed.x = 1", "\"seed\" must be a whole number, 0 or more, not a table"),
        ("seed = 1.5", "\"seed\" must be a whole number, 0 or more, not 1.5"),
        ("tensorboard = 1", "\"tensorboard\" must be true or false, not 1"),
        ("tensorboard = \"true\"", "must be true or false, not \"true\""),
        ("output_dir = \"\"", "\"output_dir\" must be text, not empty, not \"\""),
        ("dtype = \"fp16\"", "\"dtype\" must be one of bf16, f32, not \"fp16\""),
        ("data_path = [1]", "\"data_path\" must be a list of texts, none empty, not [1]"),
        ("optimizer_state = \"half\"", "\"optimizer_state\" must be one of full, compact, not"),
        (
            "dtype = \"f32\"\noptimizer_state = \"compact\"",
            "compact is for bf16 weights; use \"dtype\" bf16",
        ),
        ("stages = 4", "\"stages\" must be a list, each item one of sft, reward, "),
        ("step = [\"dance\"]", "\"step\" must be a list, each item one of sft, reward, "),
        ("stages = []", "\"stages\" must name some of sft, reward, "),
        ("step = [2, 1]", "\"stages\" must name"),
        ("stages = [1, \"sft\"]", "\"stages\" must name"),
        ("max_shard_size = \"5\"", "\"max_shard_size\" must be a size"),
        ("data_split = \"1,2\"", "\"data_split\" must be three numbers"),
        ("data_split = \"0,0,0\"", "\"data_split\" must be three numbers"),
        ("data_split = \"1,nan,1\"", "\"data_split\" must be three numbers"),
        ("data_path = \"a:0\"", "\"data_path\" has \"a:0\"; the weight"),
        ("data_path = \"a:nan\"", "\"data_path\" has \"a:nan\"; the weight"),
        ("data_path = \":2\"", "which names no file"),
        ("sft_only_data_path = \"a:-1\"", "\"sft_only_data_path\" has"),
        ("ppo.unsupervised_data_path = \"a:0\"", "\"ppo.unsupervised_data_path\" has"),
        ("lora.lora_module_name = []", "\"lora.lora_module_name\" is empty"),
        ("ppo.kl_coef = 0\nppo.kl_controller = \"adaptive\"", "\"ppo.kl_coef\" must be above 0"),
        ("ppo.min_answer_seq_len = 300", "300 is above \"max_answer_seq_len\" 32"),
        ("ppo.per_device_training_batch_size = 65", "65 is above the 64 answers gathered"),
        ("reward_model = \"m\"\nppo.reward_rule = \"r\"", "are both set; keep one"),
        (
            "stages = [\"rloo\"]\nrloo.per_device_training_batch_size = 65",
            "65 is above the 64 answers gathered per iteration (per_device_generation_batch_size \
             times generation_batches times num_generations)",
        ),
        ("a = \n", "run.toml: line 1: "),
        ("seed = 1\nseed = 2", "run.toml: line 2: "),
    ];
    for (text, expected) in cases {
        let line = error(text);
        assert!(line.contains(expected), "{text:?} gave {line:?}, not {expected:?}");
        assert!(!line.contains('\n'));
    }
}

#[test]
fn values_out_of_range_name_key_and_range() {
    let mut numbers = 0;
    for key in RUN.iter() {
        let wrong: &[&str] = match key.kind {
            Kind::Float { from_min: true, .. } => &["-1e-3", "nan", "inf", "-inf", "1e300"],
            Kind::Float { .. } => &["0", "-0.0", "-1", "nan", "inf", "1e300"],
            Kind::Int { min: 0, max: i64::MAX } => &["-1", "9223372036854775808"],
            Kind::Int { min: 1, .. } => &["0", "-1", "nan", "9223372036854775807"],
            Kind::Int { .. } => &["-1", "1.5", "9223372036854775807"],
            _ => &[],
        };
        for value in wrong {
            let Ok(settings) = toml_settings(&RUN, "run.toml", &format!("{} = {value}", key.path))
            else {
                let line = error(&format!("{} = {value}", key.path));
                let range = key.kind.expected();
                let named = line.contains(&format!("\"{}\" must be {range}", key.path));
                assert!(named || line.contains("line 1"), "{line}");
                numbers += 1;
                continue;
            };
            panic!("{} = {value} was taken as {settings:?}", key.path);
        }
    }
    assert!(numbers > 100);
}

#[test]
fn later_layers_win_and_what_was_given_is_remembered() {
    let file = "actor_model = \"m\"\n[sft]\nlearning_rate = 2e-5\nmax_steps = 7";
    let mut layers = preset_settings("deepspeed-chat").unwrap();
    layers.extend(toml_settings(&RUN, "run.toml", file).unwrap());
    let only_file = RunConfig::resolve(layers.clone()).unwrap();
    assert_eq!(only_file.sft().optimizer.learning_rate, 2e-5);
    assert_eq!(only_file.lora.lora_alpha, 1.0);
    layers.push(set_setting(&RUN, "sft.learning-rate = 3e-5").unwrap());
    let all = RunConfig::resolve(layers).unwrap();
    assert_eq!(all.sft().optimizer.learning_rate, 3e-5);
    assert_eq!(all.sft().optimizer.max_steps, 7);
    assert_eq!(all.ppo().online.update.num_warmup_steps, 100);
    assert_eq!(all.seed, RunConfig::default().seed);
    for key in ["sft.learning_rate", "sft.max_steps", "actor_model", "lora.lora_alpha"] {
        assert!(all.is_explicit(key), "{key}");
    }
    assert!(!all.is_explicit("seed"));
}

#[test]
fn settings_beside_which_others_count_are_named() {
    let told = |text: &str| read(text).unwrap().idle_settings().unwrap();
    let lora = "lora_alpha = 3\nlora_module_name = [\"q_proj\"]";
    let rates = "[sft]\nlearning_rate = 2e-5\n[reward]\nlearning_rate = 2e-5\n";
    let idle = told(&format!("{rates}[lora]\n{lora}"));
    assert_eq!(idle.len(), 1, "{idle:?}");
    assert!(idle[0].starts_with("lora.lora_alpha, lora.lora_module_name change nothing without"));
    let idle = told(&format!("{rates}[lora]\nactor_lora_dim = 2\n{lora}"));
    assert_eq!(idle.len(), 1, "{idle:?}");
    assert!(idle[0].starts_with("sft.learning_rate change nothing with LoRA"), "{idle:?}");
    // A written configuration has every key.
    let written = to_toml(&RUN, &RunConfig::default()).unwrap();
    assert!(told(&written).is_empty() && !read(&written).unwrap().explicit.is_empty());
}

#[test]
fn the_demonstration_has_its_own_rates_below_the_users() {
    let plain = RunConfig::default();
    let demo = read("[sft]\nlearning_rate = 2e-5").unwrap();
    assert_eq!(demo.sft().optimizer.learning_rate, 2e-5);
    assert_ne!(demo.ppo().online.actor_learning_rate, plain.ppo().online.actor_learning_rate);
    assert!(!demo.is_explicit("ppo.actor_learning_rate"));
    let names = ["actor_model = \"m\"", "reward_model = \"m\"", "data_path = [\"d.jsonl\"]"];
    for model in names {
        let named = read(model).unwrap();
        assert_eq!(named.ppo(), plain.ppo());
    }
}

#[test]
fn presets_hold_known_keys_and_good_values() {
    for preset in PRESETS {
        RunConfig::resolve(preset_settings(preset.name).unwrap()).unwrap();
    }
    let line = preset_settings("deepspeed-chart").err().unwrap().to_string();
    assert_eq!(line, "unknown preset \"deepspeed-chart\"; did you mean \"deepspeed-chat\"?");
    let line = preset_settings("x").err().unwrap().to_string();
    assert!(line.contains("presets are demo, deepspeed-chat"), "{line}");
}

#[test]
fn set_takes_toml_and_plain_text() {
    let value = |text: &str| set_setting(&RUN, text).map(|s| s.value);
    assert_eq!(value("output_dir=2024-01-01").unwrap(), Value::String("2024-01-01".into()));
    assert_eq!(value("output_dir=\"a b\"").unwrap(), Value::String("a b".into()));
    assert_eq!(value("output_dir=17").unwrap(), Value::String("17".into()));
    assert_eq!(value("step=[1, 3]").unwrap().as_array().unwrap().len(), 2);
    assert_eq!(value("data_path=a=b").unwrap(), Value::Array(vec!["a=b".into()]));
    assert_eq!(value("sft.learning_rate=1").err().map(|e| e.exit_code()), Some(2));
    assert!(value("seed").is_err() && value("=3").is_err() && value("sft=3").is_err());
    let line = value("seed=1\nstep=2").unwrap_err().to_string();
    assert!(line.starts_with("--set: \"seed\" must be"), "{line}");
    let line = value("sed=1").unwrap_err().to_string();
    assert_eq!(line, "--set: unknown key \"sed\"; did you mean \"seed\"?");
}

#[test]
fn text_values_in_the_form_the_pipeline_uses() {
    let text = "data_path = [\"a.jsonl\", \"b:c:2.5\", \"d:e\"]\ndata_split = \"2, 4,4\"\n\
                max_shard_size = \"2GiB\"\nsft.per_device_train_batch_size = 3\n\
                sft.gradient_accumulation_steps = 5\nstep = 2";
    let config = read(text).unwrap();
    let source = |path: &str, weight| DataSource { path: path.into(), weight };
    let expected = [source("a.jsonl", 1.0), source("b:c", 2.5), source("d:e", 1.0)];
    assert_eq!(config.data_sources().unwrap(), expected);
    assert_eq!(config.split().unwrap(), [0.2, 0.4, 0.4]);
    assert_eq!(config.max_shard_bytes().unwrap(), 2 << 30);
    assert_eq!(config.sft().optimizer.rows_per_step(), 15);
    assert_eq!(config.stages, [DEEPSPEED_CHAT[1]]);
    assert_eq!(config.dtype.dtype(), DType::Bf16);
}

#[test]
fn files_are_read_whole_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.toml");
    let line = |path| read_toml(&RUN, path).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(line(&file).contains("cannot open"));
    std::fs::write(&file, "\u{feff}seed = 5\r\nthreads = 2\r\n").unwrap();
    assert_eq!(read_toml(&RUN, &file).unwrap().len(), 2);
    std::fs::write(&file, b"seed = \xff").unwrap();
    assert!(line(&file).contains("run.toml"), "{}", line(&file));
    std::fs::write(&file, "#".repeat((1 << 20) + 1)).unwrap();
    assert!(line(&file).contains("more than 1048576 bytes"), "{}", line(&file));
}

#[test]
fn chat_and_eval_need_a_model_and_eval_a_judge() {
    let chat = |text: &str| ChatConfig::resolve(&toml_settings(TALK, "chat.toml", text).unwrap());
    let eval =
        |text: &str| EvalConfig::resolve(&toml_settings(EVALUATION, "eval.toml", text).unwrap());
    assert!(chat("").is_err() && eval("").is_err() && eval("path = \"m\"").is_err());
    assert_eq!(chat("path = \"m\"").unwrap().path, PathBuf::from("m"));
    assert_eq!(eval("path = \"m\"\nreward_rule = \"r\"").unwrap().prompts, 100);
    assert!(eval("path = \"m\"\nreward_rule = \"r\"\nreward_model = \"m\"").is_err());
    assert!(eval("path = \"m\"\nreward_rule = \"r\"\ndata_path = \"a:0\"").is_err());
}

#[test]
fn aliases_name_commands_that_have_the_key() {
    for key in RUN.iter().chain(TALK).chain(EVALUATION) {
        let bits: Commands = key.aliases.iter().fold(0, |bits, (b, _)| bits | b);
        assert_eq!(bits & !key.commands, 0, "{}", key.path);
    }
}

/// Help and pages state the bytes of a trained parameter as the optimizer allocates them.
#[test]
fn texts_state_the_bytes_of_a_parameter() {
    let weight = 2.0;
    let bytes = |state: AdamWState| state.bytes_per_parameter(DType::Bf16);
    let sums = [AdamWState::Full, AdamWState::Compact].map(|s| bytes(s).iter().sum::<f64>());
    let help = RUN.iter().find(|key| key.path == "optimizer_state").unwrap().help;
    let [full, compact] = sums;
    let said = format!(
        "{full} bytes per parameter) or compact (bf16 gradients and 8-bit state, \
         {compact:.1} bytes)"
    );
    assert!(help.ends_with(&said), "{help}");
    let table = format!("| total | {} | {} |", weight + full, weight + compact);
    assert!(include_str!("../../../docs/architecture.md").contains(&table), "{table}");
    let [state, small] = [bytes(AdamWState::Full)[1], bytes(AdamWState::Compact)[1]];
    let line = format!("in {small:.1} bytes per parameter instead of {state}");
    assert!(include_str!("../../../README.md").contains(&line), "{line}");
    let full_f32: f64 = AdamWState::Full.bytes_per_parameter(DType::F32).iter().sum();
    assert_eq!(4.0 + full_f32, 16.0, "docs/architecture.md: 16 bytes with f32 weights");
}

//! Tests of the command line: flags of every command, spellings, layers, and one-line errors.

use super::args::{Request, parse};
use super::commands::COMMANDS;
use super::flags::command;
use super::*;
use crate::config::Kind as Values;
use crate::config::toml_settings;
use crate::pipeline::config::{RUN, RunConfig};
use crate::tape::ActivationCheckpointing;
use crate::train::AdamWState;
use std::collections::BTreeSet;

fn request(line: &str) -> Result<Request> {
    let words = std::iter::once("duplex").chain(line.split_whitespace());
    parse(words.map(OsString::from).collect()).map(|(request, _)| request)
}

fn run_config(line: &str) -> RunConfig {
    match request(line) {
        Ok(Request::Run(config)) => *config,
        other => panic!("{line:?} gave {other:?}"),
    }
}

fn printed(line: &str) -> String {
    match request(line) {
        Ok(Request::Print(text)) => text,
        other => panic!("{line:?} gave {other:?}"),
    }
}

fn error(line: &str) -> String {
    let e = request(line).expect_err(line);
    assert_eq!(e.exit_code(), 2, "{line:?}: {e}");
    assert!(!e.to_string().contains('\n'));
    e.to_string()
}

#[test]
fn clap_accepts_the_table() {
    command().debug_assert();
}

#[test]
fn every_flag_of_every_command_is_read_in_both_spellings() {
    for entry in COMMANDS.iter() {
        let mut seen = BTreeSet::new();
        for key in entry.own_keys() {
            let value = match key.kind {
                Values::Bool => "maybe",
                Values::Choice(_) | Values::Device | Values::Bytes => "nonsense",
                Values::Every | Values::Time => "nonsense",
                Values::Named { .. } | Values::List(Values::Named { .. }) => "nonsense",
                Values::Int { .. } | Values::Float { .. } | Values::List(Values::Int { .. }) => {
                    "-7"
                }
                Values::Text | Values::List(_) => continue,
            };
            for flag in entry.aliases(key).into_iter().chain([entry.flag(key)]) {
                assert!(seen.insert(flag.clone()), "--{flag} stands twice in {}", entry.name);
                for spelling in [flag.clone(), flag.replace('-', "_")] {
                    let line = error(&format!("{} --{spelling} {value}", entry.name));
                    let start = format!("--{} ({:?}) must be ", entry.flag(key), key.path);
                    assert!(line.starts_with(&start), "{line}");
                    let with_equals = error(&format!("{} --{spelling}={value}", entry.name));
                    assert_eq!(line, with_equals);
                }
            }
        }
    }
}

fn names(c: &RunConfig) -> Vec<&'static str> {
    c.stages.iter().map(|stage| stage.name).collect()
}

#[test]
fn texts_reach_their_keys() {
    let c = run_config("ppo --actor_model_name_or_path a --critic-model-name-or-path b_c");
    assert_eq!((c.actor_model.as_deref(), c.reward_model.as_deref()), (Some("a"), Some("b_c")));
    assert_eq!(names(&c), ["ppo"]);
    let c = run_config("sft --model_name_or_path=a_b --lora_dim 8 --data_path x_y z --threads 3");
    assert_eq!(c.actor_model.as_deref(), Some("a_b"));
    assert_eq!((c.lora.actor_lora_dim, c.lora.critic_lora_dim, c.threads), (8, 0, 3));
    assert_eq!(names(&c), ["sft"]);
    assert_eq!(c.data_path, ["x_y", "z"]);
    let c = run_config("reward --model-name-or-path a --lora-dim 8 --eval-iters 3");
    assert_eq!((c.actor_model.as_deref(), c.reward_model.as_deref()), (None, Some("a")));
    assert_eq!((c.lora.critic_lora_dim, c.reward().optimizer.eval_batches), (8, 3));
    assert_eq!(names(&c), ["reward"]);
}

#[test]
fn lists_gather_and_flags_may_stand_alone() {
    let lines = [
        "train --step 1 2",
        "train --step 1,2",
        "train --step 1 --step 2",
        "train --stages sft reward",
        "train --stages sft,2",
    ];
    for line in lines {
        assert_eq!(names(&run_config(line)), ["sft", "reward"], "{line}");
    }
    let c = run_config("train --overwrite --tensorboard false --gradient_checkpointing --step 2 3");
    assert!(c.overwrite && !c.tensorboard);
    assert_eq!(c.gradient_checkpointing, ActivationCheckpointing::Full);
    let c = run_config("train --gradient-checkpointing cheap --sft-max-steps 4 --kl-coef 0.5");
    assert_eq!(c.gradient_checkpointing, ActivationCheckpointing::Selective);
    assert_eq!(c.optimizer_state, AdamWState::Full);
    let c = run_config("ppo --optimizer-state compact --dtype bf16");
    assert_eq!(c.optimizer_state, AdamWState::Compact);
    let c = run_config("train --sft-max-steps 4 --kl-coef 0.5");
    assert_eq!((c.sft().optimizer.max_steps, c.reward().optimizer.max_steps), (4, 0));
    assert_eq!(c.ppo().kl_coef, 0.5);
    assert_eq!(run_config("ppo --ppo-kl-coef 0.25").ppo().kl_coef, 0.25);
}

#[test]
fn preset_file_flags_and_set_in_this_order() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.toml");
    std::fs::write(&file, "actor_model = 'm'\n[sft]\nlearning_rate = 2e-5\nnum_warmup_steps = 5\n")
        .unwrap();
    let preset = "sft --actor-model m --preset deepspeed-chat";
    let layers = [
        ("sft --actor-model m".to_string(), 1e-5),
        (preset.to_string(), 9.65e-6),
        (format!("{preset} --config {}", file.display()), 2e-5),
        (format!("--learning-rate 3e-5 {preset} --config {}", file.display()), 3e-5),
        (format!("{preset} --set sft.learning_rate=4e-5 --learning-rate 3e-5"), 4e-5),
    ];
    for (line, expected) in layers {
        let line = line.replace("--learning-rate 3e-5 sft", "sft --learning-rate 3e-5");
        let c = run_config(&line);
        assert_eq!(c.sft().optimizer.learning_rate, expected, "{line}");
        let warmup = if line.contains("--config") { 5 } else { 0 };
        assert_eq!(c.sft().optimizer.update.num_warmup_steps, warmup, "{line}");
        assert_eq!(c.is_explicit("sft.learning_rate"), expected != 1e-5);
    }
}

#[test]
fn the_printed_configuration_is_the_same_configuration() {
    for line in [
        "train",
        "train --actor-model m --step 1 --data-path a:2 b --preset deepspeed-chat",
        "ppo --reward-rule brevity --top-p 0.9 --dtype f32 --actor-learning-rate 1e-7",
    ] {
        let text = printed(&format!("{line} --print-config"));
        let again = RunConfig::resolve(toml_settings(&RUN, "printed", &text).unwrap()).unwrap();
        let mut config = run_config(line);
        config.explicit = again.explicit.clone();
        assert_eq!(again, config);
    }
    assert!(printed("chat m --print-config").contains("path = \"m\"\nmax_new_tokens = 256\n"));
    assert!(printed("bench --case ppo --print-config").contains("case = [\"ppo\"]\nrepeat = 5\n"));
    assert!(printed("eval --path m --reward-rule r --print-config").contains("# baseline is not"));
}

#[test]
fn error_lines() {
    let cases = [
        ("tran", "unknown command \"tran\"; did you mean \"train\"?"),
        ("xyzzy", "unknown command \"xyzzy\"; see `duplex --help`"),
        ("--seed 3", "unknown flag --seed; flags follow a command, as in `duplex train --seed`"),
        ("sft --lerning-rate 1", "unknown flag --lerning-rate; did you mean --learning-rate?"),
        ("sft --lerning_rate=1", "unknown flag --lerning-rate; did you mean --learning-rate?"),
        ("sft --qwertyuiop", "unknown flag --qwertyuiop; see `duplex sft --help`"),
        (
            "sft --kl-coef 1",
            "unknown flag --kl-coef; it belongs to `duplex train` and `duplex ppo`",
        ),
        (
            "train --learning-rate 1",
            "--learning-rate could mean several stages of `duplex train`; write \
             --sft-learning-rate or",
        ),
        ("ppo --actor_dropout 0.1", "--actor-dropout 0.1: models are trained without dropout"),
        ("sft --num-nodes 2", "--num-nodes 2: start ranks on several machines"),
        (
            "sft --lr_scheduler_type polynomial",
            "--lr-scheduler-type (\"sft.lr_scheduler_type\") must be one of",
        ),
        ("chat m --local-rank 1", "unknown flag --local-rank; it belongs to `duplex train`"),
        ("chat m --raw --system x", "--raw continues text as it is"),
        (
            "ppo --actor-lora-dim 2 --critic-lora-dim 2 --actor-lora-module-name a. \
             --critic-lora-module-name b.",
            "--critic-lora-module-name b. differs from the actor's a.;",
        ),
        (
            "eval --data-path a.jsonl no/such_model --reward-rule r",
            "no model given; write `duplex eval DIRECTORY --data-path ...`",
        ),
        ("sft --learning-rate", "--learning-rate needs a value"),
        ("sft --data-path", "--data-path needs a value"),
        ("sft --seed 1 --seed 2", "--seed is given more than once"),
        ("sft extra", "unexpected argument \"extra\"; see `duplex sft --help`"),
        ("sft -x", "unexpected argument \"-x\"; see `duplex sft --help`"),
        (
            "sft --learning-rate -1",
            "--learning-rate (\"sft.learning_rate\") must be a number above 0 and at most 0.1, not \
             -1.0",
        ),
        ("sft --set nothing", "--set \"nothing\" has no value; write --set key=value"),
        ("sft --preset nothing", "unknown preset \"nothing\"; presets are demo, deepspeed-chat"),
        ("chat", "no model given; write `duplex chat DIRECTORY`"),
        ("chat a b", "unexpected argument \"b\"; see `duplex chat --help`"),
        ("chat a --path b", "DIRECTORY and --path exclude each other"),
        ("chat a --preset demo", "unknown flag --preset; see `duplex chat --help`"),
        (
            "bench --shape nothing",
            "--shape (\"shape\") must be one of opt-125m, gpt2, smollm2-135m, tiny, not \
             \"nothing\"",
        ),
        ("bench --case generate-8,sft", "--case \"sft\" is not a case; write generate-N"),
        ("bench --case train-1", "--case \"train-1\" is not a case"),
        ("bench --case generate-0", "--case \"generate-0\" is not a case"),
        ("bench --model m --shape tiny", "--model and --shape exclude each other"),
        ("bench --repeat 0", "--repeat (\"repeat\") must be a whole number from 1 to 1000, not 0"),
        ("bench --preset demo", "unknown flag --preset; see `duplex bench --help`"),
        ("eval a", "set either --reward-model or --reward-rule: one of them scores the answers"),
    ];
    for (line, expected) in cases {
        let given = error(line);
        assert!(given.starts_with(expected), "{line:?} gave {given:?}");
    }
}

/// Several stages have the key, and one of the run is meant.
#[test]
fn a_flag_without_a_stage_is_that_of_the_only_stage_that_has_it() {
    let top_k = |c: &RunConfig| {
        ["ppo", "rloo"].map(|stage| c.sections.value(stage, "top_k").unwrap().as_integer().unwrap())
    };
    assert_eq!(top_k(&run_config("train --top-k 7")), [7, 0]);
    assert_eq!(top_k(&run_config("train --step 1 3 --top_k=7")), [7, 0]);
    assert_eq!(top_k(&run_config("train --top-k 7 --stages sft,rloo")), [0, 7]);
    assert_eq!(top_k(&run_config("train --stages ppo rloo --rloo-top-k 7")), [0, 7]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.toml");
    std::fs::write(&file, "stages = [\"sft\", \"rloo\"]").unwrap();
    let line = format!("train --config {} --top-k 7", file.display());
    assert_eq!(top_k(&run_config(&line)), [0, 7]);
    assert_eq!(top_k(&run_config("train --stages sft --top-k 7")), [7, 0]);
    let told = error("train --stages ppo rloo --top-k 7");
    assert!(told.starts_with("--top-k could mean several stages"), "{told}");
}

#[test]
fn help_and_version_are_no_errors() {
    assert!(printed("").contains("Usage: duplex [COMMAND]"));
    assert!(printed("--help").contains("duplex COMMAND --help"));
    assert!(printed("--version").starts_with("duplex "));
    for entry in COMMANDS.iter() {
        let help = printed(&format!("{} --help", entry.name));
        for key in entry.own_keys() {
            assert!(help.contains(&format!("--{} ", entry.flag(key))), "{}", key.path);
        }
    }
    assert!(printed("sft --help").contains("[default: 1e-5]"));
}

#[cfg(unix)]
#[test]
fn words_that_are_not_utf8_are_told_with_the_way_out() {
    use std::os::unix::ffi::OsStringExt;
    let words = vec!["duplex".into(), OsString::from_vec(vec![b'a', 0xff])];
    let line = parse(words).unwrap_err().to_string();
    assert!(line.starts_with(r#"argument 1 is not UTF-8: "a\xFF""#), "{line}");
    assert!(line.contains("config.toml") && line.contains("rename the file"), "{line}");
}

#[test]
fn bugs_ask_for_a_report_and_mistakes_do_not() {
    assert_eq!(error_line(&Error::user("x")), "duplex: x");
    assert!(error_line(&Error::internal("x")).contains("please report"));
}

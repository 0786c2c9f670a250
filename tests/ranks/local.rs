//! Ranks that are threads of one process.

use crate::near::{near, of_steps, on, whole};
use crate::place::{Place, distance};
use crate::process::{ended, spawn, stop_after, words};
use std::process::Command;

#[test]
fn several_ranks_do_what_one_does() {
    let p = Place::new("llama");
    whole(&p, &on("one", "1", &[]));
    for (ranks, stage) in [("2", "0"), ("3", "1"), ("2", "2"), ("4", "3"), ("2", "auto")] {
        let to = format!("on-{ranks}-{stage}");
        whole(&p, &on(&to, ranks, &["--zero-stage", stage]));
        near(&p.path("one"), &p.path(&to));
    }
    // Two ranks generate together, each with half of a slice gathered.
    whole(&p, &on("two", "4", &["--zero-stage", "3", "--inference-tp-size", "2"]));
    near(&p.path("one"), &p.path("two"));
}

/// Rows of random unequal length: each rank plans for those it has.
#[test]
fn several_ranks_do_what_one_does_under_a_large_vocabulary() {
    let p = Place::large("llama", 49_159, 300);
    let micro = ["--micro-batch-tokens", "900"];
    whole(&p, &of_steps(["3", "2", "2"], "one", "1", &micro));
    whole(
        &p,
        &of_steps(["3", "2", "2"], "two", "2", &[&micro[..], &["--zero-stage", "3"]].concat()),
    );
    near(&p.path("one"), &p.path("two"));
}

#[test]
fn adapters_on_several_ranks() {
    let p = Place::new("opt");
    let lora = ["--actor-lora-dim", "4", "--critic-lora-dim", "4", "--step", "1,3"];
    let lora = [&lora[..], &["--reward-rule", "brevity"]].concat();
    let run = |to, ranks, more: &[&str]| {
        let given = [&lora[..], more].concat();
        let all: Vec<String> = on(to, ranks, &given).iter().map(|w| w.to_string()).collect();
        // An average of weights that are adapters is not asked for.
        let words: Vec<&str> = all.iter().map(String::as_str).collect();
        whole(&p, &words.into_iter().filter(|w| *w != "--enable-ema").collect::<Vec<_>>());
    };
    run("one", "1", &[]);
    run("three", "3", &["--zero-stage", "3"]);
    for model in ["sft", "ppo/actor", "ppo/critic"] {
        let far = distance(&p.path("one").join(model), &p.path("three").join(model));
        assert!(far < 1e-4, "{model}: {far}");
    }
}

/// Stopped on four ranks in every step, gone on with by fewer.
#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let p = Place::new("llama");
    whole(&p, &on("one", "1", &[]));
    for at in ["sft-00000003", "reward-00000002", "ppo-00000002"] {
        stop_after(&p, &on("four", "4", &["--zero-stage", "3"]), at);
        for (ranks, stage) in [("1", "0"), ("2", "3"), ("3", "2")] {
            let to = format!("on-{ranks}");
            let copied =
                Command::new("cp").args(["-r", "four", &to]).current_dir(p.path("")).status();
            assert!(copied.unwrap().success());
            whole(&p, &on(&to, ranks, &["--zero-stage", stage]));
            near(&p.path("one"), &p.path(&to));
            std::fs::remove_dir_all(p.path(&to)).unwrap();
        }
        // And by as many, to the next stop.
    }
    whole(&p, &on("four", "4", &["--zero-stage", "3"]));
    near(&p.path("one"), &p.path("four"));
}

#[cfg(not(feature = "mpi"))]
#[test]
fn a_launcher_needs_a_binary_with_mpi() {
    let p = Place::new("opt");
    let mut command = Command::new(env!("CARGO_BIN_EXE_duplex"));
    command.args(words("run", &[])).current_dir(p.path(""));
    let torchrun = [("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")];
    let out = command.envs(torchrun).output().unwrap();
    ended(&out, 3, &["torchrun started 2 ranks", "--features mpi"]);
}

#[test]
fn mistakes_about_ranks_are_told_in_one_line() {
    let p = Place::new("opt");
    let line = |more: &[&str], parts: &[&str]| {
        ended(&spawn(&p, &words("run", more)).wait_with_output().unwrap(), 2, parts);
    };
    line(&["--num-gpus", "0"], &["--num-gpus", "from 1"]);
    line(&["--zero-stage", "4"], &["--zero-stage", "auto, 0, 1, 2, 3"]);
    line(
        &["--num-gpus", "3", "--zero-stage", "3", "--inference-tp-size", "2"],
        &["rank", "3 ranks cannot be divided into 2"],
    );
    line(
        &["--num-gpus", "2", "--zero-stage", "1", "--inference-tp-size", "2"],
        &["tensor parallelism", "stage 3"],
    );
    line(
        &["--dtype", "bf16", "--optimizer-state", "compact", "--inference-tp-size", "2"],
        &["inference_tp_size", "optimizer_state"],
    );
}

//! Signals, what is kept, and what a run goes on from.

use crate::place::Place;
use crate::process::{
    ITERATIONS, STEPS, checkpoints, ended, log, same, signal, spawn, stop_after, until, words,
};
use std::process::Output;

/// Runs to the end.
fn output(p: &Place, words: &[&str]) -> Output {
    spawn(p, words).wait_with_output().unwrap()
}

#[test]
fn a_signal_stops_every_step_where_it_can_go_on() {
    let p = Place::new("llama");
    let whole = p.train("whole", &STEPS);
    // By time, a short run saves nothing but what a signal asks for.
    for (name, more) in [("all", &["--save-every", "1"][..]), ("asked", &[])] {
        let words = words(name, more);
        for after in ["sft-00000002", "reward-00000003", "ppo-00000001"] {
            if more.is_empty() {
                stop_at(&p, &words, after.split('-').next().unwrap());
            } else {
                stop_after(&p, &words, after);
            }
        }
        ended(&output(&p, &words), 0, &[]);
        same(&whole, &p.path(name));
    }
}

/// Sends SIGTERM once the log tells of an iteration of `step`.
fn stop_at(p: &Place, words: &[&str], step: &str) {
    let run = p.path("asked");
    let mut child = spawn(p, words);
    let sign = format!("\"event\":\"metrics\",\"step\":\"{step}\"");
    until(|| {
        let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
        text.contains(&sign) || child.try_wait().unwrap().is_some()
    });
    signal(&child, libc::SIGINT);
    let out = child.wait_with_output().unwrap();
    ended(&out, 75, &["SIGINT", "the same command resumes"]);
    let newest = checkpoints(&run).into_iter().rfind(|n| n.starts_with(step));
    assert!(newest.is_some(), "{:?}", checkpoints(&run));
}

#[test]
fn the_second_signal_ends_the_run_at_once() {
    let p = Place::new("llama");
    // An iteration that takes long.
    let more = ["--step", "3", "--reward-rule", "brevity", "--ppo-epochs", "1000"];
    let mut child = spawn(&p, &words("run", &more));
    let log = p.path("run/metrics.jsonl");
    let begun = || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("step_start"));
    until(|| begun() || child.try_wait().unwrap().is_some());
    // Its training is not dropped, its generation would be.
    std::thread::sleep(std::time::Duration::from_millis(500));
    signal(&child, libc::SIGTERM);
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "it did not finish its iteration");
    signal(&child, libc::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(75));
}

#[test]
fn the_newest_and_the_best_are_kept() {
    let p = Place::new("gpt2");
    let more = ["--save-every", "1", "--keep-checkpoints", "3", "--keep-best", "loss"];
    ended(&output(&p, &words("run", &more)), 0, &[]);
    let names = checkpoints(&p.path("run"));
    let of = |step: &str| -> Vec<usize> {
        let at = |n: &String| n.strip_prefix(&format!("{step}-"))?.parse().ok();
        names.iter().filter_map(at).collect()
    };
    // PPO has no loss of that name; the newest are of it.
    assert_eq!(of("ppo"), [ITERATIONS - 2, ITERATIONS - 1, ITERATIONS]);
    for step in ["sft", "reward"] {
        let rows = crate::place::metrics(&p.path("run"), step);
        let loss: Vec<f64> = rows.iter().map(|m| crate::place::number(m, "loss")).collect();
        let best = (0..loss.len()).min_by(|a, b| loss[*a].total_cmp(&loss[*b])).unwrap();
        assert_eq!(of(step), [best + 1], "{loss:?}");
        assert!(names.contains(&format!("{step}-finished")), "{names:?}");
    }
}

#[test]
fn a_run_goes_on_from_the_checkpoint_named() {
    let p = Place::new("llama");
    let whole = p.train("whole", &STEPS);
    let more = ["--save-every", "1", "--keep-checkpoints", "99"];
    let run = stop_after(&p, &words("run", &more), "reward-00000004");
    let log_then = log(&run).len();
    let back = [&more[..], &["--resume", "run/checkpoints/sft-00000003"]].concat();
    ended(&output(&p, &words("run", &back)), 0, &[]);
    same(&whole, &run);
    assert!(log_then < log(&run).len());
    // Into another directory: the models of steps before must be there.
    let words_of = |to, from| words(to, &[&more[..], &["--resume", from]].concat()).join(" ");
    let line = words_of("other", "run/checkpoints/sft-00000005");
    ended(&output(&p, &line.split(' ').collect::<Vec<_>>()), 0, &[]);
    assert_eq!(crate::place::all_bytes(&whole), crate::place::all_bytes(&p.path("other")));
    let line = words_of("third", "run/checkpoints/ppo-00000002");
    let refused = output(&p, &line.split(' ').collect::<Vec<_>>());
    ended(&refused, 2, &["stage sft is finished", "third/sft"]);
}

#[test]
fn resume_never_asks_before_it_replaces() {
    let p = Place::new("opt");
    let run = stop_after(&p, &words("run", &["--save-every", "1"]), "sft-00000003");
    let made = checkpoints(&run);
    let refused = output(&p, &words("run", &["--resume", "never"]));
    ended(&refused, 2, &["unfinished run", "--overwrite"]);
    assert_eq!(checkpoints(&run), made);
    // A finished run is no unfinished one.
    ended(&output(&p, &words("run", &[])), 0, &[]);
    ended(&output(&p, &words("run", &[])), 2, &["sft exists already", "--overwrite"]);
    // The same command with --overwrite begins anew once, and then goes on too.
    let again = words("run", &["--overwrite", "--save-every", "1"]);
    stop_after(&p, &again, "reward-00000002");
    let resumed = output(&p, &again);
    ended(&resumed, 0, &[]);
    let logged = log(&run);
    let first = logged.iter().filter(|e| e["event"] == "metrics" && e["iteration"] == 1).count();
    assert_eq!(first, 3);
    same(&p.train("whole", &STEPS), &run);
}

#[test]
fn steps_one_by_one_go_on_too() {
    let p = Place::new("gpt2");
    let whole = p.train("whole", &STEPS);
    for (command, flag) in
        [("sft", "--sft-max-steps"), ("reward", "--reward-max-steps"), ("ppo", "--ppo-max-steps")]
    {
        let mut words = vec![command, "--config", "short.toml", "--data-path", "data.jsonl"];
        words.extend(["--output-dir", "single", "--save-every", "1", flag, "6"]);
        words.extend(["--data-split", "2,4,4"]);
        if command != "ppo" {
            words.extend(["--actor-model", "model"]);
        }
        stop_after(&p, &words, &format!("{command}-00000003"));
        ended(&output(&p, &words), 0, &[]);
    }
    assert_eq!(crate::place::all_bytes(&whole), crate::place::all_bytes(&p.path("single")));
}

/// A device that fails after so many kernels, each time the program is started.
#[cfg(feature = "emulator")]
#[test]
fn a_device_that_fails_stops_the_run_with_operator_shapes_and_stream() {
    let p = Place::new("llama");
    let more = ["--device", "emulated", "--step", "1,3", "--reward-rule", "brevity"];
    let run = |to: &str, fail_at: &str| {
        let words = [&words(to, &more)[..], &["--save-every", "1"]].concat();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_duplex"));
        command.args(words).current_dir(p.path("")).env("DUPLEX_EMU_FAIL_AT", fail_at);
        command.output().unwrap()
    };
    ended(&run("whole", ""), 0, &[]);
    let (mut failures, mut with_shapes) = (0, 0);
    loop {
        // Not always in the same place.
        let out = run("failing", ["1300", "1600", "2100"][failures % 3]);
        if out.status.success() {
            break;
        }
        let hint = "the same command starts anew, a run from its last checkpoint";
        ended(&out, 75, &["stream ", "emulated", "the device failed", hint]);
        with_shapes += usize::from(String::from_utf8_lossy(&out.stderr).contains(" of f32["));
        failures += 1;
        assert!(failures < 50, "it does not get on: {:?}", checkpoints(&p.path("failing")));
    }
    assert!(failures >= 2 && with_shapes >= 1, "{failures} failures, {with_shapes} with shapes");
    for model in ["sft", "ppo/actor"] {
        let bytes = |run: &str| crate::place::bytes(&p.path(run).join(model));
        assert_eq!(bytes("failing"), bytes("whole"), "{model}");
    }
}

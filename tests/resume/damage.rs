//! Checkpoints, data and configurations that are not what they were; a disk that is full.

use crate::checkpoint::fresh_rng;
use crate::place::Place;
use crate::process::{STEPS, checkpoints, ended, same, spawn, stop_after, words};
use duplex::formats::Snapshot;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const EACH: [&str; 4] = ["--save-every", "1", "--keep-checkpoints", "9"];

fn output(p: &Place, words: &[&str]) -> Output {
    spawn(p, words).wait_with_output().unwrap()
}

/// A run stopped in its third step.
fn stopped(p: &Place) -> PathBuf {
    stop_after(p, &words("run", &EACH), "ppo-00000002")
}

/// The newest checkpoint of `step`.
fn newest(run: &Path, step: &str) -> PathBuf {
    let names = checkpoints(run);
    let name = names.iter().rfind(|n| n.starts_with(step) && !n.ends_with("finished")).unwrap();
    run.join("checkpoints").join(name)
}

#[test]
fn a_flipped_bit_is_found_by_the_run_and_by_verify() {
    let p = Place::new("llama");
    let whole = p.train("whole", &STEPS);
    let run = stopped(&p);
    let told = p.output(&["verify", "run"], "");
    assert_eq!(told.lines().count(), checkpoints(&run).len() + 2, "{told}");
    assert!(told.lines().all(|l| l.contains(": whole, ")), "{told}");
    let dir = newest(&run, "ppo");
    let files: Vec<PathBuf> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    let mut rng = fresh_rng();
    for i in 0..40 {
        let path = &files[rng.below(files.len() as u32) as usize];
        let good = std::fs::read(path).unwrap();
        let mut bad = good.clone();
        let at = rng.below(bad.len() as u32) as usize;
        bad[at] ^= 1 << rng.below(8);
        std::fs::write(path, &bad).unwrap();
        let place = format!("{} byte {at}", path.display());
        assert!(Snapshot::open(&dir).is_err(), "{place}");
        if i % 8 == 0 {
            let file = path.file_name().unwrap().to_str().unwrap();
            let name = dir.file_name().unwrap().to_str().unwrap();
            let told = p.command(&["verify", "run"], "");
            ended(&told, 2, &["1 of ", "damaged"]);
            let told = String::from_utf8(told.stdout).unwrap();
            let line = told.lines().find(|l| l.contains("DAMAGED")).unwrap();
            assert!(line.contains(file) && line.contains(name), "{place}: {line}");
            // The run is refused, and told where it can go on from.
            ended(&output(&p, &words("run", &EACH)), 2, &[file, "--resume run/checkpoints/"]);
        }
        std::fs::write(path, &good).unwrap();
    }
    Snapshot::open(&dir).unwrap();
    // What was offered does it.
    std::fs::write(dir.join("manifest.json"), "{").unwrap();
    let refused = output(&p, &words("run", &EACH));
    let line = String::from_utf8(refused.stderr).unwrap();
    let offered = line.split("--resume ").nth(1).unwrap().split(' ').next().unwrap();
    let more = [&EACH[..], &["--resume", offered]].concat();
    ended(&output(&p, &words("run", &more)), 0, &[]);
    same(&whole, &run);
}

#[test]
fn verify_knows_models_and_what_is_none() {
    let p = Place::new("opt");
    p.run("reward", "run", &["--actor-model", "model", "--critic-lora-dim", "2"]);
    let told = p.output(&["verify", "run"], "");
    assert!(
        told.contains("reward finished after 2 iterations") && told.contains("opt, "),
        "{told}"
    );
    assert!(p.output(&["verify", "model"], "").contains("model: whole, opt, "));
    assert!(p.output(&["verify", "run/reward/adapter"], "").contains("whole"));
    let file = p.path("model/model.safetensors");
    let good = std::fs::read(&file).unwrap();
    let mut bad = good.clone();
    // The last value is not a number.
    let n = bad.len();
    bad[n - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&file, &bad).unwrap();
    let told = p.command(&["verify", "model"], "");
    ended(&told, 2, &["1 of 1 are damaged"]);
    assert!(String::from_utf8(told.stdout).unwrap().contains("not finite"));
    std::fs::write(&file, &good[..n - 1]).unwrap();
    let told = p.command(&["verify", "model"], "");
    assert!(String::from_utf8(told.stdout).unwrap().contains("model.safetensors"));
    std::fs::create_dir(p.path("empty")).unwrap();
    ended(&p.command(&["verify", "empty"], ""), 2, &["no checkpoint, no run and no model"]);
    ended(&p.command(&["verify"], ""), 2, &["duplex verify DIRECTORY"]);
}

#[test]
fn what_matters_in_the_configuration_must_be_the_same() {
    let p = Place::new("llama");
    let whole = p.train("whole", &[&STEPS[..], &["--kl-coef", "0.5"]].concat());
    let run = stop_after(&p, &words("run", &EACH), "reward-00000002");
    let with = |more: &[&str]| output(&p, &words("run", &[&EACH[..], more].concat()));
    let made = checkpoints(&run);
    let config = std::fs::read_to_string(run.join("config.toml")).unwrap();
    let changed = with(&["--sft-learning-rate", "2e-2", "--seed", "9", "--dtype", "bf16"]);
    ended(
        &changed,
        2,
        &["sft.learning_rate (0.01, now 0.02)", "seed (1234, now 9)", "dtype", "--overwrite"],
    );
    assert_eq!(checkpoints(&run), made);
    assert_eq!(std::fs::read_to_string(run.join("config.toml")).unwrap(), config);
    // What a step to come is to do is still open, and threads never matter.
    ended(&with(&["--kl-coef", "0.5", "--threads", "1", "--print-samples", "0"]), 0, &[]);
    assert_eq!(crate::place::all_bytes(&whole), crate::place::all_bytes(&run));
}

#[test]
fn changed_data_and_models_are_refused() {
    let p = Place::new("gpt2");
    let run = stop_after(&p, &words("run", &EACH), "ppo-00000001");
    let again = words("run", &EACH);
    let data = p.path("data.jsonl");
    let text = std::fs::read_to_string(&data).unwrap();
    std::fs::write(&data, text.replacen("Go away!", "Go on!", 1)).unwrap();
    ended(&output(&p, &again), 2, &["data.jsonl is not what it was", "--allow-changed-data"]);
    let actor = run.join("sft/model.safetensors");
    let good = std::fs::read(&actor).unwrap();
    std::fs::copy(p.path("model/model.safetensors"), &actor).unwrap();
    let allowed = [&again[..], &["--allow-changed-data"]].concat();
    ended(&output(&p, &allowed), 2, &["sft/model.safetensors is not what it was"]);
    std::fs::write(&actor, good).unwrap();
    ended(&output(&p, &allowed), 0, &[]);
}

/// The file-size limit of the shell stands for a full disk: a write fails in the middle.
#[test]
fn a_full_disk_leaves_the_checkpoints_before() {
    let p = Place::new("llama");
    let whole = p.train("whole", &STEPS);
    let run = stop_after(&p, &words("run", &EACH), "sft-00000002");
    let size =
        std::fs::metadata(newest(&run, "sft").join("state-00001.safetensors")).unwrap().len();
    let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", size / 512 - 20);
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_duplex")).args(words("run", &EACH));
    let out = shell.current_dir(p.path("")).output().unwrap();
    ended(&out, 3, &["cannot write", "ulimit -f"]);
    assert!(checkpoints(&run).iter().all(|n| !n.starts_with('.')), "{:?}", checkpoints(&run));
    p.output(&["verify", "run"], "");
    ended(&output(&p, &words("run", &EACH)), 0, &[]);
    same(&whole, &run);
}

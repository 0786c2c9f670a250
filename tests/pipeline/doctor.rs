//! `duplex doctor`: what it says of this machine, and what it calls a problem.

use crate::place::{Place, number};
use serde_json::Value;
use std::process::Command;

/// Exit code, standard output and standard error of the command in `p`, started by `program` and
/// its words.
fn doctor(p: &Place, words: &[&str], variables: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_duplex"));
    command
        .arg("doctor")
        .args(words)
        .current_dir(p.path(""))
        .env_remove("DUPLEX_CPU")
        .env("HF_HUB_CACHE", p.path("hub"));
    let out = command.envs(variables.iter().copied()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

/// The findings in the JSON file of that name.
fn findings(p: &Place, file: &str) -> Vec<Value> {
    let report: Value = serde_json::from_slice(&std::fs::read(p.path(file)).unwrap()).unwrap();
    let findings = report["findings"].as_array().unwrap().clone();
    let problems = findings.iter().filter(|f| f["mark"] == "problem").count();
    assert_eq!(report["problems"], problems);
    findings
}

fn find<'a>(all: &'a [Value], name: &str) -> &'a Value {
    all.iter().find(|f| f["name"] == name).unwrap_or_else(|| panic!("no {name} in {all:?}"))
}

#[test]
fn this_machine_is_told_and_left_as_it_was() {
    let p = Place::new("gpt2");
    let before = std::fs::read_dir(p.path("")).unwrap().count();
    let (code, table, stderr) = doctor(&p, &["--output-dir", "run", "--json", "found.json"], &[]);
    let all = findings(&p, "found.json");
    assert_eq!(
        code,
        if all.iter().any(|f| f["mark"] == "problem") { 3 } else { 0 },
        "{table}{stderr}"
    );
    assert_eq!(
        std::fs::read_dir(p.path("")).unwrap().count(),
        before + 1,
        "the JSON file alone is new"
    );
    let names = [
        "processor",
        "CPU path",
        "memory",
        "huge pages",
        "GPU",
        "device",
        "NCCL",
        "MPI",
        "disk",
        "run directory",
        "model cache",
        "open files",
        "locked memory",
        "stack",
        "file size",
        "address space",
    ];
    for name in names {
        let finding = find(&all, name);
        assert!(table.contains(finding["text"].as_str().unwrap()), "{name}: {table}");
        assert!(
            finding["mark"] != "problem" || finding["advice"].is_string(),
            "{name} without advice"
        );
    }
    if cfg!(target_os = "linux") {
        let memory = &find(&all, "memory")["values"];
        assert!(
            number(memory, "total") >= number(memory, "available")
                && number(memory, "available") > 1e6
        );
    }
    assert!(number(&find(&all, "run directory")["values"], "write_bytes_per_s") > 1e3);
    assert!(find(&all, "model cache")["text"].as_str().unwrap().contains("none yet"));
}

#[test]
fn a_masked_processor_is_shown() {
    let p = Place::new("gpt2");
    let (code, table, _) = doctor(&p, &["--json", "found.json"], &[("DUPLEX_CPU", "portable")]);
    let all = findings(&p, "found.json");
    let path = find(&all, "CPU path");
    assert_eq!(path["values"]["used"], "portable");
    if path["values"]["best"] != "portable" {
        assert!(
            path["mark"] == "note" && path["text"].as_str().unwrap().contains("masks"),
            "{table}"
        );
        assert!(table.contains("-> unset DUPLEX_CPU"), "{table}");
    }
    assert_eq!(code, 0, "{table}");
}

/// One line on standard error names the problem and the way out.
#[track_caller]
fn stops((code, table, stderr): (i32, String, String), parts: &[&str]) {
    assert_eq!(code, 3, "{table}{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(table.contains("PROBLEM") && stderr.contains("would stop a run"), "{table}{stderr}");
    parts.iter().for_each(|part| assert!(stderr.contains(part), "{part:?} is not in: {stderr}"));
}

#[test]
fn a_directory_that_cannot_be_written_is_a_problem() {
    let p = Place::new("gpt2");
    stops(
        doctor(&p, &["--output-dir", "/proc/duplex"], &[]),
        &["run directory", "/proc", "--output-dir"],
    );
    let file = doctor(&p, &["--output-dir", "data.jsonl/run", "--json", "found.json"], &[]);
    stops(file, &["run directory", "data.jsonl is no directory"]);
    assert_eq!(find(&findings(&p, "found.json"), "run directory")["mark"], "problem");
}

#[test]
fn a_device_that_is_not_there_is_a_problem() {
    let p = Place::new("gpt2");
    stops(doctor(&p, &["--device", "cuda:4096"], &[]), &["device", "cuda:4096", "--device cpu"]);
}

#[test]
fn few_open_files_are_a_problem_with_the_way_out() {
    let p = Place::new("gpt2");
    let script = format!("ulimit -n 24; cd '{}'; exec \"$0\" doctor", p.path("").display());
    let out = Command::new("sh")
        .arg("-c")
        .arg(script)
        .arg(env!("CARGO_BIN_EXE_duplex"))
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    stops(
        (out.status.code().unwrap(), text(out.stdout), text(out.stderr)),
        &["open files: 24", "ulimit -n"],
    );
}

#[test]
fn mistakes_are_one_line() {
    let p = Place::new("gpt2");
    let (code, table, stderr) = doctor(&p, &["--json", "no/such/folder"], &[]);
    assert_eq!((code, stderr.lines().count()), (2, 1), "{table}{stderr}");
    assert!(stderr.contains("cannot write no/such/folder"), "{stderr}");
    assert_eq!(doctor(&p, &["--device", "gpu"], &[]).0, 2);
}

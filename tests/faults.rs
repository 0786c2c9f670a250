//! Bad input, through the binary: one line that names the thing and the way out, the right exit
//! code, never a panic, and nothing lost.

#[path = "common/checkpoint.rs"]
pub mod checkpoint;

use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

struct Place {
    tmp: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place { tmp: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.tmp.path().join(name)
    }

    fn model(&self) -> PathBuf {
        checkpoint::write(&self.path("model"), "llama")
    }

    fn data(&self) -> PathBuf {
        checkpoint::write_rows(&self.path("data.jsonl"), &checkpoint::pairs(60))
    }

    /// A short supervised run.
    fn sft(&self, model: &Path, data: &Path, more: &[&str]) -> (i32, String) {
        let out = self.path("run");
        let paths = [model, data, &out].map(|p| p.display().to_string());
        let mut args = vec!["sft", "--actor-model", &paths[0], "--data-path", &paths[1]];
        args.extend(["--output-dir", &paths[2], "--max-steps", "2", "--max-seq-len", "64"]);
        args.extend(["--max-prompt-seq-len", "40", "--quiet"]);
        args.extend(more);
        duplex(&args)
    }
}

/// Exit code and standard error.
fn duplex(args: &[&str]) -> (i32, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_duplex")).args(args).output().unwrap();
    (out.status.code().expect("an exit code"), String::from_utf8(out.stderr).unwrap())
}

/// Checks the exit code and that the error is one line with all of `parts`.
#[track_caller]
fn refused((code, stderr): (i32, String), exit: i32, parts: &[&str]) {
    assert_eq!(code, exit, "{stderr}");
    let lines: Vec<&str> = stderr.lines().filter(|l| l.starts_with("duplex: ")).collect();
    assert_eq!(lines.len(), 1, "{stderr}");
    assert_eq!(stderr.lines().last(), Some(lines[0]), "{stderr}");
    for part in parts {
        assert!(lines[0].contains(part), "{part:?} is not in: {}", lines[0]);
    }
    assert!(!stderr.contains("panicked") && !stderr.contains("backtrace"), "{stderr}");
}

fn edit_config(model: &Path, key: &str, value: Value) {
    let path = model.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    std::fs::write(path, config.to_string()).unwrap();
}

#[test]
fn a_missing_model_names_the_directory_and_the_cache() {
    let p = Place::new();
    let data = p.data();
    refused(p.sft(&p.path("absent"), &data, &[]), 2, &["absent", "no such model directory"]);
    let named = p.sft(Path::new("facebook/opt-none"), &data, &[]);
    refused(named, 2, &["facebook/opt-none", "hf download facebook/opt-none"]);
}

#[test]
fn an_unknown_family_or_value_is_named() {
    let p = Place::new();
    let (model, data) = (p.model(), p.data());
    edit_config(&model, "model_type", json!("mamba"));
    refused(p.sft(&model, &data, &[]), 2, &["config.json", "mamba", "llama"]);
    edit_config(&model, "model_type", json!("llama"));
    edit_config(&model, "hidden_act", json!("mish"));
    refused(p.sft(&model, &data, &[]), 2, &["config.json", "hidden_act", "mish"]);
}

#[test]
fn misshapen_and_missing_tensors_are_named_with_both_shapes() {
    let p = Place::new();
    let (model, data) = (p.model(), p.data());
    edit_config(&model, "intermediate_size", json!(56));
    let parts = ["model.layers.0.mlp.gate_proj.weight", "[48, 32]", "[56, 32]"];
    refused(p.sft(&model, &data, &[]), 2, &parts);
    edit_config(&model, "intermediate_size", json!(48));
    edit_config(&model, "num_hidden_layers", json!(3));
    let parts = ["9 tensors are missing", "model.layers.2."];
    refused(p.sft(&model, &data, &[]), 2, &parts);
    edit_config(&model, "num_hidden_layers", json!(1));
    refused(p.sft(&model, &data, &[]), 2, &["9 tensors belong to no part", "model.layers.1."]);
}

#[test]
fn a_truncated_checkpoint_is_found_before_training() {
    let p = Place::new();
    let (model, data) = (p.model(), p.data());
    let file = model.join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    for keep in [0, 5, 100, bytes.len() - 1] {
        std::fs::write(&file, &bytes[..keep]).unwrap();
        refused(p.sft(&model, &data, &[]), 2, &["model.safetensors"]);
    }
}

/// A `torch.save` file whose pickle calls `os.system`.
fn evil_bin(path: &Path, marker: &Path) {
    let command = format!("touch {}", marker.display());
    let mut pickle = b"\x80\x02cposix\nsystem\nX".to_vec();
    pickle.extend((command.len() as u32).to_le_bytes());
    pickle.extend(command.as_bytes());
    pickle.extend(b"\x85R.");
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    zip.start_file("archive/data.pkl", stored).unwrap();
    zip.write_all(&pickle).unwrap();
    zip.finish().unwrap();
}

#[test]
fn a_pickle_that_would_run_code_runs_none() {
    let p = Place::new();
    let (model, data) = (p.model(), p.data());
    std::fs::remove_file(model.join("model.safetensors")).unwrap();
    let marker = p.path("pwned");
    evil_bin(&model.join("pytorch_model.bin"), &marker);
    refused(p.sft(&model, &data, &[]), 2, &["pytorch_model.bin", "posix", "system"]);
    assert!(!marker.exists());
}

#[test]
fn a_missing_or_foreign_tokenizer_is_named() {
    let p = Place::new();
    let (model, data) = (p.model(), p.data());
    let file = model.join("tokenizer.json");
    let good = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    refused(p.sft(&model, &data, &[]), 2, &["no tokenizer.json", "save_pretrained"]);
    std::fs::write(&file, &good[..good.len() / 2]).unwrap();
    refused(p.sft(&model, &data, &[]), 2, &["tokenizer.json"]);
    // A vocabulary larger than the embedding.
    std::fs::write(&file, &good).unwrap();
    let rows = checkpoint::tokenizer(None).vocab_size();
    let text = String::from_utf8(good).unwrap();
    let mut value: Value = serde_json::from_str(&text).unwrap();
    value["added_tokens"].as_array_mut().unwrap().push(json!({"id": rows, "content": "<more>",
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": true}));
    std::fs::write(&file, value.to_string()).unwrap();
    let sizes = [format!("{} tokens", rows + 1), format!("{rows} rows")];
    refused(p.sft(&model, &data, &[]), 2, &[&sizes[0], &sizes[1]]);
}

#[test]
fn empty_data_and_empty_splits_are_named() {
    let p = Place::new();
    let model = p.model();
    let data = p.path("empty.jsonl");
    std::fs::write(&data, "").unwrap();
    refused(p.sft(&model, &data, &[]), 2, &["empty.jsonl"]);
    let data = p.data();
    refused(
        p.sft(&model, &data, &["--data-split", "0,1,1", "--eval-fraction", "0"]),
        2,
        &["split 0", "for sft"],
    );
    refused(p.sft(&model, &p.path("absent.jsonl"), &[]), 2, &["absent.jsonl"]);
}

#[test]
fn a_bad_row_stops_the_run_or_is_skipped_and_counted() {
    let p = Place::new();
    let model = p.model();
    let mut rows = checkpoint::pairs(40);
    rows[6] = json!({"prompt": 7, "chosen": " a", "rejected": " b"});
    let data = checkpoint::write_rows(&p.path("bad.jsonl"), &rows);
    refused(p.sft(&model, &data, &[]), 2, &["bad.jsonl row 7", "prompt", "--on-bad-row skip"]);
    let text = std::fs::read_to_string(&data).unwrap().replacen("{", "{{", 1);
    std::fs::write(&data, text).unwrap();
    refused(p.sft(&model, &data, &[]), 2, &["bad.jsonl row 1", "JSON"]);
    let (code, stderr) = p.sft(&model, &data, &["--on-bad-row", "skip"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("2 rows could not be read, first: ") && stderr.contains("row 1"));
    assert!(p.path("run/sft/model.safetensors").is_file());
}

#[test]
fn long_prompts_are_skipped_and_counted_or_truncated() {
    let p = Place::new();
    let model = p.model();
    let mut rows = checkpoint::pairs(40);
    let long = format!("Human: {}\nAssistant:", "very long words ".repeat(40));
    rows[3]["prompt"] = json!(long);
    let data = checkpoint::write_rows(&p.path("long.jsonl"), &rows);
    let all = ["--data-split", "1,0,0", "--eval-fraction", "0"];
    let (code, stderr) = p.sft(&model, &data, &all);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("1 rows were longer than --max-prompt-seq-len"), "{stderr}");
    assert!(stderr.contains("long.jsonl row 4"), "{stderr}");
    let truncate = [&all[..], &["--on-long-prompt", "truncate", "--overwrite"]].concat();
    let (code, stderr) = p.sft(&model, &data, &truncate);
    assert!(code == 0 && !stderr.contains("longer"), "{stderr}");
    for row in &mut rows {
        row["prompt"] = json!(long);
    }
    let data = checkpoint::write_rows(&p.path("all.jsonl"), &rows);
    let refusal = p.sft(&model, &data, &["--overwrite"]);
    refused(refusal, 2, &["no row is left for sft", "--on-long-prompt truncate"]);
    let too_long = p.sft(&model, &data, &["--set", "max_seq_len=4096", "--overwrite"]);
    refused(too_long, 2, &["--max-seq-len", "4096", "128 positions"]);
}

#[test]
fn an_unknown_key_gets_the_nearest_name() {
    let p = Place::new();
    let file = p.path("run.toml");
    std::fs::write(&file, "[sft]\nlearning_rat = 1e-4\n").unwrap();
    let config = file.display().to_string();
    let refusal = duplex(&["train", "--config", &config]);
    refused(refusal, 2, &["run.toml", "learning_rat", "did you mean", "learning_rate"]);
    refused(duplex(&["trian"]), 2, &["trian", "did you mean \"train\"?"]);
    std::fs::write(&file, "[ppo]\nkl_coef = -1\n").unwrap();
    refused(duplex(&["train", "--config", &config]), 2, &["run.toml", "kl_coef", "-1"]);
}

#[test]
fn another_run_is_never_overwritten_unasked() {
    let p = Place::new();
    let (model, data) = (p.model(), p.data());
    let (code, stderr) = p.sft(&model, &data, &[]);
    assert_eq!(code, 0, "{stderr}");
    let weights = || std::fs::read(p.path("run/sft/model.safetensors")).unwrap();
    let before = weights();
    refused(p.sft(&model, &data, &[]), 2, &["run/sft exists already", "--overwrite"]);
    assert_eq!(weights(), before);
    // A failing run replaces nothing either.
    refused(p.sft(&p.path("none"), &data, &["--overwrite"]), 2, &["none"]);
    assert_eq!(weights(), before);
    let (code, _) = p.sft(&model, &data, &["--overwrite", "--seed", "9"]);
    assert!(code == 0 && weights() != before);
    refused(p.sft(&model, &data, &["--set", "output_dir=/proc/duplex"]), 2, &["/proc/duplex"]);
}

#[test]
fn a_template_that_takes_all_memory_ends_in_one_line() {
    let p = Place::new();
    let (model, data) = (p.model(), p.path("chat.jsonl"));
    let message = |role: &str| format!("{{\"role\": \"{role}\", \"content\": \"aa\"}}");
    let row = format!("{{\"messages\": [{}, {}]}}", message("user"), message("assistant"));
    std::fs::write(&data, row.repeat(9)).unwrap();
    let double = "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ \
                  ns.x %}{% endfor %}";
    for template in
        [double, "{{ 'a\nb' | indent(10 ** 12) }}", "{{ '%999999999999s' | format('a') }}"]
    {
        std::fs::write(model.join("chat_template.jinja"), template).unwrap();
        refused(p.sft(&model, &data, &["--overwrite"]), 2, &["row 1: chat template of"]);
    }
}

/// The file-size limit of the shell stands for a full disk: a write fails in the middle.
#[test]
fn a_full_disk_leaves_the_old_model_whole() {
    let p = Place::new();
    let (model, data) = (p.model(), p.data());
    let (code, stderr) = p.sft(&model, &data, &[]);
    assert_eq!(code, 0, "{stderr}");
    let file = p.path("run/sft/model.safetensors");
    let before = std::fs::read(&file).unwrap();
    let run = p.path("run");
    let words = [env!("CARGO_BIN_EXE_duplex").as_ref(), model.as_path(), &data, &run];
    let words = words.map(|p| p.display().to_string());
    // Blocks of 512 bytes: less than the weights take, more than any other file.
    let blocks = before.len() / 512 - 20;
    let script = format!(
        "trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" sft --actor-model \"$1\" --data-path \"$2\" \
         --output-dir \"$3\" --max-steps 2 --max-seq-len 64 --quiet --overwrite --seed 5"
    );
    let mut shell = Command::new("sh");
    let out = shell.arg("-c").arg(script).args(&words).output().unwrap();
    let stderr = String::from_utf8(out.stderr).unwrap();
    refused((out.status.code().unwrap(), stderr), 3, &["cannot write", "ulimit -f"]);
    assert_eq!(std::fs::read(&file).unwrap(), before);
    let left: Vec<String> = std::fs::read_dir(&run)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.contains(".tmp-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn weights_that_are_no_numbers_are_told_with_tensor_and_count() {
    let p = Place::new();
    let (model, data) = (p.model(), p.data());
    let file = model.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let n = bytes.len();
    bytes[n - 4..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    bytes[n - 12..n - 8].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&file, &bytes).unwrap();
    let (_, stderr) = p.sft(&model, &data, &[]);
    let told = stderr.lines().find(|l| l.contains("2 values are not finite in "));
    assert!(told.is_some_and(|l| l.contains("model") && l.contains("weight")), "{stderr}");
    let strict = p.sft(&model, &data, &["--strict-weights", "--overwrite"]);
    refused(strict, 2, &["2 values are not finite in ", "--strict-weights"]);
}

#[test]
fn a_limit_of_memory_halves_micro_batches_which_is_told_once() {
    let p = Place::new();
    let (model, data) = (p.model(), p.path("data.jsonl"));
    let row = json!({"prompt": "Human: Say it.\nAssistant:", "chosen": "word ".repeat(12),
        "rejected": "No."});
    checkpoint::write_rows(&data, &vec![row; 200]);
    let more = ["--memory-limit", "1", "--per-device-train-batch-size", "16"];
    let (code, stderr) = p.sft(&model, &data, &more);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(stderr.matches("it is halved").count(), 1, "{stderr}");
}

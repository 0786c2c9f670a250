//! Runs that go on at another time: on the next day, and beyond their end.

use crate::checkpoint;
use crate::place::{Place, bytes, metrics};
use crate::process::{ended, same, signal, until};
use duplex::formats::OutDir;
use std::path::Path;
use std::process::{Command, Stdio};

/// A template that writes the date.
const DATED: &str = "{% for m in messages %}{{ strftime_now('%d') }} \
                     {{ m.role }}: {{ m.content }}\n\
                     {% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";

const DAY: u64 = 24 * 60 * 60;

/// Conversations for all steps, and a model whose template writes the date.
fn dated() -> Place {
    let p = Place::new("llama");
    checkpoint::tokenizer(Some(DATED)).save(&OutDir::create(&p.path("model")).unwrap()).unwrap();
    let user = |text: String| serde_json::json!([{"role": "user", "content": text}]);
    let says = |text: String| serde_json::json!([{"role": "assistant", "content": text}]);
    let row = |i: usize| {
        serde_json::json!({"prompt": user(format!("Say {i}.")),
            "chosen": says(format!("It is {i}.")), "rejected": says("No!".into())})
    };
    let rows: Vec<_> = (0..40).map(row).collect();
    checkpoint::write_rows(&p.path("data.jsonl"), &rows);
    p
}

fn command(p: &Place, now: u64, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_duplex"));
    command.args(words).current_dir(p.path("")).env("SOURCE_DATE_EPOCH", now.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn a_run_goes_on_with_the_date_of_its_beginning() {
    let p = dated();
    let words = |to| crate::process::words(to, &["--save-every", "1"]);
    let now = 1_700_000_000;
    ended(&command(&p, now, &words("whole")).output().unwrap(), 0, &[]);
    ended(&command(&p, now + 9 * DAY, &words("later")).output().unwrap(), 0, &[]);
    assert_ne!(
        bytes(&p.path("whole/sft")),
        bytes(&p.path("later/sft")),
        "the date is in the prompts"
    );
    // Stopped at the very beginning, and within each step.
    let mut day = 0;
    for made in ["sft-00000000", "sft-00000002", "reward-00000003", "ppo-00000001"] {
        let mut child = command(&p, now + day * DAY, &words("run")).spawn().unwrap();
        let place = p.path("run/checkpoints").join(made);
        until(|| place.exists() || child.try_wait().unwrap().is_some());
        signal(&child, libc::SIGTERM);
        ended(&child.wait_with_output().unwrap(), 75, &["the same command resumes"]);
        day += 1;
    }
    ended(&command(&p, now + day * DAY, &words("run")).output().unwrap(), 0, &[]);
    same(&p.path("whole"), &p.path("run"));
    let mut wrong = command(&p, now, &words("wrong"));
    wrong.env("SOURCE_DATE_EPOCH", "yesterday");
    ended(&wrong.output().unwrap(), 2, &["SOURCE_DATE_EPOCH"]);
}

/// Runs a step for so many epochs or iterations, to be the same at any length.
fn step(p: &Place, name: &str, to: &str, more: &[&str]) -> std::process::Output {
    let head = [name, "--config", "long.toml", "--actor-model", "model", "--output-dir", to];
    let words = [&head[..], &["--data-path", "data.jsonl"], more].concat();
    command(p, 1_700_000_000, &words).output().unwrap()
}

fn models(run: &Path, step: &str) -> Vec<Vec<u8>> {
    let names: &[&str] = if step == "ppo" { &["ppo/actor", "ppo/critic"] } else { &[step] };
    names.iter().map(|name| bytes(&run.join(name))).collect()
}

#[test]
fn a_finished_run_is_trained_further_as_if_it_had_been_longer() {
    let p = Place::new("gpt2");
    let text = std::fs::read_to_string(p.path("short.toml")).unwrap();
    let text = text.replace("max_steps = 2", "max_steps = 0\nlr_scheduler_type = \"constant\"");
    std::fs::write(p.path("long.toml"), text).unwrap();
    for name in ["sft", "reward", "ppo"] {
        let rule: &[&str] = if name == "ppo" { &["--reward-rule", "brevity"] } else { &[] };
        let (short, long) = (format!("{name}-1"), format!("{name}-3"));
        let go = |to: &str, more: &[&str]| step(&p, name, to, &[rule, more].concat());
        ended(&go(&long, &["--num-train-epochs", "3"]), 0, &[]);
        ended(&go(&short, &[]), 0, &[]);
        let once = models(&p.path(&short), name);
        // Without the flag it is refused, with the way out; with it, more is needed.
        ended(&go(&short, &["--num-train-epochs", "3"]), 2, &["exists already", "--extend"]);
        ended(&go(&short, &["--extend"]), 2, &["1 epochs already"]);
        let few = go(&short, &["--extend", "--max-steps", "2"]);
        ended(&few, 2, &["iterations already", "larger --max-steps"]);
        assert_eq!(models(&p.path(&short), name), once);
        ended(&go(&short, &["--num-train-epochs", "3", "--extend"]), 0, &[]);
        assert_eq!(models(&p.path(&short), name), models(&p.path(&long), name), "{name}");
        let count = |to: &str| metrics(&p.path(to), name).len();
        assert_eq!(count(&short), count(&long));
    }
    // By steps, twice.
    let go = |to: &str, more: &[&str]| step(&p, "sft", to, more);
    ended(&go("five", &["--max-steps", "5"]), 0, &[]);
    ended(&go("two", &["--max-steps", "2"]), 0, &[]);
    for n in ["4", "5"] {
        ended(&go("two", &["--max-steps", n, "--extend"]), 0, &[]);
    }
    assert_eq!(models(&p.path("two"), "sft"), models(&p.path("five"), "sft"));
    // Other keys must be as they were, and the state must be there.
    let other = go("two", &["--max-steps", "9", "--extend", "--learning-rate", "1e-5"]);
    ended(&other, 2, &["another configuration", "sft.learning_rate"]);
    for name in crate::process::checkpoints(&p.path("two")) {
        if name != "sft-finished" {
            std::fs::remove_dir_all(p.path("two/checkpoints").join(name)).unwrap();
        }
    }
    let gone = go("two", &["--max-steps", "9", "--extend"]);
    ended(&gone, 2, &["no checkpoint of sft is left", "optimizer state is gone"]);
    assert!(p.path("two/sft/model.safetensors").exists());
}

//! Data in its usual forms: the same rows in another form give the same weights.

use crate::checkpoint;
use crate::place::{Place, all_bytes, bytes, events, metrics};
use duplex::arch::Config;
use duplex::base::DType;
use duplex::data::Tokenizer;
use duplex::formats::OutDir;
use duplex::model::{Head, LoadOptions, Model, SaveAs, save_model};
use serde_json::{Value, json};

const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + \
    '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}\
    {% endif %}";

/// Question, good answer and bad answer.
fn talks(n: usize) -> Vec<[String; 3]> {
    (0..n)
        .map(|i| [format!("Say {i} twice."), format!("{i} {i}."), format!("Never {}!", i % 7)])
        .collect()
}

pub(crate) fn chat(question: &str, answer: &str) -> Value {
    json!([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
}

#[test]
fn transcripts_conversations_and_pairs_say_the_same() {
    let p = Place::new("llama");
    let transcript = |q: &str, a: &str| format!("\n\nHuman: {q}\n\nAssistant: {a}");
    let hh: Vec<Value> = talks(60)
        .iter()
        .map(|[q, c, r]| json!({"chosen": transcript(q, c), "rejected": transcript(q, r)}))
        .collect();
    checkpoint::write_rows(&p.path("hh.jsonl"), &hh);
    let conversations: Vec<Value> = talks(60)
        .iter()
        .map(|[q, c, r]| json!({"chosen": chat(q, c), "rejected": chat(q, r)}))
        .collect();
    checkpoint::write_rows(&p.path("chat.jsonl"), &conversations);
    // DeepSpeed-Chat's local files: one JSON list, in a folder with the held-out rows beside it.
    let pairs: Vec<Value> = talks(60)
        .iter()
        .map(|[q, c, r]| {
            let prompt = format!("\n\nHuman: {q}\n\nAssistant:");
            json!({"prompt": prompt, "chosen": format!(" {c}"), "rejected": format!(" {r}")})
        })
        .collect();
    std::fs::write(p.path("pairs.json"), json!(pairs).to_string()).unwrap();
    let hh = p.train("hh", &["--data-path", "hh.jsonl"]);
    for (to, file) in [("chat", "chat.jsonl"), ("pairs", "pairs.json")] {
        assert_eq!(all_bytes(&p.train(to, &["--data-path", file])), all_bytes(&hh), "{file}");
    }
    std::fs::create_dir(p.path("local")).unwrap();
    std::fs::write(p.path("local/train.json"), json!(pairs[..50]).to_string()).unwrap();
    std::fs::write(p.path("local/eval.json"), json!(pairs[50..]).to_string()).unwrap();
    let local = p.train("folder", &["--data-path", "local", "--reward-eval-interval", "2"]);
    assert!(metrics(&local, "reward")[1].get("eval_accuracy").is_some());
}

/// A GPT-2 whose tokenizer has control tokens and a template for them.
pub(crate) fn chatml_model(p: &Place) {
    let texts = ["user\nSay it twice.assistant\nNever 1 1. 2 2."; 4];
    let special = ["<|end|>", "<|im_start|>", "<|im_end|>"];
    let tokenizer =
        Tokenizer::byte_level_bpe(texts.into_iter(), 290, &special, Some(CHATML)).unwrap();
    let fields = checkpoint::config("gpt2", tokenizer.vocab_size());
    let config = Config::from_map(fields.as_object().unwrap().clone());
    let model = Model::random(
        &config,
        &LoadOptions { seed: 11, ..LoadOptions::frozen(Head::Lm, DType::F32) },
    )
    .unwrap();
    save_model(&model, &OutDir::create(&p.path("chatml")).unwrap(), &SaveAs::default(), None)
        .unwrap();
    tokenizer.save(&OutDir::create(&p.path("chatml")).unwrap()).unwrap();
}

#[test]
fn conversations_go_through_the_chat_template() {
    let p = Place::new("gpt2");
    chatml_model(&p);
    let rows: Vec<Value> = talks(60)
        .iter()
        .map(|[q, c, r]| json!({"chosen": chat(q, c), "rejected": chat(q, r)}))
        .collect();
    checkpoint::write_rows(&p.path("chat.jsonl"), &rows);
    let settings = ["--actor-model", "chatml", "--data-path", "chat.jsonl"];
    let run = p.run("train", "run", &settings);
    let samples: Vec<Value> = events(&run).into_iter().filter(|e| e["event"] == "sample").collect();
    assert!(!samples.is_empty());
    for sample in &samples {
        let prompt = sample["prompt"].as_str().unwrap();
        // The control tokens are tokens: decoding leaves them out.
        assert!(
            prompt.starts_with("user\nSay ") && prompt.ends_with("\nassistant\n"),
            "{prompt:?}"
        );
    }
    let plain = [&settings[..], &["--chat-format", "human_assistant"]].concat();
    let plain = p.run("train", "plain", &plain);
    assert_ne!(bytes(&plain.join("sft")), bytes(&run.join("sft")));
    // The template stays with the model, so a conversation needs no further word.
    let how = ["--temperature", "0", "--max-new-tokens", "8", "--system", "Be short."];
    let answer = p.output(&[&["chat", "run/ppo/actor"], &how[..]].concat(), "Say 3 twice.\n");
    assert!(answer.ends_with('\n') && !answer.contains("<|im_"), "{answer:?}");
}

#[test]
fn weights_say_how_much_of_each_set_an_epoch_takes() {
    let p = Place::new("opt");
    checkpoint::write_rows(&p.path("a.jsonl"), &checkpoint::pairs(12));
    checkpoint::write_rows(&p.path("b.jsonl"), &checkpoint::pairs(20));
    let all = ["--actor-model", "model", "--data-split", "1,0,0", "--eval-fraction", "0"];
    let by_row = ["--max-steps", "0", "--per-device-train-batch-size", "1"];
    let sets = ["--data-path", "a.jsonl", "b.jsonl:0.25", "--sft-only-data-path", "b.jsonl:0.1"];
    let run = p.run("sft", "run", &[&all[..], &by_row, &sets].concat());
    assert_eq!(metrics(&run, "sft").len(), 12 + 5 + 2);
    let only = ["--actor-model", "model", "--sft-only-data-path", "a.jsonl"];
    p.output(&[&["sft", "--config", "short.toml", "--output-dir", "only"], &only[..]].concat(), "");
    let too_much = ["sft", "--actor-model", "model", "--data-path", "a.jsonl:1e9"];
    let out = p.command(&[&too_much[..], &["--output-dir", "none"]].concat(), "");
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.code() == Some(2) && stderr.contains("a.jsonl:1e9"), "{stderr}");
}

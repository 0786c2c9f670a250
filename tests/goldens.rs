//! Every family against outputs of `transformers`: logits, loss, gradients, greedy tokens with and
//! without the cache, adapters of `peft`, reward heads. How the goldens were made:
//! `tests/golden/README.md`.

#[path = "goldens/adapters.rs"]
mod adapters;
#[path = "common/device.rs"]
pub mod device;
#[path = "goldens/preferences.rs"]
mod preferences;
#[path = "goldens/spellings.rs"]
mod spellings;

use device::device;
use duplex::base::DType;
use duplex::engine::{Engine, LossOutput};
use duplex::formats::OutDir;
use duplex::formats::layout::scatter_rows;
use duplex::formats::{Checkpoint, SaveTensor, write_safetensors};
use duplex::model::{Head, LoadOptions, Model, SaveAs, save_model};
use duplex::op::weighted_sum::{WeightedSum, weighted_sum};
use duplex::pool::ParamId;
use duplex::rollout::Sampling;
use duplex::tape::{ActivationCheckpointing, Workspace};
use duplex::train::{AdamWConfig, AdamWState, Batch};
use serde_json::Value;
use std::path::{Path, PathBuf};

struct Golden {
    file: Checkpoint,
}

impl Golden {
    fn open(name: &str) -> Golden {
        Golden { file: Checkpoint::open_file(&dir(name).join("golden.safetensors")).unwrap() }
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.file.read_f32(name).unwrap()
    }

    fn ints(&self, name: &str) -> Vec<i32> {
        let raw = self.file.read_raw(name).unwrap();
        raw.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as i32).collect()
    }

    fn rows(&self) -> Vec<Vec<i32>> {
        (0..3).map(|i| self.ints(&format!("ids_{i}"))).collect()
    }
}

fn dir(name: &str) -> PathBuf {
    Path::new("tests/golden").join(name)
}

fn load(name: &str, head: Head, dtype: DType, train: bool) -> Model {
    let options = LoadOptions { train, ..LoadOptions::frozen(head, dtype) }.on(device());
    Model::load(&dir(name), &options).unwrap()
}

fn relative(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let diff: f64 = got.iter().zip(want).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let norm: f64 = want.iter().map(|b| f64::from(*b).powi(2)).sum();
    (diff / norm).sqrt()
}

/// Logits at every position of packed `rows`.
fn logits(model: &Model, rows: &[Vec<i32>]) -> Vec<Vec<f32>> {
    let mut ws = Workspace::new(device(), usize::MAX).unwrap();
    let selected: Vec<_> = rows.iter().map(|r| (r.as_slice(), 0..r.len())).collect();
    let batch = Batch::new(&selected);
    let flat = ws
        .run("logits", &batch, |tape, batch: &Batch| {
            let (hidden, select) = batch.hidden(tape, model, duplex::model::Pass::EVAL)?;
            let logits = model.logits(tape, hidden, select)?;
            tape.read_f32(logits)
        })
        .unwrap();
    let mut flat = flat.as_slice();
    rows.iter()
        .map(|r| {
            let (mine, rest) = flat.split_at(r.len() * model.arch.vocab);
            flat = rest;
            mine.to_vec()
        })
        .collect()
}

fn check_logits(name: &str, golden: &str, limit: f64, dtype: DType) {
    let (model, golden) = (load(name, Head::Lm, dtype, false), Golden::open(golden));
    let rows = golden.rows();
    let together = logits(&model, &rows);
    for (i, row) in rows.iter().enumerate() {
        let error = relative(&together[i], &golden.floats(&format!("logits_{i}")));
        println!("{name} {dtype} row {i}: {error:.1e}");
        assert!(error < limit, "{name} {dtype} row {i}: {error:.2e}");
        let alone = logits(&model, std::slice::from_ref(row));
        assert_eq!(alone[0], together[i], "{name} {dtype} row {i}: alone and in the batch");
    }
}

fn check_greedy(name: &str, golden: &str) {
    let (model, golden) = (load(name, Head::Lm, DType::F32, false), Golden::open(golden));
    let rows = golden.rows();
    let prompts: Vec<&[i32]> = rows.iter().map(|r| &r[..5]).collect();
    let mut ws = Workspace::new(device(), usize::MAX).unwrap();
    let mut engine = Engine::frozen(model);
    let sampling = Sampling::greedy(16, vec![]);
    let answers =
        engine.generate(&mut ws, &prompts, &[0, 1, 2], &sampling, &mut |_, _| {}).unwrap();
    for (i, answer) in answers.iter().enumerate() {
        assert_eq!(answer.tokens, golden.ints(&format!("greedy_{i}")), "{name} row {i}, cached");
        // The same without the cache: the whole sequence again for each token.
        let mut ids = rows[i][..5].to_vec();
        for _ in 0..16 {
            let all = logits(&engine.model, std::slice::from_ref(&ids));
            let last = &all[0][(ids.len() - 1) * engine.model.arch.vocab..];
            let best = (0..last.len()).rev().max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
            ids.push(best as i32);
        }
        assert_eq!(&ids[5..], answer.tokens, "{name} row {i}, without cache");
    }
}

fn adamw() -> AdamWConfig {
    AdamWConfig {
        learning_rate: 0.0,
        lora_learning_rate: 0.0,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.0,
        max_grad_norm: 1.0,
        state: AdamWState::Full,
        offload: false,
    }
}

/// Loss over all next-token predictions, and the engine with its gradients.
fn train_loss(name: &str, rows: &[Vec<i32>]) -> (f32, Engine) {
    let engine = Engine::trained(
        load(name, Head::Lm, DType::F32, true),
        adamw(),
        ActivationCheckpointing::Full,
    )
    .unwrap();
    let mut ws = Workspace::new(device(), usize::MAX).unwrap();
    let selected: Vec<_> = rows.iter().map(|r| (r.as_slice(), 0..r.len() - 1)).collect();
    let mut batch = Batch::new(&selected);
    let n = batch.select.len();
    batch.columns = vec![vec![1.0; n]];
    let terms = engine
        .accumulate(&mut ws, "nll", &batch, None, &|tape, model, batch, hidden, select| {
            let targets = tape.input_i32(&batch.targets)?;
            let (logp, _) = model.logprobs(tape, hidden, select, targets, 1.0)?;
            let weights = tape.input_f32(&batch.columns[0])?;
            let scale = -1.0 / n as f32;
            let loss = weighted_sum(tape, WeightedSum { scale }, logp, weights)?;
            Ok(LossOutput { losses: vec![loss], stats: vec![] })
        })
        .unwrap();
    engine.model.store.zero_unset_grads().unwrap();
    (terms[0][0], engine)
}

/// The gradient of a checkpoint tensor, in the checkpoint's layout.
fn grad_of(model: &Model, tensor: &str) -> Vec<f32> {
    for adapter in model.adapters() {
        for (id, part) in [(adapter.a, "lora_A"), (adapter.b, "lora_B")] {
            if tensor == format!("base_model.model.{}.{part}.weight", adapter.module) {
                return model.store.read_grad(id).unwrap();
            }
        }
    }
    for (i, source) in model.params.sources.iter().enumerate() {
        let Some(source) = source else { continue };
        let all = model.store.param(ParamId(i)).spec.shape.clone();
        if let (Some(order), true) = (&source.order, source.tensors[0].0 == tensor) {
            let columns: usize = all[1..].iter().product();
            return scatter_rows(order, columns, &model.store.read_grad(ParamId(i)).unwrap());
        }
        let mut first = 0;
        for (name, rows) in &source.tensors {
            let columns: usize = model.store.param(ParamId(i)).spec.shape[1..].iter().product();
            if name == tensor {
                let all = model.store.read_grad(ParamId(i)).unwrap();
                let mine = &all[first * columns..(first + rows) * columns];
                if !source.transposed {
                    return mine.to_vec();
                }
                let at = |k: usize| mine[(k % rows) * columns + k / rows];
                return (0..mine.len()).map(at).collect();
            }
            first += rows;
        }
    }
    panic!("{tensor} is in no parameter");
}

fn check_training(name: &str) {
    let golden = Golden::open(name);
    let (loss, engine) = train_loss(name, &golden.rows());
    let want = golden.floats("loss")[0];
    assert!((loss - want).abs() < 1e-5 * want.abs(), "{name}: loss {loss}, expected {want}");
    let mut checked = 0;
    for tensor in golden.file.names().filter_map(|n| n.strip_prefix("grad.")) {
        let error =
            relative(&grad_of(&engine.model, tensor), &golden.floats(&format!("grad.{tensor}")));
        println!("{name} gradient of {tensor}: {error:.1e}");
        assert!(error < 1e-4, "{name}: gradient of {tensor}: {error:.2e}");
        checked += 1;
    }
    assert!(checked >= 2, "{name}: {checked} gradients");
}

/// Families beyond the first three, each a folder with its own golden.
const FAMILIES: [&str; 14] = [
    "bloom",
    "bloom_5h",
    "codegen",
    "gemma2",
    "gpt_neo",
    "gpt_neox",
    "gpt_neox_serial",
    "gptj",
    "llama3",
    "mistral",
    "opt_350m",
    "phi3",
    "qwen2",
    "qwen3",
];

const MODELS: [(&str, &str); 6] = [
    ("opt", "opt"),
    ("gpt2", "gpt2"),
    ("gpt2_bin", "gpt2"),
    ("gpt2_bin_sharded", "gpt2"),
    ("llama_tied", "llama_tied"),
    ("llama_untied", "llama_untied"),
];

const ADAPTERS: [&str; 3] = ["opt_lora", "opt_lora_mlp", "llama_lora"];

#[test]
fn logits_match_and_a_row_alone_equals_the_row_in_a_batch() {
    let own = FAMILIES.into_iter().chain(ADAPTERS).map(|a| (a, a));
    for (name, golden) in MODELS.into_iter().chain(own) {
        check_logits(name, golden, 1e-5, DType::F32);
    }
}

#[test]
fn bf16_is_close_to_f32() {
    // Tensor cores take the probabilities of attention in bf16 too.
    let limit = if device().has_kernels() { 2.5e-2 } else { 2e-2 };
    for (name, golden) in MODELS.into_iter().chain(FAMILIES.map(|f| (f, f))) {
        check_logits(name, golden, limit, DType::Bf16);
    }
}

#[test]
fn greedy_tokens_match_with_and_without_the_cache() {
    let own = FAMILIES.into_iter().chain(ADAPTERS).map(|a| (a, a));
    for (name, golden) in MODELS.into_iter().chain(own) {
        check_greedy(name, golden);
    }
}

#[test]
fn loss_and_gradients_match() {
    let first = ["opt", "gpt2", "llama_tied", "llama_untied"];
    for name in first.into_iter().chain(FAMILIES).chain(ADAPTERS) {
        check_training(name);
    }
}

#[test]
fn reward_scores_and_gradients_match() {
    let golden = Golden::open("llama_reward");
    let rows = golden.rows();
    let model = load("llama_reward", Head::Score, DType::F32, true);
    let engine = Engine::trained(model, adamw(), ActivationCheckpointing::None).unwrap();
    let mut ws = Workspace::new(device(), usize::MAX).unwrap();
    let every: Vec<_> = rows.iter().map(|r| (r.as_slice(), 0..r.len())).collect();
    let scores = engine.scores(&mut ws, &Batch::new(&every)).unwrap();
    let want: Vec<f32> = (0..3).flat_map(|i| golden.floats(&format!("scores_{i}"))).collect();
    assert!(relative(&scores, &want) < 1e-5);
    let last: Vec<_> = rows.iter().map(|r| (r.as_slice(), r.len() - 1..r.len())).collect();
    let batch = Batch::new(&last);
    engine
        .accumulate(&mut ws, "sum", &batch, None, &|tape, model, _, hidden, select| {
            let scores = model.scores(tape, hidden, select)?;
            let ones = tape.input_f32(&[1.0; 3])?;
            let loss = weighted_sum(tape, WeightedSum { scale: 1.0 }, scores, ones)?;
            Ok(LossOutput { losses: vec![loss], stats: vec![] })
        })
        .unwrap();
    engine.model.store.zero_unset_grads().unwrap();
    for tensor in golden.file.names().filter_map(|n| n.strip_prefix("grad.")) {
        let error =
            relative(&grad_of(&engine.model, tensor), &golden.floats(&format!("grad.{tensor}")));
        assert!(error < 1e-4, "gradient of {tensor}: {error:.2e}");
    }
}

/// Published checkpoints spell their configs the older way.
#[test]
fn configs_in_the_published_spelling_mean_the_same() {
    for name in FAMILIES {
        let read = |file: &str| {
            let text = std::fs::read_to_string(dir(name).join(file)).unwrap();
            let map: serde_json::Map<_, _> = serde_json::from_str(&text).unwrap();
            format!("{:?}", duplex::arch::Config::from_map(map).arch().unwrap())
        };
        assert_eq!(read("config.json"), read("config_published.json"), "{name}");
    }
}

/// Tensors of a file that is written: new name, dtype and shape, bytes.
type Tensors = Vec<(String, SaveTensor, Vec<u8>)>;

fn tensors_of(file: &Checkpoint) -> Tensors {
    let one = |n: &str| {
        let info = file.info(n).unwrap();
        let bytes = file.read_raw(n).unwrap();
        (n.to_string(), SaveTensor::new(n, info.dtype, &info.shape), bytes)
    };
    file.names().map(one).collect()
}

/// Writes a directory anew: the settings of a file of JSON, changed, and tensors.
fn write_changed(
    to: &Path,
    settings: &Path,
    change: impl Fn(&mut Value),
    weights: &str,
    all: &Tensors,
) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to).unwrap();
    let mut values: Value =
        serde_json::from_str(&std::fs::read_to_string(settings).unwrap()).unwrap();
    change(&mut values);
    std::fs::write(to.join(settings.file_name().unwrap()), values.to_string()).unwrap();
    let list: Vec<SaveTensor> =
        all.iter().map(|(n, t, _)| SaveTensor::new(n, t.info.dtype, &t.info.shape)).collect();
    write_safetensors(&OutDir::create(&to).unwrap(), weights, &list, None, &mut |t| {
        Ok(all.iter().find(|(n, ..)| *n == t.name).unwrap().2.clone().into())
    })
    .unwrap();
}

/// Every tensor of a checkpoint by name, as its bytes.
fn tensors(dir: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let bytes = |name: &str| checkpoint.read_raw(name).unwrap();
    checkpoint.names().map(|n| (n.to_string(), bytes(n))).collect()
}

#[test]
fn a_round_trip_keeps_every_byte_and_the_prefix_may_be_missing() {
    for name in ["opt", "gpt2", "llama_tied", "llama_untied"].into_iter().chain(FAMILIES) {
        let tmp = tempfile::tempdir().unwrap();
        let (saved, short) = (tmp.path().join("saved"), tmp.path().join("short"));
        let model = load(name, Head::Lm, DType::F32, false);
        save_model(&model, &OutDir::create(&saved).unwrap(), &SaveAs::default(), None).unwrap();
        let original = tensors(&dir(name));
        assert!(tensors(&saved) == original, "{name}: saved tensors differ");
        // As published base models name them.
        std::fs::create_dir(&short).unwrap();
        std::fs::copy(dir(name).join("config.json"), short.join("config.json")).unwrap();
        let prefix = model.arch.family.names.prefix;
        let checkpoint = Checkpoint::open(&dir(name)).unwrap();
        let full = |short: &str| match original.contains_key(short) {
            true => short.to_string(),
            false => format!("{prefix}{short}"),
        };
        let list: Vec<SaveTensor> = checkpoint
            .names()
            .map(|n| {
                let info = checkpoint.info(n).unwrap();
                SaveTensor::new(n.strip_prefix(prefix).unwrap_or(n), info.dtype, &info.shape)
            })
            .collect();
        write_safetensors(
            &OutDir::create(&short).unwrap(),
            "model.safetensors",
            &list,
            Some(("format", "pt")),
            &mut |t| Ok(original[&full(&t.name)].clone().into()),
        )
        .unwrap();
        let again = Model::load(&short, &LoadOptions::frozen(Head::Lm, DType::F32)).unwrap();
        save_model(&again, &OutDir::create(&saved).unwrap(), &SaveAs::default(), None).unwrap();
        assert!(tensors(&saved) == original, "{name}: without the prefix");
    }
}

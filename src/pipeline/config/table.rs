//! The one table of keys. Flags, `--help`, the check of the TOML file, `--set` and `--print-config`
//! are all derived from it; defaults are those of the configuration structs. A test compares both.

use crate::algo::{ALGORITHMS, Algorithm, Start, meant, names};
use crate::config::Key;
use crate::config::key::{
    BENCH, CHAT, Commands, DOCTOR, EVAL, INSPECT, Kind, PLAN, RUNS, TRAIN, VERIFY, algorithm,
};
use crate::model::Head;
use std::sync::LazyLock;

/// Most tokens of a sequence, a batch or a step anyone can mean.
const TOKENS: i64 = 1 << 24;
/// Most steps, examples or sequences anyone can mean.
const COUNT: i64 = 1_000_000_000;

const RATE: Kind = Kind::above_zero(0.1);
const LENGTH: Kind = Kind::int(1, 1 << 20);
const BATCH: Kind = Kind::int(1, 1 << 16);
const SOME_COUNT: Kind = Kind::int(1, COUNT);
const TEXTS: Kind = Kind::List(&Kind::Text);
const DTYPES: Kind = Kind::Choice(&["bf16", "f32"]);
const FORMATS: Kind = Kind::Choice(&["auto", "template", "human_assistant"]);
const STATES: Kind = Kind::Choice(&["full", "compact"]);
const STAGES: Kind = Kind::Choice(&["auto", "0", "1", "2", "3"]);
const SHAPES: Kind = Kind::Choice(&["opt-125m", "gpt2", "smollm2-135m", "tiny"]);
const STAGE: Kind = Kind::Named { all: names, meant };
const CHECKPOINTING: Kind = Kind::Choice(&["none", "cheap", "full"]);

const fn key(path: &'static str, commands: Commands, kind: Kind, help: &'static str) -> Key {
    Key::new(path, commands, kind, help)
}

/// Keys of a training run: those of all stages, the sections of the algorithms, LoRA.
pub static RUN: LazyLock<Vec<Key>> = LazyLock::new(|| {
    let sections = ALGORITHMS
        .iter()
        .enumerate()
        .flat_map(|(i, a)| a.section.keys(a.name, TRAIN, algorithm(i)));
    let shared = [models(), ranks(), data(), memory()].into_iter().flatten();
    shared.chain(sections).chain(lora()).collect()
});

/// The commands of the algorithms that `is` says.
fn commands(is: impl Fn(&Algorithm) -> bool) -> Commands {
    let all = ALGORITHMS.iter().enumerate().filter(|(_, a)| is(a));
    all.map(|(i, _)| algorithm(i)).sum()
}

/// Aliases for as long as the program runs: there is one table of keys.
fn of(aliases: &[(Commands, &'static str)]) -> &'static [(Commands, &'static str)] {
    aliases.to_vec().leak()
}

/// Keys of a run: its stages, the models they start from, its directory.
#[rustfmt::skip]
fn models() -> Vec<Key> {
    let policies = commands(|a| a.head == Head::Lm);
    let scores = commands(|a| a.head == Head::Score);
    let sampling = commands(Algorithm::samples);
    vec![
        key("stages", TRAIN, Kind::List(&STAGE),
            "stages to run, in order: their names, or DeepSpeed-Chat's steps 1 (sft), 2 (reward), \
             3 (ppo)")
            .formerly("step").or(&[(TRAIN, "step")]),
        key("actor_model", RUNS, Kind::Text,
            "model to train: a folder or a Hugging Face name; left out: the embedded demonstration")
            .or(of(&[
                (policies & !sampling, "model-name-or-path"),
                (sampling, "actor-model-name-or-path"),
            ])),
        key("reward_model", TRAIN | scores | sampling, Kind::Text,
            "reward model to start from (stage reward; left out: the actor model) or to score with \
             (ppo; left out: the one that stage reward left in the output directory)")
            .or(of(&[(scores, "model-name-or-path"), (sampling, "critic-model-name-or-path")])),
        key("output_dir", RUNS, Kind::Text,
            "folder of the run: models, checkpoints, metrics, report").harmless(),
        key("overwrite", RUNS, Kind::Bool,
            "replace another run found in the output folder; an unfinished one of the same \
             configuration goes on").harmless(),
        key("resume", RUNS, Kind::Text,
            "auto: go on with an unfinished run found in the output folder; never: begin anew; \
             else the checkpoint to go on from").harmless(),
        key("save_every", RUNS, Kind::Every,
            "how often a checkpoint is saved: iterations, or a time such as 10m").harmless(),
        key("keep_checkpoints", RUNS, Kind::int(1, COUNT),
            "the newest checkpoints that are kept").harmless(),
        key("keep_best", RUNS, Kind::Text,
            "also save and keep each stage's checkpoint with the best value of this metric, such \
             as eval_loss").harmless(),
        key("extend", RUNS, Kind::Bool,
            "train a finished run further, with its optimizer state: with more epochs or a larger \
             --max-steps. The learning rate is that of the longer schedule from here on")
            .harmless(),
        key("allow_changed_data", RUNS, Kind::Bool,
            "go on although data files are not those the run began with").harmless(),
    ]
}

/// Keys of a run: its ranks, and where they compute.
#[rustfmt::skip]
fn ranks() -> Vec<Key> {
    let scores = commands(|a| a.head == Head::Score);
    let sampling = commands(Algorithm::samples);
    vec![
        key("deployment_type", RUNS, Kind::Choice(&["single_gpu", "single_node", "multi_node"]),
            "accepted for DeepSpeed-Chat's scripts; how many ranks there are follows from \
             --num-gpus or the launcher").harmless(),
        key("num_gpus", RUNS, Kind::int(1, 1024),
            "ranks that this process starts: processes with a card each, on the CPU threads. An \
             optimizer step has the same rows however many share them")
            .or(&[(RUNS, "num-accelerators")]).harmless(),
        key("zero_stage", RUNS, STAGES,
            "what ranks share out: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too; \
             auto: as little as memory allows")
            .or(of(&[(TRAIN | sampling, "actor-zero-stage")])).harmless(),
        key("critic_zero_stage", TRAIN | scores | sampling, STAGES,
            "the same of reward model and critic; auto: as --zero-stage")
            .or(&[(TRAIN, "reward-zero-stage")]).harmless(),
        key("inference_tp_size", TRAIN | sampling, Kind::int(0, 1024),
            "ranks that generate together at stage 3, each with its slice of the weights; 0 = \
             those of a machine").harmless(),
        key("rank_timeout", RUNS, Kind::Time,
            "how long a rank waits for another before it gives up with exit code 75").harmless(),
        key("device", RUNS, Kind::Device,
            "where to compute; auto: CUDA where it can be used, else the CPU").harmless(),
        key("dtype", RUNS, DTYPES,
            "dtype of weights and activations; sums are always f32"),
        key("threads", RUNS, Kind::int(0, 4096),
            "CPU threads; 0 = all cores").harmless(),
        key("seed", RUNS, Kind::int(0, i64::MAX),
            "seed of every random number in the run"),
    ]
}

/// Keys of a run: its data.
#[rustfmt::skip]
fn data() -> Vec<Key> {
    let texts = commands(|a| a.start == Start::Pretrained && a.head == Head::Lm);
    vec![
        key("data_path", RUNS, TEXTS,
            "data files or folders, each PATH or PATH:WEIGHT; left out: the demonstration's data")
            .data(),
        key("data_split", RUNS, Kind::Text,
            "shares of the data for imitation (sft), for preferences (reward) and for prompts \
             (ppo); left out: 2,4,4, where what no stage uses gets nothing. Rows that only some \
             stages can use are shared among those"),
        key("sft_only_data_path", TRAIN | texts, TEXTS,
            "more data, all of it for sft").data(),
        key("eval_fraction", RUNS, Kind::between(0.0, 0.5),
            "share of each stage's data kept for evaluation"),
        key("strict_weights", RUNS, Kind::Bool,
            "refuse models with weights that are infinite or not a number; else they are warned of")
            .harmless(),
        key("on_bad_row", RUNS, Kind::Choice(&["error", "skip"]),
            "what a row that cannot be used does: stop, or be skipped and counted"),
        key("on_long_prompt", RUNS, Kind::Choice(&["skip", "truncate"]),
            "a prompt over the limit: skip the row, or cut the prompt from the left"),
        key("max_seq_len", RUNS, LENGTH,
            "longest sequence of stages that learn from rows, in tokens"),
        key("max_prompt_seq_len", RUNS, LENGTH,
            "longest prompt, in tokens"),
        key("max_answer_seq_len", RUNS, LENGTH,
            "longest generated answer, in tokens"),
    ]
}

/// Keys of a run: its memory, how texts become tokens, what it shows.
#[rustfmt::skip]
fn memory() -> Vec<Key> {
    let sampling = commands(Algorithm::samples);
    vec![
        key("micro_batch_tokens", RUNS, Kind::int(0, TOKENS),
            "most packed tokens in a micro-batch; 0 = chosen. Changes memory and speed, never the \
             result").harmless(),
        key("memory_limit", RUNS, Kind::int(0, 1 << 30),
            "most memory for activations, in MiB; a micro-batch that needs more is halved; 0 = \
             what there is").harmless(),
        key("gradient_checkpointing", RUNS, CHECKPOINTING,
            "what is computed again in the backward pass to save memory; alone: full")
            .or(of(&[(sampling, "actor-gradient-checkpointing")])).alone("full").harmless(),
        key("optimizer_state", RUNS, STATES,
            "what training keeps beside bf16 weights: full, f32 gradients and state, 16 bytes a \
             parameter, or compact, bf16 gradients and 8-bit state, 5.1"),
        key("offload", RUNS, Kind::Bool,
            "beside a card, keep in the host's memory the optimizer's state, whose steps are \
             computed there, and the weights of reference and reward model of PPO, which come to \
             the card a layer at a time").harmless(),
        key("chat_format", RUNS, FORMATS,
            "how conversations become text; auto: the tokenizer's chat template, else \
             Human/Assistant turns"),
        key("pre_rendered", RUNS, Kind::Bool,
            "control tokens written in the data count as such, in messages too, and text prompts \
             are taken as rendered by the chat template already: no other first token is put \
             before them"),
        key("stuck_after", RUNS, Kind::Time,
            "an iteration that takes this long, and ten times as long as the usual one, is told of \
             with the place where it is").harmless(),
        key("print_samples", RUNS, Kind::int(0, 1000),
            "answers shown now and then during PPO").harmless(),
        key("max_shard_size", RUNS, Kind::Bytes,
            "largest file of a saved model").harmless(),
        key("quiet", RUNS, Kind::Bool,
            "show warnings and errors only").harmless(),
        key("tensorboard", RUNS, Kind::Bool,
            "write TensorBoard event files").or(&[(RUNS, "enable-tensorboard")]).harmless(),
    ]
}

/// Keys of LoRA.
#[rustfmt::skip]
fn lora() -> Vec<Key> {
    let policies = commands(|a| a.head == Head::Lm);
    let scores = commands(|a| a.head == Head::Score);
    let sampling = commands(Algorithm::samples);
    vec![
        key("lora.actor_lora_dim", TRAIN | policies, Kind::int(0, 4096),
            "LoRA rank of the actor; 0 = full finetuning")
            .or(of(&[(policies & !sampling, "lora-dim")])),
        key("lora.critic_lora_dim", TRAIN | scores | sampling, Kind::int(0, 4096),
            "LoRA rank of reward model and critic; 0 = full finetuning")
            .or(of(&[(scores, "lora-dim")])),
        key("lora.lora_alpha", RUNS, Kind::above_zero(1e4),
            "the LoRA update is scaled by alpha / rank"),
        key("lora.lora_dropout", RUNS, Kind::below(1.0),
            "dropout on the input of LoRA"),
        key("lora.lora_module_name", RUNS, TEXTS,
            "modules that get LoRA, such as q_proj v_proj; all = every linear layer")
            .or(of(&[(sampling, "actor-lora-module-name")])),
        key("lora.actor_lora_learning_rate", TRAIN | policies, RATE,
            "peak learning rate of the actor's LoRA")
            .or(of(&[(policies & !sampling, "lora-learning-rate")])),
        key("lora.critic_lora_learning_rate", TRAIN | scores | sampling, RATE,
            "peak learning rate of reward model and critic's LoRA")
            .or(of(&[(scores, "lora-learning-rate")])),
    ]
}

/// Keys of a conversation.
#[rustfmt::skip]
pub static TALK: &[Key] = &[
    key("path", CHAT, Kind::Text,
        "model folder"),
    key("max_new_tokens", CHAT, LENGTH,
        "longest answer, in tokens"),
    key("temperature", CHAT, Kind::between(0.0, 10.0),
        "softmax temperature; 0 = always the likeliest token"),
    key("top_k", CHAT, Kind::int(0, TOKENS),
        "draw from the k likeliest tokens; 0 = all"),
    key("top_p", CHAT, Kind::above_zero(1.0),
        "draw from the smallest set of this probability; 1 = all"),
    key("seed", CHAT, Kind::int(0, i64::MAX),
        "seed of the draws"),
    key("device", CHAT, Kind::Device,
        "where to compute; auto: CUDA where it can be used, else the CPU"),
    key("dtype", CHAT, DTYPES,
        "dtype of weights and activations"),
    key("threads", CHAT, Kind::int(0, 4096),
        "CPU threads; 0 = all cores"),
    key("system", CHAT, Kind::Text,
        "system message at the head of the conversation"),
    key("prompt", CHAT, Kind::Text,
        "answer this prompt, print the answer alone and stop; - reads it from standard input, \
         without its last newline (--raw keeps it)"),
    key("raw", CHAT, Kind::Bool,
        "continue text as it is: no chat template, control tokens in it count, each message stands \
         by itself"),
];

/// Keys of a check of saved files.
#[rustfmt::skip]
pub static VERIFICATION: &[Key] = &[
    key("path", VERIFY, Kind::Text,
        "checkpoint, folder of a run, or model folder"),
];

/// Keys of a look at a model.
#[rustfmt::skip]
pub static INSPECTION: &[Key] = &[
    key("path", INSPECT, Kind::Text,
        "model folder"),
    key("dtype", INSPECT, DTYPES,
        "dtype of weights and activations in memory"),
];

/// Keys of an evaluation.
#[rustfmt::skip]
pub static EVALUATION: &[Key] = &[
    key("path", EVAL, Kind::Text,
        "model folder").or(&[(EVAL, "model-name-or-path-finetune"), (EVAL, "model-name-or-path")]),
    key("baseline", EVAL, Kind::Text,
        "model folder to compare with, on the same prompts")
        .or(&[(EVAL, "model-name-or-path-baseline")]),
    key("reward_model", EVAL, Kind::Text,
        "reward model that scores the answers"),
    key("reward_rule", EVAL, Kind::Text,
        "built-in rule that scores the answers"),
    key("data_path", EVAL, TEXTS,
        "data files or folders with prompts, each PATH or PATH:WEIGHT; left out: the \
         demonstration's data"),
    key("pre_rendered", EVAL, Kind::Bool,
        "text prompts already hold the chat template's control tokens"),
    key("prompts", EVAL, SOME_COUNT,
        "prompts to answer"),
    key("max_prompt_seq_len", EVAL, LENGTH,
        "longest prompt, in tokens; longer ones are skipped"),
    key("max_new_tokens", EVAL, LENGTH,
        "longest answer, in tokens"),
    key("temperature", EVAL, Kind::between(0.0, 10.0),
        "softmax temperature; 0 = always the likeliest token"),
    key("top_k", EVAL, Kind::int(0, TOKENS),
        "draw from the k likeliest tokens; 0 = all"),
    key("top_p", EVAL, Kind::above_zero(1.0),
        "draw from the smallest set of this probability; 1 = all"),
    key("seed", EVAL, Kind::int(0, i64::MAX),
        "seed of the draws"),
    key("device", EVAL, Kind::Device,
        "where to compute; auto: CUDA where it can be used, else the CPU"),
    key("dtype", EVAL, DTYPES,
        "dtype of weights and activations"),
    key("threads", EVAL, Kind::int(0, 4096),
        "CPU threads; 0 = all cores"),
    key("print_samples", EVAL, Kind::int(0, 1000),
        "answers shown"),
];

/// Keys of a measurement.
#[rustfmt::skip]
pub static BENCHMARK: &[Key] = &[
    key("model", BENCH, Kind::Text,
        "model to measure with: a folder or a Hugging Face name; left out: random weights in \
         --shape"),
    key("shape", BENCH, SHAPES,
        "published shape with random weights"),
    key("case", BENCH, TEXTS,
        "what to measure: generate-N with N sequences, train-N with sequences of N tokens, ppo-N \
         with N prompts"),
    key("repeat", BENCH, Kind::int(1, 1000),
        "timed runs of each case, after one to warm up; the median counts"),
    key("prompt_tokens", BENCH, LENGTH,
        "tokens of a prompt"),
    key("new_tokens", BENCH, LENGTH,
        "tokens of an answer; end tokens are not drawn"),
    key("train_sequences", BENCH, BATCH,
        "sequences of a training step"),
    key("gradient_checkpointing", BENCH, CHECKPOINTING,
        "what is computed again in the backward pass to save memory; alone: full")
        .alone("full"),
    key("device", BENCH, Kind::Device,
        "where to compute; auto: CUDA where it can be used, else the CPU"),
    key("dtype", BENCH, DTYPES,
        "dtype of weights and activations"),
    key("optimizer_state", BENCH, STATES,
        "what the optimizer keeps: full, or compact (bf16 weights only)"),
    key("threads", BENCH, Kind::int(0, 4096),
        "CPU threads; 0 = all cores"),
    key("seed", BENCH, Kind::int(0, i64::MAX),
        "seed of weights, tokens and draws"),
    key("json", BENCH, Kind::Text,
        "file to write the results to, as JSON"),
];

/// Keys of a plan, beside those of the run that is planned.
#[rustfmt::skip]
pub static PLANNING: &[Key] = &[
    key("gpus", PLAN, Kind::Text,
        "cards to plan for, as in 8xa100-80g; known: v100-32g, a6000-48g, a100-40g, a100-80g, \
         h100-80g, h200-141g; left out, or cpu: ranks on this machine's CPU"),
    key("published", PLAN, Kind::Bool,
        "only print DeepSpeed-Chat's published tables 1 to 3 beside estimates for the same work"),
    key("json", PLAN, Kind::Text,
        "file to write the plan to, as JSON"),
];

/// Keys of a look at the machine.
#[rustfmt::skip]
pub static CHECKUP: &[Key] = &[
    key("output_dir", DOCTOR, Kind::Text,
        "folder of the run to come: a small file is written beside it, synced and removed"),
    key("device", DOCTOR, Kind::Device,
        "device the run is meant for; one that cannot be used is a problem"),
    key("json", DOCTOR, Kind::Text,
        "file to write the findings to, as JSON"),
];

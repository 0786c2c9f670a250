//! The one table of keys. Flags, `--help`, the check of the TOML file, `--set` and `--print-config`
//! are all derived from it; defaults are those of the configuration structs. A test compares both.

use crate::algo::{ALGORITHMS, Algorithm, Start, meant, names};
use crate::config::Key;
use crate::config::key::{
    BENCH, CHAT, Commands, DOCTOR, EVAL, INSPECT, Kind, PLAN, RUNS, TRAIN, VERIFY, algorithm,
};
use crate::model::Head;
use crate::rollout::LEAST_TEMPERATURE;
use std::sync::LazyLock;

/// Most tokens of a sequence, a batch or a step anyone can mean.
const TOKENS: i64 = 1 << 24;
/// Most steps, examples or sequences anyone can mean.
const COUNT: i64 = 1_000_000_000;

const RATE: Kind = Kind::above_zero(0.1);
const TEMPERATURE: Kind = Kind::zero_or_between(LEAST_TEMPERATURE, 10.0);
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
            "model to train: a directory or a Hugging Face name [default: the embedded \
             demonstration]")
            .or(of(&[
                (policies & !sampling, "model-name-or-path"),
                (sampling, "actor-model-name-or-path"),
            ])),
        key("reward_model", TRAIN | scores | sampling, Kind::Text,
            "reward model to start from in stage reward [default: the actor model], or to score \
             with in stages that sample [default: the one in the output directory]")
            .or(of(&[(scores, "model-name-or-path"), (sampling, "critic-model-name-or-path")])),
        key("output_dir", RUNS, Kind::Text,
            "directory of the run: models, checkpoints, metrics, report").harmless(),
        key("overwrite", RUNS, Kind::Bool,
            "replace another run in the output directory; an unfinished run of the same \
             configuration is resumed").harmless(),
        key("resume", RUNS, Kind::Text,
            "auto: resume an unfinished run in the output directory; never: start over; otherwise \
             the checkpoint to resume from").harmless(),
        key("save_every", RUNS, Kind::Every,
            "checkpoint interval: iterations, or a time such as 10m").harmless(),
        key("keep_checkpoints", RUNS, Kind::int(1, COUNT),
            "number of newest checkpoints to keep").harmless(),
        key("keep_best", RUNS, Kind::Text,
            "also save and keep each stage's checkpoint with the best value of this metric, such \
             as eval_loss").harmless(),
        key("extend", RUNS, Kind::Bool,
            "train a finished run further, with its optimizer state: set more epochs or a larger \
             --max-steps. The learning rate then follows the longer schedule")
            .harmless(),
        key("allow_changed_data", RUNS, Kind::Bool,
            "resume although data files differ from those the run began with").harmless(),
    ]
}

/// Keys of a run: its ranks, and where they compute.
#[rustfmt::skip]
fn ranks() -> Vec<Key> {
    let scores = commands(|a| a.head == Head::Score);
    let sampling = commands(Algorithm::samples);
    vec![
        key("deployment_type", RUNS, Kind::Choice(&["single_gpu", "single_node", "multi_node"]),
            "accepted for DeepSpeed-Chat's scripts; --num-gpus or the launcher sets the number of \
             ranks").harmless(),
        key("num_gpus", RUNS, Kind::int(1, 1024),
            "ranks to start: one process per GPU, or threads on the CPU. An optimizer step takes \
             the same rows for any number of ranks")
            .or(&[(RUNS, "num-accelerators")]).harmless(),
        key("zero_stage", RUNS, STAGES,
            "ZeRO stage: 0 none, 1 shard optimizer state, 2 + gradients, 3 + parameters; auto: \
             the lowest that fits")
            .or(of(&[(TRAIN | sampling, "actor-zero-stage")])).harmless(),
        key("critic_zero_stage", TRAIN | scores | sampling, STAGES,
            "ZeRO stage of reward model and critic; auto: as --zero-stage")
            .or(&[(TRAIN, "reward-zero-stage")]).harmless(),
        key("inference_tp_size", TRAIN | sampling, Kind::int(0, 1024),
            "tensor-parallel ranks of generation at ZeRO stage 3; 0 = all ranks of a \
             machine").harmless(),
        key("rank_timeout", RUNS, Kind::Time,
            "how long a rank waits for another before it exits with code 75").harmless(),
        key("device", RUNS, Kind::Device,
            "device to compute on; auto: CUDA if usable, else the CPU").harmless(),
        key("dtype", RUNS, DTYPES,
            "dtype of weights and activations; sums are always f32"),
        key("threads", RUNS, Kind::int(0, 4096),
            "CPU threads; 0 = all cores that the process may use; more slow it down").harmless(),
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
            "data files or directories, each PATH or PATH:WEIGHT [default: the demonstration's \
             data]")
            .data(),
        key("data_split", RUNS, Kind::Text,
            "shares of the data for imitation (sft), preferences (reward) and prompts (ppo) \
             [default: 2,4,4, but nothing for a use without a stage]. Rows that only some stages \
             can use are divided among those"),
        key("sft_only_data_path", TRAIN | texts, TEXTS,
            "additional data for sft only").data(),
        key("eval_fraction", RUNS, Kind::between(0.0, 0.5),
            "share of each stage's data to hold out for evaluation"),
        key("strict_weights", RUNS, Kind::Bool,
            "refuse models with infinite or NaN weights instead of warning")
            .harmless(),
        key("on_bad_row", RUNS, Kind::Choice(&["error", "skip"]),
            "on a row that cannot be used: stop with an error, or skip and count it"),
        key("on_long_prompt", RUNS, Kind::Choice(&["skip", "truncate"]),
            "on a prompt over the limit: skip the row, or truncate the prompt on the left"),
        key("max_seq_len", RUNS, LENGTH,
            "longest sequence of the stages that train on rows, in tokens"),
        key("max_prompt_seq_len", RUNS, LENGTH,
            "longest prompt, in tokens"),
        key("max_answer_seq_len", RUNS, LENGTH,
            "longest generated response, in tokens"),
    ]
}

/// Keys of a run: its memory, how texts become tokens, what it shows.
#[rustfmt::skip]
fn memory() -> Vec<Key> {
    let sampling = commands(Algorithm::samples);
    vec![
        key("micro_batch_tokens", RUNS, Kind::int(0, TOKENS),
            "most packed tokens in a micro-batch; 0 = automatic. Affects memory and speed, never \
             the result").harmless(),
        key("memory_limit", RUNS, Kind::int(0, 1 << 30),
            "memory limit of activations, in MiB; 0 = all available. Duplex halves a micro-batch \
             that needs more").harmless(),
        key("gradient_checkpointing", RUNS, CHECKPOINTING,
            "activations to recompute in the backward pass to save memory; without a value: full")
            .or(of(&[(sampling, "actor-gradient-checkpointing")])).alone("full").harmless(),
        key("optimizer_state", RUNS, STATES,
            "training state next to bf16 weights: full (f32 gradients and state, 16 bytes per \
             parameter) or compact (bf16 gradients and 8-bit state, 5.1 bytes)"),
        key("offload", RUNS, Kind::Bool,
            "keep optimizer state on the host and run AdamW there; stream frozen reference and \
             reward weights to the GPU layer by layer").harmless(),
        key("chat_format", RUNS, FORMATS,
            "how conversations become text; auto: the tokenizer's chat template, else \
             Human/Assistant turns"),
        key("pre_rendered", RUNS, Kind::Bool,
            "treat control tokens in the data as such, in messages too. Text prompts count as \
             already rendered by the chat template: Duplex adds no first token"),
        key("stuck_after", RUNS, Kind::Time,
            "warn when an iteration exceeds this and 10x the median; names the current \
             operation").harmless(),
        key("print_samples", RUNS, Kind::int(0, 1000),
            "responses to show now and then while sampling").harmless(),
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
    let critics = commands(Algorithm::has_critic);
    vec![
        key("lora.actor_lora_dim", TRAIN | policies, Kind::int(0, 4096),
            "LoRA rank of the actor; 0 = full finetuning")
            .or(of(&[(policies & !sampling, "lora-dim")])),
        key("lora.critic_lora_dim", TRAIN | scores | critics, Kind::int(0, 4096),
            "LoRA rank of reward model and critic; 0 = full finetuning")
            .or(of(&[(scores, "lora-dim")])),
        key("lora.lora_alpha", RUNS, Kind::above_zero(1e4),
            "scale of the LoRA update: alpha / rank"),
        key("lora.lora_dropout", RUNS, Kind::below(1.0),
            "dropout on the input of LoRA"),
        key("lora.lora_module_name", RUNS, TEXTS,
            "modules to adapt, such as q_proj v_proj; all = every linear layer")
            .or(of(&[(sampling, "actor-lora-module-name")])),
        key("lora.actor_lora_learning_rate", TRAIN | policies, RATE,
            "peak learning rate of the actor's LoRA")
            .or(of(&[(policies & !sampling, "lora-learning-rate")])),
        key("lora.critic_lora_learning_rate", TRAIN | scores | critics, RATE,
            "peak learning rate of reward model and critic's LoRA")
            .or(of(&[(scores, "lora-learning-rate")])),
    ]
}

/// Keys of a conversation.
#[rustfmt::skip]
pub static TALK: &[Key] = &[
    key("path", CHAT, Kind::Text,
        "model directory"),
    key("max_new_tokens", CHAT, LENGTH,
        "longest response, in tokens"),
    key("temperature", CHAT, TEMPERATURE,
        "softmax temperature, at least 0.01; 0 = greedy decoding"),
    key("top_k", CHAT, Kind::int(0, TOKENS),
        "sample from the k most likely tokens (0 disables)"),
    key("top_p", CHAT, Kind::above_zero(1.0),
        "sample from the smallest set of tokens with this total probability (1 disables)"),
    key("seed", CHAT, Kind::int(0, i64::MAX),
        "sampling seed"),
    key("device", CHAT, Kind::Device,
        "device to compute on; auto: CUDA if usable, else the CPU"),
    key("dtype", CHAT, DTYPES,
        "dtype of weights and activations"),
    key("threads", CHAT, Kind::int(0, 4096),
        "CPU threads; 0 = all cores that the process may use; more slow it down"),
    key("system", CHAT, Kind::Text,
        "system message at the head of the conversation"),
    key("prompt", CHAT, Kind::Text,
        "answer this prompt, print only the response and exit; - reads it from standard input, \
         without its last newline (--raw keeps it)"),
    key("raw", CHAT, Kind::Bool,
        "continue plain text: no chat template, control tokens count as such, each message stands \
         alone"),
];

/// Keys of a check of saved files.
#[rustfmt::skip]
pub static VERIFICATION: &[Key] = &[
    key("path", VERIFY, Kind::Text,
        "checkpoint, run directory, or model directory"),
];

/// Keys of a look at a model.
#[rustfmt::skip]
pub static INSPECTION: &[Key] = &[
    key("path", INSPECT, Kind::Text,
        "model directory"),
    key("dtype", INSPECT, DTYPES,
        "dtype of weights and activations in memory"),
];

/// Keys of an evaluation.
#[rustfmt::skip]
pub static EVALUATION: &[Key] = &[
    key("path", EVAL, Kind::Text,
        "model directory")
        .or(&[(EVAL, "model-name-or-path-finetune"), (EVAL, "model-name-or-path")]),
    key("baseline", EVAL, Kind::Text,
        "model directory to compare with, on the same prompts")
        .or(&[(EVAL, "model-name-or-path-baseline")]),
    key("reward_model", EVAL, Kind::Text,
        "reward model that scores the responses"),
    key("reward_rule", EVAL, Kind::Text,
        "built-in rule that scores the responses"),
    key("data_path", EVAL, TEXTS,
        "data files or directories with prompts, each PATH or PATH:WEIGHT [default: the \
         demonstration's data]"),
    key("pre_rendered", EVAL, Kind::Bool,
        "text prompts already contain the chat template's control tokens"),
    key("prompts", EVAL, SOME_COUNT,
        "prompts to answer"),
    key("max_prompt_seq_len", EVAL, LENGTH,
        "longest prompt, in tokens; longer ones are skipped"),
    key("max_new_tokens", EVAL, LENGTH,
        "longest response, in tokens"),
    key("temperature", EVAL, TEMPERATURE,
        "softmax temperature, at least 0.01; 0 = greedy decoding"),
    key("top_k", EVAL, Kind::int(0, TOKENS),
        "sample from the k most likely tokens (0 disables)"),
    key("top_p", EVAL, Kind::above_zero(1.0),
        "sample from the smallest set of tokens with this total probability (1 disables)"),
    key("seed", EVAL, Kind::int(0, i64::MAX),
        "sampling seed"),
    key("device", EVAL, Kind::Device,
        "device to compute on; auto: CUDA if usable, else the CPU"),
    key("dtype", EVAL, DTYPES,
        "dtype of weights and activations"),
    key("threads", EVAL, Kind::int(0, 4096),
        "CPU threads; 0 = all cores that the process may use; more slow it down"),
    key("print_samples", EVAL, Kind::int(0, 1000),
        "responses to show"),
];

/// Keys of a measurement.
#[rustfmt::skip]
pub static BENCHMARK: &[Key] = &[
    key("model", BENCH, Kind::Text,
        "model to measure: a directory or a Hugging Face name [default: random weights in \
         --shape]"),
    key("shape", BENCH, SHAPES,
        "published shape with random weights"),
    key("case", BENCH, TEXTS,
        "cases to measure: generate-N with N sequences, train-N with sequences of N tokens, ppo-N \
         with N prompts"),
    key("repeat", BENCH, Kind::int(1, 1000),
        "timed runs of each case, after one to warm up; the median counts"),
    key("prompt_tokens", BENCH, LENGTH,
        "tokens of a prompt"),
    key("new_tokens", BENCH, LENGTH,
        "tokens of a response; end tokens are not sampled"),
    key("train_sequences", BENCH, BATCH,
        "sequences of a training step"),
    key("gradient_checkpointing", BENCH, CHECKPOINTING,
        "activations to recompute in the backward pass to save memory; without a value: full")
        .alone("full"),
    key("device", BENCH, Kind::Device,
        "device to compute on; auto: CUDA if usable, else the CPU"),
    key("dtype", BENCH, DTYPES,
        "dtype of weights and activations"),
    key("optimizer_state", BENCH, STATES,
        "optimizer state: full, or compact (bf16 weights only)"),
    key("threads", BENCH, Kind::int(0, 4096),
        "CPU threads; 0 = all cores that the process may use; more slow it down"),
    key("seed", BENCH, Kind::int(0, i64::MAX),
        "seed of weights, tokens and sampling"),
    key("json", BENCH, Kind::Text,
        "file to write the results to, as JSON"),
];

/// Keys of a plan, beside those of the run that is planned.
#[rustfmt::skip]
pub static PLANNING: &[Key] = &[
    key("gpus", PLAN, Kind::Text,
        "GPUs to plan for, as in 8xa100-80g; known: v100-32g, a6000-48g, a100-40g, a100-80g, \
         h100-80g, h200-141g; cpu: ranks on this machine's CPU [default: cpu]"),
    key("published", PLAN, Kind::Bool,
        "only print DeepSpeed-Chat's published tables 1 to 3 next to estimates for the same work"),
    key("json", PLAN, Kind::Text,
        "file to write the plan to, as JSON"),
];

/// Keys of a look at the machine.
#[rustfmt::skip]
pub static CHECKUP: &[Key] = &[
    key("output_dir", DOCTOR, Kind::Text,
        "directory of the planned run; doctor writes, syncs and removes a small file next to it"),
    key("device", DOCTOR, Kind::Device,
        "device the run is meant for; doctor reports a problem if it is unusable"),
    key("json", DOCTOR, Kind::Text,
        "file to write the findings to, as JSON"),
];

//! The one table of keys. Flags, `--help`, the check of the TOML file, `--set` and `--print-config`
//! are all derived from it; defaults are those of the configuration structs. A test compares both.

use super::keys::{
    BENCH, CHAT, Commands, DOCTOR, EVAL, INSPECT, Key, Kind, PLAN, PPO, REWARD, SFT, TRAIN, VERIFY,
};

const RUNS: Commands = TRAIN | SFT | REWARD | PPO;
/// Most tokens of a sequence, a batch or a step anyone can mean.
const TOKENS: i64 = 1 << 24;
/// Most steps, examples or sequences anyone can mean.
const COUNT: i64 = 1_000_000_000;

const RATE: Kind = Kind::above_zero(0.1);
const DECAY: Kind = Kind::between(0.0, 1.0);
const LENGTH: Kind = Kind::int(1, 1 << 20);
const BATCH: Kind = Kind::int(1, 1 << 16);
const ANY_COUNT: Kind = Kind::int(0, COUNT);
const SOME_COUNT: Kind = Kind::int(1, COUNT);
const TEXTS: Kind = Kind::List(&Kind::Text);
const DTYPES: Kind = Kind::Choice(&["bf16", "f32"]);
const FORMATS: Kind = Kind::Choice(&["auto", "template", "human_assistant"]);
const STATES: Kind = Kind::Choice(&["full", "compact"]);
const STAGES: Kind = Kind::Choice(&["auto", "0", "1", "2", "3"]);
const SHAPES: Kind = Kind::Choice(&["opt-125m", "gpt2", "smollm2-135m", "tiny"]);
const CHECKPOINTING: Kind = Kind::Choice(&["none", "cheap", "full"]);
const SCHEDULES: Kind = Kind::Choice(&["linear", "cosine", "constant", "constant_with_warmup"]);

const fn key(path: &'static str, commands: Commands, kind: Kind, help: &'static str) -> Key {
    Key::new(path, commands, kind, help)
}

/// Keys of a training run.
#[rustfmt::skip]
pub static RUN: &[Key] = &[
    key("step", TRAIN, Kind::List(&Kind::Int { min: 1, max: 3 }), "steps to run: 1 SFT, 2 reward model, 3 PPO"),
    key("actor_model", RUNS, Kind::Text, "model to train: a folder or a Hugging Face name; left out: the embedded demonstration")
        .or(&[(SFT, "model-name-or-path"), (PPO, "actor-model-name-or-path")]),
    key("reward_model", TRAIN | REWARD | PPO, Kind::Text, "reward model to start from (step 2; left out: the actor model) or to score with (step 3; left out: the one that step 2 left in the output directory)")
        .or(&[(REWARD, "model-name-or-path"), (PPO, "critic-model-name-or-path")]),
    key("output_dir", RUNS, Kind::Text, "folder of the run: models, checkpoints, metrics, report"),
    key("overwrite", RUNS, Kind::Bool, "replace another run found in the output folder; an unfinished one of the same configuration goes on"),
    key("resume", RUNS, Kind::Text, "auto: go on with an unfinished run found in the output folder; never: begin anew; else the checkpoint to go on from"),
    key("save_every", RUNS, Kind::Every, "how often a checkpoint is saved: iterations, or a time such as 10m"),
    key("keep_checkpoints", RUNS, Kind::int(1, COUNT), "the newest checkpoints that are kept"),
    key("keep_best", RUNS, Kind::Text, "also save and keep each step's checkpoint with the best value of this metric, such as eval_loss"),
    key("extend", RUNS, Kind::Bool, "train a finished run further, with its optimizer state: with more epochs or a larger --max-steps. The learning rate is that of the longer schedule from here on"),
    key("allow_changed_data", RUNS, Kind::Bool, "go on although data files are not those the run began with"),
    key("deployment_type", RUNS, Kind::Choice(&["single_gpu", "single_node", "multi_node"]), "accepted for DeepSpeed-Chat's scripts; how many ranks there are follows from --num-gpus or the launcher"),
    key("num_gpus", RUNS, Kind::int(1, 1024), "ranks that this process starts: processes with a card each, on the CPU threads. A step has the same rows however many share them")
        .or(&[(RUNS, "num-accelerators")]),
    key("zero_stage", RUNS, STAGES, "what ranks share out: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too; auto: as little as memory allows")
        .or(&[(TRAIN | PPO, "actor-zero-stage")]),
    key("critic_zero_stage", TRAIN | REWARD | PPO, STAGES, "the same of reward model and critic; auto: as --zero-stage")
        .or(&[(TRAIN, "reward-zero-stage")]),
    key("inference_tp_size", TRAIN | PPO, Kind::int(0, 1024), "ranks that generate together at stage 3, each with its slice of the weights; 0 = those of a machine"),
    key("rank_timeout", RUNS, Kind::Time, "how long a rank waits for another before it gives up with exit code 75"),
    key("device", RUNS, Kind::Device, "where to compute; auto: CUDA where it can be used, else the CPU"),
    key("dtype", RUNS, DTYPES, "dtype of weights and activations; sums are always f32"),
    key("threads", RUNS, Kind::int(0, 4096), "CPU threads; 0 = all cores"),
    key("seed", RUNS, Kind::int(0, i64::MAX), "seed of every random number in the run"),
    key("data_path", RUNS, TEXTS, "data files or folders, each PATH or PATH:WEIGHT; left out: the demonstration's data"),
    key("data_split", RUNS, Kind::Text, "shares of the data for steps 1, 2 and 3; left out: 2,4,4, where a step that is not run gets nothing. Rows that only some steps can use are shared among those"),
    key("sft_only_data_path", TRAIN | SFT, TEXTS, "more data, all of it for step 1"),
    key("eval_fraction", RUNS, Kind::between(0.0, 0.5), "share of each step's data kept for evaluation"),
    key("strict_weights", RUNS, Kind::Bool, "refuse models with weights that are infinite or not a number; else they are warned of"),
    key("on_bad_row", RUNS, Kind::Choice(&["error", "skip"]), "what a row that cannot be used does: stop, or be skipped and counted"),
    key("on_long_prompt", RUNS, Kind::Choice(&["skip", "truncate"]), "a prompt over the limit: skip the row, or cut the prompt from the left"),
    key("max_seq_len", RUNS, LENGTH, "longest sequence of steps 1 and 2, in tokens"),
    key("max_prompt_seq_len", RUNS, LENGTH, "longest prompt, in tokens"),
    key("max_answer_seq_len", RUNS, LENGTH, "longest generated answer, in tokens"),
    key("micro_batch_tokens", RUNS, Kind::int(0, TOKENS), "most packed tokens in a micro-batch; 0 = chosen. Changes memory and speed, never the result"),
    key("memory_limit", RUNS, Kind::int(0, 1 << 30), "most memory for activations, in MiB; a micro-batch that needs more is halved; 0 = what there is"),
    key("gradient_checkpointing", RUNS, CHECKPOINTING, "what is computed again in the backward pass to save memory; alone: full")
        .or(&[(PPO, "actor-gradient-checkpointing")]).alone("full"),
    key("optimizer_state", RUNS, STATES, "what training keeps beside bf16 weights: full, f32 gradients and state, 16 bytes a parameter, or compact, bf16 gradients and 8-bit state, 5.1"),
    key("offload", RUNS, Kind::Bool, "beside a card, keep in the host's memory the optimizer's state, whose steps are computed there, and the weights of reference and reward model of PPO, which come to the card a layer at a time"),
    key("chat_format", RUNS, FORMATS, "how conversations become text; auto: the tokenizer's chat template, else Human/Assistant turns"),
    key("pre_rendered", RUNS, Kind::Bool, "control tokens written in the data count as such, in messages too, and text prompts are taken as rendered by the chat template already: no other first token is put before them"),
    key("stuck_after", RUNS, Kind::Time, "an iteration that takes this long, and ten times as long as the usual one, is told of with the place where it is"),
    key("print_samples", RUNS, Kind::int(0, 1000), "answers shown now and then during PPO"),
    key("max_shard_size", RUNS, Kind::Bytes, "largest file of a saved model"),
    key("quiet", RUNS, Kind::Bool, "show warnings and errors only"),
    key("tensorboard", RUNS, Kind::Bool, "write TensorBoard event files").or(&[(RUNS, "enable-tensorboard")]),

    key("sft.learning_rate", TRAIN | SFT, RATE, "peak learning rate"),
    key("sft.weight_decay", TRAIN | SFT, DECAY, "decoupled weight decay of matrices"),
    key("sft.num_train_epochs", TRAIN | SFT, Kind::int(1, 1000), "passes over the data"),
    key("sft.max_steps", TRAIN | SFT, ANY_COUNT, "stop after this many optimizer steps; 0 = by epochs"),
    key("sft.per_device_train_batch_size", TRAIN | SFT, BATCH, "sequences per accumulation round"),
    key("sft.gradient_accumulation_steps", TRAIN | SFT, BATCH, "rounds per optimizer step: a step takes their product of sequences"),
    key("sft.lr_scheduler_type", TRAIN | SFT, SCHEDULES, "learning rate after warm-up"),
    key("sft.num_warmup_steps", TRAIN | SFT, ANY_COUNT, "optimizer steps of linear warm-up"),
    key("sft.max_grad_norm", TRAIN | SFT, Kind::above_zero(1e6), "gradients are clipped to this norm"),
    key("sft.adam_beta1", TRAIN | SFT, Kind::below(1.0), "decay of Adam's first moment"),
    key("sft.adam_beta2", TRAIN | SFT, Kind::below(1.0), "decay of Adam's second moment"),
    key("sft.adam_eps", TRAIN | SFT, Kind::above_zero(0.1), "added to Adam's denominator"),
    key("sft.eval_interval", TRAIN | SFT, ANY_COUNT, "evaluate every so many optimizer steps; 0 = before the first and after each epoch"),
    key("sft.eval_batches", TRAIN | SFT, SOME_COUNT, "most batches in one evaluation").or(&[(SFT, "eval-iters")]),
    key("sft.assistant_only_loss", TRAIN | SFT, Kind::Bool, "learn every turn of the assistant in a conversation, not only the last one"),
    key("sft.loss_on_prompt", TRAIN | SFT, Kind::Bool, "also learn to write the prompt, as DeepSpeed-Chat does"),

    key("reward.learning_rate", TRAIN | REWARD, RATE, "peak learning rate"),
    key("reward.weight_decay", TRAIN | REWARD, DECAY, "decoupled weight decay of matrices"),
    key("reward.num_train_epochs", TRAIN | REWARD, Kind::int(1, 1000), "passes over the data"),
    key("reward.max_steps", TRAIN | REWARD, ANY_COUNT, "stop after this many optimizer steps; 0 = by epochs"),
    key("reward.per_device_train_batch_size", TRAIN | REWARD, BATCH, "pairs per accumulation round"),
    key("reward.gradient_accumulation_steps", TRAIN | REWARD, BATCH, "rounds per optimizer step: a step takes their product of pairs"),
    key("reward.lr_scheduler_type", TRAIN | REWARD, SCHEDULES, "learning rate after warm-up"),
    key("reward.num_warmup_steps", TRAIN | REWARD, ANY_COUNT, "optimizer steps of linear warm-up"),
    key("reward.max_grad_norm", TRAIN | REWARD, Kind::above_zero(1e6), "gradients are clipped to this norm"),
    key("reward.adam_beta1", TRAIN | REWARD, Kind::below(1.0), "decay of Adam's first moment"),
    key("reward.adam_beta2", TRAIN | REWARD, Kind::below(1.0), "decay of Adam's second moment"),
    key("reward.adam_eps", TRAIN | REWARD, Kind::above_zero(0.1), "added to Adam's denominator"),
    key("reward.eval_interval", TRAIN | REWARD, ANY_COUNT, "evaluate every so many optimizer steps; 0 = before the first and after each epoch"),
    key("reward.eval_batches", TRAIN | REWARD, SOME_COUNT, "most batches in one evaluation").or(&[(REWARD, "eval-iters")]),
    key("reward.loss", TRAIN | REWARD, Kind::Choice(&["end", "token_wise"]), "scores compared: at the ends of the answers, or at every token from their first difference"),

    key("ppo.per_device_generation_batch_size", TRAIN | PPO, BATCH, "prompts per rollout"),
    key("ppo.generation_batches", TRAIN | PPO, BATCH, "rollouts gathered before each update"),
    key("ppo.per_device_training_batch_size", TRAIN | PPO, BATCH, "sequences per optimizer step"),
    key("ppo.gradient_accumulation_steps", TRAIN | PPO, BATCH, "rounds per optimizer step: an iteration gathers, and a step takes, so many times as many sequences"),
    key("ppo.ppo_epochs", TRAIN | PPO, Kind::int(1, 1000), "passes over each gathered experience"),
    key("ppo.num_train_epochs", TRAIN | PPO, Kind::int(1, 1000), "passes over the prompts"),
    key("ppo.max_steps", TRAIN | PPO, ANY_COUNT, "stop after this many iterations (gather, then update); 0 = by epochs"),
    key("ppo.actor_learning_rate", TRAIN | PPO, RATE, "peak learning rate of the actor"),
    key("ppo.critic_learning_rate", TRAIN | PPO, RATE, "peak learning rate of the critic"),
    key("ppo.actor_weight_decay", TRAIN | PPO, DECAY, "decoupled weight decay of the actor"),
    key("ppo.critic_weight_decay", TRAIN | PPO, DECAY, "decoupled weight decay of the critic"),
    key("ppo.lr_scheduler_type", TRAIN | PPO, SCHEDULES, "learning rates after warm-up"),
    key("ppo.num_warmup_steps", TRAIN | PPO, ANY_COUNT, "optimizer steps of linear warm-up"),
    key("ppo.max_grad_norm", TRAIN | PPO, Kind::above_zero(1e6), "gradients are clipped to this norm"),
    key("ppo.adam_beta1", TRAIN | PPO, Kind::below(1.0), "decay of Adam's first moment"),
    key("ppo.adam_beta2", TRAIN | PPO, Kind::below(1.0), "decay of Adam's second moment"),
    key("ppo.adam_eps", TRAIN | PPO, Kind::above_zero(0.1), "added to Adam's denominator"),
    key("ppo.kl_coef", TRAIN | PPO, Kind::between(0.0, 100.0), "weight of the KL penalty against the reference"),
    key("ppo.kl_controller", TRAIN | PPO, Kind::Choice(&["fixed", "adaptive"]), "keep kl_coef, or steer it towards kl_target"),
    key("ppo.kl_target", TRAIN | PPO, Kind::above_zero(1e4), "KL per answer, in nats, the adaptive controller aims at"),
    key("ppo.kl_horizon", TRAIN | PPO, Kind::above_zero(1e9), "episodes over which the adaptive controller acts"),
    key("ppo.clip_reward_value", TRAIN | PPO, Kind::above_zero(1e6), "scores are clamped to plus or minus this"),
    key("ppo.reward_scaling", TRAIN | PPO, Kind::Choice(&["none", "running"]), "divide scores by their running standard deviation"),
    key("ppo.cliprange", TRAIN | PPO, Kind::above_zero(10.0), "clip range of the probability ratio"),
    key("ppo.cliprange_value", TRAIN | PPO, Kind::above_zero(1e6), "clip range of the value update"),
    key("ppo.gamma", TRAIN | PPO, Kind::above_zero(1.0), "discount"),
    key("ppo.lam", TRAIN | PPO, Kind::between(0.0, 1.0), "lambda of generalised advantage estimation"),
    key("ppo.whiten_advantages", TRAIN | PPO, Kind::Bool, "bring the advantages of an experience to mean 0 and variance 1"),
    key("ppo.entropy_coef", TRAIN | PPO, Kind::between(0.0, 10.0), "weight of the entropy bonus"),
    key("ppo.unsupervised_data_path", TRAIN | PPO, TEXTS, "plain-text data mixed into the actor's loss; left out: none")
        .or(&[(PPO, "unsupervised-dataset-name")]),
    key("ppo.unsup_coef", TRAIN | PPO, Kind::between(0.0, 1000.0), "weight of the loss on unsupervised_data_path"),
    key("ppo.missing_eos_penalty", TRAIN | PPO, Kind::between(0.0, 1000.0), "taken off the score of an answer cut at the length limit"),
    key("ppo.enable_ema", TRAIN | PPO, Kind::Bool, "also keep and save a moving average of the actor"),
    key("ppo.ema_decay", TRAIN | PPO, Kind::below(1.0), "decay of that average per optimizer step"),
    key("ppo.temperature", TRAIN | PPO, Kind::above_zero(10.0), "softmax temperature of rollouts"),
    key("ppo.top_k", TRAIN | PPO, Kind::int(0, TOKENS), "draw from the k likeliest tokens; 0 = all"),
    key("ppo.top_p", TRAIN | PPO, Kind::above_zero(1.0), "draw from the smallest set of this probability; 1 = all"),
    key("ppo.min_answer_seq_len", TRAIN | PPO, Kind::int(0, 1 << 20), "answers do not end before this many tokens"),
    key("ppo.reward_rule", TRAIN | PPO, Kind::Text, "score with this built-in rule instead of a reward model"),
    key("ppo.critic_model", TRAIN | PPO, Kind::Text, "model the critic starts from; left out: the reward model"),
    key("ppo.eval_interval", TRAIN | PPO, ANY_COUNT, "evaluate every so many iterations; 0 = before the first and after the last"),
    key("ppo.eval_prompts", TRAIN | PPO, SOME_COUNT, "most prompts in one evaluation"),

    key("lora.actor_lora_dim", TRAIN | SFT | PPO, Kind::int(0, 4096), "LoRA rank of the actor; 0 = full finetuning").or(&[(SFT, "lora-dim")]),
    key("lora.critic_lora_dim", TRAIN | REWARD | PPO, Kind::int(0, 4096), "LoRA rank of reward model and critic; 0 = full finetuning").or(&[(REWARD, "lora-dim")]),
    key("lora.lora_alpha", RUNS, Kind::above_zero(1e4), "the LoRA update is scaled by alpha / rank"),
    key("lora.lora_dropout", RUNS, Kind::below(1.0), "dropout on the input of LoRA"),
    key("lora.lora_module_name", RUNS, TEXTS, "modules that get LoRA, such as q_proj v_proj; all = every linear layer")
        .or(&[(PPO, "actor-lora-module-name")]),
    key("lora.actor_lora_learning_rate", TRAIN | SFT | PPO, RATE, "peak learning rate of the actor's LoRA").or(&[(SFT, "lora-learning-rate")]),
    key("lora.critic_lora_learning_rate", TRAIN | REWARD | PPO, RATE, "peak learning rate of reward model and critic's LoRA").or(&[(REWARD, "lora-learning-rate")]),
];

/// Keys of a conversation.
#[rustfmt::skip]
pub static TALK: &[Key] = &[
    key("path", CHAT, Kind::Text, "model folder"),
    key("max_new_tokens", CHAT, LENGTH, "longest answer, in tokens"),
    key("temperature", CHAT, Kind::between(0.0, 10.0), "softmax temperature; 0 = always the likeliest token"),
    key("top_k", CHAT, Kind::int(0, TOKENS), "draw from the k likeliest tokens; 0 = all"),
    key("top_p", CHAT, Kind::above_zero(1.0), "draw from the smallest set of this probability; 1 = all"),
    key("seed", CHAT, Kind::int(0, i64::MAX), "seed of the draws"),
    key("device", CHAT, Kind::Device, "where to compute; auto: CUDA where it can be used, else the CPU"),
    key("dtype", CHAT, DTYPES, "dtype of weights and activations"),
    key("threads", CHAT, Kind::int(0, 4096), "CPU threads; 0 = all cores"),
    key("system", CHAT, Kind::Text, "system message at the head of the conversation"),
    key("prompt", CHAT, Kind::Text, "answer this prompt, print the answer alone and stop; - reads it from standard input, without its last newline (--raw keeps it)"),
    key("raw", CHAT, Kind::Bool, "continue text as it is: no chat template, control tokens in it count, each message stands by itself"),
];

/// Keys of a check of saved files.
pub static VERIFICATION: &[Key] =
    &[key("path", VERIFY, Kind::Text, "checkpoint, folder of a run, or model folder")];

/// Keys of a look at a model.
#[rustfmt::skip]
pub static INSPECTION: &[Key] = &[
    key("path", INSPECT, Kind::Text, "model folder"),
    key("dtype", INSPECT, DTYPES, "dtype of weights and activations in memory"),
];

/// Keys of an evaluation.
#[rustfmt::skip]
pub static EVALUATION: &[Key] = &[
    key("path", EVAL, Kind::Text, "model folder").or(&[(EVAL, "model-name-or-path-finetune"), (EVAL, "model-name-or-path")]),
    key("baseline", EVAL, Kind::Text, "model folder to compare with, on the same prompts").or(&[(EVAL, "model-name-or-path-baseline")]),
    key("reward_model", EVAL, Kind::Text, "reward model that scores the answers"),
    key("reward_rule", EVAL, Kind::Text, "built-in rule that scores the answers"),
    key("data_path", EVAL, TEXTS, "data files or folders with prompts, each PATH or PATH:WEIGHT; left out: the demonstration's data"),
    key("pre_rendered", EVAL, Kind::Bool, "text prompts already hold the chat template's control tokens"),
    key("prompts", EVAL, SOME_COUNT, "prompts to answer"),
    key("max_prompt_seq_len", EVAL, LENGTH, "longest prompt, in tokens; longer ones are skipped"),
    key("max_new_tokens", EVAL, LENGTH, "longest answer, in tokens"),
    key("temperature", EVAL, Kind::between(0.0, 10.0), "softmax temperature; 0 = always the likeliest token"),
    key("top_k", EVAL, Kind::int(0, TOKENS), "draw from the k likeliest tokens; 0 = all"),
    key("top_p", EVAL, Kind::above_zero(1.0), "draw from the smallest set of this probability; 1 = all"),
    key("seed", EVAL, Kind::int(0, i64::MAX), "seed of the draws"),
    key("device", EVAL, Kind::Device, "where to compute; auto: CUDA where it can be used, else the CPU"),
    key("dtype", EVAL, DTYPES, "dtype of weights and activations"),
    key("threads", EVAL, Kind::int(0, 4096), "CPU threads; 0 = all cores"),
    key("print_samples", EVAL, Kind::int(0, 1000), "answers shown"),
];

/// Keys of a measurement.
#[rustfmt::skip]
pub static BENCHMARK: &[Key] = &[
    key("model", BENCH, Kind::Text, "model to measure with: a folder or a Hugging Face name; left out: random weights in --shape"),
    key("shape", BENCH, SHAPES, "published shape with random weights"),
    key("case", BENCH, TEXTS, "what to measure: generate-N with N sequences, train-N with sequences of N tokens, ppo-N with N prompts"),
    key("repeat", BENCH, Kind::int(1, 1000), "timed runs of each case, after one to warm up; the median counts"),
    key("prompt_tokens", BENCH, LENGTH, "tokens of a prompt"),
    key("new_tokens", BENCH, LENGTH, "tokens of an answer; end tokens are not drawn"),
    key("train_sequences", BENCH, BATCH, "sequences of a training step"),
    key("gradient_checkpointing", BENCH, CHECKPOINTING, "what is computed again in the backward pass to save memory; alone: full")
        .alone("full"),
    key("device", BENCH, Kind::Device, "where to compute; auto: CUDA where it can be used, else the CPU"),
    key("dtype", BENCH, DTYPES, "dtype of weights and activations"),
    key("optimizer_state", BENCH, STATES, "what the optimizer keeps: full, or compact (bf16 weights only)"),
    key("threads", BENCH, Kind::int(0, 4096), "CPU threads; 0 = all cores"),
    key("seed", BENCH, Kind::int(0, i64::MAX), "seed of weights, tokens and draws"),
    key("json", BENCH, Kind::Text, "file to write the results to, as JSON"),
];

/// Keys of a plan, beside those of the run that is planned.
#[rustfmt::skip]
pub static PLANNING: &[Key] = &[
    key("gpus", PLAN, Kind::Text, "cards to plan for, as in 8xa100-80g; known: v100-32g, a6000-48g, a100-40g, a100-80g, h100-80g, h200-141g; left out, or cpu: ranks on this machine's CPU"),
    key("published", PLAN, Kind::Bool, "only print DeepSpeed-Chat's published tables 1 to 3 beside estimates for the same work"),
    key("json", PLAN, Kind::Text, "file to write the plan to, as JSON"),
];

/// Keys of a look at the machine.
#[rustfmt::skip]
pub static CHECKUP: &[Key] = &[
    key("output_dir", DOCTOR, Kind::Text, "folder of the run to come: a small file is written beside it, synced and removed"),
    key("device", DOCTOR, Kind::Device, "device the run is meant for; one that cannot be used is a problem"),
    key("json", DOCTOR, Kind::Text, "file to write the findings to, as JSON"),
];

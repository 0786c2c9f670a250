//! The command lines of DeepSpeed-Chat's published scripts, with `duplex sft`, `reward` or `ppo` in
//! the place of `deepspeed main.py`.

use super::args::{Request, parse};
use crate::pipeline::config::{RunConfig, ZeroStage};
use crate::pool::Zero;
use crate::tape::ActivationCheckpointing;
use crate::train::ScheduleKind;
use std::ffi::OsString;

fn read(line: &str) -> (RunConfig, Vec<String>) {
    let words = std::iter::once("duplex").chain(line.split_whitespace());
    match parse(words.map(OsString::from).collect()) {
        Ok((Request::Run(config), warnings)) => (*config, warnings),
        other => panic!("{line}: {other:?}"),
    }
}

/// Four data sets are blended in most scripts.
const BLEND: &str = "--data_path Dahoas/rm-static Dahoas/full-hh-rlhf \
    Dahoas/synthetic-instruct-gptj-pairwise yitingxie/rlhf-reward-datasets --data_split 2,4,4";
const STATIC: &str = "--data_path Dahoas/rm-static --data_split 2,4,4";
/// Flags that the scripts of steps 1 and 2 have in common.
const COMMON: &str = "--max_seq_len 512 --lr_scheduler_type cosine --num_warmup_steps 0 \
    --seed 1234 --deepspeed --output_dir ./output --enable_tensorboard --tensorboard_path ./output \
    --local_rank 0";
/// The same of step 3.
const PPO: &str = "--num_train_epochs 1 --lr_scheduler_type cosine --num_warmup_steps 100 \
    --deepspeed --seed 1234 --per_device_generation_batch_size 4 \
    --per_device_training_batch_size 4 --generation_batches 1 --ppo_epochs 1 \
    --max_answer_seq_len 256 --max_prompt_seq_len 256 --actor_learning_rate 9.65e-6 \
    --critic_learning_rate 5e-6 --gradient_accumulation_steps 1 --num_padding_at_beginning 1 \
    --output_dir ./output --enable_tensorboard --tensorboard_path out --actor_dropout 0.0 \
    --local_rank -1";

struct Script {
    command: &'static str,
    data: &'static str,
    /// Its own flags.
    flags: &'static str,
    /// Rank of LoRA, ZeRO stage, and whether activations are checkpointed, in the model trained.
    dim: usize,
    zero: u8,
    checkpointed: bool,
}

const fn script(
    command: &'static str,
    data: &'static str,
    flags: &'static str,
    dim: usize,
    zero: u8,
    checkpointed: bool,
) -> Script {
    Script { command, data, flags, dim, zero, checkpointed }
}

#[rustfmt::skip]
static SCRIPTS: &[Script] = &[
    // Step 1: OPT on one GPU, on a node, on several; LLaMA; the sweep.
    script("sft", STATIC,
        "--model_name_or_path facebook/opt-1.3b --gradient_accumulation_steps 8 --lora_dim 128 \
         --zero_stage 0", 128, 0, false),
    script("sft", BLEND,
        "--model_name_or_path facebook/opt-6.7b --per_device_train_batch_size 8 \
         --per_device_eval_batch_size 8 --learning_rate 1e-3 --weight_decay 0. \
         --num_train_epochs 16 --gradient_accumulation_steps 16 --gradient_checkpointing \
         --zero_stage 0 --lora_dim 128 --lora_module_name decoder.layers.", 128, 0, true),
    script("sft", BLEND,
        "--model_name_or_path facebook/opt-1.3b --per_device_train_batch_size 8 \
         --per_device_eval_batch_size 8 --learning_rate 9.65e-6 --weight_decay 0. \
         --num_train_epochs 16 --gradient_accumulation_steps 1 --zero_stage 2", 0, 2, false),
    script("sft", BLEND,
        "--model_name_or_path facebook/opt-1.3b --per_device_train_batch_size 8 \
         --per_device_eval_batch_size 8 --learning_rate 1e-3 --weight_decay 0.1 \
         --num_train_epochs 16 --zero_stage 0 --lora_dim 128 --lora_module_name decoder.layers. \
         --only_optimize_lora", 128, 0, false),
    script("sft", BLEND,
        "--model_name_or_path facebook/opt-6.7b --per_device_train_batch_size 6 \
         --per_device_eval_batch_size 6 --learning_rate 9.65e-6 --weight_decay 0. \
         --num_train_epochs 16 --gradient_checkpointing --zero_stage 3", 0, 3, true),
    script("sft", BLEND,
        "--model_name_or_path facebook/opt-13b --per_device_train_batch_size 4 \
         --per_device_eval_batch_size 4 --learning_rate 1e-4 --weight_decay 0. \
         --num_train_epochs 16 --gradient_checkpointing --zero_stage 3 --lora_dim 128 \
         --lora_module_name decoder.layers.", 128, 3, true),
    script("sft", BLEND,
        "--model_name_or_path facebook/opt-30b --per_device_train_batch_size 4 \
         --per_device_eval_batch_size 4 --learning_rate 9.65e-6 --weight_decay 0. \
         --num_train_epochs 16 --gradient_checkpointing --zero_stage 3 --lora_dim 128 \
         --lora_module_name decoder.layers.", 128, 3, true),
    script("sft", BLEND,
        "--model_name_or_path facebook/opt-66b --per_device_train_batch_size 4 \
         --per_device_eval_batch_size 4 --learning_rate 1e-4 --weight_decay 0.1 \
         --num_train_epochs 2 --gradient_checkpointing --zero_stage 3 --lora_dim 128 \
         --lora_module_name decoder.layers.", 128, 3, true),
    script("sft", BLEND,
        "--model_name_or_path meta-llama/Llama-2-7b-hf --per_device_train_batch_size 4 \
         --per_device_eval_batch_size 4 --learning_rate 9.65e-6 --weight_decay 0. \
         --num_train_epochs 4 --gradient_checkpointing --zero_stage 3 --print_loss", 0, 3, true),
    script("sft", BLEND,
        "--model_name_or_path meta-llama/Llama-2-7b-hf --per_device_train_batch_size 4 \
         --per_device_eval_batch_size 4 --learning_rate 9.65e-6 --weight_decay 0. \
         --num_train_epochs 4 --gradient_checkpointing --zero_stage 3 --lora_dim 128 \
         --lora_module_name layers.", 128, 3, true),
    script("sft", STATIC,
        "--model_name_or_path facebook/opt-125m --sft_only_data_path wangrui6/Zhihu-KOL \
         --data_output_path /tmp/data_files/ --dtype bf16 --lora_learning_rate 5e-4 --lora_dim 8 \
         --only_optimize_lora --compute_fp32_loss --print_loss --offload --master_port 29600 \
         --num_gpus 1 --num_nodes 1", 8, 9, false),
    // Step 2.
    script("reward", STATIC,
        "--model_name_or_path facebook/opt-350m --num_padding_at_beginning 1 --weight_decay 0.1 \
         --dropout 0.0 --gradient_accumulation_steps 4 --zero_stage 0", 0, 0, false),
    script("reward", BLEND,
        "--model_name_or_path facebook/opt-350m --per_device_train_batch_size 4 \
         --per_device_eval_batch_size 4 --learning_rate 5e-5 --weight_decay 0.1 --dropout 0.0 \
         --num_padding_at_beginning 1 --num_train_epochs 1 --gradient_accumulation_steps 1 \
         --zero_stage 0", 0, 0, false),
    script("reward", BLEND,
        "--model_name_or_path facebook/opt-350m --per_device_train_batch_size 2 \
         --per_device_eval_batch_size 2 --learning_rate 5e-5 --weight_decay 0.1 --dropout 0.0 \
         --num_padding_at_beginning 1 --num_train_epochs 1 --zero_stage 0 --eval_interval 50 \
         --eval_iters 100", 0, 0, false),
    script("reward", STATIC,
        "--model_name_or_path meta-llama/Llama-2-7b-hf --per_device_train_batch_size 8 \
         --per_device_eval_batch_size 8 --learning_rate 9.65e-6 --weight_decay 0.1 \
         --num_padding_at_beginning 0 --num_train_epochs 1 --gradient_checkpointing --zero_stage 3 \
         --offload", 0, 3, true),
    script("reward", STATIC,
        "--model_name_or_path meta-llama/Llama-2-7b-hf --per_device_train_batch_size 8 \
         --per_device_eval_batch_size 8 --learning_rate 9.65e-6 --weight_decay 0.1 \
         --num_padding_at_beginning 0 --num_train_epochs 1 --gradient_checkpointing --zero_stage 3 \
         --offload --lora_dim 128 --lora_module_name layers.", 128, 3, true),
    // Step 3.
    script("ppo", STATIC,
        "--actor_model_name_or_path a --critic_model_name_or_path c \
         --gradient_accumulation_steps 2 --actor_lora_dim 128 --actor_gradient_checkpointing \
         --critic_gradient_checkpointing --actor_zero_stage 0 --critic_zero_stage 0 \
         --enable_hybrid_engine", 128, 0, true),
    script("ppo", STATIC,
        "--actor_model_name_or_path a --critic_model_name_or_path c --actor_learning_rate 5e-4 \
         --gradient_accumulation_steps 16 --actor_lora_dim 128 --actor_gradient_checkpointing \
         --critic_gradient_checkpointing --actor_zero_stage 0 --critic_zero_stage 0 \
         --enable_hybrid_engine", 128, 0, true),
    script("ppo", STATIC,
        "--actor_model_name_or_path a --critic_model_name_or_path c --actor_zero_stage 2 \
         --critic_zero_stage 2 --enable_hybrid_engine --enable_ema", 0, 2, false),
    script("ppo", STATIC,
        "--actor_model_name_or_path a --critic_model_name_or_path c --actor_lora_dim 128 \
         --actor_lora_module_name decoder.layers. --critic_lora_dim 128 \
         --critic_lora_module_name decoder.layers. --only_optimize_lora --actor_zero_stage 2 \
         --critic_zero_stage 2 --enable_hybrid_engine \
         --actor_gradient_checkpointing", 128, 2, true),
    script("ppo", STATIC,
        "--actor_model_name_or_path a --critic_model_name_or_path c --actor_weight_decay 0.1 \
         --critic_weight_decay 0.1 --actor_zero_stage 3 --critic_zero_stage 3 \
         --enable_hybrid_engine --actor_gradient_checkpointing \
         --critic_gradient_checkpointing", 0, 3, true),
    script("ppo", STATIC,
        "--actor_model_name_or_path a --critic_model_name_or_path c --inference_tp_size 2 \
         --tp_gather_partition_size 8 --actor_lora_dim 128 \
         --actor_lora_module_name decoder.layers. --actor_zero_stage 3 --critic_zero_stage 3 \
         --enable_hybrid_engine --actor_gradient_checkpointing", 128, 3, true),
    script("ppo", STATIC,
        "--actor_model_name_or_path a --critic_model_name_or_path c --actor_lora_dim 128 \
         --actor_lora_module_name decoder.layers. --critic_lora_dim 128 \
         --critic_lora_module_name decoder.layers. --actor_zero_stage 3 --critic_zero_stage 3 \
         --enable_hybrid_engine --critic_gradient_checkpointing", 128, 3, true),
    script("ppo", STATIC,
        "--actor_model_name_or_path a --critic_model_name_or_path c --inference_tp_size 8 \
         --tp_gather_partition_size 4 --actor_lora_dim 128 \
         --actor_lora_module_name decoder.layers. --actor_zero_stage 3 --critic_zero_stage 3 \
         --enable_hybrid_engine --unpin_actor_parameters --release_inference_cache \
         --actor_gradient_checkpointing", 128, 3, true),
    script("ppo", STATIC,
        "--actor_model_name_or_path a --critic_model_name_or_path c --offload_reference_model \
         --inference_tp_size 2 --actor_zero_stage 3 --critic_zero_stage 3 --enable_hybrid_engine \
         --actor_gradient_checkpointing --critic_gradient_checkpointing", 0, 3, true),
    script("ppo", STATIC,
        "--actor_model_name_or_path a --critic_model_name_or_path c --offload_reference_model \
         --offload_reward_model --actor_lora_dim 64 --critic_lora_dim 64 \
         --actor_lora_module_name layers. --critic_lora_module_name layers. \
         --actor_lora_learning_rate 5e-4 --critic_lora_learning_rate 5e-4 --actor_zero_stage 3 \
         --critic_zero_stage 3 --enable_hybrid_engine \
         --actor_gradient_checkpointing", 64, 3, true),
    script("ppo", STATIC,
        "--actor_model_name_or_path a --critic_model_name_or_path c --actor_lora_dim 64 \
         --critic_lora_dim 64 --actor_lora_module_name layers. --critic_lora_module_name layers. \
         --actor_zero_stage 3 --critic_zero_stage 3 --enable_mixed_precision_lora --offload \
         --actor_gradient_checkpointing", 64, 3, true),
    script("ppo", STATIC,
        "--actor_model_name_or_path a --critic_model_name_or_path c \
         --unsupervised_dataset_name u.txt --unsup_coef 27.8 --preprocessing_num_workers 4 \
         --align_overflow --print_answers --print_answers_interval 5 --enable_test_mode \
         --test_stop_step 7 --critic_dropout 0.0 --compute_fp32_loss --data_output_path /tmp/x \
         --deployment-type single_gpu --actor_zero_stage 0 --critic_zero_stage 0", 0, 0, false),
];

#[test]
fn published_scripts_are_read() {
    assert_eq!(SCRIPTS.len(), 28);
    for s in SCRIPTS {
        let base = if s.command == "ppo" { PPO } else { COMMON };
        // A flag of the script's own comes in the place of the common one.
        let mut common: Vec<&str> = vec![];
        for part in base.split("--").filter(|p| !p.trim().is_empty()) {
            let name = part.split_whitespace().next().unwrap();
            if !s.flags.split_whitespace().any(|w| w.strip_prefix("--") == Some(name)) {
                common.push(part);
            }
        }
        let common: String = common.iter().map(|part| format!("--{part} ")).collect();
        for dashed in [false, true] {
            let mut line = format!("{} {} {} {common}", s.command, s.data, s.flags);
            if dashed {
                let dash =
                    |w: &str| if w.starts_with("--") { w.replace('_', "-") } else { w.into() };
                line = line.split_whitespace().map(dash).collect::<Vec<_>>().join(" ");
            }
            let (c, warnings) = read(&line);
            assert_eq!(warnings.len(), 1, "{line}: {warnings:?}");
            assert!(warnings[0].starts_with("these flags change nothing here: --"), "{warnings:?}");
            assert!(warnings[0].contains("--local-rank"), "{warnings:?}");
            let dim =
                if s.command == "reward" { c.lora.critic_lora_dim } else { c.lora.actor_lora_dim };
            assert_eq!(dim, s.dim, "{line}");
            let stage = Zero::ALL.get(s.zero as usize).copied().map(ZeroStage::At);
            assert_eq!(c.zero_stage, stage.unwrap_or(ZeroStage::Auto));
            assert_eq!(
                c.gradient_checkpointing == ActivationCheckpointing::Full,
                s.checkpointed,
                "{line}"
            );
            assert_eq!(c.data_split.as_deref(), Some("2,4,4"));
            assert_eq!((c.data_path[0].as_str(), c.seed), ("Dahoas/rm-static", 1234));
        }
    }
}

#[test]
fn flags_of_deepspeed_chat_set_what_they_mean() {
    let one = read(&format!(
        "{} {STATIC} {} {PPO}",
        SCRIPTS[16].command,
        "--actor_model_name_or_path a \
        --critic_model_name_or_path c --enable_ema --enable_test_mode --test_stop_step 7 \
        --actor_lora_dim 8 --critic_lora_dim 8 --critic_lora_module_name layers. --offload"
    ))
    .0;
    assert_eq!((one.actor_model.as_deref(), one.reward_model.as_deref()), (Some("a"), Some("c")));
    assert!(one.ppo().online.enable_ema && one.offload);
    assert_eq!(
        (one.ppo().online.max_steps, &one.lora.lora_module_name[..]),
        (7, &["layers.".into()][..])
    );
    assert_eq!(
        (one.ppo().online.update.num_warmup_steps, one.ppo().online.update.lr_scheduler_type),
        (100, ScheduleKind::Cosine)
    );
    // Rounds gather and take more together, and leave the weights alone meanwhile.
    let line = format!(
        "ppo {STATIC} {} --actor_model_name_or_path a",
        PPO.replace("steps 1 ", "steps 3 ")
    );
    let rounds = read(&line).0.ppo();
    assert_eq!(
        (rounds.online.prompts_per_iteration(), rounds.online.completions_per_step()),
        (12, 12)
    );
    let (c, said) =
        read("sft --model_name_or_path m --data_path d --dtype fp16 --add_eot_token --eot_token x");
    assert_eq!(c.dtype, crate::pipeline::config::Precision::Bf16);
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said[0].contains("fp16") && said[1].starts_with("--add-eot-token: answers end"));
    let (c, said) = read(
        "train --actor-model 1.3b --reward-model 350m --deployment-type single_node \
        --actor-zero-stage 2 --reward-zero-stage 3 --step 1 2",
    );
    assert_eq!(c.actor_model.as_deref(), Some("facebook/opt-1.3b"));
    assert_eq!(c.reward_model.as_deref(), Some("facebook/opt-350m"));
    assert_eq!(
        (c.zero_stage, c.critic_zero_stage),
        [Zero::Gradients, Zero::Weights].map(ZeroStage::At).into()
    );
    assert!(said.is_empty());
}

fn refusal(line: &str) -> String {
    let words = std::iter::once("duplex").chain(line.split_whitespace());
    match parse(words.map(OsString::from).collect()) {
        Err(e) => {
            assert_eq!(e.exit_code(), 2);
            e.to_string()
        }
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn flags_of_the_launcher_are_answered() {
    let line = "sft --model_name_or_path m --data_path d";
    let idle = "--launcher pdsh --launcher_args -x --no_ssh --no_ssh_check --force_multi \
                --node_rank 0 --bind_cores_to_rank --module --no_python --no_local_rank --save_pid \
                --ssh_port 22 --master_addr localhost --master_port 29500 --num_nodes 1 \
                --venv_script a --num_accelerators 2";
    let (c, said) = read(&format!("{line} {idle}"));
    assert_eq!((said.len(), c.num_gpus), (1, 2), "{said:?}");
    for flag in idle.split_whitespace().filter(|w| w.starts_with("--") && !w.ends_with("tors")) {
        assert!(said[0].contains(&flag.replace('_', "-")), "{flag}: {said:?}");
    }
    for (flags, want) in [
        ("--hostfile hosts", "--hostfile: start ranks on several machines with torchrun"),
        ("--num_nodes 2", "--num-nodes 2: start ranks on several machines"),
        ("--node_rank 1", "--node-rank 1: start ranks on several machines"),
        ("--include localhost:0,1", "--include: choose GPUs with CUDA_VISIBLE_DEVICES"),
        ("--exclude localhost:0", "--exclude: choose GPUs with CUDA_VISIBLE_DEVICES"),
        ("--autotuning run", "--autotuning: Duplex makes no trial runs; `duplex plan`"),
        ("--elastic_training", "--elastic-training: the number of ranks is fixed"),
    ] {
        let told = refusal(&format!("{line} {flags}"));
        assert!(told.starts_with(want), "{told}");
    }
    let (_, said) = read(&format!("{line} --bind_core_list 0-3 --enable_each_rank_log logs"));
    assert!(said.len() == 2 && said.iter().all(|s| s.contains(": ")), "{said:?}");
}

#[test]
fn test_mode_ends_a_step_early() {
    let ppo = |flags: &str| {
        read(&format!("ppo --actor-model m --data-path d --num-train-epochs 3 {flags}"))
    };
    let lengths = |c: &RunConfig| (c.ppo().online.max_steps, c.ppo().online.num_train_epochs);
    assert_eq!(lengths(&ppo("--enable_test_mode --test_stop_step 5").0), (5, 3));
    // It says no number, hence one epoch, as there.
    assert_eq!(lengths(&ppo("--enable_test_mode").0), (0, 1));
    assert_eq!(lengths(&ppo("--enable_test_mode --test_stop_step 0").0), (0, 1));
    let (c, said) = ppo("--test_stop_step 5");
    assert_eq!(lengths(&c), (0, 3));
    assert!(said[0].starts_with("these flags change nothing here: --test-stop-step"), "{said:?}");
    let line = "--actor-model m --data-path d --enable_test_mode --test_stop_step 5";
    assert_eq!(read(&format!("sft {line}")).0.sft().optimizer.max_steps, 5);
    assert_eq!(read(&format!("train {line}")).0.ppo().online.max_steps, 5);
    assert_eq!(
        refusal(&format!("ppo {line} --max-steps 7")),
        "--test-stop-step 5 and --max-steps both set the end of the stage; leave one out"
    );
}

#[test]
fn what_is_accepted_is_no_key_too() {
    for entry in super::commands::COMMANDS.iter() {
        for foreign in super::deepspeed::of(entry) {
            for key in entry.own_keys() {
                assert_ne!(entry.flag(key), foreign.flag);
                assert!(!entry.aliases(key).iter().any(|a| a == foreign.flag), "{}", foreign.flag);
            }
        }
    }
}

//! Flags of DeepSpeed and DeepSpeed-Chat that have no counterpart here, and why, so that a script
//! that is moved over says at once what to do.

/// Flag (or, with a trailing `*`, a beginning of flags) and advice.
static FLAGS: &[(&str, &str)] = &[
    ("add-eot-token", OWN_TOKEN),
    ("align-overflow", "bf16 has no loss scale to overflow; leave it out"),
    ("compute-fp32-loss", "losses are always computed in f32; leave it out"),
    ("critic-gradient-checkpointing", "use --gradient-checkpointing, which holds for all models"),
    ("critic-lora-module-name", "use --lora-module-name, which holds for all models"),
    ("data-output-path", "there are no cache files; leave it out"),
    ("deepspeed*", "everything is set by duplex's own flags; leave it out"),
    ("actor-dropout", NO_DROPOUT),
    ("critic-dropout", NO_DROPOUT),
    ("dropout", NO_DROPOUT),
    ("eot-token", OWN_TOKEN),
    ("enable-hybrid-engine", "it is always on; leave it out"),
    ("enable-mixed-precision-lora", "adapters have the dtype of the weights; leave it out"),
    ("enable-test-mode", "use --max-steps"),
    ("gradient-accumulation-steps", "raise --per-device-training-batch-size instead"),
    ("local-rank", "ranks follow from --num-gpus or the launcher; leave it out"),
    ("num-padding-at-beginning", "sequences are packed, never padded; leave it out"),
    ("offload-*", "use --offload, which holds for optimizer state, reference and reward model"),
    ("only-optimize-lora", "LoRA always trains its adapters alone; leave it out"),
    ("per-device-eval-batch-size", "batches are packed to fit; leave it out"),
    ("preprocessing-num-workers", "use --threads"),
    ("print-answers*", "use --print-samples N"),
    ("print-loss", "the loss is always shown; leave it out"),
    ("release-inference-cache", "memory is planned for both phases; leave it out"),
    ("reward-zero-stage", "use --critic-zero-stage, which holds for both"),
    ("tensorboard-path", "event files go into the output folder; leave it out"),
    ("test-stop-step", "use --max-steps"),
    (
        "tp-gather-partition-size",
        "a rank gathers nothing to generate, or what it lacks of its slice; leave it out",
    ),
    ("unpin-actor-parameters", "weights are held once for both phases; leave it out"),
    ("unsupervised-dataset-config-name", "name the files with --unsupervised-data-path"),
];

const NO_DROPOUT: &str = "models are trained without dropout; leave it out";

const OWN_TOKEN: &str = "answers end with the tokenizer's own end token; leave it out";

/// What to do instead of `flag`, given without its dashes.
pub(super) fn advice(flag: &str) -> Option<&'static str> {
    let matches = |pattern: &str| match pattern.strip_suffix('*') {
        Some(start) => flag.starts_with(start),
        None => flag == pattern,
    };
    FLAGS.iter().find(|(pattern, _)| matches(pattern)).map(|(_, advice)| *advice)
}

//! Rows of random unequal length under the vocabularies of real models.

use crate::place::{Place, metrics, number};

#[test]
fn all_steps_on_unequal_rows_under_a_large_vocabulary() {
    let p = Place::large("llama", 49_157, 350);
    let more = ["--micro-batch-tokens", "900", "--sft-max-steps", "4"];
    for (to, keep) in [("plain", "none"), ("full", "full")] {
        let lora = ["--actor-lora-dim", "2", "--gradient-checkpointing", keep];
        let run =
            p.train(to, &[&more[..], if keep == "full" { &lora } else { &lora[2..] }].concat());
        for step in ["sft", "reward"] {
            assert!(metrics(&run, step).iter().all(|m| number(m, "grad_norm") > 0.0), "{step}");
        }
        for iteration in metrics(&run, "ppo") {
            assert_eq!(number(&iteration, "first_ratio_deviation"), 0.0);
        }
    }
}

#[cfg(feature = "emulator")]
#[test]
fn a_step_of_each_kind_under_a_large_vocabulary_on_the_emulated_device() {
    let p = Place::large("llama", 151_936, 9);
    let steps = ["--sft-max-steps", "1", "--reward-max-steps", "1", "--ppo-max-steps", "1"];
    let sizes = ["--sft-per-device-train-batch-size", "2", "--max-answer-seq-len", "3"];
    let reward = ["--reward-per-device-train-batch-size", "2"];
    let ppo = ["--per-device-generation-batch-size", "2", "--per-device-training-batch-size", "2"];
    let run =
        p.train("run", &[&steps[..], &sizes, &reward, &ppo, &["--device", "emulated"]].concat());
    assert_eq!(number(&metrics(&run, "ppo")[0], "first_ratio_deviation"), 0.0);
}

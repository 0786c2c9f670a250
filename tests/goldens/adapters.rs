//! Adapters of every kind that peft makes (`tools/golden_adapters.py`): loaded, merged, exported,
//! and refused where a tensor or a setting has no place.

use super::device::device;
use super::{Golden, dir, logits, relative, tensors_of, write_changed};
use duplex::base::DType;
use duplex::formats::Checkpoint;
use duplex::formats::OutDir;
use duplex::model::{
    Head, LoadOptions, Model, Pass, SaveAs, adapter_weights, save_adapters, save_model,
};
use duplex::tape::Workspace;
use duplex::train::Batch;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const ALL: [&str; 17] = [
    "all_linear",
    "bare",
    "bias_all",
    "bias_lora",
    "both",
    "both_tied",
    "defaults",
    "embedding",
    "fused",
    "head",
    "layers",
    "patterns",
    "pickle",
    "regex",
    "rslora",
    "score",
    "whole_module",
];

fn peft(name: &str) -> PathBuf {
    dir("peft").join(name)
}

fn head_of(name: &str) -> Head {
    if name == "score" { Head::Score } else { Head::Lm }
}

fn open(path: &Path, head: Head) -> Model {
    Model::load(path, &LoadOptions::frozen(head, DType::F32).on(device())).unwrap()
}

fn output(model: &Model, ids: &[i32]) -> Vec<f32> {
    match model.head {
        Head::Lm => logits(model, &[ids.to_vec()]).remove(0),
        Head::Score => {
            let mut ws = Workspace::new(device(), usize::MAX).unwrap();
            let batch = Batch::new(&[(ids, 0..ids.len())]);
            ws.run("scores", &batch, |tape, batch: &Batch| {
                let (hidden, select) = batch.hidden(tape, model, Pass::EVAL)?;
                let scores = model.scores(tape, hidden, select)?;
                tape.read_f32(scores)
            })
            .unwrap()
        }
    }
}

/// Token ids and what peft computes.
fn golden(name: &str) -> (Vec<i32>, Vec<f32>) {
    let golden = Golden::open(&format!("peft/{name}"));
    let what = if head_of(name) == Head::Score { "scores" } else { "logits" };
    (golden.ints("ids"), golden.floats(what))
}

#[test]
fn outputs_are_those_of_peft_before_and_after_both_exports() {
    let tmp = tempfile::tempdir().unwrap();
    for name in ALL {
        let (ids, want) = golden(name);
        let model = open(&peft(name), head_of(name));
        let got = output(&model, &ids);
        let error = relative(&got, &want);
        println!("{name}: {error:.1e}");
        assert!(error < 1e-5, "{name}: {error:.2e}");
        let place = tmp.path().join(name);
        save_model(
            &model,
            &OutDir::create(&place.join("merged")).unwrap(),
            &SaveAs::default(),
            None,
        )
        .unwrap();
        let merged = open(&place.join("merged"), head_of(name));
        assert!(merged.notes.is_empty(), "{name}: {:?}", merged.notes);
        assert!(relative(&output(&merged, &ids), &want) < 1e-5, "{name} merged");
        let base = duplex::model::base_dir(&peft(name)).unwrap().canonicalize().unwrap();
        let alone = place.join("adapter");
        save_adapters(&model, &OutDir::create(&alone).unwrap(), base.to_str().unwrap()).unwrap();
        let again = open(&alone, head_of(name));
        assert_eq!(output(&again, &ids), got, "{name} saved alone");
        // What peft reads: the same tensors, under the same names.
        let tensors = |dir: &Path| -> Vec<String> {
            let file = Checkpoint::open_file(&adapter_weights(dir).unwrap()).unwrap();
            file.names().map(|n| n.replace(".default", "")).collect()
        };
        assert_eq!(tensors(&alone), tensors(&peft(name)), "{name}");
    }
}

/// A copy of an adapter with another config and other tensors, of which some are renamed or left
/// out.
fn changed(
    from: &str,
    place: &Path,
    config: impl Fn(&mut Value),
    rename: impl Fn(&str) -> Option<String>,
) -> PathBuf {
    let to = place.join("adapter");
    let base = duplex::model::base_dir(&peft(from)).unwrap().canonicalize().unwrap();
    let all = tensors_of(&Checkpoint::open_file(&adapter_weights(&peft(from)).unwrap()).unwrap());
    let kept = all.into_iter().filter_map(|(n, t, b)| Some((rename(&n)?, t, b))).collect();
    let based = |settings: &mut Value| {
        settings["base_model_name_or_path"] = json!(base.to_str().unwrap());
        config(settings);
    };
    let settings = peft(from).join("adapter_config.json");
    write_changed(&to, &settings, based, "adapter_model.safetensors", &kept);
    to
}

#[test]
fn every_tensor_of_an_adapter_has_a_place() {
    let tmp = tempfile::tempdir().unwrap();
    let refused =
        |from: &str, config: &dyn Fn(&mut Value), rename: &dyn Fn(&str) -> Option<String>| {
            let to = changed(from, tmp.path(), config, rename);
            let e = Model::load(&to, &LoadOptions::frozen(Head::Lm, DType::F32)).unwrap_err();
            assert_eq!(e.exit_code(), 2);
            e.to_string()
        };
    let same = |n: &str| Some(n.to_string());
    let no = |_: &mut Value| {};
    let cases = [
        // A tensor less, one more, one of a layer that is not adapted, one of no module.
        (
            refused("patterns", &no, &|n| {
                (!n.contains("1.self_attn.q_proj.lora_B")).then(|| n.into())
            }),
            "lora_B of model.layers.1.self_attn.q_proj is missing",
        ),
        (
            refused("layers", &|c| c["target_modules"] = json!(["q_proj"]), &same),
            "v_proj.lora_A.weight",
        ),
        (
            refused("patterns", &no, &|n| {
                Some(n.replace("0.self_attn.q_proj.lora_A", "0.lm_head.lora_A"))
            }),
            "lora_A of model.layers.0.self_attn.q_proj is missing",
        ),
        (
            refused("head", &no, &|n| Some(n.replace("model.norm", "model.norms"))),
            "model.norms.weight",
        ),
        (
            refused("head", &no, &|n| (!n.contains("lm_head")).then(|| n.into())),
            "lm_head.weight is missing, which modules_to_save names",
        ),
        (
            refused("patterns", &no, &|n| {
                Some(n.replace(
                    "0.self_attn.q_proj.lora_A.weight",
                    "0.self_attn.q_proj.lora_magnitude_vector",
                ))
            }),
            "is missing",
        ),
        // Ranks that the config does not give.
        (
            refused("patterns", &|c| c["rank_pattern"] = json!({}), &same),
            "lora_A.weight has shape [3, 32]",
        ),
        (refused("patterns", &|c| c["use_dora"] = json!(true), &same), "use_dora"),
        (
            refused("patterns", &|c| c["target_modules"] = json!(["query"]), &same),
            "target_modules query",
        ),
    ];
    for (got, want) in cases {
        assert!(got.contains(want), "{want}: {got}");
    }
}

#[test]
fn names_and_alternatives_that_older_versions_wrote_mean_the_same() {
    let tmp = tempfile::tempdir().unwrap();
    let (ids, want) = golden("head");
    for rename in [
        (|n: &str| Some(n.replace("lm_head.weight", "lm_head.modules_to_save.default.weight")))
            as fn(&str) -> Option<String>,
        |n| Some(n.replace("lm_head.weight", "lm_head.modules_to_save.weight")),
        |n| Some(n.replace("lora_A.weight", "lora_A.mine.weight")),
        |n| Some(format!("module.{n}")),
    ] {
        let to = changed("head", tmp.path(), |_| {}, rename);
        assert!(relative(&output(&open(&to, Head::Lm), &ids), &want) < 1e-5);
    }
}

/// Training from such an adapter trains factors of the adapter's own ranks, and says what stays.
#[test]
fn training_keeps_the_ranks_and_what_came_with_the_adapters() {
    let options = LoadOptions { train: true, ..LoadOptions::frozen(Head::Lm, DType::F32) };
    let model = Model::load(&peft("patterns"), &options).unwrap();
    let ranks: Vec<(usize, f32)> = model.adapters().map(|a| (a.rank, a.scale)).collect();
    // Layer 0: q with the default rank, v with 3; the first pattern's alpha for both.
    assert_eq!(ranks, [(4, 8.0), (3, 32.0 / 3.0), (2, 2.5), (3, 8.0 / 3.0)]);
    let model = Model::load(&peft("head"), &options).unwrap();
    assert!(
        model.notes.iter().any(|n| n.contains("lm_head.weight, model.layers.0")),
        "{:?}",
        model.notes
    );
    let trained: usize = model.adapters().map(|a| a.rank * 32 + a.rank * a.rows).sum();
    assert_eq!(model.num_trained(), trained);
}

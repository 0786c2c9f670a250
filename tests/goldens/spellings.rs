//! Checkpoints as other tools name their tensors: the same model, or an error that is true.

use super::device::device;
use super::{Tensors, dir, logits, relative, tensors_of, write_changed};
use duplex::base::DType;
use duplex::formats::OutDir;
use duplex::formats::{Checkpoint, SaveTensor, SourceDType};
use duplex::model::{Head, LoadOptions, Model, SaveAs, save_model};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn tensors(from: &str) -> Tensors {
    tensors_of(&Checkpoint::open(&dir(from)).unwrap())
}

fn floats(shape: &[usize], seed: usize) -> (SaveTensor, Vec<u8>) {
    let n: usize = shape.iter().product();
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 997) as f32 / 997.0 - 0.5;
    let bytes = (0..n).flat_map(|i| value(i).to_le_bytes()).collect();
    (SaveTensor::new("", SourceDType::F32, shape), bytes)
}

/// A model directory with the config of `from` and these tensors.
fn written(place: &Path, from: &str, config: impl Fn(&mut Value), all: &Tensors) -> PathBuf {
    let to = place.join("model");
    write_changed(&to, &dir(from).join("config.json"), config, "model.safetensors", all);
    to
}

fn load(path: &Path, head: Head) -> duplex::base::Result<Model> {
    Model::load(path, &LoadOptions::frozen(head, DType::F32).on(device()))
}

fn renamed(all: &Tensors, rename: impl Fn(&str) -> String) -> Tensors {
    all.iter().map(|(n, t, b)| (rename(n), t.clone(), b.clone())).collect()
}

fn score(model: &Model) -> Vec<f32> {
    model.store.read_f32(model.params.head).unwrap()
}

#[test]
fn score_heads_are_found_under_every_name() {
    let tmp = tempfile::tempdir().unwrap();
    let plain = tensors("llama_reward");
    let want = score(&load(&dir("llama_reward"), Head::Score).unwrap());
    for head in
        ["v_head", "v_head.summary", "value_head", "reward_head", "classifier", "module.score"]
    {
        let other = renamed(&plain, |n| n.replace("score", head));
        let to = written(tmp.path(), "llama_reward", |_| {}, &other);
        let model = load(&to, Head::Score).unwrap();
        assert_eq!(score(&model), want, "{head}");
        assert!(!model.score_is_random && model.notes.is_empty(), "{head}: {:?}", model.notes);
        // As a language model it is told what is left out.
        let e = load(&to, Head::Lm).unwrap();
        assert!(
            e.notes.iter().any(|n| n.contains(head) && n.contains("not used")),
            "{:?}",
            e.notes
        );
    }
    // DeepSpeed-Chat's own: the body without its prefix, below `rwtransformer`.
    for wrap in ["", "module.", "_orig_mod."] {
        let other = renamed(&plain, |n| match n.strip_prefix("model.") {
            Some(body) => format!("{wrap}rwtransformer.{body}"),
            None => format!("{wrap}v_head.weight"),
        });
        let to = written(tmp.path(), "llama_reward", |_| {}, &other);
        assert_eq!(score(&load(&to, Head::Score).unwrap()), want);
    }
    let mut biased = renamed(&plain, |n| n.replace("score", "v_head.summary"));
    let (bias, values) = floats(&[1], 3);
    biased.push(("v_head.summary.bias".into(), bias.clone(), vec![0; 4]));
    let to = written(tmp.path(), "llama_reward", |_| {}, &biased);
    assert_eq!(score(&load(&to, Head::Score).unwrap()), want);
    biased.last_mut().unwrap().2 = values;
    let two = |shape: &[usize]| {
        let mut all: Tensors = plain.iter().filter(|t| t.0 != "score.weight").cloned().collect();
        let (t, b) = floats(shape, 5);
        all.push(("score.weight".into(), t, b));
        all
    };
    let mut layers = two(&[1, 32]);
    layers.last_mut().unwrap().0 = "score.0.weight".into();
    let mut both = plain.clone();
    let (t, b) = floats(&[1, 32], 9);
    both.push(("v_head.weight".into(), t, b));
    for (all, want) in [
        (&biased, "v_head.summary.bias is not 0"),
        (&two(&[2, 32]), "has num_labels 2 (score.weight has 2 rows); a reward model has 1"),
        (&two(&[1, 16]), "[1, 16]"),
        (&layers, "score.0.weight"),
        (&both, "score.weight, v_head.weight"),
    ] {
        let to = written(tmp.path(), "llama_reward", |_| {}, all);
        let e = load(&to, Head::Score).unwrap_err().to_string();
        assert!(e.contains(want), "{want}: {e}");
    }
}

#[test]
fn tied_weights_may_have_either_name_and_a_head_of_its_own_counts() {
    let tmp = tempfile::tempdir().unwrap();
    let plain = tensors("llama_tied");
    let embedding = "model.embed_tokens.weight";
    let ids = vec![vec![5, 17, 80, 3, 44]];
    let want = logits(&load(&dir("llama_tied"), Head::Lm).unwrap(), &ids);
    let only_head =
        renamed(&plain, |n| if n == embedding { "lm_head.weight".into() } else { n.into() });
    let to = written(tmp.path(), "llama_tied", |_| {}, &only_head);
    assert_eq!(logits(&load(&to, Head::Lm).unwrap(), &ids), want);
    assert!(load(&to, Head::Score).unwrap().score_is_random);
    // Untied, each is needed.
    let untie = |c: &mut Value| c["tie_word_embeddings"] = json!(false);
    let e = load(&written(tmp.path(), "llama_tied", untie, &only_head), Head::Lm).unwrap_err();
    assert!(e.to_string().contains("first model.embed_tokens.weight"), "{e}");
    let e = load(&written(tmp.path(), "llama_tied", untie, &plain), Head::Lm).unwrap_err();
    assert!(e.to_string().contains("tie_word_embeddings true"), "{e}");
    // Both, equal: still tied.
    let mut both = plain.clone();
    let copy = plain.iter().find(|t| t.0 == embedding).unwrap().clone();
    both.push(("lm_head.weight".into(), copy.1.clone(), copy.2.clone()));
    let model = load(&written(tmp.path(), "llama_tied", |_| {}, &both), Head::Lm).unwrap();
    assert!(model.arch.tied && model.notes.is_empty());
    // Both, and different: what transformers computes with the same files untied.
    both.last_mut().unwrap().2 = floats(&copy.1.info.shape, 11).1;
    let model = load(&written(tmp.path(), "llama_tied", |_| {}, &both), Head::Lm).unwrap();
    let other = load(&written(tmp.path(), "llama_tied", untie, &both), Head::Lm).unwrap();
    assert!(!model.arch.tied && model.notes[0].contains("lm_head.weight"), "{:?}", model.notes);
    assert_eq!(logits(&model, &ids), logits(&other, &ids));
    assert!(relative(&logits(&model, &ids)[0], &want[0]) > 0.1);
    // Its export says so.
    let saved = tmp.path().join("saved");
    save_model(&model, &OutDir::create(&saved).unwrap(), &SaveAs::default(), None).unwrap();
    let again = load(&saved, Head::Lm).unwrap();
    assert!(!again.arch.tied && again.notes.is_empty(), "{:?}", again.notes);
    assert_eq!(logits(&again, &ids), logits(&other, &ids));
}

#[test]
fn wrapped_models_load_and_strangers_are_named() {
    let tmp = tempfile::tempdir().unwrap();
    let ids = vec![vec![7, 8, 60, 9]];
    for from in ["gpt2", "gpt_neox", "opt", "llama_untied"] {
        let plain = tensors(from);
        let want = logits(&load(&dir(from), Head::Lm).unwrap(), &ids);
        for wrap in ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod."] {
            let to = written(tmp.path(), from, |_| {}, &renamed(&plain, |n| format!("{wrap}{n}")));
            assert_eq!(logits(&load(&to, Head::Lm).unwrap(), &ids), want, "{from} {wrap}");
        }
        let mut more = plain.clone();
        let (t, b) = floats(&[4], 1);
        for buffer in ["rotary_emb.inv_freq", "model.embeddings.position_ids"] {
            more.push((buffer.into(), t.clone(), b.clone()));
        }
        let to = written(tmp.path(), from, |_| {}, &more);
        assert_eq!(logits(&load(&to, Head::Lm).unwrap(), &ids), want, "{from} with buffers");
        for (stranger, hint) in [
            ("model.vision.weight", "belongs to no part"),
            ("h.0.mlp.qweight", "quantised"),
            ("h.0.attn.c_attn.lora_A.default.weight", "merge them"),
        ] {
            let mut more = plain.clone();
            more.push((stranger.into(), t.clone(), b.clone()));
            let e =
                load(&written(tmp.path(), from, |_| {}, &more), Head::Lm).unwrap_err().to_string();
            assert!(e.contains(stranger) && e.contains(hint), "{e}");
        }
        let none = renamed(&plain, |n| format!("some.{n}"));
        let e = load(&written(tmp.path(), from, |_| {}, &none), Head::Lm).unwrap_err().to_string();
        assert!(e.contains("missing, first") && e.contains("some."), "{e}");
    }
    // Two tensors for one.
    let mut twice = tensors("gpt2");
    let (_, t, b) = twice.iter().find(|t| t.0 == "transformer.wte.weight").unwrap().clone();
    twice.push(("wte.weight".into(), t.clone(), b));
    assert!(load(&written(tmp.path(), "gpt2", |_| {}, &twice), Head::Lm).is_ok());
    twice.last_mut().unwrap().2 = floats(&t.info.shape, 2).1;
    let e = load(&written(tmp.path(), "gpt2", |_| {}, &twice), Head::Lm).unwrap_err().to_string();
    assert!(e.contains("transformer.wte.weight and wte.weight are different"), "{e}");
}

#[test]
fn an_index_is_held_to_what_the_model_needs() {
    let tmp = tempfile::tempdir().unwrap();
    let plain = tensors("llama_tied");
    let to = written(tmp.path(), "llama_tied", |_| {}, &plain);
    std::fs::rename(to.join("model.safetensors"), to.join("a.safetensors")).unwrap();
    let mut map: serde_json::Map<String, Value> =
        plain.iter().map(|(n, ..)| (n.clone(), json!("a.safetensors"))).collect();
    let index = |map: &serde_json::Map<String, Value>| {
        let text = json!({"weight_map": map}).to_string();
        std::fs::write(to.join("model.safetensors.index.json"), text).unwrap();
    };
    index(&map);
    assert!(load(&to, Head::Lm).unwrap().notes.is_empty());
    map.insert("vision.tower.weight".into(), json!("b.safetensors"));
    map.insert("lm_head.weight".into(), json!("a.safetensors"));
    index(&map);
    let notes = load(&to, Head::Lm).unwrap().notes;
    assert!(notes.len() == 1 && notes[0].contains("2 tensors that are in no file"), "{notes:?}");
    // One that is needed, in a shard that is gone.
    let less: Tensors = plain.iter().filter(|t| t.0 != "model.norm.weight").cloned().collect();
    let other = written(&tmp.path().join("less"), "llama_tied", |_| {}, &less);
    std::fs::copy(other.join("model.safetensors"), to.join("a.safetensors")).unwrap();
    map.insert("model.norm.weight".into(), json!("b.safetensors"));
    index(&map);
    let e = load(&to, Head::Lm).unwrap_err().to_string();
    assert!(e.contains("1 tensor is missing, first model.norm.weight"), "{e}");
    assert!(e.contains("b.safetensors, which is missing"), "{e}");
}

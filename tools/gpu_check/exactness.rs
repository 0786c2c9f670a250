//! Law 2 on the device: log-probabilities recorded while sampling equal those recomputed in a
//! training pass bit for bit, and an answer does not depend on its batch.

use duplex::arch::Config;
use duplex::base::{DType, Error, Result, Rng};
use duplex::device::Device;
use duplex::engine::Engine;
use duplex::model::{Head, LoadOptions, Model};
use duplex::rollout::Sampling;
use duplex::tape::Workspace;
use duplex::train::Batch;
use serde_json::{Value, json};

fn models() -> Vec<Value> {
    vec![
        json!({"model_type": "opt", "vocab_size": 503, "hidden_size": 128,
            "num_hidden_layers": 3, "num_attention_heads": 2, "ffn_dim": 512,
            "max_position_embeddings": 512, "word_embed_proj_dim": 128}),
        json!({"model_type": "bloom", "vocab_size": 503, "hidden_size": 120, "n_layer": 2,
            "n_head": 3, "seq_length": 512}),
        json!({"model_type": "llama", "vocab_size": 503, "hidden_size": 256,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 128, "intermediate_size": 384, "max_position_embeddings": 512}),
    ]
}

/// Checks all models in both dtypes.
pub(crate) fn check(device: Device) -> Result<String> {
    let (answers, length) = if device == Device::Emulated { (3, 12) } else { (24, 200) };
    let mut tokens = 0;
    for fields in models() {
        for dtype in [DType::F32, DType::Bf16] {
            tokens += one(device, &fields, dtype, answers, length)
                .map_err(|e| e.context(format!("{} {dtype}", fields["model_type"])))?;
        }
    }
    Ok(format!("{tokens} log-probabilities equal bit for bit, answers alone as in the batch"))
}

fn one(device: Device, fields: &Value, dtype: DType, answers: u64, length: usize) -> Result<usize> {
    let map = fields.as_object().cloned().unwrap_or_default();
    let options = LoadOptions { seed: 3, ..LoadOptions::frozen(Head::Lm, dtype) }.on(device);
    let model = Model::random(&Config::from_map(map), &options)?;
    // Far from uniform.
    for (i, p) in model.store.params().iter().enumerate() {
        if p.spec.shape.len() > 1 {
            let n = p.spec.shape.iter().product::<usize>();
            let std = 1.5 / (p.spec.shape[1] as f32).sqrt();
            let mut rng = Rng::new(5, i as u64);
            let values: Vec<f32> = (0..n).map(|_| std * rng.normal()).collect();
            model.store.write_f32(duplex::pool::ParamId(i), &values)?;
        }
    }
    let mut engine = Engine::frozen(model);
    let mut ws = Workspace::new(device, usize::MAX)?;
    let mut rng = Rng::new(9, 0);
    let prompts: Vec<Vec<i32>> = (0..answers)
        .map(|i| (0..5 + 17 * i % 90).map(|_| rng.below(503) as i32).collect())
        .collect();
    let prompts: Vec<&[i32]> = prompts.iter().map(Vec::as_slice).collect();
    let sampling = Sampling {
        temperature: 0.9,
        top_k: 50,
        top_p: 0.95,
        min_new_tokens: 2,
        max_new_tokens: length,
        eos: vec![1],
        seed: 7,
    };
    let ids: Vec<u64> = (0..answers).collect();
    let made = engine.generate(&mut ws, &prompts, &ids, &sampling, &mut |_, _| {})?;
    let alone = engine.generate(&mut ws, &prompts[1..2], &ids[1..2], &sampling, &mut |_, _| {})?;
    if alone[0] != made[1] {
        return Err(Error::internal("an answer alone is not the answer in its batch"));
    }
    let rows: Vec<Vec<i32>> =
        prompts.iter().zip(&made).map(|(p, a)| [p, a.tokens.as_slice()].concat()).collect();
    let selected: Vec<_> =
        rows.iter().zip(&prompts).map(|(r, p)| (r.as_slice(), p.len() - 1..r.len() - 1)).collect();
    let again = engine.logprobs(&mut ws, &Batch::new(&selected), sampling.temperature, true)?;
    let recorded: Vec<f32> = made.iter().flat_map(|a| a.logprobs.clone()).collect();
    let differ = recorded.iter().zip(&again).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    if differ > 0 || recorded.len() != again.len() {
        let line = format!("{differ} of {} log-probabilities differ", recorded.len());
        return Err(Error::internal(line));
    }
    Ok(recorded.len())
}

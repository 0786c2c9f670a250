//! The optimizer under a trainer: AdamW with global clipping, no decay on vectors, schedules, a
//! learning rate of their own for adapters, the f32 master copy of bf16 weights, and the compact
//! state instead of it.

use crate::common::*;
use crate::setup::*;
use duplex::algo::StepConfig;
use duplex::base::{DType, Elem, Rng, bf16};
use duplex::data::SftExample;
use duplex::engine::Engine;
use duplex::model::Head;
use duplex::pool::ParamId;
use duplex::tape::ActivationCheckpointing;
use duplex::train::{AdamWConfig, AdamWState, Schedule, ScheduleKind};

/// AdamW (Loshchilov and Hutter 2019) in f64 on the gradients that the trainer leaves.
#[derive(Default)]
struct Naive {
    w: Vec<f64>,
    m: Vec<f64>,
    v: Vec<f64>,
}

impl Naive {
    fn step(&mut self, c: &AdamWConfig, t: i32, lr: f64, decay: f64, gradient: &[f64]) {
        let (b1, b2) = (f64::from(c.beta1), f64::from(c.beta2));
        for (i, g) in gradient.iter().enumerate() {
            self.m[i] = b1 * self.m[i] + (1.0 - b1) * g;
            self.v[i] = b2 * self.v[i] + (1.0 - b2) * g * g;
            let (m, v) = (self.m[i] / (1.0 - b1.powi(t)), self.v[i] / (1.0 - b2.powi(t)));
            self.w[i] -= lr * (m / (v.sqrt() + f64::from(c.eps)) + decay * self.w[i]);
        }
    }
}

#[test]
fn steps_are_those_of_adamw() {
    for (family, dtype, with_lora) in [
        ("gpt2", DType::F32, false),
        ("llama", DType::F32, true),
        ("opt", DType::Bf16, false),
        ("gpt2", DType::Bf16, true),
    ] {
        let mut ws = workspace();
        let c = AdamWConfig { lora_learning_rate: 7e-3, max_grad_norm: 0.05, ..adamw(2e-3) };
        let l = lora(family);
        let model = model(family, Head::Lm, dtype, true, with_lora.then_some(&l), 4);
        let engine = Engine::trained(model, c.clone(), ActivationCheckpointing::None).unwrap();
        let schedule = Schedule { kind: ScheduleKind::Cosine, warmup: 2, total: 8 };
        let step = StepConfig { schedule, ..step_config(100) };
        let mut trainer = sft_trainer(engine, step, true);
        let mut naive: Vec<Naive> = weights(&trainer.engine.model)
            .iter()
            .map(|w| Naive { w: wide(w), m: vec![0.0; w.len()], v: vec![0.0; w.len()] })
            .collect();
        let mut rng = Rng::new(2, 0);
        for t in 0..6 {
            let ids = random_ids(&mut rng, 60);
            let example = SftExample::new(ids, 1);
            let stats = trainer.train(&mut ws, &[&example]).unwrap();
            let store = &trainer.engine.model.store;
            let length = norm(&gradients(&trainer.engine.model));
            close(f64::from(stats.grad_norm), length, 1e-5);
            assert!(length > 0.05, "clipping is tested too");
            for (i, n) in naive.iter_mut().enumerate() {
                let p = &store.params()[i].spec;
                if p.trained {
                    let g = store.read_grad(ParamId(i)).unwrap();
                    let g: Vec<f64> = g.iter().map(|g| f64::from(*g) * 0.05 / length).collect();
                    let adapter = p.name.contains(".lora.");
                    let peak = if adapter { c.lora_learning_rate } else { c.learning_rate };
                    let factor = match t {
                        0 | 1 => f64::from(t + 1) / 3.0,
                        _ => 0.5 + 0.5 * (std::f64::consts::PI * f64::from(t - 2) / 6.0).cos(),
                    };
                    let decay = if p.shape.len() > 1 { f64::from(c.weight_decay) } else { 0.0 };
                    n.step(&c, t + 1, factor * f64::from(peak), decay, &g);
                }
                let got = wide(&store.read_f32(ParamId(i)).unwrap());
                let near = |a: f64, b: f64| match dtype {
                    // The master copy gathers what is too small for bf16.
                    DType::Bf16 => {
                        let up = f64::from(<bf16 as Elem>::from_f32((b + 1e-5) as f32).to_f32());
                        let down = f64::from(<bf16 as Elem>::from_f32((b - 1e-5) as f32).to_f32());
                        (down..=up).contains(&a)
                    }
                    _ => (a - b).abs() < 1e-5,
                };
                let far = got.iter().zip(&n.w).find(|(a, b)| !near(**a, **b));
                assert_eq!(far, None, "{family} {dtype} step {t} {}", p.name);
            }
        }
    }
}

/// The loss after each of so many steps on the same two batches in turn, and the bytes of weights
/// and of optimizer state.
fn losses(
    family: &str,
    with_lora: bool,
    state: AdamWState,
    steps: usize,
) -> (Vec<f64>, [usize; 2]) {
    let mut ws = workspace();
    let l = lora(family);
    let model = model(family, Head::Lm, DType::Bf16, true, with_lora.then_some(&l), 6);
    let config = AdamWConfig { lora_learning_rate: 1e-2, state, ..adamw(3e-3) };
    let engine = Engine::trained(model, config, ActivationCheckpointing::None).unwrap();
    let [weights, _, optimizer, _] = engine.memory();
    let mut trainer = sft_trainer(engine, step_config(400), true);
    let mut rng = Rng::new(3, 0);
    let examples: Vec<SftExample> =
        (0..8).map(|_| SftExample::new(random_ids(&mut rng, 40), 1)).collect();
    let train = |i: usize| {
        let batch: Vec<&SftExample> = examples[i % 2 * 4..][..4].iter().collect();
        f64::from(trainer.train(&mut ws, &batch).unwrap().loss)
    };
    ((0..steps).map(train).collect(), [weights, optimizer])
}

#[test]
fn a_compact_state_learns_as_a_full_one() {
    for (family, with_lora) in [("gpt2", false), ("llama", true)] {
        let (full, [_, bytes]) = losses(family, with_lora, AdamWState::Full, 36);
        let (compact, [weights, fewer]) = losses(family, with_lora, AdamWState::Compact, 36);
        assert!(full[35] < 0.7 * full[0], "something is learned: {full:?}");
        for (f, c) in full.iter().zip(&compact) {
            assert!((c / f - 1.0).abs() < 0.03, "{family}: {f} {c}");
        }
        // 12 bytes a trained parameter, and three codes of a byte and two scales for 64: 3.125.
        assert_eq!(fewer * 12 * 8, bytes * 25);
        assert!(with_lora || fewer * 16 == weights * 25, "{weights} {fewer}");
    }
}

#[test]
fn a_compact_state_needs_bf16_weights() {
    let config = AdamWConfig { state: AdamWState::Compact, ..adamw(1e-3) };
    let model = model("gpt2", Head::Lm, DType::F32, true, None, 1);
    let error = Engine::trained(model, config, ActivationCheckpointing::None).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("--optimizer-state full"), "{error}");
}

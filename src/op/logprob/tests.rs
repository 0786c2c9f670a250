//! Equality with sampling bit for bit, independence of the batch, chunks, partial gradients.

use super::shares::chunk_rows;
use super::*;
use crate::base::Rng;
use crate::op::conformance::distance;
use crate::op::cpu::testing::{Host, backward, forward};
#[cfg(feature = "emulator")]
use crate::op::cuda::testing::forward as emulated;
use crate::op::linear::Linear;
use crate::op::sample::Sample;
use crate::op::softcap::Softcap;

/// Runs an operator forward somewhere.
type Run = fn(&dyn Op, &[Option<Host>]) -> Result<Vec<Host>>;

/// Tokens drawn from `linear`'s logits, capped or not, have the same log-probability there and
/// here.
fn sampled_equals_recomputed<E: Elem>(
    forward: Run,
    [n, vocab]: [usize; 2],
    op: LogProb,
    bias: bool,
    rng: &mut Rng,
) {
    let LogProb { temperature, softcap } = op;
    let d = 40;
    let x = Host::normal::<E>(&[n, d], 1.0, rng);
    let w = Some(Host::normal::<E>(&[vocab, d], 0.4, rng));
    let b = bias.then(|| Host::normal::<E>(&[vocab], 1.0, rng));
    let sample = Sample { temperature, top_k: 50, top_p: 0.95, seed: 1, eos: vec![] };
    let (mut tokens, mut drawn) = (vec![], vec![]);
    // Decode in batches of other sizes than the training batch.
    for rows in [&(0..5).collect::<Vec<_>>()[..], &[5], &(6..n).collect::<Vec<_>>()] {
        let linear = [Some(x.rows(rows)), w.clone(), b.clone(), None];
        let mut logits = forward(&Linear::LOGITS, &linear).expect("logits").remove(0);
        if softcap > 0.0 {
            logits = forward(&Softcap { cap: softcap }, &[Some(logits)]).expect("cap").remove(0);
            assert!(logits.f32().iter().all(|z| z.abs() <= softcap));
        }
        let ids = Host::ints(&rows.iter().map(|r| *r as i32).collect::<Vec<_>>());
        let none = Host::ints(&vec![0; rows.len()]);
        let ins = [Some(logits), Some(ids.clone()), Some(ids), Some(none)];
        let out = forward(&sample, &ins).expect("sample");
        tokens.extend(out[0].i32());
        drawn.extend(out[1].f32());
    }
    let ins = [Some(x), w, b, Some(Host::ints(&tokens))];
    let logps = forward(&op, &ins).expect("logprob")[0].f32();
    let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&logps), bits(&drawn), "vocabulary {vocab}, {op:?}, bias {bias}");
    assert!(logps.iter().all(|l| l.is_finite() && *l < 0.0));
}

#[test]
fn rollout_and_training_agree_bit_for_bit() {
    let mut rng = Rng::new(61, 0);
    for vocab in [97, 1000, 5003] {
        for (temperature, softcap, bias) in [
            (0.7, 0.0, false),
            (1.0, 0.0, true),
            (0.0, 0.0, false),
            (1.0, 3.0, false),
            (0.6, 30.0, true),
            (0.0, 1.5, true),
        ] {
            let op = LogProb { temperature, softcap };
            sampled_equals_recomputed::<f32>(forward, [29, vocab], op, bias, &mut rng);
            sampled_equals_recomputed::<bf16>(forward, [29, vocab], op, bias, &mut rng);
        }
    }
}

#[cfg(feature = "emulator")]
#[test]
fn rollout_and_training_agree_bit_for_bit_on_the_emulated_device() {
    let mut rng = Rng::new(65, 0);
    for (vocab, temperature, softcap, bias) in [
        (97, 0.7, 0.0, false),
        (1003, 1.0, 0.0, true),
        (520, 0.0, 3.0, false),
        (1031, 0.6, 30.0, true),
    ] {
        let op = LogProb { temperature, softcap };
        sampled_equals_recomputed::<f32>(emulated, [9, vocab], op, bias, &mut rng);
        sampled_equals_recomputed::<bf16>(emulated, [21, vocab], op, bias, &mut rng);
    }
}

#[test]
fn a_row_does_not_depend_on_the_batch() {
    let (n, d, vocab) = (30, 24, 333);
    let mut rng = Rng::new(62, 0);
    let x = Host::normal::<bf16>(&[n, d], 1.0, &mut rng);
    let w = Some(Host::normal::<bf16>(&[vocab, d], 0.4, &mut rng));
    let targets = Host::ints(&(0..n as i32).map(|i| i * 11).collect::<Vec<_>>());
    let run = |at: &[usize]| {
        let ins = [Some(x.rows(at)), w.clone(), None, Some(targets.rows(at))];
        forward(&LogProb { temperature: 0.9, softcap: 3.0 }, &ins).expect("logprob")
    };
    let all = run(&(0..n).collect::<Vec<_>>());
    for at in [vec![7], vec![29, 0, 13], (3..25).rev().collect()] {
        for (some, all) in run(&at).iter().zip(&all) {
            assert_eq!(*some, all.rows(&at));
        }
    }
}

/// A vocabulary so large that the rows go through in several chunks: forward rows equal those of
/// single-row calls, gradients equal the sum over single-row calls.
#[test]
fn chunks_add_up() {
    let (n, d, vocab) = (19, 1, (128 << 20) / 4 / 8 - 3);
    assert_eq!(chunk_rows(n, vocab), 7);
    let mut rng = Rng::new(63, 0);
    let x = Host::normal::<f32>(&[n, d], 1.0, &mut rng);
    let w = Some(Host::normal::<f32>(&[vocab, d], 1.0, &mut rng));
    let b = Some(Host::normal::<f32>(&[vocab], 1.0, &mut rng));
    let targets = Host::ints(&(0..n as i32).map(|i| i * 1000).collect::<Vec<_>>());
    let g = [(); 2].map(|_| Host::normal::<f32>(&[n], 1.0, &mut rng));
    let op = LogProb { temperature: 0.8, softcap: 2.0 };
    let grads = |at: &[usize]| {
        let ins = [Some(x.rows(at)), w.clone(), b.clone(), Some(targets.rows(at))];
        let outs = forward(&op, &ins).expect("logprob");
        let douts = [Some(g[0].rows(at)), Some(g[1].rows(at)), None];
        let f = Some(DType::F32);
        let grads = backward(&op, &ins, &outs, &douts, &[f, f, f, None]).expect("gradients");
        (outs, grads)
    };
    let (outs, all) = grads(&(0..n).collect::<Vec<_>>());
    let (mut dw, mut db) = (vec![0f64; vocab * d], vec![0f64; vocab]);
    for t in 0..n {
        let (one, grad) = grads(&[t]);
        one.iter().zip(&outs).for_each(|(one, all)| assert_eq!(*one, all.rows(&[t])));
        let [dx, w, b, None] = &grad[..] else { panic!("three gradients") };
        assert_eq!(*dx.as_ref().expect("dx"), all[0].as_ref().expect("dx").rows(&[t]));
        let add = |sum: &mut [f64], g: &Option<Host>| {
            let g = g.as_ref().expect("gradient").f32();
            sum.iter_mut().zip(g).for_each(|(s, g)| *s += f64::from(g));
        };
        add(&mut dw, w);
        add(&mut db, b);
    }
    for (got, want) in [(&all[1], &dw), (&all[2], &db)] {
        let got: Vec<f64> =
            got.as_ref().expect("gradient").f32().iter().map(|g| f64::from(*g)).collect();
        assert!(distance(&got, want).0 < 2e-6, "{:?}", distance(&got, want));
    }
}

#[test]
fn one_gradient_alone_is_the_other_set_to_zero() {
    let (n, d, vocab) = (5, 9, 70);
    let mut rng = Rng::new(64, 0);
    let ins = [
        Some(Host::normal::<f32>(&[n, d], 1.0, &mut rng)),
        Some(Host::normal::<f32>(&[vocab, d], 1.0, &mut rng)),
        None,
        Some(Host::ints(&[0, 69, 3, 3, 8])),
    ];
    let op = LogProb { temperature: 1.0, softcap: 0.0 };
    let outs = forward(&op, &ins).expect("logprob");
    let g = Host::normal::<f32>(&[n], 1.0, &mut rng);
    let zero = Host::new::<f32>(&[n], &[0.0; 5]);
    let f = Some(DType::F32);
    let run = |a: Option<&Host>, b: Option<&Host>| {
        let douts = [a.cloned(), b.cloned(), None];
        backward(&op, &ins, &outs, &douts, &[f, f, None, None]).expect("gradients")
    };
    assert_eq!(run(Some(&g), None), run(Some(&g), Some(&zero)));
    assert_eq!(run(None, Some(&g)), run(Some(&zero), Some(&g)));
}

#[test]
fn unknown_tokens_are_refused() {
    let ins = |target| {
        [
            Some(Host::new::<f32>(&[1, 1], &[1.0])),
            Some(Host::new::<f32>(&[3, 1], &[1.0, 2.0, 3.0])),
            None,
            Some(Host::ints(&[target])),
        ]
    };
    let op = LogProb { temperature: 1.0, softcap: 0.0 };
    assert!(forward(&op, &ins(2)).is_ok());
    assert!(forward(&op, &ins(3)).is_err() && forward(&op, &ins(-1)).is_err());
    #[cfg(feature = "emulator")]
    assert!(
        emulated(&op, &ins(2)).is_ok()
            && emulated(&op, &ins(3)).is_err()
            && emulated(&op, &ins(-1)).is_err()
    );
}

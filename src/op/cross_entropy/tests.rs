//! The same bits as `logprob` and `weighted_sum`, forward and backward, on the CPU and on kernels.

use super::*;
use crate::base::Rng;
use crate::op::cpu::testing::{self, Host};
#[cfg(feature = "emulator")]
use crate::op::cuda::testing as emulated;
use crate::op::weighted_sum::WeightedSum;

type Forward = fn(&dyn Op, &[Option<Host>]) -> Result<Vec<Host>>;
type Backward = fn(
    &dyn Op,
    &[Option<Host>],
    &[Host],
    &[Option<Host>],
    &[Option<DType>],
) -> Result<(Vec<Option<Host>>, Vec<Host>)>;

fn same_bits<E: Elem>(forward: Forward, backward: Backward, n: usize, softcap: f32, bias: bool) {
    let (d, vocab, scale) = (24, 333, -0.37);
    let mut rng = Rng::new(71 + n as u64, 0);
    let x = Some(Host::normal::<E>(&[n, d], 1.0, &mut rng));
    let w = Some(Host::normal::<E>(&[vocab, d], 0.4, &mut rng));
    let b = bias.then(|| Host::normal::<E>(&[vocab], 1.0, &mut rng));
    let targets: Vec<i32> = (0..n).map(|_| rng.below(vocab as u32) as i32).collect();
    let targets = Some(Host::ints(&targets));
    let weights = Some(Host::normal::<f32>(&[n], 1.0, &mut rng));
    let wanted = [Some(E::DTYPE), Some(DType::F32), bias.then_some(DType::F32), None, None];
    let upstream = Host::new::<f32>(&[1], &[1.7]);

    let logprob = LogProb { temperature: 1.0, softcap };
    let ins = [x.clone(), w.clone(), b.clone(), targets.clone()];
    let outs = forward(&logprob, &ins).expect("logprob");
    let sum_ins = [Some(outs[0].clone()), weights.clone()];
    let sum = WeightedSum { scale };
    let loss = forward(&sum, &sum_ins).expect("weighted_sum").remove(0);
    let douts = [Some(upstream.clone())];
    let (mut dlogp, _) =
        backward(&sum, &sum_ins, &[], &douts, &[Some(DType::F32), None]).expect("slopes");
    let douts = [dlogp.remove(0), None, None];
    let (want, _) = backward(&logprob, &ins, &outs, &douts, &wanted[..4]).expect("gradients");

    let op = CrossEntropy { scale, softcap };
    let ins = [x, w, b, targets, weights];
    let made = forward(&op, &ins).expect("cross_entropy");
    assert!(made == [loss, outs[0].clone()], "forward, {n} rows, softcap {softcap}");
    let douts = [Some(upstream), None];
    let (got, late) = backward(&op, &ins, &[], &douts, &wanted).expect("cross_entropy backward");
    assert!(late == made, "backward makes what forward makes, {n} rows, softcap {softcap}");
    assert!(got[..4] == want[..], "gradients, {n} rows, softcap {softcap}");
}

#[test]
fn the_bits_are_those_of_logprob_and_weighted_sum() {
    for (n, softcap, bias) in [(1, 0.0, false), (37, 0.0, true), (20, 2.0, false)] {
        same_bits::<f32>(testing::forward, testing::backward_late, n, softcap, bias);
        same_bits::<bf16>(testing::forward, testing::backward_late, n, softcap, bias);
    }
}

#[cfg(feature = "emulator")]
#[test]
fn the_bits_are_those_of_logprob_and_weighted_sum_on_the_emulated_device() {
    for (n, softcap, bias) in [(1, 0.0, false), (23, 0.0, true), (20, 2.0, false)] {
        same_bits::<f32>(emulated::forward, emulated::backward_late, n, softcap, bias);
        same_bits::<bf16>(emulated::forward, emulated::backward_late, n, softcap, bias);
    }
}

#[test]
fn unknown_tokens_are_refused() {
    let ins = |target| {
        [
            Some(Host::new::<f32>(&[1, 1], &[1.0])),
            Some(Host::new::<f32>(&[3, 1], &[1.0, 2.0, 3.0])),
            None,
            Some(Host::ints(&[target])),
            Some(Host::new::<f32>(&[1], &[1.0])),
        ]
    };
    let op = CrossEntropy { scale: 1.0, softcap: 0.0 };
    let douts = [Some(Host::new::<f32>(&[1], &[1.0])), None];
    for (target, known) in [(2, true), (3, false), (-1, false)] {
        assert_eq!(testing::forward(&op, &ins(target)).is_ok(), known);
        let wanted = [Some(DType::F32), None, None, None, None];
        let back = testing::backward_late(&op, &ins(target), &[], &douts, &wanted);
        assert_eq!(back.is_ok(), known);
    }
}

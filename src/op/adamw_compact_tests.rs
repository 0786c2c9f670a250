//! The operator over many steps: beside its reference, beside plain AdamW, and where changes are
//! tiny.

use super::*;
use crate::base::Rng;
use crate::op::conformance::distance;
use crate::op::cpu::testing::{Host, forward};

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// w, correction, m, v, scales, broken: a fresh state of these weights.
fn fresh(w: &[f32]) -> Vec<Host> {
    let n = w.len();
    let mut codes = Host::blank(Desc::new(&[n], DType::U8));
    codes.bytes_mut().fill(0);
    let scales = Host::new::<f32>(&[n / BLOCK * 2], &vec![0.0; n / BLOCK * 2]);
    let w = Host::new::<bf16>(&[n], w);
    vec![w, codes.clone(), codes.clone(), codes, scales, Host::ints(&[0])]
}

fn step(op: &AdamW, state: &mut Vec<Host>, grad: Host, clip: f32) {
    let at = |i: usize| state.get(i).cloned();
    let clip = Host::new::<f32>(&[1], &[clip]);
    let ins = [at(0), Some(grad), Some(clip), at(1), at(2), at(3), at(4), at(5)];
    *state = forward(&AdamWCompact(op.clone()), &ins).expect("step");
}

fn values(state: &[Host]) -> Vec<Vec<f64>> {
    let value = |h: &Host| match h.desc.dtype {
        DType::U8 => h.bytes().iter().map(|b| f64::from(*b)).collect(),
        DType::Bf16 => h.get::<bf16>().iter().map(|w| f64::from(w.to_f32())).collect(),
        DType::I32 => h.i32().iter().map(|b| f64::from(*b)).collect(),
        DType::F32 => wide(&h.f32()),
    };
    state.iter().map(value).collect()
}

fn all(n: usize, lr: f32, weight_decay: f32) -> AdamW {
    let groups = vec![Group { start: 0, end: n, lr, weight_decay }];
    AdamW { groups, beta1: 0.9, beta2: 0.999, eps: 1e-8, step: 0 }
}

/// Each of fifty steps against the reference from the same state, and the whole way against AdamW
/// without codes, which it stays near.
#[test]
fn fifty_steps_follow_the_reference() {
    let n = 5 * BLOCK;
    let mut rng = Rng::new(5, 0);
    let start: Vec<f32> = (0..n).map(|_| <bf16 as Elem>::from_f32(rng.normal()).to_f32()).collect();
    let mut state = fresh(&start);
    let (mut p, mut m, mut v) = (wide(&start), vec![0.0; n], vec![0.0; n]);
    let mut op = all(n - 20, 0.01, 0.1);
    for t in 1..=50 {
        op.step = t;
        // The last twenty are padding only in that no group names them.
        let grad: Vec<f32> = (0..n).map(|i| rng.normal() + (i % 3) as f32).collect();
        let grad =
            if t % 2 == 0 { Host::new::<bf16>(&[n], &grad) } else { Host::new::<f32>(&[n], &grad) };
        let exact = values(std::slice::from_ref(&grad)).remove(0);
        let clip = 0.5 + rng.uniform();
        let before = values(&state);
        step(&op, &mut state, grad, clip);
        let want = reference(&op, &before, &exact, f64::from(clip));
        let (after, got) = (values(&state), decode(&values(&state)));
        for i in 0..n {
            let [m_scale, v_scale] = [0, 1].map(|k| after[4][i / BLOCK * 2 + k]);
            // A 24-bit unit of the weight, and a code at its widest.
            let near = [got[0][i].abs() * 2f64.powi(-15), m_scale / 63.0, v_scale.powi(2) / 127.0];
            for k in 0..3 {
                let far = (got[k][i] - want[k][i]).abs();
                assert!(far <= near[k] * 1.001 + 1e-30, "step {t} element {i} of {k}: {far}");
            }
        }
        let same =
            (0..n).filter(|&i| (got[1][i] - want[1][i]).abs() < 1e-5 * after[4][i / BLOCK * 2]);
        assert!(same.count() > n - 5, "step {t}");
        let mut plain = op.clone();
        plain.groups[0].end = n;
        adamw::reference(&plain, &mut p, &exact, f64::from(clip), &mut m, &mut v);
    }
    let moved =
        |w: &[f64]| -> Vec<f64> { w.iter().zip(&start).map(|(w, s)| w - f64::from(*s)).collect() };
    let (relative, _, _) = distance(&moved(&decode(&values(&state))[0]), &moved(&p));
    assert!(relative < 0.02, "{relative}");
}

/// About a twentieth of a weight's 24-bit unit, a thousand times.
#[test]
fn tiny_changes_add_up() {
    let n = 2 * BLOCK;
    // Of weights between 1 and 2, which is where they stay; the change is exact in f32.
    let unit = 2f64.powi(-15);
    let change = unit * 13.0 / 256.0;
    let size = |i: usize| 1.0 + (1 + i % 100) as f32 / 128.0;
    let start: Vec<f32> = (0..n).map(|i| if i % 2 == 0 { size(i) } else { -size(i) }).collect();
    let mut state = fresh(&start);
    // Weights move by the learning rate, for all gradients are the same: half of them grow.
    let mut op = AdamW { beta1: 0.0, eps: 0.0, ..all(n, change as f32, 0.0) };
    for t in 1..=1000 {
        op.step = t;
        step(&op, &mut state, Host::new::<f32>(&[n], &vec![0.5; n]), 1.0);
    }
    let after = &decode(&values(&state))[0];
    let share = |i: usize| (f64::from(start[i]) - after[i]) / (1000.0 * change);
    let mean = (0..n).map(share).sum::<f64>() / n as f64;
    assert!((mean - 1.0).abs() < 0.01, "{mean}");
    // The dither goes up between three times too often and three times too rarely.
    for i in 0..n {
        assert!((share(i) - 1.0).abs() < 0.08, "element {i} moved {} of its way", share(i));
    }
}

/// A step without dither would leave each code where it is, or lower it in every step.
#[test]
fn moments_decay_as_they_should() {
    let n = 2 * BLOCK;
    let mut rng = Rng::new(12, 0);
    let mut state = fresh(&vec![1.0; n]);
    let mut op = all(n, 1e-3, 0.0);
    op.step = 1;
    let grad: Vec<f32> = (0..n).map(|_| rng.normal()).collect();
    step(&op, &mut state, Host::new::<f32>(&[n], &grad), 1.0);
    let before = decode(&values(&state));
    let codes = state[3].clone();
    for t in 2..=1001 {
        op.step = t;
        step(&op, &mut state, Host::new::<bf16>(&[n], &vec![0.0; n]), 1.0);
        if t == 11 {
            let after = decode(&values(&state));
            let sums = [&after, &before].map(|x| x[1].iter().map(|m| m.abs()).sum::<f64>());
            assert!((sums[0] / sums[1] / 0.9f64.powi(10) - 1.0).abs() < 0.02, "{sums:?}");
        }
    }
    let after = decode(&values(&state));
    let expected = 0.999f64.powi(1000);
    for i in (0..n).filter(|&i| codes.bytes()[i] >= 20) {
        let share = after[2][i] / before[2][i] / expected;
        assert!((share - 1.0).abs() < 0.1, "element {i}: {share}");
    }
    assert!((0..n).all(|i| (after[2][i] > 0.0) == (before[2][i] > 0.0)));
}

#[test]
fn groups_begin_with_a_block_and_n_is_whole() {
    let group = |start, end| Group { start, end, lr: 1.0, weight_decay: 0.0 };
    let plan = |n: usize, grad: DType, groups: Vec<Group>| {
        let flat = |dtype| Some(Desc::new(&[n], dtype));
        let scales = Some(Desc::new(&[n / BLOCK * 2], DType::F32));
        let (clip, u8) = (Some(Desc::new(&[1], DType::F32)), flat(DType::U8));
        let broken = Some(Desc::new(&[1], DType::I32));
        let ins = [flat(DType::Bf16), flat(grad), clip, u8, u8, u8, scales, broken];
        AdamWCompact(AdamW { groups, step: 1, ..all(0, 0.0, 0.0) }).plan(&ins)
    };
    for grad in [DType::F32, DType::Bf16] {
        assert!(plan(192, grad, vec![group(128, 190), group(0, 65)]).is_ok());
    }
    assert!(plan(192, DType::I32, vec![group(0, 192)]).is_err());
    assert!(plan(192, DType::F32, vec![group(0, 32), group(32, 192)]).is_err());
    assert!(plan(192, DType::F32, vec![group(0, 129), group(128, 192)]).is_err());
    assert!(plan(192, DType::F32, vec![group(0, 193)]).is_err());
    assert!(plan(200, DType::F32, vec![group(0, 192)]).is_err());
}

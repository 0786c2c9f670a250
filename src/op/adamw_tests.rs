//! The operator over many steps, what it refuses, and how it tells that a number has broken.

use super::*;
use crate::base::Rng;
use crate::op::adamw_compact::AdamWCompact;
use crate::op::conformance::distance;
use crate::op::cpu::testing::{Host, Runner, forward};

/// Fifty steps with changing gradients and clip factors against the plain loop, with f32
/// weights and with bf16 weights on a master copy.
#[test]
fn fifty_steps_follow_the_plain_loop() {
    let n = 333;
    let mut rng = Rng::new(5, 0);
    let start: Vec<f32> = (0..n).map(|_| rng.normal()).collect();
    let zeros = Host::new::<f32>(&[n], &vec![0.0; n]);
    let master = Host::new::<f32>(&[n], &start);
    let broken = Host::ints(&[0]);
    let mut single = vec![master.clone(), zeros.clone(), zeros.clone(), broken.clone()];
    let mut mixed = vec![Host::new::<bf16>(&[n], &start), zeros.clone(), zeros, broken, master];
    let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|x| f64::from(*x)).collect() };
    let (mut p, mut m, mut v) = (wide(&start), vec![0.0; n], vec![0.0; n]);
    for step in 1..=50 {
        let op = AdamW { groups: groups(n), beta1: 0.9, beta2: 0.999, eps: 1e-8, step };
        let grad: Vec<f32> = (0..n).map(|i| rng.normal() + (i % 3) as f32).collect();
        let clip = 0.5 + rng.uniform();
        for state in [&mut single, &mut mixed] {
            let at = |i: usize| state.get(i).cloned();
            let g = Host::new::<f32>(&[n], &grad);
            let c = Host::new::<f32>(&[1], &[clip]);
            let ins = [at(0), Some(g), Some(c), at(1), at(2), at(3), at(4)];
            *state = forward(&op, &ins).expect("step");
        }
        reference(&op, &mut p, &wide(&grad), f64::from(clip), &mut m, &mut v);
    }
    let (w, master) = (single[0].f32(), mixed[4].f32());
    assert!(distance(&wide(&w), &p).0 < 1e-5, "{:?}", distance(&wide(&w), &p));
    assert_eq!(w, master);
    assert_eq!(mixed[0], Host::new::<bf16>(&[n], &master));
    let outside = 6 * n / 7;
    assert_eq!(w[outside..], start[outside..]);
    assert!((0..2 * n / 7).all(|i| w[i] != start[i]));
}

#[test]
fn overlapping_groups_are_refused() {
    let group = |start, end| Group { start, end, lr: 1.0, weight_decay: 0.0 };
    let flat = Some(Desc::new(&[10], DType::F32));
    let one = |dtype| Some(Desc::new(&[1], dtype));
    let ins = [flat, flat, one(DType::F32), flat, flat, one(DType::I32), None];
    let plan = |groups| AdamW { groups, beta1: 0.9, beta2: 0.9, eps: 0.0, step: 1 }.plan(&ins);
    assert!(plan(vec![group(5, 10), group(0, 5)]).is_ok());
    assert!(plan(vec![group(0, 6), group(5, 10)]).is_err());
    assert!(plan(vec![group(0, 11)]).is_err());
}

/// A step of the operator and what it tells: its name, inputs, and whether a number breaks.
type Step = (&'static str, Box<dyn Op>, Vec<Option<Host>>, bool);

/// Steps of `n` elements, of which element `at` has another gradient and weight than the rest.
fn steps_at(n: usize, at: usize) -> Vec<Step> {
    let healthy = AdamW { groups: vec![], beta1: 0.9, beta2: 0.95, eps: 1e-8, step: 1 };
    let [no_eps, all_beta1, all_beta2] = [
        AdamW { eps: 0.0, ..healthy.clone() },
        AdamW { beta1: 1.0, ..healthy.clone() },
        AdamW { beta2: 1.0, ..healthy.clone() },
    ];
    let mut steps = vec![];
    // Name, settings, learning rate, gradient and weight of the one element.
    for (name, op, lr, g, w, breaks) in [
        ("healthy", &healthy, 0.1, 1.0, 1.0, false),
        ("large", &healthy, 1e4, 1e15, 1e30, false),
        ("weights that came as NaN", &healthy, 0.1, 0.0, f32::NAN, false),
        ("weights that came as infinities", &healthy, 0.1, 1.0, f32::INFINITY, false),
        ("0 / 0", &no_eps, 0.1, 0.0, 1.0, true),
        ("beta1 = 1", &all_beta1, 0.1, 1.0, 1.0, true),
        ("beta2 = 1", &all_beta2, 0.1, 0.0, 1.0, true),
        ("the square of the gradient", &healthy, 0.1, 1e25, 1.0, true),
        ("the weight", &healthy, 3e37, -1.0, 3.3e38, true),
    ] {
        let mut grad = vec![0.5; n];
        let mut weight = vec![0.25; n];
        (grad[at], weight[at]) = (g, w);
        let groups = vec![Group { start: 0, end: n, lr, weight_decay: 0.0 }];
        let op = AdamW { groups, ..op.clone() };
        for (op, ins) in forms(&op, &grad, &weight) {
            steps.push((name, op, ins, breaks));
        }
    }
    // Finite in the master copy, but not in the weight that is rounded from it.
    let rounds_up = f32::from_bits(0x7f7f_8000);
    let groups = vec![Group { start: 0, end: n, lr: 1.0, weight_decay: 0.0 }];
    let mut weight = vec![0.25; n];
    weight[at] = rounds_up;
    let (op, ins) = forms(&AdamW { groups, ..healthy }, &vec![0.5; n], &weight).remove(1);
    steps.push(("the rounded weight", op, ins, true));
    steps
}

/// The operator on f32 weights, on bf16 weights with a master copy, and on a compact state.
fn forms(op: &AdamW, grad: &[f32], weight: &[f32]) -> Vec<(Box<dyn Op>, Vec<Option<Host>>)> {
    let n = grad.len();
    let f32s = |values: &[f32]| Some(Host::new::<f32>(&[values.len()], values));
    let (zeros, flag, clip) = (f32s(&vec![0.0; n]), Some(Host::ints(&[0])), f32s(&[1.0]));
    let narrow = || Some(Host::new::<bf16>(&[n], weight));
    let (w, g) = (f32s(weight), f32s(grad));
    let [single, mixed] = [(w.clone(), None), (narrow(), w)].map(|(w, master)| {
        let state = [zeros.clone(), zeros.clone(), flag.clone(), master];
        let ins = [w, g.clone(), clip.clone()].into_iter().chain(state).collect();
        (Box::new(op.clone()) as Box<dyn Op>, ins)
    });
    let mut codes = Host::blank(Desc::new(&[n], DType::U8));
    codes.bytes_mut().fill(0);
    let codes = [Some(codes.clone()), Some(codes.clone()), Some(codes)];
    let scales = f32s(&vec![0.0; n / 32]);
    let ins = [narrow(), g, clip].into_iter().chain(codes).chain([scales, flag]).collect();
    vec![single, mixed, (Box::new(AdamWCompact(op.clone())), ins)]
}

/// Wherever in a tensor a number breaks, in the middle of a vector or at the end, `run` tells.
pub(crate) fn steps_that_break_a_number_say_so(run: Runner) {
    let n = 128;
    for at in [0, 3, 17, 64, 126, 127] {
        for (name, op, ins, breaks) in steps_at(n, at) {
            let outs = run(&*op, &ins).expect("step");
            let flag = outs.iter().find(|o| o.desc == Desc::new(&[1], DType::I32));
            assert_eq!(flag.unwrap().i32(), [i32::from(breaks)], "{name} at {at}: {op:?}");
        }
    }
    // What an earlier step has told stays.
    let (_, op, mut ins, _) = steps_at(n, 0).remove(0);
    ins[5] = Some(Host::ints(&[1]));
    assert_eq!(run(&*op, &ins).expect("step")[3].i32(), [1]);
}

#[test]
fn a_step_that_breaks_a_number_says_so() {
    steps_that_break_a_number_say_so(forward);
}

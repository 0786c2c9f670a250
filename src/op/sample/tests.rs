//! Distributions, support sets and independence of the batch.

use super::*;
use crate::base::Rng;
use crate::op::cpu::testing::{Host, forward};
#[cfg(feature = "emulator")]
use crate::op::cuda::testing::forward as emulated;

fn op(temperature: f32, top_k: usize, top_p: f32) -> Sample {
    Sample { temperature, top_k, top_p, seed: 77, eos: vec![2, 5] }
}

/// Draws from `logits` for sequences 0..n at position 4.
fn draws(op: &Sample, logits: &[f32], n: usize, forbid: i32) -> Vec<i32> {
    let all: Vec<f32> = (0..n).flat_map(|_| logits.to_vec()).collect();
    let ids: Vec<i32> = (0..n as i32).collect();
    let ins = [
        Some(Host::new::<f32>(&[n, logits.len()], &all)),
        Some(Host::ints(&ids)),
        Some(Host::ints(&vec![4; n])),
        Some(Host::ints(&vec![forbid; n])),
    ];
    forward(op, &ins).expect("draws")[0].i32()
}

/// Plain softmax, filtered by sorting everything.
fn filtered(op: &Sample, logits: &[f32], forbid: bool) -> Vec<f64> {
    let t = f64::from(op.temperature);
    let mut p: Vec<f64> = logits.iter().map(|z| (f64::from(*z) / t).exp()).collect();
    if forbid {
        op.eos.iter().for_each(|e| p[*e as usize] = 0.0);
    }
    let mut order: Vec<usize> = (0..p.len()).filter(|i| p[*i] > 0.0).collect();
    order.sort_by(|a, b| p[*b].total_cmp(&p[*a]));
    if op.top_k > 0 {
        order.truncate(op.top_k);
    }
    let total: f64 = order.iter().map(|i| p[*i]).sum();
    let mut before = 0.0;
    order.retain(|i| {
        let keep = before < f64::from(op.top_p) * total;
        before += p[*i];
        keep || op.top_p >= 1.0
    });
    let kept: f64 = order.iter().map(|i| p[*i]).sum();
    (0..p.len()).map(|i| if order.contains(&i) { p[i] / kept } else { 0.0 }).collect()
}

/// Pearson's statistic against the filtered distribution; tokens of no weight must not occur.
fn check_distribution(op: &Sample, logits: &[f32], forbid: bool) {
    let n = 20_000;
    let want = filtered(op, logits, forbid);
    let mut counts = vec![0usize; logits.len()];
    draws(op, logits, n, i32::from(forbid)).iter().for_each(|t| counts[*t as usize] += 1);
    let (mut statistic, mut cells) = (0.0, 0);
    let (mut rare, mut rare_count) = (0.0, 0);
    for (p, c) in want.iter().zip(&counts) {
        let expected = p * n as f64;
        if *p == 0.0 {
            assert_eq!(*c, 0, "{op:?} drew a token that is filtered out");
        } else if expected < 8.0 {
            (rare, rare_count) = (rare + expected, rare_count + c);
        } else {
            statistic += (*c as f64 - expected).powi(2) / expected;
            cells += 1;
        }
    }
    if rare > 8.0 {
        statistic += (rare_count as f64 - rare).powi(2) / rare;
        cells += 1;
    }
    let freedom = f64::from(cells - 1);
    let limit = freedom + 4.0 * (2.0 * freedom).sqrt() + 8.0;
    assert!(statistic < limit, "{op:?} chi-square {statistic:.1}, {freedom} degrees of freedom");
}

#[test]
fn draws_follow_the_filtered_distribution() {
    let mut rng = Rng::new(41, 0);
    for vocab in [8, 97, 400] {
        let logits: Vec<f32> = (0..vocab).map(|_| 1.5 * rng.normal()).collect();
        for (temperature, top_k, top_p) in
            [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.3, 5, 1.0), (1.0, 0, 0.8), (0.9, 7, 0.6)]
        {
            for forbid in [false, true] {
                check_distribution(&op(temperature, top_k, top_p), &logits, forbid);
            }
        }
    }
}

#[test]
fn kept_sets_are_those_of_a_full_sort() {
    let mut rng = Rng::new(42, 0);
    for vocab in [3, 70, 900, 5003] {
        let z: Vec<f32> = (0..vocab).map(|_| rng.normal()).collect();
        let mut weights = vec![0.0; vocab];
        softmax::exps(&z, 1.0, softmax::max(&z), &mut weights);
        for (top_k, top_p) in
            [(1, 1.0), (2, 0.99), (65, 1.0), (0, 0.5), (0, 0.95), (0, 0.0), (400, 0.9)]
        {
            let op = op(1.0, top_k, top_p);
            let mut kept = op.keep(&z, &weights, |_| true);
            assert!(kept.windows(2).all(|w| z[w[0]] >= z[w[1]]));
            kept.sort_unstable();
            let mut want: Vec<usize> = (0..vocab).collect();
            let p = filtered(&op, &z, false);
            want.retain(|i| p[*i] > 0.0);
            if want.is_empty() {
                want.push((0..vocab).max_by(|a, b| z[*a].total_cmp(&z[*b])).expect("token"));
            }
            assert_eq!(kept, want, "vocabulary {vocab}, top-k {top_k}, top-p {top_p}");
        }
    }
}

#[test]
fn equal_logits_keep_the_lowest_indices() {
    let z = [1.0, 3.0, 3.0, 3.0, 0.0, 3.0];
    let mut weights = [0.0; 6];
    softmax::exps(&z, 1.0, 3.0, &mut weights);
    assert_eq!(op(1.0, 2, 1.0).keep(&z, &weights, |_| true), [1, 2]);
    assert_eq!(op(1.0, 0, 0.6).keep(&z, &weights, |_| true), [1, 2, 3]);
    assert_eq!(draws(&op(0.0, 0, 1.0), &z, 1, 0), [1]);
}

#[test]
fn a_draw_depends_on_sequence_and_position_only() {
    let (b, vocab) = (7, 5003);
    let mut rng = Rng::new(43, 0);
    let logits = Host::normal::<f32>(&[b, vocab], 1.0, &mut rng);
    let ins = [
        Some(logits),
        Some(Host::ints(&[10, 3, 500, 7, 7, 0, 9])),
        Some(Host::ints(&[1, 1, 90, 4, 5, 0, 2])),
        Some(Host::ints(&[0, 1, 0, 1, 0, 1, 0])),
    ];
    for op in [op(1.0, 0, 1.0), op(0.8, 50, 0.9)] {
        let all = forward(&op, &ins).expect("all");
        for order in [&[6, 5, 4, 3, 2, 1, 0][..], &[2], &[4, 1]] {
            let picked: Vec<Option<Host>> =
                ins.iter().map(|h| h.as_ref().map(|h| h.rows(order))).collect();
            let some = forward(&op, &picked).expect("some");
            assert_eq!(some[0].i32(), all[0].rows(order).i32());
            assert_eq!(some[1], all[1].rows(order));
        }
    }
}

#[test]
fn likely_end_tokens_do_not_starve_the_rest() {
    let mut z = vec![-500.0; 9];
    (z[2], z[5], z[7]) = (400.0, 400.0, -499.0);
    let tokens = draws(&op(1.0, 0, 1.0), &z, 50, 1);
    assert!(tokens.iter().all(|t| ![2, 5].contains(t)) && tokens.contains(&7));
    assert!(draws(&op(1.0, 0, 1.0), &z, 50, 0).iter().all(|t| [2, 5].contains(t)));
}

#[test]
fn broken_logits_are_an_error() {
    let ins = |logits: &[f32], forbid: i32| {
        [
            Some(Host::new::<f32>(&[1, logits.len()], logits)),
            Some(Host::ints(&[3])),
            Some(Host::ints(&[8])),
            Some(Host::ints(&[forbid])),
        ]
    };
    for temperature in [0.0, 1.0] {
        let run = |z: &[f32], forbid| forward(&op(temperature, 0, 1.0), &ins(z, forbid));
        assert!(run(&[0.0, f32::NAN, 1.0], 0).is_err());
        assert!(run(&[f32::NEG_INFINITY; 4], 0).is_err());
        assert!(run(&[f32::INFINITY, 0.0], 0).is_err());
        let only = Sample { eos: vec![0, 1], ..op(temperature, 0, 1.0) };
        assert!(forward(&only, &ins(&[0.0, 1.0], 1)).is_err());
        #[cfg(feature = "emulator")]
        {
            let run = |z: &[f32]| emulated(&op(temperature, 0, 1.0), &ins(z, 0));
            assert!(run(&[0.0, f32::NAN, 1.0]).is_err() && run(&[f32::INFINITY, 0.0]).is_err());
            assert!(emulated(&only, &ins(&[0.0, 1.0], 1)).is_err());
        }
        assert!(forward(&only, &ins(&[0.0, 1.0], 0)).is_ok());
    }
}

/// The emulated device draws the CPU's tokens, among ties and forbidden tokens too.
#[cfg(feature = "emulator")]
#[test]
fn kernels_draw_the_same_tokens() {
    let mut rng = Rng::new(44, 0);
    for (b, vocab, steps) in [(40, 7, 2.0), (24, 97, 4.0), (12, 1003, 1e6), (4, 5003, 3.0)] {
        // Logits in few steps have many ties.
        let logits: Vec<f32> =
            (0..b * vocab).map(|_| (2.0 * rng.normal() * steps).round() / steps).collect();
        let mut ids = || Host::ints(&(0..b).map(|_| rng.below(1000) as i32).collect::<Vec<_>>());
        let ins = [
            Some(Host::new::<f32>(&[b, vocab], &logits)),
            Some(ids()),
            Some(ids()),
            Some(Host::ints(&(0..b as i32).map(|i| i % 2).collect::<Vec<_>>())),
        ];
        for (temperature, top_k, top_p) in [
            (0.0, 0, 1.0),
            (1.0, 0, 1.0),
            (0.7, 5, 1.0),
            (1.3, 0, 0.8),
            (0.9, 50, 0.6),
            (1.0, 0, 0.0),
        ] {
            let op = op(temperature, top_k, top_p);
            let (want, got) =
                (forward(&op, &ins).expect("cpu"), emulated(&op, &ins).expect("kernel"));
            assert_eq!(want[0].i32(), got[0].i32(), "vocabulary {vocab}, {op:?}");
            for (want, got) in want[1].f32().iter().zip(got[1].f32()) {
                assert!((want - got).abs() < 1e-5, "{want} {got}");
            }
        }
    }
}

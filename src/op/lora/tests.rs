//! The untouched output, the replayed mask, independence of the batch.

use super::*;
use crate::base::Rng;
use crate::op::cpu::testing::{Host, Runner, backward, forward};

fn op(dropout: f32) -> Lora {
    Lora { scale: 2.0, offset: 3, dropout, seed: 91, site: 4, first: 0, columns: None }
}

fn zero_update_keeps_bits<E: Elem + PartialEq>(rng: &mut Rng) {
    let (tokens, inner, total) = (9, 20, 14);
    let mut y: Vec<f32> = (0..tokens * total).map(|_| rng.normal()).collect();
    (y[4], y[20], y[33], y[40]) = (-0.0, -0.0, 0.0, f32::MIN_POSITIVE / 8.0);
    let y = Host::new::<E>(&[tokens, total], &y);
    let x = Host::normal::<E>(&[tokens, inner], 1.0, rng);
    let a = Host::normal::<E>(&[4, inner], 1.0, rng);
    for zero in [0.0, -0.0] {
        let b = Host::new::<E>(&[7, 4], &[zero; 28]);
        for dropout in [0.0, 0.3] {
            let ins = [Some(y.clone()), Some(x.clone()), Some(a.clone()), Some(b.clone())];
            // Hosts compare as bits.
            assert_eq!(forward(&op(dropout), &ins).expect("lora")[0], y);
        }
    }
}

#[test]
fn with_b_zero_the_output_keeps_its_bits() {
    zero_update_keeps_bits::<f32>(&mut Rng::new(71, 0));
    zero_update_keeps_bits::<bf16>(&mut Rng::new(71, 1));
}

/// With a = identity, u is dropout(x) itself, and dx = scale * dv b through the mask.
#[test]
fn backward_replays_the_mask_of_forward() {
    let (tokens, d, n, total) = (PIECE + 21, 13, 5, 9);
    let mut rng = Rng::new(72, 0);
    let identity: Vec<f32> = (0..d * d).map(|i| f32::from(i % (d + 1) == 0)).collect();
    let x = Host::normal::<f32>(&[tokens, d], 1.0, &mut rng);
    let ins = [
        Some(Host::normal::<f32>(&[tokens, total], 1.0, &mut rng)),
        Some(x.clone()),
        Some(Host::new::<f32>(&[d, d], &identity)),
        Some(Host::normal::<f32>(&[n, d], 1.0, &mut rng)),
    ];
    let op = op(0.4);
    let outs = forward(&op, &ins).expect("lora");
    let (u, x) = (outs[1].f32(), x.f32());
    let dropped = u.iter().filter(|u| **u == 0.0).count() as f32 / u.len() as f32;
    assert!((dropped - 0.4).abs() < 0.05, "{dropped}");
    let douts = [Some(Host::normal::<f32>(&[tokens, total], 1.0, &mut rng)), None];
    let wanted = [None, Some(DType::F32), Some(DType::F32), None];
    let grads = backward(&op, &ins, &outs, &douts, &wanted).expect("gradients");
    let dx = grads[1].as_ref().expect("dx").f32();
    for (i, (dx, u)) in dx.iter().zip(&u).enumerate() {
        assert_eq!(*dx == 0.0, *u == 0.0, "element {i}");
        assert!(*u == 0.0 || (u - x[i] / 0.6).abs() < 1e-5 * x[i].abs());
    }
    // da sees dropout(x) too: the same mask in every row of x.
    let (dy, b) = (douts[0].as_ref().expect("dy").f32(), ins[3].as_ref().expect("b").f32());
    let da = grads[2].as_ref().expect("da").f32();
    for (k, i) in [(0, 0), (2, 7), (12, 3)] {
        let want: f64 = (0..tokens)
            .map(|t| {
                let dv = &dy[t * total + op.offset..][..n];
                let du: f64 = dv.iter().enumerate().map(|(j, g)| f64::from(g * b[j * d + k])).sum();
                2.0 * du * f64::from(u[t * d + i])
            })
            .sum();
        assert!((f64::from(da[k * d + i]) - want).abs() < 1e-3 * (1.0 + want.abs()));
    }
}

#[test]
fn a_row_does_not_depend_on_the_batch() {
    let (tokens, inner, n) = (PIECE + 7, 33, 10);
    let mut rng = Rng::new(73, 0);
    let y = Host::normal::<bf16>(&[tokens, 14], 1.0, &mut rng);
    let x = Host::normal::<bf16>(&[tokens, inner], 1.0, &mut rng);
    let a = Some(Host::normal::<bf16>(&[4, inner], 1.0, &mut rng));
    let b = Some(Host::normal::<bf16>(&[n, 4], 1.0, &mut rng));
    let run = |at: &[usize]| {
        let ins = [Some(y.rows(at)), Some(x.rows(at)), a.clone(), b.clone()];
        forward(&op(0.0), &ins).expect("lora").remove(0)
    };
    let all = run(&(0..tokens).collect::<Vec<_>>());
    assert_ne!(all, y);
    for at in [vec![260], vec![5, 0], (100..180).rev().collect()] {
        assert_eq!(run(&at), all.rows(&at));
    }
}

/// Columns `range` of a matrix, with zeros for those that it has not.
fn columns<E: Elem>(x: &Host, range: std::ops::Range<usize>) -> Host {
    let (rows, width) = (x.desc.shape.rows(), x.desc.shape.last());
    let at =
        |t: usize, j: usize| if j < width { x.get::<E>()[t * width + j].to_f32() } else { 0.0 };
    let values: Vec<f32> =
        (0..rows).flat_map(|t| range.clone().map(move |j| (t, j))).map(|(t, j)| at(t, j)).collect();
    Host::new::<E>(&[rows, range.len()], &values)
}

fn blocks_add_up<E: Elem>(run: Runner, rng: &mut Rng) {
    let (tokens, inner, rank, n, total) = (21, 26, 4, 7, 13);
    let y = Host::normal::<f32>(&[tokens, total], 1.0, rng);
    let x = Host::normal::<E>(&[tokens, inner], 1.0, rng);
    let a = Host::normal::<E>(&[rank, inner], 0.5, rng);
    let b = Host::normal::<E>(&[n, rank], 0.5, rng);
    for dropout in [0.0, 0.4] {
        let op = Lora { first: 5, ..op(dropout) };
        let ins = [y.clone(), x.clone(), a.clone(), b.clone()].map(Some);
        let whole = run(&op, &ins).expect("no faults").remove(0).f32();
        let mut sum = y.clone();
        // The last of three blocks has a column of padding.
        for first in [0, 9, 18] {
            let block = first..first + 9;
            let op = Lora { columns: Some(Columns { first, total: inner }), ..op };
            let (x, a) = (columns::<E>(&x, block.clone()), columns::<E>(&a, block));
            sum = run(&op, &[sum, x, a, b.clone()].map(Some)).expect("no faults").remove(0);
        }
        let most = sum.f32().iter().zip(&whole).map(|(s, w)| (s - w).abs()).fold(0.0, f32::max);
        // On a device u is rounded to the dtype of the weights.
        assert!(most < if E::DTYPE == DType::F32 { 1e-4 } else { 0.1 }, "{most}");
        assert_ne!(whole, y.f32());
    }
}

/// With a = identity u is dropout(x) itself: blocks have the columns of the whole, bit for bit.
fn blocks_have_the_mask_of_the_whole<E: Elem>(run: Runner, rng: &mut Rng) {
    let (tokens, inner, width) = (33, 27, 9);
    let x = Host::normal::<E>(&[tokens, inner], 1.0, rng);
    let u = |op: Lora, x: Host| {
        let d = x.desc.shape.last();
        let identity: Vec<f32> = (0..d * d).map(|i| f32::from(i % (d + 1) == 0)).collect();
        let y = Host::normal::<f32>(&[tokens, 14], 1.0, &mut Rng::new(0, 0));
        let b = Host::new::<E>(&[7, d], &vec![0.0; 7 * d]);
        let ins = [y, x, Host::new::<E>(&[d, d], &identity), b].map(Some);
        run(&op, &ins).expect("no faults").remove(1)
    };
    for first in [0, 1, 6] {
        let op = Lora { first, ..op(0.3) };
        let whole = u(op, x.clone());
        assert!(whole.f32().contains(&0.0));
        for first in (0..inner).step_by(width) {
            let block = first..first + width;
            let op = Lora { columns: Some(Columns { first, total: inner }), ..op };
            let got = u(op, columns::<E>(&x, block.clone())).f32();
            assert_eq!(got, columns::<f32>(&whole, block).f32());
        }
    }
}

fn blocks_of_columns_are_parts_of_the_whole(run: Runner) {
    let mut rng = Rng::new(74, 0);
    blocks_add_up::<f32>(run, &mut rng);
    blocks_add_up::<bf16>(run, &mut rng);
    blocks_have_the_mask_of_the_whole::<f32>(run, &mut rng);
    blocks_have_the_mask_of_the_whole::<bf16>(run, &mut rng);
}

#[test]
fn updates_of_column_blocks_add_up_to_the_whole() {
    blocks_of_columns_are_parts_of_the_whole(forward);
}

#[cfg(feature = "emulator")]
#[test]
fn updates_of_column_blocks_add_up_on_the_emulated_device() {
    blocks_of_columns_are_parts_of_the_whole(crate::op::cuda::testing::forward);
}

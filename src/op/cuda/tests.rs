//! Kernels on the emulated device against the CPU, where both promise the same bits, and at the
//! edges that the conformance cases do not reach: nothing to do, and values that only the device
//! can see.

use crate::base::{DType, Elem, Rng, bf16};
use crate::device::{Buffer, Device};
use crate::op::Op;
use crate::op::act::Kind;
use crate::op::adamw::{self, AdamW, Group};
use crate::op::adamw_compact::AdamWCompact;
use crate::op::cpu::testing::{Host, backward as cpu_backward, forward as cpu_forward};
use crate::op::cuda::gemm::Columns;
use crate::op::cuda::testing::{backward, forward, forward_past_faults};
use crate::op::cuda::{Layout, Mat, Out, gemm};
use crate::op::embed::Embed;
use crate::op::gather::Gather;
use crate::op::lora::Lora;
use crate::op::qk_norm::QkNorm;
use crate::tensor::Desc;

/// With a = identity u is dropout(x) itself, so the bits of every mask show.
fn masks_are_those_of_the_cpu<E: Elem>(rng: &mut Rng) {
    let (tokens, d) = (61, 19);
    let identity: Vec<f32> = (0..d * d).map(|i| f32::from(i % (d + 1) == 0)).collect();
    let mut y: Vec<f32> = (0..tokens * d).map(|_| rng.normal()).collect();
    (y[4], y[20]) = (-0.0, 0.0);
    let ins = [
        Some(Host::new::<E>(&[tokens, d], &y)),
        Some(Host::normal::<E>(&[tokens, d], 1.0, rng)),
        Some(Host::new::<E>(&[d, d], &identity)),
        Some(Host::new::<E>(&[3, d], &vec![0.0; 3 * d])),
    ];
    let seed = u64::from(rng.next_u32()) << 20;
    // Of all places within a group of four.
    for first in [0, 1, 2, 7, 1 << 30] {
        let op = Lora {
            scale: 2.0,
            offset: 1,
            dropout: 0.3,
            seed,
            site: (1 << 33) + 5,
            first,
            columns: None,
        };
        let got = forward(&op, &ins).expect("no faults");
        let want = cpu_forward(&op, &ins).expect("lora");
        assert_eq!(got[0], want[0], "b = 0 leaves y alone");
        let bits = |h: &Host| h.f32().iter().map(|v| v.to_bits() << 1).collect::<Vec<_>>();
        assert_eq!(bits(&got[1]), bits(&want[1]), "{first}");
    }
}

#[test]
fn dropout_draws_what_the_cpu_draws() {
    let mut rng = Rng::new(41, 0);
    masks_are_those_of_the_cpu::<f32>(&mut rng);
    masks_are_those_of_the_cpu::<bf16>(&mut rng);
}

fn lookups_have_the_bits_of_the_cpu<E: Elem>(rng: &mut Rng) {
    let (tokens, vocab, d) = (211, 37, 24);
    let mut ids = |n: u32| -> Vec<i32> { (0..tokens).map(|_| rng.below(n) as i32).collect() };
    let (ids, at) = (Host::ints(&ids(vocab)), Host::ints(&ids(9)));
    let tok = Host::normal::<E>(&[vocab as usize, d], 1.0, rng);
    let pos = Host::normal::<E>(&[11, d], 1.0, rng);
    let dy = [Some(Host::normal::<E>(&[tokens, d], 1.0, rng))];
    let embed = Embed { id_offset: 0, position_offset: 2, scale: 1.7, window: None };
    let ins = [Some(ids.clone()), Some(at), Some(tok.clone()), Some(pos)];
    let f32 = Some(DType::F32);
    let gather_ins = [Some(tok), Some(ids)];
    let wanted = [&[None, None, f32, f32][..], &[Some(E::DTYPE), None]];
    for (op, ins, wanted) in
        [(&embed as &dyn Op, &ins[..], wanted[0]), (&Gather, &gather_ins, wanted[1])]
    {
        let want = cpu_forward(op, ins).expect("forward");
        assert_eq!(forward(op, ins).expect("no faults"), want, "{op:?}");
        let got = backward(op, ins, &want, &dy, wanted).expect("no faults");
        let want = cpu_backward(op, ins, &want, &dy, wanted).expect("backward");
        assert_eq!(got, want, "{op:?}");
    }
}

/// Rows that repeat are summed in the order of the CPU.
#[test]
fn rows_and_their_gradients_have_the_bits_of_the_cpu() {
    let mut rng = Rng::new(42, 0);
    lookups_have_the_bits_of_the_cpu::<f32>(&mut rng);
    lookups_have_the_bits_of_the_cpu::<bf16>(&mut rng);
}

/// Twelve steps of the optimizer on a compact state, in blocks of many magnitudes, in more groups
/// than one launch takes.
fn compact_steps_have_the_bits_of_the_cpu<G: Elem>(rng: &mut Rng) {
    let (blocks, groups) = (400, 333);
    let n = 64 * blocks;
    let group = |i: usize| Group {
        start: 64 * (i * blocks / groups),
        end: 64 * (i * blocks / groups) + 1 + 7 * i % 64,
        lr: 0.001 * (i % 9) as f32,
        weight_decay: 0.01 * (i % 7) as f32,
    };
    let mut zeros = Host::blank(Desc::new(&[n], DType::U8));
    zeros.bytes_mut().fill(0);
    let scales = Host::new::<f32>(&[n / 32], &vec![0.0; n / 32]);
    let w = Host::normal::<bf16>(&[n], 0.5, rng);
    let mut state = vec![w, zeros.clone(), zeros.clone(), zeros, scales, Host::ints(&[0])];
    for step in 1..=12 {
        let groups = (0..groups).map(group).collect();
        let op = AdamWCompact(AdamW { groups, beta1: 0.9, beta2: 0.95, eps: 1e-8, step });
        let size = |i: usize| [0.0, 1e-9, 1e-6, 1e-4, 0.01, 1.0, 1e3][i / 64 % 7];
        let grad: Vec<f32> = (0..n).map(|i| size(i) * rng.normal()).collect();
        let at = |i: usize| state.get(i).cloned();
        let (grad, clip) = (Host::new::<G>(&[n], &grad), Host::new::<f32>(&[1], &[rng.uniform()]));
        let ins = [at(0), Some(grad), Some(clip), at(1), at(2), at(3), at(4), at(5)];
        let want = cpu_forward(&op, &ins).expect("step");
        assert_eq!(forward(&op, &ins).expect("no faults"), want, "step {step}");
        assert_ne!(want[0], state[0]);
        state = want;
    }
}

#[test]
fn a_compact_optimizer_state_has_the_bits_of_the_cpu() {
    let mut rng = Rng::new(43, 0);
    compact_steps_have_the_bits_of_the_cpu::<f32>(&mut rng);
    compact_steps_have_the_bits_of_the_cpu::<bf16>(&mut rng);
}

#[test]
fn a_step_that_breaks_a_number_says_so() {
    adamw::tests::steps_that_break_a_number_say_so(forward);
}

#[test]
fn bad_ids_are_reported_and_harm_no_other_row() {
    let tok = Host::new::<f32>(&[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    for bad in [3, -1, i32::MAX, i32::MIN] {
        let ids = Host::ints(&[2, bad, 0]);
        let ins = [Some(ids.clone()), Some(ids.clone()), Some(tok.clone()), None];
        let embed = Embed { id_offset: 0, position_offset: 0, scale: 1.0, window: None };
        let picks = [Some(tok.clone()), Some(ids)];
        for (op, ins, table) in [(&embed as &dyn Op, &ins[..], 2), (&Gather, &picks[..], 0)] {
            let (outs, faults) = forward_past_faults(op, ins).expect("launch");
            assert!(faults.is_err(), "{op:?} {bad}");
            let y = outs[0].f32();
            assert!(y[..2] == [5.0, 6.0] && y[4..] == [1.0, 2.0], "{y:?}");
            assert!(y[2].is_nan() && y[3].is_nan(), "{y:?}");
            let mut wanted = vec![None; ins.len()];
            wanted[table] = Some(DType::F32);
            let dy = [Some(Host::new::<f32>(&[3, 2], &[1.0; 6]))];
            let grads = backward(op, ins, &outs, &dy, &wanted).expect("no faults");
            let grad = grads[table].as_ref().expect("wanted").f32();
            assert_eq!(grad, [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]);
        }
    }
}

#[test]
fn without_tokens_gradients_of_weights_are_zero() {
    let f32 = Some(DType::F32);
    let check = |op: &dyn Op, ins: &[Option<Host>], douts: &[Option<Host>], wanted: &[_]| {
        let outs = forward(op, ins).expect("no faults");
        let grads = backward(op, ins, &outs, douts, wanted).expect("no faults");
        for grad in grads.iter().flatten() {
            assert!(grad.f32().iter().all(|g| *g == 0.0), "{op:?}: {grad:?}");
        }
    };
    let none = |dims: &[usize]| Some(Host::new::<f32>(dims, &[]));
    let ones = |dims: &[usize]| Some(Host::new::<f32>(dims, &vec![1.0; dims.iter().product()]));
    let op = QkNorm { heads: 2, kv_heads: 1, head_dim: 3, eps: 1e-6 };
    let ins = [none(&[0, 12]), ones(&[3]), ones(&[3])];
    check(&op, &ins, &[none(&[0, 12]), None], &[f32, f32, f32]);
    for dropout in [0.0, 0.5] {
        let op = Lora { scale: 1.0, offset: 0, dropout, seed: 1, site: 1, first: 3, columns: None };
        let ins = [none(&[0, 4]), none(&[0, 5]), ones(&[2, 5]), ones(&[4, 2])];
        check(&op, &ins, &[none(&[0, 4]), None], &[None, f32, f32, f32]);
    }
    let op = Embed { id_offset: 0, position_offset: 0, scale: 1.0, window: None };
    let ins = [Some(Host::ints(&[])), Some(Host::ints(&[])), ones(&[3, 2]), ones(&[4, 2])];
    check(&op, &ins, &[none(&[0, 2])], &[None, None, f32, f32]);
}

/// The matrix as a gather of column blocks of `width` leaves it: block by block, all rows of each.
fn gathered(x: &[f32], rows: usize, columns: usize, width: usize) -> Vec<f32> {
    let mut y = vec![];
    for first in (0..columns).step_by(width) {
        for row in 0..rows {
            y.extend(&x[row * columns + first..][..width]);
        }
    }
    y
}

fn device_copy<E: Elem>(values: &[f32]) -> Buffer {
    let values: Vec<E> = values.iter().map(|v| E::from_f32(*v)).collect();
    let bytes: &[u8] = bytemuck::cast_slice(&values);
    let buffer = Buffer::zeroed(Device::Emulated, bytes.len()).expect("memory");
    buffer.write(0, bytes).expect("copy");
    buffer
}

/// A product of these tests.
macro_rules! product {
    ($product:expr) => {
        // SAFETY: the operands are matrices on the device of the sizes given, which live until the
        // result has been read; where the sizes do not fit nothing is launched.
        unsafe { $product }
    };
}

/// A weight that was gathered from several ranks, as it lies and as a plain matrix: the same bits.
/// How many rows multiply it decides the tile.
fn blocked_columns_change_no_bit<E: Elem>(rng: &mut Rng, m: usize) {
    let (rows, columns, width) = (72, 48, 16);
    let dtype = if size_of::<E>() == 2 { DType::Bf16 } else { DType::F32 };
    let stream = Device::Emulated.stream().expect("stream");
    let mut normal = |n: usize| (0..n).map(|_| rng.normal()).collect::<Vec<_>>();
    // w [rows, columns], as x w^T, dy w, and dw = dy^T x.
    let w = normal(rows * columns);
    let (x, dy) = (normal(m * columns), normal(m * rows));
    let at = |b: &Buffer| b.region().address();
    let blocks = Columns { width, stride: rows * width };
    let (x, dy) = (device_copy::<E>(&x), device_copy::<E>(&dy));
    let run = |layout, w: &Buffer, columns_of: Columns| {
        let ld = if columns_of.width == 0 { columns } else { width };
        let w = Mat { columns: columns_of, ..Mat::new(at(w), dtype, ld) };
        let (x, dy) = (Mat::new(at(&x), dtype, columns), Mat::new(at(&dy), dtype, rows));
        let [m1, n, k] = match layout {
            Layout::Nt => [m, rows, columns],
            Layout::Nn => [m, columns, rows],
            Layout::Tn => [rows, columns, m],
        };
        let c = device_copy::<f32>(&vec![f32::NAN; m1 * n]);
        let plain = Out::new(at(&c), DType::F32, n);
        match layout {
            Layout::Nt => product!(gemm(stream, layout.of(m1, n, k), x, w, plain)),
            Layout::Nn => product!(gemm(stream, layout.of(m1, n, k), dy, w, plain)),
            Layout::Tn => {
                let ld = if columns_of.width == 0 { n } else { width };
                let out = Out { columns: columns_of, ..Out::new(at(&c), DType::F32, ld) };
                product!(gemm(stream, layout.of(m1, n, k), dy, x, out))
            }
        }
        .expect("launch");
        let mut values = vec![0f32; m1 * n];
        c.read(0, bytemuck::cast_slice_mut(&mut values)).expect("read");
        assert!(values.iter().all(|v| v.is_finite()), "{layout:?}");
        values
    };
    let (plain, blocked) =
        (device_copy::<E>(&w), device_copy::<E>(&gathered(&w, rows, columns, width)));
    for layout in [Layout::Nt, Layout::Nn] {
        let want = run(layout, &plain, Columns::default());
        assert_eq!(run(layout, &blocked, blocks), want, "{layout:?} {m}");
    }
    let want = run(Layout::Tn, &plain, Columns::default());
    let got = run(Layout::Tn, &plain, blocks);
    assert_eq!(got, gathered(&want, rows, columns, width), "{m}");
}

#[test]
fn weights_gathered_from_ranks_multiply_as_they_lie() {
    let mut rng = Rng::new(77, 0);
    for m in [3, 16, 40, 136] {
        blocked_columns_change_no_bit::<f32>(&mut rng, m);
        blocked_columns_change_no_bit::<bf16>(&mut rng, m);
    }
}

#[test]
fn blocks_that_do_not_fit_are_an_error() {
    let stream = Device::Emulated.stream().expect("stream");
    let odd = Columns { width: 12, stride: 96 };
    let (x, w) = (Mat::new(0, DType::Bf16, 24), Mat::new(0, DType::Bf16, 12));
    let out = Out::new(0, DType::Bf16, 8);
    let odd = Mat { columns: odd, ..w };
    assert!(product!(gemm(stream, Layout::Nt.of(8, 8, 24), x, odd, out)).is_err());
    let both = Out { activation: Some(Kind::Relu), accumulate: true, ..out };
    assert!(product!(gemm(stream, Layout::Nt.of(8, 8, 24), x, x, both)).is_err());
}

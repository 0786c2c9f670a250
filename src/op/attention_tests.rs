//! Packed attention: rows do not depend on the batch, the order of sequences, or threads.

use super::*;
use crate::base::Rng;
use crate::op::{Grad, View, ViewMut};

/// Heads used by the invariance tests: GQA 4/2, 4/4 and 4/1.
pub(in crate::op) const SHAPES: [(usize, usize, usize); 4] =
    [(4, 2, 16), (4, 4, 40), (4, 1, 64), (2, 2, 8)];

pub(in crate::op) fn op(shape: (usize, usize, usize)) -> Attention {
    let (heads, kv_heads, head_dim) = shape;
    Attention { heads, kv_heads, head_dim, scale: (head_dim as f32).powf(-0.5) }
}

pub(in crate::op) fn random<E: Elem>(rng: &mut Rng, n: usize) -> Vec<E> {
    (0..n).map(|_| E::from_f32(rng.normal())).collect()
}

/// A view of `x` as `dims`.
pub(in crate::op) fn view<'a, E: Elem>(x: &'a [E], dims: &[usize]) -> Option<View<'a>> {
    Some(View::new(bytemuck::cast_slice(x), Desc::new(dims, E::DTYPE)))
}

/// A view of integers as `dims`.
pub(in crate::op) fn ints<'a>(x: &'a [i32], dims: &[usize]) -> Option<View<'a>> {
    Some(View::new(bytemuck::cast_slice(x), Desc::new(dims, DType::I32)))
}

/// A mutable view of `x` as `dims`.
pub(in crate::op) fn view_mut<'a, E: Elem>(x: &'a mut [E], dims: &[usize]) -> ViewMut<'a> {
    ViewMut::new(bytemuck::cast_slice_mut(x), Desc::new(dims, E::DTYPE))
}

/// o and lse of packed attention.
pub(in crate::op) fn packed<E: Elem>(op: &Attention, qkv: &[E], cu: &[i32]) -> (Vec<E>, Vec<f32>) {
    let tokens = qkv.len() / op.width();
    let row = op.heads * op.head_dim;
    let mut o = vec![E::from_f32(f32::NAN); tokens * row];
    let mut lse = vec![f32::NAN; tokens * op.heads];
    let mut io = Forward {
        ins: vec![view(qkv, &[tokens, op.width()]), ints(cu, &[cu.len()])],
        outs: vec![view_mut(&mut o, &[tokens, row]), view_mut(&mut lse, &[tokens, op.heads])],
        scratch: &mut [],
    };
    op.cpu_forward(&mut io).unwrap();
    (o, lse)
}

/// The gradient of qkv.
fn gradient<E: Elem>(op: &Attention, qkv: &[E], cu: &[i32], d_o: &[E]) -> Vec<E> {
    let (o, lse) = packed(op, qkv, cu);
    let tokens = qkv.len() / op.width();
    let row = [tokens, op.heads * op.head_dim];
    let mut dqkv = vec![E::from_f32(f32::NAN); qkv.len()];
    let mut scratch = vec![f32::NAN; tokens * op.heads * (op.head_dim + 1)];
    let mut io = Backward {
        ins: vec![view(qkv, &[tokens, op.width()]), ints(cu, &[cu.len()])],
        outs: vec![view(&o, &row), view(&lse, &[tokens, op.heads])],
        douts: vec![view(d_o, &row), None],
        dins: vec![
            Some(Grad { view: view_mut(&mut dqkv, &[tokens, op.width()]), acc: false }),
            None,
        ],
        scratch: &mut scratch,
    };
    op.cpu_backward(&mut io).unwrap();
    dqkv
}

pub(in crate::op) fn same_bits<E: Elem>(a: &[E], b: &[E]) -> bool {
    bytemuck::cast_slice::<E, u8>(a) == bytemuck::cast_slice::<E, u8>(b)
}

fn alone_equals_batched<E: Elem>() {
    let mut rng = Rng::new(rng_seed(), 1);
    for shape in SHAPES {
        let op = op(shape);
        let lengths = [31, 1, 65, 130, 17, 200];
        let cu = cumulative(&lengths);
        let tokens = cu[lengths.len()] as usize;
        let qkv: Vec<E> = random(&mut rng, tokens * op.width());
        let d_o: Vec<E> = random(&mut rng, tokens * op.heads * op.head_dim);
        let ((o, lse), dqkv) = (packed(&op, &qkv, &cu), gradient(&op, &qkv, &cu, &d_o));
        assert!(o.iter().chain(&dqkv).all(|v| v.to_f32().is_finite()));
        let row = op.heads * op.head_dim;
        for w in cu.windows(2) {
            let (a, b) = (w[0] as usize, w[1] as usize);
            let (part, d_part) = (&qkv[a * op.width()..b * op.width()], &d_o[a * row..b * row]);
            let cu = [0, (b - a) as i32];
            let (alone, alone_lse) = packed(&op, part, &cu);
            assert!(same_bits(&alone, &o[a * row..b * row]), "{op:?} o of {}", b - a);
            assert!(same_bits(&alone_lse, &lse[a * op.heads..b * op.heads]));
            let alone = gradient(&op, part, &cu, d_part);
            assert!(same_bits(&alone, &dqkv[a * op.width()..b * op.width()]), "{op:?} gradient");
        }
        let single = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let (one, d_one) =
            single.install(|| (packed(&op, &qkv, &cu), gradient(&op, &qkv, &cu, &d_o)));
        assert!(same_bits(&one.0, &o) && same_bits(&one.1, &lse) && same_bits(&d_one, &dqkv));
    }
}

/// A seed for this run of the tests.
pub(in crate::op) fn rng_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| d.as_nanos() as u64)
}

#[test]
fn a_sequence_alone_equals_itself_in_a_batch_and_on_one_thread() {
    alone_equals_batched::<f32>();
    alone_equals_batched::<bf16>();
}

#[test]
fn a_token_does_not_see_what_comes_after_it() {
    let mut rng = Rng::new(rng_seed(), 2);
    for shape in SHAPES {
        let op = op(shape);
        let mut qkv: Vec<f32> = random(&mut rng, 140 * op.width());
        let before = packed(&op, &qkv, &[0, 140]);
        let cut = 1 + rng.below(139) as usize;
        qkv[cut * op.width()..].fill(f32::NAN);
        let after = packed(&op, &qkv, &[0, 140]);
        let row = op.heads * op.head_dim;
        assert!(same_bits(&before.0[..cut * row], &after.0[..cut * row]), "{op:?} cut {cut}");
    }
}

#[test]
fn sequence_bounds_that_do_not_cut_the_batch_are_an_error() {
    for cu in [&[0, 3][..], &[1, 4], &[0, 3, 2, 4], &[0]] {
        assert!(sequences(cu, 4).is_err(), "{cu:?}");
    }
    assert_eq!(sequences(&[0, 0, 4], 4).unwrap(), vec![0..0, 0..4]);
}

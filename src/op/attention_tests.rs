//! Packed attention: rows do not depend on the batch, the order of sequences, or threads.

use super::*;
use crate::base::Rng;
use crate::device::cpu::with_threads;
use crate::op::{Grad, View, ViewMut};

/// Heads used by the invariance tests: GQA 4/2, 4/4 and 4/1; and those of a rank that has few.
const SHAPES: [Heads; 6] = [(4, 2, 16), (4, 4, 40), (4, 1, 64), (2, 2, 8), (1, 1, 24), (3, 1, 16)];

/// Changes to the scores in the invariance tests: none, one kind, all kinds. Windows lie inside a
/// block of 64 keys, are as long as one, or reach across two and across three.
const ADJUSTS: [Adjust; 8] = [
    PLAIN,
    (true, 0, 0.0),
    (false, 1, 0.0),
    (false, 70, 0.0),
    (false, 0, 1.5),
    (true, 13, 0.8),
    (true, 64, 2.0),
    (true, 130, 30.0),
];

/// Every shape with everything that can be done to the scores.
pub(in crate::op) fn ops() -> impl Iterator<Item = Attention> {
    SHAPES.into_iter().flat_map(|shape| ADJUSTS.into_iter().map(move |a| example(shape, a)))
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
        late: vec![],
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
    for op in ops() {
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
        let (one, d_one) =
            with_threads(1, || (packed(&op, &qkv, &cu), gradient(&op, &qkv, &cu, &d_o)));
        assert!(same_bits(&one.0, &o) && same_bits(&one.1, &lse) && same_bits(&d_one, &dqkv));
    }
}

/// Columns of q, k and v in each row of qkv that the kv heads `block` and their query heads have.
fn heads_of<E: Elem>(op: &Attention, qkv: &[E], block: Range<usize>) -> Vec<E> {
    let (d, group) = (op.head_dim, op.group());
    let (k, v) = (op.heads, op.heads + op.kv_heads);
    let parts = [
        block.start * group..block.end * group,
        k + block.start..k + block.end,
        v + block.start..v + block.end,
    ];
    let of = |row: &[E]| parts.iter().flat_map(|p| row[p.start * d..p.end * d].to_vec()).collect();
    qkv.chunks(op.width()).flat_map(|row| -> Vec<E> { of(row) }).collect()
}

fn few_heads_are_those_of_many<E: Elem>(seed: u64) {
    let mut rng = Rng::new(rng_seed(), seed);
    for (heads, kv_heads) in [(2, 2), (6, 2), (4, 4)] {
        let op = Attention::new(heads, kv_heads, 24, 0.2);
        let cu = [0, 9, 139];
        let qkv: Vec<E> = random(&mut rng, 139 * op.width());
        let (o, _) = packed(&op, &qkv, &cu);
        let each = op.group() * op.head_dim;
        for h in 0..kv_heads {
            let one = Attention::new(op.group(), 1, 24, 0.2);
            let (got, _) = packed(&one, &heads_of(&op, &qkv, h..h + 1), &cu);
            let row = |row: &[E]| row[h * each..][..each].to_vec();
            let want: Vec<E> = o.chunks(kv_heads * each).flat_map(row).collect();
            assert!(same_bits(&got, &want), "{op:?} kv head {h}");
        }
    }
}

#[test]
fn a_block_of_heads_has_the_bits_of_the_whole() {
    few_heads_are_those_of_many::<f32>(6);
    few_heads_are_those_of_many::<bf16>(7);
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
    for op in ops() {
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
fn a_token_does_not_see_what_comes_before_its_window() {
    let mut rng = Rng::new(rng_seed(), 4);
    for op in ops().filter(|op| op.window > 0) {
        let tokens = 140 + op.window;
        let mut qkv: Vec<f32> = random(&mut rng, tokens * op.width());
        let before = packed(&op, &qkv, &[0, tokens as i32]);
        let cut = 1 + rng.below(139) as usize;
        qkv[..cut * op.width()].fill(f32::NAN);
        let after = packed(&op, &qkv, &[0, tokens as i32]);
        let (row, clear) = (op.heads * op.head_dim, cut + op.window - 1);
        assert!(same_bits(&before.0[clear * row..], &after.0[clear * row..]), "{op:?} cut {cut}");
        assert!(same_bits(&before.1[clear * op.heads..], &after.1[clear * op.heads..]));
        // The last token to see one of these does.
        assert!(after.0[(clear - 1) * row..clear * row].iter().all(|v| v.is_nan()), "{op:?}");
    }
}

#[test]
fn a_window_as_long_as_the_sequence_is_no_window() {
    let mut rng = Rng::new(rng_seed(), 5);
    for op in ops().filter(|op| op.window == 0) {
        let qkv: Vec<f32> = random(&mut rng, 200 * op.width());
        let d_o: Vec<f32> = random(&mut rng, 200 * op.heads * op.head_dim);
        let long = Attention { window: 200, ..op.clone() };
        let (a, b) = (packed(&op, &qkv, &[0, 200]), packed(&long, &qkv, &[0, 200]));
        assert!(same_bits(&a.0, &b.0) && same_bits(&a.1, &b.1), "{op:?}");
        let cut = |op| gradient(op, &qkv, &[0, 200], &d_o);
        assert!(same_bits(&cut(&op), &cut(&long)), "{op:?} gradient");
        let short = Attention { window: 199, ..op.clone() };
        assert!(!same_bits(&a.0, &packed(&short, &qkv, &[0, 200]).0), "{op:?}");
    }
}

#[test]
fn attributes_that_do_not_fit_are_an_error() {
    let plan = |op: &Attention| {
        let qkv = Desc::new(&[3, op.width()], DType::F32);
        op.plan(&[Some(qkv), Some(Desc::new(&[2], DType::I32))])
    };
    let good = example((4, 2, 8), (true, 3, 2.0));
    assert!(plan(&good).is_ok());
    assert!(plan(&Attention { alibi: Some(vec![0.5; 3].into()), ..good.clone() }).is_err());
    for softcap in [-1.0, f32::NAN, f32::INFINITY] {
        assert!(plan(&Attention { softcap, ..good.clone() }).is_err());
    }
}

#[test]
fn sequence_bounds_that_do_not_cut_the_batch_are_an_error() {
    for cu in [&[0, 3][..], &[1, 4], &[0, 3, 2, 4], &[0]] {
        assert!(sequences(cu, 4).is_err(), "{cu:?}");
    }
    assert_eq!(sequences(&[0, 0, 4], 4).unwrap(), vec![0..0, 0..4]);
}

//! Against f64 at every level and dtype; bits must not depend on batch, place or threads.

use super::*;
use crate::base::{Rng, bf16};
use crate::device::cpu::with_threads;
use crate::op::cpu::amx::Model;
use crate::op::cpu::simd::Level;
use crate::op::cpu::vec;

/// A level, and whether products of tiles are computed by the model of them.
#[derive(Clone, Copy, Debug)]
enum Path {
    At(Level),
    Model(Level),
}

/// Those that this processor lacks run as the best one that it has.
const PATHS: [Path; 7] = [
    Path::At(Level::Portable),
    Path::At(Level::Avx2),
    Path::At(Level::Avx512),
    Path::At(Level::Avx512Bf16),
    Path::At(Level::Amx),
    Path::Model(Level::Portable),
    Path::Model(Level::Avx512),
];
const SIZES: [usize; 11] = [1, 2, 3, 5, 16, 17, 31, 33, 64, 100, 257];

const PRODUCTS: [Product; 3] = [Product::Nt, Product::Nn, Product::Tn];

fn random<E: Elem>(rng: &mut Rng, n: usize) -> Vec<E> {
    (0..n).map(|_| E::from_f32(rng.normal())).collect()
}

/// Stored shapes of A and B for an m x n output with `depth` terms.
fn shapes(p: Product, m: usize, n: usize, depth: usize) -> [[usize; 2]; 2] {
    match p {
        Product::Nt => [[m, depth], [n, depth]],
        Product::Nn => [[m, depth], [depth, n]],
        Product::Tn => [[depth, m], [depth, n]],
    }
}

fn multiply<A: Elem, B: Elem, C: Elem>(
    p: Product,
    path: Path,
    a: Mat<A>,
    b: Mat<B>,
    c: MatMut<C>,
    accumulate: bool,
) {
    let epilogue = Epilogue::<f32> { accumulate, ..Epilogue::default() };
    match path {
        Path::Model(level) if (A::DTYPE, B::DTYPE) == (DType::Bf16, DType::Bf16) => {
            bf16_amx::run(level, Model::new, p, bf16s(a), bf16s(b), c, &epilogue);
        }
        Path::At(level) | Path::Model(level) => super::multiply(level, p, a, b, c, &epilogue),
    }
}

/// The exact (i, j) of a product.
fn exact<A: Elem, B: Elem>(p: Product, a: Mat<A>, b: Mat<B>, i: usize, j: usize) -> f64 {
    let depth = if p == Product::Tn { a.rows } else { a.cols };
    let term = |t: usize| {
        let x = if p == Product::Tn { a.data[t * a.ld + i] } else { a.data[i * a.ld + t] };
        let y = if p == Product::Nt { b.data[j * b.ld + t] } else { b.data[t * b.ld + j] };
        f64::from(x.to_f32()) * f64::from(y.to_f32())
    };
    (0..depth).map(term).sum()
}

fn close<C: Elem>(x: C, y: f64, terms: usize) -> bool {
    let relative = if C::DTYPE == crate::base::DType::F32 { 1e-6 } else { 4e-3 };
    (f64::from(x.to_f32()) - y).abs() <= relative * y.abs() + 1e-6 * (terms + 2) as f64
}

/// Random ragged shapes with gaps between the rows, which must survive.
fn ragged<A: Elem, B: Elem, C: Elem>(seed: u64) {
    let mut rng = Rng::new(seed, 0);
    for round in 0..60 {
        let mut pick = || SIZES[rng.below(SIZES.len() as u32) as usize];
        let (m, n, depth) = (pick(), pick(), pick());
        for p in PRODUCTS {
            let [[ar, ac], [br, bc]] = shapes(p, m, n, depth);
            let (lda, ldb, ldc) = (ac + round % 3, bc + round % 2, n + round % 4);
            let (a, b) = (random::<A>(&mut rng, ar * lda), random::<B>(&mut rng, br * ldb));
            let (a, b) = (Mat::new(&a, ar, ac, lda), Mat::new(&b, br, bc, ldb));
            for path in PATHS {
                let mut c = vec![C::from_f32(f32::NAN); m * ldc];
                multiply(p, path, a, b, MatMut::new(&mut c, m, n, ldc), false);
                let once = c.clone();
                multiply(p, path, a, b, MatMut::new(&mut c, m, n, ldc), true);
                for (at, (once, twice)) in once.into_iter().zip(c).enumerate() {
                    let (i, j) = (at / ldc, at % ldc);
                    if j >= n {
                        assert!(twice.to_f32().is_nan(), "wrote between the rows");
                        continue;
                    }
                    let want = exact(p, a, b, i, j);
                    let what = || format!("{p:?} {path:?} {m}x{n}x{depth} at ({i}, {j})");
                    assert!(close(once, want, depth), "{}: {} {want}", what(), once.to_f32());
                    assert!(close(twice, 2.0 * want, depth), "{} accumulated", what());
                }
            }
        }
    }
}

#[test]
fn ragged_shapes_match_f64() {
    ragged::<f32, f32, f32>(1);
    ragged::<f32, f32, bf16>(2);
    ragged::<f32, bf16, f32>(3);
    ragged::<f32, bf16, bf16>(4);
    ragged::<bf16, f32, f32>(5);
    ragged::<bf16, f32, bf16>(6);
    ragged::<bf16, bf16, f32>(7);
    ragged::<bf16, bf16, bf16>(8);
}

/// An accumulating product adds its finished sum to the old value, so that products over blocks of
/// columns are added in order.
fn old_values_are_added_last<A: Elem, B: Elem>(seed: u64) {
    let mut rng = Rng::new(seed, 0);
    for [m, n, depth] in [[1, 9, 1], [5, 33, 17], [40, 70, 100], [3, 17, 577]] {
        let (a, b) = (random::<A>(&mut rng, m * depth), random::<B>(&mut rng, n * depth));
        let (a, b) = (Mat::dense(&a, m, depth), Mat::dense(&b, n, depth));
        let old = random::<f32>(&mut rng, m * n);
        for path in PATHS {
            let (mut c, mut sum) = (vec![f32::NAN; m * n], old.clone());
            multiply(Product::Nt, path, a, b, MatMut::dense(&mut c, m, n), false);
            multiply(Product::Nt, path, a, b, MatMut::dense(&mut sum, m, n), true);
            let want: Vec<f32> = old.iter().zip(&c).map(|(old, c)| old + c).collect();
            assert_eq!(bits(&sum), bits(&want), "{path:?} {m}x{n}x{depth}");
        }
    }
}

#[test]
fn old_values_are_added_to_finished_sums() {
    old_values_are_added_last::<f32, f32>(61);
    old_values_are_added_last::<f32, bf16>(62);
    old_values_are_added_last::<bf16, bf16>(63);
}

#[test]
fn empty_dimensions() {
    for p in PRODUCTS {
        let mut c = [f32::NAN; 6];
        let [[ar, ac], [br, bc]] = shapes(p, 2, 3, 0);
        let (a, b) = (Mat::<f32>::dense(&[], ar, ac), Mat::<f32>::dense(&[], br, bc));
        multiply(p, Path::At(level()), a, b, MatMut::dense(&mut c, 2, 3), false);
        assert_eq!(c, [0.0; 6]);
        let [[ar, ac], [br, bc]] = shapes(p, 0, 3, 2);
        let (a, b) = (Mat::<f32>::dense(&[], ar, ac), Mat::<f32>::dense(&[1.0; 6], br, bc));
        multiply(p, Path::At(level()), a, b, MatMut::dense(&mut [0f32; 0], 0, 3), false);
    }
}

fn bits<E: Elem>(x: &[E]) -> Vec<u32> {
    x.iter().map(|x| x.to_f32().to_bits()).collect()
}

/// A row gives the same bits alone, and at any place in a batch of any size.
fn invariant<A: Elem, B: Elem, C: Elem>(seed: u64) {
    let mut rng = Rng::new(seed, 0);
    let batches = [1, 2, 5, 6, 7, 12, 13, 33, 200];
    for (n, depth) in [(5, 33), (50, 64), (101, 576), (330, 1045)] {
        let row: Vec<A> = random(&mut rng, depth);
        for p in PRODUCTS {
            let [_, [br, bc]] = shapes(p, 1, n, depth);
            let b: Vec<B> = random(&mut rng, br * bc);
            let b = Mat::dense(&b, br, bc);
            for path in PATHS {
                let mut want: Option<Vec<u32>> = None;
                for m in batches {
                    let at = rng.below(m as u32) as usize;
                    let mut a: Vec<A> = random(&mut rng, m * depth);
                    let [[ar, ac], _] = shapes(p, m, n, depth);
                    for (t, &x) in row.iter().enumerate() {
                        a[if p == Product::Tn { t * m + at } else { at * depth + t }] = x;
                    }
                    let mut c = vec![C::from_f32(f32::NAN); m * n];
                    let out = MatMut::dense(&mut c, m, n);
                    multiply(p, path, Mat::dense(&a, ar, ac), b, out, false);
                    let got = bits(&c[at * n..][..n]);
                    let want = want.get_or_insert_with(|| got.clone());
                    assert_eq!(&got, want, "{p:?} {path:?} row {at} of {m}, {n}x{depth}");
                }
            }
        }
    }
}

#[test]
fn rows_do_not_depend_on_the_batch() {
    invariant::<f32, f32, f32>(20);
    invariant::<f32, bf16, f32>(21);
    invariant::<bf16, bf16, bf16>(22);
    invariant::<bf16, bf16, f32>(24);
    invariant::<bf16, f32, f32>(23);
}

fn alike_on_any_threads<A: Elem>(seed: u64) {
    let mut rng = Rng::new(seed, 0);
    let (m, n, depth) = (201, 333, 577);
    for p in PRODUCTS {
        let [[ar, ac], [br, bc]] = shapes(p, m, n, depth);
        let (a, b) = (random::<A>(&mut rng, ar * ac), random::<bf16>(&mut rng, br * bc));
        for path in PATHS {
            let run = |threads| {
                let mut c = vec![f32::NAN; m * n];
                with_threads(threads, || {
                    let c = MatMut::dense(&mut c, m, n);
                    multiply(p, path, Mat::dense(&a, ar, ac), Mat::dense(&b, br, bc), c, false);
                });
                bits(&c)
            };
            assert_eq!(run(1), run(2), "{p:?} {path:?}");
            assert_eq!(run(1), run(7), "{p:?} {path:?}");
        }
    }
}

#[test]
fn threads_do_not_matter() {
    alike_on_any_threads::<f32>(30);
    alike_on_any_threads::<bf16>(35);
}

/// All depths up to past a step of every path, with operands that begin anywhere.
#[test]
fn ends_of_rows_match_f64() {
    let mut rng = Rng::new(36, 0);
    for depth in 1..=67 {
        let mut pick = || 1 + rng.below(40) as usize;
        let (m, n, at) = (pick(), pick(), pick());
        for p in PRODUCTS {
            let [[ar, ac], [br, bc]] = shapes(p, m, n, depth);
            let a = random::<bf16>(&mut rng, at + ar * ac);
            let b = random::<bf16>(&mut rng, at + br * (bc + 1));
            let (a, b) = (Mat::dense(&a[at..], ar, ac), Mat::new(&b[at..], br, bc, bc + 1));
            for path in PATHS {
                let mut c = vec![f32::NAN; m * n];
                multiply(p, path, a, b, MatMut::dense(&mut c, m, n), false);
                for (e, x) in c.into_iter().enumerate() {
                    let want = exact(p, a, b, e / n, e % n);
                    assert!(close(x, want, depth), "{p:?} {path:?} {m}x{n}x{depth}: {x} {want}");
                }
            }
        }
    }
}

#[test]
fn the_processor_and_the_model_of_tiles_agree() {
    if Level::detected() < Level::Amx {
        return;
    }
    let mut rng = Rng::new(37, 0);
    for p in PRODUCTS {
        let (m, n, depth) = (70, 90, 1100);
        let [[ar, ac], [br, bc]] = shapes(p, m, n, depth);
        let (a, b) = (random::<bf16>(&mut rng, ar * ac), random::<bf16>(&mut rng, br * bc));
        let run = |path| {
            let mut c = vec![f32::NAN; m * n];
            let c_mat = MatMut::dense(&mut c, m, n);
            multiply(p, path, Mat::dense(&a, ar, ac), Mat::dense(&b, br, bc), c_mat, false);
            c
        };
        for (x, y) in run(Path::At(Level::Amx)).into_iter().zip(run(Path::Model(Level::Avx512))) {
            assert!((x - y).abs() <= 1e-4, "{p:?}: {x} {y}");
        }
    }
}

fn alike_in_any_width<A: Elem>(seed: u64) {
    let mut rng = Rng::new(seed, 0);
    let (m, n, depth) = (9, 130, 300);
    for p in [Product::Nn, Product::Tn] {
        let [[ar, ac], _] = shapes(p, m, n, depth);
        let (a, b) = (random::<A>(&mut rng, ar * ac), random::<A>(&mut rng, depth * n));
        let a = Mat::dense(&a, ar, ac);
        for path in PATHS {
            let mut c = vec![f32::NAN; m * n];
            multiply(p, path, a, Mat::dense(&b, depth, n), MatMut::dense(&mut c, m, n), false);
            for j in [0, 1, 15, 16, 47, 48, 129] {
                let mut one = vec![f32::NAN; m];
                let column = Mat::new(&b[j..], depth, 1, n);
                multiply(p, path, a, column, MatMut::dense(&mut one, m, 1), false);
                for i in 0..m {
                    assert_eq!(one[i].to_bits(), c[i * n + j].to_bits(), "{p:?} {path:?}");
                }
            }
        }
    }
}

#[test]
fn columns_do_not_depend_on_the_width() {
    alike_in_any_width::<f32>(31);
    alike_in_any_width::<bf16>(38);
}

#[test]
fn a_dot_is_an_element() {
    let mut rng = Rng::new(32, 0);
    for k in [1, 7, 16, 40, 577] {
        for m in [3, 40] {
            let n = 21;
            let (a, b) = (random::<bf16>(&mut rng, m * k), random::<f32>(&mut rng, n * k));
            let mut c = vec![f32::NAN; m * n];
            let (am, bm) = (Mat::dense(&a, m, k), Mat::dense(&b, n, k));
            gemm_nt(am, bm, MatMut::dense(&mut c, m, n), &Epilogue::<f32>::default());
            for (at, c) in c.iter().enumerate() {
                let (i, j) = (at / n, at % n);
                let dot = vec::dot(&a[i * k..][..k], &b[j * k..][..k]);
                assert_eq!(dot.to_bits(), c.to_bits());
            }
        }
    }
}

/// [`gemm_nt`] on a path.
fn finish_with<A: Elem, C: Elem, E: Elem>(
    path: Path,
    a: Mat<A>,
    b: Mat<A>,
    c: MatMut<C>,
    epilogue: &Epilogue<E>,
) {
    match path {
        Path::Model(level) if A::DTYPE == DType::Bf16 => {
            bf16_amx::run(level, Model::new, Product::Nt, bf16s(a), bf16s(b), c, epilogue);
        }
        Path::At(level) | Path::Model(level) => {
            super::multiply(level, Product::Nt, a, b, c, epilogue)
        }
    }
}

fn epilogue_order<A: Elem, E: Elem, C: Elem>(rng: &mut Rng) {
    let (m, n, k) = (19, 37, 50);
    let (a, b) = (random::<A>(rng, m * k), random::<A>(rng, n * k));
    let (bias, residual) = (random::<E>(rng, n), random::<E>(rng, m * (n + 3)));
    let old: Vec<C> = random(rng, m * n);
    for choice in 0..8 {
        let (has_bias, has_residual, accumulate) = (choice & 1 > 0, choice & 2 > 0, choice & 4 > 0);
        let epilogue = Epilogue {
            bias: has_bias.then_some(&bias[..]),
            residual: has_residual.then_some((&residual[..], n + 3)),
            alpha: 0.37,
            accumulate,
        };
        for path in PATHS {
            let (am, bm) = (Mat::dense(&a, m, k), Mat::dense(&b, n, k));
            let mut sums = vec![f32::NAN; m * n];
            multiply(Product::Nt, path, am, bm, MatMut::dense(&mut sums, m, n), false);
            let mut c = old.clone();
            finish_with(path, am, bm, MatMut::dense(&mut c, m, n), &epilogue);
            for (at, c) in c.into_iter().enumerate() {
                let (i, j) = (at / n, at % n);
                let mut want = 0.37 * sums[at];
                if has_bias {
                    want += bias[j].to_f32();
                }
                if has_residual {
                    want += residual[i * (n + 3) + j].to_f32();
                }
                if accumulate {
                    want += old[at].to_f32();
                }
                assert_eq!(c.to_f32().to_bits(), C::from_f32(want).to_f32().to_bits());
            }
        }
    }
}

#[test]
fn the_epilogue_rounds_once_in_its_order() {
    let mut rng = Rng::new(33, 0);
    epilogue_order::<f32, f32, f32>(&mut rng);
    epilogue_order::<f32, bf16, f32>(&mut rng);
    epilogue_order::<f32, f32, bf16>(&mut rng);
    epilogue_order::<f32, bf16, bf16>(&mut rng);
    epilogue_order::<bf16, f32, f32>(&mut rng);
    epilogue_order::<bf16, bf16, bf16>(&mut rng);
}

#[test]
fn vector_levels_agree() {
    if Level::detected() < Level::Avx512 {
        return;
    }
    let mut rng = Rng::new(34, 0);
    for p in PRODUCTS {
        let [[ar, ac], [br, bc]] = shapes(p, 50, 60, 70);
        let (a, b) = (random::<f32>(&mut rng, ar * ac), random::<bf16>(&mut rng, br * bc));
        let run = |level| {
            let mut c = vec![f32::NAN; 50 * 60];
            let (a, b) = (Mat::dense(&a, ar, ac), Mat::dense(&b, br, bc));
            multiply(p, Path::At(level), a, b, MatMut::dense(&mut c, 50, 60), false);
            bits(&c)
        };
        assert_eq!(run(Level::Avx2), run(Level::Avx512), "{p:?}");
        assert_eq!(run(Level::Avx2), run(Level::Amx), "{p:?} of other types than two bf16");
    }
}

//! Speed of the CPU matrix products beside this machine's floors: multiply-adds of f32, dot
//! products of bf16 pairs and reading from memory, all measured here on all threads. Each line
//! gives the best sample. Tiles (`amx`) can exceed the floor of pairs.
//!
//! `cargo bench --bench gemm -- nt/f32/1024` runs the lines whose names hold the argument.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion};
use duplex::base::{DType, Elem, Rng, bf16};
use duplex::device::cpu::{parallel_for, threads};
use duplex::op::cpu::gemm::{Epilogue, Mat, MatMut, gemm_nn, gemm_nt, gemm_tn};
use duplex::op::cpu::simd::{Kernel, Level, Simd, dispatch, level};
use duplex::op::cpu::vec;
use std::hint::black_box;
use std::time::{Duration, Instant};

const ROUNDS: usize = 4_000_000;
const CHAINS: usize = 16;

/// Independent chains of multiply-adds, or of dot products of bf16 pairs.
struct Peak {
    pairs: bool,
}

impl Kernel for Peak {
    type Out = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (x, y) = (s.splat(black_box(0.999)), s.splat(black_box(0.1)));
        let mut sums = [s.splat(1.0); CHAINS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                let pairs = self.pairs && S::PAIRS;
                *sum = if pairs { s.dot_pairs(x, y, *sum) } else { s.fma(*sum, x, y) };
            }
        }
        sums.into_iter().map(|v| s.sum(v)).sum()
    }
}

/// The shortest of eight runs, in seconds.
fn best(f: impl Fn()) -> f64 {
    let time = || {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64()
    };
    (0..8).map(|_| time()).fold(f64::INFINITY, f64::min)
}

/// The machine's limits.
#[derive(Clone, Copy)]
struct Floors {
    /// GFLOP/s of f32, and of bf16: the same where there are no products of pairs.
    f32: f64,
    bf16: f64,
    /// GB/s.
    read: f64,
}

fn floors() -> Floors {
    let peak = |pairs| {
        let time = best(|| {
            parallel_for(threads(), |_| {
                black_box(dispatch(level(), Peak { pairs }));
            });
        });
        (threads() * ROUNDS * CHAINS * 16 * 2) as f64 / time / 1e9
    };
    let f32 = peak(false);
    let bf16 = if level() >= Level::Avx512Bf16 { 2.0 * peak(true) } else { f32 };
    let data = vec![1f32; 64 << 20];
    let chunk = 1 << 18;
    let read = best(|| {
        parallel_for(data.len() / chunk, |i| {
            black_box(vec::sum(&data[i * chunk..][..chunk]));
        });
    });
    Floors { f32, bf16, read: (data.len() * 4) as f64 / read / 1e9 }
}

/// One line: `run` does `m * n * k` multiply-adds on `bytes` of matrices.
fn line(
    group: &mut BenchmarkGroup<WallTime>,
    name: &str,
    mnk: [usize; 3],
    bytes: usize,
    [peak, read]: [f64; 2],
    mut run: impl FnMut(),
) {
    let mut shortest = f64::INFINITY;
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|n| {
            let mut total = Duration::ZERO;
            for _ in 0..n {
                let start = Instant::now();
                run();
                let time = start.elapsed();
                shortest = shortest.min(time.as_secs_f64());
                total += time;
            }
            total
        });
    });
    if shortest < f64::INFINITY {
        let flops = 2.0 * mnk.iter().product::<usize>() as f64 / shortest / 1e9;
        let rate = bytes as f64 / shortest / 1e9;
        println!(
            "{name}: {flops:.1} GFLOP/s ({:.0}%), {rate:.1} GB/s ({:.0}%)",
            100.0 * flops / peak,
            100.0 * rate / read,
        );
    }
}

fn products<E: Elem>(group: &mut BenchmarkGroup<WallTime>, floors: Floors) {
    let floors = [if E::DTYPE == DType::F32 { floors.f32 } else { floors.bf16 }, floors.read];
    let mut rng = Rng::new(1, 0);
    for (n, k) in [(768, 768), (3072, 768), (768, 3072), (50272, 768)] {
        for m in [1, 8, 32, 512] {
            let mut random = |len| -> Vec<E> {
                let some: Vec<E> = (0..4096).map(|_| E::from_f32(rng.normal())).collect();
                some.into_iter().cycle().take(len).collect()
            };
            let (x, w, dy) = (random(m * k), random(n * k), random(m * n));
            let (mut y, mut dx) = (dy.clone(), x.clone());
            let mut dw = vec![0f32; n * k];
            let (xm, wm) = (Mat::dense(&x, m, k), Mat::dense(&w, n, k));
            let dym = Mat::dense(&dy, m, n);
            let bytes = (m * k + n * k + m * n) * size_of::<E>();
            let name = |p| format!("{p}/{}/{m}x{n}x{k}", E::DTYPE);
            line(group, &name("nt"), [m, n, k], bytes, floors, || {
                let y = MatMut::dense(&mut y, m, n);
                gemm_nt(xm, wm, y, &Epilogue::<E>::default());
            });
            line(group, &name("nn"), [m, n, k], bytes, floors, || {
                gemm_nn(dym, wm, MatMut::dense(&mut dx, m, k), false);
            });
            let bytes = (m * k + m * n) * size_of::<E>() + n * k * 4;
            line(group, &name("tn"), [m, n, k], bytes, floors, || {
                gemm_tn(dym, xm, MatMut::dense(&mut dw, n, k), false);
            });
        }
    }
}

fn main() {
    let floors = floors();
    println!(
        "floors: {:.0} GFLOP/s f32, {:.0} GFLOP/s bf16, {:.1} GB/s, {:?}",
        floors.f32,
        floors.bf16,
        floors.read,
        level()
    );
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(300))
        .without_plots()
        .configure_from_args();
    let mut group = criterion.benchmark_group("gemm");
    products::<f32>(&mut group, floors);
    products::<bf16>(&mut group, floors);
    group.finish();
}

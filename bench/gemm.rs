//! Speed of the CPU matrix products beside this machine's floors: f32 multiply-adds and reading
//! from memory, both measured here on all threads. Each line gives the best sample.
//!
//! `cargo bench --bench gemm -- nt/f32/1024` runs the lines whose names hold the argument.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion};
use duplex::base::{Elem, Rng, bf16};
use duplex::device::cpu::{parallel_for, threads};
use duplex::op::cpu::gemm::{Epilogue, Mat, MatMut, gemm_nn, gemm_nt, gemm_tn};
use duplex::op::cpu::simd::{Kernel, Simd, dispatch, level};
use duplex::op::cpu::vec;
use std::hint::black_box;
use std::time::{Duration, Instant};

const ROUNDS: usize = 4_000_000;
const CHAINS: usize = 16;

/// Independent chains of multiply-adds.
struct Peak;

impl Kernel for Peak {
    type Out = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (x, y) = (s.splat(black_box(0.999)), s.splat(black_box(0.1)));
        let mut sums = [s.splat(1.0); CHAINS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = s.fma(*sum, x, y);
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

/// GFLOP/s and GB/s of the machine.
fn floors() -> [f64; 2] {
    let peak = best(|| {
        parallel_for(threads(), |_| {
            black_box(dispatch(level(), Peak));
        });
    });
    let data = vec![1f32; 64 << 20];
    let chunk = 1 << 18;
    let read = best(|| {
        parallel_for(data.len() / chunk, |i| {
            black_box(vec::sum(&data[i * chunk..][..chunk]));
        });
    });
    let flops = threads() * ROUNDS * CHAINS * 16 * 2;
    [flops as f64 / peak / 1e9, (data.len() * 4) as f64 / read / 1e9]
}

/// One line: `run` does `m * n * k` multiply-adds on `bytes` of matrices.
fn line(
    group: &mut BenchmarkGroup<WallTime>,
    name: &str,
    mnk: [usize; 3],
    bytes: usize,
    floors: [f64; 2],
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
            100.0 * flops / floors[0],
            100.0 * rate / floors[1],
        );
    }
}

fn products<E: Elem>(group: &mut BenchmarkGroup<WallTime>, floors: [f64; 2]) {
    let mut rng = Rng::new(1, 0);
    for (n, k) in [(576, 576), (1536, 576), (49152, 576), (768, 3072)] {
        for m in [1, 8, 64, 1024] {
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
    println!("floors: {:.0} GFLOP/s, {:.1} GB/s, {:?}", floors[0], floors[1], level());
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

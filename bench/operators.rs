//! Time of each operator, forward and backward, on the device named by `DUPLEX_BENCH_DEVICE` (cpu,
//! cuda, emulated; default: the best there is), with shapes of a block of OPT-1.3B at 512 tokens.
//!
//! `cargo bench --bench operators -- linear` runs the lines whose names hold the argument.

use criterion::Criterion;
use duplex::base::DType;
use duplex::device::Device;
use duplex::op::bench::Bench;
use duplex::op::shapes::{Shape, shapes, takes};
use std::time::{Duration, Instant};

/// Time of `n` runs, all done.
fn timed(device: Device, n: u64, run: &dyn Fn() -> duplex::base::Result<()>) -> Duration {
    let start = Instant::now();
    for _ in 0..n {
        run().expect("the operator runs");
    }
    if device.has_kernels() {
        device.stream().and_then(|s| s.synchronize()).expect("the device answers");
    }
    start.elapsed()
}

fn main() {
    let device = match std::env::var("DUPLEX_BENCH_DEVICE") {
        Ok(name) => name.parse().expect("a device"),
        Err(_) => Device::best().0,
    };
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    let size = if device == Device::Emulated { Shape::TINY } else { Shape::OPT_1_3B };
    for case in shapes(&size) {
        for dtype in [DType::Bf16, DType::F32].into_iter().filter(|d| takes(&case.name, *d)) {
            let name = format!("{device}/{}/{dtype}", case.name);
            let bench = Bench::new(device, (case.op)(), &case.ins, dtype, 1).expect("inputs fit");
            criterion.bench_function(&format!("{name}/forward"), |b| {
                b.iter_custom(|n| timed(device, n, &|| bench.forward()));
            });
            if bench.has_backward() {
                criterion.bench_function(&format!("{name}/backward"), |b| {
                    b.iter_custom(|n| timed(device, n, &|| bench.backward()));
                });
            }
        }
    }
    criterion.final_summary();
}

//! This machine's rates, measured in the same run, and the process's peak memory. The rates are
//! those of reading a quarter of a gigabyte and of our fastest large matrix product.

use crate::base::{DType, Result};
use crate::device::Device;
use crate::device::cpu::{parallel_for, threads};
use crate::op::bench::Bench;
use crate::op::conformance::Input;
use crate::op::cpu::simd::{Kernel, LANES, Level, Simd, dispatch};
use crate::op::linear::Linear;
use crate::op::squared_norm::SquaredNorm;
use serde::Serialize;
use std::hint::black_box;
use std::time::Instant;

/// Rates of the machine, the best seen.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Ceilings {
    /// Bytes read per second.
    pub(super) read_bytes_per_s: f64,
    /// Floating-point operations per second of a matrix product.
    pub(super) matmul_flop_per_s: f64,
}

/// Runs of each measurement, of which the fastest counts.
const RUNS: usize = 6;

impl Ceilings {
    /// Measures, and keeps what is better than before: a ceiling is what was ever reached.
    pub(super) fn measure(&mut self, device: Device, dtype: DType) -> Result<()> {
        // The emulated device is thousands of times slower.
        let (elements, sizes): (usize, &[[usize; 3]]) = match device {
            Device::Emulated => (1 << 16, &[[64, 64, 64]]),
            _ => (1 << 26, &[[2048, 3072, 768], [2048, 2048, 2048]]),
        };
        let seconds = match device {
            Device::Cpu => read_on_cpu(elements)?,
            _ => {
                let x = Some(Input::f32(&[elements], 1.0));
                let bench = Bench::new(device, Box::new(SquaredNorm), &[x], dtype, 1)?;
                fastest(|| run(&bench, device))?
            }
        };
        self.read_bytes_per_s = self.read_bytes_per_s.max(4.0 * elements as f64 / seconds);
        for &[m, n, k] in sizes {
            let weight = Input::weight(&[n, k], (k as f32).powf(-0.5));
            let ins = [Some(Input::act(&[m, k], 1.0)), Some(weight), None, None];
            let op = Box::new(Linear::PLAIN);
            let bench = Bench::new(device, op, &ins, dtype, 1)?;
            let seconds = fastest(|| run(&bench, device))?;
            let rate = (2 * m * n * k) as f64 / seconds;
            self.matmul_flop_per_s = self.matmul_flop_per_s.max(rate);
        }
        Ok(())
    }
}

/// Runs an operator and waits for it.
fn run(bench: &Bench, device: Device) -> Result<()> {
    bench.forward()?;
    if device.has_kernels() { device.stream()?.synchronize() } else { Ok(()) }
}

/// Seconds of the fastest run, after one to warm up.
fn fastest(mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for i in 0..=RUNS {
        let clock = Instant::now();
        run()?;
        if i > 0 {
            best = best.min(clock.elapsed().as_secs_f64());
        }
    }
    Ok(best)
}

/// Vectors summed side by side, so that no addition waits for another.
const CHAINS: usize = 8;

/// Sums what it reads, faster than memory gives it.
struct Read<'a>(&'a [f32]);

impl Kernel for Read<'_> {
    type Out = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut sums = [s.splat(0.0); CHAINS];
        for piece in self.0.chunks_exact(CHAINS * LANES) {
            for i in 0..CHAINS {
                // SAFETY: the piece has CHAINS vectors.
                let x = unsafe { s.load(piece.as_ptr().add(i * LANES)) };
                sums[i] = s.add(sums[i], x);
            }
        }
        let mut all = sums[0];
        for sum in &sums[1..] {
            all = s.add(all, *sum);
        }
        s.sum(all)
    }
}

/// Seconds of reading `elements` floats on all threads, each its own share in order.
fn read_on_cpu(elements: usize) -> Result<f64> {
    // Ones: pages that were never written need not be memory.
    let data = vec![1f32; elements];
    let share = elements / threads();
    fastest(|| {
        parallel_for(threads(), |i| {
            black_box(dispatch(Level::detected(), Read(&data[i * share..][..share])));
        });
        Ok(())
    })
}

/// Forgets the peak of this process's memory so far, where the system can. What was freed by then
/// goes back to the system, or it would count.
pub(super) fn reset_peak() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: only gives back memory that nobody holds.
    unsafe {
        libc::malloc_trim(0);
    }
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Largest resident memory of this process since then, in bytes; None where the system does not
/// say.
pub(super) fn peak_bytes() -> Option<u64> {
    status_bytes("VmHWM:")
}

/// Resident memory of this process now, in bytes.
pub(in crate::pipeline) fn resident_bytes() -> Option<u64> {
    status_bytes("VmRSS:")
}

fn status_bytes(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// The processor's name and number of cores, as the system tells.
pub(in crate::pipeline) fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {cores} cores", name.map_or(std::env::consts::ARCH, |(_, name)| name))
}

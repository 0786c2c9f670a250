//! What this machine can do, measured in the same run: reading from memory (our sum of squares over
//! a quarter of a gigabyte) and our fastest large matrix product; and the process's peak memory.

use crate::base::{DType, Result};
use crate::device::Device;
use crate::op::bench::Bench;
use crate::op::conformance::Input;
use crate::op::linear::Linear;
use crate::op::sum_sq::SumSq;
use serde::Serialize;
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
        let ones = Some(Input::f32(&[elements], 1.0));
        let seconds = fastest(&Bench::new(device, Box::new(SumSq), &[ones], dtype, 1)?, device)?;
        self.read_bytes_per_s = self.read_bytes_per_s.max(4.0 * elements as f64 / seconds);
        for &[m, n, k] in sizes {
            let weight = Input::weight(&[n, k], (k as f32).powf(-0.5));
            let ins = [Some(Input::act(&[m, k], 1.0)), Some(weight), None, None];
            let op = Box::new(Linear { f32_out: false });
            let seconds = fastest(&Bench::new(device, op, &ins, dtype, 1)?, device)?;
            let rate = (2 * m * n * k) as f64 / seconds;
            self.matmul_flop_per_s = self.matmul_flop_per_s.max(rate);
        }
        Ok(())
    }
}

/// Seconds of the fastest run, after one to warm up.
fn fastest(bench: &Bench, device: Device) -> Result<f64> {
    let mut best = f64::INFINITY;
    for run in 0..=RUNS {
        let clock = Instant::now();
        bench.forward()?;
        if device.has_kernels() {
            device.stream()?.synchronize()?;
        }
        if run > 0 {
            best = best.min(clock.elapsed().as_secs_f64());
        }
    }
    Ok(best)
}

/// Forgets the peak of this process's memory so far, where the system can.
pub(super) fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Largest resident memory of this process since then, in bytes; None where the system does not say.
pub(super) fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// The processor's name and number of cores, as the system tells.
pub(super) fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {cores} cores", name.map_or(std::env::consts::ARCH, |(_, name)| name))
}

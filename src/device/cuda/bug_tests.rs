//! Kernels with known defects (`cuda/emu/bugs`): each must be found by the emulator, that is, its
//! results are wrong, its launch fails, or memory beside an allocation was written, under one of
//! three schedules. The kernels without defect pass under all of them.

use super::params::KernelParams;
use crate::base::{Elem, Error, Result, Rng, bf16};
use crate::device::{Buffer, Device};

unsafe extern "C" {
    fn emu_configure(schedule: u32, timing: u32, seed: u64, workers: u32);
}

/// Threads in order, copies as late as they may be; in reverse, as early as they may be; at random.
const SCHEDULES: [(u32, u32); 3] = [(0, 0), (1, 1), (2, 2)];

/// For each schedule, true if `run` gives right results.
fn right(run: &dyn Fn(&mut Rng) -> Result<bool>) -> [bool; 3] {
    let verdicts = SCHEDULES.map(|(schedule, timing)| {
        // SAFETY: sets options of this thread.
        unsafe { emu_configure(schedule, timing, 5, 2) };
        run(&mut Rng::new(8, u64::from(schedule))).unwrap_or(false)
    });
    // SAFETY: sets options of this thread.
    unsafe { emu_configure(0, 0, 1, 2) };
    verdicts
}

fn device(bytes: &[u8]) -> Result<Buffer> {
    let buffer = Buffer::zeroed(Device::Emulated, bytes.len())?;
    buffer.write(0, bytes)?;
    Ok(buffer)
}

fn at(buffer: &Buffer) -> u64 {
    buffer.region().address()
}

fn normal(n: usize, rng: &mut Rng) -> Vec<f32> {
    (0..n).map(|_| rng.normal()).collect()
}

/// Values that bf16 holds exactly, and their bits.
fn halves(n: usize, rng: &mut Rng) -> (Vec<f32>, Vec<bf16>) {
    let bits: Vec<bf16> = (0..n).map(|_| <bf16 as Elem>::from_f32(rng.normal())).collect();
    (bits.iter().map(|b| b.to_f32()).collect(), bits)
}

/// Launches `kernel` with `n` outputs of NaN at first, and compares them.
fn compare<P: KernelParams>(
    kernel: &str,
    grid: [u32; 3],
    threads: u32,
    shared: usize,
    params: impl Fn(u64) -> P,
    want: &[f64],
    limit: f64,
) -> Result<bool> {
    let out = device(bytemuck::cast_slice(&vec![f32::NAN; want.len()]))?;
    let stream = Device::Emulated.stream()?;
    // SAFETY: a defect is one that the emulator finds before it does harm.
    unsafe { stream.launch(kernel, grid, threads, shared, &params(at(&out)))? };
    let mut got = vec![0f32; want.len()];
    out.read(0, bytemuck::cast_slice_mut(&mut got))?;
    let close = |(g, w): (&f32, &f64)| (f64::from(*g) - w).abs() <= limit * (1.0 + w.abs());
    Ok(got.iter().zip(want).all(close))
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ReduceParams {
    x: u64,
    y: u64,
    rows: u32,
    cols: u32,
}

// SAFETY: as in cuda/emu/bugs.
unsafe impl KernelParams for ReduceParams {}

fn reduce(kernel: &str, rng: &mut Rng) -> Result<bool> {
    let (rows, cols) = (3, 517);
    let x = normal(rows * cols, rng);
    let mut want = vec![];
    for row in x.chunks(cols) {
        let mean = row.iter().map(|v| f64::from(*v)).sum::<f64>() / cols as f64;
        want.extend(row.iter().map(|v| f64::from(*v) - mean));
    }
    let input = device(bytemuck::cast_slice(&x))?;
    let params = |y| ReduceParams { x: at(&input), y, rows: rows as u32, cols: cols as u32 };
    compare(kernel, [2, rows as u32, 1], 256, 0, params, &want, 1e-5)
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct GemmParams {
    a: u64,
    b: u64,
    c: u64,
    m: u32,
    n: u32,
    k: u32,
    unused: u32,
}

// SAFETY: as in cuda/emu/bugs.
unsafe impl KernelParams for GemmParams {}

fn gemm(kernel: &str, rng: &mut Rng) -> Result<bool> {
    let (m, n, k) = (70, 136, 136);
    let ((a, a_bits), (b, b_bits)) = (halves(m * k, rng), halves(k * n, rng));
    let dot = |i: usize, j: usize| -> f64 {
        (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j])).sum()
    };
    let want: Vec<f64> = (0..m * n).map(|e| dot(e / n, e % n)).collect();
    let (a, b) = (device(bytemuck::cast_slice(&a_bits))?, device(bytemuck::cast_slice(&b_bits))?);
    let sizes = [m as u32, n as u32, k as u32];
    let params = |c| GemmParams {
        a: at(&a),
        b: at(&b),
        c,
        m: sizes[0],
        n: sizes[1],
        k: sizes[2],
        unused: 0,
    };
    compare(kernel, [sizes[0].div_ceil(64), 1, 1], 128, 19456, params, &want, 1e-3)
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct AttentionParams {
    q: u64,
    k: u64,
    v: u64,
    o: u64,
    tokens: u32,
    scale: f32,
}

// SAFETY: as in cuda/emu/bugs.
unsafe impl KernelParams for AttentionParams {}

fn attention(kernel: &str, rng: &mut Rng) -> Result<bool> {
    let (heads, tokens, width) = (2, 150, 64);
    let [q, k, v] = [0, 1, 2].map(|_| halves(heads * tokens * width, rng));
    let row = |x: &[f32], h: usize, t: usize| -> Vec<f64> {
        x[(h * tokens + t) * width..][..width].iter().map(|v| f64::from(*v)).collect()
    };
    let mut want = vec![];
    for h in 0..heads {
        for t in 0..tokens {
            let query = row(&q.0, h, t);
            let dot = |j| query.iter().zip(row(&k.0, h, j)).map(|(a, b)| a * b).sum::<f64>();
            let weights: Vec<f64> = (0..=t).map(|j| (0.125 * dot(j)).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let mut out = vec![0.0; width];
            for (j, w) in weights.iter().enumerate() {
                out.iter_mut().zip(row(&v.0, h, j)).for_each(|(o, v)| *o += w / sum * v);
            }
            want.extend(out);
        }
    }
    let [q, k, v] = [q.1, k.1, v.1].map(|x| device(bytemuck::cast_slice(&x)));
    let (q, k, v) = (q?, k?, v?);
    let (tokens, scale) = (tokens as u32, 0.125);
    let params = |o| AttentionParams { q: at(&q), k: at(&k), v: at(&v), o, tokens, scale };
    compare(kernel, [tokens.div_ceil(64), heads as u32, 1], 128, 46080, params, &want, 3e-2)
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct GatherParams {
    pages: u64,
    table: u64,
    lengths: u64,
    out: u64,
    tokens: u32,
    width: u32,
    cache: u32,
    unused: u32,
}

// SAFETY: as in cuda/emu/bugs.
unsafe impl KernelParams for GatherParams {}

fn gather(kernel: &str, rng: &mut Rng) -> Result<bool> {
    let (tokens, width, cache, page) = (41usize, 20usize, 9usize, 16usize);
    let columns = tokens.div_ceil(page);
    let pages = normal(cache * page * width, rng);
    // Three of the nine pages for each of three sequences, none twice.
    let table: Vec<u32> = (0..3 * columns).map(|i| (i * 4 % 9) as u32).collect();
    let lengths = [41u32, 17, 0];
    let mut want = vec![];
    for (s, length) in lengths.iter().enumerate() {
        for t in 0..tokens {
            let at = (table[s * columns + t / page] as usize * page + t % page) * width;
            let there = t < *length as usize;
            let value = |i: usize| if there { f64::from(pages[at + i]) } else { 0.0 };
            want.extend((0..width).map(value));
        }
    }
    let pages = device(bytemuck::cast_slice(&pages))?;
    let table = device(bytemuck::cast_slice(&table))?;
    let lengths = device(bytemuck::cast_slice(&lengths))?;
    let params = |out| GatherParams {
        pages: at(&pages),
        table: at(&table),
        lengths: at(&lengths),
        out,
        tokens: tokens as u32,
        width: width as u32,
        cache: cache as u32,
        unused: 0,
    };
    compare(kernel, [tokens.div_ceil(4) as u32, 3, 1], 128, 0, params, &want, 0.0)
}

fn run(kernel: &str, rng: &mut Rng) -> Result<bool> {
    match kernel.split('_').nth(1) {
        Some("reduce") => reduce(kernel, rng),
        Some("gemm") => gemm(kernel, rng),
        Some("attention") => attention(kernel, rng),
        Some("gather") => gather(kernel, rng),
        _ => Err(Error::internal(format!("{kernel} has no algorithm"))),
    }
}

#[test]
fn kernels_without_a_defect_are_right_under_every_schedule() {
    for kernel in ["bug_reduce_clean", "bug_gemm_clean", "bug_attention_clean", "bug_gather_clean"]
    {
        assert_eq!(right(&|rng| run(kernel, rng)), [true; 3], "{kernel}");
    }
}

/// A test for each defect: it is found under some schedule.
macro_rules! found {
    ($($bug:ident)*) => {
        $(#[test]
        fn $bug() {
            let kernel = concat!("bug_", stringify!($bug));
            assert!(right(&|rng| run(kernel, rng)).contains(&false), "{kernel} was not found");
        })*
    };
}

found! {
    reduce_missing_barrier_before
    reduce_divergent_barrier
    reduce_read_past_end
    reduce_write_past_end
    reduce_shared_past_end
    reduce_uninitialised
    gemm_missing_barrier_before
    gemm_missing_barrier_after
    gemm_missing_wait
    gemm_wait_too_little
    gemm_write_past_end
    gemm_no_transpose
    gemm_swapped_fragment
    gemm_missing_zero_fill
    gemm_stale_accumulator
    attention_missing_barrier_before
    attention_missing_barrier_after
    attention_missing_wait
    attention_stale_accumulator
    attention_mask_off_by_one
    gather_wrong_page
    gather_missing_syncwarp
    gather_read_past_end
}

/// Races that leave the result right: only ThreadSanitizer sees them, and ends the process.
/// `tools/test thread` runs these and wants them to fail.
#[test]
#[ignore = "must be found by ThreadSanitizer"]
fn race_between_warps() {
    assert!(run("bug_reduce_warp_race", &mut Rng::new(1, 0)).unwrap());
}

#[test]
#[ignore = "must be found by ThreadSanitizer"]
fn race_between_blocks() {
    assert!(run("bug_reduce_block_race", &mut Rng::new(1, 0)).unwrap());
}

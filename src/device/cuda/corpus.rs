//! Each instruction of `cuda/ptx/ptx.cuh` on random words against its definition in the PTX manual:
//! shows on hardware that what the emulator emulates is what the machine does. Floats are small
//! integers, so sums are exact whatever their order.

use crate::base::{Elem, Error, Result, Rng, bf16};
use crate::device::cuda::constants::kernel::WARP;
use crate::device::cuda::params::CorpusParams;
use crate::device::{Buffer, Device};

/// One instruction: the kernel, its input words, and the words it must make.
struct Case {
    kernel: &'static str,
    input: Vec<u32>,
    expected: Vec<u32>,
}

/// Runs every instruction on `device` with inputs of `seed`. Returns the kernels run; an error
/// names the first word that is wrong.
pub fn check(device: Device, seed: u64) -> Result<Vec<&'static str>> {
    let mut rng = Rng::new(seed, 0);
    let mut cases = vec![];
    for (kernel, matrices, transposed) in [
        ("ptx_ldmatrix_x4", 4, false),
        ("ptx_ldmatrix_x4_trans", 4, true),
        ("ptx_ldmatrix_x2", 2, false),
        ("ptx_ldmatrix_x2_trans", 2, true),
    ] {
        cases.push(ldmatrix(kernel, matrices, transposed, &mut rng));
    }
    cases.extend([mma(&mut rng), cp_async(&mut rng), shuffle(&mut rng), atomic_max(&mut rng)]);
    for case in &cases {
        run(device, case)?;
    }
    Ok(cases.iter().map(|c| c.kernel).collect())
}

fn run(device: Device, case: &Case) -> Result<()> {
    let buffer = |words: &[u32]| -> Result<Buffer> {
        let buffer = Buffer::zeroed(device, 4 * words.len())?;
        buffer.write(0, bytemuck::cast_slice(words))?;
        Ok(buffer)
    };
    let (input, out) = (buffer(&case.input)?, buffer(&vec![u32::MAX; case.expected.len()])?);
    let params = CorpusParams { input: input.region().address(), out: out.region().address() };
    // SAFETY: a case has as many words as its kernel reads and writes, and both buffers live until
    // the result has been read.
    unsafe { device.stream()?.launch(case.kernel, [1, 1, 1], WARP as u32, 0, &params)? };
    let mut got = vec![0u32; case.expected.len()];
    out.read(0, bytemuck::cast_slice_mut(&mut got))?;
    match got.iter().zip(&case.expected).position(|(g, e)| g != e) {
        None => Ok(()),
        Some(i) => Err(Error::internal(format!(
            "{}: word {i} is {:#010x}, expected {:#010x}",
            case.kernel, got[i], case.expected[i]
        ))),
    }
}

fn words(n: usize, rng: &mut Rng) -> Vec<u32> {
    (0..n).map(|_| rng.next_u32()).collect()
}

/// Lane l gets, of each matrix, elements 2 (l % 4) and the next of row l / 4 (of the transposed
/// one).
fn ldmatrix(kernel: &'static str, matrices: usize, transposed: bool, rng: &mut Rng) -> Case {
    let mut input = words(256, rng);
    // Rows of 16 bytes in any order; each address is within the 64 that there are.
    input.extend((0..32).map(|_| rng.below(64)));
    let half = |row: usize, column: usize| {
        let word = input[4 * input[256 + row] as usize + column / 2];
        if column.is_multiple_of(2) { word & 0xffff } else { word >> 16 }
    };
    let mut expected = vec![];
    for lane in 0..32 {
        for m in 0..matrices {
            let (i, j) = (lane / 4, lane % 4 * 2);
            let at = |i: usize, j: usize| {
                if transposed { half(8 * m + j, i) } else { half(8 * m + i, j) }
            };
            expected.push(at(i, j) | at(i, j + 1) << 16);
        }
    }
    Case { kernel, input, expected }
}

/// d `[16, 8]` = a `[16, 16]` b `[16, 8]` + c, in the fragments of mma.m16n8k16.
fn mma(rng: &mut Rng) -> Case {
    let mut small = || f64::from(rng.below(17)) - 8.0;
    let a: Vec<f64> = (0..256).map(|_| small()).collect();
    let b: Vec<f64> = (0..128).map(|_| small()).collect();
    let c: Vec<f64> = (0..128).map(|_| small()).collect();
    let bits = |x: f64| u32::from(<bf16 as Elem>::from_f32(x as f32).to_bits());
    let pair = |low: f64, high: f64| bits(low) | bits(high) << 16;
    let (mut input, mut expected) = (vec![], vec![]);
    for lane in 0..32 {
        let (group, pos) = (lane / 4, lane % 4 * 2);
        for i in 0..4 {
            let (row, k) = (group + i % 2 * 8, pos + i / 2 * 8);
            input.push(pair(a[row * 16 + k], a[row * 16 + k + 1]));
        }
        for i in 0..2 {
            let k = pos + i * 8;
            input.push(pair(b[k * 8 + group], b[(k + 1) * 8 + group]));
        }
        for i in 0..4 {
            let (row, column) = (group + i / 2 * 8, pos + i % 2);
            let sum: f64 = (0..16).map(|k| a[row * 16 + k] * b[k * 8 + column]).sum();
            input.push((c[row * 8 + column] as f32).to_bits());
            expected.push(((c[row * 8 + column] + sum) as f32).to_bits());
        }
    }
    Case { kernel: "ptx_mma_bf16", input, expected }
}

/// Copies where the mask has a bit, zeros elsewhere.
fn cp_async(rng: &mut Rng) -> Case {
    let input = words(387, rng);
    let copied = |i: usize| input[384 + i / 128] >> (i % 128 / 4) & 1 == 1;
    let expected = (0..384).map(|i| if copied(i) { input[i] } else { 0 }).collect();
    Case { kernel: "ptx_cp_async", input, expected }
}

/// xor, index, down, up by one number; lanes without a source keep their own word.
fn shuffle(rng: &mut Rng) -> Case {
    let mut input = words(32, rng);
    let by = 1 + rng.below(31) as usize;
    input.push(by as u32);
    let odd = (0..32).fold(0u32, |mask, i| mask | (input[i] & 1) << i);
    let mut expected = vec![];
    for lane in 0..32 {
        let down = if lane + by < 32 { lane + by } else { lane };
        let up = if lane >= by { lane - by } else { lane };
        expected.extend([lane ^ by, by, down, up].map(|from| input[from]));
        expected.push(odd);
    }
    Case { kernel: "ptx_shuffle", input, expected }
}

fn atomic_max(rng: &mut Rng) -> Case {
    let input = words(33, rng);
    let expected = vec![*input.iter().max().expect("33 words")];
    Case { kernel: "ptx_atomic_max", input, expected }
}

//! Times of operators: medians of events, every run on another copy of the operands so that none
//! lies in the L2 cache, beside cuBLAS and PyTorch on the same card.

use crate::cublas::Cublas;
use duplex::base::{DType, Result, Rng};
use duplex::device::{Buffer, Device};
use duplex::op::bench::Bench;
use duplex::op::cuda::{Layout, Mat, Out, gemm};
use duplex::op::shapes::{Shape, shapes, takes};
use serde_json::{Value, json};
use std::fmt::Write;
use std::io::Write as _;
use std::process::{Command, Stdio};

/// One line of the table.
pub(crate) struct Row {
    name: String,
    /// Microseconds.
    ours: f64,
    /// TFLOP/s, where operations count.
    tflops: Option<f64>,
    /// The same work by another library on this card: its name, microseconds.
    peer: Option<(&'static str, f64)>,
}

impl Row {
    pub(crate) fn json(&self) -> Value {
        json!({
            "name": self.name,
            "us": self.ours,
            "tflops": self.tflops,
            "peer": self.peer.map(|p| p.0),
            "peer_us": self.peer.map(|p| p.1),
        })
    }
}

/// The rows as Markdown.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "\n| work | µs | TFLOP/s | peer | peer µs | peer / ours |\n|---|---|---|---|---|---|\n",
    );
    for r in rows {
        let tflops = r.tflops.map_or(String::new(), |t| format!("{t:.1}"));
        let (name, us, ratio) = r.peer.map_or_else(Default::default, |(name, us)| {
            (name.to_string(), format!("{us:.1}"), format!("{:.2}", us / r.ours))
        });
        let _ =
            writeln!(text, "| {} | {:.1} | {tflops} | {name} | {us} | {ratio} |", r.name, r.ours);
    }
    text + "\nMedians of 20 runs on random data, each on operands that are not in the L2 cache.\n"
}

const RUNS: usize = 20;

/// The median of `RUNS` timed runs after three that are not, in microseconds.
fn median(device: Device, run: &mut dyn FnMut(usize) -> Result<()>) -> Result<f64> {
    let stream = device.stream()?;
    for i in 0..3 {
        run(i)?;
    }
    let mut times = vec![];
    for i in 0..RUNS {
        let start = stream.record()?;
        run(i)?;
        let end = stream.record()?;
        times.push(f64::from(end.since(&start)?) * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[RUNS / 2])
}

/// All timings.
pub(crate) fn run(device: Device) -> Result<Vec<Row>> {
    let tiny = device == Device::Emulated;
    let mut rows = products(device, tiny)?;
    rows.extend(operators(device, if tiny { Shape::TINY } else { Shape::OPT_1_3B })?);
    if !tiny {
        rows.extend(pytorch());
    }
    Ok(rows)
}

/// y = x w^T in bf16 beside cuBLAS.
fn products(device: Device, tiny: bool) -> Result<Vec<Row>> {
    let shapes: &[[usize; 3]] = match tiny {
        true => &[[64, 64, 64]],
        false => &[
            [4096, 4096, 4096],
            [8192, 8192, 8192],
            [4096, 6144, 2048],
            [4096, 8192, 2048],
            [4096, 2048, 8192],
            [8192, 12288, 4096],
            [1, 4096, 4096],
            [16, 4096, 4096],
            [64, 4096, 4096],
            [256, 4096, 4096],
            [16, 50272, 2048],
        ],
    };
    let stream = device.stream()?;
    let cublas = Cublas::open(stream.raw()).filter(|_| !tiny);
    let mut rows = vec![];
    for &[m, n, k] in shapes {
        // As many copies as leave the 50 MB of an H100's L2 cache three times over.
        let bytes = 2 * (m * k + n * k);
        let copies = ((150 << 20) / bytes).clamp(1, 16);
        let mut rng = Rng::new(1, 0);
        let mut random = |len: usize| -> Result<Buffer> {
            let buffer = Buffer::zeroed(device, 2 * len)?;
            // bf16 in [1, 2) and (-2, -1]: sign and seven bits of fraction at random.
            let values: Vec<u16> =
                (0..len).map(|_| (rng.next_u32() as u16 & 0x807f) | 0x3f80).collect();
            buffer.write(0, bytemuck::cast_slice(&values))?;
            Ok(buffer)
        };
        let operands = (0..copies)
            .map(|_| Ok((random(m * k)?, random(n * k)?)))
            .collect::<Result<Vec<(Buffer, Buffer)>>>()?;
        let y = Buffer::zeroed(device, 2 * m * n)?;
        let address = |b: &Buffer| b.region().address();
        let mat = |b: &Buffer| Mat::new(address(b), DType::Bf16, k);
        let ours = median(device, &mut |i| {
            let (x, w) = &operands[i % copies];
            let out = Out::new(address(&y), DType::Bf16, n);
            // SAFETY: matrices of these sizes, which live until the device is done with all.
            unsafe { gemm(stream, Layout::Nt.of(m, n, k), mat(x), mat(w), out) }
        })?;
        let mut theirs = None;
        if let Some(cublas) = &cublas {
            let time = median(device, &mut |i| {
                let (x, w) = &operands[i % copies];
                // SAFETY: matrices of these sizes, which live until the device is done with all.
                unsafe { cublas.linear(m, n, k, address(x), address(w), address(&y)) };
                Ok(())
            })?;
            theirs = Some(("cuBLAS", time));
        }
        let tflops = Some(2.0 * (m * n * k) as f64 / ours / 1e6);
        rows.push(Row { name: format!("gemm {m}x{n}x{k} bf16"), ours, tflops, peer: theirs });
    }
    Ok(rows)
}

/// Every operator at a model's sizes, forward and backward.
fn operators(device: Device, shape: Shape) -> Result<Vec<Row>> {
    let mut rows = vec![];
    for case in shapes(&shape) {
        for dtype in [DType::Bf16, DType::F32] {
            // The fast mode is timed; f32 only where there is nothing else.
            if !takes(&case.name, dtype) || (dtype == DType::F32 && takes(&case.name, DType::Bf16))
            {
                continue;
            }
            let copies = (0..3)
                .map(|i| Bench::new(device, (case.op)(), &case.ins, dtype, i))
                .collect::<Result<Vec<_>>>()?;
            let flops = copies[0].flops() as f64;
            let tflops = |us: f64, times: f64| (flops > 1e9).then(|| times * flops / us / 1e6);
            let ours = median(device, &mut |i| copies[i % 3].forward())?;
            let name = format!("{} {dtype}", case.name);
            rows.push(Row { name: name.clone(), ours, tflops: tflops(ours, 1.0), peer: None });
            if copies[0].has_backward() && !case.name.ends_with("decode") {
                let ours = median(device, &mut |i| copies[i % 3].backward())?;
                let name = format!("{name} backward");
                rows.push(Row { name, ours, tflops: tflops(ours, 2.0), peer: None });
            }
        }
    }
    Ok(rows)
}

/// PyTorch's attention and fused AdamW at the same sizes, where Python has it: rows without times
/// of ours.
fn pytorch() -> Vec<Row> {
    let Ok(mut child) = Command::new("python3")
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
    else {
        return vec![];
    };
    let script = include_str!("pytorch.py");
    let fed = child.stdin.take().is_some_and(|mut pipe| pipe.write_all(script.as_bytes()).is_ok());
    let Some(output) = child.wait_with_output().ok().filter(|_| fed) else { return vec![] };
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    lines
        .lines()
        .filter_map(|line| {
            let (name, us) = line.rsplit_once(' ')?;
            let ours = us.parse().ok()?;
            Some(Row { name: format!("PyTorch: {name}"), ours, tflops: None, peer: None })
        })
        .collect()
}

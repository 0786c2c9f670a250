//! The same law on a device, emulated here: rows have the bits of packed attention however the
//! tokens came in, whatever the tile, and a sequence those it has alone.

use super::*;
use crate::device::{Buffer, Device};
use crate::op::attention::tests::{random, rng_seed, same_bits};
use crate::op::{Arg, CudaBackward, CudaGrad};

/// A tensor on the emulated device.
struct OnDevice {
    buffer: Buffer,
    desc: Desc,
}

impl OnDevice {
    fn new<T: bytemuck::Pod>(values: &[T], dims: &[usize], dtype: DType) -> OnDevice {
        let buffer = Buffer::zeroed(Device::Emulated, size_of_val(values).max(1)).unwrap();
        buffer.write(0, bytemuck::cast_slice(values)).unwrap();
        OnDevice { buffer, desc: Desc::new(dims, dtype) }
    }

    fn of<E: Elem>(values: &[E], dims: &[usize]) -> OnDevice {
        OnDevice::new(values, dims, E::DTYPE)
    }

    fn ints(values: &[i32], dims: &[usize]) -> OnDevice {
        OnDevice::new(values, dims, DType::I32)
    }

    fn nan<E: Elem>(dims: &[usize]) -> OnDevice {
        OnDevice::of(&vec![E::from_f32(f32::NAN); dims.iter().product()], dims)
    }

    fn arg(&self) -> Arg {
        Arg { ptr: self.buffer.region().address(), desc: self.desc }
    }

    fn get<E: Elem>(&self) -> Vec<E> {
        let mut values = vec![E::from_f32(0.0); self.desc.shape.numel()];
        self.buffer.read(0, bytemuck::cast_slice_mut(&mut values)).unwrap();
        values
    }
}

/// o and lse of packed attention, and the gradient of qkv.
fn packed<E: Elem>(op: &Attention, qkv: &[E], cu: &[i32], d_o: &[E]) -> (Vec<E>, Vec<f32>, Vec<E>) {
    let tokens = qkv.len() / op.width();
    let row = [tokens, op.heads * op.head_dim];
    let stream = Device::Emulated.stream().unwrap();
    let (qkv, cu) = (OnDevice::of(qkv, &[tokens, op.width()]), OnDevice::ints(cu, &[cu.len()]));
    let (o, lse) = (OnDevice::nan::<E>(&row), OnDevice::nan::<f32>(&[tokens, op.heads]));
    let ins = vec![Some(qkv.arg()), Some(cu.arg())];
    let outs = vec![o.arg(), lse.arg()];
    let io = CudaForward { stream, ins: ins.clone(), outs: outs.clone(), scratch: 0 };
    // SAFETY: every tensor has its own memory on the device, which lives until it has been read.
    unsafe { op.cuda_forward(&io) }.unwrap();
    let (d_o, dqkv) = (OnDevice::of(d_o, &row), OnDevice::nan::<E>(&[tokens, op.width()]));
    let scratch = OnDevice::nan::<f32>(&[tokens, op.heads]);
    let io = CudaBackward {
        stream,
        ins,
        outs: outs.into_iter().map(Some).collect(),
        douts: vec![Some(d_o.arg()), None],
        dins: vec![Some(CudaGrad { arg: dqkv.arg(), acc: false }), None],
        late: vec![],
        scratch: scratch.arg().ptr,
    };
    // SAFETY: every tensor has its own memory on the device, which lives until it has been read.
    unsafe { op.cuda_backward(&io) }.unwrap();
    (o.get(), lse.get(), dqkv.get())
}

/// Sequences with caches of NaN on the device, fed a few tokens at a time; `new(s, done)` says how
/// many. Returns o in the packed layout of the whole sequences.
fn cached<E: Elem>(
    op: &Attention,
    lengths: &[usize],
    qkv: &[E],
    mut new: impl FnMut(usize, usize) -> usize,
) -> Vec<E> {
    let (width, row, stream) =
        (op.width(), op.heads * op.head_dim, Device::Emulated.stream().unwrap());
    let columns = lengths.iter().max().unwrap().div_ceil(PAGE);
    let pages = lengths.len() * columns;
    // Backwards, so that no page is where it would be in a plain cache.
    let table: Vec<i32> = (0..pages as i32).rev().collect();
    let table = OnDevice::ints(&table, &[lengths.len(), columns]);
    let cache = [pages, op.kv_heads, PAGE, op.head_dim];
    let (k, v) = (OnDevice::nan::<E>(&cache), OnDevice::nan::<E>(&cache));
    let mut done = vec![0; lengths.len()];
    let mut out = vec![E::from_f32(f32::NAN); lengths.iter().sum::<usize>() * row];
    while done != lengths {
        let (mut tokens, mut cu, mut base) = (vec![], vec![0i32], 0);
        let starts: Vec<i32> = done.iter().map(|d| *d as i32).collect();
        for (s, length) in lengths.iter().enumerate() {
            let n = new(s, done[s]).min(length - done[s]);
            tokens.extend((0..n).map(|i| base + done[s] + i));
            cu.push(tokens.len() as i32);
            base += length;
            done[s] += n;
        }
        let part: Vec<E> = tokens.iter().flat_map(|t| qkv[t * width..][..width].to_vec()).collect();
        let part = OnDevice::of(&part, &[tokens.len(), width]);
        let (cu, starts) =
            (OnDevice::ints(&cu, &[cu.len()]), OnDevice::ints(&starts, &[starts.len()]));
        let o = OnDevice::nan::<E>(&[tokens.len(), row]);
        let ins = [&part, &cu, &starts, &table].map(|t| Some(t.arg()));
        let io = CudaForward {
            stream,
            ins: ins.into_iter().chain([None, None]).collect(),
            outs: vec![o.arg(), k.arg(), v.arg()],
            scratch: 0,
        };
        // SAFETY: every tensor has its own memory on the device, which lives until o has been read.
        unsafe { CachedAttention(op.clone()).cuda_forward(&io) }.unwrap();
        for (t, o) in tokens.iter().zip(o.get::<E>().chunks_exact(row)) {
            out[t * row..][..row].copy_from_slice(o);
        }
    }
    out
}

/// Every width in shared memory, with and without rows of whole 16 bytes, with what is done to
/// scores.
fn ops() -> [Attention; 7] {
    [
        example((4, 2, 16), (true, 64, 2.0)),
        example((3, 1, 20), PLAIN),
        example((4, 4, 40), (false, 70, 0.0)),
        example((6, 1, 80), (true, 0, 0.0)),
        example((2, 1, 128), PLAIN),
        example((2, 1, 256), (false, 100, 30.0)),
        example((20, 1, 8), (false, 1, 0.0)),
    ]
}

fn equals_packed<E: Elem>() {
    let mut rng = crate::base::Rng::new(rng_seed(), 6);
    for op in ops() {
        let lengths: Vec<usize> =
            [1, 17, 64, 130].iter().map(|n| n + rng.below(5) as usize).collect();
        let cu = cumulative(&lengths.iter().map(|n| *n as i32).collect::<Vec<_>>());
        let tokens: usize = lengths.iter().sum();
        let qkv: Vec<E> = random(&mut rng, tokens * op.width());
        let d_o: Vec<E> = random(&mut rng, tokens * op.heads * op.head_dim);
        let (want, lse, dqkv) = packed(&op, &qkv, &cu, &d_o);
        assert!(want.iter().chain(&dqkv).all(|v| v.to_f32().is_finite()), "{op:?}");
        let check = |what: &str, got: &[E]| {
            assert!(same_bits(got, &want), "{op:?} {what} {lengths:?}");
        };
        check("at once", &cached(&op, &lengths, &qkv, |_, _| usize::MAX));
        let prompt = |s: usize| (lengths[s] - 1).saturating_sub(3);
        let decode = |s: usize, done: usize| if done < prompt(s) { prompt(s) - done } else { 1 };
        check("prompts, then token by token", &cached(&op, &lengths, &qkv, decode));
        check("at random", &cached(&op, &lengths, &qkv, |_, _| rng.below(60) as usize));
        let row = op.heads * op.head_dim;
        for w in cu.windows(2) {
            let (a, b) = (w[0] as usize, w[1] as usize);
            let part = (&qkv[a * op.width()..b * op.width()], &d_o[a * row..b * row]);
            let alone = packed(&op, part.0, &[0, (b - a) as i32], part.1);
            assert!(same_bits(&alone.0, &want[a * row..b * row]), "{op:?} alone");
            assert!(same_bits(&alone.1, &lse[a * op.heads..b * op.heads]), "{op:?} lse alone");
            let whole = &dqkv[a * op.width()..b * op.width()];
            assert!(same_bits(&alone.2, whole), "{op:?} gradient alone");
        }
    }
}

#[test]
fn a_device_gives_the_bits_of_packed_attention_in_f32() {
    equals_packed::<f32>();
}

#[test]
fn a_device_gives_the_bits_of_packed_attention_in_bf16() {
    equals_packed::<bf16>();
}

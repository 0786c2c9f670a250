//! The tape on a small two-segment program: gradients, checkpointing, planning.

use super::*;
use crate::base::Rng;
use crate::device::Buffer;
use crate::op::norm::{Norm, norm};
use crate::op::softcap::{Softcap, softcap};
use crate::pool::{ParamSpec, ShardSpec};

struct Rows(Vec<f32>);

impl Shaped for Rows {
    fn dims(&self) -> Vec<usize> {
        vec![self.0.len()]
    }
    fn largest(dims: &[usize]) -> Rows {
        Rows(vec![0.0; dims[0]])
    }
}

fn store(hidden: usize) -> Store {
    let specs = (0..4)
        .map(|i| ParamSpec {
            name: format!("gamma{i}"),
            segment: i / 2,
            shape: vec![hidden],
            sharding: ShardSpec::Replicated,
            trained: true,
        })
        .collect();
    let store = Store::new(Device::Cpu, DType::F32, specs).unwrap();
    let mut rng = Rng::new(11, 0);
    for i in 0..4 {
        let v: Vec<f32> = (0..hidden).map(|_| 1.0 + 0.3 * rng.normal()).collect();
        store.write_f32(ParamId(i), &v).unwrap();
    }
    store
}

/// Four norms in two segments; returns the output and leaves gradients in the store.
fn run(
    ws: &mut Workspace,
    store: &Store,
    rows: &Rows,
    checkpointing: ActivationCheckpointing,
) -> Vec<f32> {
    let hidden = store.params()[0].spec.shape[0];
    ws.run(&format!("{checkpointing:?}"), rows, |tape, rows: &Rows| {
        tape.record();
        let mut x = tape.input_f32(&rows.0)?;
        x.desc = Desc::new(&[rows.0.len() / hidden, hidden], DType::F32);
        for i in 0..4 {
            if i % 2 == 0 {
                tape.segment(checkpointing);
            }
            let g = tape.param(store, ParamId(i));
            x = norm(tape, Norm { mean: i % 2 == 0, eps: 1e-5, unit_offset: false }, x, g, None)?;
        }
        let out = tape.read_f32(x)?;
        let seed: Vec<f32> = (0..out.len()).map(|i| (i as f32).sin()).collect();
        tape.backward_from(&[(x, &seed)])?;
        Ok(out)
    })
    .unwrap()
}

#[test]
fn every_keep_setting_gives_the_same_bits_and_less_memory() {
    let hidden = 64;
    let store = store(hidden);
    let mut rng = Rng::new(2, 0);
    let rows = Rows((0..hidden * 50).map(|_| rng.normal()).collect());
    let mut seen: Vec<(Vec<f32>, Vec<Vec<f32>>, usize)> = vec![];
    for checkpointing in [
        ActivationCheckpointing::None,
        ActivationCheckpointing::Selective,
        ActivationCheckpointing::Full,
    ] {
        let mut ws = Workspace::new(Device::Cpu, usize::MAX).unwrap();
        store.reset_grads();
        let out = run(&mut ws, &store, &rows, checkpointing);
        let grads = (0..4).map(|i| store.read_grad(ParamId(i)).unwrap()).collect();
        seen.push((out, grads, ws.bytes()));
    }
    for s in &seen[1..] {
        assert_eq!(s.0, seen[0].0);
        assert_eq!(s.1, seen[0].1);
    }
    assert!(seen[0].1.iter().all(|g| g.iter().any(|v| *v != 0.0)));
}

#[test]
fn a_second_backward_adds_and_a_larger_batch_is_planned_again() {
    let hidden = 16;
    let store = store(hidden);
    let mut ws = Workspace::new(Device::Cpu, usize::MAX).unwrap();
    let rows = Rows((0..hidden * 3).map(|i| (i as f32).cos()).collect());
    store.reset_grads();
    run(&mut ws, &store, &rows, ActivationCheckpointing::None);
    let once = store.read_grad(ParamId(0)).unwrap();
    run(&mut ws, &store, &rows, ActivationCheckpointing::None);
    let twice = store.read_grad(ParamId(0)).unwrap();
    assert!(once.iter().zip(&twice).all(|(a, b)| 2.0 * a == *b));
    let before = ws.bytes();
    run(&mut ws, &store, &Rows(vec![0.5; hidden * 300]), ActivationCheckpointing::None);
    assert!(ws.bytes() > before);
    run(&mut ws, &store, &rows, ActivationCheckpointing::None);
}

#[test]
fn a_program_over_the_limit_names_the_way_out() {
    let store = store(16);
    let mut ws = Workspace::new(Device::Cpu, 1000).unwrap();
    let e = ws
        .run("step", &Rows(vec![0.0; 16 * 100]), |tape, rows: &Rows| {
            let mut x = tape.input_f32(&rows.0)?;
            x.desc = Desc::new(&[100, 16], DType::F32);
            let g = tape.param(&store, ParamId(0));
            norm(tape, Norm { mean: true, eps: 1e-5, unit_offset: false }, x, g, None)
        })
        .unwrap_err();
    assert_eq!(e.exit_code(), 3);
    let parts = ["step needs", "--memory-limit", "--gradient-checkpointing full", "--max-seq-len"];
    assert!(parts.iter().all(|part| e.to_string().contains(part)), "{e}");
}

/// Values in memory of their own.
struct Bound<'b>(Option<&'b Buffer>, usize);

impl Shaped for Bound<'_> {
    fn dims(&self) -> Vec<usize> {
        vec![self.1]
    }
    fn largest(dims: &[usize]) -> Self {
        Bound(None, dims[0])
    }
}

/// Caps the values where they lie.
fn cap<'a>(tape: &mut Tape<'a>, x: &Bound<'a>) -> Result<Tensor> {
    let desc = Desc::new(&[1, x.1], DType::F32);
    let x = tape.bind(x.0.map_or(Region::nowhere(desc.bytes()), Buffer::region), desc);
    softcap(tape, Softcap { cap: 2.0 }, x)
}

#[test]
fn a_captured_program_runs_each_time_it_is_told_to() {
    let values = [0.5f32, -3.0, 100.0];
    let buffer = Buffer::zeroed(Device::Cpu, 12).unwrap();
    buffer.write(0, bytemuck::cast_slice(&values)).unwrap();
    let x = Bound(Some(&buffer), 3);
    let now = || {
        let mut values = [0f32; 3];
        buffer.read(0, bytemuck::cast_slice_mut(&mut values)).unwrap();
        values
    };
    let capped = |x: [f32; 3]| x.map(|x| 2.0 * (x / 2.0).tanh());
    let near = |a: [f32; 3], b: [f32; 3]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);

    let mut ws = Workspace::new(Device::Cpu, usize::MAX).unwrap();
    assert!(ws.capture("cap", &x, true, |_, _| Ok(())).is_err(), "not planned");
    ws.reserve("cap", &[3], &mut |tape, x: &Bound<'_>| cap(tape, x)).unwrap();
    let mut program = ws.capture("cap", &x, true, |tape, x| cap(tape, x).map(|_| ())).unwrap();
    assert_eq!(now(), values, "captured, not run");
    program.run().unwrap();
    assert!(near(now(), capped(values)));
    program.run().unwrap();
    assert!(near(now(), capped(capped(values))));
}

#[test]
fn a_captured_program_has_no_business_with_the_host() {
    let buffer = Buffer::zeroed(Device::Cpu, 12).unwrap();
    let x = Bound(Some(&buffer), 3);
    let mut ws = Workspace::new(Device::Cpu, usize::MAX).unwrap();
    ws.reserve("cap", &[3], &mut |tape, x: &Bound<'_>| cap(tape, x)).unwrap();
    let reads = ws.capture("cap", &x, true, |tape, x| {
        let y = cap(tape, x)?;
        tape.read_f32(y).map(|_| ())
    });
    assert!(reads.unwrap_err().to_string().contains("copies to the host"));
    let writes = ws.capture("cap", &x, true, |tape, _| tape.input_f32(&[1.0]).map(|_| ()));
    assert!(writes.unwrap_err().to_string().contains("copies from the host"));
}

/// A copy whose workspace grows with its rows from a thousand on, or shrinks up to there.
#[derive(Debug)]
struct Uneven {
    shrinks: bool,
}

impl Op for Uneven {
    fn name(&self) -> &'static str {
        "uneven"
    }

    fn plan(&self, ins: &[Option<Desc>]) -> Result<Plan> {
        let x = crate::op::required(self, ins, 0)?;
        let n = x.shape.numel();
        let scratch =
            if self.shrinks { 1000usize.saturating_sub(n) } else { n.saturating_sub(1000) };
        Ok(Plan { outs: vec![Place::New(x)], scratch, ..Plan::default() })
    }

    fn cpu_forward(&self, io: &mut Forward<'_>) -> Result<()> {
        io.scratch.fill(-1.0);
        let x = io.input(0).f32();
        io.outs[0].f32().copy_from_slice(x);
        Ok(())
    }
}

/// Copies rows of each number, one after the other; how often the plan did not hold by then.
fn misfits<const N: usize>(shrinks: bool, numbers: [usize; N]) -> [usize; N] {
    let mut ws = Workspace::new(Device::Cpu, usize::MAX).unwrap();
    numbers.map(|n| {
        let rows = Rows((0..n).map(|i| (i as f32).sqrt()).collect());
        let out = ws.run("copies", &rows, |tape, rows: &Rows| {
            let mut x = tape.input_f32(&rows.0)?;
            let kept = tape.input_f32(&rows.0)?;
            for _ in 0..3 {
                x = tape.run(Arc::new(Uneven { shrinks }), &[Some(x)])?[0];
            }
            Ok((tape.read_f32(x)?, tape.read_f32(kept)?))
        });
        assert!(out.unwrap() == (rows.0.clone(), rows.0), "{n} rows");
        ws.misfits()
    })
}

#[test]
fn a_program_that_needs_more_for_less_is_planned_again() {
    assert_eq!(misfits(true, [2000, 1500, 400, 300, 350, 900]), [0, 0, 1, 2, 2, 2]);
}

#[test]
fn a_program_has_the_same_slots_where_an_operator_needs_nothing() {
    assert_eq!(misfits(false, [2000, 500, 1500, 1, 3000, 999]), [0; 6]);
}

/// Moves averages at `.0` towards weights at `.1`, on buffers of the caller's.
fn averages<'a>(tape: &mut Tape<'a>, [e, w]: [&'a Buffer; 2]) -> Result<()> {
    let desc = Desc::new(&[4], DType::F32);
    let [e, w] = [e, w].map(|b| tape.bind(b.region(), desc));
    crate::op::ema::ema(tape, crate::op::ema::Ema { decay: 0.5 }, e, w).map(|_| ())
}

#[test]
fn memory_that_an_operator_writes_is_given_to_it_once() {
    let [a, b] = [0, 1].map(|_| Buffer::zeroed(Device::Cpu, 16).unwrap());
    let mut ws = Workspace::new(Device::Cpu, 1 << 20).unwrap();
    ws.run("apart", &(), |tape, ()| averages(tape, [&a, &b])).unwrap();
    let e = ws.run("same", &(), |tape, ()| averages(tape, [&a, &a])).unwrap_err();
    assert!(e.to_string().contains("ema writes what it is also given elsewhere"), "{e}");
}

#[cfg(feature = "emulator")]
#[test]
fn operators_get_memory_of_their_device_only() {
    let device = Buffer::zeroed(Device::Emulated, 16).unwrap();
    let host = Buffer::zeroed(Device::Cpu, 16).unwrap();
    let mut ws = Workspace::new(Device::Emulated, 1 << 20).unwrap();
    let e = ws.run("host", &(), |tape, ()| averages(tape, [&device, &host])).unwrap_err();
    assert!(e.to_string().contains("ema is given what is not on emulated"), "{e}");
    let nowhere = |tape: &mut Tape<'_>, (): &()| {
        let desc = Desc::new(&[4], DType::F32);
        let [e, w] = [0, 1].map(|_| tape.bind(Region::nowhere(16), desc));
        crate::op::ema::ema(tape, crate::op::ema::Ema { decay: 0.5 }, e, w).map(|_| ())
    };
    assert!(ws.run("nowhere", &(), nowhere).is_err());
}

//! One runner for every operator: forward against a float64 reference, gradients against 4-point
//! finite differences of that reference, set and add, f32 and bf16, on poisoned outputs between red
//! zones, on the CPU or on a device with kernels. Cases come from the registry.

use crate::base::{DType, Elem, Error, Result, Rng, bf16};
use crate::device::{Buffer, Device};
use crate::op::{Arg, Backward, CudaBackward, CudaForward, CudaGrad};
use crate::op::{Forward, Grad, Op, Place, Plan, View, ViewMut};
use crate::tensor::Desc;

/// A float64 implementation: inputs in order (absent ones empty) to differentiable outputs in
/// order.
pub type Reference = Box<dyn Fn(&[Vec<f64>]) -> Vec<Vec<f64>>>;

/// Turns all outputs of an operator into the values that are compared.
pub type Decode = fn(&[Vec<f64>]) -> Vec<Vec<f64>>;

/// One test case of an operator.
pub struct Case {
    /// The operator with its attributes.
    pub op: Box<dyn Op>,
    /// Inputs; `None` for an absent optional one.
    pub ins: Vec<Option<Input>>,
    /// The float64 reference.
    pub reference: Reference,
    /// Decodes the codes that an operator writes; only for operators without gradients.
    pub decode: Option<Decode>,
    /// Fixed dtype of the case, or both.
    pub dtypes: &'static [DType],
    /// Multiplies the tolerances, with its reason at the case.
    pub slack: f64,
}

/// A test input.
#[derive(Clone, Debug)]
pub enum Input {
    /// Uniform in `-scale..scale`, in the dtype under test; gradient in the same dtype.
    Act(Vec<usize>, f32),
    /// As `Act`, with an f32 gradient.
    Weight(Vec<usize>, f32),
    /// f32 whatever the dtype under test, with gradient.
    F32(Vec<usize>, f32),
    /// f32 values given, no gradient wanted.
    Const(Vec<usize>, Vec<f32>),
    /// Token ids, offsets, positions.
    Ints(Vec<usize>, Vec<i32>),
    /// Codes.
    Bytes(Vec<usize>, Vec<u8>),
}

impl Input {
    /// A random activation.
    pub fn act(dims: &[usize], scale: f32) -> Input {
        Input::Act(dims.to_vec(), scale)
    }

    /// A random weight.
    pub fn weight(dims: &[usize], scale: f32) -> Input {
        Input::Weight(dims.to_vec(), scale)
    }

    /// A random f32 tensor.
    pub fn f32(dims: &[usize], scale: f32) -> Input {
        Input::F32(dims.to_vec(), scale)
    }

    /// Integers.
    pub fn ints(values: &[i32]) -> Input {
        Input::Ints(vec![values.len()], values.to_vec())
    }

    pub(super) fn dims(&self) -> &[usize] {
        match self {
            Input::Act(d, _) | Input::Weight(d, _) | Input::F32(d, _) => d,
            Input::Const(d, _) | Input::Ints(d, _) | Input::Bytes(d, _) => d,
        }
    }

    pub(super) fn dtype(&self, dtype: DType) -> DType {
        match self {
            Input::Act(..) | Input::Weight(..) => dtype,
            Input::F32(..) | Input::Const(..) => DType::F32,
            Input::Ints(..) => DType::I32,
            Input::Bytes(..) => DType::U8,
        }
    }

    pub(super) fn grad_dtype(&self, dtype: DType) -> Option<DType> {
        match self {
            Input::Act(..) => Some(dtype),
            Input::Weight(..) | Input::F32(..) => Some(DType::F32),
            Input::Const(..) | Input::Ints(..) | Input::Bytes(..) => None,
        }
    }
}

impl Case {
    /// A case run in f32 and bf16.
    pub fn new(
        op: impl Op + 'static,
        ins: Vec<Option<Input>>,
        reference: impl Fn(&[Vec<f64>]) -> Vec<Vec<f64>> + 'static,
    ) -> Case {
        let dtypes = &[DType::F32, DType::Bf16];
        let (op, reference) = (Box::new(op), Box::new(reference));
        Case { op, ins, reference, decode: None, dtypes, slack: 1.0 }
    }
}

/// Largest relative L2 distance accepted, by dtype. The one place for tolerances.
pub fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::Bf16 => 1e-2,
        _ => 3e-6,
    }
}

/// Relative L2 distance, largest absolute difference and the coordinate it is at. A single value
/// may be a sum that cancels, so it is measured against the size of what was summed: at least 0.5.
pub fn distance(got: &[f64], want: &[f64]) -> (f64, f64, usize) {
    let (mut num, mut den, mut max, mut at) = (0.0, 0.0, 0.0, 0);
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let diff = if g.is_finite() { (g - w).abs() } else { f64::INFINITY };
        num += diff * diff;
        den += w * w;
        if diff > max {
            (max, at) = (diff, i);
        }
    }
    let least = if want.len() == 1 { 0.25 } else { 1e-30 };
    ((num / den.max(least)).sqrt(), max, at)
}

/// Bytes of guard before and after each buffer.
const RED_ZONE: usize = 256;
const RED: u8 = 0xA5;

/// Host memory between red zones, poisoned with NaN patterns.
struct Guarded {
    words: Vec<u64>,
    desc: Desc,
}

/// The same bytes, red zones included, on a device.
struct OnDevice {
    buffer: Buffer,
    desc: Desc,
}

impl OnDevice {
    fn new(device: Device, from: &Guarded) -> Result<OnDevice> {
        let bytes: &[u8] = bytemuck::cast_slice(&from.words);
        let buffer = Buffer::zeroed(device, bytes.len())?;
        buffer.write(0, bytes)?;
        Ok(OnDevice { buffer, desc: from.desc })
    }

    /// `len` f32 elements of NaN.
    fn scratch(device: Device, len: usize) -> Result<OnDevice> {
        OnDevice::new(device, &Guarded::poisoned(Desc::new(&[len], DType::F32)))
    }

    fn arg(&self) -> Arg {
        Arg { ptr: self.address(), desc: self.desc }
    }

    fn address(&self) -> u64 {
        self.buffer.region().address() + RED_ZONE as u64
    }

    /// Brings the bytes back.
    fn fetch(&self, to: &mut Guarded) -> Result<()> {
        self.buffer.read(0, bytemuck::cast_slice_mut(&mut to.words))
    }
}

impl Guarded {
    fn poisoned(desc: Desc) -> Guarded {
        let mut g = Guarded { words: vec![0; (desc.bytes() + 2 * RED_ZONE).div_ceil(8)], desc };
        bytemuck::cast_slice_mut::<u64, u8>(&mut g.words).fill(RED);
        g.bytes_mut().fill(0xFF); // NaN in f32 and bf16, -1 in i32, 255 in u8
        g
    }

    fn from_f64(desc: Desc, values: &[f64]) -> Guarded {
        let mut g = Guarded::poisoned(desc);
        match desc.dtype {
            DType::F32 => put::<f32>(g.bytes_mut(), values),
            DType::Bf16 => put::<bf16>(g.bytes_mut(), values),
            DType::I32 => {
                let out: &mut [i32] = bytemuck::cast_slice_mut(g.bytes_mut());
                out.iter_mut().zip(values).for_each(|(o, v)| *o = *v as i32);
            }
            DType::U8 => {
                g.bytes_mut().iter_mut().zip(values).for_each(|(o, v)| *o = *v as u8);
            }
        }
        g
    }

    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice::<u64, u8>(&self.words)[RED_ZONE..][..self.desc.bytes()]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut::<u64, u8>(&mut self.words)[RED_ZONE..][..self.desc.bytes()]
    }

    fn view(&self) -> View<'_> {
        View::new(self.bytes(), self.desc)
    }

    fn view_mut(&mut self) -> ViewMut<'_> {
        let desc = self.desc;
        ViewMut::new(self.bytes_mut(), desc)
    }

    fn values(&self) -> Vec<f64> {
        match self.desc.dtype {
            DType::F32 => self.view().f32().iter().map(|v| f64::from(*v)).collect(),
            DType::Bf16 => self.view().get::<bf16>().iter().map(|v| v.to_f64()).collect(),
            DType::I32 => self.view().i32().iter().map(|v| f64::from(*v)).collect(),
            DType::U8 => self.bytes().iter().map(|v| f64::from(*v)).collect(),
        }
    }

    fn check_red_zones(&self, what: &str) -> Result<()> {
        let all: &[u8] = bytemuck::cast_slice(&self.words);
        let end = RED_ZONE + self.desc.bytes();
        if all[..RED_ZONE].iter().chain(&all[end..]).any(|b| *b != RED) {
            return Err(Error::internal(format!("{what}: wrote outside its buffer")));
        }
        Ok(())
    }
}

fn put<E: Elem>(bytes: &mut [u8], values: &[f64]) {
    let out: &mut [E] = bytemuck::cast_slice_mut(bytes);
    out.iter_mut().zip(values).for_each(|(o, v)| *o = E::from_f32(*v as f32));
}

/// Runs one case in one dtype on `device` with inputs drawn from `seed`; an error names what
/// differed.
pub fn check(case: &Case, device: Device, dtype: DType, seed: u64) -> Result<()> {
    let mut rng = Rng::new(seed, 0);
    let inputs: Vec<Option<Guarded>> = case
        .ins
        .iter()
        .map(|input| {
            let input = input.as_ref()?;
            let desc = Desc::new(input.dims(), input.dtype(dtype));
            let values: Vec<f64> = match input {
                Input::Act(_, s) | Input::Weight(_, s) | Input::F32(_, s) => {
                    (0..desc.shape.numel())
                        .map(|_| f64::from((rng.uniform() * 2.0 - 1.0) * s))
                        .collect()
                }
                Input::Const(_, v) => v.iter().map(|v| f64::from(*v)).collect(),
                Input::Ints(_, v) => v.iter().map(|v| f64::from(*v)).collect(),
                Input::Bytes(_, v) => v.iter().map(|v| f64::from(*v)).collect(),
            };
            Some(Guarded::from_f64(desc, &values))
        })
        .collect();
    let descs: Vec<Option<Desc>> = inputs.iter().map(|g| g.as_ref().map(|g| g.desc)).collect();
    let plan = case.op.plan(&descs)?;
    let exact: Vec<Vec<f64>> =
        inputs.iter().map(|g| g.as_ref().map_or(vec![], Guarded::values)).collect();
    let outs = forward(case, device, &plan, &inputs)?;
    let limit = tolerance(dtype) * case.slack;
    let want = (case.reference)(&exact);
    let differentiable: Vec<usize> =
        (0..outs.len()).filter(|i| plan.differentiable >> i & 1 == 1).collect();
    let mut made: Vec<Vec<f64>> = outs.iter().map(Guarded::values).collect();
    if let Some(decode) = case.decode {
        made = decode(&made);
    }
    for (k, want) in want.iter().enumerate() {
        // References may go on to describe outputs without gradients, after those with.
        let i = differentiable.get(k).copied().unwrap_or(k);
        compare(&format!("{:?} {dtype} output {i}", case.op), &made[i], want, limit)?;
    }
    if !differentiable.is_empty() {
        let ran = Ran { case, device, plan: &plan, inputs: &inputs, outs: &outs };
        gradients(&ran, dtype, &exact, &differentiable, &mut rng)?;
    }
    Ok(())
}

fn compare(what: &str, got: &[f64], want: &[f64], limit: f64) -> Result<()> {
    let (relative, max, at) = distance(got, want);
    if got.len() != want.len() || relative.is_nan() || relative > limit {
        let (g, w) = (got.get(at), want.get(at));
        return Err(Error::internal(format!(
            "{what}: relative L2 {relative:.2e} > {limit:.1e}; largest {max:.2e} at {at}: {g:?}, \
             expected {w:?} ({} of {} values)",
            got.len(),
            want.len()
        )));
    }
    Ok(())
}

fn forward(
    case: &Case,
    device: Device,
    plan: &Plan,
    inputs: &[Option<Guarded>],
) -> Result<Vec<Guarded>> {
    let mut outs: Vec<Guarded> = plan
        .outs
        .iter()
        .map(|place| match place {
            Place::New(desc) => Guarded::poisoned(*desc),
            Place::InPlace(i) => {
                let input = inputs[*i].as_ref().expect("in-place input");
                Guarded::from_f64(input.desc, &input.values())
            }
        })
        .collect();
    let in_place = |i: usize| plan.outs.contains(&Place::InPlace(i));
    let read: Vec<Option<&Guarded>> =
        (0..inputs.len()).map(|i| inputs[i].as_ref().filter(|_| !in_place(i))).collect();
    if device.has_kernels() {
        cuda_forward(case, device, plan, &read, &mut outs)?;
    } else {
        let mut scratch = vec![f32::NAN; plan.scratch];
        case.op.cpu_forward(&mut Forward {
            ins: read.iter().map(|g| g.map(Guarded::view)).collect(),
            outs: outs.iter_mut().map(Guarded::view_mut).collect(),
            scratch: &mut scratch,
        })?;
    }
    for (i, out) in outs.iter().enumerate() {
        out.check_red_zones(&format!("{:?} output {i}", case.op))?;
    }
    Ok(outs)
}

/// Copies to the device what is there; `None` stays `None`.
fn upload<'g>(
    device: Device,
    list: impl Iterator<Item = Option<&'g Guarded>>,
) -> Result<Vec<Option<OnDevice>>> {
    list.map(|g| g.map(|g| OnDevice::new(device, g)).transpose()).collect()
}

fn args(list: &[Option<OnDevice>]) -> Vec<Option<Arg>> {
    list.iter().map(|d| d.as_ref().map(OnDevice::arg)).collect()
}

fn cuda_forward(
    case: &Case,
    device: Device,
    plan: &Plan,
    read: &[Option<&Guarded>],
    outs: &mut [Guarded],
) -> Result<()> {
    let ins = upload(device, read.iter().copied())?;
    let made = upload(device, outs.iter().map(Some))?;
    let scratch = OnDevice::scratch(device, plan.cuda_scratch)?;
    let io = CudaForward {
        stream: device.stream()?,
        ins: args(&ins),
        outs: made.iter().flatten().map(OnDevice::arg).collect(),
        scratch: if plan.cuda_scratch == 0 { 0 } else { scratch.address() },
    };
    // SAFETY: every tensor was made for the plan, with its own memory on the device, which is given
    // back in the order of the stream.
    unsafe { case.op.cuda_forward(&io)? };
    for (on_device, out) in made.iter().flatten().zip(outs) {
        on_device.fetch(out)?;
    }
    check_scratch(&scratch)
}

/// The workspace's red zones must be whole too.
fn check_scratch(scratch: &OnDevice) -> Result<()> {
    let mut back = Guarded::poisoned(scratch.desc);
    scratch.fetch(&mut back)?;
    back.check_red_zones("workspace")
}

/// At most this many coordinates of an input are differentiated numerically.
const PROBES: usize = 48;

/// A case whose forward pass ran.
struct Ran<'a> {
    case: &'a Case,
    device: Device,
    plan: &'a Plan,
    inputs: &'a [Option<Guarded>],
    outs: &'a [Guarded],
}

fn gradients(
    ran: &Ran<'_>,
    dtype: DType,
    exact: &[Vec<f64>],
    differentiable: &[usize],
    rng: &mut Rng,
) -> Result<()> {
    let &Ran { case, plan, inputs, outs, .. } = ran;
    let douts: Vec<Option<Guarded>> = (0..outs.len())
        .map(|i| {
            differentiable.contains(&i).then(|| {
                let n = outs[i].desc.shape.numel();
                let v: Vec<f64> = (0..n).map(|_| f64::from(rng.uniform() * 2.0 - 1.0)).collect();
                Guarded::from_f64(outs[i].desc, &v)
            })
        })
        .collect();
    let in_place = |i: usize| plan.outs.contains(&Place::InPlace(i));
    let objective = |ins: &[Vec<f64>]| -> f64 {
        let refs = (case.reference)(ins);
        differentiable
            .iter()
            .zip(&refs)
            .map(|(i, r)| {
                let d = douts[*i].as_ref().expect("gradient").values();
                d.iter().zip(r).map(|(a, b)| a * b).sum::<f64>()
            })
            .sum()
    };
    for acc in [false, true] {
        let mut grads: Vec<Option<Guarded>> = (0..inputs.len())
            .map(|i| {
                let input = case.ins[i].as_ref()?;
                let grad_dtype = input.grad_dtype(dtype)?;
                let desc = Desc::new(input.dims(), grad_dtype);
                (!in_place(i)).then(|| {
                    if acc {
                        Guarded::from_f64(desc, &vec![1.0; desc.shape.numel()])
                    } else {
                        Guarded::poisoned(desc)
                    }
                })
            })
            .collect();
        backward(ran, &douts, &mut grads, acc)?;
        for (i, grad) in grads.iter().enumerate() {
            let Some(grad) = grad else { continue };
            grad.check_red_zones(&format!("{:?} gradient {i}", case.op))?;
            let got = grad.values();
            let n = got.len();
            let probes: Vec<usize> = if n <= PROBES {
                (0..n).collect()
            } else {
                (0..PROBES).map(|_| rng.below(n as u32) as usize).collect()
            };
            let want: Vec<f64> = probes
                .iter()
                .map(|&p| difference(&objective, exact, i, p) + if acc { 1.0 } else { 0.0 })
                .collect();
            let got: Vec<f64> = probes.iter().map(|&p| got[p]).collect();
            let limit = tolerance(dtype) * case.slack * 3.0;
            compare(&format!("{:?} {dtype} gradient {i} acc {acc}", case.op), &got, &want, limit)?;
        }
    }
    Ok(())
}

/// Fourth-order central difference of `f` in coordinate `p` of input `i`.
fn difference(f: &dyn Fn(&[Vec<f64>]) -> f64, ins: &[Vec<f64>], i: usize, p: usize) -> f64 {
    let h = 1e-3;
    let at = |step: f64| {
        let mut moved = ins.to_vec();
        moved[i][p] += step;
        f(&moved)
    };
    (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h)
}

fn backward(
    ran: &Ran<'_>,
    douts: &[Option<Guarded>],
    grads: &mut [Option<Guarded>],
    acc: bool,
) -> Result<()> {
    let &Ran { case, device, plan, inputs, outs } = ran;
    let saved = |mask: u64, i: usize| mask >> i & 1 == 1;
    let mut late: Vec<Guarded> = match plan.late {
        true => outs.iter().map(|o| Guarded::poisoned(o.desc)).collect(),
        false => vec![],
    };
    let saved_ins =
        (0..inputs.len()).map(|i| inputs[i].as_ref().filter(|_| saved(plan.saves_ins, i)));
    let saved_outs = (0..outs.len()).map(|i| Some(&outs[i]).filter(|_| saved(plan.saves_outs, i)));
    if device.has_kernels() {
        let ins = upload(device, saved_ins)?;
        let kept = upload(device, saved_outs)?;
        let from = upload(device, douts.iter().map(Option::as_ref))?;
        let to = upload(device, grads.iter().map(Option::as_ref))?;
        let scratch = OnDevice::scratch(device, plan.cuda_scratch_backward)?;
        let dins = to.iter().map(|g| g.as_ref().map(|g| CudaGrad { arg: g.arg(), acc })).collect();
        let made = upload(device, late.iter().map(Some))?;
        let io = CudaBackward {
            stream: device.stream()?,
            ins: args(&ins),
            outs: args(&kept),
            douts: args(&from),
            dins,
            late: made.iter().flatten().map(OnDevice::arg).collect(),
            scratch: if plan.cuda_scratch_backward == 0 { 0 } else { scratch.address() },
        };
        // SAFETY: every tensor was made for the plan, with its own memory on the device, which is
        // given back in the order of the stream.
        unsafe { case.op.cuda_backward(&io)? };
        for (on_device, grad) in to.iter().zip(grads) {
            if let (Some(on_device), Some(grad)) = (on_device, grad) {
                on_device.fetch(grad)?;
            }
        }
        for (on_device, out) in made.iter().flatten().zip(&mut late) {
            on_device.fetch(out)?;
        }
        check_late(case, &late, outs)?;
        return check_scratch(&scratch);
    }
    let mut scratch = vec![f32::NAN; plan.scratch_backward];
    let mut io = Backward {
        ins: saved_ins.map(|g| g.map(Guarded::view)).collect(),
        outs: saved_outs.map(|g| g.map(Guarded::view)).collect(),
        douts: douts.iter().map(|d| d.as_ref().map(Guarded::view)).collect(),
        dins: grads
            .iter_mut()
            .map(|g| g.as_mut().map(|g| Grad { view: g.view_mut(), acc }))
            .collect(),
        late: late.iter_mut().map(Guarded::view_mut).collect(),
        scratch: &mut scratch,
    };
    case.op.cpu_backward(&mut io)?;
    check_late(case, &late, outs)
}

/// Outputs that backward makes are those of forward, bit for bit.
fn check_late(case: &Case, late: &[Guarded], outs: &[Guarded]) -> Result<()> {
    for (i, (late, out)) in late.iter().zip(outs).enumerate() {
        late.check_red_zones(&format!("{:?} late output {i}", case.op))?;
        if late.bytes() != out.bytes() {
            return Err(Error::internal(format!(
                "{:?} output {i} is another in backward",
                case.op
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::registry::OPS;

    /// Operators named in `DUPLEX_OPS` (separated by commas), or all.
    fn chosen(name: &str) -> bool {
        match std::env::var("DUPLEX_OPS") {
            Ok(list) => list.split(',').any(|one| one == name),
            Err(_) => true,
        }
    }

    fn all_meet_their_reference(device: Device) {
        let seed = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| d.as_nanos() as u64);
        let mut failures = vec![];
        for def in OPS.iter().filter(|def| chosen(def.name)) {
            let cases = (def.cases)();
            assert!(!cases.is_empty(), "{} has no cases", def.name);
            for case in cases {
                assert_eq!(case.op.name(), def.name);
                for dtype in case.dtypes {
                    if let Err(e) = check(&case, device, *dtype, seed) {
                        failures.push(format!("{}: {e} (seed {seed})", def.name));
                    }
                }
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }

    #[test]
    fn every_operator_meets_its_float64_reference() {
        all_meet_their_reference(Device::Cpu);
    }

    #[cfg(feature = "emulator")]
    #[test]
    fn every_operator_meets_its_float64_reference_on_the_emulated_device() {
        all_meet_their_reference(Device::Emulated);
    }
}

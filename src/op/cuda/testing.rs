//! Runs operators on the emulated device with tensors of the host: what kernel tests share.

use crate::base::{DType, Result};
use crate::device::{Buffer, Device};
use crate::op::cpu::testing::{Host, planned};
use crate::op::{Arg, CudaBackward, CudaForward, CudaGrad, Op, Place};
use crate::tensor::Desc;

/// A tensor on the emulated device.
struct Held {
    buffer: Buffer,
    desc: Desc,
}

impl Held {
    fn new(host: &Host) -> Held {
        let buffer = Buffer::zeroed(Device::Emulated, host.desc.bytes().max(4)).expect("memory");
        buffer.write(0, host.bytes()).expect("copy");
        Held { buffer, desc: host.desc }
    }

    fn blank(desc: Desc) -> Held {
        Held::new(&Host::blank(desc))
    }

    fn scratch(len: usize) -> Held {
        Held::blank(Desc::new(&[len], DType::F32))
    }

    fn ptr(&self) -> u64 {
        self.buffer.region().address()
    }

    fn arg(&self) -> Arg {
        Arg { ptr: self.ptr(), desc: self.desc }
    }

    fn read(&self) -> Result<Host> {
        let mut host = Host::blank(self.desc);
        self.buffer.read(0, host.bytes_mut())?;
        Ok(host)
    }
}

/// Plans and runs `op` forward. Fails where a kernel reported a fault.
pub(crate) fn forward(op: &dyn Op, ins: &[Option<Host>]) -> Result<Vec<Host>> {
    let (outs, faults) = forward_past_faults(op, ins)?;
    faults.map(|()| outs)
}

/// The outputs as they are, and what kernels reported.
pub(crate) fn forward_past_faults(
    op: &dyn Op,
    ins: &[Option<Host>],
) -> Result<(Vec<Host>, Result<()>)> {
    let (plan, blank) = planned(op, ins)?;
    let held: Vec<Option<Held>> = ins.iter().map(|h| h.as_ref().map(Held::new)).collect();
    let in_place = |i: usize| plan.outs.contains(&Place::InPlace(i));
    let outs: Vec<Held> = blank.iter().map(Held::new).collect();
    let scratch = Held::scratch(plan.cuda_scratch);
    let stream = Device::Emulated.stream()?;
    let io = CudaForward {
        stream,
        ins: (0..ins.len())
            .map(|i| held[i].as_ref().filter(|_| !in_place(i)).map(Held::arg))
            .collect(),
        outs: outs.iter().map(Held::arg).collect(),
        scratch: scratch.ptr(),
    };
    // SAFETY: every tensor was made for the plan, with its own memory on the device, which lives
    // until the results have been read.
    unsafe { op.cuda_forward(&io)? };
    // Faults come out with the first bytes read.
    let faults = stream.copy_out(outs[0].buffer.region(), &mut []);
    Ok((outs.iter().map(Held::read).collect::<Result<_>>()?, faults))
}

/// Runs `op` backward for the gradients whose element type is given in `wanted`.
pub(crate) fn backward(
    op: &dyn Op,
    ins: &[Option<Host>],
    outs: &[Host],
    douts: &[Option<Host>],
    wanted: &[Option<DType>],
) -> Result<Vec<Option<Host>>> {
    backward_late(op, ins, outs, douts, wanted).map(|(dins, _)| dins)
}

/// [`backward`], and the outputs that it makes.
pub(crate) fn backward_late(
    op: &dyn Op,
    ins: &[Option<Host>],
    outs: &[Host],
    douts: &[Option<Host>],
    wanted: &[Option<DType>],
) -> Result<(Vec<Option<Host>>, Vec<Host>)> {
    let (plan, blank) = planned(op, ins)?;
    let late: Vec<Held> = blank.iter().filter(|_| plan.late).map(Held::new).collect();
    let hold = |h: &Option<Host>| h.as_ref().map(Held::new);
    let (ins_held, douts): (Vec<_>, Vec<_>) =
        (ins.iter().map(hold).collect(), douts.iter().map(hold).collect());
    let outs: Vec<Held> = outs.iter().map(Held::new).collect();
    let dins: Vec<Option<Held>> = wanted
        .iter()
        .zip(ins)
        .map(|(dtype, x)| {
            dtype.map(|dtype| Held::blank(Desc { dtype, ..x.as_ref().expect("wanted").desc }))
        })
        .collect();
    let scratch = Held::scratch(plan.cuda_scratch_backward);
    let arg = |h: &Option<Held>| h.as_ref().map(Held::arg);
    let io = CudaBackward {
        stream: Device::Emulated.stream().expect("stream"),
        ins: ins_held.iter().map(arg).collect(),
        outs: outs.iter().map(|h| Some(h.arg())).collect(),
        douts: douts.iter().map(arg).collect(),
        dins: dins.iter().map(|h| arg(h).map(|arg| CudaGrad { arg, acc: false })).collect(),
        late: late.iter().map(Held::arg).collect(),
        scratch: scratch.ptr(),
    };
    // SAFETY: every tensor was made for the plan, with its own memory on the device, which lives
    // until the results have been read.
    unsafe { op.cuda_backward(&io)? };
    let dins: Result<_> = dins.iter().map(|h| h.as_ref().map(Held::read).transpose()).collect();
    let late: Result<_> = late.iter().map(Held::read).collect();
    Ok((dins?, late?))
}

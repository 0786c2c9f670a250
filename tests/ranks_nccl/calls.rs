//! Every call, on memory of any device: what ranks in one process do with the host's, those with a
//! card each do with theirs.

use duplex::base::{DType, Elem, Result, Rng, bf16};
use duplex::comm::{CallKind, Comm, Handle, Reduce};
use duplex::device::{Buffer, Device};
use std::time::Duration;

/// A call of these tests.
macro_rules! call {
    ($call:expr) => {
        // SAFETY: the tests touch a call's memory once they have waited for it, or dropped it, and
        // have it longer.
        unsafe { $call }
    };
}

/// Values on a device.
struct Values<E> {
    buffer: Buffer,
    kind: std::marker::PhantomData<E>,
}

impl<E: Elem> Values<E> {
    fn new(device: Device, values: &[E]) -> Result<Values<E>> {
        let buffer = Buffer::zeroed(device, size_of_val(values))?;
        buffer.write(0, bytemuck::cast_slice(values))?;
        Ok(Values { buffer, kind: std::marker::PhantomData })
    }

    fn random(device: Device, seed: u64, rank: usize, n: usize) -> Result<Values<E>> {
        let mut rng = Rng::new(seed, rank as u64);
        // So different that the order of a sum shows.
        let mut draw = || E::from_f32(rng.normal() * 10f32.powi(rng.below(5) as i32));
        Values::new(device, &(0..n).map(|_| draw()).collect::<Vec<E>>())
    }

    fn region(&self) -> duplex::device::Region<'_> {
        self.buffer.region()
    }

    fn block(&self, rank: usize, size: usize) -> duplex::device::Region<'_> {
        let bytes = self.buffer.bytes() / size;
        self.buffer.slice(rank * bytes, bytes)
    }

    pub(crate) fn get(&self) -> Result<Vec<f32>> {
        let mut values = vec![E::from_f32(0.0); self.buffer.bytes() / size_of::<E>()];
        self.buffer.read(0, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values.iter().map(|x| x.to_f32()).collect())
    }
}

/// The bits of a rank's values after each call, and the communication it counted.
#[derive(Default, Debug, PartialEq)]
pub(crate) struct Seen(pub(crate) Vec<Vec<u32>>, Vec<(u64, u64)>);

impl Seen {
    fn note<E: Elem>(&mut self, x: &Values<E>) -> Result<()> {
        self.0.push(x.get()?.iter().map(|x| x.to_bits()).collect());
        Ok(())
    }
}

/// Every call on `n` values of a rank, in place or not.
fn calls<E: Elem>(on: Device, comm: &Comm, seed: u64, n: usize, seen: &mut Seen) -> Result<()> {
    let (r, size) = (comm.rank(), comm.size());
    let random = |seed, n| Values::<E>::random(on, seed, r, n);
    for by in [Reduce::Sum, Reduce::Max] {
        let data = random(seed, n)?;
        call!(comm.all_reduce(data.region(), E::DTYPE, by))?.wait()?;
        seen.note(&data)?;
        let (from, own) = (random(seed + 1, n * size)?, random(0, n)?);
        call!(comm.reduce_scatter(from.region(), own.region(), E::DTYPE, by))?.wait()?;
        seen.note(&own)?;
        call!(comm.reduce_scatter(from.region(), from.block(r, size), E::DTYPE, by))?.wait()?;
        seen.note(&from)?;
    }
    let (own, to) = (random(seed, n)?, random(1, n * size)?);
    call!(comm.all_gather(own.region(), to.region()))?.wait()?;
    seen.note(&to)?;
    let to = random(seed + 2, n * size)?;
    call!(comm.all_gather(to.block(r, size), to.region()))?.wait()?;
    seen.note(&to)?;
    let data = random(seed, n)?;
    call!(comm.broadcast(data.region(), seed as usize % size))?.wait()?;
    seen.note(&data)?;
    comm.barrier()
}

/// Calls and messages that are under way at the same time, waited for by each rank in another
/// order.
fn overlapping(on: Device, comm: &Comm, seed: u64, seen: &mut Seen) -> Result<()> {
    let (r, size) = (comm.rank(), comm.size());
    let n = 3001;
    let sums = [0, 1, 2].map(|i| Values::<f32>::random(on, seed + i, r, n));
    let own = Values::<bf16>::random(on, seed, r, n)?;
    let all = Values::<bf16>::random(on, 0, r, n * size)?;
    let given = [n, 3, 0].map(|n| Values::<f32>::random(on, seed, r, n));
    let taken = [n, 3, 0].map(|n| Values::<f32>::random(on, 0, r, n));
    let mut handles: Vec<Handle> = vec![];
    for x in &taken {
        handles.push(call!(comm.receive(x.as_ref().unwrap().region(), (r + size - 1) % size))?);
    }
    for x in &sums {
        let region = x.as_ref().unwrap().region();
        handles.push(call!(comm.all_reduce(region, DType::F32, Reduce::Sum))?);
    }
    handles.push(call!(comm.all_gather(own.region(), all.region()))?);
    for x in &given {
        handles.push(call!(comm.send(x.as_ref().unwrap().region(), (r + 1) % size))?);
    }
    let mut rng = Rng::new(seed, 100 + r as u64);
    while !handles.is_empty() {
        let next = handles.remove(rng.below(handles.len() as u32) as usize);
        // Dropped, a handle is waited for too.
        if rng.below(4) == 0 { drop(next) } else { next.wait()? }
    }
    for x in sums.iter().chain(&taken) {
        seen.note(x.as_ref().unwrap())?;
    }
    seen.note(&all)
}

/// Values of the host, groups, groups of groups.
fn around(on: Device, comm: &Comm, seed: u64, seen: &mut Seen) -> Result<()> {
    let (r, size) = (comm.rank(), comm.size());
    let bits = |all: Vec<f32>| all.into_iter().map(f32::to_bits).collect();
    for n in [0, 1, 70_001] {
        let own: Vec<f32> = (0..n + 3 * r).map(|i| (i * (r + 1)) as f32 / 3.0).collect();
        seen.0.push(bits(comm.concat(&own)?));
    }
    let mut sums = vec![0.1 * (r + 1) as f32; 7];
    comm.sum(&mut sums)?;
    seen.0.push(bits(sums));
    seen.0.push(comm.any([r == 1, false])?.map(u32::from).to_vec());
    for _ in 0..2 {
        let pair = comm.split(r % 2)?;
        assert_eq!((pair.size(), pair.rank()), (size / 2, r / 2));
        calls::<f32>(on, &pair, seed, 77, seen)?;
        // One group is done before the other begins; some are of one.
        calls::<bf16>(on, &comm.split(usize::from(r == 1) << 40)?, seed + 1, 33, seen)?;
        calls::<f32>(on, &pair.split(pair.rank())?, seed + 2, 5, seen)?;
        calls::<f32>(on, &comm.split(7)?, seed + 3, 5, seen)?;
    }
    comm.barrier()
}

/// Every call.
pub(crate) fn every_call(on: Device, comm: &Comm, seed: u64) -> Result<Seen> {
    let mut seen = Seen::default();
    for (i, n) in [0, 1, 7, 4096, 10_003].into_iter().enumerate() {
        calls::<f32>(on, comm, seed + i as u64, n, &mut seen)?;
        calls::<bf16>(on, comm, seed + i as u64, n, &mut seen)?;
    }
    // Several pieces of each rank's share, where little is held.
    calls::<f32>(on, comm, seed + 40, 100_003, &mut seen)?;
    for i in 0..3 {
        overlapping(on, comm, seed + 50 + i, &mut seen)?;
    }
    around(on, comm, seed + 60, &mut seen)?;
    let counts = CallKind::ALL.map(|kind| (comm.counted(kind).calls, comm.counted(kind).sent));
    seen.1.extend(counts);
    Ok(seen)
}

/// Sums of values that are near to each other in size, for a comparison up to rounding.
pub(crate) fn sums(on: Device, comm: &Comm) -> Result<Vec<f32>> {
    let (r, size, n) = (comm.rank(), comm.size(), 5000);
    let mut all = vec![];
    let values = |rank: usize| (0..n).map(move |i| ((i * 7 + rank * 13) % 101) as f32 / 7.0);
    let data = Values::new(on, &values(r).collect::<Vec<f32>>())?;
    call!(comm.all_reduce(data.region(), DType::F32, Reduce::Sum))?.wait()?;
    all.extend(data.get()?);
    let from = Values::new(on, &(0..size).flat_map(|b| values(r + b)).collect::<Vec<f32>>())?;
    let own = Values::new(on, &vec![0f32; n])?;
    call!(comm.reduce_scatter(from.region(), own.region(), DType::F32, Reduce::Sum))?.wait()?;
    all.extend(own.get()?);
    Ok(all)
}

/// Calls without end; now and then the device is waited for, as training does.
pub(crate) fn go_on(on: Device, comm: &Comm) -> Result<()> {
    let mut rng = Rng::new(7, 7);
    let most = 40_000;
    let (own, all) = (vec![1f32; most], vec![1f32; most * comm.size()]);
    let (own, all) = (Values::new(on, &own)?, Values::new(on, &all)?);
    loop {
        let n = 4 * (1 + rng.below(most as u32 / 4) as usize);
        let part = if rng.below(20) == 0 { comm.split(comm.rank() % 2)? } else { comm.clone() };
        let to = all.buffer.slice(0, n * part.size());
        let gather = call!(part.all_gather(own.buffer.slice(0, n), to))?;
        let sum = call!(part.all_reduce(own.buffer.slice(n, 64), DType::F32, Reduce::Max))?;
        gather.wait().and(sum.wait())?;
        match rng.below(3) {
            0 => comm.barrier()?,
            1 => drop(comm.any([true])?),
            _ => drop(own.get()?),
        }
        std::thread::sleep(Duration::from_micros(u64::from(rng.below(300))));
    }
}

//! Ranks as processes with a card each, between which bytes travel by NCCL. Calls go on one stream
//! beside that of what is computed: a call waits for what its thread's stream was given before it,
//! and that stream for the call once it is waited for, so the host waits for neither. Who is
//! missing is found out by a thread that watches (`world.rs`).

mod api;
mod group;
mod meet;
mod on_host;
mod reduction;
mod world;

pub use api::{FILES, VARIABLE, given};
pub use meet::SECRET;

use super::deferred::deferred;
use super::member::Member;
use super::{Call, Comm, Launch, Pending, Span, Transport, host};
use crate::base::{Error, Result};
use crate::device::Device;
use api::{START, nonblocking};
use group::{Communicator, Group, Machines, NcclWork, lock};
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use world::World;

/// Checks that NCCL's library can be used.
///
/// # Errors
/// There is none, or it is too old.
pub fn find() -> Result<()> {
    api::api().map(drop)
}

/// Settings that tests change.
#[doc(hidden)]
#[derive(Clone, Debug, Default)]
pub struct Setting {
    /// The name of the machine that this rank takes itself to be on.
    pub machine: Option<String>,
    /// Bytes of others' values that a reduction holds.
    pub held: Option<usize>,
}

/// Meets the other ranks of `launch` and connects this one's `device` to theirs; `alike` is what
/// must be the same on all of them, by name, beside this program's version. A rank that waits for
/// another longer than `timeout` gives up. Once in a process: where a rank is missing the device is
/// of no use any more.
///
/// # Errors
/// There is no NCCL, or no device, or not all ranks come, or they are not of one run.
pub fn start(
    device: Device,
    launch: &Launch,
    timeout: Duration,
    alike: &BTreeMap<String, String>,
) -> Result<Comm> {
    start_with(device, launch, timeout, alike, &Setting::default())
}

/// [`start`], for tests.
#[doc(hidden)]
pub fn start_with(
    device: Device,
    launch: &Launch,
    timeout: Duration,
    alike: &BTreeMap<String, String>,
    setting: &Setting,
) -> Result<Comm> {
    let api = api::api()?;
    device.stream()?;
    let mut alike = alike.clone();
    alike.insert("version".into(), env!("CARGO_PKG_VERSION").into());
    let host = setting.machine.clone().unwrap_or_else(meet::this_machine);
    let me = Member { rank: launch.rank, size: launch.size, host, alike };
    let (met, id, monitor) = meet::meet(api, &me, &meet::place(launch, timeout)?)?;
    let machines = met.members.iter().map(|m| m.host.clone()).collect();
    let world = Arc::new(World::new(api, device, monitor, timeout)?);
    let machines = Machines { of: machines, held: setting.held.unwrap_or(reduction::HELD) };
    let members = Arc::new((0..launch.size).collect());
    // As a call of the group that is being made: a rank that does not come is missed.
    let mut group =
        Group::new(world, std::ptr::null_mut(), members, launch.rank, 0, machines.into());
    let (rank, size) = (launch.rank as c_int, launch.size as c_int);
    let (mut comm, mut config) = (std::ptr::null_mut(), nonblocking());
    group.world.run(
        || group.pending_op(START, true),
        |_| {
            comm = group.world.shared.make(START, None, |api, made| {
                // SAFETY: the pointers live; NCCL copies the configuration.
                unsafe { (api.init)(made, size, id, rank, &mut config) }
            })?;
            Ok(())
        },
    )?;
    group.comm = Communicator(comm);
    Ok(Comm::new(Arc::new(Nccl { group })))
}

/// One rank's place in a group.
struct Nccl {
    group: Group,
}

impl std::fmt::Debug for Nccl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {} by NCCL", self.group.rank, self.group.size())
    }
}

impl Transport for Nccl {
    fn rank(&self) -> usize {
        self.group.rank
    }

    fn size(&self) -> usize {
        self.group.size()
    }

    fn is_on_device(&self) -> bool {
        true
    }

    unsafe fn start(&self, call: Call) -> Result<Box<dyn Pending>> {
        // SAFETY: the caller vouches for the memory until the call has been waited for.
        let done = OnceLock::from(unsafe { self.group.start(call)? });
        let is_barrier = matches!(call, Call::Barrier);
        Ok(deferred(NcclWork { group: self.group.clone(), done: Arc::new(done), is_barrier }))
    }

    unsafe fn start_on_host(&self, call: Call) -> Result<Box<dyn Pending>> {
        // SAFETY: the caller vouches for the memory until the call has ended, which it has here.
        unsafe { self.group.on_host(call)? };
        Ok(deferred(on_host::Over))
    }

    unsafe fn send(&self, data: Span, to: usize) -> Result<Box<dyn Pending>> {
        // SAFETY: the caller vouches for the memory until the message has been waited for.
        unsafe { self.group.p2p(true, data, to) }
    }

    unsafe fn receive(&self, data: Span, from: usize) -> Result<Box<dyn Pending>> {
        // SAFETY: the caller vouches for the memory until the message has been waited for.
        unsafe { self.group.p2p(false, data, from) }
    }

    fn split(&self, color: usize) -> Result<Arc<dyn Transport>> {
        let group = &self.group;
        group.post()?;
        let number = group.next.load(Ordering::Relaxed);
        let (mut own, mut colors) = ([color as u64], vec![0u64; group.size()]);
        let (from, to) = (host(&mut own), host(&mut colors));
        // SAFETY: both live until the call has ended, which it has when this returns.
        unsafe { group.on_host(Call::AllGather { from, to })? };
        let mut distinct = colors.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let place = |color: &u64| distinct.partition_point(|c| c < color);
        let places: Vec<usize> = colors.iter().map(place).collect();
        if distinct.len() == 1 {
            // Not among its own parts: it would hold itself for ever.
            return Ok(Arc::new(Nccl { group: group.clone() }));
        }
        let mut parts = lock(&group.parts);
        let part = match parts.get(&places) {
            Some(part) => part.clone(),
            None => {
                let part = group.part(&places, number)?;
                parts.insert(places, part.clone());
                part
            }
        };
        Ok(match part {
            Some(group) => Arc::new(Nccl { group }),
            None => super::local::alone(),
        })
    }

    fn leave(&self, error: Option<&Error>) {
        self.group.world.leave(error);
    }
}
